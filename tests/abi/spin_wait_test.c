// spin_wait_test.c - family: scheduling. run: weft
//
// Threads that hand work to each other through words they poll in loops without calls, more
// of them than processors, as redis's main thread and its I/O threads do.
// Behaviours: a step costs far less than the time slices of the threads that spin.
// How it failed: each spinner burned its 10 ms while the thread it waited for was queued; a
// redis-server with 4 I/O threads on 2 Ps served 600 requests a second instead of 30,000.
// Measured in processor time of the process, in batches of steps: none was good when it failed. On one
// core more than half of them must be good. On two, where the kernel runs other programs too, a thread
// may spin for a slice of the kernel's until the one it waits for has its core again: with eight copies
// at once one batch of 20 steps in five was not good, with 16 once all ten of them. So one good one is
// asked for, of 5 steps: they took 8 ms and more each (at most 5 is good).
#include "abi.h"

enum { kWorkers = 3, kWarm = 100, kSteps = 200 };

static _Atomic int pending[kWorkers];
static _Atomic int stop;
static int pipe_fds[2];

static void *work(void *arg) {
  _Atomic int *mine = arg;
  while (!stop) {
    while (*mine == 0 && !stop) {
    }
    if (stop) break;
    CHECK_EQ(write(pipe_fds[1], "x", 1), 1);
    *mine = 0;
  }
  return arg;
}

static void round_trip(void) {
  char got[kWorkers];
  for (int i = 0; i < kWorkers; i++) pending[i] = 1;
  for (int left = 1; left != 0;) {
    left = 0;
    for (int i = 0; i < kWorkers; i++) left += pending[i];
  }
  CHECK_EQ(read(pipe_fds[0], got, sizeof got), kWorkers);
}

static int64_t cpu_ns(void) {
  struct timespec t;
  CHECK_OK(clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t));
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

struct plan {
  int cores, steps, wanted;  // steps: of a batch; wanted: good batches
};

// In a process of its own. 0: as many batches were good as are wanted.
static int follow(void *arg) {
  const struct plan *plan = arg;
  keep_cores(plan->cores);
  pthread_t t[kWorkers];
  CHECK_OK(pipe(pipe_fds));
  for (int i = 0; i < kWorkers; i++) t[i] = start(work, &pending[i]);
  for (int i = 0; i < kWarm; i++) round_trip();
  int good = 0;
  for (int done = 0; done < kSteps && good < plan->wanted; done += plan->steps) {
    int64_t from = cpu_ns();
    for (int i = 0; i < plan->steps; i++) round_trip();
    // Four threads that each spin for a slice of 10 ms make 20 ms and more.
    good += (cpu_ns() - from) / plan->steps < 5000000;
  }
  stop = 1;
  for (int i = 0; i < kWorkers; i++) join(t[i]);
  return good < plan->wanted;
}

static void a_step_costs_no_slices_on_one_core(void **state) {
  (void)state;
  CHECK_EQ(in_child(follow, &(struct plan){1, 20, 6}), 0);
}

static void a_step_costs_no_slices_on_two_cores(void **state) {
  (void)state;
  CHECK_EQ(in_child(follow, &(struct plan){2, 5, 1}), 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(a_step_costs_no_slices_on_one_core),
      cmocka_unit_test(a_step_costs_no_slices_on_two_cores),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

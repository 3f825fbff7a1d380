// bare_loop_test.c - family: threads that compute in loops without any call, and those who wait.
//
// Behaviours: a loop on a flag that another thread sets, in more threads than processors; main
// gets on beside computing threads; asynchronous cancellation of such loops, with cleanup
// handlers; a computing thread beside sleepers, pipes and joins.
// Invariant: a thread that computes never keeps another one from running. These are the
// tests that need preemption; no other file of the threads half does.
#include "abi.h"

static int flag;
static void *set_flag(void *arg) {
  STORE(&flag, (int)(intptr_t)arg);
  return NULL;
}

static void loop_waits_for_another_thread(void **state) {
  (void)state;
  for (int i = 1; i <= 5; i++) {
    pthread_t t = start(set_flag, (void *)(intptr_t)i);
    while (LOAD(&flag) != i) {
    }
    join(t);
  }
}

static void *spin_until_set(void *arg) {
  while (LOAD(&flag) != 100) __builtin_ia32_pause();
  return arg;
}

static void loops_fill_all_processors(void **state) {
  (void)state;
  pthread_t t[12];
  for (unsigned i = 0; i < sizeof t / sizeof *t; i++) t[i] = start(spin_until_set, NULL);
  yield_some(5);
  join(start(set_flag, (void *)100));
  for (unsigned i = 0; i < sizeof t / sizeof *t; i++) join(t[i]);
}

static int stop;
static void *compute(void *arg) {
  volatile long sum = 0;
  while (!LOAD(&stop)) sum = sum + 1;
  return arg;
}

static void *use_pipe_and_sleep(void *arg) {
  int ends[2];
  char c = 'p';
  CHECK_OK(pipe(ends));
  for (int i = 0; i < 5; i++) {
    struct timespec tiny = to_timespec(10000);
    CHECK_OK(nanosleep(&tiny, NULL));
    CHECK_EQ(write(ends[1], &c, 1), 1);
    CHECK_EQ(read(ends[0], &c, 1), 1);
    sched_yield();
  }
  close(ends[0]);
  close(ends[1]);
  return arg;
}

static void others_get_on_beside_computing_threads(void **state) {
  (void)state;
  pthread_t busy[4], others[4];
  STORE(&stop, 0);
  for (unsigned i = 0; i < sizeof busy / sizeof *busy; i++) busy[i] = start(compute, NULL);
  for (unsigned i = 0; i < sizeof others / sizeof *others; i++) others[i] = start(use_pipe_and_sleep, NULL);
  for (unsigned i = 0; i < sizeof others / sizeof *others; i++) join(others[i]);
  STORE(&stop, 1);
  for (unsigned i = 0; i < sizeof busy / sizeof *busy; i++) join(busy[i]);
}

static int phase, ran;
static void set_ran(void *arg) { ADD(&ran, (int)(intptr_t)arg); }
static volatile long spins;
static void *spin_asynchronously(void *arg) {
  pthread_cleanup_push(set_ran, (void *)5);
  CHECK_OK(pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, NULL));
  ADD(&phase, 1);
  for (;;) spins = spins + 1;
  pthread_cleanup_pop(0);
  return arg;
}

static void asynchronous_cancel_of_a_loop(void **state) {
  (void)state;
  for (int round = 0; round < 10; round++) {
    pthread_t t[3];
    phase = ran = 0;
    for (unsigned i = 0; i < sizeof t / sizeof *t; i++) t[i] = start(spin_asynchronously, NULL);
    AWAIT(LOAD(&phase) == 3);
    for (unsigned i = 0; i < sizeof t / sizeof *t; i++) CHECK_OK(pthread_cancel(t[i]));
    for (unsigned i = 0; i < sizeof t / sizeof *t; i++) CHECK(join(t[i]) == PTHREAD_CANCELED);
    CHECK_EQ(ran, 15);
  }
}

static int compute_in_child(void *arg) {
  (void)arg;
  pthread_t t[4];
  STORE(&stop, 0);
  for (unsigned i = 0; i < sizeof t / sizeof *t; i++) t[i] = start(compute, NULL);
  join(start(use_pipe_and_sleep, NULL));
  STORE(&stop, 1);
  for (unsigned i = 0; i < sizeof t / sizeof *t; i++) join(t[i]);
  return 0;
}

static void the_same_in_a_forked_child(void **state) {
  (void)state;
  CHECK_OK(in_child(compute_in_child, NULL));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(loop_waits_for_another_thread),
      cmocka_unit_test(loops_fill_all_processors),
      cmocka_unit_test(others_get_on_beside_computing_threads),
      cmocka_unit_test(asynchronous_cancel_of_a_loop),
      cmocka_unit_test(the_same_in_a_forked_child),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

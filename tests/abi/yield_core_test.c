// yield_core_test.c - family: sched_yield by threads that wait for one that shares their core.
//
// Behaviours: threads that spin at a barrier with sched_yield get on when all kernel threads of
// the process have one core between them, as they do when another program has the other one.
//
// How it failed: three threads on one P yielded to each other and never to the kernel; the fourth,
// on an M of its own, had the core once in each of the kernel's slices, some 20,000 to 80,000 yields later.
#include "abi.h"

#include <dirent.h>

enum { kThreads = 4, kRounds = 200, kYieldsPerRound = 8000 };

static int arrived, generation, ready, narrowed;
static long yields;

static void barrier(long *mine) {
  int seen = LOAD(&generation);
  if (ADD(&arrived, 1) == kThreads) {
    STORE(&arrived, 0);
    STORE(&generation, seen + 1);
    return;
  }
  while (LOAD(&generation) == seen) {
    sched_yield();
    ++*mine;
  }
}

static void *spin(void *arg) {
  long mine = 0;
  ADD(&ready, 1);
  while (!LOAD(&narrowed)) sched_yield();
  for (int i = 0; i < kRounds; i++) barrier(&mine);
  ADD(&yields, mine);
  return arg;
}

// From outside, so that no thread asks for a core of its own.
static int narrow(void *process) {
  pid_t pid = *(pid_t *)process;
  cpu_set_t one;
  CHECK_OK(sched_getaffinity(0, sizeof one, &one));
  for (int i = 0, found = 0; i < CPU_SETSIZE; i++)
    if (CPU_ISSET(i, &one) && found++ > 0) CPU_CLR(i, &one);
  char path[64];
  snprintf(path, sizeof path, "/proc/%d/task", (int)pid);
  DIR *tasks = opendir(path);
  CHECK(tasks != NULL);
  for (struct dirent *d; (d = readdir(tasks)) != NULL;)
    if (d->d_name[0] != '.') CHECK_OK(sched_setaffinity(atoi(d->d_name), sizeof one, &one));
  closedir(tasks);
  return 0;
}

static void spinners_on_one_core_get_on(void **state) {
  (void)state;
  pthread_t t[kThreads];
  for (int i = 0; i < kThreads; i++) t[i] = start(spin, NULL);
  AWAIT(LOAD(&ready) == kThreads);
  pid_t self = getpid();
  CHECK_EQ(exit_code(in_child(narrow, &self)), 0);
  STORE(&narrowed, 1);
  for (int i = 0; i < kThreads; i++) join(t[i]);
  CHECK_EQ(generation, kRounds);
  CHECK(yields / kRounds < kYieldsPerRound);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(spinners_on_one_core_get_on)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}

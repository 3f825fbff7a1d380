// fork_storm.c - stress: forks from random threads while others lock, allocate, create.
//
// Invariants checked: every child runs threads, memory and locks of its own and ends with the
// status it chose; every child is reaped once; the parent's accounts balance afterwards.
// Usage: fork_storm [seed [seconds]].
#include "stress.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
static long counter, expected, forks, spawned;

static void before(void) { pthread_mutex_lock(&lock); }
static void after(void) { pthread_mutex_unlock(&lock); }

static void *square(void *arg) {
  sched_yield();
  return (void *)((intptr_t)arg * (intptr_t)arg);
}

static int child(Random *r, int depth) {
  CHECK_EQ(gettid(), getpid());
  CHECK_OK(pthread_mutex_lock(&lock));  // taken over the fork by the handlers: consistent
  CHECK_EQ(counter, LOAD(&expected));
  CHECK_OK(pthread_mutex_unlock(&lock));
  pthread_t t[8];
  int n = below(r, 8);
  for (intptr_t i = 0; i < n; i++) t[i] = start(square, (void *)i);
  void *p = malloc((size_t)below(r, 100000) + 1);
  for (intptr_t i = 0; i < n; i++) CHECK_EQ((intptr_t)join(t[i]), i * i);
  free(p);
  if (depth > 0 && below(r, 4) == 0) {
    int status;
    pid_t pid = fork();
    if (pid == 0) _exit(child(r, depth - 1));
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    CHECK_EQ(exit_code(status), 33);
  }
  return 33;
}

static void *fork_often(void *arg) {
  Random r = random_stream((uint64_t)(uintptr_t)arg);
  while (time_left()) {
    int status, how = below(&r, 3);
    volatile int wanted = 33;  // kept over vfork
    pid_t pid;
    if (how == 2) {
      wanted = below(&r, 100);
      pid = vfork();
      if (pid == 0) _exit(wanted);
    } else {
      pid = fork();
      if (pid == 0) _exit(child(&r, how));
    }
    CHECK(pid > 0);
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    CHECK_EQ(exit_code(status), wanted);
    ADD(&forks, 1);
    if (below(&r, 2)) sched_yield();
  }
  return NULL;
}

static void *count_under_lock(void *arg) {
  Random r = random_stream(1000 + (uint64_t)(uintptr_t)arg);
  while (time_left()) {
    CHECK_OK(pthread_mutex_lock(&lock));
    counter++;
    if (below(&r, 16) == 0) sched_yield();
    ADD(&expected, 1);
    struct timespec soon = in_us(CLOCK_REALTIME, below(&r, 100));
    if (below(&r, 4) == 0) pthread_cond_timedwait(&cond, &lock, &soon);
    CHECK_OK(pthread_mutex_unlock(&lock));
    free(malloc((size_t)below(&r, 5000) + 1));
  }
  return NULL;
}

static void *create_often(void *arg) {
  Random r = random_stream(2000 + (uint64_t)(uintptr_t)arg);
  while (time_left()) {
    intptr_t n = below(&r, 1000);
    CHECK_EQ((intptr_t)join(start(square, (void *)n)), n * n);
    ADD(&spawned, 1);
  }
  return NULL;
}

int main(int argc, char **argv) {
  pthread_t t[12];
  stress_begin(argc, argv, 5);
  CHECK_OK(pthread_atfork(before, after, after));
  for (intptr_t i = 0; i < 12; i++)
    t[i] = start(i < 4 ? fork_often : i < 9 ? count_under_lock : create_often, (void *)i);
  for (int i = 0; i < 12; i++) join(t[i]);
  CHECK_EQ(counter, expected);
  CHECK(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD);
  printf("%ld forks, %ld threads, counter %ld\n", forks, spawned, counter);
  return 0;
}

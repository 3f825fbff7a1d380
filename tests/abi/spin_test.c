// spin_test.c - family: pthread_spin_*.
//
// Behaviours: mutual exclusion by many more threads than processors, held over yields and
// over a sleep (the spinners must let the holder run), trylock, process-shared.
// Loops that call nothing at all are in bare_loop_test.c.
// Invariant: a spinning thread never keeps the one it waits for from running.
#include "abi.h"

static struct counted {
  pthread_spinlock_t l;
  long counter, inside;
} local;
static struct counted *shared = &local;
static int rounds, hold_by;

static void *count_up(void *arg) {
  for (int i = 0; i < rounds; i++) {
    if (i % 5 == 4)
      while (pthread_spin_trylock(&shared->l) != 0) sched_yield();
    else
      CHECK_OK(pthread_spin_lock(&shared->l));
    CHECK_EQ(++shared->inside, 1);
    if (hold_by == 1) sched_yield();
    if (hold_by == 2) {
      struct timespec tiny = to_timespec(20000);
      nanosleep(&tiny, NULL);
    }
    shared->counter++;
    CHECK_EQ(--shared->inside, 0);
    CHECK_OK(pthread_spin_unlock(&shared->l));
  }
  return arg;
}

static void run(int threads, int n, int how) {
  pthread_t t[32];
  rounds = n;
  hold_by = how;
  for (int i = 0; i < threads; i++) t[i] = start(count_up, NULL);
  for (int i = 0; i < threads; i++) join(t[i]);
}

static void exclusion(void **state) {
  (void)state;
  CHECK_OK(pthread_spin_init(&local.l, PTHREAD_PROCESS_PRIVATE));
  run(2, 5000, 0);
  run(8, 500, 0);
  CHECK_EQ(local.counter, 14000);
  CHECK_OK(pthread_spin_lock(&local.l));
  CHECK_EQ(pthread_spin_trylock(&local.l), EBUSY);
  CHECK_OK(pthread_spin_unlock(&local.l));
  CHECK_OK(pthread_spin_trylock(&local.l));
  CHECK_OK(pthread_spin_unlock(&local.l));
  CHECK_OK(pthread_spin_destroy(&local.l));
}

static void holder_yields_or_sleeps(void **state) {
  (void)state;
  CHECK_OK(pthread_spin_init(&local.l, PTHREAD_PROCESS_PRIVATE));
  local.counter = 0;
  run(4, 5, 1);
  run(4, 5, 2);
  CHECK_EQ(local.counter, 40);
}

static int count_in_child(void *arg) {
  (void)arg;
  run(4, 100, 0);
  return 0;
}

static void shared_between_processes(void **state) {
  (void)state;
  shared = shared_memory(sizeof *shared);
  CHECK_OK(pthread_spin_init(&shared->l, PTHREAD_PROCESS_SHARED));
  fflush(NULL);
  pid_t pid = fork();
  if (pid == 0) _exit(count_in_child(NULL));
  run(4, 100, 0);
  int status;
  CHECK_EQ(waitpid(pid, &status, 0), pid);
  CHECK_OK(status);
  CHECK_EQ(shared->counter, 800);
  shared = &local;
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(exclusion),
      cmocka_unit_test(holder_yields_or_sleeps),
      cmocka_unit_test(shared_between_processes),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

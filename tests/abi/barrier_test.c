// barrier_test.c - family: pthread_barrier_*.
//
// Behaviours: exactly one serial thread per round; nobody leaves before all are in; many
// rounds without a mix of rounds; destroy right after the last wait; a count of one;
// process-shared over fork; bad counts.
// Invariant: in round r all have finished round r-1.
#include "abi.h"

struct meeting {
  pthread_barrier_t b;
  int rounds, arrived[200], serial[200], size;
};

static void *attend(void *arg) {
  struct meeting *m = arg;
  for (int r = 0; r < m->rounds; r++) {
    ADD(&m->arrived[r], 1);
    int answer = pthread_barrier_wait(&m->b);
    CHECK(answer == 0 || answer == PTHREAD_BARRIER_SERIAL_THREAD);
    CHECK_EQ(LOAD(&m->arrived[r]), m->size);
    if (answer) ADD(&m->serial[r], 1);
    if (r) CHECK_EQ(LOAD(&m->serial[r - 1]), 1);
  }
  return NULL;
}

static void make(struct meeting *m, int size, int rounds, int shared) {
  pthread_barrierattr_t attr;
  int value = -1;
  memset(m, 0, sizeof *m);
  m->size = size;
  m->rounds = rounds;
  CHECK_OK(pthread_barrierattr_init(&attr));
  CHECK_OK(pthread_barrierattr_setpshared(&attr, shared));
  CHECK_OK(pthread_barrierattr_getpshared(&attr, &value));
  CHECK_EQ(value, shared);
  CHECK_EQ(pthread_barrierattr_setpshared(&attr, 9), EINVAL);
  CHECK_OK(pthread_barrier_init(&m->b, &attr, (unsigned)size));
  CHECK_OK(pthread_barrierattr_destroy(&attr));
}

static void attend_with_threads(struct meeting *m, int threads) {
  pthread_t t[200];
  for (int i = 0; i < threads; i++) t[i] = start(attend, m);
  for (int i = 0; i < threads; i++) join(t[i]);
}

static void rounds_of_many(void **state) {
  (void)state;
  const int sizes[] = {1, 2, 3, 16, 200};
  for (int i = 0; i < 5; i++) {
    struct meeting m;
    make(&m, sizes[i], sizes[i] > 100 ? 10 : 100, i & 1 ? PTHREAD_PROCESS_SHARED : PTHREAD_PROCESS_PRIVATE);
    attend_with_threads(&m, sizes[i]);
    CHECK_EQ(m.serial[m.rounds - 1], 1);
    CHECK_OK(pthread_barrier_destroy(&m.b));
  }
}

static void bad_counts(void **state) {
  (void)state;
  pthread_barrier_t b;
  CHECK_EQ(pthread_barrier_init(&b, NULL, 0), EINVAL);
  CHECK_EQ(pthread_barrier_init(&b, NULL, UINT_MAX), EINVAL);
  CHECK_OK(pthread_barrier_init(&b, NULL, 1));
  for (int i = 0; i < 10; i++) CHECK_EQ(pthread_barrier_wait(&b), PTHREAD_BARRIER_SERIAL_THREAD);
  CHECK_OK(pthread_barrier_destroy(&b));
}

// The serial thread destroys it at once, while the others may still be on their way out.
static void *wait_and_destroy(void *arg) {
  pthread_barrier_t *b = arg;
  if (pthread_barrier_wait(b) == PTHREAD_BARRIER_SERIAL_THREAD) {
    CHECK_OK(pthread_barrier_destroy(b));
    memset(b, 0xff, sizeof *b);
  }
  return NULL;
}

static void destroyed_by_the_serial_thread(void **state) {
  (void)state;
  for (int round = 0; round < 200; round++) {
    pthread_barrier_t b;
    pthread_t t[4];
    CHECK_OK(pthread_barrier_init(&b, NULL, 4));
    for (int i = 0; i < 4; i++) t[i] = start(wait_and_destroy, &b);
    for (int i = 0; i < 4; i++) join(t[i]);
  }
}

static void shared_between_processes(void **state) {
  (void)state;
  struct meeting *m = shared_memory(sizeof *m);
  make(m, 12, 50, PTHREAD_PROCESS_SHARED);
  pid_t pids[2];
  fflush(NULL);
  for (int i = 0; i < 2; i++)
    if ((pids[i] = fork()) == 0) {
      attend_with_threads(m, 4);
      _exit(0);
    }
  attend_with_threads(m, 4);
  for (int i = 0; i < 2; i++) {
    int status;
    CHECK_EQ(waitpid(pids[i], &status, 0), pids[i]);
    CHECK_OK(status);
  }
  CHECK_EQ(m->arrived[49], 12);
  CHECK_EQ(m->serial[49], 1);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(rounds_of_many),
      cmocka_unit_test(bad_counts),
      cmocka_unit_test(destroyed_by_the_serial_thread),
      cmocka_unit_test(shared_between_processes),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

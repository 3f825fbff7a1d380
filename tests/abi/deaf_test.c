// deaf_test.c - family: threads that compute where they cannot be stopped.
//
// Behaviour: beside threads that print into strings in libc all the time, one that sleeps a
// millisecond wakes about on time. On one processor it waited 50 ms on the average, 280 at the most:
// a thread is not stopped in libc, and a signal found each of them outside of it once in 250 times.
// Invariant: who cannot be stopped keeps nobody from running for long.
// Measured in what the process computes meanwhile, on one processor: on a busy machine more time passes.
#include "abi.h"

enum { kPrinters = 8, kSleeps = 31 };

static int stop;

static void *print(void *arg) {
  char line[200];
  while (!LOAD(&stop)) {
    int n = snprintf(line, sizeof line, "%d %s %f %ld", 3, "abc", 2.5, 99L);
    CHECK_EQ(n, 17);
  }
  return arg;
}

static int by_size(const void *a, const void *b) {
  int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
  return (x > y) - (x < y);
}

static void a_sleeper_wakes_beside_printers(void **state) {
  (void)state;
  pthread_t t[kPrinters];
  int64_t took[kSleeps];
  for (int i = 0; i < kPrinters; i++) t[i] = start(print, NULL);
  for (int i = 0; i < kSleeps; i++) {
    int64_t begin = now_ns(CLOCK_PROCESS_CPUTIME_ID);
    usleep(1000);
    took[i] = now_ns(CLOCK_PROCESS_CPUTIME_ID) - begin;
  }
  STORE(&stop, 1);
  for (int i = 0; i < kPrinters; i++) join(t[i]);
  qsort(took, kSleeps, sizeof took[0], by_size);
  CHECK(took[kSleeps / 2] < 10000000);
}

int main(void) {
  keep_one_core();
  const struct CMUnitTest tests[] = {cmocka_unit_test(a_sleeper_wakes_beside_printers)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}

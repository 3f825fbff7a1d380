// allocator_test.c - family: programs whose malloc is another library's, with locks of its own.
//
// Behaviours: threads that allocate beside threads that go to sleep in the kernel all get on.
// Found with jemalloc preloaded (one run of 24 in four, one P): a G stopped with an arena's
// lock waited for a kernel thread, and whoever was to make that waited for the lock.
// Invariant: what takes memory to make is never waited for by who holds the allocator.
#include "abi.h"

enum { kSleepers = 16, kSlowBytes = 12345 };

static int n_asleep, done;

static void *sleeps_in_the_kernel(void *arg) {
  sigset_t *set = arg;
  int sig;
  ADD(&n_asleep, 1);
  CHECK_OK(sigwait(set, &sig));
  return NULL;
}

static void *allocates(void *arg) {
  for (int i = 0; i < 3; i++) {
    void *volatile p = malloc(kSlowBytes);
    CHECK(p != NULL);
    free(p);
  }
  ADD(&done, 1);
  return arg;
}

static void allocates_while_others_sleep_in_the_kernel(void **state) {
  (void)state;
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGUSR1);
  CHECK_OK(pthread_sigmask(SIG_BLOCK, &set, NULL));
  pthread_t sleeper[kSleepers], busy[2];
  for (int i = 0; i < 2; i++) busy[i] = start(allocates, NULL);
  for (int i = 0; i < kSleepers; i++) sleeper[i] = start(sleeps_in_the_kernel, &set);
  for (int i = 0; i < 2; i++) join(busy[i]);
  AWAIT(LOAD(&n_asleep) == kSleepers);
  CHECK_EQ(done, 2);
  for (int i = 0; i < kSleepers; i++) CHECK_OK(pthread_kill(sleeper[i], SIGUSR1));
  for (int i = 0; i < kSleepers; i++) join(sleeper[i]);
}

// Starts itself again with that allocator in front.
static void with_the_allocator(char **argv) {
  char self[PATH_MAX], list[2 * PATH_MAX];
  ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
  CHECK(n > 0);
  self[n] = 0;
  const char *old = getenv("LD_PRELOAD");
  snprintf(list, sizeof list, "%s%s%.*s/lib/locking_malloc.so", old != NULL ? old : "",
           old != NULL ? ":" : "", (int)(strrchr(self, '/') - self), self);
  setenv("LD_PRELOAD", list, 1);
  setenv("ALLOCATOR_TEST", "1", 1);
  execv(self, argv);
  CHECK(!"execv");
}

int main(int argc, char **argv) {
  (void)argc;
  if (getenv("ALLOCATOR_TEST") == NULL) with_the_allocator(argv);
  alarm(50);  // a hang is the failure
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(allocates_while_others_sleep_in_the_kernel),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

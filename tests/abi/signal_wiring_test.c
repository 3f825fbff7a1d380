// signal_wiring_test.c - family: signals. A thread gets a kernel thread of its own, and a signal has
// been, or is just being, sent to it alone.
//
// Behaviours: what it blocks then is pending, and comes as it opens the door or waits for it, with
// value and number; nothing that is sent while it is being bound is lost.
// How it failed: what stood in weft's queue for the thread stayed there, where a bound thread never looks:
// its handler did not run, sigwait hung. wish_test hung in sigsuspend, once in 15 runs on
// a busy machine: the sender had seen an unbound thread, and queued the signal as that was bound.
// Invariant: natively binding a thread touches no signal.
#include "abi.h"

enum { kRounds = 100 };

static int handled, last_value, up, bind_now;
static cpu_set_t one;

static void on_signal(int sig, siginfo_t *info, void *uc) {
  (void)sig;
  (void)uc;
  last_value = info->si_value.sival_int;
  ADD(&handled, 1);
}

static void take(int sig) {
  struct sigaction a = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO};
  CHECK_OK(sigaction(sig, &a, NULL));
}

static sigset_t only(int sig) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, sig);
  return set;
}

static int is_pending(int sig) {
  sigset_t set;
  CHECK_OK(sigpending(&set));
  return sigismember(&set, sig);
}

static void bind_self(void) { CHECK_OK(sched_setaffinity(0, sizeof one, &one)); }

static void *opens_after(void *arg) {
  sigset_t usr = only(SIGUSR1), rt = only(SIGRTMIN + 1);
  CHECK_OK(pthread_sigmask(SIG_BLOCK, &usr, NULL));
  CHECK_OK(pthread_sigmask(SIG_BLOCK, &rt, NULL));
  CHECK_OK(pthread_kill(pthread_self(), SIGUSR1));
  for (int i = 1; i <= 3; i++)
    CHECK_OK(pthread_sigqueue(pthread_self(), SIGRTMIN + 1, (union sigval){.sival_int = i}));
  bind_self();
  CHECK_EQ(LOAD(&handled), 0);
  CHECK(is_pending(SIGUSR1) && is_pending(SIGRTMIN + 1));
  CHECK_OK(pthread_sigmask(SIG_UNBLOCK, &usr, NULL));
  CHECK_EQ(LOAD(&handled), 1);
  siginfo_t info;
  CHECK_EQ(sigwaitinfo(&rt, &info), SIGRTMIN + 1);
  CHECK_EQ(info.si_value.sival_int, 1);
  CHECK_OK(pthread_sigmask(SIG_UNBLOCK, &rt, NULL));
  CHECK_EQ(LOAD(&handled), 3);
  CHECK_EQ(last_value, 3);
  return arg;
}

static void what_was_pending_stays_pending(void **state) {
  (void)state;
  take(SIGUSR1);
  take(SIGRTMIN + 1);
  STORE(&handled, 0);
  join(start(opens_after, NULL));
}

// Its kernel thread is there for a while after it has ended, and ran handlers.
static void *binds_opens_and_ends(void *arg) {
  sigset_t usr = only(SIGUSR1);
  bind_self();
  CHECK_OK(pthread_sigmask(SIG_UNBLOCK, &usr, NULL));
  return arg;
}

static void *binds_and_ends(void *arg) {
  bind_self();
  return arg;
}

// All others block it, and have handled it when the call that lets it in returns: also if weft's watcher had
// it in hand.
static void what_the_process_has_is_not_its_own(void **state) {
  (void)state;
  sigset_t usr = only(SIGUSR1);
  take(SIGUSR1);
  for (int i = 0; i < kRounds; i++) {
    STORE(&handled, 0);
    CHECK_OK(pthread_sigmask(SIG_BLOCK, &usr, NULL));
    join(start(binds_opens_and_ends, NULL));
    CHECK_OK(kill(getpid(), SIGUSR1));
    if (i % 2 == 0) join(start(binds_and_ends, NULL));
    CHECK_EQ(LOAD(&handled), 0);
    CHECK_OK(pthread_sigmask(SIG_UNBLOCK, &usr, NULL));
    CHECK_EQ(LOAD(&handled), 1);
  }
}

static void *suspends(void *arg) {
  sigset_t usr = only(SIGUSR1), none;
  sigemptyset(&none);
  CHECK_OK(pthread_sigmask(SIG_BLOCK, &usr, NULL));
  STORE(&up, 1);
  while (!LOAD(&bind_now)) continue;
  if (arg != NULL) bind_self();
  CHECK_FAILS(sigsuspend(&none), EINTR);
  return arg;
}

// Another thread binds it, or it does so itself, and the signal is sent at the same time.
static void none_is_lost_as_it_is_bound(void **state) {
  (void)state;
  take(SIGUSR1);
  for (int i = 0; i < kRounds; i++) {
    STORE(&handled, 0);
    STORE(&up, 0);
    STORE(&bind_now, 0);
    pthread_t t = start(suspends, i % 2 != 0 ? &one : NULL);
    AWAIT(LOAD(&up));
    if (i % 2 == 0) CHECK_OK(pthread_setaffinity_np(t, sizeof one, &one));
    STORE(&bind_now, 1);
    for (volatile int k = 0; k < i * 37 % 4000; k++) {
    }
    CHECK_OK(pthread_kill(t, SIGUSR1));
    join(t);
    CHECK_EQ(LOAD(&handled), 1);
  }
}

int main(void) {
  CHECK_OK(sched_getaffinity(0, sizeof one, &one));
  int first = 0;
  while (!CPU_ISSET(first, &one)) first++;
  CPU_ZERO(&one);
  CPU_SET(first, &one);
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(what_was_pending_stays_pending),
      cmocka_unit_test(what_the_process_has_is_not_its_own),
      cmocka_unit_test(none_is_lost_as_it_is_bound),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

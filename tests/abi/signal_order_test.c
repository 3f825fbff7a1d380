// signal_order_test.c - family: the order of real-time signals that are sent to the process.
//
// Behaviours: one thread accepts them, by a handler; those of one number come in the order in which
// they were sent, lower numbers first; of many that arrive at once none is lost.
// It failed where some stood queued for the thread, and others went to the kernel since its handler
// ran just then; and where what arrived in the scheduler was routed from the lowest free slot.
// Invariant: each value comes once.
#include "abi.h"

#include <semaphore.h>

enum { kSent = 3000, kAtOnce = 5000 };
static int values[kAtOnce], signals[kAtOnce], n, stop, up;
static sem_t never;

static void note(int sig, siginfo_t *info, void *context) {
  (void)context;
  if (n < kAtOnce) {
    values[n] = info->si_value.sival_int;
    signals[n] = sig;
  }
  STORE(&n, n + 1);
}

static sigset_t all_real_time(void) {
  sigset_t s;
  sigemptyset(&s);
  for (int i = 0; i < 3; i++) sigaddset(&s, SIGRTMIN + i);
  return s;
}

enum { kComputes, kYields, kWaits, kSleeps, kHows };
static void *accepts(void *how) {
  sigset_t s = all_real_time();
  CHECK_OK(pthread_sigmask(SIG_UNBLOCK, &s, NULL));
  STORE(&up, 1);
  while (!LOAD(&stop)) switch ((intptr_t)how) {
      case kYields: sched_yield(); break;
      case kWaits: sem_wait(&never); break;
      case kSleeps: usleep(1); break;
      default: break;
    }
  return NULL;
}

static void send_value(pid_t pid, int sig, int value) {
  union sigval v = {.sival_int = value};
  while (sigqueue(pid, sig, v) != 0) {
    CHECK_EQ(errno, EAGAIN);
    kill(pid, SIGCONT);
    sched_yield();
  }
}

static pthread_t begin(int how) {
  struct sigaction sa = {.sa_sigaction = note, .sa_flags = SA_SIGINFO};
  sigfillset(&sa.sa_mask);
  sigset_t s = all_real_time();
  CHECK_OK(sigprocmask(SIG_BLOCK, &s, NULL));
  for (int i = 0; i < 3; i++) CHECK_OK(sigaction(SIGRTMIN + i, &sa, NULL));
  n = stop = up = 0;
  pthread_t t = start(accepts, (void *)(intptr_t)how);
  AWAIT(LOAD(&up));
  return t;
}
static void end(pthread_t t) {
  STORE(&stop, 1);
  CHECK_OK(sem_post(&never));
  join(t);
  while (sem_trywait(&never) == 0) {
  }
}

static void the_process_sends_to_itself(void **state) {
  (void)state;
  for (int how = 0; how < kHows; how++) {
    pthread_t t = begin(how);
    for (int i = 0; i < kSent; i++) send_value(getpid(), SIGRTMIN, i);
    AWAIT(LOAD(&n) == kSent);
    for (int i = 0; i < kSent; i++) CHECK_EQ(values[i], i);
    end(t);
  }
}

// Who accepted them has just ended. (Its M, looking for work, still had its mask: one of the first went
// there, and back to the kernel behind the others.)
static void lower_numbers_first(void **state) {
  (void)state;
  sigset_t s = all_real_time();
  for (int round = 0; round < 100; round++) {
    end(begin(round % kHows));
    for (int i = 0; i < 30; i++) send_value(getpid(), SIGRTMIN + (i + 2) % 3, i / 3);
    CHECK_OK(pthread_sigmask(SIG_UNBLOCK, &s, NULL));
    CHECK_EQ(LOAD(&n), 30);
    for (int i = 0; i < 30; i++) {
      CHECK_EQ(signals[i], SIGRTMIN + i / 10);
      CHECK_EQ(values[i], i % 10);
    }
  }
}

// Sent while we are stopped, they come all together.
static void many_arrive_at_once(void **state) {
  (void)state;
  for (int how = 0; how < kHows; how++) {
    pthread_t t = begin(how);
    pid_t parent = getpid(), pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
      kill(parent, SIGSTOP);
      for (int i = 0; i < kAtOnce; i++) send_value(parent, SIGRTMIN + i % 3, i);
      kill(parent, SIGCONT);
      _exit(0);
    }
    int status;
    pid_t got;
    do got = waitpid(pid, &status, 0);
    while (got < 0 && errno == EINTR);
    CHECK_OK(status);
    AWAIT(LOAD(&n) == kAtOnce);
    static char seen[kAtOnce];
    memset(seen, 0, sizeof seen);
    for (int i = 0; i < kAtOnce; i++) {
      CHECK(values[i] >= 0 && values[i] < kAtOnce);
      CHECK_EQ(seen[values[i]]++, 0);
      CHECK_EQ(signals[i], SIGRTMIN + values[i] % 3);
    }
    end(t);
  }
}

static void *nothing(void *arg) { return arg; }

// exit's handlers run in the last thread, which still takes signals: one by which the process dies ends
// it there. (weft had closed them before, and the process ended with status 0.)
static void die_in_handler(void) { kill(getpid(), SIGUSR1); }

static void *joins_its_elder(void *elder) {
  CHECK_OK(pthread_join((pthread_t)elder, NULL));
  return NULL;
}

static int last_of_a_row(void *arg) {
  signal(SIGUSR1, SIG_DFL);
  atexit(die_in_handler);
  pthread_t elder = pthread_self();
  for (intptr_t i = 0; i < (intptr_t)arg; i++) elder = start(joins_its_elder, (void *)elder);
  pthread_exit(NULL);
}

static void the_last_thread_kills_the_process_in_exit(void **state) {
  (void)state;
  for (intptr_t n = 0; n <= 20; n += 5) CHECK_EQ(death_signal(in_child(last_of_a_row, (void *)n)), SIGUSR1);
}

int main(void) {
  CHECK_OK(sem_init(&never, 0, 0));
  join(start(nothing, NULL));
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(the_process_sends_to_itself),
      cmocka_unit_test(lower_numbers_first),
      cmocka_unit_test(many_arrive_at_once),
      cmocka_unit_test(the_last_thread_kills_the_process_in_exit),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

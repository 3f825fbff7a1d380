// wait_bracket_test.c - family: signals. run: weft
//
// A handler that runs inside a wait for signals, for longer than a slice, on one processor.
// Behaviours: the wait goes on when it has returned, and whoever waits for the processor has it soon.
// How it failed: the wait read the time by the interposed clock_gettime, which makes way when a slice
// is over; inside the call the P may be another M's by then. Two Ms ran one P, and the next
// hand-off died in a CHECK (now the yield itself does, or nobody runs any more). The handler has to
// come within the few instructions before that look at the clock: 4 of 6 runs failed.
#include "abi.h"

#include <semaphore.h>
#include <sys/time.h>

enum { kHandlers = 60, kBytes = 1 << 20 };

static sem_t wanted;
static int handled, stop, turns;
static char from[kBytes + 1], to[kBytes];
static int copies;  // how many make a slice and a half

static void *takes_turns(void *arg) {
  while (!LOAD(&stop)) {
    CHECK_OK(sem_wait(&wanted));
    ADD(&turns, 1);
  }
  return arg;
}

// Somebody else is ready from here on; and it is stopped inside libc, where it is put off. The next signal
// is there before this one's handler ends: if nobody else has taken it meanwhile, the wait does not get
// on between them, and would not stop the timer (on a busy machine for more than 60 s).
static void burns_a_slice(int sig) {
  (void)sig;
  static const struct itimerval never;
  sem_post(&wanted);
  if (ADD(&handled, 1) == kHandlers) CHECK_OK(setitimer(ITIMER_REAL, &never, NULL));
  for (int i = 0; i < copies; i++) memmove(to, from + (i & 1), kBytes);
}

static int64_t cpu_ns(void) {
  struct timespec t;
  CHECK_OK(clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t));
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void count_copies(void) {
  for (int64_t begun = cpu_ns(); cpu_ns() - begun < 15000000; copies++)
    memmove(to, from + (copies & 1), kBytes);
}

static void a_wait_goes_on_after_a_long_handler(void **state) {
  (void)state;
  CHECK_OK(sem_init(&wanted, 0, 0));
  sigset_t none, alarm;
  sigemptyset(&none);
  sigemptyset(&alarm);
  sigaddset(&alarm, SIGALRM);
  CHECK_OK(pthread_sigmask(SIG_BLOCK, &alarm, NULL));
  pthread_t t = start(takes_turns, NULL);
  CHECK_OK(pthread_sigmask(SIG_UNBLOCK, &alarm, NULL));
  struct sigaction a = {.sa_handler = burns_a_slice};
  CHECK_OK(sigaction(SIGALRM, &a, NULL));
  struct itimerval each = {{0, 25000}, {0, 1000}};
  CHECK_OK(setitimer(ITIMER_REAL, &each, NULL));
  while (LOAD(&handled) < kHandlers) {
    struct timespec soon = {0, 1};
    CHECK_EQ(sigtimedwait(&none, NULL, &soon), -1);
    CHECK(errno == EAGAIN || errno == EINTR);
  }
  AWAIT(LOAD(&turns) >= kHandlers);
  STORE(&stop, 1);
  CHECK_OK(sem_post(&wanted));
  join(t);
}

int main(void) {
  keep_one_core();
  count_copies();
  const struct CMUnitTest tests[] = {cmocka_unit_test(a_wait_goes_on_after_a_long_handler)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}

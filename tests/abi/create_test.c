// create_test.c - family: pthread_create, join (try, timed, clock), detach, exit, self, equal.
//
// Behaviours: return values; the handle is known before the thread runs; every join form
// and its error codes; detaching in each way; threads in waves, 2,000 alive at once,
// fork-join recursion, chains of joiners; what a new thread inherits from its creator.
// Invariant: a thread's result arrives exactly once, whoever joins it.
// libs: -lm
#include "abi.h"

#include <fenv.h>

static void *echo(void *arg) { return arg; }

static void returns_its_value(void **state) {
  (void)state;
  const uintptr_t values[] = {0, 1, 42, (uintptr_t)-1, (uintptr_t)-2, (uintptr_t)1 << 63};
  for (unsigned i = 0; i < sizeof values / sizeof *values; i++)
    CHECK(join(start(echo, (void *)values[i])) == (void *)values[i]);
  CHECK_OK(pthread_join(start(echo, NULL), NULL));
}

static __attribute__((noinline)) void exit_below(int depth, void *value) {
  char frame[256];
  memset(frame, depth, sizeof frame);
  if (depth > 0)
    exit_below(depth - 1, value);
  else if (value)
    pthread_exit(value);
  __asm__ volatile("" ::"r"(frame) : "memory");
}

static void *exit_deep(void *arg) {
  exit_below(50, arg);
  return (void *)-5;
}

static void pthread_exit_from_deep_frames(void **state) {
  (void)state;
  CHECK(join(start(exit_deep, (void *)0x1234)) == (void *)0x1234);
}

static pthread_t handle;
static void *handle_is_self(void *arg) {
  (void)arg;
  return (void *)(uintptr_t)pthread_equal(handle, pthread_self());
}

// nptl stores the handle before the new thread can run; programs lean on it.
static void handle_is_stored_before_the_thread_runs(void **state) {
  (void)state;
  for (int i = 0; i < 300; i++) {
    memset(&handle, 0, sizeof handle);
    CHECK_OK(pthread_create(&handle, NULL, handle_is_self, NULL));
    CHECK(join(handle) == (void *)1);
  }
}

static int gate;
static void *wait_gate(void *arg) {
  AWAIT(LOAD(&gate));
  return arg;
}

static void handles_are_distinct(void **state) {
  (void)state;
  pthread_t t[50];
  STORE(&gate, 0);
  for (int i = 0; i < 50; i++) t[i] = start(wait_gate, NULL);
  for (int i = 0; i < 50; i++) {
    CHECK(!pthread_equal(t[i], pthread_self()));
    for (int j = 0; j < i; j++) CHECK(!pthread_equal(t[i], t[j]));
  }
  STORE(&gate, 1);
  for (int i = 0; i < 50; i++) join(t[i]);
}

static void *self_join(void *arg) {
  (void)arg;
  return (void *)(intptr_t)pthread_join(pthread_self(), NULL);
}

static void self_join_is_deadlock(void **state) {
  (void)state;
  CHECK_EQ(pthread_join(pthread_self(), NULL), EDEADLK);
  CHECK_EQ((intptr_t)join(start(self_join, NULL)), EDEADLK);
}

static void tryjoin_and_timed_joins(void **state) {
  (void)state;
  STORE(&gate, 0);
  pthread_t t = start(wait_gate, (void *)5);
  void *result = (void *)1;
  CHECK_EQ(pthread_tryjoin_np(t, &result), EBUSY);
  struct timespec when = in_ms(CLOCK_REALTIME, 20);
  CHECK_EQ(pthread_timedjoin_np(t, &result, &when), ETIMEDOUT);
  CHECK(is_past(CLOCK_REALTIME, when));
  when = in_ms(CLOCK_MONOTONIC, 20);
  CHECK_EQ(pthread_clockjoin_np(t, &result, CLOCK_MONOTONIC, &when), ETIMEDOUT);
  CHECK(is_past(CLOCK_MONOTONIC, when));
  when = in_ms(CLOCK_REALTIME, 20);
  CHECK_EQ(pthread_clockjoin_np(t, &result, CLOCK_REALTIME, &when), ETIMEDOUT);
  CHECK(is_past(CLOCK_REALTIME, when));
  CHECK_EQ(pthread_clockjoin_np(t, &result, CLOCK_PROCESS_CPUTIME_ID, &when), EINVAL);
  CHECK(result == (void *)1);
  STORE(&gate, 1);
  when = in_ms(CLOCK_MONOTONIC, 60000);
  CHECK_OK(pthread_clockjoin_np(t, &result, CLOCK_MONOTONIC, &when));
  CHECK(result == (void *)5);

  t = start(wait_gate, (void *)6);
  int error;
  while ((error = pthread_tryjoin_np(t, &result)) == EBUSY) sched_yield();
  CHECK_OK(error);
  CHECK(result == (void *)6);

  t = start(wait_gate, (void *)7);
  when = in_ms(CLOCK_REALTIME, 60000);
  CHECK_OK(pthread_timedjoin_np(t, &result, &when));
  CHECK(result == (void *)7);
  t = start(wait_gate, (void *)8);
  CHECK_OK(pthread_timedjoin_np(t, &result, NULL));
  CHECK(result == (void *)8);
}

static int detached_done;
static void *count_detached(void *arg) {
  if (arg) CHECK_OK(pthread_detach(pthread_self()));
  ADD(&detached_done, 1);
  return NULL;
}

static void detach_in_every_way(void **state) {
  (void)state;
  STORE(&detached_done, 0);
  pthread_attr_t attr;
  CHECK_OK(pthread_attr_init(&attr));
  CHECK_OK(pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED));
  for (int i = 0; i < 300; i++) {
    pthread_t t;
    CHECK_OK(pthread_create(&t, &attr, count_detached, NULL));
    t = start(count_detached, (void *)1);
    t = start(count_detached, NULL);
    CHECK_OK(pthread_detach(t));
  }
  AWAIT(LOAD(&detached_done) == 900);
  CHECK_OK(pthread_attr_destroy(&attr));
}

static void detached_threads_refuse_join_and_detach(void **state) {
  (void)state;
  STORE(&gate, 0);
  STORE(&detached_done, 0);
  pthread_t t = start(wait_gate, NULL);
  CHECK_OK(pthread_detach(t));
  CHECK_EQ(pthread_join(t, NULL), EINVAL);
  CHECK_EQ(pthread_detach(t), EINVAL);
  struct timespec past = in_ms(CLOCK_REALTIME, -1);
  CHECK_EQ(pthread_timedjoin_np(t, NULL, &past), EINVAL);
  CHECK_EQ(pthread_tryjoin_np(t, NULL), EBUSY);  // it runs: that is looked at first
  STORE(&gate, 1);
}

static int about_to_join;
static void *join_it(void *t) {
  STORE(&about_to_join, 1);
  pthread_join(*(pthread_t *)t, NULL);  // EINVAL if it comes too late
  return NULL;
}

// Both answered EINVAL. (libc keeps the stack of a thread that is gone: it may be asked.)
static void detaching_what_is_joined_or_being_joined(void **state) {
  (void)state;
  pthread_t t = start(echo, NULL);
  join(t);
  CHECK_EQ(pthread_detach(t), ESRCH);
  STORE(&gate, 0);
  t = start(wait_gate, NULL);
  pthread_t joiner = start(join_it, &t);
  AWAIT(LOAD(&about_to_join));
  yield_some(100);
  CHECK_EQ(pthread_detach(t), 0);
  STORE(&gate, 1);
  join(joiner);
}

static int waves_run;
static void *run_in_wave(void *arg) {
  ADD(&waves_run, 1);
  return arg;
}

static void ten_thousand_in_waves(void **state) {
  (void)state;
  STORE(&waves_run, 0);
  for (int wave = 0; wave < 100; wave++) {
    pthread_t t[100];
    for (int i = 0; i < 100; i++) t[i] = start(run_in_wave, (void *)(intptr_t)(wave * 100 + i));
    for (int i = 99; i >= 0; i--) CHECK_EQ((intptr_t)join(t[i]), wave * 100 + i);
  }
  CHECK_EQ(LOAD(&waves_run), 10000);
}

static pthread_mutex_t crowd_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t crowd_cond = PTHREAD_COND_INITIALIZER;
static int crowd_waiting, crowd_open;

static void *stand_in_crowd(void *arg) {
  pthread_mutex_lock(&crowd_lock);
  crowd_waiting++;
  while (!crowd_open) pthread_cond_wait(&crowd_cond, &crowd_lock);
  crowd_waiting--;
  pthread_mutex_unlock(&crowd_lock);
  return (void *)((uintptr_t)arg * 3);
}

static void two_thousand_alive(void **state) {
  (void)state;
  enum { kCrowd = 2000 };
  static pthread_t t[kCrowd];
  for (int i = 0; i < kCrowd; i++) t[i] = start(stand_in_crowd, (void *)(uintptr_t)i);
  int standing = 0;
  AWAIT((pthread_mutex_lock(&crowd_lock), standing = crowd_waiting,
              pthread_mutex_unlock(&crowd_lock), standing == kCrowd));
  CHECK_EQ(pthread_tryjoin_np(t[0], NULL), EBUSY);
  pthread_mutex_lock(&crowd_lock);
  crowd_open = 1;
  pthread_cond_broadcast(&crowd_cond);
  pthread_mutex_unlock(&crowd_lock);
  for (int i = 0; i < kCrowd; i++) CHECK_EQ((intptr_t)join(t[i]), 3 * i);
  CHECK_EQ(crowd_waiting, 0);
}

static void *fib(void *arg) {
  intptr_t n = (intptr_t)arg;
  if (n < 2) return (void *)n;
  pthread_t left = start(fib, (void *)(n - 1)), right = start(fib, (void *)(n - 2));
  intptr_t a = (intptr_t)join(left);
  return (void *)(a + (intptr_t)join(right));
}

static void fork_join_recursion(void **state) {
  (void)state;
  CHECK_EQ((intptr_t)fib((void *)13), 233);
}

struct link {
  pthread_t previous;
  int first;
};

static void *join_previous(void *arg) {
  struct link *l = arg;
  return l->first ? (void *)1 : (void *)((intptr_t)join(l->previous) + 1);
}

static void chain_of_joiners(void **state) {
  (void)state;
  enum { kLinks = 200 };
  struct link links[kLinks];
  pthread_t t = pthread_self();
  for (int i = 0; i < kLinks; i++) {
    links[i] = (struct link){t, i == 0};
    t = start(join_previous, &links[i]);
  }
  CHECK_EQ((intptr_t)join(t), kLinks);
}

static pthread_t orphan;
static void *leave_an_orphan(void *arg) {
  orphan = start(wait_gate, arg);
  return NULL;
}

static void thread_outlives_its_creator(void **state) {
  (void)state;
  STORE(&gate, 0);
  join(start(leave_an_orphan, (void *)31));
  CHECK_EQ(pthread_tryjoin_np(orphan, NULL), EBUSY);
  STORE(&gate, 1);
  CHECK(join(orphan) == (void *)31);
}

static void *inherited(void *arg) {
  sigset_t mask, pending;
  stack_t alt;
  CHECK_OK(pthread_sigmask(SIG_BLOCK, NULL, &mask));
  CHECK(sigismember(&mask, SIGUSR2) && !sigismember(&mask, SIGUSR1));
  CHECK_OK(sigpending(&pending));
  CHECK(!sigismember(&pending, SIGUSR2));
  CHECK_OK(sigaltstack(NULL, &alt));
  CHECK(alt.ss_flags & SS_DISABLE);
  CHECK_EQ(fegetround(), FE_UPWARD);
  cpu_set_t cpus;
  CHECK_OK(sched_getaffinity(0, sizeof cpus, &cpus));
  CHECK(CPU_EQUAL(&cpus, (cpu_set_t *)arg));
  CHECK_EQ(errno, 0);
  return NULL;
}

// Mask, rounding mode and affinity come from the creator; pending signals, the alternate
// stack and errno do not.
static void what_a_thread_inherits(void **state) {
  (void)state;
  static char alt_memory[16384];
  sigset_t block, old;
  cpu_set_t cpus;
  stack_t alt = {.ss_sp = alt_memory, .ss_size = sizeof alt_memory}, old_alt;
  sigemptyset(&block);
  sigaddset(&block, SIGUSR2);
  CHECK_OK(pthread_sigmask(SIG_BLOCK, &block, &old));
  CHECK_OK(sched_getaffinity(0, sizeof cpus, &cpus));
  CHECK_OK(sigaltstack(&alt, &old_alt));
  CHECK_OK(pthread_kill(pthread_self(), SIGUSR2));
  CHECK_OK(fesetround(FE_UPWARD));
  errno = 17;
  join(start(inherited, &cpus));
  fesetround(FE_TONEAREST);
  CHECK_EQ(errno, 17);
  CHECK_EQ(sigwaitinfo(&block, NULL), SIGUSR2);
  CHECK_OK(sigaltstack(&old_alt, NULL));
  CHECK_OK(pthread_sigmask(SIG_SETMASK, &old, NULL));
}

static void impossible_stack_is_refused(void **state) {
  (void)state;
  pthread_attr_t attr;
  pthread_t t;
  CHECK_OK(pthread_attr_init(&attr));
  CHECK_OK(pthread_attr_setstacksize(&attr, (size_t)1 << 50));
  CHECK_EQ(pthread_create(&t, &attr, echo, NULL), EAGAIN);
  // These wrapped around with the guard, and the thread ran on no stack at all.
  CHECK_OK(pthread_attr_setstacksize(&attr, SIZE_MAX));
  CHECK_EQ(pthread_create(&t, &attr, echo, NULL), EINVAL);
  CHECK_OK(pthread_attr_setstacksize(&attr, SIZE_MAX - 4095));
  CHECK_EQ(pthread_create(&t, &attr, echo, NULL), EINVAL);
  CHECK_OK(pthread_attr_setstacksize(&attr, SIZE_MAX - 65535));
  CHECK_EQ(pthread_create(&t, &attr, echo, NULL), EAGAIN);
  CHECK_OK(pthread_attr_destroy(&attr));
  CHECK(join(start(echo, (void *)9)) == (void *)9);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(returns_its_value),
      cmocka_unit_test(pthread_exit_from_deep_frames),
      cmocka_unit_test(handle_is_stored_before_the_thread_runs),
      cmocka_unit_test(handles_are_distinct),
      cmocka_unit_test(self_join_is_deadlock),
      cmocka_unit_test(tryjoin_and_timed_joins),
      cmocka_unit_test(detach_in_every_way),
      cmocka_unit_test(detached_threads_refuse_join_and_detach),
      cmocka_unit_test(detaching_what_is_joined_or_being_joined),
      cmocka_unit_test(ten_thousand_in_waves),
      cmocka_unit_test(two_thousand_alive),
      cmocka_unit_test(fork_join_recursion),
      cmocka_unit_test(chain_of_joiners),
      cmocka_unit_test(thread_outlives_its_creator),
      cmocka_unit_test(what_a_thread_inherits),
      cmocka_unit_test(impossible_stack_is_refused),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

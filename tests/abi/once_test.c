// once_test.c - family: pthread_once.
//
// Behaviours: the routine runs once among many at once, and is done when any call returns;
// the routine blocks, yields, creates threads, calls pthread_once of another control;
// it leaves by cancellation and by pthread_exit: the next one runs it again; after fork in
// the middle the child runs it itself.
// Invariant: no pthread_once returns before a run of the routine has completed.
#include "abi.h"

static pthread_once_t control, inner;
static int runs, completed, inner_runs;

static void reset(void) {
  control = inner = (pthread_once_t)PTHREAD_ONCE_INIT;
  runs = completed = inner_runs = 0;
}

static void slow_routine(void) {
  ADD(&runs, 1);
  yield_some(20);
  struct timespec tiny = to_timespec(100000);
  nanosleep(&tiny, NULL);
  STORE(&completed, 1);
}

static void *call_slow(void *arg) {
  CHECK_OK(pthread_once(&control, slow_routine));
  CHECK_EQ(LOAD(&completed), 1);
  return arg;
}

static void many_at_once(void **state) {
  (void)state;
  for (int round = 0; round < 20; round++) {
    pthread_t t[60];
    reset();
    for (int i = 0; i < 60; i++) t[i] = start(call_slow, NULL);
    for (int i = 0; i < 60; i++) join(t[i]);
    CHECK_EQ(runs, 1);
    call_slow(NULL);
    CHECK_EQ(runs, 1);
  }
}

static void inner_routine(void) {
  yield_some(3);
  inner_runs++;
}
static void *call_inner(void *arg) {
  CHECK_OK(pthread_once(&inner, inner_routine));
  CHECK_EQ(inner_runs, 1);
  return arg;
}
static void routine_with_once_and_threads(void) {
  ADD(&runs, 1);
  call_inner(NULL);
  pthread_t t[4];
  for (int i = 0; i < 4; i++) t[i] = start(call_inner, NULL);
  for (int i = 0; i < 4; i++) join(t[i]);
  STORE(&completed, 1);
}
static void *call_nested(void *arg) {
  CHECK_OK(pthread_once(&control, routine_with_once_and_threads));
  CHECK_EQ(LOAD(&completed), 1);
  return arg;
}

static void once_inside_once(void **state) {
  (void)state;
  for (int round = 0; round < 20; round++) {
    pthread_t t[16];
    reset();
    for (int i = 0; i < 16; i++) t[i] = start(call_nested, NULL);
    for (int i = 0; i < 16; i++) join(t[i]);
    CHECK_EQ(runs, 1);
    CHECK_EQ(inner_runs, 1);
  }
}

static int first_is_in, give_up_by_exit;
static void routine_given_up_once(void) {
  if (ADD(&runs, 1) > 1) {
    STORE(&completed, 1);
    return;
  }
  STORE(&first_is_in, 1);
  if (give_up_by_exit) {
    yield_some(20);
    pthread_exit(NULL);
  }
  for (;;) {
    pthread_testcancel();
    sched_yield();
  }
}
static void *call_given_up(void *arg) {
  CHECK_OK(pthread_once(&control, routine_given_up_once));
  CHECK_EQ(LOAD(&completed), 1);
  return arg;
}

static void left_by_cancellation_or_exit(void **state) {
  (void)state;
  for (int round = 0; round < 20; round++) {
    pthread_t t[8];
    reset();
    STORE(&first_is_in, 0);
    give_up_by_exit = round & 1;
    pthread_t first = start(call_given_up, (void *)1);
    AWAIT(LOAD(&first_is_in));
    for (int i = 0; i < 8; i++) t[i] = start(call_given_up, (void *)2);
    yield_some(10);
    if (!give_up_by_exit) CHECK_OK(pthread_cancel(first));
    CHECK(join(first) == (give_up_by_exit ? NULL : PTHREAD_CANCELED));
    for (int i = 0; i < 8; i++) CHECK(join(t[i]) == (void *)2);
    CHECK_EQ(runs, 2);
  }
}

static int fork_now, forked;
static void routine_during_fork(void) {
  ADD(&runs, 1);
  if (fork_now) {
    STORE(&first_is_in, 1);
    AWAIT(LOAD(&forked));
  }
  STORE(&completed, 1);
}
static void *call_during_fork(void *arg) {
  CHECK_OK(pthread_once(&control, routine_during_fork));
  CHECK_EQ(LOAD(&completed), 1);
  return arg;
}
static int call_in_child(void *arg) {
  fork_now = 0;
  call_during_fork(arg);
  CHECK_EQ(runs, 2);
  return 0;
}

// The child's copy of the routine's thread is gone: the child must not wait for it.
static void fork_in_the_middle(void **state) {
  (void)state;
  reset();
  STORE(&first_is_in, 0);
  STORE(&forked, 0);
  fork_now = 1;
  pthread_t t = start(call_during_fork, NULL);
  AWAIT(LOAD(&first_is_in));
  CHECK_OK(in_child(call_in_child, NULL));
  STORE(&forked, 1);
  join(t);
  CHECK_EQ(runs, 1);
}

static pthread_once_t many[500];
static int many_runs;
static void count_run(void) { ADD(&many_runs, 1); }
static void *call_many(void *arg) {
  for (int i = 0; i < 500; i++) CHECK_OK(pthread_once(&many[i], count_run));
  return arg;
}

static void many_controls(void **state) {
  (void)state;
  pthread_t t[20];
  for (int i = 0; i < 20; i++) t[i] = start(call_many, NULL);
  for (int i = 0; i < 20; i++) join(t[i]);
  CHECK_EQ(many_runs, 500);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(many_at_once),
      cmocka_unit_test(once_inside_once),
      cmocka_unit_test(left_by_cancellation_or_exit),
      cmocka_unit_test(fork_in_the_middle),
      cmocka_unit_test(many_controls),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

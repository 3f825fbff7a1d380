// attr_test.c - family: pthread_attr_*, default attributes, concurrency, signal mask attribute.
//
// Behaviours: every attribute's default, set, get and error; attributes reach the thread;
// getattr_np of live threads tells what they got; default attributes of the process; scope,
// inheritsched, affinity, sigmask attributes; objects reused and destroyed before the thread
// runs.
// Invariant: what was set is what is read, and what the thread has.
#include "abi.h"

#include <threads.h>

static void defaults(void **state) {
  (void)state;
  pthread_attr_t attr;
  int value = -1;
  size_t bytes = 0;
  struct sched_param param = {.sched_priority = 99};
  CHECK_OK(pthread_attr_init(&attr));
  CHECK_OK(pthread_attr_getdetachstate(&attr, &value));
  CHECK_EQ(value, PTHREAD_CREATE_JOINABLE);
  CHECK_OK(pthread_attr_getinheritsched(&attr, &value));
  CHECK_EQ(value, PTHREAD_INHERIT_SCHED);
  CHECK_OK(pthread_attr_getscope(&attr, &value));
  CHECK_EQ(value, PTHREAD_SCOPE_SYSTEM);
  CHECK_OK(pthread_attr_getschedpolicy(&attr, &value));
  CHECK_EQ(value, SCHED_OTHER);
  CHECK_OK(pthread_attr_getschedparam(&attr, &param));
  CHECK_EQ(param.sched_priority, 0);
  CHECK_OK(pthread_attr_getguardsize(&attr, &bytes));
  CHECK_EQ(bytes, sysconf(_SC_PAGESIZE));
  CHECK_OK(pthread_attr_getstacksize(&attr, &bytes));
  CHECK(bytes >= (size_t)PTHREAD_STACK_MIN);
  sigset_t set;
  CHECK_EQ(pthread_attr_getsigmask_np(&attr, &set), PTHREAD_ATTR_NO_SIGMASK_NP);
  CHECK_OK(pthread_attr_destroy(&attr));
}

static void set_and_get(void **state) {
  (void)state;
  pthread_attr_t attr;
  int value;
  size_t bytes;
  struct sched_param param = {.sched_priority = 0};
  CHECK_OK(pthread_attr_init(&attr));
  CHECK_OK(pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED));
  CHECK_OK(pthread_attr_getdetachstate(&attr, &value));
  CHECK_EQ(value, PTHREAD_CREATE_DETACHED);
  CHECK_EQ(pthread_attr_setdetachstate(&attr, 7), EINVAL);
  CHECK_OK(pthread_attr_setinheritsched(&attr, PTHREAD_EXPLICIT_SCHED));
  CHECK_OK(pthread_attr_getinheritsched(&attr, &value));
  CHECK_EQ(value, PTHREAD_EXPLICIT_SCHED);
  CHECK_EQ(pthread_attr_setinheritsched(&attr, 7), EINVAL);
  CHECK_OK(pthread_attr_setscope(&attr, PTHREAD_SCOPE_SYSTEM));
  CHECK_EQ(pthread_attr_setscope(&attr, PTHREAD_SCOPE_PROCESS), ENOTSUP);
  CHECK_EQ(pthread_attr_setscope(&attr, 7), EINVAL);
  CHECK_OK(pthread_attr_setschedpolicy(&attr, SCHED_FIFO));
  CHECK_OK(pthread_attr_getschedpolicy(&attr, &value));
  CHECK_EQ(value, SCHED_FIFO);
  param.sched_priority = 3;
  CHECK_OK(pthread_attr_setschedparam(&attr, &param));
  param.sched_priority = 0;
  CHECK_OK(pthread_attr_getschedparam(&attr, &param));
  CHECK_EQ(param.sched_priority, 3);
  param.sched_priority = 1000;
  CHECK_EQ(pthread_attr_setschedparam(&attr, &param), EINVAL);
  CHECK_EQ(pthread_attr_setschedpolicy(&attr, 77), EINVAL);
  CHECK_OK(pthread_attr_setguardsize(&attr, 12345));
  CHECK_OK(pthread_attr_getguardsize(&attr, &bytes));
  CHECK_EQ(bytes, 12345);
  CHECK_EQ(pthread_attr_setstacksize(&attr, 100), EINVAL);
  CHECK_OK(pthread_attr_setstacksize(&attr, 123456));
  CHECK_OK(pthread_attr_getstacksize(&attr, &bytes));
  CHECK_EQ(bytes, 123456);
  static char memory[65536];
  void *low;
  CHECK_EQ(pthread_attr_setstack(&attr, memory, 100), EINVAL);
  CHECK_OK(pthread_attr_setstack(&attr, memory, sizeof memory));
  CHECK_OK(pthread_attr_getstack(&attr, &low, &bytes));
  CHECK(low == memory && bytes == sizeof memory);
  CHECK_OK(pthread_attr_destroy(&attr));
}

static void *sees_own_attributes(void *arg) {
  pthread_attr_t attr;
  int value;
  CHECK_OK(pthread_getattr_np(pthread_self(), &attr));
  CHECK_OK(pthread_attr_getdetachstate(&attr, &value));
  CHECK_EQ(value, (intptr_t)arg & 1 ? PTHREAD_CREATE_DETACHED : PTHREAD_CREATE_JOINABLE);
  CHECK_OK(pthread_attr_getschedpolicy(&attr, &value));
  CHECK_EQ(value, SCHED_OTHER);
  CHECK_OK(pthread_attr_getscope(&attr, &value));
  CHECK_EQ(value, PTHREAD_SCOPE_SYSTEM);
  CHECK_OK(pthread_attr_destroy(&attr));
  return NULL;
}

static int done, gate;
static void *detached_sees_own(void *arg) {
  sees_own_attributes(arg);
  ADD(&done, 1);
  return NULL;
}
static void *detach_and_look(void *arg) {
  CHECK_OK(pthread_detach(pthread_self()));
  sees_own_attributes((void *)1);
  ADD(&done, 1);
  return arg;
}

static void getattr_tells_the_state_of_now(void **state) {
  (void)state;
  pthread_attr_t attr;
  done = 0;
  CHECK_OK(pthread_attr_init(&attr));
  CHECK_OK(pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED));
  for (int i = 0; i < 50; i++) {
    pthread_t t;
    join(start(sees_own_attributes, NULL));
    CHECK_OK(pthread_create(&t, &attr, detached_sees_own, (void *)1));
    start(detach_and_look, NULL);
  }
  AWAIT(LOAD(&done) == 100);
  CHECK_OK(pthread_attr_destroy(&attr));
}

static void *tells(void *arg) {
  pthread_attr_t attr;
  cpu_set_t told, mine;
  size_t guard;
  int inherit;
  CHECK_OK(pthread_getattr_np(pthread_self(), &attr));
  CHECK_OK(pthread_attr_getaffinity_np(&attr, sizeof told, &told));
  CHECK_OK(pthread_getaffinity_np(pthread_self(), sizeof mine, &mine));
  CHECK(CPU_EQUAL(&told, &mine));
  CHECK_OK(pthread_attr_getguardsize(&attr, &guard));
  CHECK_EQ(guard, 8192);
  CHECK_OK(pthread_attr_getinheritsched(&attr, &inherit));
  CHECK_EQ(inherit, PTHREAD_EXPLICIT_SCHED);
  if (arg == NULL) {  // what was told serves to make another one
    pthread_t t;
    pthread_attr_t again;
    CHECK_OK(pthread_attr_init(&again));
    CHECK_OK(pthread_attr_setaffinity_np(&again, sizeof told, &told));
    CHECK_OK(pthread_attr_setguardsize(&again, guard));
    CHECK_OK(pthread_attr_setinheritsched(&again, inherit));
    CHECK_OK(pthread_create(&t, &again, tells, &told));
    join(t);
    CHECK_OK(pthread_attr_destroy(&again));
  }
  CHECK_OK(pthread_attr_destroy(&attr));
  return NULL;
}

// The CPUs, the guard in whole pages and the way of inheriting were not told once.
static void getattr_tells_affinity_guard_and_inheritance(void **state) {
  (void)state;
  pthread_attr_t attr;
  pthread_t t;
  CHECK_OK(pthread_attr_init(&attr));
  CHECK_OK(pthread_attr_setguardsize(&attr, 4097));
  CHECK_OK(pthread_attr_setinheritsched(&attr, PTHREAD_EXPLICIT_SCHED));
  CHECK_OK(pthread_create(&t, &attr, tells, NULL));
  join(t);
  CHECK_OK(pthread_attr_destroy(&attr));
}

static void *wait_gate(void *arg) {
  AWAIT(LOAD(&gate));
  return arg;
}

// The attribute object belongs to the caller again once pthread_create has returned.
static void object_may_be_reused_at_once(void **state) {
  (void)state;
  pthread_t t[30];
  size_t bytes;
  gate = 0;
  for (int i = 0; i < 30; i++) {
    pthread_attr_t attr;
    CHECK_OK(pthread_attr_init(&attr));
    CHECK_OK(pthread_attr_setstacksize(&attr, (size_t)(i + 1) * 131072));
    CHECK_OK(pthread_create(&t[i], &attr, wait_gate, NULL));
    CHECK_OK(pthread_attr_destroy(&attr));
    memset(&attr, 0xff, sizeof attr);
  }
  for (int i = 0; i < 30; i++) {
    pthread_attr_t attr;
    CHECK_OK(pthread_getattr_np(t[i], &attr));
    CHECK_OK(pthread_attr_getstacksize(&attr, &bytes));
    CHECK(bytes >= (size_t)(i + 1) * 131072);
    CHECK_OK(pthread_attr_destroy(&attr));
  }
  STORE(&gate, 1);
  for (int i = 0; i < 30; i++) join(t[i]);
}

static void *own_stack_size(void *arg) {
  pthread_attr_t attr;
  size_t bytes;
  CHECK_OK(pthread_getattr_np(pthread_self(), &attr));
  CHECK_OK(pthread_attr_getstacksize(&attr, &bytes));
  CHECK_OK(pthread_attr_destroy(&attr));
  (void)arg;
  return (void *)bytes;
}

static void default_attributes_of_the_process(void **state) {
  (void)state;
  pthread_attr_t old, attr;
  size_t bytes, guard;
  CHECK_OK(pthread_getattr_default_np(&old));
  CHECK_OK(pthread_getattr_default_np(&attr));
  CHECK_OK(pthread_attr_getstacksize(&attr, &bytes));
  CHECK_EQ((size_t)join(start(own_stack_size, NULL)), bytes);
  CHECK_OK(pthread_attr_setstacksize(&attr, 512 * 1024));
  CHECK_OK(pthread_attr_setguardsize(&attr, 16384));
  CHECK_OK(pthread_setattr_default_np(&attr));
  CHECK_EQ((size_t)join(start(own_stack_size, NULL)), 512 * 1024);
  pthread_attr_t seen;
  CHECK_OK(pthread_attr_init(&seen));  // fresh objects take the default size
  CHECK_OK(pthread_attr_getstacksize(&seen, &bytes));
  CHECK_EQ(bytes, 512 * 1024);
  CHECK_OK(pthread_attr_destroy(&seen));
  CHECK_OK(pthread_getattr_default_np(&seen));
  CHECK_OK(pthread_attr_getguardsize(&seen, &guard));
  CHECK_EQ(guard, 16384);
  CHECK_OK(pthread_attr_destroy(&seen));
  static char memory[65536];
  CHECK_OK(pthread_attr_setstack(&attr, memory, sizeof memory));
  CHECK_EQ(pthread_setattr_default_np(&attr), EINVAL);
  CHECK_OK(pthread_setattr_default_np(&old));
  CHECK_OK(pthread_attr_destroy(&attr));
  CHECK_OK(pthread_attr_destroy(&old));
}

static void *own_policy(void *arg) {
  (void)arg;
  return (void *)(intptr_t)sched_getscheduler(0);
}
static int own_policy_c11(void *arg) {
  (void)arg;
  return sched_getscheduler(0);
}

// Threads made without attributes follow the defaults; they once had SCHED_OTHER all the
// same, and thrd_create failed wherever a kernel thread was called for.
static void default_policy_of_the_process(void **state) {
  (void)state;
  pthread_attr_t old, attr;
  struct sched_param param = {.sched_priority = 3};
  if (sched_setscheduler(0, SCHED_FIFO, &param) != 0) skip();
  param.sched_priority = 0;
  CHECK_OK(sched_setscheduler(0, SCHED_OTHER, &param));
  param.sched_priority = 3;
  CHECK_OK(pthread_getattr_default_np(&old));
  CHECK_OK(pthread_attr_init(&attr));
  CHECK_OK(pthread_attr_setinheritsched(&attr, PTHREAD_EXPLICIT_SCHED));
  CHECK_OK(pthread_attr_setschedpolicy(&attr, SCHED_FIFO));
  CHECK_OK(pthread_attr_setschedparam(&attr, &param));
  CHECK_OK(pthread_setattr_default_np(&attr));
  CHECK_EQ((intptr_t)join(start(own_policy, NULL)), SCHED_FIFO);
  thrd_t c11;
  int policy;
  CHECK_EQ(thrd_create(&c11, own_policy_c11, NULL), thrd_success);
  CHECK_EQ(thrd_join(c11, &policy), thrd_success);
  CHECK_EQ(policy, SCHED_FIFO);
  CHECK_OK(pthread_setattr_default_np(&old));
  CHECK_EQ((intptr_t)join(start(own_policy, NULL)), SCHED_OTHER);
  CHECK_OK(pthread_attr_destroy(&attr));
  CHECK_OK(pthread_attr_destroy(&old));
}

static void *own_mask(void *set) {
  CHECK_OK(pthread_sigmask(SIG_BLOCK, NULL, set));
  return NULL;
}

static void signal_mask_attribute(void **state) {
  (void)state;
  pthread_attr_t attr;
  pthread_t t;
  sigset_t set, seen, mine;
  sigemptyset(&set);
  sigaddset(&set, SIGUSR2);
  sigaddset(&set, SIGTERM);
  CHECK_OK(pthread_attr_init(&attr));
  CHECK_OK(pthread_attr_setsigmask_np(&attr, &set));
  sigemptyset(&seen);
  CHECK_OK(pthread_attr_getsigmask_np(&attr, &seen));
  CHECK(sigismember(&seen, SIGTERM) && !sigismember(&seen, SIGUSR1));
  for (int i = 0; i < 10; i++) {
    CHECK_OK(pthread_create(&t, &attr, own_mask, &seen));
    join(t);
    CHECK(sigismember(&seen, SIGUSR2) && sigismember(&seen, SIGTERM) && !sigismember(&seen, SIGUSR1));
    CHECK_OK(pthread_sigmask(SIG_BLOCK, NULL, &mine));
    CHECK(!sigismember(&mine, SIGUSR2));
  }
  CHECK_OK(pthread_attr_setsigmask_np(&attr, NULL));
  CHECK_EQ(pthread_attr_getsigmask_np(&attr, &seen), PTHREAD_ATTR_NO_SIGMASK_NP);
  CHECK_OK(pthread_create(&t, &attr, own_mask, &seen));
  join(t);
  CHECK(!sigismember(&seen, SIGUSR2));
  CHECK_OK(pthread_attr_destroy(&attr));
}

static void *own_mask_and_cpus(void *set) {
  cpu_set_t cpus;
  own_mask(set);
  CHECK_OK(pthread_getaffinity_np(pthread_self(), sizeof cpus, &cpus));
  return (void *)(intptr_t)CPU_COUNT(&cpus);
}

// weft remembers attributes it has read (preload/attr.cc): those it would know by their bytes
// alone have mask and affinity elsewhere.
static void an_object_used_before_may_be_given_more(void **state) {
  (void)state;
  pthread_attr_t attr;
  pthread_t t;
  sigset_t set, seen;
  size_t bytes;
  cpu_set_t all, one;
  CHECK_OK(pthread_getaffinity_np(pthread_self(), sizeof all, &all));
  CHECK_OK(pthread_attr_init(&attr));
  for (int i = 0; i < 3; i++) {
    CHECK_OK(pthread_create(&t, &attr, own_mask_and_cpus, &seen));
    CHECK_EQ((intptr_t)join(t), CPU_COUNT(&all));
  }
  CHECK_OK(pthread_attr_setstacksize(&attr, 384 * 1024));
  for (int i = 0; i < 3; i++) {
    CHECK_OK(pthread_create(&t, &attr, own_stack_size, NULL));
    bytes = (size_t)join(t);
    CHECK(bytes >= 384 * 1024);
  }
  sigemptyset(&set);
  CHECK_OK(pthread_attr_setsigmask_np(&attr, &set));  // from here on it has more than its bytes
  CHECK_OK(pthread_create(&t, &attr, own_mask, &seen));
  join(t);
  CHECK(!sigismember(&seen, SIGUSR2));
  sigaddset(&set, SIGUSR2);
  CHECK_OK(pthread_attr_setsigmask_np(&attr, &set));
  CPU_ZERO(&one);
  for (int cpu = 0; CPU_COUNT(&one) == 0; cpu++)
    if (CPU_ISSET(cpu, &all)) CPU_SET(cpu, &one);
  CHECK_OK(pthread_attr_setaffinity_np(&attr, sizeof one, &one));
  CHECK_OK(pthread_create(&t, &attr, own_mask_and_cpus, &seen));
  CHECK_EQ((intptr_t)join(t), 1);
  CHECK(sigismember(&seen, SIGUSR2));
  CHECK_OK(pthread_attr_destroy(&attr));
}

static void *state_and_mask(void *arg) {
  pthread_attr_t mine;
  int detached;
  sigset_t mask;
  CHECK_OK(pthread_getattr_np(pthread_self(), &mine));
  CHECK_OK(pthread_attr_getdetachstate(&mine, &detached));
  CHECK_OK(pthread_attr_destroy(&mine));
  CHECK_OK(pthread_sigmask(SIG_BLOCK, NULL, &mask));
  int *seen = arg;
  seen[0] = detached == PTHREAD_CREATE_DETACHED;
  seen[1] = sigismember(&mask, SIGUSR2);
  STORE(&seen[2], 1);
  return NULL;
}

static void default_state_and_mask_of_the_process(void **state) {
  (void)state;
  pthread_attr_t before, attr;
  sigset_t usr2;
  pthread_t t;
  sigemptyset(&usr2);
  sigaddset(&usr2, SIGUSR2);
  CHECK_OK(pthread_getattr_default_np(&before));
  CHECK_OK(pthread_getattr_default_np(&attr));
  CHECK_OK(pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED));
  CHECK_OK(pthread_attr_setsigmask_np(&attr, &usr2));
  CHECK_OK(pthread_setattr_default_np(&attr));
  static int seen[3];
  CHECK_OK(pthread_create(&t, NULL, state_and_mask, seen));
  AWAIT(LOAD(&seen[2]));
  CHECK(seen[0] == 1 && seen[1] == 1);
  CHECK_OK(pthread_setattr_default_np(&before));
  seen[2] = 0;
  CHECK(join(start(state_and_mask, seen)) == NULL);
  CHECK(seen[0] == 0 && seen[1] == 0);
  CHECK_OK(pthread_attr_destroy(&attr));
  CHECK_OK(pthread_attr_destroy(&before));
}

static void a_priority_that_the_policy_does_not_have(void **state) {
  (void)state;
  pthread_attr_t attr;
  pthread_t t;
  struct sched_param p = {.sched_priority = 1};
  int seen[3];
  CHECK_OK(pthread_attr_init(&attr));
  CHECK_OK(pthread_attr_setinheritsched(&attr, PTHREAD_EXPLICIT_SCHED));
  CHECK_OK(pthread_attr_setschedpolicy(&attr, SCHED_FIFO));
  CHECK_OK(pthread_attr_setschedparam(&attr, &p));
  CHECK_OK(pthread_attr_setschedpolicy(&attr, SCHED_OTHER));
  CHECK_EQ(pthread_create(&t, &attr, state_and_mask, seen), EINVAL);
  CHECK_OK(pthread_attr_destroy(&attr));
}

static void concurrency(void **state) {
  (void)state;
  CHECK_EQ(pthread_getconcurrency(), 0);
  CHECK_EQ(pthread_setconcurrency(-1), EINVAL);
  CHECK_OK(pthread_setconcurrency(5));
  CHECK_EQ(pthread_getconcurrency(), 5);
  CHECK_OK(pthread_setconcurrency(0));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(an_object_used_before_may_be_given_more),  // first: it remembers but few
      cmocka_unit_test(defaults),
      cmocka_unit_test(default_state_and_mask_of_the_process),
      cmocka_unit_test(a_priority_that_the_policy_does_not_have),
      cmocka_unit_test(set_and_get),
      cmocka_unit_test(getattr_tells_the_state_of_now),
      cmocka_unit_test(getattr_tells_affinity_guard_and_inheritance),
      cmocka_unit_test(object_may_be_reused_at_once),
      cmocka_unit_test(default_attributes_of_the_process),
      cmocka_unit_test(signal_mask_attribute),
      cmocka_unit_test(default_policy_of_the_process),
      cmocka_unit_test(concurrency),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

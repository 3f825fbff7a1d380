// sched_test.c - family: scheduling of threads: policies, priorities, affinity, CPU clocks.
//
// Behaviours: setschedparam and sched_* by pthread_t, by tid and by 0; real-time policies where
// permitted; explicit attributes; nice by tid; affinity by attribute, np and sched_* calls,
// subsets really used (getcpu), inherited, restored; locks go to the highest real-time waiter
// (was: to the first, as G waiters have no priority); CPU-time clocks count what a thread
// computes, not what others do nor its waits.
// Invariant: what one thread sets for itself is not seen by another.
#include "abi.h"

#include <semaphore.h>
#include <sys/resource.h>

static int gate;
static void *wait_gate(void *arg) {
  if (arg) STORE((int *)arg, gettid());
  while (!LOAD(&gate)) sched_yield();
  return NULL;
}

static void policy_is(pthread_t t, pid_t tid, int policy, int priority) {
  struct sched_param param = {.sched_priority = -1};
  int seen = -1;
  CHECK_OK(pthread_getschedparam(t, &seen, &param));
  CHECK_EQ(seen, policy);
  CHECK_EQ(param.sched_priority, priority);
  CHECK_EQ(sched_getscheduler(tid) & ~SCHED_RESET_ON_FORK, policy);
  CHECK_OK(sched_getparam(tid, &param));
  CHECK_EQ(param.sched_priority, priority);
}

static void limits_and_errors(void **state) {
  (void)state;
  CHECK_EQ(sched_get_priority_min(SCHED_OTHER), 0);
  CHECK_EQ(sched_get_priority_max(SCHED_OTHER), 0);
  CHECK_EQ(sched_get_priority_min(SCHED_FIFO), 1);
  CHECK_EQ(sched_get_priority_max(SCHED_RR), 99);
  CHECK_FAILS(sched_get_priority_max(1234), EINVAL);
  struct sched_param param = {.sched_priority = 5};
  struct timespec slice;
  CHECK_EQ(pthread_setschedparam(pthread_self(), SCHED_OTHER, &param), EINVAL);
  CHECK_EQ(pthread_setschedparam(pthread_self(), 1234, &param), EINVAL);
  CHECK_EQ(pthread_setschedprio(pthread_self(), 5), EINVAL);
  CHECK_OK(pthread_setschedprio(pthread_self(), 0));
  CHECK_FAILS(sched_setscheduler(0, SCHED_OTHER, &param), EINVAL);
  CHECK_FAILS(sched_setparam(0, &param), EINVAL);
  CHECK_FAILS(sched_getscheduler(-1), EINVAL);
  CHECK_FAILS(sched_getscheduler(0x3fffffff), ESRCH);
  CHECK_OK(sched_rr_get_interval(0, &slice));
  param.sched_priority = 0;
  CHECK_OK(sched_setscheduler(0, SCHED_OTHER, &param));
  policy_is(pthread_self(), gettid(), SCHED_OTHER, 0);
}

static void batch_and_idle_policies(void **state) {
  (void)state;
  int tid = 0;
  gate = 0;
  pthread_t t = start(wait_gate, &tid);
  AWAIT(LOAD(&tid));
  struct sched_param param = {0};
  CHECK_OK(pthread_setschedparam(t, SCHED_BATCH, &param));
  policy_is(t, tid, SCHED_BATCH, 0);
  policy_is(pthread_self(), 0, SCHED_OTHER, 0);
  CHECK_OK(pthread_setschedparam(t, SCHED_OTHER, &param));
  policy_is(t, tid, SCHED_OTHER, 0);
  CHECK_OK(sched_setscheduler(tid, SCHED_IDLE, &param));
  CHECK_EQ(sched_getscheduler(tid), SCHED_IDLE);
  CHECK_EQ(sched_getscheduler(0), SCHED_OTHER);
  STORE(&gate, 1);
  join(t);
}

static void *real_time_thread(void *arg) {
  (void)arg;
  policy_is(pthread_self(), gettid(), SCHED_FIFO, 2);
  policy_is(pthread_self(), 0, SCHED_FIFO, 2);
  CHECK_OK(pthread_setschedprio(pthread_self(), 3));
  policy_is(pthread_self(), gettid(), SCHED_FIFO, 3);
  struct sched_param param = {.sched_priority = 1};
  CHECK_OK(pthread_setschedparam(pthread_self(), SCHED_RR, &param));
  sched_yield();
  policy_is(pthread_self(), gettid(), SCHED_RR, 1);
  param.sched_priority = 0;
  CHECK_OK(pthread_setschedparam(pthread_self(), SCHED_OTHER, &param));
  policy_is(pthread_self(), gettid(), SCHED_OTHER, 0);
  return (void *)1;
}

static void real_time_by_attribute_and_call(void **state) {
  (void)state;
  pthread_attr_t attr;
  pthread_t t;
  struct sched_param param = {.sched_priority = 2};
  CHECK_OK(pthread_attr_init(&attr));
  CHECK_OK(pthread_attr_setinheritsched(&attr, PTHREAD_EXPLICIT_SCHED));
  CHECK_OK(pthread_attr_setschedpolicy(&attr, SCHED_FIFO));
  CHECK_OK(pthread_attr_setschedparam(&attr, &param));
  int error = pthread_create(&t, &attr, real_time_thread, NULL);
  CHECK_OK(pthread_attr_destroy(&attr));
  if (error == EPERM) skip();
  CHECK_OK(error);
  CHECK(join(t) == (void *)1);
  policy_is(pthread_self(), 0, SCHED_OTHER, 0);
  // The next threads are ordinary again.
  gate = 1;
  for (int i = 0; i < 20; i++) {
    int tid = 0;
    gate = 0;
    t = start(wait_gate, &tid);
    AWAIT(LOAD(&tid));
    policy_is(t, tid, SCHED_OTHER, 0);
    STORE(&gate, 1);
    join(t);
  }
}

// What real-time threads wait for goes to the highest of them, not to the first.

static pthread_mutex_t wanted_lock = PTHREAD_MUTEX_INITIALIZER;
static sem_t wanted_sem;
static int waiter_tid, n_served, served[3];

static void *want(void *use_lock) {
  struct sched_param param;
  int policy;
  CHECK_OK(pthread_getschedparam(pthread_self(), &policy, &param));
  STORE(&waiter_tid, (int)syscall(SYS_gettid));
  CHECK_OK(use_lock ? pthread_mutex_lock(&wanted_lock) : sem_wait(&wanted_sem));
  served[n_served++] = param.sched_priority;
  CHECK_OK(use_lock ? pthread_mutex_unlock(&wanted_lock) : sem_post(&wanted_sem));
  return NULL;
}

static int sleeps(int tid) {
  char path[64], line[256] = "";
  snprintf(path, sizeof path, "/proc/self/task/%d/stat", tid);
  FILE *f = fopen(path, "r");
  CHECK(f && fgets(line, sizeof line, f));
  fclose(f);
  return strstr(line, ") S ") != NULL;
}

static void highest_is_served_first(void *use_lock) {
  static const int priority[3] = {5, 20, 10};
  pthread_t t[3];
  CHECK_OK(pthread_mutex_lock(&wanted_lock));
  CHECK_OK(sem_init(&wanted_sem, 0, 0));
  n_served = 0;
  for (int i = 0; i < 3; i++) {
    pthread_attr_t attr;
    struct sched_param param = {.sched_priority = priority[i]};
    STORE(&waiter_tid, 0);
    CHECK_OK(pthread_attr_init(&attr));
    CHECK_OK(pthread_attr_setinheritsched(&attr, PTHREAD_EXPLICIT_SCHED));
    CHECK_OK(pthread_attr_setschedpolicy(&attr, SCHED_FIFO));
    CHECK_OK(pthread_attr_setschedparam(&attr, &param));
    int error = pthread_create(&t[i], &attr, want, use_lock);
    CHECK_OK(pthread_attr_destroy(&attr));
    if (error == EPERM && i == 0) {
      CHECK_OK(pthread_mutex_unlock(&wanted_lock));
      skip();
    }
    CHECK_OK(error);
    AWAIT(LOAD(&waiter_tid) && sleeps(LOAD(&waiter_tid)));
  }
  CHECK_OK(use_lock ? pthread_mutex_unlock(&wanted_lock) : sem_post(&wanted_sem));
  for (int i = 0; i < 3; i++) join(t[i]);
  if (!use_lock) CHECK_OK(pthread_mutex_unlock(&wanted_lock));
  CHECK_EQ(served[0], 20);
  CHECK_EQ(served[1], 10);
  CHECK_EQ(served[2], 5);
}

static void a_mutex_goes_to_the_highest_priority(void **state) {
  (void)state;
  highest_is_served_first(&wanted_lock);
}

static void a_semaphore_goes_to_the_highest_priority(void **state) {
  (void)state;
  highest_is_served_first(NULL);
}

static int nice_of(pid_t tid) {
  errno = 0;
  int value = getpriority(PRIO_PROCESS, (id_t)tid);
  CHECK_EQ(errno, 0);
  return value;
}

// The kernel has no value above 19, and the test itself may have been started with it.
static void *lower_myself(void *arg) {
  int mine = nice_of(0) + (int)(intptr_t)arg;
  if (mine > 19) mine = 19;
  CHECK_OK(setpriority(PRIO_PROCESS, (id_t)gettid(), mine));
  yield_some(10);
  CHECK_EQ(nice_of(0), mine);
  CHECK_EQ(nice_of(gettid()), mine);
  return NULL;
}

// Linux keeps nice per thread.
static void nice_is_per_thread(void **state) {
  (void)state;
  pthread_t t[5];
  int base = nice_of(0);
  for (intptr_t i = 0; i < 5; i++) t[i] = start(lower_myself, (void *)(i + 1));
  for (int i = 0; i < 5; i++) join(t[i]);
  CHECK_EQ(nice_of(0), base);
  for (int i = 0; i < 10; i++) join(start(lower_myself, (void *)0));
  CHECK_EQ(nice_of(0), base);
}

// Affinity.

static cpu_set_t one_cpu(const cpu_set_t *from, int n) {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
    if (CPU_ISSET(cpu, from) && n-- == 0) CPU_SET(cpu, &set);
  return set;
}

static void affinity_is(const cpu_set_t *want) {
  cpu_set_t seen;
  CHECK_OK(pthread_getaffinity_np(pthread_self(), sizeof seen, &seen));
  CHECK(CPU_EQUAL(&seen, want));
  CHECK_OK(sched_getaffinity(0, sizeof seen, &seen));
  CHECK(CPU_EQUAL(&seen, want));
  CHECK_OK(sched_getaffinity(gettid(), sizeof seen, &seen));
  CHECK(CPU_EQUAL(&seen, want));
}

static cpu_set_t all_cpus;
static void *inherits(void *want) {
  affinity_is(want);
  return NULL;
}
static void *bind_myself(void *arg) {
  intptr_t how = (intptr_t)arg;
  cpu_set_t mine = one_cpu(&all_cpus, (int)(how % CPU_COUNT(&all_cpus)));
  if (how & 1) CHECK_OK(pthread_setaffinity_np(pthread_self(), sizeof mine, &mine));
  else CHECK_OK(sched_setaffinity(how & 2 ? 0 : gettid(), sizeof mine, &mine));
  for (int i = 0; i < 30; i++) {
    affinity_is(&mine);
    CHECK(CPU_ISSET(sched_getcpu(), &mine));
    sched_yield();
  }
  join(start(inherits, &mine));
  CHECK_OK(sched_setaffinity(0, sizeof all_cpus, &all_cpus));
  affinity_is(&all_cpus);
  return NULL;
}

static void affinity_is_per_thread(void **state) {
  (void)state;
  pthread_t t[8];
  CHECK_OK(sched_getaffinity(0, sizeof all_cpus, &all_cpus));
  for (intptr_t i = 0; i < 8; i++) t[i] = start(bind_myself, (void *)i);
  for (int i = 0; i < 8; i++) join(t[i]);
  affinity_is(&all_cpus);
  bind_myself((void *)0);  // main too, and back
  affinity_is(&all_cpus);
  for (int i = 0; i < 20; i++) join(start(inherits, &all_cpus));
}

static void affinity_by_attribute_and_of_others(void **state) {
  (void)state;
  pthread_attr_t attr;
  pthread_t t;
  cpu_set_t set = one_cpu(&all_cpus, CPU_COUNT(&all_cpus) - 1), seen, none;
  CHECK_OK(pthread_attr_init(&attr));
  CHECK_OK(pthread_attr_setaffinity_np(&attr, sizeof set, &set));
  CHECK_OK(pthread_attr_getaffinity_np(&attr, sizeof seen, &seen));
  CHECK(CPU_EQUAL(&seen, &set));
  CHECK_OK(pthread_create(&t, &attr, inherits, &set));
  join(t);
  CHECK_OK(pthread_attr_destroy(&attr));
  int tid = 0;
  gate = 0;
  t = start(wait_gate, &tid);
  AWAIT(LOAD(&tid));
  CHECK_OK(pthread_setaffinity_np(t, sizeof set, &set));
  CHECK_OK(pthread_getaffinity_np(t, sizeof seen, &seen));
  CHECK(CPU_EQUAL(&seen, &set));
  CHECK_OK(sched_setaffinity(tid, sizeof all_cpus, &all_cpus));
  CHECK_OK(sched_getaffinity(tid, sizeof seen, &seen));
  CHECK(CPU_EQUAL(&seen, &all_cpus));
  STORE(&gate, 1);
  join(t);
  CPU_ZERO(&none);
  CHECK_EQ(pthread_setaffinity_np(pthread_self(), sizeof none, &none), EINVAL);
  affinity_is(&all_cpus);
}

// CPU-time clocks.

static volatile long sink;
static void compute_for(clockid_t clock, int64_t ns) {
  int64_t begin = now_ns(clock);
  while (now_ns(clock) - begin < ns)
    for (int i = 0; i < 1000; i++) sink = sink + 1;
}

static void *compute_thread(void *ms) {
  compute_for(CLOCK_THREAD_CPUTIME_ID, (intptr_t)ms * 1000000);
  clockid_t clock;
  CHECK_OK(pthread_getcpuclockid(pthread_self(), &clock));
  int64_t mine = now_ns(CLOCK_THREAD_CPUTIME_ID), by_id = now_ns(clock);
  CHECK(by_id >= mine);
  return (void *)(intptr_t)mine;
}

static void *idle_thread(void *arg) {
  struct timespec pause_length = to_timespec(30000000);
  CHECK_OK(nanosleep(&pause_length, NULL));
  (void)arg;
  return (void *)(intptr_t)now_ns(CLOCK_THREAD_CPUTIME_ID);
}

static void cpu_time_is_counted_per_thread(void **state) {
  (void)state;
  int64_t mine = now_ns(CLOCK_THREAD_CPUTIME_ID), process = now_ns(CLOCK_PROCESS_CPUTIME_ID);
  pthread_t busy[4], idle[4];
  for (int i = 0; i < 4; i++) {
    busy[i] = start(compute_thread, (void *)20);
    idle[i] = start(idle_thread, NULL);
  }
  for (int i = 0; i < 4; i++) CHECK((intptr_t)join(busy[i]) >= 20000000);
  // Idle ones slept while others computed 80 ms: none of that is theirs.
  for (int i = 0; i < 4; i++) CHECK((intptr_t)join(idle[i]) < 15000000);
  CHECK(now_ns(CLOCK_THREAD_CPUTIME_ID) - mine < 40000000);
  CHECK(now_ns(CLOCK_PROCESS_CPUTIME_ID) - process >= 80000000);
}

static void cpu_clock_of_another_thread(void **state) {
  (void)state;
  int tid = 0;
  gate = 0;
  pthread_t t = start(wait_gate, &tid);
  clockid_t clock;
  CHECK_OK(pthread_getcpuclockid(t, &clock));
  AWAIT(now_ns(clock) > 1000000);  // it yields all the time: its clock runs
  struct timespec resolution;
  CHECK_OK(clock_getres(clock, &resolution));
  STORE(&gate, 1);
  join(t);
  // A thread that starts in a used slot starts at zero.
  for (int i = 0; i < 20; i++) CHECK((intptr_t)join(start(compute_thread, NULL)) < 15000000);
  struct rusage usage;
  CHECK_OK(getrusage(RUSAGE_THREAD, &usage));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(limits_and_errors),
      cmocka_unit_test(batch_and_idle_policies),
      cmocka_unit_test(real_time_by_attribute_and_call),
      cmocka_unit_test(a_mutex_goes_to_the_highest_priority),
      cmocka_unit_test(a_semaphore_goes_to_the_highest_priority),
      cmocka_unit_test(nice_is_per_thread),
      cmocka_unit_test(affinity_is_per_thread),
      cmocka_unit_test(affinity_by_attribute_and_of_others),
      cmocka_unit_test(cpu_time_is_counted_per_thread),
      cmocka_unit_test(cpu_clock_of_another_thread),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

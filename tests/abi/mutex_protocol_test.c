// mutex_protocol_test.c - family: robust, priority-inheriting, priority-protected and
// process-shared mutexes.
//
// Behaviours: EOWNERDEAD once, then consistent or ENOTRECOVERABLE; owner death by return, by
// pthread_exit, by the end of a process, with and without waiters; PI mutexes exclude,
// time out and report as others; ceilings and the priorities they add to; process-shared
// mutexes across fork.
// Invariant: the death of an owner is told to exactly one locker.
#include "abi.h"

static pthread_mutex_t make(int kind, int robust, int protocol, int shared) {
  pthread_mutexattr_t attr;
  pthread_mutex_t m;
  CHECK_OK(pthread_mutexattr_init(&attr));
  CHECK_OK(pthread_mutexattr_settype(&attr, kind));
  CHECK_OK(pthread_mutexattr_setrobust(&attr, robust));
  CHECK_OK(pthread_mutexattr_setprotocol(&attr, protocol));
  CHECK_OK(pthread_mutexattr_setpshared(&attr, shared));
  CHECK_OK(pthread_mutex_init(&m, &attr));
  CHECK_OK(pthread_mutexattr_destroy(&attr));
  return m;
}

static void *lock_and_return(void *m) { return (void *)(intptr_t)pthread_mutex_lock(m); }
static void *lock_and_exit(void *m) {
  CHECK_OK(pthread_mutex_lock(m));
  pthread_exit(NULL);
}
static void *lock_is(void *m) {
  int error = pthread_mutex_lock(m);
  if (error == 0) CHECK_OK(pthread_mutex_unlock(m));
  return (void *)(intptr_t)error;
}

static const int kinds[] = {PTHREAD_MUTEX_NORMAL, PTHREAD_MUTEX_RECURSIVE, PTHREAD_MUTEX_ERRORCHECK};

static void owner_death_then_consistent(pthread_mutex_t *m, void *(*die)(void *)) {
  for (int round = 0; round < 5; round++) {
    CHECK(join(start(die, m)) == NULL);
    CHECK_EQ(pthread_mutex_lock(m), EOWNERDEAD);
    CHECK_EQ((intptr_t)join(start((void *(*)(void *))(void *)pthread_mutex_trylock, m)), EBUSY);
    CHECK_OK(pthread_mutex_consistent(m));
    CHECK_EQ(pthread_mutex_consistent(m), EINVAL);
    CHECK_OK(pthread_mutex_unlock(m));
    CHECK(join(start(lock_is, m)) == NULL);
    CHECK_EQ(pthread_mutex_consistent(m), EINVAL);
  }
  CHECK(join(start(die, m)) == NULL);
  CHECK_EQ(pthread_mutex_trylock(m), EOWNERDEAD);
  CHECK_OK(pthread_mutex_consistent(m));
  CHECK_OK(pthread_mutex_unlock(m));
}

static void owner_death_then_unrecoverable(pthread_mutex_t *m) {
  CHECK(join(start(lock_and_return, m)) == NULL);
  struct timespec later = in_ms(CLOCK_REALTIME, 60000);
  CHECK_EQ(pthread_mutex_timedlock(m, &later), EOWNERDEAD);
  CHECK_OK(pthread_mutex_unlock(m));
  CHECK_EQ(pthread_mutex_lock(m), ENOTRECOVERABLE);
  CHECK_EQ(pthread_mutex_timedlock(m, &later), ENOTRECOVERABLE);
  CHECK_EQ((intptr_t)join(start(lock_is, m)), ENOTRECOVERABLE);
  CHECK_OK(pthread_mutex_destroy(m));
}

static void robust_owner_dies(void **state) {
  (void)state;
  for (int pi = 0; pi < 2; pi++) {
    for (int k = 0; k < 3; k++) {
      pthread_mutex_t m =
          make(kinds[k], PTHREAD_MUTEX_ROBUST, pi ? PTHREAD_PRIO_INHERIT : PTHREAD_PRIO_NONE, 0);
      owner_death_then_consistent(&m, lock_and_return);
      owner_death_then_consistent(&m, lock_and_exit);
      owner_death_then_unrecoverable(&m);
    }
  }
}

static int about_to_lock, dead_seen, fine_seen;
static void *wait_for_the_dead(void *m) {
  ADD(&about_to_lock, 1);
  int error = pthread_mutex_lock(m);
  if (error == EOWNERDEAD) {
    ADD(&dead_seen, 1);
    CHECK_OK(pthread_mutex_consistent(m));
  } else {
    CHECK_OK(error);
    ADD(&fine_seen, 1);
  }
  CHECK_OK(pthread_mutex_unlock(m));
  return NULL;
}

static int holding;
static void *die_while_others_wait(void *m) {
  CHECK_OK(pthread_mutex_lock(m));
  STORE(&holding, 1);
  AWAIT(LOAD(&about_to_lock) == 10);
  yield_some(20);
  return NULL;
}

// Ten wait (or are about to) when the owner ends: one of them is told, all get in.
static void robust_owner_dies_with_waiters(void **state) {
  (void)state;
  for (int round = 0; round < 10; round++) {
    pthread_mutex_t m = make(kinds[round % 3], PTHREAD_MUTEX_ROBUST,
                             round & 1 ? PTHREAD_PRIO_INHERIT : PTHREAD_PRIO_NONE, 0);
    STORE(&about_to_lock, 0);
    STORE(&holding, 0);
    STORE(&dead_seen, 0);
    STORE(&fine_seen, 0);
    pthread_t owner = start(die_while_others_wait, &m), t[10];
    AWAIT(LOAD(&holding));
    for (int i = 0; i < 10; i++) t[i] = start(wait_for_the_dead, &m);
    join(owner);
    for (int i = 0; i < 10; i++) join(t[i]);
    CHECK_EQ(dead_seen, 1);
    CHECK_EQ(fine_seen, 9);
    CHECK_OK(pthread_mutex_destroy(&m));
  }
}

static void *die_with_many(void *arg) {
  pthread_mutex_t *all = arg;
  for (int i = 0; i < 20; i++) CHECK_OK(pthread_mutex_lock(&all[i]));
  for (int i = 0; i < 20; i += 2) CHECK_OK(pthread_mutex_unlock(&all[i]));
  return NULL;
}

static void robust_owner_dies_holding_many(void **state) {
  (void)state;
  pthread_mutex_t all[20];
  for (int i = 0; i < 20; i++) all[i] = make(kinds[i % 3], PTHREAD_MUTEX_ROBUST, PTHREAD_PRIO_NONE, 0);
  for (int round = 0; round < 3; round++) {
    join(start(die_with_many, all));
    for (int i = 0; i < 20; i++) {
      int error = pthread_mutex_lock(&all[i]);
      CHECK_EQ(error, i & 1 ? EOWNERDEAD : 0);
      if (error) CHECK_OK(pthread_mutex_consistent(&all[i]));
      CHECK_OK(pthread_mutex_unlock(&all[i]));
    }
  }
}

static void robust_errors(void **state) {
  (void)state;
  pthread_mutex_t m = make(PTHREAD_MUTEX_ERRORCHECK, PTHREAD_MUTEX_ROBUST, PTHREAD_PRIO_NONE, 0);
  CHECK_OK(pthread_mutex_lock(&m));
  CHECK_EQ(pthread_mutex_lock(&m), EDEADLK);
  CHECK_EQ(pthread_mutex_trylock(&m), EDEADLK);  // nptl: EBUSY for plain mutexes only
  CHECK_EQ((intptr_t)join(start((void *(*)(void *))(void *)pthread_mutex_unlock, &m)), EPERM);
  CHECK_OK(pthread_mutex_unlock(&m));
  CHECK_EQ(pthread_mutex_unlock(&m), EPERM);
  m = make(PTHREAD_MUTEX_RECURSIVE, PTHREAD_MUTEX_ROBUST, PTHREAD_PRIO_NONE, 0);
  for (int i = 0; i < 5; i++) CHECK_OK(pthread_mutex_lock(&m));
  for (int i = 0; i < 5; i++) CHECK_OK(pthread_mutex_unlock(&m));
  CHECK_EQ(pthread_mutex_unlock(&m), EPERM);
  pthread_mutex_t plain = PTHREAD_MUTEX_INITIALIZER;
  CHECK_EQ(pthread_mutex_consistent(&plain), EINVAL);
}

static struct {
  pthread_mutex_t m;
  long counter, inside;
} guarded;
static void *count_guarded(void *rounds) {
  for (long i = 0; i < (long)rounds; i++) {
    CHECK_OK(pthread_mutex_lock(&guarded.m));
    CHECK_EQ(++guarded.inside, 1);
    if (i % 16 == 0) sched_yield();
    guarded.counter++;
    guarded.inside--;
    CHECK_OK(pthread_mutex_unlock(&guarded.m));
  }
  return NULL;
}

static void contended_in_every_protocol(void **state) {
  (void)state;
  for (int robust = 0; robust < 2; robust++)
    for (int pi = 0; pi < 2; pi++)
      for (int shared = 0; shared < 2; shared++) {
        pthread_t t[12];
        guarded.m = make(kinds[(robust + pi + shared) % 3], robust ? PTHREAD_MUTEX_ROBUST : PTHREAD_MUTEX_STALLED,
                         pi ? PTHREAD_PRIO_INHERIT : PTHREAD_PRIO_NONE, shared);
        guarded.counter = 0;
        for (int i = 0; i < 12; i++) t[i] = start(count_guarded, (void *)200L);
        for (int i = 0; i < 12; i++) join(t[i]);
        CHECK_EQ(guarded.counter, 12 * 200);
      }
}

static void *pi_timed(void *m) {
  struct timespec when = in_ms(CLOCK_REALTIME, 10);
  CHECK_EQ(pthread_mutex_timedlock(m, &when), ETIMEDOUT);
  CHECK(is_past(CLOCK_REALTIME, when));
  CHECK_EQ(pthread_mutex_trylock(m), EBUSY);
  return NULL;
}

static void pi_codes(void **state) {
  (void)state;
  pthread_mutex_t m = make(PTHREAD_MUTEX_ERRORCHECK, PTHREAD_MUTEX_STALLED, PTHREAD_PRIO_INHERIT, 0);
  CHECK_OK(pthread_mutex_lock(&m));
  CHECK_EQ(pthread_mutex_lock(&m), EDEADLK);
  CHECK_EQ(pthread_mutex_trylock(&m), EDEADLK);  // nptl: EBUSY for plain mutexes only
  join(start(pi_timed, &m));
  CHECK_OK(pthread_mutex_unlock(&m));
  CHECK_EQ(pthread_mutex_unlock(&m), EPERM);
  CHECK_OK(pthread_mutex_destroy(&m));
  m = make(PTHREAD_MUTEX_RECURSIVE, PTHREAD_MUTEX_STALLED, PTHREAD_PRIO_INHERIT, 0);
  for (int i = 0; i < 5; i++) CHECK_OK(pthread_mutex_lock(&m));
  for (int i = 0; i < 5; i++) CHECK_OK(pthread_mutex_unlock(&m));
  CHECK(join(start(lock_is, &m)) == NULL);
}

static void ceilings(void **state) {
  (void)state;
  int low = sched_get_priority_min(SCHED_FIFO), high = sched_get_priority_max(SCHED_FIFO), value;
  pthread_mutexattr_t attr;
  CHECK_OK(pthread_mutexattr_init(&attr));
  CHECK_OK(pthread_mutexattr_getprotocol(&attr, &value));
  CHECK_EQ(value, PTHREAD_PRIO_NONE);
  CHECK_EQ(pthread_mutexattr_setprotocol(&attr, 9), EINVAL);
  CHECK_OK(pthread_mutexattr_setprioceiling(&attr, high));
  CHECK_OK(pthread_mutexattr_getprioceiling(&attr, &value));
  CHECK_EQ(value, high);
  CHECK_EQ(pthread_mutexattr_setprioceiling(&attr, high + 1), EINVAL);
  CHECK_OK(pthread_mutexattr_setprotocol(&attr, PTHREAD_PRIO_PROTECT));
  CHECK_OK(pthread_mutexattr_setprioceiling(&attr, low + 1));
  pthread_mutex_t m, plain = PTHREAD_MUTEX_INITIALIZER;
  CHECK_OK(pthread_mutex_init(&m, &attr));
  CHECK_OK(pthread_mutex_getprioceiling(&m, &value));
  CHECK_EQ(value, low + 1);
  CHECK_EQ(pthread_mutex_getprioceiling(&plain, &value), EINVAL);
  CHECK_EQ(pthread_mutex_setprioceiling(&plain, low, &value), EINVAL);
  CHECK_OK(pthread_mutexattr_destroy(&attr));
  CHECK_OK(pthread_mutex_destroy(&m));
  CHECK_OK(pthread_mutexattr_init(&attr));
  CHECK_EQ(pthread_mutexattr_setrobust(&attr, 5), EINVAL);
  CHECK_EQ(pthread_mutexattr_setpshared(&attr, 5), EINVAL);
  CHECK_OK(pthread_mutexattr_destroy(&attr));
}

// A lock adds its ceiling to the holder's priority in the kernel, not in what
// pthread_getschedparam answers; what the thread is given by pthread_setschedparam counts at
// the next lock. (libc reckons from its own note of it, which such a call once passed by.)
static void prio_is(int own, int in_kernel) {
  struct sched_param p;
  int policy;
  CHECK_OK(pthread_getschedparam(pthread_self(), &policy, &p));
  CHECK_EQ(policy, own == 0 ? SCHED_OTHER : SCHED_FIFO);
  CHECK_EQ(p.sched_priority, own);
  CHECK_OK(sched_getparam(0, &p));
  CHECK_EQ(p.sched_priority, in_kernel);
}

static int become_fifo(int priority) {
  struct sched_param p = {.sched_priority = priority};
  return pthread_setschedparam(pthread_self(), SCHED_FIFO, &p);
}

static void *locks_under_a_ceiling(void *arg) {
  pthread_mutex_t *m = arg;
  int old;
  prio_is(0, 0);
  if (become_fifo(5) == EPERM) return NULL;
  prio_is(5, 5);
  CHECK_OK(pthread_mutex_lock(m));
  prio_is(5, 20);
  CHECK_OK(become_fifo(10));
  prio_is(10, 20);
  CHECK_OK(pthread_setschedprio(pthread_self(), 25));
  prio_is(25, 25);
  CHECK_OK(pthread_setschedprio(pthread_self(), 5));
  prio_is(5, 20);
  CHECK_OK(pthread_mutex_unlock(m));
  prio_is(5, 5);
  CHECK_OK(pthread_mutex_setprioceiling(m, 3, &old));
  CHECK_EQ(old, 20);
  CHECK_EQ(pthread_mutex_lock(m), EINVAL);
  CHECK_EQ(pthread_mutex_trylock(m), EINVAL);
  CHECK_OK(pthread_setschedprio(pthread_self(), 2));
  CHECK_OK(pthread_mutex_lock(m));
  prio_is(2, 3);
  CHECK_OK(pthread_mutex_unlock(m));
  CHECK_OK(pthread_mutex_setprioceiling(m, 20, &old));
  return NULL;
}

static int ceilings_in_threads(void *arg) {
  (void)arg;
  pthread_mutexattr_t attr;
  pthread_mutex_t m;
  CHECK_OK(pthread_mutexattr_init(&attr));
  CHECK_OK(pthread_mutexattr_setprotocol(&attr, PTHREAD_PRIO_PROTECT));
  CHECK_OK(pthread_mutexattr_setprioceiling(&attr, 20));
  CHECK_OK(pthread_mutex_init(&m, &attr));
  for (int i = 0; i < 3; i++) join(start(locks_under_a_ceiling, &m));  // in one slot after another
  CHECK_OK(pthread_mutex_destroy(&m));
  CHECK_OK(pthread_mutexattr_destroy(&attr));
  return 0;
}

// In a child: this process's main has used locks that its threads then inherit traits from.
static void ceilings_add_to_the_priority_set(void **state) {
  (void)state;
  CHECK_OK(exit_code(in_child(ceilings_in_threads, NULL)));
}

// Process-shared.

struct area {
  pthread_mutex_t m;
  long counter, inside;
  int ready;
};

static void *count_in_area(void *arg) {
  struct area *a = arg;
  for (int i = 0; i < 150; i++) {
    CHECK_OK(pthread_mutex_lock(&a->m));
    CHECK_EQ(++a->inside, 1);
    if (i % 8 == 0) sched_yield();
    a->counter++;
    a->inside--;
    CHECK_OK(pthread_mutex_unlock(&a->m));
  }
  return NULL;
}

static int count_with_threads(void *area) {
  pthread_t t[4];
  for (int i = 0; i < 4; i++) t[i] = start(count_in_area, area);
  for (int i = 0; i < 4; i++) join(t[i]);
  return 0;
}

static void shared_between_processes(void **state) {
  (void)state;
  // Kinds that look at the owner: an owner in one process is nobody of the other one.
  for (int variant = 0; variant < 12; variant++) {
    struct area *a = shared_memory(sizeof *a);
    a->m = make(kinds[variant / 4], variant & 1 ? PTHREAD_MUTEX_ROBUST : PTHREAD_MUTEX_STALLED,
                variant & 2 ? PTHREAD_PRIO_INHERIT : PTHREAD_PRIO_NONE, PTHREAD_PROCESS_SHARED);
    fflush(NULL);
    pid_t pids[3];
    for (int i = 0; i < 3; i++)
      if ((pids[i] = fork()) == 0) _exit(count_with_threads(a));
    count_with_threads(a);
    for (int i = 0; i < 3; i++) {
      int status;
      CHECK_EQ(waitpid(pids[i], &status, 0), pids[i]);
      CHECK_OK(status);
    }
    CHECK_EQ(a->counter, 4 * 4 * 150);
    munmap(a, sizeof *a);
  }
}

static int die_holding(void *arg) {
  struct area *a = arg;
  CHECK_OK(pthread_mutex_lock(&a->m));
  if (a->ready) kill(getpid(), SIGKILL);
  return 0;
}
static int die_holding_in_thread(void *arg) {
  CHECK(join(start(lock_and_return, &((struct area *)arg)->m)) == NULL);
  return 0;
}

static void shared_robust_owner_process_dies(void **state) {
  (void)state;
  for (int pi = 0; pi < 2; pi++) {
    struct area *a = shared_memory(sizeof *a);
    a->m = make(PTHREAD_MUTEX_NORMAL, PTHREAD_MUTEX_ROBUST, pi ? PTHREAD_PRIO_INHERIT : PTHREAD_PRIO_NONE,
                PTHREAD_PROCESS_SHARED);
    for (int how = 0; how < 3; how++) {
      a->ready = how == 1;
      int status = in_child(how == 2 ? die_holding_in_thread : die_holding, a);
      CHECK(how == 1 ? death_signal(status) == SIGKILL : status == 0);
      CHECK_EQ(pthread_mutex_lock(&a->m), EOWNERDEAD);
      CHECK_OK(pthread_mutex_consistent(&a->m));
      CHECK_OK(pthread_mutex_unlock(&a->m));
    }
    munmap(a, sizeof *a);
  }
}

// In a process whose first thread is yet to be made: main's ownership is known to the kernel alone.
static pthread_mutex_t early;

static void *finds_it_held(void *arg) {
  CHECK_EQ(pthread_mutex_trylock(&early), EBUSY);
  STORE((int *)arg, 1);
  CHECK_OK(pthread_mutex_lock(&early));
  CHECK_OK(pthread_mutex_unlock(&early));
  return NULL;
}

static int locked_before_the_first_thread(void *arg) {
  int kind = (int)(intptr_t)arg % 3, robust = (intptr_t)arg >= 3;
  early = make(kinds[kind], robust ? PTHREAD_MUTEX_ROBUST : PTHREAD_MUTEX_STALLED, PTHREAD_PRIO_INHERIT,
               PTHREAD_PROCESS_PRIVATE);
  CHECK_OK(pthread_mutex_lock(&early));
  pthread_t t[4];
  int waiting[4] = {0};
  for (int i = 0; i < 4; i++) t[i] = start(finds_it_held, &waiting[i]);
  for (int i = 0; i < 4; i++) AWAIT(LOAD(&waiting[i]));
  yield_some(20);
  CHECK_OK(pthread_mutex_unlock(&early));
  for (int i = 0; i < 4; i++) join(t[i]);
  CHECK_OK(pthread_mutex_destroy(&early));
  return 0;
}

// Natively a program's main thread; here a fork child's, whose parent has not made a thread yet.
static void held_by_main_since_before_the_first_thread(void **state) {
  (void)state;
  for (intptr_t i = 0; i < 6; i++) CHECK_EQ(in_child(locked_before_the_first_thread, (void *)i), 0);
}

static pthread_cond_t pi_cond = PTHREAD_COND_INITIALIZER;
static int pi_phase;

static void unlock_held(void *m) { CHECK_OK(pthread_mutex_unlock(m)); }

static void *waits_with(void *m) {
  CHECK_OK(pthread_mutex_lock(m));
  pthread_cleanup_push(unlock_held, m);
  STORE(&pi_phase, 1);
  while (pi_phase != 2) CHECK_OK(pthread_cond_wait(&pi_cond, m));
  pthread_cleanup_pop(1);
  return NULL;
}

// Who waits on a condition uses its mutex; cancelled, it has it back in its cleanup handler.
static void conditions_with_pi_mutexes(void **state) {
  (void)state;
  for (int i = 0; i < 12; i++) {
    pthread_mutex_t m = make(kinds[i % 3], PTHREAD_MUTEX_STALLED, PTHREAD_PRIO_INHERIT, PTHREAD_PROCESS_PRIVATE);
    pi_phase = 0;
    pthread_t t = start(waits_with, &m);
    AWAIT(LOAD(&pi_phase) == 1);
    CHECK_OK(pthread_mutex_lock(&m));
    CHECK_OK(pthread_mutex_unlock(&m));
    CHECK_EQ(pthread_mutex_destroy(&m), EBUSY);
    if (i & 1) {
      CHECK_OK(pthread_cancel(t));
    } else {
      CHECK_OK(pthread_mutex_lock(&m));
      pi_phase = 2;
      CHECK_OK(pthread_cond_signal(&pi_cond));
      CHECK_OK(pthread_mutex_unlock(&m));
    }
    CHECK(join(t) == (i & 1 ? PTHREAD_CANCELED : NULL));
    CHECK_OK(pthread_mutex_destroy(&m));
  }
}

static void *lock_and_leave_it(void *m) {
  int err = pthread_mutex_lock(m);
  if (err == EOWNERDEAD) CHECK_OK(pthread_mutex_consistent(m));
  else CHECK_EQ(err, 0);
  usleep(20000);
  return NULL;
}

// One owner after another ends with waiters behind it.
static void robust_pi_owners_die_in_a_row(void **state) {
  (void)state;
  for (int round = 0; round < 3; round++) {
    pthread_mutex_t m = make(kinds[round], PTHREAD_MUTEX_ROBUST, PTHREAD_PRIO_INHERIT, PTHREAD_PROCESS_PRIVATE);
    pthread_t t[4];
    for (int i = 0; i < 4; i++) t[i] = start(lock_and_leave_it, &m);
    for (int i = 0; i < 4; i++) join(t[i]);
    CHECK_EQ(pthread_mutex_lock(&m), EOWNERDEAD);
    CHECK_OK(pthread_mutex_consistent(&m));
    CHECK_OK(pthread_mutex_unlock(&m));
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(held_by_main_since_before_the_first_thread),  // first: it forks without threads
      cmocka_unit_test(conditions_with_pi_mutexes),
      cmocka_unit_test(robust_pi_owners_die_in_a_row),
      cmocka_unit_test(robust_owner_dies),
      cmocka_unit_test(robust_owner_dies_with_waiters),
      cmocka_unit_test(robust_owner_dies_holding_many),
      cmocka_unit_test(robust_errors),
      cmocka_unit_test(contended_in_every_protocol),
      cmocka_unit_test(pi_codes),
      cmocka_unit_test(ceilings),
      cmocka_unit_test(ceilings_add_to_the_priority_set),
      cmocka_unit_test(shared_between_processes),
      cmocka_unit_test(shared_robust_owner_process_dies),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

// cancel_test.c - family: pthread_cancel, setcancelstate, setcanceltype, testcancel, cleanup.
//
// Behaviours: states and types, deferred until a point, asynchronous in a blocked
// call (loops: bare_loop_test.c); order of cleanup handlers, TSD destructors after them; a cancelled wait loses no
// signal; calls that are no cancellation points; cancel of threads not started, finished,
// detached, of self, of main; many at once; handlers that block.
// Invariant: a cancellation is acted on once, in the cancelled thread, and never lost.
#include "abi.h"

#include <semaphore.h>

static int phase, ran;

static void states_and_types(void **state) {
  (void)state;
  int old = -1;
  CHECK_OK(pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &old));
  CHECK_EQ(old, PTHREAD_CANCEL_ENABLE);
  CHECK_OK(pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, &old));
  CHECK_EQ(old, PTHREAD_CANCEL_DISABLE);
  CHECK_OK(pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, &old));
  CHECK_EQ(old, PTHREAD_CANCEL_DEFERRED);
  CHECK_OK(pthread_setcanceltype(PTHREAD_CANCEL_DEFERRED, &old));
  CHECK_EQ(old, PTHREAD_CANCEL_ASYNCHRONOUS);
  CHECK_EQ(pthread_setcancelstate(55, &old), EINVAL);
  CHECK_EQ(pthread_setcanceltype(55, &old), EINVAL);
}

static void *fresh_state(void *arg) {
  int old = -1;
  CHECK_OK(pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &old));
  CHECK_EQ(old, PTHREAD_CANCEL_ENABLE);
  CHECK_OK(pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, &old));
  CHECK_EQ(old, PTHREAD_CANCEL_DEFERRED);
  return arg;
}
static void every_thread_starts_enabled_and_deferred(void **state) {
  (void)state;
  for (int i = 0; i < 50; i++) join(start(fresh_state, NULL));
}

static void *work_then_point(void *arg) {
  STORE(&phase, 1);
  AWAIT(LOAD(&phase) == 2);  // sched_yield and clock_gettime are no points
  volatile long sum = 0;
  for (long i = 0; i < 100000; i++) sum = sum + i;
  ADD(&ran, 1);
  pthread_testcancel();
  ADD(&ran, 100);
  return arg;
}

static void deferred_until_a_point(void **state) {
  (void)state;
  phase = ran = 0;
  pthread_t t = start(work_then_point, NULL);
  AWAIT(LOAD(&phase) == 1);
  CHECK_OK(pthread_cancel(t));
  CHECK_OK(pthread_cancel(t));
  yield_some(10);
  CHECK_EQ(pthread_tryjoin_np(t, NULL), EBUSY);
  STORE(&phase, 2);
  CHECK(join(t) == PTHREAD_CANCELED);
  CHECK_EQ(ran, 1);
}

static void *disabled_then_enabled(void *arg) {
  CHECK_OK(pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, NULL));
  STORE(&phase, 1);
  AWAIT(LOAD(&phase) == 2);
  struct timespec tiny = to_timespec(100000);
  for (int i = 0; i < 5; i++) {
    CHECK_OK(nanosleep(&tiny, NULL));
    pthread_testcancel();
  }
  ADD(&ran, 1);
  CHECK_OK(pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, NULL));
  ADD(&ran, 10);
  nanosleep(&tiny, NULL);
  ADD(&ran, 100);
  return arg;
}

static void disabled_means_pending(void **state) {
  (void)state;
  phase = ran = 0;
  pthread_t t = start(disabled_then_enabled, NULL);
  AWAIT(LOAD(&phase) == 1);
  CHECK_OK(pthread_cancel(t));
  STORE(&phase, 2);
  CHECK(join(t) == PTHREAD_CANCELED);
  CHECK_EQ(ran, 11);
}

static void set_ran(void *arg) { ADD(&ran, (int)(intptr_t)arg); }
static void *block_asynchronously(void *lock) {
  CHECK_OK(pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, NULL));
  STORE(&phase, 1);
  pthread_mutex_lock(lock);
  return NULL;
}

static void asynchronous_in_a_blocked_lock(void **state) {
  (void)state;
  pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
  pthread_mutex_lock(&lock);
  phase = 0;
  pthread_t t = start(block_asynchronously, &lock);
  AWAIT(LOAD(&phase));
  yield_some(20);
  CHECK_OK(pthread_cancel(t));
  CHECK(join(t) == PTHREAD_CANCELED);
  pthread_mutex_unlock(&lock);
}

static void *cancel_self(void *how) {
  if (how) CHECK_OK(pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, NULL));
  CHECK_OK(pthread_cancel(pthread_self()));
  ADD(&ran, 1);
  pthread_testcancel();
  ADD(&ran, 10);
  return NULL;
}
static void cancel_of_self(void **state) {
  (void)state;
  ran = 0;
  CHECK(join(start(cancel_self, NULL)) == PTHREAD_CANCELED);
  CHECK_EQ(ran, 1);
  CHECK(join(start(cancel_self, (void *)1)) == PTHREAD_CANCELED);
  CHECK_EQ(ran, 1);
}

static void *no_point(void *arg) { return arg; }
static void *only_points(void *arg) {
  for (;;) pthread_testcancel();
  return arg;
}
static void not_started_and_finished(void **state) {
  (void)state;
  for (int i = 0; i < 100; i++) {
    pthread_t t = start(no_point, (void *)4);
    CHECK_OK(pthread_cancel(t));
    CHECK(join(t) == (void *)4);
    t = start(only_points, NULL);
    CHECK_OK(pthread_cancel(t));
    CHECK(join(t) == PTHREAD_CANCELED);
  }
  phase = ran = 0;
  pthread_t t = start(work_then_point, (void *)6);
  AWAIT(LOAD(&phase) == 1);
  STORE(&phase, 2);
  AWAIT(LOAD(&ran) == 101);
  CHECK_OK(pthread_cancel(t));  // past its last point, perhaps gone
  CHECK(join(t) == (void *)6);
}

// Order: handlers last in first out, those popped run once, TSD destructors after them.
static char trail[32];
static int trail_size;
static pthread_key_t key;
static void note(void *c) { trail[trail_size++] = (char)(intptr_t)c; }
static __attribute__((noinline)) void inner(void) {
  pthread_cleanup_push(note, (void *)'c');
  pthread_cleanup_push(note, (void *)'d');
  pthread_cleanup_pop(1);
  pthread_cleanup_push(note, (void *)'e');
  pthread_cleanup_pop(0);
  STORE(&phase, 1);
  for (;;) pause();
  pthread_cleanup_pop(0);
}
static void *with_handlers(void *arg) {
  CHECK_OK(pthread_setspecific(key, (void *)'t'));
  pthread_cleanup_push(note, (void *)'a');
  pthread_cleanup_push(note, (void *)'b');
  inner();
  pthread_cleanup_pop(0);
  pthread_cleanup_pop(0);
  return arg;
}
static void order_of_handlers(void **state) {
  (void)state;
  CHECK_OK(pthread_key_create(&key, note));
  for (int i = 0; i < 20; i++) {
    memset(trail, 0, sizeof trail);
    trail_size = phase = 0;
    pthread_t t = start(with_handlers, NULL);
    AWAIT(LOAD(&phase));
    CHECK_OK(pthread_cancel(t));
    CHECK(join(t) == PTHREAD_CANCELED);
    CHECK(strcmp(trail, "dcbat") == 0);
  }
  CHECK_OK(pthread_key_delete(key));
}

static pthread_mutex_t mutex = PTHREAD_ERRORCHECK_MUTEX_INITIALIZER_NP;
static pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
static sem_t sem;
static void block_in_handler(void *arg) {
  struct timespec tiny = to_timespec(100000);
  CHECK_OK(nanosleep(&tiny, NULL));  // points act no more
  pthread_testcancel();
  CHECK_OK(sem_wait(&sem));
  CHECK_OK(pthread_mutex_lock(&mutex));
  CHECK_OK(pthread_mutex_unlock(&mutex));
  ADD(&ran, (int)(intptr_t)arg);
}
static void *with_blocking_handler(void *arg) {
  pthread_cleanup_push(block_in_handler, (void *)1);
  ADD(&phase, 1);
  for (;;) pause();
  pthread_cleanup_pop(0);
  return arg;
}
static void handlers_that_block(void **state) {
  (void)state;
  pthread_t t[20];
  phase = ran = 0;
  CHECK_OK(sem_init(&sem, 0, 0));
  for (int i = 0; i < 20; i++) t[i] = start(with_blocking_handler, NULL);
  AWAIT(LOAD(&phase) == 20);
  for (int i = 0; i < 20; i++) CHECK_OK(pthread_cancel(t[i]));
  for (int i = 0; i < 20; i++) CHECK_OK(sem_post(&sem));
  for (int i = 0; i < 20; i++) CHECK(join(t[i]) == PTHREAD_CANCELED);
  CHECK_EQ(ran, 20);
}

// A signal and a cancellation for the same waiter: another waiter must get the signal, or
// the cancelled one must have taken it; and the mutex is held in the handler.
static int units, taken, waiting;
static void unlock_checked(void *arg) { CHECK_OK(pthread_mutex_unlock(arg)); }
static void *take_unit(void *arg) {
  CHECK_OK(pthread_mutex_lock(&mutex));
  pthread_cleanup_push(unlock_checked, &mutex);
  waiting++;
  while (units == 0) pthread_cond_wait(&cond, &mutex);
  units--;
  taken++;
  pthread_cleanup_pop(1);
  return arg;
}
static int locked_value(int *p) {
  CHECK_OK(pthread_mutex_lock(&mutex));
  int value = *p;
  CHECK_OK(pthread_mutex_unlock(&mutex));
  return value;
}
static void cancelled_wait_loses_no_signal(void **state) {
  (void)state;
  for (int i = 0; i < 300; i++) {
    units = taken = waiting = 0;
    pthread_t a = start(take_unit, NULL), b = start(take_unit, NULL);
    AWAIT(locked_value(&waiting) == 2);
    if (i % 3 == 0) CHECK_OK(pthread_cancel(a));
    CHECK_OK(pthread_mutex_lock(&mutex));
    units = 1;
    CHECK_OK(pthread_cond_signal(&cond));
    if (i % 3 == 1) CHECK_OK(pthread_cancel(a));
    CHECK_OK(pthread_mutex_unlock(&mutex));
    if (i % 3 == 2) CHECK_OK(pthread_cancel(a));
    if (join(a) == PTHREAD_CANCELED) {
      CHECK(join(b) == NULL);
    } else {
      CHECK_OK(pthread_cancel(b));
      CHECK(join(b) == PTHREAD_CANCELED);
    }
    CHECK_EQ(taken, 1);
  }
}

// Calls that are no points: the thread gets its lock and goes on to the next point.
static pthread_mutex_t held = PTHREAD_MUTEX_INITIALIZER;
static pthread_rwlock_t rwlock = PTHREAD_RWLOCK_INITIALIZER;
static pthread_barrier_t barrier;
// Process-shared, a cond is libc's: the wait may be left where libc says, with the mutex taken
// again, and what the handlers then do finds the thread where any other is. It was left
// anywhere inside (LTP's pthread_cond_wait 2-3), or by libc while weft had it in a
// system call: CHECK in release_p.
static pthread_mutex_t shared_mutex;
static pthread_cond_t shared_cond;
static sem_t about_to_wait, handler_may_end;

static void owns_the_mutex(void *arg) {
  (void)arg;
  CHECK_OK(sem_post(&about_to_wait));
  CHECK_OK(sem_wait(&handler_may_end));
  CHECK_OK(pthread_mutex_unlock(&shared_mutex));
}
static void *wait_shared(void *arg) {
  CHECK_OK(pthread_mutex_lock(&shared_mutex));
  pthread_cleanup_push(owns_the_mutex, NULL);
  CHECK_OK(sem_post(&about_to_wait));
  for (;;) CHECK_OK(pthread_cond_wait(&shared_cond, &shared_mutex));
  pthread_cleanup_pop(0);
  return arg;
}

static int cancel_shared_waits(void *arg) {
  int nth = (int)(intptr_t)arg;
  pthread_mutexattr_t ma;
  pthread_condattr_t ca;
  CHECK_OK(pthread_mutexattr_init(&ma));
  CHECK_OK(pthread_mutexattr_setpshared(&ma, PTHREAD_PROCESS_SHARED));
  CHECK_OK(pthread_mutexattr_settype(&ma, nth % 4 ? PTHREAD_MUTEX_NORMAL : PTHREAD_MUTEX_ERRORCHECK));
  CHECK_OK(pthread_condattr_init(&ca));
  CHECK_OK(pthread_condattr_setpshared(&ca, PTHREAD_PROCESS_SHARED));
  CHECK_OK(sem_init(&about_to_wait, 0, 0));
  CHECK_OK(sem_init(&handler_may_end, 0, 0));
  for (int i = 0; i < 4; i++) {
    CHECK_OK(pthread_mutex_init(&shared_mutex, &ma));
    CHECK_OK(pthread_cond_init(&shared_cond, &ca));
    pthread_t t = start(wait_shared, NULL);
    CHECK_OK(sem_wait(&about_to_wait));
    CHECK_OK(pthread_mutex_lock(&shared_mutex));  // when it has let go, on its way to wait
    CHECK_OK(pthread_cancel(t));
    yield_some(nth % 20);
    CHECK_OK(pthread_mutex_unlock(&shared_mutex));
    CHECK_OK(sem_wait(&about_to_wait));  // in its handler
    CHECK_EQ(pthread_mutex_trylock(&shared_mutex), EBUSY);
    CHECK_OK(sem_post(&handler_may_end));
    CHECK(join(t) == PTHREAD_CANCELED);
    CHECK_OK(pthread_cond_destroy(&shared_cond));
    CHECK_OK(pthread_mutex_destroy(&shared_mutex));
  }
  return 0;
}

// In many processes: the first wait of each is long on its way.
static void cancelled_shared_wait_owns_the_mutex(void **state) {
  (void)state;
  for (intptr_t i = 0; i < 150; i++)
    CHECK_EQ(exit_code(in_child(cancel_shared_waits, (void *)i)), 0);
}

static void *through_no_points(void *arg) {
  STORE(&phase, 1);
  struct timespec later = in_ms(CLOCK_REALTIME, 60000);
  switch ((intptr_t)arg) {
    case 0: CHECK_OK(pthread_mutex_lock(&held)); break;
    case 1: CHECK_OK(pthread_mutex_timedlock(&held, &later)); break;
    case 2: pthread_barrier_wait(&barrier); break;
    case 3: CHECK_OK(pthread_rwlock_wrlock(&rwlock)); break;
    default: CHECK_OK(pthread_rwlock_rdlock(&rwlock));
  }
  ADD(&ran, 1);
  if ((intptr_t)arg < 2) CHECK_OK(pthread_mutex_unlock(&held));
  if ((intptr_t)arg > 2) CHECK_OK(pthread_rwlock_unlock(&rwlock));
  pthread_testcancel();
  ADD(&ran, 100);
  return NULL;
}

static void locks_and_barriers_are_no_points(void **state) {
  (void)state;
  CHECK_OK(pthread_barrier_init(&barrier, NULL, 2));
  for (intptr_t how = 0; how < 5; how++) {
    phase = ran = 0;
    CHECK_OK(pthread_mutex_lock(&held));
    CHECK_OK(pthread_rwlock_wrlock(&rwlock));
    pthread_t t = start(through_no_points, (void *)how);
    AWAIT(LOAD(&phase));
    yield_some(10);
    CHECK_OK(pthread_cancel(t));
    yield_some(10);
    CHECK_EQ(LOAD(&ran), 0);
    CHECK_EQ(pthread_tryjoin_np(t, NULL), EBUSY);
    CHECK_OK(pthread_mutex_unlock(&held));
    CHECK_OK(pthread_rwlock_unlock(&rwlock));
    if (how == 2) pthread_barrier_wait(&barrier);
    CHECK(join(t) == PTHREAD_CANCELED);
    CHECK_EQ(ran, 1);
  }
}

static void *detached(void *arg) {
  pthread_cleanup_push(set_ran, (void *)1);
  ADD(&phase, 1);
  for (;;) pause();
  pthread_cleanup_pop(0);
  return arg;
}
static void detached_and_many(void **state) {
  (void)state;
  phase = ran = 0;
  pthread_t t[100];
  for (int i = 0; i < 100; i++) {
    t[i] = start(detached, NULL);
    if (i & 1) CHECK_OK(pthread_detach(t[i]));
  }
  AWAIT(LOAD(&phase) == 100);
  for (int i = 0; i < 100; i++) CHECK_OK(pthread_cancel(t[i]));
  for (int i = 0; i < 100; i += 2) CHECK(join(t[i]) == PTHREAD_CANCELED);
  AWAIT(LOAD(&ran) == 100);
}

static void *cancel_main(void *arg) {
  void *result;
  CHECK_OK(pthread_cancel(abi_main_thread));
  CHECK_OK(pthread_join(abi_main_thread, &result));
  _exit(result == PTHREAD_CANCELED && LOAD(&ran) == 3 ? 12 : (int)(intptr_t)arg);
}
static int be_cancelled(void *arg) {
  pthread_cleanup_push(set_ran, (void *)3);
  start(cancel_main, arg);
  for (;;) pause();
  pthread_cleanup_pop(0);
  return 1;
}
static void cancel_of_main(void **state) {
  (void)state;
  ran = 0;
  CHECK_EQ(exit_code(in_child(be_cancelled, (void *)1)), 12);
}

// Two that join each other are EDEADLK, unless one of them is cancelled: it will let go.
static void *joins(void *arg) {
  STORE((int *)((void **)arg)[1], 1);
  join(*(pthread_t *)((void **)arg)[0]);
  return NULL;
}

static void who_joins_us_is_cancelled(void **state) {
  (void)state;
  for (int i = 0; i < 20; i++) {
    int there = 0;
    pthread_t self = pthread_self();
    void *arg[] = {&self, &there};
    pthread_t t = start(joins, arg);
    AWAIT(LOAD(&there));
    yield_some(i);
    if (i & 1) AWAIT(pthread_tryjoin_np(t, NULL) == EDEADLK || pthread_tryjoin_np(t, NULL) == EBUSY);
    CHECK_OK(pthread_cancel(t));
    CHECK(join(t) == PTHREAD_CANCELED);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(states_and_types),
      cmocka_unit_test(every_thread_starts_enabled_and_deferred),
      cmocka_unit_test(deferred_until_a_point),
      cmocka_unit_test(disabled_means_pending),
      cmocka_unit_test(asynchronous_in_a_blocked_lock),
      cmocka_unit_test(cancel_of_self),
      cmocka_unit_test(not_started_and_finished),
      cmocka_unit_test(order_of_handlers),
      cmocka_unit_test(handlers_that_block),
      cmocka_unit_test(cancelled_wait_loses_no_signal),
      cmocka_unit_test(cancelled_shared_wait_owns_the_mutex),
      cmocka_unit_test(locks_and_barriers_are_no_points),
      cmocka_unit_test(detached_and_many),
      cmocka_unit_test(cancel_of_main),
      cmocka_unit_test(who_joins_us_is_cancelled),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

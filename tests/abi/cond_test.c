// cond_test.c - family: pthread_cond_*: signal, broadcast, timed waits, clocks, lifetime.
//
// Behaviours: signal wakes one, broadcast all; signals with and without the mutex held; the
// mutex is held after every return; timeouts on both clocks; exact accounting when timeouts
// race signals; requeue onto a held mutex; destroy right after broadcast, and before it; every kind of
// mutex in a wait; static and dynamic init; several conds on one mutex.
// Invariant: a signal sent while someone waits ends at least one wait; none is lost.
#include "abi.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
static int waiting, tickets, served;

static int locked_value(int *p) {
  pthread_mutex_lock(&lock);
  int value = *p;
  pthread_mutex_unlock(&lock);
  return value;
}

static void *take_ticket(void *arg) {
  pthread_mutex_lock(&lock);
  waiting++;
  while (tickets == 0) CHECK_OK(pthread_cond_wait(&cond, &lock));
  tickets--;
  waiting--;
  served++;
  CHECK_EQ(pthread_mutex_trylock(&lock), EBUSY);
  pthread_mutex_unlock(&lock);
  return arg;
}

static void start_waiters(pthread_t *t, int n, void *(*fn)(void *)) {
  pthread_mutex_lock(&lock);
  waiting = tickets = served = 0;
  pthread_mutex_unlock(&lock);
  for (long i = 0; i < n; i++) t[i] = start(fn, (void *)i);
  // Counted under the mutex that the wait gives up: they are waiters now.
  AWAIT(locked_value(&waiting) == n);
}

static void signal_serves_one_each(void **state) {
  (void)state;
  enum { kWaiters = 50 };
  pthread_t t[kWaiters];
  start_waiters(t, kWaiters, take_ticket);
  for (int i = 1; i <= kWaiters; i++) {
    pthread_mutex_lock(&lock);
    tickets++;
    if (i & 1) CHECK_OK(pthread_cond_signal(&cond));
    pthread_mutex_unlock(&lock);
    if (!(i & 1)) CHECK_OK(pthread_cond_signal(&cond));
    AWAIT(locked_value(&served) == i);
  }
  for (int i = 0; i < kWaiters; i++) join(t[i]);
}

static int woken;
static void *count_wakes(void *arg) {
  pthread_mutex_lock(&lock);
  waiting++;
  while (!tickets) {
    pthread_cond_wait(&cond, &lock);
    woken++;
  }
  pthread_mutex_unlock(&lock);
  return arg;
}

// One signal may wake more than one in theory; a signal that wakes all of 100 is a broadcast.
static void signal_is_not_broadcast(void **state) {
  (void)state;
  enum { kWaiters = 100 };
  pthread_t t[kWaiters];
  woken = 0;
  start_waiters(t, kWaiters, count_wakes);
  CHECK_OK(pthread_cond_signal(&cond));
  AWAIT(locked_value(&woken) >= 1);
  yield_some(200);
  CHECK(locked_value(&woken) < 50);
  pthread_mutex_lock(&lock);
  tickets = 1;
  pthread_cond_broadcast(&cond);
  pthread_mutex_unlock(&lock);
  for (int i = 0; i < kWaiters; i++) join(t[i]);
}

static void broadcast_wakes_all(void **state) {
  (void)state;
  enum { kWaiters = 200 };
  for (int round = 0; round < 4; round++) {
    pthread_t t[kWaiters];
    start_waiters(t, kWaiters, count_wakes);
    pthread_mutex_lock(&lock);
    tickets = 1;
    if (round & 1) pthread_mutex_unlock(&lock);
    CHECK_OK(pthread_cond_broadcast(&cond));
    yield_some(20);  // all requeued onto the mutex that we hold
    if (!(round & 1)) pthread_mutex_unlock(&lock);
    for (int i = 0; i < kWaiters; i++) join(t[i]);
  }
}

static void signals_without_waiters_are_not_kept(void **state) {
  (void)state;
  for (int i = 0; i < 10; i++) {
    CHECK_OK(pthread_cond_signal(&cond));
    CHECK_OK(pthread_cond_broadcast(&cond));
  }
  pthread_mutex_lock(&lock);
  struct timespec when = in_ms(CLOCK_REALTIME, 5);
  int error;
  do error = pthread_cond_timedwait(&cond, &lock, &when);
  while (error == 0);
  CHECK_EQ(error, ETIMEDOUT);
  CHECK(is_past(CLOCK_REALTIME, when));
  pthread_mutex_unlock(&lock);
}

static int wait_out(pthread_cond_t *c, clockid_t clock, int how, int64_t ms) {
  struct timespec when = in_ms(clock, ms);
  int error;
  pthread_mutex_lock(&lock);
  do error = how ? pthread_cond_clockwait(c, &lock, clock, &when) : pthread_cond_timedwait(c, &lock, &when);
  while (error == 0);
  CHECK_EQ(pthread_mutex_trylock(&lock), EBUSY);
  pthread_mutex_unlock(&lock);
  if (error == ETIMEDOUT) CHECK(is_past(clock, when));
  return error;
}

static void timeouts_on_both_clocks(void **state) {
  (void)state;
  pthread_condattr_t attr;
  pthread_cond_t monotonic;
  clockid_t clock = -1;
  CHECK_OK(pthread_condattr_init(&attr));
  CHECK_OK(pthread_condattr_getclock(&attr, &clock));
  CHECK_EQ(clock, CLOCK_REALTIME);
  CHECK_EQ(pthread_condattr_setclock(&attr, CLOCK_PROCESS_CPUTIME_ID), EINVAL);
  CHECK_EQ(pthread_condattr_setclock(&attr, 1234), EINVAL);
  CHECK_OK(pthread_condattr_setclock(&attr, CLOCK_MONOTONIC));
  CHECK_OK(pthread_condattr_getclock(&attr, &clock));
  CHECK_EQ(clock, CLOCK_MONOTONIC);
  CHECK_OK(pthread_cond_init(&monotonic, &attr));
  CHECK_OK(pthread_condattr_destroy(&attr));
  const int64_t delays[] = {-100000, -1, 0, 1, 15};
  for (int i = 0; i < 5; i++) {
    CHECK_EQ(wait_out(&cond, CLOCK_REALTIME, 0, delays[i]), ETIMEDOUT);
    CHECK_EQ(wait_out(&cond, CLOCK_REALTIME, 1, delays[i]), ETIMEDOUT);
    CHECK_EQ(wait_out(&cond, CLOCK_MONOTONIC, 1, delays[i]), ETIMEDOUT);
    CHECK_EQ(wait_out(&monotonic, CLOCK_MONOTONIC, 0, delays[i]), ETIMEDOUT);
    CHECK_EQ(wait_out(&monotonic, CLOCK_REALTIME, 1, delays[i]), ETIMEDOUT);
  }
  CHECK_OK(pthread_cond_destroy(&monotonic));
  pthread_mutex_lock(&lock);
  struct timespec bad = {0, 1000000000};
  CHECK_EQ(pthread_cond_timedwait(&cond, &lock, &bad), EINVAL);
  bad.tv_nsec = -1;
  CHECK_EQ(pthread_cond_clockwait(&cond, &lock, CLOCK_MONOTONIC, &bad), EINVAL);
  bad.tv_nsec = 0;
  CHECK_EQ(pthread_cond_clockwait(&cond, &lock, CLOCK_THREAD_CPUTIME_ID, &bad), EINVAL);
  pthread_mutex_unlock(&lock);
}

static void *wait_until_a_minute(void *arg) {
  struct timespec realtime = in_ms(CLOCK_REALTIME, 60000), monotonic = in_ms(CLOCK_MONOTONIC, 60000);
  pthread_mutex_lock(&lock);
  waiting++;
  while (!tickets) {
    if ((long)arg & 1) CHECK_OK(pthread_cond_timedwait(&cond, &lock, &realtime));
    else CHECK_OK(pthread_cond_clockwait(&cond, &lock, CLOCK_MONOTONIC, &monotonic));
  }
  pthread_mutex_unlock(&lock);
  return arg;
}

static void timed_waits_end_by_broadcast(void **state) {
  (void)state;
  pthread_t t[40];
  start_waiters(t, 40, wait_until_a_minute);
  pthread_mutex_lock(&lock);
  tickets = 1;
  pthread_cond_broadcast(&cond);
  pthread_mutex_unlock(&lock);
  for (int i = 0; i < 40; i++) join(t[i]);
}

// A bounded queue: counts and sums must come out exactly.
static struct {
  pthread_mutex_t m;
  pthread_cond_t not_empty, not_full;
  long items[8], head, count, produced, consumed_sum, consumed;
  int finished;
} queue = {.m = PTHREAD_MUTEX_INITIALIZER, .not_empty = PTHREAD_COND_INITIALIZER, .not_full = PTHREAD_COND_INITIALIZER};

static void *produce(void *arg) {
  for (long i = 0; i < 500; i++) {
    pthread_mutex_lock(&queue.m);
    while (queue.count == 8) pthread_cond_wait(&queue.not_full, &queue.m);
    queue.items[(queue.head + queue.count++) % 8] = (long)arg * 500 + i;
    pthread_cond_signal(&queue.not_empty);
    pthread_mutex_unlock(&queue.m);
  }
  return NULL;
}

static void *consume(void *arg) {
  pthread_mutex_lock(&queue.m);
  for (;;) {
    while (queue.count == 0 && !queue.finished) pthread_cond_wait(&queue.not_empty, &queue.m);
    if (queue.count == 0) break;
    queue.consumed_sum += queue.items[queue.head];
    queue.head = (queue.head + 1) % 8;
    queue.count--;
    queue.consumed++;
    pthread_mutex_unlock(&queue.m);
    pthread_cond_signal(&queue.not_full);
    pthread_mutex_lock(&queue.m);
  }
  pthread_mutex_unlock(&queue.m);
  return arg;
}

static void bounded_queue_counts_exactly(void **state) {
  (void)state;
  pthread_t producers[8], consumers[8];
  for (long i = 0; i < 8; i++) consumers[i] = start(consume, NULL);
  for (long i = 0; i < 8; i++) producers[i] = start(produce, (void *)i);
  for (int i = 0; i < 8; i++) join(producers[i]);
  pthread_mutex_lock(&queue.m);
  queue.finished = 1;
  pthread_cond_broadcast(&queue.not_empty);
  pthread_mutex_unlock(&queue.m);
  for (int i = 0; i < 8; i++) join(consumers[i]);
  CHECK_EQ(queue.consumed, 4000);
  CHECK_EQ(queue.consumed_sum, 4000L * 3999 / 2);
}

static int turn;
static void *ping_pong(void *arg) {
  int me = (int)(long)arg;
  for (int i = 0; i < 2000; i++) {
    pthread_mutex_lock(&lock);
    while (turn != me) pthread_cond_wait(&cond, &lock);
    turn = !me;
    pthread_cond_signal(&cond);
    pthread_mutex_unlock(&lock);
  }
  return NULL;
}

static void ping_pong_on_one_cond(void **state) {
  (void)state;
  turn = 0;
  pthread_t t = start(ping_pong, (void *)1);
  ping_pong((void *)0);
  join(t);
}

// N threads pass a token around, each waiting on its own cond with one mutex for all.
enum { kRing = 20 };
static pthread_cond_t seats[kRing];
static int token;
static void *pass_token(void *arg) {
  long me = (long)arg;
  for (int i = 0; i < 50; i++) {
    pthread_mutex_lock(&lock);
    while (token != me) pthread_cond_wait(&seats[me], &lock);
    token = (int)((me + 1) % kRing);
    pthread_cond_signal(&seats[token]);
    pthread_mutex_unlock(&lock);
  }
  return NULL;
}

static void token_ring(void **state) {
  (void)state;
  pthread_t t[kRing];
  token = 0;
  for (int i = 0; i < kRing; i++) CHECK_OK(pthread_cond_init(&seats[i], NULL));
  for (long i = 0; i < kRing; i++) t[i] = start(pass_token, (void *)i);
  for (int i = 0; i < kRing; i++) join(t[i]);
  CHECK_EQ(token, 0);
  for (int i = 0; i < kRing; i++) CHECK_OK(pthread_cond_destroy(&seats[i]));
}

// Destroyed and overwritten as soon as broadcast and the waiters' mutex allow: POSIX lets
// destroy wait for the woken to leave.
struct event {
  pthread_mutex_t m;
  pthread_cond_t c;
  int happened, entered;
};
static void *await_event(void *arg) {
  struct event *e = arg;
  pthread_mutex_lock(&e->m);
  e->entered++;
  while (!e->happened) pthread_cond_wait(&e->c, &e->m);
  e->entered--;
  pthread_mutex_unlock(&e->m);
  return NULL;
}

static int entered_now(struct event *e) {
  pthread_mutex_lock(&e->m);
  int n = e->entered;
  pthread_mutex_unlock(&e->m);
  return n;
}

static void destroyed_right_after_broadcast(void **state) {
  (void)state;
  for (int round = 0; round < 100; round++) {
    struct event e = {.m = PTHREAD_MUTEX_INITIALIZER, .c = PTHREAD_COND_INITIALIZER};
    pthread_t t[5];
    for (int i = 0; i < 5; i++) t[i] = start(await_event, &e);
    AWAIT(entered_now(&e) == 5);
    pthread_mutex_lock(&e.m);
    e.happened = 1;
    CHECK_OK(pthread_cond_broadcast(&e.c));
    pthread_mutex_unlock(&e.m);
    CHECK_OK(pthread_cond_destroy(&e.c));
    memset(&e.c, 0xff, sizeof e.c);
    for (int i = 0; i < 5; i++) join(t[i]);
    CHECK_OK(pthread_mutex_destroy(&e.m));
  }
}

// Timeouts racing signals: each unit posted is taken by exactly one, no unit is left lying
// while a waiter that could have taken it timed out after its post.
static long units, taken, timeouts;
static int posting_done;
static void *take_units(void *arg) {
  unsigned seed = (unsigned)(long)arg * 7919 + 1;
  pthread_mutex_lock(&lock);
  while (!posting_done || units > 0) {
    if (units > 0) {
      units--;
      taken++;
      continue;
    }
    struct timespec soon = in_us(CLOCK_MONOTONIC, rand_r(&seed) % 60);
    int error = pthread_cond_clockwait(&cond, &lock, CLOCK_MONOTONIC, &soon);
    if (error) {
      CHECK_EQ(error, ETIMEDOUT);
      timeouts++;
    }
  }
  pthread_mutex_unlock(&lock);
  return NULL;
}

static int destroying, destroyed;
static void *destroy_cond(void *arg) {
  STORE(&destroying, 1);
  CHECK_OK(pthread_cond_destroy(arg));
  STORE(&destroyed, 1);
  return NULL;
}

// libc destroys a cond that somebody waits for once they have been woken. Ours said EBUSY.
static void destroy_waits_for_the_waiters(void **state) {
  (void)state;
  pthread_t t[3];
  destroying = destroyed = 0;
  start_waiters(t, 3, take_ticket);
  pthread_t destroyer = start(destroy_cond, &cond);
  AWAIT(LOAD(&destroying));
  for (int i = 0; i < 1000; i++) sched_yield();
  CHECK_EQ(LOAD(&destroyed), 0);
  pthread_mutex_lock(&lock);
  tickets = 3;
  CHECK_OK(pthread_cond_broadcast(&cond));
  pthread_mutex_unlock(&lock);
  for (int i = 0; i < 3; i++) join(t[i]);
  join(destroyer);
  CHECK_EQ(destroyed, 1);
  CHECK_OK(pthread_cond_init(&cond, NULL));
}

static void timeouts_racing_signals(void **state) {
  (void)state;
  pthread_t t[8];
  units = taken = timeouts = 0;
  posting_done = 0;
  for (long i = 0; i < 8; i++) t[i] = start(take_units, (void *)i);
  for (int i = 0; i < 3000; i++) {
    pthread_mutex_lock(&lock);
    units++;
    pthread_mutex_unlock(&lock);
    pthread_cond_signal(&cond);
    if (i % 4 == 0) sched_yield();
  }
  pthread_mutex_lock(&lock);
  posting_done = 1;
  pthread_cond_broadcast(&cond);
  pthread_mutex_unlock(&lock);
  for (int i = 0; i < 8; i++) join(t[i]);
  CHECK_EQ(taken, 3000);
  CHECK_EQ(units, 0);
}

// One patient waiter without timeout among impatient ones: a signal must never end in the
// hands of one whose time has run out while the patient one sleeps on.
static int patient_units, patient_taken, patient_stop;
static void *impatient(void *arg) {
  while (!LOAD(&patient_stop)) {
    pthread_mutex_lock(&lock);
    struct timespec soon = in_us(CLOCK_MONOTONIC, 5);
    int error = pthread_cond_clockwait(&cond, &lock, CLOCK_MONOTONIC, &soon);
    // Woken by a signal that was not for us: pass it on, as the contract asks.
    if (error == 0) pthread_cond_signal(&cond);
    pthread_mutex_unlock(&lock);
  }
  return arg;
}
static void *patient(void *arg) {
  pthread_mutex_lock(&lock);
  while (patient_taken < 300) {
    while (!patient_units) pthread_cond_wait(&cond, &lock);
    patient_units--;
    patient_taken++;
  }
  pthread_mutex_unlock(&lock);
  return arg;
}

static void no_signal_lost_to_a_timeout(void **state) {
  (void)state;
  pthread_t p = start(patient, NULL), t[3];
  for (int i = 0; i < 3; i++) t[i] = start(impatient, NULL);
  for (int i = 0; i < 300; i++) {
    pthread_mutex_lock(&lock);
    patient_units++;
    pthread_cond_signal(&cond);
    pthread_mutex_unlock(&lock);
    AWAIT(locked_value(&patient_taken) == i + 1);
  }
  join(p);
  STORE(&patient_stop, 1);
  for (int i = 0; i < 3; i++) join(t[i]);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(signal_serves_one_each),
      cmocka_unit_test(signal_is_not_broadcast),
      cmocka_unit_test(broadcast_wakes_all),
      cmocka_unit_test(signals_without_waiters_are_not_kept),
      cmocka_unit_test(timeouts_on_both_clocks),
      cmocka_unit_test(timed_waits_end_by_broadcast),
      cmocka_unit_test(bounded_queue_counts_exactly),
      cmocka_unit_test(ping_pong_on_one_cond),
      cmocka_unit_test(token_ring),
      cmocka_unit_test(destroyed_right_after_broadcast),
      cmocka_unit_test(destroy_waits_for_the_waiters),
      cmocka_unit_test(timeouts_racing_signals),
      cmocka_unit_test(no_signal_lost_to_a_timeout),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

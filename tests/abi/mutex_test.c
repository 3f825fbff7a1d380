// mutex_test.c - family: pthread_mutex_*: kinds, static initialisers, try and timed forms,
// error codes, contention.
//
// Behaviours: every kind's answer to relock, foreign unlock, destroy while held; both clocks
// of the timed forms; counters under contention by 2, 8 and 64 threads; locks held over
// yields; everyone progresses; unlock by another thread of a normal mutex; millions of
// uncontended rounds; mutexes on many addresses at once.
// Invariant: between lock and unlock nobody else is inside.
#include "abi.h"

static pthread_mutex_t make(int kind) {
  pthread_mutexattr_t attr;
  pthread_mutex_t m;
  CHECK_OK(pthread_mutexattr_init(&attr));
  CHECK_OK(pthread_mutexattr_settype(&attr, kind));
  CHECK_OK(pthread_mutex_init(&m, &attr));
  CHECK_OK(pthread_mutexattr_destroy(&attr));
  return m;
}

// A step taken by another thread while we keep hold: runs fn(m) there, answers its value.
static int elsewhere(void *(*fn)(void *), pthread_mutex_t *m) { return (int)(intptr_t)join(start(fn, m)); }

static void *do_trylock(void *m) { return (void *)(intptr_t)pthread_mutex_trylock(m); }
static void *do_unlock(void *m) { return (void *)(intptr_t)pthread_mutex_unlock(m); }
static void *do_try_pair(void *m) {
  int error = pthread_mutex_trylock(m);
  if (!error) CHECK_OK(pthread_mutex_unlock(m));
  return (void *)(intptr_t)error;
}
static void *do_timedlock(void *m) {
  struct timespec when = in_ms(CLOCK_REALTIME, 10);
  int error = pthread_mutex_timedlock(m, &when);
  if (error == ETIMEDOUT) CHECK(is_past(CLOCK_REALTIME, when));
  return (void *)(intptr_t)error;
}
static void *do_clocklock(void *m) {
  struct timespec when = in_ms(CLOCK_MONOTONIC, 10);
  int error = pthread_mutex_clocklock(m, CLOCK_MONOTONIC, &when);
  if (error == ETIMEDOUT) CHECK(is_past(CLOCK_MONOTONIC, when));
  return (void *)(intptr_t)error;
}
static void *do_clocklock_realtime(void *m) {
  struct timespec when = in_ms(CLOCK_REALTIME, 10);
  int error = pthread_mutex_clocklock(m, CLOCK_REALTIME, &when);
  if (error == ETIMEDOUT) CHECK(is_past(CLOCK_REALTIME, when));
  return (void *)(intptr_t)error;
}

static void held_mutex_seen_from_elsewhere(pthread_mutex_t *m) {
  CHECK_OK(pthread_mutex_lock(m));
  CHECK_EQ(elsewhere(do_trylock, m), EBUSY);
  CHECK_EQ(elsewhere(do_timedlock, m), ETIMEDOUT);
  CHECK_EQ(elsewhere(do_clocklock, m), ETIMEDOUT);
  CHECK_EQ(elsewhere(do_clocklock_realtime, m), ETIMEDOUT);
  CHECK_EQ(pthread_mutex_destroy(m), EBUSY);
  CHECK_OK(pthread_mutex_unlock(m));
  CHECK_EQ(elsewhere(do_try_pair, m), 0);
}

static void normal_kind(void **state) {
  (void)state;
  pthread_mutex_t fixed = PTHREAD_MUTEX_INITIALIZER, made = make(PTHREAD_MUTEX_NORMAL), plain;
  CHECK_OK(pthread_mutex_init(&plain, NULL));
  pthread_mutex_t *all[] = {&fixed, &made, &plain};
  for (int i = 0; i < 3; i++) {
    pthread_mutex_t *m = all[i];
    held_mutex_seen_from_elsewhere(m);
    CHECK_OK(pthread_mutex_lock(m));
    CHECK_EQ(pthread_mutex_trylock(m), EBUSY);
    struct timespec when = in_ms(CLOCK_REALTIME, 5);
    CHECK_EQ(pthread_mutex_timedlock(m, &when), ETIMEDOUT);  // its own owner waits too
    CHECK_OK(elsewhere(do_unlock, m));
    CHECK_OK(pthread_mutex_trylock(m));
    CHECK_OK(pthread_mutex_unlock(m));
    CHECK_OK(pthread_mutex_destroy(m));
  }
}

static void recursive_kind(void **state) {
  (void)state;
  pthread_mutex_t fixed = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP, made = make(PTHREAD_MUTEX_RECURSIVE);
  pthread_mutex_t *all[] = {&fixed, &made};
  for (int i = 0; i < 2; i++) {
    pthread_mutex_t *m = all[i];
    held_mutex_seen_from_elsewhere(m);
    for (int depth = 0; depth < 100; depth++)
      CHECK_OK(depth & 1 ? pthread_mutex_lock(m) : pthread_mutex_trylock(m));
    struct timespec past = in_ms(CLOCK_REALTIME, -1000);
    CHECK_OK(pthread_mutex_timedlock(m, &past));
    for (int depth = 0; depth < 100; depth++) {
      CHECK_EQ(elsewhere(do_trylock, m), EBUSY);
      CHECK_EQ(elsewhere(do_unlock, m), EPERM);
      CHECK_OK(pthread_mutex_unlock(m));
    }
    CHECK_OK(pthread_mutex_unlock(m));
    CHECK_EQ(pthread_mutex_unlock(m), EPERM);
    CHECK_EQ(elsewhere(do_try_pair, m), 0);
    CHECK_OK(pthread_mutex_destroy(m));
  }
}

static void recursion_limit(void **state) {
  (void)state;
  pthread_mutex_t m = make(PTHREAD_MUTEX_RECURSIVE);
  CHECK_OK(pthread_mutex_lock(&m));
  m.__data.__count = UINT_MAX;  // 2^32 real locks would take a minute
  CHECK_EQ(pthread_mutex_lock(&m), EAGAIN);
  CHECK_EQ(pthread_mutex_trylock(&m), EAGAIN);
  m.__data.__count = 1;
  CHECK_OK(pthread_mutex_unlock(&m));
}

static void errorcheck_kind(void **state) {
  (void)state;
  pthread_mutex_t fixed = PTHREAD_ERRORCHECK_MUTEX_INITIALIZER_NP, made = make(PTHREAD_MUTEX_ERRORCHECK);
  pthread_mutex_t *all[] = {&fixed, &made};
  for (int i = 0; i < 2; i++) {
    pthread_mutex_t *m = all[i];
    held_mutex_seen_from_elsewhere(m);
    CHECK_OK(pthread_mutex_lock(m));
    struct timespec past = in_ms(CLOCK_REALTIME, -1000);
    CHECK_EQ(pthread_mutex_lock(m), EDEADLK);
    CHECK_EQ(pthread_mutex_timedlock(m, &past), EDEADLK);
    CHECK_EQ(pthread_mutex_clocklock(m, CLOCK_MONOTONIC, &past), EDEADLK);
    CHECK_EQ(pthread_mutex_trylock(m), EBUSY);
    CHECK_EQ(elsewhere(do_unlock, m), EPERM);
    CHECK_OK(pthread_mutex_unlock(m));
    CHECK_EQ(pthread_mutex_unlock(m), EPERM);
    CHECK_OK(pthread_mutex_destroy(m));
  }
}

static void adaptive_kind(void **state) {
  (void)state;
  pthread_mutex_t fixed = PTHREAD_ADAPTIVE_MUTEX_INITIALIZER_NP, made = make(PTHREAD_MUTEX_ADAPTIVE_NP);
  held_mutex_seen_from_elsewhere(&fixed);
  held_mutex_seen_from_elsewhere(&made);
}

static void attributes_and_bad_arguments(void **state) {
  (void)state;
  pthread_mutexattr_t attr;
  int value = -1;
  CHECK_OK(pthread_mutexattr_init(&attr));
  CHECK_OK(pthread_mutexattr_gettype(&attr, &value));
  CHECK_EQ(value, PTHREAD_MUTEX_DEFAULT);
  CHECK_EQ(pthread_mutexattr_settype(&attr, 77), EINVAL);
  CHECK_EQ(pthread_mutexattr_settype(&attr, -1), EINVAL);
  CHECK_OK(pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_ERRORCHECK));
  CHECK_OK(pthread_mutexattr_gettype(&attr, &value));
  CHECK_EQ(value, PTHREAD_MUTEX_ERRORCHECK);
  CHECK_OK(pthread_mutexattr_destroy(&attr));

  pthread_mutex_t m = PTHREAD_MUTEX_INITIALIZER;
  struct timespec bad = {0, 1000000000}, negative = {-5, 0}, past = {1, 0};
  // An available mutex is taken without a look at the time.
  CHECK_OK(pthread_mutex_timedlock(&m, &bad));
  CHECK_EQ(pthread_mutex_timedlock(&m, &bad), EINVAL);
  bad.tv_nsec = -1;
  CHECK_EQ(pthread_mutex_timedlock(&m, &bad), EINVAL);
  CHECK_EQ(pthread_mutex_timedlock(&m, &negative), ETIMEDOUT);
  CHECK_EQ(pthread_mutex_timedlock(&m, &past), ETIMEDOUT);
  CHECK_EQ(pthread_mutex_clocklock(&m, CLOCK_PROCESS_CPUTIME_ID, &past), EINVAL);
  CHECK_OK(pthread_mutex_unlock(&m));
}

// Contention.

static struct {
  pthread_mutex_t m;
  long counter, inside, rounds, yields, by_thread[64];
} shared;

static void *count_up(void *arg) {
  long id = (long)arg, form = id;
  for (long i = 0; i < shared.rounds; i++, form++) {
    clockid_t clock = form & 1 ? CLOCK_REALTIME : CLOCK_MONOTONIC;
    struct timespec later = in_ms(form % 5 == 1 ? CLOCK_REALTIME : clock, 60000);
    switch (form % 5) {
      case 1: CHECK_OK(pthread_mutex_timedlock(&shared.m, &later)); break;
      case 2: CHECK_OK(pthread_mutex_clocklock(&shared.m, clock, &later)); break;
      case 3:
        while (pthread_mutex_trylock(&shared.m) != 0) sched_yield();
        break;
      default: CHECK_OK(pthread_mutex_lock(&shared.m));
    }
    CHECK_EQ(++shared.inside, 1);
    long before = shared.counter;
    for (long y = 0; y < shared.yields; y++) sched_yield();
    shared.counter = before + 1;
    shared.by_thread[id]++;
    CHECK_EQ(--shared.inside, 0);
    CHECK_OK(pthread_mutex_unlock(&shared.m));
  }
  return NULL;
}

static void contend(int kind, int threads, long rounds, long yields) {
  pthread_t t[64];
  memset(&shared, 0, sizeof shared);
  shared.m = make(kind);
  shared.rounds = rounds;
  shared.yields = yields;
  for (long i = 0; i < threads; i++) t[i] = start(count_up, (void *)i);
  for (int i = 0; i < threads; i++) join(t[i]);
  CHECK_EQ(shared.counter, threads * rounds);
  CHECK_OK(pthread_mutex_destroy(&shared.m));
}

static const int kinds[] = {PTHREAD_MUTEX_NORMAL, PTHREAD_MUTEX_RECURSIVE, PTHREAD_MUTEX_ERRORCHECK,
                            PTHREAD_MUTEX_ADAPTIVE_NP};

static void contended_by_two(void **state) {
  (void)state;
  for (int k = 0; k < 4; k++) contend(kinds[k], 2, 10000, 0);
}

static void contended_by_eight(void **state) {
  (void)state;
  for (int k = 0; k < 4; k++) contend(kinds[k], 8, 1500, 0);
}

static void contended_by_sixty_four(void **state) {
  (void)state;
  for (int k = 0; k < 4; k++) contend(kinds[k], 64, 100, 0);
}

static void held_over_yields(void **state) {
  (void)state;
  for (int k = 0; k < 4; k++) contend(kinds[k], 16, 20, 3);
}

// A greedy thread re-locks at once, for ever; each of the others must get its turn.
static int greedy_stop, turns_taken;
static pthread_mutex_t wanted = PTHREAD_MUTEX_INITIALIZER;
static void *be_greedy(void *arg) {
  while (!LOAD(&greedy_stop)) {
    pthread_mutex_lock(&wanted);
    for (volatile int spin = 0; spin < 200; spin++) {
    }
    pthread_mutex_unlock(&wanted);
  }
  return arg;
}
static void *want_a_turn(void *arg) {
  for (int i = 0; i < 5; i++) {
    pthread_mutex_lock(&wanted);
    pthread_mutex_unlock(&wanted);
  }
  ADD(&turns_taken, 1);
  return arg;
}

static void everyone_progresses(void **state) {
  (void)state;
  pthread_t greedy[2], modest[20];
  STORE(&greedy_stop, 0);
  STORE(&turns_taken, 0);
  for (int i = 0; i < 2; i++) greedy[i] = start(be_greedy, NULL);
  for (int i = 0; i < 20; i++) modest[i] = start(want_a_turn, NULL);
  AWAIT(LOAD(&turns_taken) == 20);
  STORE(&greedy_stop, 1);
  for (int i = 0; i < 20; i++) join(modest[i]);
  for (int i = 0; i < 2; i++) join(greedy[i]);
}

// Unlocked by one thread, destroyed and scribbled over by the next to hold it: unlock must not
// touch the memory once another could have got in.
struct counted {
  pthread_mutex_t m;
  int users;
};
static void *release_user(void *arg) {
  struct counted *c = arg;
  pthread_mutex_lock(&c->m);
  int left = --c->users;
  pthread_mutex_unlock(&c->m);
  if (left == 0) {
    CHECK_OK(pthread_mutex_destroy(&c->m));
    memset(c, 0xff, sizeof *c);
    free(c);
  }
  return NULL;
}

static void freed_by_the_last_user(void **state) {
  (void)state;
  for (int round = 0; round < 300; round++) {
    struct counted *c = malloc(sizeof *c);
    pthread_mutex_init(&c->m, NULL);
    c->users = 3;
    pthread_t a = start(release_user, c), b = start(release_user, c);
    release_user(c);
    join(a);
    join(b);
  }
}

// Hand over a locked mutex between threads in a ring: unlocked by another than its locker.
enum { kRing = 10 };
static pthread_mutex_t ring[kRing];
static long ring_rounds;
static void *pass_on(void *arg) {
  long id = (long)arg;
  for (int i = 0; i < 100; i++) {
    CHECK_OK(pthread_mutex_lock(&ring[id]));
    ring_rounds++;
    CHECK_OK(pthread_mutex_unlock(&ring[(id + 1) % kRing]));
  }
  return NULL;
}

static void ring_of_foreign_unlocks(void **state) {
  (void)state;
  pthread_t t[kRing];
  for (int i = 0; i < kRing; i++) {
    CHECK_OK(pthread_mutex_init(&ring[i], NULL));
    if (i) CHECK_OK(pthread_mutex_lock(&ring[i]));
  }
  ring_rounds = 0;
  for (long i = 0; i < kRing; i++) t[i] = start(pass_on, (void *)i);
  for (int i = 0; i < kRing; i++) join(t[i]);
  CHECK_EQ(ring_rounds, 100 * kRing);
}

// Philosophers on neighbouring mutexes of one array: many addresses, mixed waits.
enum { kSeats = 200 };
static pthread_mutex_t forks[kSeats];
static long meals;
static void *dine(void *arg) {
  long seat = (long)arg, low = seat, high = (seat + 1) % kSeats;
  if (low > high) low = high, high = seat;
  for (int i = 0; i < 20; i++) {
    pthread_mutex_lock(&forks[low]);
    sched_yield();
    pthread_mutex_lock(&forks[high]);
    ADD(&meals, 1);
    pthread_mutex_unlock(&forks[high]);
    pthread_mutex_unlock(&forks[low]);
  }
  return NULL;
}

static void dining_philosophers(void **state) {
  (void)state;
  pthread_t t[kSeats];
  for (int i = 0; i < kSeats; i++) forks[i] = make(kinds[i % 4]);
  for (long i = 0; i < kSeats; i++) t[i] = start(dine, (void *)i);
  for (int i = 0; i < kSeats; i++) join(t[i]);
  CHECK_EQ(meals, 20 * kSeats);
}

static void *timed_loser(void *arg) {
  long got = 0;
  for (int i = 0; i < 200; i++) {
    struct timespec soon = in_us(CLOCK_MONOTONIC, i % 50);
    int error = pthread_mutex_clocklock(&shared.m, CLOCK_MONOTONIC, &soon);
    if (error == 0) {
      CHECK_EQ(++shared.inside, 1);
      sched_yield();
      CHECK_EQ(--shared.inside, 0);
      got++;
      CHECK_OK(pthread_mutex_unlock(&shared.m));
    } else {
      CHECK_EQ(error, ETIMEDOUT);
    }
  }
  (void)arg;
  return (void *)got;
}

// Timeouts racing unlocks: after all, nobody holds it and nobody is missed.
static void timeouts_racing_unlocks(void **state) {
  (void)state;
  pthread_t t[16];
  memset(&shared, 0, sizeof shared);
  shared.m = make(PTHREAD_MUTEX_NORMAL);
  for (int i = 0; i < 16; i++) t[i] = start(timed_loser, NULL);
  long got = 0;
  for (int i = 0; i < 16; i++) got += (long)join(t[i]);
  CHECK(got > 0);
  CHECK_OK(pthread_mutex_trylock(&shared.m));
  CHECK_OK(pthread_mutex_unlock(&shared.m));
  CHECK_OK(pthread_mutex_destroy(&shared.m));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(normal_kind),
      cmocka_unit_test(recursive_kind),
      cmocka_unit_test(recursion_limit),
      cmocka_unit_test(errorcheck_kind),
      cmocka_unit_test(adaptive_kind),
      cmocka_unit_test(attributes_and_bad_arguments),
      cmocka_unit_test(contended_by_two),
      cmocka_unit_test(contended_by_eight),
      cmocka_unit_test(contended_by_sixty_four),
      cmocka_unit_test(held_over_yields),
      cmocka_unit_test(everyone_progresses),
      cmocka_unit_test(freed_by_the_last_user),
      cmocka_unit_test(ring_of_foreign_unlocks),
      cmocka_unit_test(dining_philosophers),
      cmocka_unit_test(timeouts_racing_unlocks),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

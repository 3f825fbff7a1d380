// rwlock_test.c - family: pthread_rwlock_*: all preferences, timed and clock forms.
//
// Behaviours: who may be inside together; EBUSY, EDEADLK, ETIMEDOUT, EINVAL; recursive reading
// under each preference; a waiting writer stops new readers where the kind says so; nobody
// starves; timeouts racing unlocks; process-shared over fork; unlock hands over to all readers.
// Invariant: a writer inside is alone.
#include "abi.h"

static const int preferences[] = {PTHREAD_RWLOCK_PREFER_READER_NP, PTHREAD_RWLOCK_PREFER_WRITER_NP,
                                  PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP};

static void make(pthread_rwlock_t *l, int preference, int shared) {
  pthread_rwlockattr_t attr;
  int value = -1;
  CHECK_OK(pthread_rwlockattr_init(&attr));
  CHECK_OK(pthread_rwlockattr_setkind_np(&attr, preference));
  CHECK_OK(pthread_rwlockattr_getkind_np(&attr, &value));
  CHECK_EQ(value, preference);
  CHECK_OK(pthread_rwlockattr_setpshared(&attr, shared));
  CHECK_OK(pthread_rwlockattr_getpshared(&attr, &value));
  CHECK_EQ(value, shared);
  CHECK_OK(pthread_rwlock_init(l, &attr));
  CHECK_OK(pthread_rwlockattr_destroy(&attr));
}

enum { kRead, kWrite };
enum { kPlain, kTry, kTimed, kClockRealtime, kClockMonotonic, kForms };

static int take(pthread_rwlock_t *l, int side, int form, int64_t ms) {
  clockid_t clock = form == kClockMonotonic ? CLOCK_MONOTONIC : CLOCK_REALTIME;
  struct timespec when = in_ms(clock, ms);
  int error;
  switch (form) {
    case kPlain: return side ? pthread_rwlock_wrlock(l) : pthread_rwlock_rdlock(l);
    case kTry: return side ? pthread_rwlock_trywrlock(l) : pthread_rwlock_tryrdlock(l);
    case kTimed: error = side ? pthread_rwlock_timedwrlock(l, &when) : pthread_rwlock_timedrdlock(l, &when); break;
    default:
      error = side ? pthread_rwlock_clockwrlock(l, clock, &when) : pthread_rwlock_clockrdlock(l, clock, &when);
  }
  if (error == ETIMEDOUT) CHECK(is_past(clock, when));
  return error;
}

struct step {
  pthread_rwlock_t *l;
  int side, form;
};
static void *take_and_release(void *arg) {
  struct step *s = arg;
  int error = take(s->l, s->side, s->form, 2);
  if (!error) CHECK_OK(pthread_rwlock_unlock(s->l));
  return (void *)(intptr_t)error;
}
static int elsewhere(pthread_rwlock_t *l, int side, int form) {
  struct step s = {l, side, form};
  return (int)(intptr_t)join(start(take_and_release, &s));
}

static void who_may_be_inside(void **state) {
  (void)state;
  pthread_rwlock_t locks[5] = {PTHREAD_RWLOCK_INITIALIZER, PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP};
  for (int i = 0; i < 3; i++) make(&locks[2 + i], preferences[i], 0);
  for (int i = 0; i < 5; i++) {
    pthread_rwlock_t *l = &locks[i];
    for (int form = 0; form < kForms; form++) {
      CHECK_OK(take(l, kRead, form, 1000));
      for (int other = 0; other < kForms; other++) CHECK_OK(elsewhere(l, kRead, other));
      CHECK_EQ(elsewhere(l, kWrite, kTry), EBUSY);
      for (int other = kTimed; other < kForms; other++) CHECK_EQ(elsewhere(l, kWrite, other), ETIMEDOUT);
      CHECK_OK(pthread_rwlock_unlock(l));

      CHECK_OK(take(l, kWrite, form, 1000));
      CHECK_EQ(elsewhere(l, kRead, kTry), EBUSY);
      CHECK_EQ(elsewhere(l, kWrite, kTry), EBUSY);
      CHECK_EQ(elsewhere(l, kRead, kTimed + form % 3), ETIMEDOUT);
      CHECK_EQ(elsewhere(l, kWrite, kTimed + form % 3), ETIMEDOUT);
      CHECK_OK(pthread_rwlock_unlock(l));
      CHECK_OK(elsewhere(l, kWrite, form));
    }
    CHECK_OK(pthread_rwlock_destroy(l));
  }
}

static void own_relocks(void **state) {
  (void)state;
  pthread_rwlock_t l;
  for (int i = 0; i < 3; i++) {
    make(&l, preferences[i], 0);
    CHECK_OK(pthread_rwlock_wrlock(&l));
    CHECK_EQ(pthread_rwlock_wrlock(&l), EDEADLK);
    CHECK_EQ(pthread_rwlock_rdlock(&l), EDEADLK);
    CHECK_EQ(take(&l, kRead, kTimed, 1), EDEADLK);
    CHECK_EQ(take(&l, kWrite, kClockMonotonic, 1), EDEADLK);
    CHECK_EQ(pthread_rwlock_tryrdlock(&l), EBUSY);
    CHECK_EQ(pthread_rwlock_trywrlock(&l), EBUSY);
    CHECK_OK(pthread_rwlock_unlock(&l));
    for (int n = 0; n < 10; n++) CHECK_OK(n & 1 ? pthread_rwlock_rdlock(&l) : pthread_rwlock_tryrdlock(&l));
    CHECK_EQ(pthread_rwlock_trywrlock(&l), EBUSY);
    for (int n = 0; n < 10; n++) CHECK_OK(pthread_rwlock_unlock(&l));
    CHECK_OK(pthread_rwlock_trywrlock(&l));
    CHECK_OK(pthread_rwlock_unlock(&l));
    CHECK_OK(pthread_rwlock_destroy(&l));
  }
}

static void bad_arguments(void **state) {
  (void)state;
  pthread_rwlock_t l = PTHREAD_RWLOCK_INITIALIZER;
  pthread_rwlockattr_t attr;
  struct timespec bad = {0, 1000000000};
  CHECK_EQ(pthread_rwlock_timedrdlock(&l, &bad), EINVAL);
  CHECK_EQ(pthread_rwlock_timedwrlock(&l, &bad), EINVAL);
  bad.tv_nsec = -1;
  CHECK_EQ(pthread_rwlock_clockrdlock(&l, CLOCK_MONOTONIC, &bad), EINVAL);
  bad.tv_nsec = 0;
  CHECK_EQ(pthread_rwlock_clockwrlock(&l, CLOCK_PROCESS_CPUTIME_ID, &bad), EINVAL);
  CHECK_OK(pthread_rwlock_timedwrlock(&l, &bad));  // free: a time in the past does not matter
  CHECK_OK(pthread_rwlock_unlock(&l));
  CHECK_OK(pthread_rwlockattr_init(&attr));
  CHECK_EQ(pthread_rwlockattr_setkind_np(&attr, 44), EINVAL);
  CHECK_EQ(pthread_rwlockattr_setpshared(&attr, 44), EINVAL);
  CHECK_OK(pthread_rwlockattr_destroy(&attr));
}

// Whether a waiting writer keeps new readers out. The writer is known to wait when
// tryrdlock starts to fail (writer preferred), else the question does not arise.
static pthread_rwlock_t lock;
static int writer_in;
static void *write_once(void *arg) {
  CHECK_OK(pthread_rwlock_wrlock(&lock));
  STORE(&writer_in, 1);
  CHECK_OK(pthread_rwlock_unlock(&lock));
  return arg;
}

static void waiting_writer_stops_readers(void **state) {
  (void)state;
  for (int round = 0; round < 20; round++) {
    make(&lock, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP, 0);
    writer_in = 0;
    CHECK_OK(pthread_rwlock_rdlock(&lock));
    pthread_t t = start(write_once, NULL);
    int error;
    while ((error = pthread_rwlock_tryrdlock(&lock)) == 0) {
      CHECK_OK(pthread_rwlock_unlock(&lock));
      sched_yield();
    }
    CHECK_EQ(error, EBUSY);
    CHECK_EQ(LOAD(&writer_in), 0);
    CHECK_EQ(elsewhere(&lock, kRead, kTimed), ETIMEDOUT);
    CHECK_OK(pthread_rwlock_unlock(&lock));
    join(t);
    CHECK_EQ(LOAD(&writer_in), 1);
    CHECK_OK(pthread_rwlock_tryrdlock(&lock));
    CHECK_OK(pthread_rwlock_unlock(&lock));
    CHECK_OK(pthread_rwlock_destroy(&lock));
  }
}

static void waiting_writer_lets_readers_in_otherwise(void **state) {
  (void)state;
  for (int round = 0; round < 20; round++) {
    make(&lock, preferences[round & 1], 0);  // the second kind is the first one natively
    writer_in = 0;
    CHECK_OK(pthread_rwlock_rdlock(&lock));
    pthread_t t = start(write_once, NULL);
    yield_some(20);
    for (int i = 0; i < 5; i++) {
      CHECK_OK(pthread_rwlock_rdlock(&lock));
      CHECK_OK(elsewhere(&lock, kRead, kPlain));
      CHECK_OK(pthread_rwlock_unlock(&lock));
    }
    CHECK_EQ(LOAD(&writer_in), 0);
    CHECK_OK(pthread_rwlock_unlock(&lock));
    join(t);
    CHECK_OK(pthread_rwlock_destroy(&lock));
  }
}

// A writer that times out must let in the readers it kept waiting.
static void *write_in_vain(void *arg) {
  CHECK_EQ(take(&lock, kWrite, kClockMonotonic, (intptr_t)arg), ETIMEDOUT);
  return NULL;
}
static void *read_once(void *arg) {
  CHECK_OK(pthread_rwlock_rdlock(&lock));
  CHECK_OK(pthread_rwlock_unlock(&lock));
  return arg;
}

static void timed_out_writer_releases_readers(void **state) {
  (void)state;
  for (int round = 0; round < 10; round++) {
    make(&lock, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP, 0);
    CHECK_OK(pthread_rwlock_rdlock(&lock));
    pthread_t writer = start(write_in_vain, (void *)5), readers[4];
    for (int i = 0; i < 4; i++) readers[i] = start(read_once, NULL);
    join(writer);
    for (int i = 0; i < 4; i++) join(readers[i]);  // while we still read
    CHECK_OK(pthread_rwlock_unlock(&lock));
  }
}

// All readers blocked by one writer come in together: each waits for the others inside.
static int together;
static void *meet_inside(void *arg) {
  CHECK_OK(take(&lock, kRead, (int)(intptr_t)arg % 2 ? kPlain : kClockMonotonic, 60000));
  ADD(&together, 1);
  AWAIT(LOAD(&together) == 20);
  CHECK_OK(pthread_rwlock_unlock(&lock));
  return NULL;
}

static void unlock_lets_all_readers_in(void **state) {
  (void)state;
  for (int k = 0; k < 3; k++) {
    pthread_t t[20];
    make(&lock, preferences[k], 0);
    CHECK_OK(pthread_rwlock_wrlock(&lock));
    together = 0;
    for (long i = 0; i < 20; i++) t[i] = start(meet_inside, (void *)i);
    yield_some(50);
    CHECK_EQ(LOAD(&together), 0);
    CHECK_OK(pthread_rwlock_unlock(&lock));
    for (int i = 0; i < 20; i++) join(t[i]);
  }
}

struct mixed {
  pthread_rwlock_t l;
  int readers, writers;
  long value, copy, reads, writes;
};

static void read_inside(struct mixed *m, int yields) {
  ADD(&m->readers, 1);
  CHECK_EQ(LOAD(&m->writers), 0);
  CHECK_EQ(m->value, m->copy);
  yield_some(yields);
  CHECK_EQ(m->value, m->copy);
  ADD(&m->reads, 1);
  ADD(&m->readers, -1);
}

static void write_inside(struct mixed *m, int yields) {
  CHECK_EQ(ADD(&m->writers, 1), 1);
  CHECK_EQ(LOAD(&m->readers), 0);
  m->value++;
  yield_some(yields);
  m->copy++;
  m->writes++;
  ADD(&m->writers, -1);
}

static struct mixed *mixed;
static void *read_and_write(void *arg) {
  unsigned seed = (unsigned)(intptr_t)arg;
  for (int i = 0; i < 100; i++) {
    int side = rand_r(&seed) % 4 == 0 ? kWrite : kRead, form = (int)(rand_r(&seed) % kForms);
    int error;
    while ((error = take(&mixed->l, side, form, 60000)) == EBUSY) sched_yield();
    CHECK_OK(error);
    if (side == kWrite) write_inside(mixed, i % 8 == 0);
    else read_inside(mixed, i % 8 == 0);
    CHECK_OK(pthread_rwlock_unlock(&mixed->l));
  }
  return NULL;
}

static void mix(int threads) {
  pthread_t t[64];
  for (long i = 0; i < threads; i++) t[i] = start(read_and_write, (void *)(i + 1));
  for (int i = 0; i < threads; i++) join(t[i]);
}

static void readers_and_writers_mixed(void **state) {
  (void)state;
  for (int k = 0; k < 3; k++) {
    struct mixed m = {.value = 0};
    mixed = &m;
    make(&m.l, preferences[k], 0);
    mix(k == 0 ? 40 : 16);
    CHECK_EQ(m.value, m.writes);
    CHECK_EQ(m.reads + m.writes, (k == 0 ? 40 : 16) * 100);
    CHECK_OK(pthread_rwlock_destroy(&m.l));
  }
}

static int mix_in_child(void *arg) {
  mixed = arg;
  mix(8);
  return 0;
}

static void shared_between_processes(void **state) {
  (void)state;
  for (int k = 0; k < 3; k += 2) {
    mixed = shared_memory(sizeof *mixed);
    make(&mixed->l, preferences[k], PTHREAD_PROCESS_SHARED);
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) _exit(mix_in_child(mixed));
    mix(8);
    int status;
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    CHECK_OK(status);
    CHECK_EQ(mixed->reads + mixed->writes, 1600);
    CHECK_EQ(mixed->value, mixed->writes);
  }
}

// Writers get their turn among readers that overlap all the time, where writers are preferred.
static int stop_reading;
static void *read_all_the_time(void *arg) {
  while (!LOAD(&stop_reading)) {
    CHECK_OK(pthread_rwlock_rdlock(&lock));
    sched_yield();
    CHECK_OK(pthread_rwlock_unlock(&lock));
  }
  return arg;
}

static void writers_are_not_starved(void **state) {
  (void)state;
  pthread_t readers[6];
  make(&lock, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP, 0);
  STORE(&stop_reading, 0);
  for (int i = 0; i < 6; i++) readers[i] = start(read_all_the_time, NULL);
  for (int i = 0; i < 50; i++) {
    CHECK_OK(pthread_rwlock_wrlock(&lock));
    CHECK_OK(pthread_rwlock_unlock(&lock));
  }
  STORE(&stop_reading, 1);
  for (int i = 0; i < 6; i++) join(readers[i]);
}

static long granted;
static void *race_timeouts(void *arg) {
  unsigned seed = (unsigned)(intptr_t)arg + 3;
  for (int i = 0; i < 150; i++) {
    int side = (int)(rand_r(&seed) % 2);
    struct timespec soon = in_us(CLOCK_MONOTONIC, rand_r(&seed) % 50);
    int error = side ? pthread_rwlock_clockwrlock(&lock, CLOCK_MONOTONIC, &soon)
                     : pthread_rwlock_clockrdlock(&lock, CLOCK_MONOTONIC, &soon);
    if (error == 0) {
      ADD(&granted, 1);
      if (i % 2) sched_yield();
      CHECK_OK(pthread_rwlock_unlock(&lock));
    } else {
      CHECK_EQ(error, ETIMEDOUT);
    }
  }
  return NULL;
}

static void timeouts_racing_unlocks(void **state) {
  (void)state;
  for (int k = 0; k < 3; k++) {
    pthread_t t[12];
    make(&lock, preferences[k], 0);
    for (long i = 0; i < 12; i++) t[i] = start(race_timeouts, (void *)i);
    for (int i = 0; i < 12; i++) join(t[i]);
    CHECK_OK(pthread_rwlock_trywrlock(&lock));  // nobody was forgotten inside
    CHECK_OK(pthread_rwlock_unlock(&lock));
    CHECK_OK(pthread_rwlock_destroy(&lock));
  }
  CHECK(granted > 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(who_may_be_inside),
      cmocka_unit_test(own_relocks),
      cmocka_unit_test(bad_arguments),
      cmocka_unit_test(waiting_writer_stops_readers),
      cmocka_unit_test(waiting_writer_lets_readers_in_otherwise),
      cmocka_unit_test(timed_out_writer_releases_readers),
      cmocka_unit_test(unlock_lets_all_readers_in),
      cmocka_unit_test(readers_and_writers_mixed),
      cmocka_unit_test(shared_between_processes),
      cmocka_unit_test(writers_are_not_starved),
      cmocka_unit_test(timeouts_racing_unlocks),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

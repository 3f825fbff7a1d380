// sync_mix.c - stress: 200 threads use all kinds of primitives at random.
//
// Invariants checked: mutual exclusion and counts of every mutex, rwlock and spin lock; units
// of every semaphore and cond queue are conserved; once runs once; timed forms never
// return early. Usage: sync_mix [seed [seconds]].
#include "stress.h"

#include <semaphore.h>

enum { kThreads = 200, kObjects = 8 };

static struct {
  pthread_mutex_t m;
  long counter, expected, inside;
} mutexes[kObjects];

static struct {
  pthread_rwlock_t l;
  long counter, expected, writers, readers;
} rwlocks[kObjects];

static struct {
  pthread_spinlock_t l;
  long counter, expected;
} spins[kObjects];

static struct {
  sem_t s;
  long posted, taken;
} sems[kObjects];

static struct {
  pthread_mutex_t m;
  pthread_cond_t c;
  long units, put, taken;
} queues[kObjects];

static struct {
  pthread_once_t once;
  long runs;
} once[64];
static __thread int once_index;
static int once_next;
static long steps;

static void use_mutex(Random *r) {
  int i = below(r, kObjects), error = 0;
  struct timespec when = in_us(CLOCK_MONOTONIC, below(r, 300)), real = in_us(CLOCK_REALTIME, below(r, 300));
  switch (below(r, 4)) {
    case 0: error = pthread_mutex_lock(&mutexes[i].m); break;
    case 1: error = pthread_mutex_trylock(&mutexes[i].m); break;
    case 2: error = pthread_mutex_timedlock(&mutexes[i].m, &real); break;
    default: error = pthread_mutex_clocklock(&mutexes[i].m, CLOCK_MONOTONIC, &when);
  }
  if (error) {
    CHECK(error == EBUSY || error == ETIMEDOUT);
    return;
  }
  CHECK_EQ(++mutexes[i].inside, 1);
  long before = mutexes[i].counter;
  if (below(r, 8) == 0) sched_yield();
  mutexes[i].counter = before + 1;
  ADD(&mutexes[i].expected, 1);
  CHECK_EQ(--mutexes[i].inside, 0);
  CHECK_OK(pthread_mutex_unlock(&mutexes[i].m));
}

static void use_rwlock(Random *r) {
  int i = below(r, kObjects), write = below(r, 4) == 0, form = below(r, 3), error;
  pthread_rwlock_t *l = &rwlocks[i].l;
  struct timespec when = in_us(CLOCK_MONOTONIC, below(r, 300));
  if (write)
    error = form == 0   ? pthread_rwlock_wrlock(l)
            : form == 1 ? pthread_rwlock_trywrlock(l)
                        : pthread_rwlock_clockwrlock(l, CLOCK_MONOTONIC, &when);
  else
    error = form == 0   ? pthread_rwlock_rdlock(l)
            : form == 1 ? pthread_rwlock_tryrdlock(l)
                        : pthread_rwlock_clockrdlock(l, CLOCK_MONOTONIC, &when);
  if (error) {
    CHECK(error == EBUSY || error == ETIMEDOUT);
    return;
  }
  if (write) {
    CHECK_EQ(ADD(&rwlocks[i].writers, 1), 1);
    CHECK_EQ(LOAD(&rwlocks[i].readers), 0);
    rwlocks[i].counter++;
    if (below(r, 8) == 0) sched_yield();
    ADD(&rwlocks[i].expected, 1);
    ADD(&rwlocks[i].writers, -1);
  } else {
    ADD(&rwlocks[i].readers, 1);
    CHECK_EQ(LOAD(&rwlocks[i].writers), 0);
    if (below(r, 8) == 0) sched_yield();
    ADD(&rwlocks[i].readers, -1);
  }
  CHECK_OK(pthread_rwlock_unlock(l));
}

static void use_spin(Random *r) {
  int i = below(r, kObjects);
  if (below(r, 2)) CHECK_OK(pthread_spin_lock(&spins[i].l));
  else if (pthread_spin_trylock(&spins[i].l) != 0) return;
  spins[i].counter++;
  CHECK_OK(pthread_spin_unlock(&spins[i].l));
  ADD(&spins[i].expected, 1);
}

// Waits are timed, so that no plan of the others is needed for an end.
static void use_sem(Random *r) {
  int i = below(r, kObjects);
  if (below(r, 2)) {
    ADD(&sems[i].posted, 1);
    CHECK_OK(sem_post(&sems[i].s));
    return;
  }
  struct timespec when = in_us(CLOCK_MONOTONIC, below(r, 500));
  if (sem_clockwait(&sems[i].s, CLOCK_MONOTONIC, &when) == 0) ADD(&sems[i].taken, 1);
  else CHECK(errno == ETIMEDOUT && is_past(CLOCK_MONOTONIC, when));
}

static void use_queue(Random *r) {
  int i = below(r, kObjects), outside = below(r, 2);
  if (below(r, 2)) {
    CHECK_OK(pthread_mutex_lock(&queues[i].m));
    queues[i].units++;
    queues[i].put++;
    if (!outside) CHECK_OK(pthread_cond_signal(&queues[i].c));
    CHECK_OK(pthread_mutex_unlock(&queues[i].m));
    if (outside) CHECK_OK(below(r, 4) ? pthread_cond_signal(&queues[i].c) : pthread_cond_broadcast(&queues[i].c));
    return;
  }
  struct timespec when = in_us(CLOCK_MONOTONIC, below(r, 500));
  CHECK_OK(pthread_mutex_lock(&queues[i].m));
  int error = 0;
  while (queues[i].units == 0 && error == 0)
    error = pthread_cond_clockwait(&queues[i].c, &queues[i].m, CLOCK_MONOTONIC, &when);
  if (queues[i].units > 0) {
    queues[i].units--;
    queues[i].taken++;
  } else {
    CHECK(error == ETIMEDOUT && is_past(CLOCK_MONOTONIC, when));
  }
  CHECK_OK(pthread_mutex_unlock(&queues[i].m));
}

static void run_once(void) {
  int i = once_index;
  sched_yield();
  ADD(&once[i].runs, 1);
}
static void use_once(Random *r) {
  int next = LOAD(&once_next), i = next < 64 ? next : below(r, 64);
  once_index = i;
  CHECK_OK(pthread_once(&once[i].once, run_once));
  CHECK_EQ(LOAD(&once[i].runs), 1);
  if (below(r, 50) == 0 && next < 64) ADD(&once_next, 1);
}

static void sleep_or_yield(Random *r) {
  struct timespec length = to_timespec(below(r, 100000));
  if (below(r, 2)) CHECK_OK(nanosleep(&length, NULL));
  else sched_yield();
}

static void *use_all(void *arg) {
  Random r = random_stream((uint64_t)(uintptr_t)arg);
  void (*const uses[])(Random *) = {use_mutex, use_rwlock, use_spin, use_sem, use_queue, use_once, sleep_or_yield};
  while (time_left()) {
    uses[below(&r, 7)](&r);
    ADD(&steps, 1);
  }
  return NULL;
}

static void init(void) {
  const int kinds[] = {PTHREAD_MUTEX_NORMAL, PTHREAD_MUTEX_RECURSIVE, PTHREAD_MUTEX_ERRORCHECK, PTHREAD_MUTEX_ADAPTIVE_NP};
  for (int i = 0; i < kObjects; i++) {
    pthread_mutexattr_t attr;
    pthread_rwlockattr_t rw;
    CHECK_OK(pthread_mutexattr_init(&attr));
    CHECK_OK(pthread_mutexattr_settype(&attr, kinds[i % 4]));
    CHECK_OK(pthread_mutex_init(&mutexes[i].m, &attr));
    CHECK_OK(pthread_rwlockattr_init(&rw));
    CHECK_OK(pthread_rwlockattr_setkind_np(&rw, i % 3));
    CHECK_OK(pthread_rwlock_init(&rwlocks[i].l, &rw));
    CHECK_OK(pthread_spin_init(&spins[i].l, 0));
    CHECK_OK(sem_init(&sems[i].s, 0, 0));
    CHECK_OK(pthread_mutex_init(&queues[i].m, NULL));
    CHECK_OK(pthread_cond_init(&queues[i].c, NULL));
  }
  for (int i = 0; i < 64; i++) once[i].once = (pthread_once_t)PTHREAD_ONCE_INIT;
}

int main(int argc, char **argv) {
  pthread_t t[kThreads];
  stress_begin(argc, argv, 5);
  init();
  for (intptr_t i = 0; i < kThreads; i++) t[i] = start(use_all, (void *)i);
  for (int i = 0; i < kThreads; i++) join(t[i]);
  for (int i = 0; i < kObjects; i++) {
    int value;
    CHECK_EQ(mutexes[i].counter, mutexes[i].expected);
    CHECK_EQ(rwlocks[i].counter, rwlocks[i].expected);
    CHECK_EQ(spins[i].counter, spins[i].expected);
    CHECK_OK(sem_getvalue(&sems[i].s, &value));
    CHECK_EQ(sems[i].taken + value, sems[i].posted);
    CHECK_EQ(queues[i].taken + queues[i].units, queues[i].put);
    CHECK_OK(pthread_mutex_trylock(&mutexes[i].m));
    CHECK_OK(pthread_rwlock_trywrlock(&rwlocks[i].l));
    CHECK_OK(pthread_spin_trylock(&spins[i].l));
  }
  printf("%ld steps, all accounts balance\n", steps);
  return 0;
}

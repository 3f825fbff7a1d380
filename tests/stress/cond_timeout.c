// cond_timeout.c - stress: timeouts racing signals, with exact accounting.
//
// Invariants checked: every unit put is taken exactly once; a waiter without timeout is never
// left asleep while a unit lies there and nobody else is about to take it (the run
// would hang); no timeout is early; the same for semaphores and raw futexes.
// Usage: cond_timeout [seed [seconds]].
#include "stress.h"

#include <linux/futex.h>
#include <semaphore.h>

enum { kQueues = 4, kTimed = 6, kPatient = 2, kPutters = 3 };

static struct queue {
  pthread_mutex_t m;
  pthread_cond_t c;
  long units, put, taken, timeouts, waiting;
  int closed;
} queues[kQueues];

static void *take_timed(void *arg) {
  Random r = random_stream((uint64_t)(uintptr_t)arg);
  struct queue *q = &queues[(uintptr_t)arg % kQueues];
  CHECK_OK(pthread_mutex_lock(&q->m));
  while (!q->closed) {
    int realtime = below(&r, 2), error = 0;
    struct timespec when = in_us(realtime ? CLOCK_REALTIME : CLOCK_MONOTONIC, below(&r, 150) - 10);
    while (q->units == 0 && !q->closed && error == 0)
      error = pthread_cond_clockwait(&q->c, &q->m, realtime ? CLOCK_REALTIME : CLOCK_MONOTONIC, &when);
    if (error) {
      CHECK_EQ(error, ETIMEDOUT);
      CHECK(is_past(realtime ? CLOCK_REALTIME : CLOCK_MONOTONIC, when));
      q->timeouts++;
    }
    if (q->units > 0) {
      q->units--;
      q->taken++;
    }
    if (below(&r, 4) == 0) {
      CHECK_OK(pthread_mutex_unlock(&q->m));
      if (below(&r, 2)) sched_yield();
      CHECK_OK(pthread_mutex_lock(&q->m));
    }
  }
  CHECK_OK(pthread_mutex_unlock(&q->m));
  return NULL;
}

static void *take_patiently(void *arg) {
  struct queue *q = &queues[(uintptr_t)arg % kQueues];
  CHECK_OK(pthread_mutex_lock(&q->m));
  for (;;) {
    while (q->units == 0 && !q->closed) CHECK_OK(pthread_cond_wait(&q->c, &q->m));
    if (q->units == 0) break;
    q->units--;
    q->taken++;
  }
  CHECK_OK(pthread_mutex_unlock(&q->m));
  return NULL;
}

// Puts one unit, one signal, and every so often waits until all units are gone: with a lost
// signal and only patient waiters left this would never come to pass.
static void *put_units(void *arg) {
  Random r = random_stream((uint64_t)(uintptr_t)arg + 1000);
  while (time_left()) {
    struct queue *q = &queues[below(&r, kQueues)];
    int outside = below(&r, 2);
    CHECK_OK(pthread_mutex_lock(&q->m));
    q->units++;
    q->put++;
    if (!outside) CHECK_OK(pthread_cond_signal(&q->c));
    CHECK_OK(pthread_mutex_unlock(&q->m));
    if (outside) CHECK_OK(pthread_cond_signal(&q->c));
    if (below(&r, 16) == 0) AWAIT(LOAD(&q->units) == 0);
    if (below(&r, 4) == 0) sched_yield();
  }
  return NULL;
}

static sem_t sem;
static long sem_posts, sem_takes;
static void *race_sem(void *arg) {
  Random r = random_stream((uint64_t)(uintptr_t)arg + 2000);
  while (time_left()) {
    if (below(&r, 2)) {
      ADD(&sem_posts, 1);
      CHECK_OK(sem_post(&sem));
    } else {
      struct timespec when = in_us(CLOCK_REALTIME, below(&r, 100));
      if (sem_timedwait(&sem, &when) == 0) ADD(&sem_takes, 1);
      else CHECK(errno == ETIMEDOUT && is_past(CLOCK_REALTIME, when));
    }
  }
  return NULL;
}

static unsigned word;
static long wakes, woken;
static void *race_futex(void *arg) {
  Random r = random_stream((uint64_t)(uintptr_t)arg + 3000);
  while (time_left()) {
    if (below(&r, 2)) {
      long n = syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 1 + below(&r, 2), NULL, NULL, 0);
      CHECK(n >= 0 && n <= 2);
      ADD(&wakes, n);
      if (!n) sched_yield();
    } else {
      struct timespec length = to_timespec(below(&r, 100000));
      long n = syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &length, NULL, 0);
      if (n == 0) ADD(&woken, 1);
      else CHECK_EQ(errno, ETIMEDOUT);
    }
  }
  return NULL;
}

int main(int argc, char **argv) {
  pthread_t takers[kQueues * (kTimed + kPatient)], putters[kPutters], sems[4], futexes[4];
  stress_begin(argc, argv, 5);
  CHECK_OK(sem_init(&sem, 0, 0));
  for (int i = 0; i < kQueues; i++) {
    CHECK_OK(pthread_mutex_init(&queues[i].m, NULL));
    CHECK_OK(pthread_cond_init(&queues[i].c, NULL));
  }
  for (intptr_t i = 0; i < kQueues * (kTimed + kPatient); i++)
    takers[i] = start(i < kQueues * kTimed ? take_timed : take_patiently, (void *)i);
  for (intptr_t i = 0; i < kPutters; i++) putters[i] = start(put_units, (void *)i);
  for (intptr_t i = 0; i < 4; i++) {
    sems[i] = start(race_sem, (void *)i);
    futexes[i] = start(race_futex, (void *)i);
  }
  for (int i = 0; i < kPutters; i++) join(putters[i]);
  for (int i = 0; i < 4; i++) {
    join(sems[i]);
    join(futexes[i]);
  }
  long put = 0, timeouts = 0;
  for (int i = 0; i < kQueues; i++) {
    AWAIT(LOAD(&queues[i].units) == 0);
    CHECK_OK(pthread_mutex_lock(&queues[i].m));
    queues[i].closed = 1;
    CHECK_OK(pthread_cond_broadcast(&queues[i].c));
    CHECK_OK(pthread_mutex_unlock(&queues[i].m));
  }
  for (int i = 0; i < kQueues * (kTimed + kPatient); i++) join(takers[i]);
  for (int i = 0; i < kQueues; i++) {
    CHECK_EQ(queues[i].taken, queues[i].put);
    put += queues[i].put;
    timeouts += queues[i].timeouts;
  }
  int value;
  CHECK_OK(sem_getvalue(&sem, &value));
  CHECK_EQ(sem_takes + value, sem_posts);
  CHECK_EQ(woken, wakes);
  printf("%ld units, %ld timeouts, %ld posts, %ld futex wakes, all accounted for\n", put, timeouts, sem_posts, wakes);
  return 0;
}

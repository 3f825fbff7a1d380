// cond_handler_test.c - family: signals for threads that a condition has woken and that wait for the mutex.
//
// Behaviours: such a thread's handler runs at once, whoever holds the mutex and however long;
// it may run again and again; what it waits for inside may come only after the mutex has been
// passed on; the mutex is held after every return. A collector stops the world this way: it
// signals every thread, some of them just woken by a broadcast of its own, and waits for all
// handlers before it goes on.
//
// How it failed: a woken waiter stood in the mutex's queue where only an unlock could find it,
// and its handler had to wait for that (Mono's collector stopped for ever at one run in nine).
#include "abi.h"

#include <semaphore.h>

enum { kWaiters = 6 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
static pthread_t waiter[kWaiters];
static int waiting, go, returned, in_section;
static int handled, stops, resumed;
static sem_t resume;

static void note(int sig) {
  (void)sig;
  ADD(&handled, 1);
}

// Stays until it is told to go on, as a stopped thread does.
static void stop(int sig) {
  (void)sig;
  int saved = errno;
  ADD(&stops, 1);
  while (sem_wait(&resume) != 0) continue;
  ADD(&resumed, 1);
  errno = saved;
}

static void *wait_for_go(void *timed) {
  CHECK_OK(pthread_mutex_lock(&lock));
  waiting++;
  struct timespec far = in_ms(CLOCK_REALTIME, 600000);
  while (go == 0)
    CHECK_OK(timed != NULL ? pthread_cond_timedwait(&cond, &lock, &far) : pthread_cond_wait(&cond, &lock));
  CHECK_EQ(ADD(&in_section, 1), 1);
  yield_some(3);
  CHECK_EQ(ADD(&in_section, -1), 0);
  CHECK_EQ(pthread_mutex_trylock(&lock), EBUSY);
  returned++;
  CHECK_OK(pthread_mutex_unlock(&lock));
  return NULL;
}

static int locked_value(int *p) {
  CHECK_OK(pthread_mutex_lock(&lock));
  int value = *p;
  CHECK_OK(pthread_mutex_unlock(&lock));
  return value;
}

static void start_waiters(int timed) {
  waiting = go = returned = handled = stops = 0;
  CHECK_OK(sem_init(&resume, 0, 0));
  struct sigaction a = {.sa_flags = SA_RESTART};
  a.sa_handler = note;
  CHECK_OK(sigaction(SIGUSR1, &a, NULL));
  a.sa_handler = stop;
  CHECK_OK(sigaction(SIGUSR2, &a, NULL));
  for (int i = 0; i < kWaiters; i++) waiter[i] = start(wait_for_go, timed ? &waiting : NULL);
  AWAIT(locked_value(&waiting) == kWaiters);
}

static void join_waiters(void) {
  for (int i = 0; i < kWaiters; i++) join(waiter[i]);
  CHECK_EQ(returned, kWaiters);
}

static void signal_all(int sig) {
  for (int i = 0; i < kWaiters; i++) CHECK_OK(pthread_kill(waiter[i], sig));
}

static void handlers_run_while_the_waker_holds_the_mutex(void **state) {
  (void)state;
  for (int timed = 0; timed < 2; timed++) {
    start_waiters(timed);
    CHECK_OK(pthread_mutex_lock(&lock));
    go = 1;
    CHECK_OK(pthread_cond_broadcast(&cond));
    for (int round = 1; round <= 20; round++) {
      signal_all(SIGUSR1);
      AWAIT(LOAD(&handled) == round * kWaiters);
    }
    CHECK_EQ(returned, 0);
    CHECK_OK(pthread_mutex_unlock(&lock));
    join_waiters();
  }
}

static void handlers_run_while_one_signalled_at_a_time_waits(void **state) {
  (void)state;
  start_waiters(0);
  CHECK_OK(pthread_mutex_lock(&lock));
  go = 1;
  for (int i = 0; i < kWaiters; i++) {
    CHECK_OK(pthread_cond_signal(&cond));
    signal_all(SIGUSR1);
    AWAIT(LOAD(&handled) == (i + 1) * kWaiters);
  }
  CHECK_OK(pthread_mutex_unlock(&lock));
  join_waiters();
}

// Somebody else holds the mutex: one that was woken waits for it, the others behind that one.
static int held, let_go;
static void *hold(void *arg) {
  CHECK_OK(pthread_mutex_lock(&lock));
  go = 1;
  STORE(&held, 1);
  AWAIT(LOAD(&let_go));
  CHECK_OK(pthread_mutex_unlock(&lock));
  return arg;
}

static void handlers_run_while_another_holds_the_mutex(void **state) {
  (void)state;
  start_waiters(0);
  held = let_go = 0;
  pthread_t holder = start(hold, NULL);
  AWAIT(LOAD(&held));
  CHECK_OK(pthread_cond_broadcast(&cond));
  for (int round = 1; round <= 20; round++) {
    signal_all(SIGUSR1);
    AWAIT(LOAD(&handled) == round * kWaiters);
  }
  STORE(&let_go, 1);
  join(holder);
  join_waiters();
}

// The handlers are still in there when the mutex is given up, taken and given up again.
static void the_mutex_is_passed_to_stopped_threads(void **state) {
  (void)state;
  for (int round = 0; round < 20; round++) {
    start_waiters(round & 1);
    CHECK_OK(pthread_mutex_lock(&lock));
    go = 1;
    CHECK_OK(pthread_cond_broadcast(&cond));
    signal_all(SIGUSR2);
    AWAIT(LOAD(&stops) == kWaiters);
    CHECK_OK(pthread_mutex_unlock(&lock));
    if ((round & 2) != 0) {
      CHECK_OK(pthread_mutex_lock(&lock));
      CHECK_OK(pthread_mutex_unlock(&lock));
    }
    for (int i = 0; i < kWaiters; i++) CHECK_OK(sem_post(&resume));
    join_waiters();
  }
}

// The waker gives the mutex up by a wait of its own, which passes it to the first of the stopped ones.
static void a_wait_passes_the_mutex_to_a_stopped_thread(void **state) {
  (void)state;
  for (int round = 0; round < 20; round++) {
    start_waiters(0);
    CHECK_OK(pthread_mutex_lock(&lock));
    go = 1;
    CHECK_OK(pthread_cond_broadcast(&cond));
    signal_all(SIGUSR2);
    AWAIT(LOAD(&stops) == kWaiters);
    for (int i = 0; i < kWaiters; i++) CHECK_OK(sem_post(&resume));
    struct timespec soon = in_ms(CLOCK_REALTIME, 1);
    while (returned < kWaiters) {
      int err = pthread_cond_timedwait(&cond, &lock, &soon);
      CHECK(err == 0 || err == ETIMEDOUT);
      soon = in_ms(CLOCK_REALTIME, 1);
    }
    CHECK_OK(pthread_mutex_unlock(&lock));
    join_waiters();
  }
}

// All at once, without order: wakers with and without the mutex, one that stops everybody.
enum { kWorkers = 6, kStops = 300 };
static pthread_t worker[kWorkers];
static int turn, ending, shared_count;

static void *work(void *arg) {
  long mine = 0, id = (long)arg;
  CHECK_OK(pthread_mutex_lock(&lock));
  while (!LOAD(&ending)) {
    turn++;
    shared_count++;
    mine++;
    if (id % 2 == 0) CHECK_OK(pthread_cond_broadcast(&cond));
    else CHECK_OK(pthread_cond_signal(&cond));
    if (mine % 3 == 0) {
      CHECK_OK(pthread_mutex_unlock(&lock));
      CHECK_OK(pthread_cond_broadcast(&cond));
      CHECK_OK(pthread_mutex_lock(&lock));
    }
    int seen = turn;
    struct timespec soon = in_ms(CLOCK_REALTIME, 1);
    for (int err = 0; turn == seen && err == 0 && !LOAD(&ending);) {
      err = pthread_cond_timedwait(&cond, &lock, &soon);
      CHECK(err == 0 || err == ETIMEDOUT);
    }
    CHECK_EQ(ADD(&in_section, 1), 1);
    CHECK_EQ(ADD(&in_section, -1), 0);
  }
  CHECK_OK(pthread_mutex_unlock(&lock));
  return (void *)mine;
}

static void the_world_stops_among_wakers(void **state) {
  (void)state;
  stops = resumed = turn = ending = shared_count = 0;
  CHECK_OK(sem_init(&resume, 0, 0));
  struct sigaction a = {.sa_handler = stop, .sa_flags = SA_RESTART};
  CHECK_OK(sigaction(SIGUSR2, &a, NULL));
  for (long i = 0; i < kWorkers; i++) worker[i] = start(work, (void *)i);
  for (int round = 1; round <= kStops; round++) {
    for (int i = 0; i < kWorkers; i++) CHECK_OK(pthread_kill(worker[i], SIGUSR2));
    AWAIT(LOAD(&stops) == round * kWorkers);
    for (int i = 0; i < kWorkers; i++) CHECK_OK(sem_post(&resume));
    AWAIT(LOAD(&resumed) == round * kWorkers);
    yield_some(round % 7);
  }
  STORE(&ending, 1);
  long sum = 0;
  for (int i = 0; i < kWorkers; i++) {
    CHECK_OK(pthread_cond_broadcast(&cond));
    sum += (long)join(worker[i]);
  }
  CHECK_EQ(sum, shared_count);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(handlers_run_while_the_waker_holds_the_mutex),
      cmocka_unit_test(handlers_run_while_one_signalled_at_a_time_waits),
      cmocka_unit_test(handlers_run_while_another_holds_the_mutex),
      cmocka_unit_test(the_mutex_is_passed_to_stopped_threads),
      cmocka_unit_test(a_wait_passes_the_mutex_to_a_stopped_thread),
      cmocka_unit_test(the_world_stops_among_wakers),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

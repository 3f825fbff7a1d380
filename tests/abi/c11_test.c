// c11_test.c - family: C11 threads: thrd_*, mtx_*, cnd_*, tss_*, call_once.
//
// Behaviours: results (int) by join, thrd_exit, detach, current/equal, thrd_sleep with and
// without interruption; plain, timed, recursive mutexes; cnd signal, broadcast, timed wait;
// tss destructors; call_once among many; mixed with pthread calls on the same thread.
// Invariant: C11 threads are pthreads.
#include "abi.h"

#include <threads.h>

static int answer(void *arg) { return (int)(intptr_t)arg; }
static int exit_with(void *arg) {
  thrd_exit((int)(intptr_t)arg);
}

static int thread_result(thrd_start_t fn, void *arg) {
  thrd_t t;
  int result = -12345;
  CHECK_EQ(thrd_create(&t, fn, arg), thrd_success);
  CHECK_EQ(thrd_join(t, &result), thrd_success);
  return result;
}

static void results(void **state) {
  (void)state;
  const int values[] = {0, 1, -1, 77, INT_MAX, INT_MIN};
  for (int i = 0; i < 6; i++) {
    CHECK_EQ(thread_result(answer, (void *)(intptr_t)values[i]), values[i]);
    CHECK_EQ(thread_result(exit_with, (void *)(intptr_t)values[i]), values[i]);
  }
  thrd_t t;
  CHECK_EQ(thrd_create(&t, answer, NULL), thrd_success);
  CHECK_EQ(thrd_join(t, NULL), thrd_success);
}

static int is_current(void *arg) {
  CHECK(thrd_equal(thrd_current(), (thrd_t)pthread_self()));
  CHECK(!thrd_equal(thrd_current(), *(thrd_t *)arg));
  return 1;
}

static int done;
static int count_detached(void *arg) {
  ADD(&done, 1);
  return (int)(intptr_t)arg;
}

static void identity_and_detach(void **state) {
  (void)state;
  thrd_t me = thrd_current();
  CHECK(thrd_equal(me, thrd_current()));
  CHECK_EQ(thread_result(is_current, &me), 1);
  for (int i = 0; i < 200; i++) {
    thrd_t t;
    CHECK_EQ(thrd_create(&t, count_detached, NULL), thrd_success);
    CHECK_EQ(thrd_detach(t), thrd_success);
  }
  while (LOAD(&done) < 200) thrd_yield();
}

static int sleep_interrupted(void *arg) {
  struct timespec remaining = {0, 0}, minute = {60, 0};
  (void)arg;
  STORE(&done, 1);
  int r = thrd_sleep(&minute, &remaining);
  CHECK(remaining.tv_sec <= 60);
  return r;
}
static void nothing(int sig) { (void)sig; }

static void sleeping(void **state) {
  (void)state;
  struct timespec length = to_timespec(10000000), bad = {0, 2000000000};
  int64_t begin = now_ns(CLOCK_MONOTONIC);
  CHECK_OK(thrd_sleep(&length, NULL));
  CHECK(now_ns(CLOCK_MONOTONIC) - begin >= 10000000);
  CHECK(thrd_sleep(&bad, NULL) < -1);
  struct sigaction action = {.sa_handler = nothing}, old;
  CHECK_OK(sigaction(SIGUSR1, &action, &old));
  STORE(&done, 0);
  thrd_t t;
  CHECK_EQ(thrd_create(&t, sleep_interrupted, NULL), thrd_success);
  AWAIT(LOAD(&done));
  // Signals until one meets it asleep.
  int error;
  void *result;
  while ((error = pthread_tryjoin_np((pthread_t)t, &result)) == EBUSY) {
    pthread_kill((pthread_t)t, SIGUSR1);
    yield_some(10);
  }
  CHECK_OK(error);
  CHECK_EQ((int)(intptr_t)result, -1);
  CHECK_OK(sigaction(SIGUSR1, &old, NULL));
}

static mtx_t mtx;
static cnd_t cnd;
static long counter, inside, tokens;

static int count_up(void *arg) {
  for (int i = 0; i < 500; i++) {
    struct timespec later = in_ms(CLOCK_REALTIME, 60000);
    if (arg && i % 3 == 0) CHECK_EQ(mtx_timedlock(&mtx, &later), thrd_success);
    else if (i % 3 == 1)
      while (mtx_trylock(&mtx) != thrd_success) thrd_yield();
    else CHECK_EQ(mtx_lock(&mtx), thrd_success);
    CHECK_EQ(++inside, 1);
    if (i % 50 == 0) thrd_yield();
    counter++;
    inside--;
    CHECK_EQ(mtx_unlock(&mtx), thrd_success);
  }
  return 0;
}

static int try_elsewhere(void *timed) {
  CHECK_EQ(mtx_trylock(&mtx), thrd_busy);
  if (timed) {
    struct timespec soon = in_ms(CLOCK_REALTIME, 5);
    CHECK_EQ(mtx_timedlock(&mtx, &soon), thrd_timedout);
    CHECK(is_past(CLOCK_REALTIME, soon));
  }
  return 0;
}

static void mutexes(void **state) {
  (void)state;
  const int kinds[] = {mtx_plain, mtx_timed, mtx_plain | mtx_recursive, mtx_timed | mtx_recursive};
  for (int k = 0; k < 4; k++) {
    thrd_t t[8];
    CHECK_EQ(mtx_init(&mtx, kinds[k]), thrd_success);
    counter = 0;
    for (int i = 0; i < 8; i++)
      CHECK_EQ(thrd_create(&t[i], count_up, (void *)(intptr_t)(kinds[k] & mtx_timed)), thrd_success);
    for (int i = 0; i < 8; i++) CHECK_EQ(thrd_join(t[i], NULL), thrd_success);
    CHECK_EQ(counter, 4000);
    CHECK_EQ(mtx_lock(&mtx), thrd_success);
    thread_result(try_elsewhere, (void *)(intptr_t)(kinds[k] & mtx_timed));
    if (kinds[k] & mtx_recursive) {
      CHECK_EQ(mtx_lock(&mtx), thrd_success);
      CHECK_EQ(mtx_trylock(&mtx), thrd_success);
      CHECK_EQ(mtx_unlock(&mtx), thrd_success);
      CHECK_EQ(mtx_unlock(&mtx), thrd_success);
    }
    CHECK_EQ(mtx_unlock(&mtx), thrd_success);
    mtx_destroy(&mtx);
  }
}

static int take_token(void *arg) {
  mtx_lock(&mtx);
  while (tokens == 0) CHECK_EQ(cnd_wait(&cnd, &mtx), thrd_success);
  tokens--;
  mtx_unlock(&mtx);
  return (int)(intptr_t)arg;
}

static void conditions(void **state) {
  (void)state;
  thrd_t t[40];
  CHECK_EQ(mtx_init(&mtx, mtx_plain), thrd_success);
  CHECK_EQ(cnd_init(&cnd), thrd_success);
  for (int i = 0; i < 40; i++) CHECK_EQ(thrd_create(&t[i], take_token, NULL), thrd_success);
  for (int i = 0; i < 20; i++) {
    mtx_lock(&mtx);
    tokens++;
    CHECK_EQ(cnd_signal(&cnd), thrd_success);
    mtx_unlock(&mtx);
  }
  mtx_lock(&mtx);
  tokens += 20;
  CHECK_EQ(cnd_broadcast(&cnd), thrd_success);
  mtx_unlock(&mtx);
  for (int i = 0; i < 40; i++) CHECK_EQ(thrd_join(t[i], NULL), thrd_success);
  CHECK_EQ(tokens, 0);
  mtx_lock(&mtx);
  struct timespec soon = in_ms(CLOCK_REALTIME, 5);
  int r;
  do r = cnd_timedwait(&cnd, &mtx, &soon);
  while (r == thrd_success);
  CHECK_EQ(r, thrd_timedout);
  CHECK(is_past(CLOCK_REALTIME, soon));
  mtx_unlock(&mtx);
  cnd_destroy(&cnd);
  mtx_destroy(&mtx);
}

static tss_t key;
static long destroyed;
static void destroy_value(void *value) { ADD(&destroyed, (long)value); }
static int use_tss(void *arg) {
  CHECK(tss_get(key) == NULL);
  CHECK_EQ(tss_set(key, arg), thrd_success);
  thrd_yield();
  CHECK(tss_get(key) == arg);
  return 0;
}

static void thread_specific_storage(void **state) {
  (void)state;
  CHECK_EQ(tss_create(&key, destroy_value), thrd_success);
  for (long i = 1; i <= 100; i++) thread_result(use_tss, (void *)i);
  CHECK_EQ(destroyed, 5050);
  CHECK(tss_get(key) == NULL);
  tss_delete(key);
}

static once_flag once = ONCE_FLAG_INIT;
static int once_runs;
static void run_once(void) {
  thrd_yield();
  once_runs++;
}
static int call_it(void *arg) {
  call_once(&once, run_once);
  CHECK_EQ(once_runs, 1);
  return (int)(intptr_t)arg;
}

static void once_among_many(void **state) {
  (void)state;
  thrd_t t[30];
  for (int i = 0; i < 30; i++) CHECK_EQ(thrd_create(&t[i], call_it, NULL), thrd_success);
  for (int i = 0; i < 30; i++) CHECK_EQ(thrd_join(t[i], NULL), thrd_success);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(results),
      cmocka_unit_test(identity_and_detach),
      cmocka_unit_test(sleeping),
      cmocka_unit_test(mutexes),
      cmocka_unit_test(conditions),
      cmocka_unit_test(thread_specific_storage),
      cmocka_unit_test(once_among_many),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

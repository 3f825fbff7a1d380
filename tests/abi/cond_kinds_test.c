// cond_kinds_test.c - family: condition variables with every kind of mutex and across processes.
//
// Behaviours: waits with recursive (depth kept), errorcheck, adaptive, robust, PI mutexes; EPERM
// of a wait without ownership; EOWNERDEAD out of a wait; process-shared cond and mutex
// over fork with threads on both sides; one cond used with one mutex after another.
// Invariant: the mutex is held, by the waiter, at the depth it had, after each wait.
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

struct table {
  pthread_mutex_t m;
  pthread_cond_t c;
  int turn, rounds, players;
};

static void *play(void *arg) {
  struct table *t = arg;
  CHECK_OK(pthread_mutex_lock(&t->m));
  int me = t->players++;
  for (int i = 0; i < t->rounds; i++) {
    while (t->turn % 4 != me) {
      struct timespec later = in_ms(CLOCK_REALTIME, 60000);
      CHECK_OK(i & 1 ? pthread_cond_wait(&t->c, &t->m) : pthread_cond_timedwait(&t->c, &t->m, &later));
    }
    t->turn++;
    CHECK_OK(pthread_cond_broadcast(&t->c));
  }
  CHECK_OK(pthread_mutex_unlock(&t->m));
  return NULL;
}

static void four_take_turns(struct table *table, int rounds) {
  pthread_t t[4];
  table->turn = table->players = 0;
  table->rounds = rounds;
  CHECK_OK(pthread_cond_init(&table->c, NULL));
  for (int i = 0; i < 4; i++) t[i] = start(play, table);
  for (int i = 0; i < 4; i++) join(t[i]);
  CHECK_EQ(table->turn, 4 * rounds);
  CHECK_OK(pthread_cond_destroy(&table->c));
  CHECK_OK(pthread_mutex_destroy(&table->m));
}

static void turns_with_every_kind_of_mutex(void **state) {
  (void)state;
  const int kinds[] = {PTHREAD_MUTEX_NORMAL, PTHREAD_MUTEX_RECURSIVE, PTHREAD_MUTEX_ERRORCHECK,
                       PTHREAD_MUTEX_ADAPTIVE_NP};
  for (int k = 0; k < 4; k++)
    for (int robust = 0; robust < 2; robust++)
      for (int pi = 0; pi < 2; pi++) {
        struct table t;
        t.m = make(kinds[k], robust, pi ? PTHREAD_PRIO_INHERIT : PTHREAD_PRIO_NONE, 0);
        four_take_turns(&t, 50);
      }
}

static pthread_mutex_t recursive = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;
static pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
static int go;

static void *open_gate(void *arg) {
  CHECK_OK(pthread_mutex_lock(&recursive));
  go = 1;
  CHECK_OK(pthread_cond_signal(&cond));
  CHECK_OK(pthread_mutex_unlock(&recursive));
  return arg;
}

static void recursive_mutex_once_locked(void **state) {
  (void)state;
  for (int i = 0; i < 50; i++) {
    CHECK_OK(pthread_mutex_lock(&recursive));
    go = 0;
    pthread_t t = start(open_gate, NULL);
    while (!go) CHECK_OK(pthread_cond_wait(&cond, &recursive));
    CHECK_OK(pthread_mutex_lock(&recursive));
    CHECK_OK(pthread_mutex_unlock(&recursive));
    CHECK_OK(pthread_mutex_unlock(&recursive));
    CHECK_EQ(pthread_mutex_unlock(&recursive), EPERM);
    join(t);
  }
}

// A wait gives up one level only: the depth stays as it was, and a timeout comes back with it.
static void recursive_mutex_keeps_its_depth(void **state) {
  (void)state;
  for (int i = 0; i < 3; i++) CHECK_OK(pthread_mutex_lock(&recursive));
  struct timespec soon = in_ms(CLOCK_REALTIME, 5);
  int error;
  do error = pthread_cond_timedwait(&cond, &recursive, &soon);
  while (error == 0);
  CHECK_EQ(error, ETIMEDOUT);
  for (int i = 0; i < 3; i++) CHECK_OK(pthread_mutex_unlock(&recursive));
  CHECK_EQ(pthread_mutex_unlock(&recursive), EPERM);
}

static void *hold_until_told(void *arg) {
  pthread_mutex_t *m = arg;
  CHECK_OK(pthread_mutex_lock(m));
  STORE(&go, 1);
  AWAIT(LOAD(&go) == 2);
  CHECK_OK(pthread_mutex_unlock(m));
  return NULL;
}

static void wait_without_ownership_is_refused(void **state) {
  (void)state;
  pthread_mutex_t m = make(PTHREAD_MUTEX_ERRORCHECK, 0, PTHREAD_PRIO_NONE, 0);
  struct timespec soon = in_ms(CLOCK_REALTIME, 5);
  CHECK_EQ(pthread_cond_wait(&cond, &m), EPERM);
  CHECK_EQ(pthread_cond_timedwait(&cond, &m, &soon), EPERM);
  STORE(&go, 0);
  pthread_t t = start(hold_until_told, &m);
  AWAIT(LOAD(&go) == 1);
  CHECK_EQ(pthread_cond_wait(&cond, &m), EPERM);
  STORE(&go, 2);
  join(t);
  CHECK_EQ(pthread_cond_wait(&cond, &recursive), EPERM);
}

// The signaller dies with the robust mutex: the waiter comes out of its wait with the news.
static pthread_mutex_t robust;
static int entered;
static void *signal_and_die(void *arg) {
  int told = 0;
  while (!told) {
    CHECK_OK(pthread_mutex_lock(&robust));
    told = entered;
    if (!told) CHECK_OK(pthread_mutex_unlock(&robust));
    sched_yield();
  }
  go = 1;
  CHECK_OK(pthread_cond_signal(&cond));
  return arg;
}

static void owner_death_comes_out_of_a_wait(void **state) {
  (void)state;
  for (int round = 0; round < 20; round++) {
    robust = make(PTHREAD_MUTEX_NORMAL, PTHREAD_MUTEX_ROBUST, PTHREAD_PRIO_NONE, 0);
    go = entered = 0;
    pthread_t t = start(signal_and_die, NULL);
    CHECK_OK(pthread_mutex_lock(&robust));
    entered = 1;
    int error;
    do error = pthread_cond_wait(&cond, &robust);
    while (error == 0 && !go);
    CHECK_EQ(error, EOWNERDEAD);
    CHECK_OK(pthread_mutex_consistent(&robust));
    CHECK_OK(pthread_mutex_unlock(&robust));
    join(t);
    CHECK_OK(pthread_mutex_destroy(&robust));
  }
}

static void one_cond_with_one_mutex_after_another(void **state) {
  (void)state;
  pthread_cond_t c = PTHREAD_COND_INITIALIZER;
  for (int i = 0; i < 20; i++) {
    struct table t = {.rounds = 5, .c = c};
    pthread_t threads[4];
    t.m = make(i & 1 ? PTHREAD_MUTEX_NORMAL : PTHREAD_MUTEX_RECURSIVE, 0, PTHREAD_PRIO_NONE, 0);
    for (int j = 0; j < 4; j++) threads[j] = start(play, &t);
    for (int j = 0; j < 4; j++) join(threads[j]);
    CHECK_EQ(t.turn, 20);
    CHECK_OK(pthread_mutex_destroy(&t.m));
  }
}

// Process-shared: a buffer of one between the threads of two processes.

struct shared {
  pthread_mutex_t m;
  pthread_cond_t full, empty;
  long item, taken, sum;
  int is_full, entered, open;
};

static void *put_items(void *arg) {
  struct shared *s = arg;
  for (long i = 1; i <= 200; i++) {
    CHECK_OK(pthread_mutex_lock(&s->m));
    while (s->is_full) CHECK_OK(pthread_cond_wait(&s->empty, &s->m));
    s->item = i;
    s->is_full = 1;
    CHECK_OK(pthread_cond_signal(&s->full));
    CHECK_OK(pthread_mutex_unlock(&s->m));
  }
  return NULL;
}

static void *take_items(void *arg) {
  struct shared *s = arg;
  for (int i = 0; i < 200; i++) {
    CHECK_OK(pthread_mutex_lock(&s->m));
    while (!s->is_full) {
      struct timespec later = in_ms(CLOCK_MONOTONIC, 60000);
      CHECK_OK(i & 1 ? pthread_cond_wait(&s->full, &s->m)
                     : pthread_cond_clockwait(&s->full, &s->m, CLOCK_MONOTONIC, &later));
    }
    s->sum += s->item;
    s->taken++;
    s->is_full = 0;
    CHECK_OK(pthread_cond_signal(&s->empty));
    CHECK_OK(pthread_mutex_unlock(&s->m));
  }
  return NULL;
}

static int take_with_threads(void *arg) {
  pthread_t t[3];
  for (int i = 0; i < 3; i++) t[i] = start(take_items, arg);
  for (int i = 0; i < 3; i++) join(t[i]);
  return 0;
}

static struct shared *make_shared(int robust) {
  struct shared *s = shared_memory(sizeof *s);
  pthread_condattr_t attr;
  int value = -1;
  CHECK_OK(pthread_condattr_init(&attr));
  CHECK_EQ(pthread_condattr_setpshared(&attr, 7), EINVAL);
  CHECK_OK(pthread_condattr_setpshared(&attr, PTHREAD_PROCESS_SHARED));
  CHECK_OK(pthread_condattr_getpshared(&attr, &value));
  CHECK_EQ(value, PTHREAD_PROCESS_SHARED);
  CHECK_OK(pthread_cond_init(&s->full, &attr));
  CHECK_OK(pthread_cond_init(&s->empty, &attr));
  CHECK_OK(pthread_condattr_destroy(&attr));
  s->m = make(PTHREAD_MUTEX_NORMAL, robust, PTHREAD_PRIO_NONE, PTHREAD_PROCESS_SHARED);
  return s;
}

static void shared_between_processes(void **state) {
  (void)state;
  for (int robust = 0; robust < 2; robust++) {
    struct shared *s = make_shared(robust);
    pthread_t t[3];
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) _exit(take_with_threads(s));
    for (int i = 0; i < 3; i++) t[i] = start(put_items, s);
    for (int i = 0; i < 3; i++) join(t[i]);
    int status;
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    CHECK_OK(status);
    CHECK_EQ(s->taken, 600);
    CHECK_EQ(s->sum, 3 * 200 * 201 / 2);
    munmap(s, sizeof *s);
  }
}

static void *wait_open(void *arg) {
  struct shared *s = arg;
  CHECK_OK(pthread_mutex_lock(&s->m));
  s->entered++;
  while (!s->open) CHECK_OK(pthread_cond_wait(&s->full, &s->m));
  CHECK_OK(pthread_mutex_unlock(&s->m));
  return NULL;
}

static int wait_open_with_threads(void *arg) {
  pthread_t t[10];
  for (int i = 0; i < 10; i++) t[i] = start(wait_open, arg);
  for (int i = 0; i < 10; i++) join(t[i]);
  return 0;
}

static int entered_now(struct shared *s) {
  pthread_mutex_lock(&s->m);
  int n = s->entered;
  pthread_mutex_unlock(&s->m);
  return n;
}

static void shared_broadcast_reaches_other_processes(void **state) {
  (void)state;
  struct shared *s = make_shared(0);
  pid_t pids[2];
  pthread_t t[10];
  fflush(NULL);
  for (int i = 0; i < 2; i++)
    if ((pids[i] = fork()) == 0) _exit(wait_open_with_threads(s));
  for (int i = 0; i < 10; i++) t[i] = start(wait_open, s);
  AWAIT(entered_now(s) == 30);
  CHECK_OK(pthread_mutex_lock(&s->m));
  s->open = 1;
  CHECK_OK(pthread_cond_broadcast(&s->full));
  CHECK_OK(pthread_mutex_unlock(&s->m));
  for (int i = 0; i < 10; i++) join(t[i]);
  for (int i = 0; i < 2; i++) {
    int status;
    CHECK_EQ(waitpid(pids[i], &status, 0), pids[i]);
    CHECK_OK(status);
  }
  munmap(s, sizeof *s);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(turns_with_every_kind_of_mutex),
      cmocka_unit_test(recursive_mutex_once_locked),
      cmocka_unit_test(recursive_mutex_keeps_its_depth),
      cmocka_unit_test(wait_without_ownership_is_refused),
      cmocka_unit_test(owner_death_comes_out_of_a_wait),
      cmocka_unit_test(one_cond_with_one_mutex_after_another),
      cmocka_unit_test(shared_between_processes),
      cmocka_unit_test(shared_broadcast_reaches_other_processes),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

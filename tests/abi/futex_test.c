// futex_test.c - family: syscall(SYS_futex): wait, wake, bitset, requeue, wake_op, waitv.
//
// Behaviours: answers and error codes; private and shared words, across fork too; relative and
// absolute timeouts on both clocks; exact numbers woken and requeued; a mutex and a
// semaphore built on raw futexes as Rust and Go-like runtimes do; kernel PI operations.
// Invariant: a wake that answers n has ended exactly n waits.
#include "abi.h"

#include <linux/futex.h>

static long futex(void *word, int op, unsigned value, const void *timeout, void *word2, unsigned value3) {
  return syscall(SYS_futex, word, op, value, timeout, word2, value3);
}
static void *as_count(long n) { return (void *)n; }

enum { kWait = FUTEX_WAIT, kWake = FUTEX_WAKE, kPrivate = FUTEX_PRIVATE_FLAG };

static void immediate_answers(void **state) {
  (void)state;
  unsigned word = 5, other = 0;
  for (int flag = 0; flag <= kPrivate; flag += kPrivate) {
    CHECK_FAILS(futex(&word, FUTEX_WAIT | flag, 4, NULL, NULL, 0), EAGAIN);
    CHECK_FAILS(futex(&word, FUTEX_WAIT_BITSET | flag, 4, NULL, NULL, 1), EAGAIN);
    CHECK_FAILS(futex(&word, FUTEX_WAIT_BITSET | flag, 5, NULL, NULL, 0), EINVAL);
    CHECK_FAILS(futex(&word, FUTEX_WAKE_BITSET | flag, 1, NULL, NULL, 0), EINVAL);
    CHECK_EQ(futex(&word, FUTEX_WAKE | flag, 1, NULL, NULL, 0), 0);
    CHECK_EQ(futex(&word, FUTEX_WAKE | flag, INT_MAX, NULL, NULL, 0), 0);
    CHECK_EQ(futex(&word, FUTEX_REQUEUE | flag, 1, as_count(1), &other, 0), 0);
    CHECK_FAILS(futex(&word, FUTEX_CMP_REQUEUE | flag, 1, as_count(1), &other, 6), EAGAIN);
    CHECK_EQ(futex(&word, FUTEX_CMP_REQUEUE | flag, 1, as_count(1), &other, 5), 0);
    CHECK_FAILS(futex((char *)&word + 1, FUTEX_WAIT | flag, 5, NULL, NULL, 0), EINVAL);
    struct timespec bad = {0, 1000000000}, negative = {-1, 0};
    CHECK_FAILS(futex(&word, FUTEX_WAIT | flag, 5, &bad, NULL, 0), EINVAL);
    CHECK_FAILS(futex(&word, FUTEX_WAIT | flag, 5, &negative, NULL, 0), EINVAL);
  }
  CHECK_FAILS(futex(&word, 99, 5, NULL, NULL, 0), ENOSYS);
  CHECK_EQ(word, 5);
}

static void timeouts(void **state) {
  (void)state;
  unsigned word = 1;
  for (int flag = 0; flag <= kPrivate; flag += kPrivate) {
    struct timespec length = to_timespec(10000000), when;
    int64_t begin = now_ns(CLOCK_MONOTONIC);
    CHECK_FAILS(futex(&word, FUTEX_WAIT | flag, 1, &length, NULL, 0), ETIMEDOUT);
    CHECK(now_ns(CLOCK_MONOTONIC) - begin >= 10000000);
    CHECK_EQ(length.tv_nsec, 10000000);
    length = to_timespec(0);
    CHECK_FAILS(futex(&word, FUTEX_WAIT | flag, 1, &length, NULL, 0), ETIMEDOUT);
    when = in_ms(CLOCK_MONOTONIC, 10);
    CHECK_FAILS(futex(&word, FUTEX_WAIT_BITSET | flag, 1, &when, NULL, ~0u), ETIMEDOUT);
    CHECK(is_past(CLOCK_MONOTONIC, when));
    when = in_ms(CLOCK_REALTIME, 10);
    CHECK_FAILS(futex(&word, FUTEX_WAIT_BITSET | FUTEX_CLOCK_REALTIME | flag, 1, &when, NULL, ~0u), ETIMEDOUT);
    CHECK(is_past(CLOCK_REALTIME, when));
    when = in_ms(CLOCK_MONOTONIC, -1000);
    CHECK_FAILS(futex(&word, FUTEX_WAIT_BITSET | flag, 1, &when, NULL, 2), ETIMEDOUT);
  }
}

static unsigned word, target, results[64];
static int op_flag, entering, returned;
static unsigned masks[64];

static void *wait_on_word(void *arg) {
  long id = (long)arg;
  unsigned mask = masks[id];
  ADD(&entering, 1);
  while (LOAD(&word) == 0) {
    long r = mask ? futex(&word, FUTEX_WAIT_BITSET | op_flag, 0, NULL, NULL, mask)
                  : futex(&word, FUTEX_WAIT | op_flag, 0, NULL, NULL, 0);
    if (r == 0) break;
    CHECK(errno == EAGAIN || errno == EINTR);
  }
  results[id] = 1;
  ADD(&returned, 1);
  return NULL;
}

static void begin(pthread_t *t, int n) {
  word = target = 0;
  entering = returned = 0;
  memset(results, 0, sizeof results);
  for (long i = 0; i < n; i++) t[i] = start(wait_on_word, (void *)i);
  AWAIT(LOAD(&entering) == n);
}

// Wakes until `n` have been woken in all; a wake may come before a waiter has got in.
static void wake_exactly(int n, unsigned mask) {
  for (int woken = 0; woken < n;) {
    long r = mask ? futex(&word, FUTEX_WAKE_BITSET | op_flag, (unsigned)(n - woken), NULL, NULL, mask)
                  : futex(&word, FUTEX_WAKE | op_flag, (unsigned)(n - woken), NULL, NULL, 0);
    CHECK(r >= 0 && r <= n - woken);
    woken += (int)r;
    if (!r) sched_yield();
  }
}

static void wakes_the_number_asked_for(void **state) {
  (void)state;
  memset(masks, 0, sizeof masks);
  for (op_flag = 0; op_flag <= kPrivate; op_flag += kPrivate) {
    pthread_t t[40];
    begin(t, 40);
    int woken = 0;
    for (int n = 1; woken + n <= 40; woken += n, n++) {
      wake_exactly(n, 0);
      AWAIT(LOAD(&returned) == woken + n);
    }
    wake_exactly(40 - woken, 0);
    for (int i = 0; i < 40; i++) join(t[i]);
    CHECK_EQ(futex(&word, FUTEX_WAKE | op_flag, INT_MAX, NULL, NULL, 0), 0);
  }
}

static void wakes_by_bitset(void **state) {
  (void)state;
  for (op_flag = 0; op_flag <= kPrivate; op_flag += kPrivate) {
    pthread_t t[30];
    for (int i = 0; i < 30; i++) masks[i] = 1u << (i % 3) | 0x80000000u;
    begin(t, 30);
    wake_exactly(10, 2);
    AWAIT(LOAD(&returned) == 10);
    for (int i = 0; i < 30; i++) CHECK_EQ(LOAD(&results[i]), i % 3 == 1);
    CHECK_EQ(futex(&word, FUTEX_WAKE_BITSET | op_flag, 30, NULL, NULL, 0x40000000), 0);
    wake_exactly(10, 4);
    AWAIT(LOAD(&returned) == 20);
    wake_exactly(10, 0x80000000u);
    for (int i = 0; i < 30; i++) join(t[i]);
    memset(masks, 0, sizeof masks);
  }
}

// All 20 are on `word` once requeues have moved or woken 20 in all.
static void requeues_exactly(void **state) {
  (void)state;
  memset(masks, 0, sizeof masks);
  for (int round = 0; round < 4; round++) {
    op_flag = round & 1 ? kPrivate : 0;
    pthread_t t[20];
    begin(t, 20);
    int woken = 0, moved = 0;
    while (woken < 2) {
      long r = futex(&word, FUTEX_CMP_REQUEUE | op_flag, 1, as_count(0), &target, 0);
      CHECK(r == 0 || r == 1);
      woken += (int)r;
      if (!r) sched_yield();
    }
    while (moved < 18) {
      long r = round & 2 ? futex(&word, FUTEX_REQUEUE | op_flag, 0, as_count(18), &target, 0)
                         : futex(&word, FUTEX_CMP_REQUEUE | op_flag, 0, as_count(18), &target, 0);
      CHECK(r >= 0);
      moved += (int)r;
      if (!r) sched_yield();
    }
    CHECK_EQ(moved, 18);
    AWAIT(LOAD(&returned) == 2);
    CHECK_EQ(futex(&word, FUTEX_WAKE | op_flag, 20, NULL, NULL, 0), 0);
    for (int i = 3; i <= 20; i++) {
      CHECK_EQ(futex(&target, FUTEX_WAKE | op_flag, 1, NULL, NULL, 0), 1);
      AWAIT(LOAD(&returned) == i);
    }
    for (int i = 0; i < 20; i++) join(t[i]);
  }
}

static unsigned encode(int op, int op_arg, int cmp, int cmp_arg) {
  return (unsigned)op << 28 | (unsigned)cmp << 24 | ((unsigned)op_arg & 0xfff) << 12 | ((unsigned)cmp_arg & 0xfff);
}

static void wake_op(void **state) {
  (void)state;
  unsigned a = 0, b = 10;
  const struct {
    int op, arg;
    unsigned want;
  } ops[] = {{FUTEX_OP_SET, 7, 7}, {FUTEX_OP_ADD, 5, 15}, {FUTEX_OP_OR, 5, 15}, {FUTEX_OP_ANDN, 2, 8},
             {FUTEX_OP_XOR, 3, 9}, {FUTEX_OP_ADD, -3, 7}, {FUTEX_OP_SET | FUTEX_OP_OPARG_SHIFT, 4, 16}};
  for (op_flag = 0; op_flag <= kPrivate; op_flag += kPrivate)
    for (unsigned i = 0; i < sizeof ops / sizeof *ops; i++) {
      b = 10;
      CHECK_EQ(futex(&a, FUTEX_WAKE_OP | op_flag, 1, as_count(1), &b,
                     encode(ops[i].op, ops[i].arg, FUTEX_OP_CMP_EQ, 10)), 0);
      CHECK_EQ(b, ops[i].want);
    }
  // Wakes on the first word always, on the second if the old value compares.
  memset(masks, 0, sizeof masks);
  op_flag = kPrivate;
  for (int compares = 0; compares < 2; compares++) {
    pthread_t t[6];
    begin(t, 6);
    unsigned nobody = 0;
    long woken = 0;
    while (woken < 3) {
      long r = futex(&nobody, FUTEX_WAKE_OP | kPrivate, 1, as_count(3 - woken), &word,
                     encode(FUTEX_OP_ADD, 0, compares ? FUTEX_OP_CMP_EQ : FUTEX_OP_CMP_LE, 0));
      CHECK(r >= 0);
      woken += r;
      if (!r) sched_yield();
    }
    CHECK_EQ(woken, 3);
    AWAIT(LOAD(&returned) == 3);
    CHECK_EQ(futex(&nobody, FUTEX_WAKE_OP | kPrivate, 1, as_count(3), &word,
                   encode(FUTEX_OP_ADD, 0, compares ? FUTEX_OP_CMP_NE : FUTEX_OP_CMP_GT, 0)), 0);
    CHECK_EQ(LOAD(&returned), 3);
    while (woken < 6) {
      long r = futex(&word, FUTEX_WAKE_OP | kPrivate, (unsigned)(6 - woken), as_count(1), &nobody,
                     encode(FUTEX_OP_SET, 1, FUTEX_OP_CMP_EQ, 55));
      woken += r;
      if (!r) sched_yield();
    }
    CHECK_EQ(nobody, 1);
    for (int i = 0; i < 6; i++) join(t[i]);
  }
}

// The three-state lock of "Futexes are tricky", as many runtimes have it.
struct raw_lock {
  unsigned state;
  int flag;
  long counter, inside;
};
static void raw_acquire(struct raw_lock *l) {
  unsigned expected = 0;
  if (__atomic_compare_exchange_n(&l->state, &expected, 1, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED)) return;
  while (__atomic_exchange_n(&l->state, 2, __ATOMIC_ACQUIRE) != 0)
    futex(&l->state, FUTEX_WAIT | l->flag, 2, NULL, NULL, 0);
}
static void raw_release(struct raw_lock *l) {
  if (__atomic_exchange_n(&l->state, 0, __ATOMIC_RELEASE) == 2)
    futex(&l->state, FUTEX_WAKE | l->flag, 1, NULL, NULL, 0);
}
static void *count_under_raw_lock(void *arg) {
  struct raw_lock *l = arg;
  for (int i = 0; i < 500; i++) {
    raw_acquire(l);
    CHECK_EQ(++l->inside, 1);
    if (i % 32 == 0) sched_yield();
    l->counter++;
    l->inside--;
    raw_release(l);
  }
  return NULL;
}
static int count_with_threads(void *l) {
  pthread_t t[10];
  for (int i = 0; i < 10; i++) t[i] = start(count_under_raw_lock, l);
  for (int i = 0; i < 10; i++) join(t[i]);
  return 0;
}

static void raw_lock_in_threads_and_processes(void **state) {
  (void)state;
  struct raw_lock private = {.flag = kPrivate}, *shared = shared_memory(sizeof *shared);
  count_with_threads(&private);
  CHECK_EQ(private.counter, 5000);
  fflush(NULL);
  pid_t pid = fork();
  if (pid == 0) _exit(count_with_threads(shared));
  count_with_threads(shared);
  int status;
  CHECK_EQ(waitpid(pid, &status, 0), pid);
  CHECK_OK(status);
  CHECK_EQ(shared->counter, 10000);
}

static int wait_in_child(void *arg) {
  unsigned *words = arg;
  struct timespec later = in_ms(CLOCK_MONOTONIC, 60000);
  for (unsigned i = 0; i < 100; i++) {
    while (LOAD(&words[0]) == i)
      CHECK(futex(&words[0], FUTEX_WAIT_BITSET, i, &later, NULL, ~0u) == 0 || errno == EAGAIN);
    STORE(&words[1], i + 1);
    futex(&words[1], FUTEX_WAKE, 1, NULL, NULL, 0);
  }
  return 0;
}
static void *wait_in_thread(void *arg) { return (void *)(intptr_t)wait_in_child(arg); }

// A shared wait in a thread of this process and in another process, on one mapping.
static void shared_ping_pong(void **state) {
  (void)state;
  for (int in_thread = 0; in_thread < 2; in_thread++) {
    unsigned *words = shared_memory(4096);
    pthread_t t = 0;
    pid_t pid = 0;
    fflush(NULL);
    if (in_thread) t = start(wait_in_thread, words);
    else if ((pid = fork()) == 0) _exit(wait_in_child(words));
    for (unsigned i = 0; i < 100; i++) {
      STORE(&words[0], i + 1);
      futex(&words[0], FUTEX_WAKE, 1, NULL, NULL, 0);
      while (LOAD(&words[1]) == i) futex(&words[1], FUTEX_WAIT, i, NULL, NULL, 0);
    }
    int status = 0;
    if (in_thread) join(t);
    else CHECK_EQ(waitpid(pid, &status, 0), pid);
    CHECK_OK(status);
  }
}

// The same page mapped twice: shared futexes go by the page, private ones by the address.
static void *wait_on_alias(void *w) {
  while (LOAD((unsigned *)w) == 0) futex(w, FUTEX_WAIT, 0, NULL, NULL, 0);
  return NULL;
}
static void shared_words_at_two_addresses(void **state) {
  (void)state;
  FILE *file = tmpfile();
  CHECK(file != NULL);
  CHECK_OK(ftruncate(fileno(file), 4096));
  unsigned *a = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fileno(file), 0);
  unsigned *b = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fileno(file), 0);
  CHECK(a != MAP_FAILED && b != MAP_FAILED && a != b);
  pthread_t t = start(wait_on_alias, a);
  yield_some(20);
  STORE(b, 1);
  futex(b, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
  join(t);
  fclose(file);
}

static void *lock_pi_and_count(void *arg) {
  struct raw_lock *l = arg;
  for (int i = 0; i < 50; i++) {
    unsigned expected = 0, me = (unsigned)syscall(SYS_gettid);
    if (!__atomic_compare_exchange_n(&l->state, &expected, me, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
      CHECK_OK(futex(&l->state, FUTEX_LOCK_PI | kPrivate, 0, NULL, NULL, 0));
    CHECK_EQ(++l->inside, 1);
    if (i % 8 == 0) sched_yield();
    l->counter++;
    l->inside--;
    if (!__atomic_compare_exchange_n(&l->state, &me, 0, 0, __ATOMIC_RELEASE, __ATOMIC_RELAXED))
      CHECK_OK(futex(&l->state, FUTEX_UNLOCK_PI | kPrivate, 0, NULL, NULL, 0));
  }
  return NULL;
}

// The program writes what gettid answers into a word the kernel reads.
static void raw_priority_inheritance(void **state) {
  (void)state;
  struct raw_lock l = {0};
  pthread_t t[6];
  for (int i = 0; i < 6; i++) t[i] = start(lock_pi_and_count, &l);
  for (int i = 0; i < 6; i++) join(t[i]);
  CHECK_EQ(l.counter, 300);
}

#ifndef SYS_futex_waitv
#define SYS_futex_waitv 449
#endif
struct waitv {
  uint64_t value, address;
  uint32_t flags, reserved;
};
static unsigned vector_words[3];
static void *wait_vector(void *arg) {
  struct waitv v[3];
  for (int i = 0; i < 3; i++) v[i] = (struct waitv){0, (uintptr_t)&vector_words[i], 2 | kPrivate, 0};
  ADD((int *)arg, 1);
  long r = syscall(SYS_futex_waitv, v, 3, 0, NULL, CLOCK_MONOTONIC);
  return (void *)(r < 0 ? -errno : r);
}
static void waits_on_several_words(void **state) {
  (void)state;
  struct waitv v = {1, (uintptr_t)&vector_words[0], 2 | kPrivate, 0};
  long r = syscall(SYS_futex_waitv, &v, 1, 0, NULL, CLOCK_MONOTONIC);
  if (r < 0 && errno == ENOSYS) skip();
  CHECK(r == -1 && errno == EAGAIN);
  v.value = 0;
  struct timespec when = in_ms(CLOCK_MONOTONIC, 5);
  CHECK_FAILS(syscall(SYS_futex_waitv, &v, 1, 0, &when, CLOCK_MONOTONIC), ETIMEDOUT);
  CHECK_FAILS(syscall(SYS_futex_waitv, &v, 0, 0, NULL, CLOCK_MONOTONIC), EINVAL);
  for (int round = 0; round < 30; round++) {
    int in = 0, which = round % 3;
    memset(vector_words, 0, sizeof vector_words);
    pthread_t t = start(wait_vector, &in);
    AWAIT(LOAD(&in));
    while (futex(&vector_words[which], FUTEX_WAKE | kPrivate, 1, NULL, NULL, 0) == 0) sched_yield();
    CHECK_EQ((long)join(t), which);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(immediate_answers),
      cmocka_unit_test(timeouts),
      cmocka_unit_test(wakes_the_number_asked_for),
      cmocka_unit_test(wakes_by_bitset),
      cmocka_unit_test(requeues_exactly),
      cmocka_unit_test(wake_op),
      cmocka_unit_test(raw_lock_in_threads_and_processes),
      cmocka_unit_test(shared_ping_pong),
      cmocka_unit_test(shared_words_at_two_addresses),
      cmocka_unit_test(raw_priority_inheritance),
      cmocka_unit_test(waits_on_several_words),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

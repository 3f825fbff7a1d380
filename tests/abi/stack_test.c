// stack_test.c - family: thread stacks: pthread_getattr_np, sizes, guards, stacks given by
// the program.
//
// Behaviours: getattr_np answers for main, for self, and for the creator at once; the range
// holds the locals; size and guard asked for are honoured; a program's own stack is used
// whole; PTHREAD_STACK_MIN runs; 64 MiB are usable to the bottom; the guard faults, that of
// each of many threads too.
// Invariant: the reported range is the memory the thread really runs on.
#include "abi.h"

#include <sys/resource.h>
#include <sys/uio.h>

struct range {
  char *low;
  size_t bytes, guard;
  int detach;
};

static struct range range_of(pthread_t t) {
  pthread_attr_t attr;
  struct range r;
  void *low;
  CHECK_OK(pthread_getattr_np(t, &attr));
  CHECK_OK(pthread_attr_getstack(&attr, &low, &r.bytes));
  CHECK_OK(pthread_attr_getguardsize(&attr, &r.guard));
  CHECK_OK(pthread_attr_getdetachstate(&attr, &r.detach));
  size_t bytes;
  CHECK_OK(pthread_attr_getstacksize(&attr, &bytes));
  CHECK_EQ(bytes, r.bytes);
  CHECK_OK(pthread_attr_destroy(&attr));
  r.low = (char *)low;
  return r;
}

static int holds(struct range r, const void *p) {
  return (const char *)p >= r.low && (const char *)p < r.low + r.bytes;
}

static void *check_self(void *arg) {
  int local;
  struct range r = range_of(pthread_self());
  CHECK(holds(r, &local));
  CHECK(holds(r, __builtin_frame_address(0)));
  if (arg) *(struct range *)arg = r;
  return arg;
}

static void main_range_holds_its_locals(void **state) {
  (void)state;
  int local;
  struct range r = range_of(pthread_self());
  CHECK(holds(r, &local));
  CHECK(r.bytes >= 65536);
}

static void *main_range_from_a_thread(void *arg) {
  struct range r = range_of(abi_main_thread);
  CHECK(holds(r, arg));
  return NULL;
}

static void main_range_seen_by_a_thread(void **state) {
  (void)state;
  int local = 0;
  join(start(main_range_from_a_thread, &local));
}

static int gate;
static void *report_when_open(void *arg) {
  AWAIT(LOAD(&gate));
  return check_self(arg);
}

// Garbage collectors ask for a new thread's stack from the creator and from itself.
static void creator_and_self_agree(void **state) {
  (void)state;
  for (int i = 0; i < 100; i++) {
    struct range own;
    STORE(&gate, 0);
    pthread_t t = start(report_when_open, &own);
    struct range seen = range_of(t);
    STORE(&gate, 1);
    join(t);
    CHECK(seen.low == own.low);
    CHECK_EQ(seen.bytes, own.bytes);
    CHECK_EQ(seen.guard, own.guard);
    CHECK_EQ(own.detach, PTHREAD_CREATE_JOINABLE);
  }
}

static void at_once_in_new_threads(void **state) {
  (void)state;
  for (int i = 0; i < 200; i++) join(start(check_self, NULL));
}

static void default_size_is_the_default(void **state) {
  (void)state;
  pthread_attr_t attr;
  size_t bytes, guard;
  struct range r;
  CHECK_OK(pthread_getattr_default_np(&attr));
  CHECK_OK(pthread_attr_getstacksize(&attr, &bytes));
  CHECK_OK(pthread_attr_getguardsize(&attr, &guard));
  CHECK_OK(pthread_attr_destroy(&attr));
  join(start(check_self, &r));
  CHECK_EQ(r.bytes, bytes);
  CHECK_EQ(r.guard, guard);
}

static void sizes_asked_for_are_reported(void **state) {
  (void)state;
  const size_t sizes[] = {PTHREAD_STACK_MIN, 65536, 100 * 1024, 1 << 20, 3 << 20, 16 << 20};
  const size_t guards[] = {0, 4096, 65536};
  for (unsigned i = 0; i < sizeof sizes / sizeof *sizes; i++) {
    for (unsigned j = 0; j < sizeof guards / sizeof *guards; j++) {
      if (guards[j] >= sizes[i]) continue;
      pthread_attr_t attr;
      pthread_t t;
      struct range r;
      CHECK_OK(pthread_attr_init(&attr));
      CHECK_OK(pthread_attr_setstacksize(&attr, sizes[i]));
      CHECK_OK(pthread_attr_setguardsize(&attr, guards[j]));
      CHECK_OK(pthread_create(&t, &attr, check_self, &r));
      join(t);
      CHECK(r.bytes >= sizes[i]);
      CHECK_EQ(r.guard, guards[j]);
      CHECK_OK(pthread_attr_destroy(&attr));
    }
  }
}

// Writes one byte in every page from here down to `left` bytes above the lowest address.
static __attribute__((noinline)) void *touch_down(void *arg) {
  size_t left = (size_t)arg;
  struct range r = range_of(pthread_self());
  volatile char *here = (volatile char *)__builtin_frame_address(0);
  size_t room = (size_t)((char *)here - r.low) - left;
  volatile char *area = (volatile char *)__builtin_alloca(room);
  size_t touched = 0;
  for (size_t i = room; i >= 4096; i -= 4096) {
    area[i - 1] = 1;
    touched += 4096;
  }
  return (void *)touched;
}

static void run_touching(size_t bytes, size_t left, size_t at_least) {
  pthread_attr_t attr;
  pthread_t t;
  CHECK_OK(pthread_attr_init(&attr));
  CHECK_OK(pthread_attr_setstacksize(&attr, bytes));
  CHECK_OK(pthread_create(&t, &attr, touch_down, (void *)left));
  CHECK_OK(pthread_attr_destroy(&attr));
  CHECK((size_t)join(t) >= at_least);
}

static void big_stack_is_usable_to_the_bottom(void **state) {
  (void)state;
  run_touching(64 << 20, 8192, (64 << 20) - 65536);
  run_touching(8 << 20, 8192, (8 << 20) - 65536);
}

static __attribute__((noinline)) int recurse(int depth) {
  volatile char frame[1000];
  frame[0] = frame[999] = (char)depth;
  return depth ? recurse(depth - 1) + frame[0] - frame[999] + 1 : 0;
}

static void *recurse_deep(void *arg) { return (void *)(intptr_t)recurse((int)(intptr_t)arg); }

static void deep_recursion_in_several_threads(void **state) {
  (void)state;
  pthread_t t[8];
  for (int i = 0; i < 8; i++) t[i] = start(recurse_deep, (void *)6000);
  for (int i = 0; i < 8; i++) CHECK_EQ((intptr_t)join(t[i]), 6000);
}

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
static int waiting, released;

static void *block_and_work(void *arg) {
  pthread_mutex_lock(&lock);
  waiting++;
  while (!released) pthread_cond_wait(&cond, &lock);
  pthread_mutex_unlock(&lock);
  char *p = (char *)malloc(100);
  snprintf(p, 100, "%d", (int)(intptr_t)arg);
  intptr_t value = atoi(p);
  free(p);
  return (void *)value;
}

// The smallest stack is enough to block, allocate and print.
static void smallest_stacks_work(void **state) {
  (void)state;
  pthread_attr_t attr;
  pthread_t t[50];
  CHECK_OK(pthread_attr_init(&attr));
  CHECK_EQ(pthread_attr_setstacksize(&attr, PTHREAD_STACK_MIN - 1), EINVAL);
  CHECK_OK(pthread_attr_setstacksize(&attr, PTHREAD_STACK_MIN));
  for (int i = 0; i < 50; i++)
    CHECK_OK(pthread_create(&t[i], &attr, block_and_work, (void *)(intptr_t)i));
  int seen;
  AWAIT((pthread_mutex_lock(&lock), seen = waiting, pthread_mutex_unlock(&lock), seen == 50));
  pthread_mutex_lock(&lock);
  released = 1;
  pthread_cond_broadcast(&cond);
  pthread_mutex_unlock(&lock);
  for (int i = 0; i < 50; i++) CHECK_EQ((intptr_t)join(t[i]), i);
  CHECK_OK(pthread_attr_destroy(&attr));
}

static void *on_given_stack(void *arg) {
  struct range given = *(struct range *)arg;
  int local;
  CHECK(holds(given, &local));
  struct range r = range_of(pthread_self());
  CHECK(r.low == given.low);
  CHECK_EQ(r.bytes, given.bytes);
  CHECK_EQ(recurse(20), 20);
  // Nearly all of it is ours: libc may keep TLS and its descriptor at the top, no more.
  CHECK((char *)&local > given.low + given.bytes - 32768);
  return arg;
}

static void given_stack_is_used(void **state) {
  (void)state;
  enum { kBytes = 256 * 1024 };
  char *memory = (char *)mmap(NULL, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(memory != MAP_FAILED);
  pthread_attr_t attr;
  CHECK_OK(pthread_attr_init(&attr));
  CHECK_OK(pthread_attr_setstack(&attr, memory, kBytes));
  struct range given = {memory, kBytes, 0, 0};
  for (int i = 0; i < 20; i++) {
    pthread_t t;
    CHECK_OK(pthread_create(&t, &attr, on_given_stack, &given));
    CHECK(join(t) == &given);
  }
  CHECK_OK(pthread_attr_destroy(&attr));
  // Nobody holds on to it: it may be scribbled over and unmapped after the join.
  memset(memory, 0xee, kBytes);
  CHECK_OK(munmap(memory, kBytes));
  for (int i = 0; i < 20; i++) join(start(check_self, NULL));
}

// Stacks from malloc, several at once, freed and used again by other threads.
static void given_stacks_from_malloc(void **state) {
  (void)state;
  enum { kThreads = 16, kBytes = 128 * 1024 };
  for (int round = 0; round < 5; round++) {
    struct range given[kThreads];
    pthread_t t[kThreads];
    for (int i = 0; i < kThreads; i++) {
      void *memory = NULL;
      CHECK_OK(posix_memalign(&memory, 4096, kBytes));
      given[i] = (struct range){(char *)memory, kBytes, 0, 0};
      pthread_attr_t attr;
      CHECK_OK(pthread_attr_init(&attr));
      CHECK_OK(pthread_attr_setstack(&attr, memory, kBytes));
      CHECK_OK(pthread_create(&t[i], &attr, on_given_stack, &given[i]));
      CHECK_OK(pthread_attr_destroy(&attr));
    }
    for (int i = 0; i < kThreads; i++) {
      join(t[i]);
      memset(given[i].low, 0x55, kBytes);
      free(given[i].low);
    }
  }
}

static __attribute__((noinline)) int overflow(int depth) {
  volatile char frame[1024];
  frame[0] = (char)depth;
  return depth < 0 ? 0 : overflow(depth + 1) + frame[0];
}

static void *overflow_thread(void *arg) { return (void *)(intptr_t)overflow((int)(intptr_t)arg + 1); }

static int die_of_overflow(void *arg) {
  (void)arg;
  signal(SIGSEGV, SIG_DFL);
  struct range *r = malloc(sizeof *r);
  join(start(check_self, r));
  pthread_attr_t attr;
  pthread_t t;
  pthread_attr_init(&attr);
  pthread_attr_setstacksize(&attr, 256 * 1024);
  CHECK_OK(pthread_create(&t, &attr, overflow_thread, NULL));
  join(t);
  return 1;
}

static void overflow_hits_the_guard(void **state) {
  (void)state;
  CHECK_EQ(death_signal(in_child(die_of_overflow, NULL)), SIGSEGV);
}

static void *poke_guard(void *arg) {
  (void)arg;
  struct range r = range_of(pthread_self());
  *(volatile char *)(r.low - 1) = 1;
  return NULL;
}

static int die_in_guard(void *arg) {
  signal(SIGSEGV, SIG_DFL);
  join(start(poke_guard, arg));
  return 1;
}

static void byte_below_the_range_is_guarded(void **state) {
  (void)state;
  CHECK_EQ(death_signal(in_child(die_in_guard, NULL)), SIGSEGV);
}

static void *dirty_stack(void *arg) {
  volatile char area[200000];
  for (size_t i = 0; i < sizeof area; i++) area[i] = (char)0xdd;
  return arg;
}

// The way a leak checker or a GC reads another thread's stack: all of it, while it lives.
static void range_is_readable_by_others(void **state) {
  (void)state;
  for (int i = 0; i < 10; i++) join(start(dirty_stack, NULL));
  STORE(&gate, 0);
  pthread_t t = start(report_when_open, NULL);
  struct range r = range_of(t);
  unsigned long sum = 0;
  // The pages above the lowest ones: glibc places its guard inside the mapping, outside the range.
  for (size_t i = 0; i < r.bytes; i += 4096) sum += *(volatile unsigned char *)(r.low + i);
  STORE(&gate, 1);
  join(t);
  CHECK(sum < (unsigned long)-1);
}

// Slots cut many at once: each still has its own guard, and all of its stack.
static int can_read(const void *at) {
  char byte;
  struct iovec to = {&byte, 1}, from = {(void *)(uintptr_t)at, 1};
  return process_vm_readv(getpid(), &to, 1, &from, 1, 0) == 1;
}

static void each_of_many_threads_has_its_guard(void **state) {
  (void)state;
  enum { N = 400 };
  static pthread_t t[N];
  STORE(&gate, 0);
  for (int i = 0; i < N; i++) t[i] = start(report_when_open, NULL);
  for (int i = 0; i < N; i++) {
    struct range r = range_of(t[i]);
    CHECK(can_read(r.low));
    CHECK(can_read(r.low + r.bytes - 1));
    CHECK(!can_read(r.low - 1));
  }
  STORE(&gate, 1);
  for (int i = 0; i < N; i++) join(t[i]);
}

static pthread_barrier_t all_there;
static void *waits_for_all(void *arg) {
  pthread_barrier_wait(&all_there);
  return arg;
}

static void threads_at_once(int n, size_t stack_bytes) {
  pthread_t t[64];
  pthread_attr_t attr;
  CHECK_OK(pthread_barrier_init(&all_there, NULL, (unsigned)n));
  CHECK_OK(pthread_attr_init(&attr));
  CHECK_OK(pthread_attr_setstacksize(&attr, stack_bytes));
  for (int i = 0; i < n; i++) CHECK_OK(pthread_create(&t[i], &attr, waits_for_all, NULL));
  for (int i = 0; i < n; i++) join(t[i]);
  CHECK_OK(pthread_attr_destroy(&attr));
}

static int lives_within_a_limit(void *arg) {
  unsigned long pages = 0;  // of address space in use: the child has its parent's
  FILE *f = fopen("/proc/self/statm", "r");
  CHECK(f != NULL && fscanf(f, "%lu", &pages) == 1);
  fclose(f);
  struct rlimit limit = {.rlim_cur = pages * 4096 + ((rlim_t)900 << 20), .rlim_max = RLIM_INFINITY};
  CHECK_OK(setrlimit(RLIMIT_AS, &limit));
  for (int round = 0; round < 4; round++) {
    threads_at_once(40, (size_t)14 << 20);
    void *volatile much = malloc((size_t)600 << 20);
    CHECK(much != NULL);
    free(much);
    threads_at_once(60, (size_t)(1 + round) << 17);
    char *taken[8];  // where stacks were
    for (int i = 0; i < 8; i++)
      CHECK((taken[i] = mmap(NULL, (size_t)20 << 20, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)) != MAP_FAILED);
    threads_at_once(30, (size_t)14 << 20);
    for (int i = 0; i < 8; i++) munmap(taken[i], (size_t)20 << 20);
  }
  (void)arg;
  return 0;
}

// Under RLIMIT_AS malloc, and stacks of other sizes, get what ended threads had; it was kept.
static void address_space_of_ended_threads_is_had_again(void **state) {
  (void)state;
  CHECK_OK(exit_code(in_child(lives_within_a_limit, NULL)));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(main_range_holds_its_locals),
      cmocka_unit_test(main_range_seen_by_a_thread),
      cmocka_unit_test(creator_and_self_agree),
      cmocka_unit_test(at_once_in_new_threads),
      cmocka_unit_test(default_size_is_the_default),
      cmocka_unit_test(sizes_asked_for_are_reported),
      cmocka_unit_test(big_stack_is_usable_to_the_bottom),
      cmocka_unit_test(deep_recursion_in_several_threads),
      cmocka_unit_test(smallest_stacks_work),
      cmocka_unit_test(given_stack_is_used),
      cmocka_unit_test(given_stacks_from_malloc),
      cmocka_unit_test(overflow_hits_the_guard),
      cmocka_unit_test(byte_below_the_range_is_guarded),
      cmocka_unit_test(range_is_readable_by_others),
      cmocka_unit_test(each_of_many_threads_has_its_guard),
      cmocka_unit_test(address_space_of_ended_threads_is_had_again),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

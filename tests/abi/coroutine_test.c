// coroutine_test.c - family: a program's own switching inside threads.
//
// Behaviours: makecontext/swapcontext with blocking and yields inside, contexts moved between
// threads, thousands of them; sigaltstack and handlers on it per thread; setjmp/longjmp out of
// handlers; hand-made coroutines by longjmp between stacks; deep SEGV handler on altstack.
// Invariant: a thread may run on memory that is not its stack and stays the same thread.
#include "abi.h"

#include <ucontext.h>

struct coroutine {
  ucontext_t here, back;
  char *stack;
  long value, limit, sum;
  int finished;
};

enum { kStack = 65536 };
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static long total;

static void body(unsigned high, unsigned low) {
  struct coroutine *c = (struct coroutine *)((uintptr_t)high << 32 | low);
  for (c->value = 1; c->value <= c->limit; c->value++) {
    // Block and yield on the coroutine's stack.
    pthread_mutex_lock(&lock);
    total++;
    if (c->value % 3 == 0) sched_yield();
    pthread_mutex_unlock(&lock);
    char text[100];
    snprintf(text, sizeof text, "%.1f", (double)c->value);
    c->sum += atoi(text);
    swapcontext(&c->here, &c->back);
  }
  c->finished = 1;
  swapcontext(&c->here, &c->back);
}

static void make(struct coroutine *c, long limit) {
  memset(c, 0, sizeof *c);
  c->stack = malloc(kStack);
  c->limit = limit;
  CHECK_OK(getcontext(&c->here));
  c->here.uc_stack.ss_sp = c->stack;
  c->here.uc_stack.ss_size = kStack;
  c->here.uc_link = NULL;
  uintptr_t p = (uintptr_t)c;
  makecontext(&c->here, (void (*)(void))body, 2, (unsigned)(p >> 32), (unsigned)p);
}

static void resume(struct coroutine *c) { CHECK_OK(swapcontext(&c->back, &c->here)); }

static void *run_coroutines(void *arg) {
  enum { kMany = 20 };
  struct coroutine *all = calloc(kMany, sizeof *all);
  pthread_t me = pthread_self();
  pid_t tid = gettid();
  for (int i = 0; i < kMany; i++) make(&all[i], 20 + i % 3);
  for (int live = kMany; live > 0;) {
    live = 0;
    for (int i = 0; i < kMany; i++) {
      if (all[i].finished) continue;
      resume(&all[i]);
      live++;
      CHECK(pthread_equal(me, pthread_self()));
      CHECK_EQ(gettid(), tid);
    }
  }
  for (int i = 0; i < kMany; i++) {
    CHECK_EQ(all[i].sum, all[i].limit * (all[i].limit + 1) / 2);
    free(all[i].stack);
  }
  free(all);
  return arg;
}

static void coroutines_in_threads(void **state) {
  (void)state;
  pthread_t t[8];
  run_coroutines(NULL);
  for (int i = 0; i < 8; i++) t[i] = start(run_coroutines, NULL);
  for (int i = 0; i < 8; i++) join(t[i]);
}

// One coroutine resumed by one thread after another.
static struct coroutine wanderer;
static pthread_barrier_t barrier;
static void *resume_in_turn(void *arg) {
  intptr_t me = (intptr_t)arg;
  for (int i = 0; i < 40; i++) {
    if (i % 4 == me) resume(&wanderer);
    pthread_barrier_wait(&barrier);
  }
  return NULL;
}

static void coroutine_moved_between_threads(void **state) {
  (void)state;
  pthread_t t[4];
  make(&wanderer, 39);
  CHECK_OK(pthread_barrier_init(&barrier, NULL, 4));
  for (intptr_t i = 0; i < 4; i++) t[i] = start(resume_in_turn, (void *)i);
  for (int i = 0; i < 4; i++) join(t[i]);
  CHECK_EQ(wanderer.finished, 1);
  CHECK_EQ(wanderer.sum, 39 * 40 / 2);
  free(wanderer.stack);
}

// uc_link: falling off the end comes back.
static ucontext_t linked, linked_back;
static int linked_ran;
static void linked_body(void) {
  sched_yield();
  linked_ran++;
}
static void end_of_a_context_goes_to_its_link(void **state) {
  (void)state;
  char *stack = malloc(kStack);
  for (int i = 1; i <= 10; i++) {
    CHECK_OK(getcontext(&linked));
    linked.uc_stack.ss_sp = stack;
    linked.uc_stack.ss_size = kStack;
    linked.uc_link = &linked_back;
    makecontext(&linked, linked_body, 0);
    CHECK_OK(swapcontext(&linked_back, &linked));
    CHECK_EQ(linked_ran, i);
  }
  free(stack);
}

// A thread that computes on its own memory for longer than a time slice while others run.
static volatile long spun;
static void spin_body(void) {
  int64_t begin = now_ns(CLOCK_MONOTONIC);
  while (now_ns(CLOCK_MONOTONIC) - begin < 20000000)
    for (int i = 0; i < 10000; i++) spun = spun + 1;
}
static void *spin_on_own_stack(void *arg) {
  ucontext_t here, back;
  char *stack = malloc(kStack);
  CHECK_OK(getcontext(&here));
  here.uc_stack.ss_sp = stack;
  here.uc_stack.ss_size = kStack;
  here.uc_link = &back;
  makecontext(&here, spin_body, 0);
  CHECK_OK(swapcontext(&back, &here));
  free(stack);
  return arg;
}
static void computing_on_own_memory(void **state) {
  (void)state;
  pthread_t t[6];
  for (int i = 0; i < 6; i++) t[i] = start(spin_on_own_stack, NULL);
  for (int i = 0; i < 6; i++) join(t[i]);
}

// Alternate signal stacks.

static __thread volatile uintptr_t handler_frame;
static __thread volatile int handled;
static void on_signal(int sig) {
  char local;
  handler_frame = (uintptr_t)&local;
  handled = sig;
}

static void *use_altstack(void *arg) {
  stack_t mine = {.ss_sp = malloc(32768), .ss_size = 32768}, seen;
  CHECK_OK(sigaltstack(NULL, &seen));
  CHECK(seen.ss_flags & SS_DISABLE);
  CHECK_OK(sigaltstack(&mine, NULL));
  for (int i = 0; i < 20; i++) {
    sched_yield();
    handled = 0;
    CHECK_OK(raise(SIGUSR1));
    CHECK_EQ(handled, SIGUSR1);
    CHECK(handler_frame - (uintptr_t)mine.ss_sp < mine.ss_size);
    CHECK_OK(sigaltstack(NULL, &seen));
    CHECK(seen.ss_sp == mine.ss_sp);
    CHECK_EQ(seen.ss_size, mine.ss_size);
    CHECK_EQ(seen.ss_flags, 0);
  }
  if ((intptr_t)arg & 1) {
    mine.ss_flags = SS_DISABLE;
    CHECK_OK(sigaltstack(&mine, NULL));
    free(mine.ss_sp);
  }
  return NULL;  // else left in place: must not show in the next thread
}

static void alternate_stack_per_thread(void **state) {
  (void)state;
  struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_ONSTACK}, old;
  CHECK_OK(sigaction(SIGUSR1, &action, &old));
  for (int round = 0; round < 4; round++) {
    pthread_t t[16];
    for (intptr_t i = 0; i < 16; i++) t[i] = start(use_altstack, (void *)i);
    for (int i = 0; i < 16; i++) join(t[i]);
  }
  CHECK_OK(sigaction(SIGUSR1, &old, NULL));
}

// Stack overflow caught on the alternate stack, left by siglongjmp, many times.
static __thread sigjmp_buf recover;
static void on_overflow(int sig) { siglongjmp(recover, sig); }
static __attribute__((noinline)) int recurse(int depth) {
  volatile char frame[4000];
  frame[0] = (char)depth;
  return depth < 0 ? 0 : recurse(depth + 1) + frame[0];
}

static void *overflow_and_recover(void *arg) {
  stack_t mine = {.ss_sp = malloc(65536), .ss_size = 65536};
  CHECK_OK(sigaltstack(&mine, NULL));
  int rounds = 0, *counter = &rounds;
  while (__atomic_load_n(counter, __ATOMIC_RELAXED) < 3) {
    int sig = sigsetjmp(recover, 1);
    if (sig == 0) recurse(1);
    CHECK_EQ(sig, SIGSEGV);
    __atomic_add_fetch(counter, 1, __ATOMIC_RELAXED);
    sched_yield();
  }
  mine.ss_flags = SS_DISABLE;
  CHECK_OK(sigaltstack(&mine, NULL));
  free(mine.ss_sp);
  return arg;
}

static void overflow_caught_on_the_alternate_stack(void **state) {
  (void)state;
  struct sigaction action = {.sa_handler = on_overflow, .sa_flags = SA_ONSTACK}, old;
  CHECK_OK(sigaction(SIGSEGV, &action, &old));
  pthread_attr_t attr;
  CHECK_OK(pthread_attr_init(&attr));
  CHECK_OK(pthread_attr_setstacksize(&attr, 256 * 1024));
  pthread_t t[4];
  for (int i = 0; i < 4; i++) CHECK_OK(pthread_create(&t[i], &attr, overflow_and_recover, NULL));
  for (int i = 0; i < 4; i++) join(t[i]);
  CHECK_OK(pthread_attr_destroy(&attr));
  CHECK_OK(sigaction(SIGSEGV, &old, NULL));
}

// The signal frame as a coroutine's birth: an old trick to make stacks (sigaltstack + longjmp).
static __thread jmp_buf birth, parent;
static __thread volatile int born_value;
static void be_born(int sig) {
  (void)sig;
  if (_setjmp(birth) == 0) return;
  born_value = 42;
  sched_yield();
  _longjmp(parent, 1);
}

static void *stack_by_signal(void *arg) {
  char *memory = malloc(65536);
  stack_t mine = {.ss_sp = memory, .ss_size = 65536}, off = {.ss_flags = SS_DISABLE};
  CHECK_OK(sigaltstack(&mine, NULL));
  CHECK_OK(raise(SIGUSR2));
  CHECK_OK(sigaltstack(&off, NULL));
  if (_setjmp(parent) == 0) _longjmp(birth, 1);
  CHECK_EQ(born_value, 42);
  return arg;
}

static void stacks_made_by_signals(void **state) {
  (void)state;
  struct sigaction action = {.sa_handler = be_born, .sa_flags = SA_ONSTACK}, old;
  CHECK_OK(sigaction(SIGUSR2, &action, &old));
  pthread_t t[8];
  for (int i = 0; i < 8; i++) t[i] = start(stack_by_signal, NULL);
  for (int i = 0; i < 8; i++) join(t[i]);
  CHECK_OK(sigaction(SIGUSR2, &old, NULL));
}

// What swapcontext saved may be gone back to again after the call has returned once; the frames
// below its caller's are others by then (weft's own lay there once).
static ucontext_t saved, other;
static volatile int swaps_returned;

static void back_to_saved(void) {
  for (;;) CHECK_OK(swapcontext(&other, &saved));
}

static void overwrite_below(void) {
  volatile char block[4096];
  memset((void *)block, 0x5a, sizeof block);
}

static void *swap_returns_twice(void *arg) {
  static char stack[32 << 10];
  CHECK_OK(getcontext(&other));
  other.uc_stack.ss_sp = stack;
  other.uc_stack.ss_size = sizeof stack;
  other.uc_link = NULL;
  makecontext(&other, back_to_saved, 0);
  swaps_returned = 0;
  CHECK_OK(swapcontext(&saved, &other));
  overwrite_below();
  yield_some(3);
  if (++swaps_returned < 5) CHECK_OK(setcontext(&saved));
  CHECK_EQ(swaps_returned, 5);
  return arg;
}

static void saved_context_is_used_again(void **state) {
  (void)state;
  swap_returns_twice(NULL);
  join(start(swap_returns_twice, NULL));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(coroutines_in_threads),
      cmocka_unit_test(coroutine_moved_between_threads),
      cmocka_unit_test(saved_context_is_used_again),
      cmocka_unit_test(end_of_a_context_goes_to_its_link),
      cmocka_unit_test(computing_on_own_memory),
      cmocka_unit_test(alternate_stack_per_thread),
      cmocka_unit_test(overflow_caught_on_the_alternate_stack),
      cmocka_unit_test(stacks_made_by_signals),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

// alias_test.c - family: second names of thread functions, and the loader's second namespace.
//
// Behaviours: __sched_yield, __nanosleep, pthread_yield (an old version only), __longjmp_chk,
// setcontext, __register_atfork behave as the names that programs usually call; dlmopen'd
// libraries have TLS of their own in every thread.
// Invariant: whichever name is called, the same thing happens.
// libs: -ldl
#include "abi.h"

#include <dlfcn.h>
#include <ucontext.h>

extern int __sched_yield(void);
extern int __nanosleep(const struct timespec *, struct timespec *);
extern void __longjmp_chk(jmp_buf, int) __attribute__((noreturn));
extern int __register_atfork(void (*)(void), void (*)(void), void (*)(void), void *);
extern void *__dso_handle;
// What old binaries refer to; today's linker offers it by its version only.
extern int old_yield(void);
__asm__(".symver old_yield, pthread_yield@GLIBC_2.2.5");

static int turn;

static void *take_turns(void *arg) {
  int me = (int)(intptr_t)arg;
  for (int i = 0; i < 200; i++) {
    while (LOAD(&turn) % 3 != me) CHECK_OK(i & 1 ? __sched_yield() : old_yield());
    ADD(&turn, 1);
  }
  return NULL;
}

static void yields(void **state) {
  (void)state;
  pthread_t t[3];
  for (intptr_t i = 0; i < 3; i++) t[i] = start(take_turns, (void *)i);
  for (int i = 0; i < 3; i++) join(t[i]);
  CHECK_EQ(turn, 600);
}

static void *sleep_underscored(void *arg) {
  struct timespec length = to_timespec(5000000), bad = {0, -1};
  int64_t begin = now_ns(CLOCK_MONOTONIC);
  CHECK_OK(__nanosleep(&length, NULL));
  CHECK(now_ns(CLOCK_MONOTONIC) - begin >= 5000000);
  CHECK_FAILS(__nanosleep(&bad, NULL), EINVAL);
  return arg;
}

static void sleeps(void **state) {
  (void)state;
  pthread_t t[10];
  sleep_underscored(NULL);
  for (int i = 0; i < 10; i++) t[i] = start(sleep_underscored, NULL);
  for (int i = 0; i < 10; i++) join(t[i]);
}

static __attribute__((noinline)) void jump_from_below(jmp_buf env, int depth) {
  volatile char frame[300];
  frame[0] = (char)depth;
  sched_yield();
  if (depth > 0) jump_from_below(env, depth - 1);
  if (depth == 0) __longjmp_chk(env, 9);
  frame[1] = frame[0];
}
static void *jump_checked(void *arg) {
  jmp_buf env;
  int rounds = 0, *counter = &rounds;
  while (__atomic_load_n(counter, __ATOMIC_RELAXED) < 20) {
    int r = setjmp(env);
    if (r == 0) jump_from_below(env, 4);
    CHECK_EQ(r, 9);
    __atomic_add_fetch(counter, 1, __ATOMIC_RELAXED);
  }
  return arg;
}

static void checked_jumps(void **state) {
  (void)state;
  pthread_t t[10];
  jump_checked(NULL);
  for (int i = 0; i < 10; i++) t[i] = start(jump_checked, NULL);
  for (int i = 0; i < 10; i++) join(t[i]);
}

static void *return_by_context(void *arg) {
  ucontext_t here;
  int rounds = 0, *counter = &rounds;
  sigset_t block, now;
  sigemptyset(&block);
  sigaddset(&block, SIGUSR1);
  CHECK_OK(getcontext(&here));
  CHECK_OK(pthread_sigmask(SIG_BLOCK, NULL, &now));
  CHECK(!sigismember(&now, SIGUSR1));  // setcontext brings the mask back too
  if (__atomic_add_fetch(counter, 1, __ATOMIC_RELAXED) < 20) {
    CHECK_OK(pthread_sigmask(SIG_BLOCK, &block, NULL));
    sched_yield();
    setcontext(&here);
    CHECK(!"setcontext returned");
  }
  CHECK_EQ(rounds, 20);
  return arg;
}

static void contexts(void **state) {
  (void)state;
  pthread_t t[10];
  return_by_context(NULL);
  for (int i = 0; i < 10; i++) t[i] = start(return_by_context, NULL);
  for (int i = 0; i < 10; i++) join(t[i]);
}

static int prepared, in_parent, in_child_process;
static void prepare(void) { prepared++; }
static void parent(void) { in_parent++; }
static void child(void) { in_child_process++; }
static int check_child(void *arg) {
  CHECK(prepared == 1 && in_parent == 0 && in_child_process == 1);
  return (int)(intptr_t)arg;
}

static void atfork_by_its_inner_name(void **state) {
  (void)state;
  CHECK_OK(__register_atfork(prepare, parent, child, __dso_handle));
  CHECK_EQ(exit_code(in_child(check_child, (void *)6)), 6);
  CHECK(prepared == 1 && in_parent == 1 && in_child_process == 0);
}

typedef long *(*address_fn)(void);
static address_fn first, second;
static void *use_both_namespaces(void *arg) {
  CHECK_EQ(*first(), 7700);
  CHECK_EQ(*second(), 7700);
  CHECK(first() != second());
  *first() = (long)arg;
  *second() = -(long)arg;
  sched_yield();
  CHECK_EQ(*first(), (long)arg);
  CHECK_EQ(*second(), -(long)arg);
  return NULL;
}

static void second_namespace(void **state) {
  (void)state;
  char path[PATH_MAX];
  ssize_t n = readlink("/proc/self/exe", path, sizeof path - 64);
  CHECK(n > 0);
  path[n] = 0;
  strcpy(strrchr(path, '/'), "/lib/tls_gd.so");
  void *one = dlopen(path, RTLD_NOW), *two = dlmopen(LM_ID_NEWLM, path, RTLD_NOW);
  CHECK(one != NULL);
  if (two == NULL) skip();  // no room for the static TLS of another libc
  first = (address_fn)dlsym(one, "gd_value_address");
  second = (address_fn)dlsym(two, "gd_value_address");
  CHECK(first != NULL && second != NULL);
  pthread_t t[20];
  for (long i = 0; i < 20; i++) t[i] = start(use_both_namespaces, (void *)(i + 1));
  for (int i = 0; i < 20; i++) join(t[i]);
  for (long i = 0; i < 20; i++) join(start(use_both_namespaces, (void *)(i + 1)));
  CHECK_OK(dlclose(two));
  CHECK_OK(dlclose(one));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(yields),
      cmocka_unit_test(sleeps),
      cmocka_unit_test(checked_jumps),
      cmocka_unit_test(contexts),
      cmocka_unit_test(atfork_by_its_inner_name),
      cmocka_unit_test(second_namespace),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

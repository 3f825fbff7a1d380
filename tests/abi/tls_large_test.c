// tls_large_test.c - family: threads of a program with large, strongly aligned static TLS.
//
// Behaviours: 96 KiB of TLS aligned to a page, in ordinary, small-stack and given-stack threads;
// initial values far apart; stacks keep the size asked for beside it; recycled slots start
// afresh; threads created before main, in a constructor.
// Invariant: static TLS comes on top of the stack and is whole in every thread.
#include "abi.h"

enum { kWords = 12000 };
static __thread long big[kWords] __attribute__((aligned(4096))) = {[0] = 11, [6000] = 22, [kWords - 1] = 33};
static __thread char zeroes[8192] __attribute__((aligned(1024)));

static void check_fresh(void) {
  CHECK_EQ((uintptr_t)big % 4096, 0);
  CHECK_EQ((uintptr_t)zeroes % 1024, 0);
  for (int i = 0; i < kWords; i++) {
    long want = i == 0 ? 11 : i == 6000 ? 22 : i == kWords - 1 ? 33 : 0;
    if (big[i] != want) CHECK_EQ(big[i], want);
  }
  for (size_t i = 0; i < sizeof zeroes; i++)
    if (zeroes[i]) CHECK_EQ(zeroes[i], 0);
}

static void *use(void *arg) {
  check_fresh();
  for (int i = 0; i < kWords; i++) big[i] = (long)arg;
  memset(zeroes, 1, sizeof zeroes);
  sched_yield();
  for (int i = 0; i < kWords; i += 500) CHECK_EQ(big[i], (long)arg);
  return arg;
}

// Created before main: by now joined or waiting for main to let it go.
static pthread_t early[3];
static int main_runs;
static void *wait_for_main(void *arg) {
  check_fresh();
  AWAIT(LOAD(&main_runs));
  return use(arg);
}
__attribute__((constructor)) static void before_main(void) {
  for (long i = 0; i < 3; i++)
    if (pthread_create(&early[i], NULL, wait_for_main, (void *)(i + 40)) != 0) abort();
}

static void threads_created_before_main(void **state) {
  (void)state;
  STORE(&main_runs, 1);
  for (long i = 0; i < 3; i++) CHECK_EQ((long)join(early[i]), i + 40);
}

static void every_thread_has_it_fresh(void **state) {
  (void)state;
  for (long i = 0; i < 100; i++) join(start(use, (void *)i));
  for (int wave = 0; wave < 5; wave++) {
    pthread_t t[30];
    for (long i = 0; i < 30; i++) t[i] = start(use, (void *)i);
    for (int i = 0; i < 30; i++) join(t[i]);
  }
  check_fresh();
}

static void *touch_most(void *bytes) {
  check_fresh();
  size_t room = (size_t)bytes;
  volatile char *area = __builtin_alloca(room);
  for (size_t i = room; i >= 1024; i -= 1024) area[i - 1] = 1;
  check_fresh();
  return NULL;
}

// nptl takes static TLS out of the stack; half of 1 MiB is left in any case.
static void stacks_beside_it(void **state) {
  (void)state;
  pthread_attr_t attr;
  CHECK_OK(pthread_attr_init(&attr));
  CHECK_OK(pthread_attr_setstacksize(&attr, 1 << 20));
  for (int i = 0; i < 20; i++) {
    pthread_t t;
    CHECK_OK(pthread_create(&t, &attr, touch_most, (void *)(size_t)(512 * 1024)));
    join(t);
  }
  void *memory = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK_OK(pthread_attr_setstack(&attr, memory, 1 << 20));
  for (long i = 0; i < 20; i++) {
    pthread_t t;
    CHECK_OK(pthread_create(&t, &attr, i & 1 ? touch_most : use, i & 1 ? (void *)(size_t)(512 * 1024) : (void *)i));
    join(t);
  }
  CHECK_OK(pthread_attr_destroy(&attr));
  munmap(memory, 1 << 20);
}

static int use_in_child(void *arg) {
  for (long i = 0; i < 10; i++) join(start(use, (void *)i));
  check_fresh();
  (void)arg;
  return 0;
}
static void in_a_forked_child(void **state) {
  (void)state;
  CHECK_OK(in_child(use_in_child, NULL));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(threads_created_before_main),
      cmocka_unit_test(every_thread_has_it_fresh),
      cmocka_unit_test(stacks_beside_it),
      cmocka_unit_test(in_a_forked_child),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

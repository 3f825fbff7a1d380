// abi.h - what the programs under tests/abi and tests/stress share: checks that
// work in any thread, bounded waiting (AWAIT), and forked children.
//
// Invariant: these are plain pthread programs; nothing here knows of weft.
// Callers:   any thread. A failed check on the first thread of the first process
//            fails that one cmocka test; anywhere else it ends the process with
//            status 70, because a cmocka test can only be left by its own thread.
// Include it first: it defines _GNU_SOURCE.
#ifndef TESTS_ABI_ABI_H
#define TESTS_ABI_ABI_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "temp.h"
#ifndef ABI_NO_CMOCKA
#ifdef __cplusplus
extern "C" {
#endif
#include <cmocka.h>
#ifdef __cplusplus
}
#endif
// cmocka's name clashes with <assert.h> and C++ headers; ours is CHECK.
#undef fail
#endif

#define ABI_UNUSED __attribute__((unused))
#define ABI_EXIT_FAILED 70

static pthread_t abi_main_thread;
static pid_t abi_main_pid;

__attribute__((constructor)) static void abi_remember_main(void) {
  abi_main_thread = pthread_self();
  abi_main_pid = getpid();
}

ABI_UNUSED static void abi_fail(const char *file, int line, const char *what, long long got,
                                long long want) {
  dprintf(2, "%s:%d: check failed: %s (%lld, %lld) errno %d pid %d\n", file, line, what, got, want,
          errno, (int)getpid());
#ifndef ABI_NO_CMOCKA
  if (getpid() == abi_main_pid && pthread_equal(pthread_self(), abi_main_thread)) _fail(file, line);
#endif
  _exit(ABI_EXIT_FAILED);
}

// CHECK(condition), CHECK_EQ(got, want) for integers, CHECK_OK(call) for calls that
// answer 0, CHECK_FAILS(call, error) for calls that answer -1 and set errno.
#define CHECK(cond) ((cond) ? (void)0 : abi_fail(__FILE__, __LINE__, #cond, 0, 1))
#define CHECK_EQ(got, want)                                                                    \
  do {                                                                                         \
    long long abi_got = (long long)(got), abi_want = (long long)(want);                        \
    if (abi_got != abi_want) abi_fail(__FILE__, __LINE__, #got " == " #want, abi_got, abi_want); \
  } while (0)
#define CHECK_OK(call) CHECK_EQ((call), 0)
#define CHECK_FAILS(call, error)                   \
  do {                                             \
    errno = 0;                                     \
    long long abi_result = (long long)(call);      \
    int abi_errno = errno;                         \
    CHECK_EQ(abi_result, -1);                      \
    CHECK_EQ(abi_errno, (error));                  \
  } while (0)

ABI_UNUSED static int64_t now_ns(clockid_t clock) {
  struct timespec ts;
  clock_gettime(clock, &ts);
  return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

ABI_UNUSED static struct timespec to_timespec(int64_t ns) {
  struct timespec ts = {(time_t)(ns / 1000000000), (long)(ns % 1000000000)};
  return ts;
}

// The absolute time `ms` milliseconds from now (negative: in the past).
ABI_UNUSED static struct timespec in_ms(clockid_t clock, int64_t ms) {
  return to_timespec(now_ns(clock) + ms * 1000000);
}

ABI_UNUSED static struct timespec in_us(clockid_t clock, int64_t us) {
  return to_timespec(now_ns(clock) + us * 1000);
}

ABI_UNUSED static int is_past(clockid_t clock, struct timespec t) {
  return now_ns(clock) >= (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

// Waits for an event that another thread brings about; yields meanwhile. 40 s is a
// bound for a broken system, not a measure of time.
#define AWAIT(cond)                                                          \
  do {                                                                            \
    int64_t abi_end = now_ns(CLOCK_MONOTONIC) + 40000000000LL;                    \
    while (!(cond)) {                                                             \
      if (now_ns(CLOCK_MONOTONIC) > abi_end)                                      \
        abi_fail(__FILE__, __LINE__, "waited in vain for: " #cond, 0, 1);         \
      sched_yield();                                                              \
    }                                                                             \
  } while (0)

// Gives others the chance to get further, for instance into a blocking call. It
// orders nothing: a test must be right whether or not they took the chance.
ABI_UNUSED static void yield_some(int times) {
  while (times-- > 0) sched_yield();
}

ABI_UNUSED static pthread_t start(void *(*routine)(void *), void *arg) {
  pthread_t t;
  CHECK_OK(pthread_create(&t, NULL, routine, arg));
  return t;
}

ABI_UNUSED static void *join(pthread_t t) {
  void *result = (void *)-99;
  CHECK_OK(pthread_join(t, &result));
  return result;
}

#define LOAD(p) __atomic_load_n((p), __ATOMIC_SEQ_CST)
#define STORE(p, v) __atomic_store_n((p), (v), __ATOMIC_SEQ_CST)
#define ADD(p, v) __atomic_add_fetch((p), (v), __ATOMIC_SEQ_CST)

// Runs fn(arg) in a forked child, which ends with _exit(fn's answer) if fn returns;
// answers the wait status.
ABI_UNUSED static int in_child(int (*fn)(void *), void *arg) {
  fflush(NULL);
  pid_t pid = fork();
  CHECK(pid >= 0);
  if (pid == 0) _exit(fn(arg));
  int status = -1;
  pid_t got;
  do got = waitpid(pid, &status, 0);
  while (got < 0 && errno == EINTR);
  CHECK_EQ(got, pid);
  return status;
}

ABI_UNUSED static int exit_code(int status) { return WIFEXITED(status) ? WEXITSTATUS(status) : -status; }
ABI_UNUSED static int death_signal(int status) { return WIFSIGNALED(status) ? WTERMSIG(status) : -1; }

// Before the first thread: the program has the first n of its cores and no more.
ABI_UNUSED static void keep_cores(int n) {
  cpu_set_t set;
  CHECK_OK(sched_getaffinity(0, sizeof set, &set));
  for (int i = 0, found = 0; i < CPU_SETSIZE; i++)
    if (CPU_ISSET(i, &set) && found++ >= n) CPU_CLR(i, &set);
  CHECK_OK(sched_setaffinity(0, sizeof set, &set));
}

ABI_UNUSED static void keep_one_core(void) { keep_cores(1); }

// Memory that stays shared with forked children, zeroed.
ABI_UNUSED static void *shared_memory(size_t bytes) {
  void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  CHECK(p != MAP_FAILED);
  return p;
}

#endif

// hidden_block_test.c - family: threads that block where no library entry point is passed.
//
// Behaviours: inline syscall instructions (futex wait, pipe read, nanosleep), also of a process
// that has changed its user, a call that computes for long, stdio locks and
// stdio reads, the loader's lock held in a callback, flock, malloc arenas under fire: with
// any number of processors the other threads get on, and the blocked ones
// come back right, all of them, with their registers and errno.
// Invariant: a thread asleep in the kernel keeps nobody else from running.
// libs: -ldl
#include "abi.h"

#include <dlfcn.h>
#include <linux/futex.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>

// As libgomp and static runtimes do it: no call that anyone could interpose.
static long inline_syscall(long nr, long a, long b, long c, long d) {
  long result;
  register long r10 __asm__("r10") = d;
  __asm__ volatile("syscall"
                   : "=a"(result)
                   : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10)
                   : "rcx", "r11", "memory");
  return result;
}

static int entered, released, came_back;
static int word;

static void *wait_inline(void *arg) {
  errno = 33;
  ADD(&entered, 1);
  while (LOAD(&word) == 0) inline_syscall(SYS_futex, (long)&word, FUTEX_WAIT_PRIVATE, 0, 0);
  CHECK_EQ(errno, 33);
  ADD(&came_back, 1);
  return arg;
}

// The rest of the world while others are blocked: threads that yield, block, create, join.
static void *echo(void *arg) {
  sched_yield();
  return arg;
}
static void *lead_a_life(void *arg) {
  pthread_mutex_t m = PTHREAD_MUTEX_INITIALIZER;
  for (intptr_t i = 0; i < 20; i++) {
    pthread_mutex_lock(&m);
    CHECK_EQ((intptr_t)join(start(echo, (void *)i)), i);
    pthread_mutex_unlock(&m);
    struct timespec tiny = to_timespec(1000);
    nanosleep(&tiny, NULL);
  }
  return arg;
}
static void others_get_on(void) {
  pthread_t t[4];
  for (int i = 0; i < 4; i++) t[i] = start(lead_a_life, NULL);
  for (int i = 0; i < 4; i++) join(t[i]);
}

static void begin(pthread_t *t, int n, void *(*fn)(void *), void *arg) {
  entered = released = came_back = 0;
  for (int i = 0; i < n; i++) t[i] = start(fn, arg);
  AWAIT(LOAD(&entered) == n);
}
static void end(pthread_t *t, int n) {
  for (int i = 0; i < n; i++) join(t[i]);
  CHECK_EQ(came_back, n);
}

static void inline_futex(void **state) {
  (void)state;
  for (int round = 0; round < 3; round++) {
    pthread_t t[12];
    word = 0;
    begin(t, 12, wait_inline, NULL);
    others_get_on();
    CHECK_EQ(LOAD(&came_back), 0);
    STORE(&word, 1);
    inline_syscall(SYS_futex, (long)&word, FUTEX_WAKE_PRIVATE, INT_MAX, 0);
    end(t, 12);
  }
}

// An inline barrier in rounds: every thread blocks in each round (OpenMP's shape).
static int arrived, generation;
static void inline_barrier(int n) {
  int mine = LOAD(&generation);
  if (ADD(&arrived, 1) == n) {
    STORE(&arrived, 0);
    ADD(&generation, 1);
    inline_syscall(SYS_futex, (long)&generation, FUTEX_WAKE_PRIVATE, INT_MAX, 0);
    return;
  }
  while (LOAD(&generation) == mine) inline_syscall(SYS_futex, (long)&generation, FUTEX_WAIT_PRIVATE, mine, 0);
}
static int sums[40];
static void *rounds_of_barriers(void *arg) {
  for (int i = 0; i < 40; i++) {
    ADD(&sums[i], 1);
    inline_barrier(6);
    CHECK_EQ(LOAD(&sums[i]), 6);
  }
  return arg;
}
static void inline_barriers(void **state) {
  (void)state;
  pthread_t t[6];
  for (int i = 0; i < 6; i++) t[i] = start(rounds_of_barriers, NULL);
  for (int i = 0; i < 6; i++) join(t[i]);
}

static int ends[2];
static void *read_inline(void *arg) {
  char c = 0;
  ADD(&entered, 1);
  CHECK_EQ(inline_syscall(SYS_read, ends[0], (long)&c, 1, 0), 1);
  CHECK_EQ(c, 'h');
  ADD(&came_back, 1);
  return arg;
}
static void inline_read(void **state) {
  (void)state;
  pthread_t t[6];
  CHECK_OK(pipe(ends));
  begin(t, 6, read_inline, NULL);
  others_get_on();
  CHECK_EQ(LOAD(&came_back), 0);
  CHECK_EQ(write(ends[1], "hhhhhh", 6), 6);
  end(t, 6);
}

static void *sleep_inline(void *arg) {
  struct timespec length = to_timespec(20000000);
  int64_t begin_ns = now_ns(CLOCK_MONOTONIC);
  ADD(&entered, 1);
  CHECK_EQ(inline_syscall(SYS_nanosleep, (long)&length, 0, 0, 0), 0);
  CHECK(now_ns(CLOCK_MONOTONIC) - begin_ns >= 20000000);
  ADD(&came_back, 1);
  return arg;
}
static void inline_sleep(void **state) {
  (void)state;
  pthread_t t[8];
  begin(t, 8, sleep_inline, NULL);
  others_get_on();
  end(t, 8);
}

// As a server does that begins as root: most of what /proc says of it is root's alone then. Threads
// that slept were taken to compute, and interrupted (EINTR) as their slices were over.
static int without_proc(void *state) {
  if (getuid() == 0) CHECK_OK(setuid(65534));
  CHECK_OK(prctl(PR_SET_DUMPABLE, 0, 0, 0, 0));
  inline_sleep(state);
  return 0;
}
// Who is about to go to sleep when it is asked about may be interrupted still, one run in 100
// beside other load.
static void clean_once(int (*fn)(void *), void *state) {
  int clean = 0;
  for (int i = 0; i < 3 && !clean; i++) clean = in_child(fn, state) == 0;
  CHECK(clean);
}
static void user_changed(void **state) { clean_once(without_proc, state); }

// Nor can anything be asked where no file can be opened: no descriptor is left, or, after chroot,
// there is no /proc.
static int without_files(void *state) {
  struct rlimit none = {0, 0};
  CHECK_OK(setrlimit(RLIMIT_NOFILE, &none));
  inline_sleep(state);
  inline_futex(state);
  return 0;
}
static void no_files(void **state) { clean_once(without_files, state); }

// A call that computes in the kernel for long sleeps nowhere, and others get on all the same.
static void *yield_until_released(void *arg) {
  while (!LOAD(&released)) {
    ADD(&entered, 1);
    sched_yield();
  }
  return arg;
}
static void long_call(void **state) {
  (void)state;
  size_t n = 32 << 20;
  char *bytes = malloc(n);
  entered = released = 0;
  pthread_t t = start(yield_until_released, NULL);
  AWAIT(LOAD(&entered) > 0);
  int before = LOAD(&entered);
  CHECK_EQ(getrandom(bytes, n, 0), (ssize_t)n);
  CHECK(LOAD(&entered) > before);
  STORE(&released, 1);
  join(t);
  free(bytes);
}

// A stdio lock: libc waits for it inside itself.
static void *print_locked(void *file) {
  ADD(&entered, 1);
  CHECK(fprintf((FILE *)file, "line\n") == 5);
  ADD(&came_back, 1);
  return NULL;
}
static void stdio_lock(void **state) {
  (void)state;
  for (int round = 0; round < 3; round++) {
    FILE *file = tmpfile();
    pthread_t t[8];
    flockfile(file);
    begin(t, 8, print_locked, file);
    others_get_on();
    CHECK_EQ(LOAD(&came_back), 0);
    CHECK_EQ(ftrylockfile(file), 0);  // ours: it nests
    funlockfile(file);
    CHECK(fputs("mine\n", file) >= 0);
    funlockfile(file);
    end(t, 8);
    CHECK_EQ(ftell(file), 45);
    fclose(file);
  }
}

static void *get_line(void *file) {
  char line[32];
  ADD(&entered, 1);
  CHECK(fgets(line, sizeof line, (FILE *)file) != NULL);
  CHECK(strncmp(line, "line ", 5) == 0);
  ADD(&came_back, 1);
  return NULL;
}
static void stdio_read(void **state) {
  (void)state;
  pthread_t t[4];
  CHECK_OK(pipe(ends));
  FILE *file = fdopen(ends[0], "r");
  begin(t, 4, get_line, file);  // one reads, the others wait for the stream's lock
  others_get_on();
  CHECK_EQ(LOAD(&came_back), 0);
  CHECK_EQ(write(ends[1], "line 1\nline 2\nline 3\nline 4\n", 28), 28);
  end(t, 4);
  fclose(file);
}

// The loader's lock is held by a callback of dl_iterate_phdr; dlopen waits inside ld.so. No
// thread is created meanwhile: that may need the loader too.
static void *use_loader(void *arg) {
  AWAIT(LOAD(&released));
  ADD(&entered, 1);
  void *library = dlopen("libm.so.6", RTLD_NOW);
  CHECK(library != NULL);
  CHECK(dlsym(library, "cos") != NULL);
  CHECK_OK(dlclose(library));
  ADD(&came_back, 1);
  return arg;
}
static int steps;
static void *count_steps(void *arg) {
  while (LOAD(&came_back) < 6) {
    ADD(&steps, 1);
    struct timespec tiny = to_timespec(1000);
    nanosleep(&tiny, NULL);
  }
  return arg;
}
extern int dl_iterate_phdr(int (*)(void *, size_t, void *), void *);
static int hold_loader(void *info, size_t size, void *data) {
  (void)info, (void)size, (void)data;
  STORE(&released, 1);
  AWAIT(LOAD(&entered) == 6);
  yield_some(100);
  int before = LOAD(&steps);
  AWAIT(LOAD(&steps) >= before + 50);
  return 1;
}
static void loader_lock(void **state) {
  (void)state;
  for (int round = 0; round < 3; round++) {
    pthread_t t[6], counter;
    entered = released = came_back = 0;
    for (int i = 0; i < 6; i++) t[i] = start(use_loader, NULL);
    counter = start(count_steps, NULL);
    CHECK_EQ(dl_iterate_phdr(hold_loader, NULL), 1);
    end(t, 6);
    join(counter);
  }
}

static void *take_flock(void *path) {
  FILE *file = fopen(path, "r");
  ADD(&entered, 1);
  CHECK_OK(flock(fileno(file), LOCK_EX));
  CHECK_EQ(LOAD(&released), 1);
  ADD(&came_back, 1);
  fclose(file);
  return NULL;
}
static void file_lock(void **state) {
  (void)state;
  char path[TEMP_ROOM];
  pthread_t t[5];
  temp_path(path, "weft-hidden-XXXXXX");
  int fd = mkstemp(path);
  CHECK_OK(flock(fd, LOCK_EX));
  begin(t, 5, take_flock, path);
  others_get_on();
  CHECK_EQ(LOAD(&came_back), 0);
  STORE(&released, 1);
  CHECK_OK(flock(fd, LOCK_UN));
  end(t, 5);
  close(fd);
  unlink(path);
}

// All arenas of malloc under fire from more threads than arenas.
static void *hammer_malloc(void *arg) {
  void *list[50] = {0};
  for (int i = 0; i < 3000; i++) {
    int k = i * 7 % 50;
    free(list[k]);
    list[k] = malloc((size_t)(i * 131 % 40000) + 1);
    *(char *)list[k] = (char)k;
  }
  for (int i = 0; i < 50; i++) free(list[i]);
  return arg;
}
static void malloc_arenas(void **state) {
  (void)state;
  pthread_t t[64];
  for (int i = 0; i < 64; i++) t[i] = start(hammer_malloc, NULL);
  for (int i = 0; i < 64; i++) join(t[i]);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(inline_futex),
      cmocka_unit_test(inline_barriers),
      cmocka_unit_test(inline_read),
      cmocka_unit_test(inline_sleep),
      cmocka_unit_test(user_changed),
      cmocka_unit_test(no_files),
      cmocka_unit_test(long_call),
      cmocka_unit_test(stdio_lock),
      cmocka_unit_test(stdio_read),
      cmocka_unit_test(loader_lock),
      cmocka_unit_test(file_lock),
      cmocka_unit_test(malloc_arenas),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

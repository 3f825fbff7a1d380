// clone_test.c - family: the forks that are not fork(): clone, _Fork, vfork, daemon,
// forkpty, raw system calls.
//
// Each is made by a thread of a threaded process; the child must be usable (threads, locks)
// where it has memory of its own, and must leave the parent's descriptors and signal
// actions alone where it has not.
// The double-underscore names of these and of the wait family are the same functions.
// libs: -lutil
#include "abi.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <pty.h>
#include <sys/resource.h>
#include <sys/wait.h>

#ifndef CLONE_VM
#define CLONE_VM 0x100
#define CLONE_VFORK 0x4000
#endif
int clone(int (*)(void *), void *, int, void *, ...);

static char stack[256 * 1024] __attribute__((aligned(64)));

static void *square(void *arg) {
  sched_yield();
  return (void *)((intptr_t)arg * (intptr_t)arg);
}

static int use_threads(void) {
  pthread_t t[10];
  for (intptr_t i = 0; i < 10; i++) t[i] = start(square, (void *)i);
  for (intptr_t i = 0; i < 10; i++) CHECK_EQ((intptr_t)join(t[i]), i * i);
  return 33;
}

static int wait_for(pid_t pid) {
  int status = -1;
  CHECK(pid > 0);
  CHECK_EQ(waitpid(pid, &status, 0), pid);
  return exit_code(status);
}

static void in_main_and_thread(void *(*fn)(void *)) {
  join(start(square, (void *)1));
  for (int i = 0; i < 3; i++) {
    fn(NULL);
    join(start(fn, NULL));
  }
}

// What libc takes a thread's id for, as browsers find it out: the owner of a recursive mutex. In a child made
// by clone it is the parent's until they write the child's into libc's place for it, which a debugger's
// symbol tells. (weft's own note of it outlived that: Firefox's child processes ended there.)
static pid_t libcs_id(void) {
  pthread_mutex_t m = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;
  CHECK_OK(pthread_mutex_lock(&m));
  pid_t owner = m.__data.__owner;
  CHECK_OK(pthread_mutex_unlock(&m));
  return owner;
}
static const uint32_t *tid_place;
static int child_gets_its_id(void *parent) {
  pid_t mine = (pid_t)syscall(SYS_gettid);
  if (libcs_id() != mine) {
    CHECK_EQ(libcs_id(), (pid_t)(intptr_t)parent);
    memcpy((char *)pthread_self() + tid_place[2], &mine, sizeof mine);
    CHECK_EQ(libcs_id(), mine);
  }
  return use_threads();
}
static void *clone_and_set_the_id(void *arg) {
  CHECK_EQ(libcs_id(), gettid());
  CHECK_EQ(wait_for(clone(child_gets_its_id, stack + sizeof stack, SIGCHLD, (void *)(intptr_t)gettid())), 33);
  CHECK_EQ(exit_code(in_child(child_gets_its_id, (void *)(intptr_t)gettid())), 33);
  return arg;
}
static void test_the_id_that_libc_knows(void **state) {
  (void)state;
  tid_place = dlsym(RTLD_DEFAULT, "_thread_db_pthread_tid");
  if (tid_place == NULL) skip();
  CHECK_EQ(wait_for(clone(child_gets_its_id, stack + sizeof stack, SIGCHLD, (void *)(intptr_t)gettid())), 33);
  in_main_and_thread(clone_and_set_the_id);
}

static volatile int own_memory;  // clone is a leaf function to the compiler
static int child_with_memory(void *arg) {
  own_memory = 5;
  CHECK_EQ(getppid(), (pid_t)(intptr_t)arg);
  return 41;
}
static void *clone_as_fork(void *arg) {
  own_memory = 0;
  CHECK_EQ(wait_for(clone(child_with_memory, stack + sizeof stack, SIGCHLD,
                          (void *)(intptr_t)getpid())), 41);
  CHECK_EQ(own_memory, 0);
  return arg;
}

static int child_with_our_memory(void *arg) {
  // Descriptors and actions are the child's own; memory is not.
  int *fd = arg;
  own_memory = 7;
  close(fd[0]);
  close(fd[1]);
  struct sigaction sa = {.sa_handler = SIG_IGN};
  sigaction(SIGUSR2, &sa, NULL);
  execl("/bin/sh", "sh", "-c", "exit 42", (char *)NULL);
  _exit(1);
}
static void check_untouched(int fd[2]) {
  char c = 0;
  struct sigaction sa;
  CHECK_EQ(write(fd[1], "y", 1), 1);
  CHECK_EQ(read(fd[0], &c, 1), 1);
  CHECK_EQ(c, 'y');
  CHECK_OK(sigaction(SIGUSR2, NULL, &sa));
  CHECK(sa.sa_handler == SIG_DFL);
  CHECK_OK(close(fd[0]));
  CHECK_OK(close(fd[1]));
}
static void *clone_as_vfork(void *arg) {
  int fd[2];
  CHECK_OK(pipe(fd));
  own_memory = 0;
  pid_t pid = clone(child_with_our_memory, stack + sizeof stack, CLONE_VM | CLONE_VFORK | SIGCHLD,
                    fd);
  CHECK_EQ(own_memory, 7);
  CHECK_EQ(wait_for(pid), 42);
  check_untouched(fd);
  return arg;
}

static void *vfork_keeps_ours(void *arg) {
  int fd[2];
  CHECK_OK(pipe(fd));
  volatile int seen = 0;
  pid_t pid = vfork();
  if (pid == 0) {
    seen = 9;
    child_with_our_memory(fd);
  }
  CHECK_EQ(seen, 9);
  CHECK_EQ(wait_for(pid), 42);
  check_untouched(fd);
  pid = vfork();
  if (pid == 0) _exit(43);
  CHECK_EQ(wait_for(pid), 43);
  return arg;
}

static volatile int other_word;
static int other_pipe[2];
static int sleeping_child(void *arg) {
  char c;
  (void)arg;
  if (read(other_pipe[0], &c, 1) != 1 || other_word != 1) return 1;
  other_word = 2;
  return 44;
}
static void *clone_beside_us(void *arg) {
  CHECK_OK(pipe(other_pipe));
  other_word = 0;
  pid_t pid = clone(sleeping_child, stack + sizeof stack, CLONE_VM | SIGCHLD, NULL);
  CHECK(pid > 0);
  yield_some(10);
  other_word = 1;
  CHECK_EQ(write(other_pipe[1], "x", 1), 1);
  CHECK_EQ(wait_for(pid), 44);
  CHECK_EQ(other_word, 2);
  close(other_pipe[0]);
  close(other_pipe[1]);
  return arg;
}

static void *bare_fork(void *arg) {
  pid_t pid = _Fork();
  if (pid == 0) _exit(getppid() > 0 ? 45 : 1);
  CHECK_EQ(wait_for(pid), 45);
  return arg;
}

static void *raw_fork(void *arg) {
  pid_t pid = (pid_t)syscall(SYS_fork);
  if (pid == 0) _exit(46);
  CHECK_EQ(wait_for(pid), 46);
  pid = (pid_t)syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, 0);
  if (pid == 0) _exit(47);
  CHECK_EQ(wait_for(pid), 47);
  return arg;
}

// libc calls its own fork inside these two.
static void *daemonise(void *arg) {
  int fd[2], got = 0;
  CHECK_OK(pipe(fd));
  fflush(NULL);
  pid_t pid = fork();
  if (pid == 0) {
    join(start(square, (void *)2));
    CHECK_OK(daemon(1, 1));
    int r = use_threads();
    CHECK_EQ(write(fd[1], &r, sizeof r), (ssize_t)sizeof r);
    _exit(0);
  }
  close(fd[1]);
  CHECK_EQ(wait_for(pid), 0);
  CHECK_EQ(read(fd[0], &got, sizeof got), (ssize_t)sizeof got);
  CHECK_EQ(got, 33);
  close(fd[0]);
  return arg;
}

static void *on_a_terminal(void *arg) {
  int tty;
  fflush(NULL);
  pid_t pid = forkpty(&tty, NULL, NULL, NULL);
  if (pid == 0) {
    if (!isatty(0)) _exit(1);
    _exit(use_threads());
  }
  CHECK_EQ(wait_for(pid), 33);
  close(tty);
  return arg;
}

int __clone(int (*)(void *), void *, int, void *, ...);
pid_t __vfork(void) __attribute__((returns_twice));
pid_t __fork(void);
pid_t __wait(int *);
pid_t __waitpid(pid_t, int *, int);
int __sched_getparam(pid_t, struct sched_param *);
int __sched_getscheduler(pid_t);
int __sched_setscheduler(pid_t, int, const struct sched_param *);

static void *other_names(void *arg) {
  int status = 0;
  struct rusage usage;
  struct sched_param p = {.sched_priority = 7};
  CHECK_EQ(wait_for(__clone(child_with_memory, stack + sizeof stack, SIGCHLD,
                            (void *)(intptr_t)getpid())), 41);
  pid_t pid = __vfork();
  if (pid == 0) _exit(48);
  CHECK_EQ(__waitpid(pid, &status, 0), pid);
  CHECK_EQ(exit_code(status), 48);
  pid = __fork();
  if (pid == 0) _exit(49);
  CHECK_EQ(__wait(&status), pid);
  CHECK_EQ(exit_code(status), 49);
  pid = fork();
  if (pid == 0) _exit(50);
  CHECK_EQ(wait3(&status, 0, &usage), pid);
  CHECK_EQ(exit_code(status), 50);
  CHECK_FAILS(wait3(NULL, WNOHANG, NULL), ECHILD);
  CHECK_OK(__sched_getparam(0, &p));
  CHECK_EQ(p.sched_priority, 0);
  CHECK_OK(__sched_setscheduler(0, __sched_getscheduler(0), &p));
  return arg;
}

#define CASE(fn)                    \
  static void test_##fn(void **s) { \
    (void)s;                        \
    in_main_and_thread(fn);         \
  }
CASE(clone_as_fork)
CASE(clone_as_vfork)
CASE(vfork_keeps_ours)
CASE(clone_beside_us)
CASE(bare_fork)
CASE(raw_fork)
CASE(daemonise)
CASE(on_a_terminal)
CASE(other_names)

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_the_id_that_libc_knows),  // first: without threads
      cmocka_unit_test(test_clone_as_fork),    cmocka_unit_test(test_clone_as_vfork),
      cmocka_unit_test(test_vfork_keeps_ours), cmocka_unit_test(test_clone_beside_us),
      cmocka_unit_test(test_bare_fork),        cmocka_unit_test(test_raw_fork),
      cmocka_unit_test(test_daemonise),        cmocka_unit_test(test_on_a_terminal),
      cmocka_unit_test(test_other_names),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

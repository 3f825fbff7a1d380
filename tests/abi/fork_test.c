// fork_test.c - family: fork in threaded programs, pthread_atfork, wait family.
//
// Behaviours: the child is a process of one thread that can create threads again; forks by main,
// by other threads, by many at once, in a loop while threads run; order of atfork handlers;
// malloc, stdio and locks of the forking thread in the child; synchronisation objects used
// in the child; fork in the child of a fork; waitpid by many threads, SIGCHLD, WNOHANG.
// Invariant: parent and child each see their own, complete process.
#include "abi.h"

static int stop, running;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t cond = PTHREAD_COND_INITIALIZER;

static void *churn_malloc(void *arg) {
  ADD(&running, 1);
  while (!LOAD(&stop)) {
    void *p = malloc((size_t)(rand() % 3000) + 1);
    char text[64];
    snprintf(text, sizeof text, "%p %d", p, rand());
    free(p);
    sched_yield();
  }
  return arg;
}

static void *sleep_on_cond(void *arg) {
  pthread_mutex_lock(&lock);
  ADD(&running, 1);
  while (!LOAD(&stop)) pthread_cond_wait(&cond, &lock);
  pthread_mutex_unlock(&lock);
  return arg;
}

static pthread_t background[8];
static void start_background(void) {
  stop = running = 0;
  for (int i = 0; i < 8; i++) background[i] = start(i & 1 ? churn_malloc : sleep_on_cond, NULL);
  AWAIT(LOAD(&running) == 8);
}
static void stop_background(void) {
  pthread_mutex_lock(&lock);
  STORE(&stop, 1);
  pthread_cond_broadcast(&cond);
  pthread_mutex_unlock(&lock);
  for (int i = 0; i < 8; i++) join(background[i]);
}

static void *square(void *arg) {
  sched_yield();
  return (void *)((intptr_t)arg * (intptr_t)arg);
}

static int use_threads(void *arg) {
  (void)arg;
  pthread_t t[20];
  for (intptr_t i = 0; i < 20; i++) t[i] = start(square, (void *)i);
  for (intptr_t i = 0; i < 20; i++) CHECK_EQ((intptr_t)join(t[i]), i * i);
  return 21;
}

static void child_creates_threads(void **state) {
  (void)state;
  CHECK_EQ(exit_code(in_child(use_threads, NULL)), 21);
  start_background();
  for (int i = 0; i < 10; i++) CHECK_EQ(exit_code(in_child(use_threads, NULL)), 21);
  stop_background();
  CHECK_EQ(use_threads(NULL), 21);
}

static int allocate_and_print(void *arg) {
  (void)arg;
  for (int i = 0; i < 100; i++) {
    char *p = malloc(5000);
    snprintf(p, 5000, "%d", i);
    CHECK_EQ(atoi(p), i);
    free(p);
  }
  FILE *f = tmpfile();
  CHECK(f && fprintf(f, "hello %d\n", 5) > 0 && fclose(f) == 0);
  return 4;
}

static void loop_of_forks_with_threads_alive(void **state) {
  (void)state;
  start_background();
  for (int i = 0; i < 60; i++) CHECK_EQ(exit_code(in_child(allocate_and_print, NULL)), 4);
  stop_background();
}

static int identity_in_child(void *arg) {
  CHECK_EQ(getppid(), *(pid_t *)arg);
  CHECK_EQ(gettid(), getpid());
  CHECK_EQ(syscall(SYS_gettid), getpid());
  CHECK_EQ(use_threads(NULL), 21);
  return 6;
}

static void *fork_from_thread(void *arg) {
  pthread_t before = pthread_self();
  char local[100] = "kept on the stack of the forking thread";
  for (int i = 0; i < 3; i++) {
    CHECK_EQ(exit_code(in_child(identity_in_child, arg)), 6);
    CHECK(pthread_equal(before, pthread_self()));
    CHECK(strcmp(local, "kept on the stack of the forking thread") == 0);
  }
  return NULL;
}

static void forks_by_many_threads_at_once(void **state) {
  (void)state;
  pid_t me = getpid();
  pthread_t t[8];
  join(start(fork_from_thread, &me));
  for (int i = 0; i < 8; i++) t[i] = start(fork_from_thread, &me);
  for (int i = 0; i < 8; i++) join(t[i]);
}

// The forking thread is the child's main: it may return, pthread_exit, be joined.
static pthread_t forker;
static void *join_the_forker(void *arg) {
  void *result;
  CHECK_OK(pthread_join(forker, &result));
  _exit(result == (void *)8 ? 18 : (int)(intptr_t)arg);
}
static void *fork_and_end_child_by(void *arg) {
  int how = (int)(intptr_t)arg, status;
  fflush(NULL);
  pid_t pid = fork();
  if (pid == 0) {
    if (how == 0) exit(10);
    if (how == 1) pthread_exit((void *)9);  // the last thread of the process: exit status 0
    forker = pthread_self();
    start(join_the_forker, (void *)1);
    if (how == 2) pthread_exit((void *)8);
    return (void *)8;
  }
  CHECK_EQ(waitpid(pid, &status, 0), pid);
  return (void *)(intptr_t)exit_code(status);
}

static void forking_thread_ends_in_the_child(void **state) {
  (void)state;
  const int want[] = {10, 0, 18, 18};
  for (int how = 0; how < 4; how++)
    CHECK_EQ((intptr_t)join(start(fork_and_end_child_by, (void *)(intptr_t)how)), want[how]);
}

static int grandchild(void *arg) {
  (void)arg;
  join(start(square, (void *)2));
  return exit_code(in_child(use_threads, NULL)) == 21 ? use_threads(NULL) : 1;
}
static int child_with_child(void *arg) {
  start_background();
  return exit_code(in_child(grandchild, arg));
}

static void forks_of_forks(void **state) {
  (void)state;
  CHECK_EQ(exit_code(in_child(child_with_child, NULL)), 21);
}

// atfork: prepare handlers in reverse order, the others in order, around the fork, in the
// thread that forks.
static char trace[64];
static int trace_size;
static pthread_t trace_thread;
static void add_trace(char c) {
  CHECK(pthread_equal(pthread_self(), trace_thread));
  trace[trace_size++] = c;
}
static int tracing;
#define HANDLERS(n)                                                             \
  static void prepare##n(void) { if (tracing) add_trace('a' + n); }             \
  static void parent##n(void) { if (tracing) add_trace('A' + n); }              \
  static void child##n(void) { if (tracing) add_trace('0' + n); }
HANDLERS(0) HANDLERS(1) HANDLERS(2)

static int check_child_trace(void *arg) {
  (void)arg;
  CHECK(strcmp(trace, "cba012") == 0);
  return 5;
}
static void *fork_traced(void *arg) {
  memset(trace, 0, sizeof trace);
  trace_size = 0;
  trace_thread = pthread_self();
  CHECK_EQ(exit_code(in_child(check_child_trace, NULL)), 5);
  CHECK(strcmp(trace, "cbaABC") == 0);
  return arg;
}

static void atfork_order(void **state) {
  (void)state;
  CHECK_OK(pthread_atfork(prepare0, parent0, child0));
  CHECK_OK(pthread_atfork(prepare1, parent1, child1));
  CHECK_OK(pthread_atfork(prepare2, parent2, child2));
  tracing = 1;
  fork_traced(NULL);
  join(start(fork_traced, NULL));
  tracing = 0;
}

// The classic use: a lock that others contend for is taken over the fork.
static pthread_mutex_t protected = PTHREAD_MUTEX_INITIALIZER;
static long balance;
static void lock_protected(void) { pthread_mutex_lock(&protected); }
static void unlock_protected(void) { pthread_mutex_unlock(&protected); }
static void *move_money(void *arg) {
  while (!LOAD(&stop)) {
    pthread_mutex_lock(&protected);
    balance++;
    sched_yield();
    balance--;
    pthread_mutex_unlock(&protected);
    sched_yield();
  }
  return arg;
}
static int check_balance(void *arg) {
  (void)arg;
  pthread_mutex_lock(&protected);
  CHECK_EQ(balance, 0);
  pthread_mutex_unlock(&protected);
  return use_threads(NULL);
}

static void lock_taken_over_fork_by_atfork(void **state) {
  (void)state;
  pthread_t t[4];
  CHECK_OK(pthread_atfork(lock_protected, unlock_protected, unlock_protected));
  stop = 0;
  for (int i = 0; i < 4; i++) t[i] = start(move_money, NULL);
  for (int i = 0; i < 30; i++) CHECK_EQ(exit_code(in_child(check_balance, NULL)), 21);
  STORE(&stop, 1);
  for (int i = 0; i < 4; i++) join(t[i]);
}

// Objects the forking thread holds or that are idle work in the child.
static int use_objects(void *held) {
  pthread_mutex_t *m = held;
  CHECK_EQ(pthread_mutex_trylock(m), EBUSY);
  CHECK_OK(pthread_mutex_unlock(m));
  CHECK_OK(pthread_mutex_lock(m));
  struct timespec soon = in_ms(CLOCK_REALTIME, 5);
  int error;
  do error = pthread_cond_timedwait(&cond, m, &soon);
  while (error == 0);
  CHECK_EQ(error, ETIMEDOUT);
  CHECK_OK(pthread_mutex_unlock(m));
  struct timespec tiny = to_timespec(1000000);
  CHECK_OK(nanosleep(&tiny, NULL));
  return use_threads(NULL);
}
static void *fork_holding(void *arg) {
  pthread_mutex_t m = PTHREAD_ERRORCHECK_MUTEX_INITIALIZER_NP;
  pthread_mutex_t n = PTHREAD_MUTEX_INITIALIZER;
  CHECK_OK(pthread_mutex_lock(&n));
  CHECK_EQ(exit_code(in_child(use_objects, &n)), 21);
  CHECK_OK(pthread_mutex_unlock(&n));
  CHECK_OK(pthread_mutex_lock(&m));
  CHECK_OK(pthread_mutex_unlock(&m));
  return arg;
}

// A child has another id: what asks for its owner is not its own there, to libc.
static int is_nobodys(void *m) {
  CHECK_EQ(pthread_mutex_trylock(m), EBUSY);
  CHECK_EQ(pthread_mutex_unlock(m), EPERM);
  return 22;
}
static void *fork_owning(void *arg) {
  pthread_mutex_t m = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP, n = PTHREAD_ERRORCHECK_MUTEX_INITIALIZER_NP;
  CHECK_OK(pthread_mutex_lock(&m));
  CHECK_EQ(exit_code(in_child(is_nobodys, &m)), 22);
  CHECK_OK(pthread_mutex_unlock(&m));
  CHECK_OK(pthread_mutex_lock(&n));
  CHECK_EQ(exit_code(in_child(is_nobodys, &n)), 22);
  CHECK_OK(pthread_mutex_unlock(&n));
  return arg;
}

static void owned_over_fork(void **state) {
  (void)state;
  fork_owning(NULL);
  join(start(fork_owning, NULL));
}

static void objects_held_over_fork(void **state) {
  (void)state;
  start_background();
  fork_holding(NULL);
  join(start(fork_holding, NULL));
  stop_background();
}

// Waiting.

static int exit_later(void *arg) {
  yield_some(30);
  return (int)(intptr_t)arg;
}
static void *fork_and_wait(void *arg) {
  for (int i = 0; i < 4; i++) CHECK_EQ(exit_code(in_child(exit_later, arg)), (intptr_t)arg);
  return NULL;
}

static void waitpid_in_many_threads(void **state) {
  (void)state;
  pthread_t t[16];
  for (intptr_t i = 0; i < 16; i++) t[i] = start(fork_and_wait, (void *)(i + 1));
  for (int i = 0; i < 16; i++) join(t[i]);
  CHECK_FAILS(waitpid(-1, NULL, 0), ECHILD);
  CHECK_FAILS(wait(NULL), ECHILD);
}

static void *wait_for_any(void *arg) {
  long sum = 0;
  int status;
  pid_t pid;
  while ((pid = (long)arg & 1 ? wait(&status) : waitpid(-1, &status, 0)) > 0) sum += exit_code(status);
  CHECK_EQ(errno, ECHILD);
  return (void *)sum;
}

static void many_wait_for_any(void **state) {
  (void)state;
  pthread_t t[6];
  int pipes[2];
  char c;
  CHECK_OK(pipe(pipes));
  fflush(NULL);
  for (int i = 1; i <= 12; i++)
    if (fork() == 0) {
      close(pipes[1]);
      _exit(read(pipes[0], &c, 1) == 0 ? i : 1);  // ends when the parent closes its end
    }
  CHECK_EQ(waitpid(-1, NULL, WNOHANG), 0);
  for (long i = 0; i < 6; i++) t[i] = start(wait_for_any, (void *)i);
  close(pipes[0]);
  close(pipes[1]);
  long sum = 0;
  for (int i = 0; i < 6; i++) sum += (long)join(t[i]);
  CHECK_EQ(sum, 78);
}

static void waitid_and_signals(void **state) {
  (void)state;
  fflush(NULL);
  pid_t pid = fork();
  if (pid == 0) {
    for (;;) pause();
  }
  siginfo_t info = {0};
  CHECK_OK(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOHANG));
  CHECK_EQ(info.si_pid, 0);
  CHECK_OK(kill(pid, SIGKILL));
  CHECK_OK(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT));
  CHECK_EQ(info.si_pid, pid);
  CHECK_EQ(info.si_code, CLD_KILLED);
  int status;
  CHECK_EQ(wait4(pid, &status, 0, NULL), pid);
  CHECK_EQ(death_signal(status), SIGKILL);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(child_creates_threads),
      cmocka_unit_test(loop_of_forks_with_threads_alive),
      cmocka_unit_test(forks_by_many_threads_at_once),
      cmocka_unit_test(forking_thread_ends_in_the_child),
      cmocka_unit_test(forks_of_forks),
      cmocka_unit_test(atfork_order),
      cmocka_unit_test(lock_taken_over_fork_by_atfork),
      cmocka_unit_test(owned_over_fork),
      cmocka_unit_test(objects_held_over_fork),
      cmocka_unit_test(waitpid_in_many_threads),
      cmocka_unit_test(many_wait_for_any),
      cmocka_unit_test(waitid_and_signals),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

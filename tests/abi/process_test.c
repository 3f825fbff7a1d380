// process_test.c - family: how a process of many threads ends.
//
// Behaviours: return from main, exit, _exit, quick_exit, abort, fatal signals from main and from
// other threads, with others computing, blocked or exiting at the same time; last thread ends
// (status 0); main ends by pthread_exit first; atexit handlers run once, in the thread
// that called exit, may use threads; stdio is flushed; double fork; SIGKILL from within.
// Invariant: one end, one status, handlers at most once.
#include "abi.h"

#include <aio.h>
#include <fcntl.h>

struct record {
  int atexit_runs, quick_runs, order[8], steps, threads_done;
  char byte;
};
static struct record *record;

static int stop;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t cond = PTHREAD_COND_INITIALIZER;

static void *compute(void *arg) {
  ADD((int *)arg, 1);
  for (volatile long i = 0;; i++) {
  }
  return NULL;
}
static void *block(void *arg) {
  pthread_mutex_lock(&lock);
  ADD((int *)arg, 1);
  for (;;) pthread_cond_wait(&cond, &lock);
  return NULL;
}
static void *sleep_long(void *arg) {
  ADD((int *)arg, 1);
  for (;;) sleep(600);
  return NULL;
}
static void *yield_on(void *arg) {
  ADD((int *)arg, 1);
  while (!LOAD(&stop)) sched_yield();
  return NULL;
}

static int started;
static void start_all_kinds(void) {
  started = 0;
  start(compute, &started);
  start(block, &started);
  start(sleep_long, &started);
  start(yield_on, &started);
  AWAIT(LOAD(&started) == 4);
}

static void first_handler(void) {
  record->atexit_runs++;
  record->order[record->steps++] = 1;
}
static void *small_thread(void *arg) { return arg; }
static void second_handler(void) {
  record->order[record->steps++] = 2;
  // Handlers are ordinary code: they lock, and create and join threads.
  pthread_mutex_t m = PTHREAD_MUTEX_INITIALIZER;
  pthread_mutex_lock(&m);
  CHECK(join(start(small_thread, (void *)3)) == (void *)3);
  pthread_mutex_unlock(&m);
}
static void quick_handler(void) { record->quick_runs++; }

enum how { kExitMost, kExit, kUnderscore, kQuick, kAbort, kKill, kSegv, kRaiseTerm, kHows };

static void *end_by(void *arg) {
  switch ((enum how)(intptr_t)arg) {
    case kExit: exit(41);
    case kUnderscore: _exit(42);
    case kQuick: quick_exit(43);
    case kAbort: abort();
    case kKill: kill(getpid(), SIGKILL); break;
    case kSegv: *(volatile int *)8 = 1; break;
    case kRaiseTerm: raise(SIGTERM); break;
    default: exit(40);
  }
  for (;;) pause();
}

static void begin_record(void) {
  memset(record, 0, sizeof *record);
  atexit(first_handler);
}

static int in_thread;
static int end_process(void *arg) {
  const int fatal[] = {SIGABRT, SIGSEGV, SIGTERM};
  for (int i = 0; i < 3; i++) signal(fatal[i], SIG_DFL);
  begin_record();
  atexit(second_handler);
  at_quick_exit(quick_handler);
  start_all_kinds();
  if (in_thread) {
    start(end_by, arg);
    for (;;) pause();
  }
  end_by(arg);
  return 1;
}

static void every_end_from_main_and_from_a_thread(void **state) {
  (void)state;
  for (in_thread = 0; in_thread < 2; in_thread++)
    for (int how = 0; how < kHows; how++) {
      int status = in_child(end_process, (void *)(intptr_t)how);
      switch (how) {
        case kExitMost: CHECK_EQ(exit_code(status), 40); break;
        case kExit: CHECK_EQ(exit_code(status), 41); break;
        case kUnderscore: CHECK_EQ(exit_code(status), 42); break;
        case kQuick: CHECK_EQ(exit_code(status), 43); break;
        case kAbort: CHECK_EQ(death_signal(status), SIGABRT); break;
        case kKill: CHECK_EQ(death_signal(status), SIGKILL); break;
        case kSegv: CHECK_EQ(death_signal(status), SIGSEGV); break;
        default: CHECK_EQ(death_signal(status), SIGTERM);
      }
      int exits = how == kExitMost || how == kExit;
      CHECK_EQ(record->atexit_runs, exits);
      CHECK_EQ(record->quick_runs, how == kQuick);
      if (exits) CHECK(record->steps == 2 && record->order[0] == 2 && record->order[1] == 1);
    }
}

// The last thread to end ends the process with status 0, and its exit runs the handlers.
static void *end_late(void *arg) {
  pthread_join(abi_main_thread, NULL);
  yield_some(20);
  ADD(&record->threads_done, 1);
  return arg;
}
static int main_leaves_first(void *arg) {
  begin_record();
  pthread_t t = start(end_late, NULL);
  pthread_detach(t);
  if (arg) pthread_exit(arg);
  pthread_exit(NULL);
}
static int main_leaves_alone(void *arg) {
  begin_record();
  pthread_exit(arg);
}
static void *end_at_leisure(void *arg) {
  for (int i = 0; i < 50 + (int)(intptr_t)arg; i++) sched_yield();
  ADD(&record->threads_done, 1);
  if ((intptr_t)arg & 1) pthread_exit((void *)55);
  return NULL;
}
static int many_end_after_main(void *arg) {
  begin_record();
  for (intptr_t i = 0; i < 30; i++) start(end_at_leisure, (void *)i);
  pthread_exit(arg);
}

static void last_thread_ends_the_process(void **state) {
  (void)state;
  CHECK_EQ(exit_code(in_child(main_leaves_first, (void *)77)), 0);
  CHECK_EQ(record->atexit_runs, 1);
  CHECK_EQ(record->threads_done, 1);
  CHECK_EQ(exit_code(in_child(main_leaves_alone, (void *)77)), 0);
  CHECK_EQ(record->atexit_runs, 1);
  for (int i = 0; i < 5; i++) {
    CHECK_EQ(exit_code(in_child(many_end_after_main, NULL)), 0);
    CHECK_EQ(record->atexit_runs, 1);
    CHECK_EQ(record->threads_done, 30);
  }
}

static void *exit_after_main(void *arg) {
  pthread_join(abi_main_thread, NULL);
  exit((int)(intptr_t)arg);
}
static int thread_exits_after_main_left(void *arg) {
  begin_record();
  start(exit_after_main, arg);
  pthread_exit(NULL);
}
static void exit_by_a_thread_after_main_left(void **state) {
  (void)state;
  CHECK_EQ(exit_code(in_child(thread_exits_after_main_left, (void *)66)), 66);
  CHECK_EQ(record->atexit_runs, 1);
}

// A thread that weft leaves to the kernel (its attributes have an affinity) is one of those whose
// last one ends the process: main's end was taken for the last before, and cut it short.
static pthread_key_t kept;
static void value_goes(void *value) {
  if (LOAD(&record->atexit_runs) == 0) ADD(&record->threads_done, (int)(intptr_t)value);
}
static void *end_pinned(void *how) {
  CHECK_OK(pthread_setspecific(kept, (void *)10));
  pthread_join(abi_main_thread, NULL);
  yield_some(20);
  ADD(&record->threads_done, 1);
  if ((intptr_t)how == 1) pthread_exit(how);
  if ((intptr_t)how == 2) pthread_cancel(pthread_self()), pthread_testcancel();
  return how;
}
static pthread_t start_pinned(void *(*routine)(void *), void *arg) {
  pthread_attr_t attr;
  pthread_t t;
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(sched_getcpu(), &one);
  CHECK_OK(pthread_attr_init(&attr));
  CHECK_OK(pthread_attr_setaffinity_np(&attr, sizeof one, &one));
  CHECK_OK(pthread_create(&t, &attr, routine, arg));
  CHECK_OK(pthread_attr_destroy(&attr));
  return t;
}
static int main_leaves_pinned_ones(void *how) {
  begin_record();
  CHECK_OK(pthread_key_create(&kept, value_goes));
  start_pinned(end_pinned, how);
  start(end_at_leisure, NULL);
  pthread_exit(NULL);
}

// Seeing its end takes a key; with none left such a thread was refused.
static void *end_at_once(void *arg) { return arg; }
static int pinned_without_keys(void *arg) {
  pthread_key_t key;
  join(start(end_at_once, NULL));
  while (pthread_key_create(&key, NULL) == 0) {
  }
  CHECK(join(start_pinned(end_at_once, arg)) == arg);
  exit(7);
}

static void a_thread_left_to_the_kernel_needs_no_key(void **state) {
  (void)state;
  CHECK_EQ(exit_code(in_child(pinned_without_keys, &record)), 7);
}

static void a_thread_left_to_the_kernel_may_be_the_last(void **state) {
  (void)state;
  for (intptr_t how = 0; how < 3; how++) {
    CHECK_EQ(exit_code(in_child(main_leaves_pinned_ones, (void *)how)), 0);
    CHECK_EQ(record->atexit_runs, 1);
    CHECK_EQ(record->threads_done, 1 + 10 + 1);
  }
}

// Threads that libc makes for itself are threads of the process: main's end cut them short before.
// A timer's thread lives on; what it calls may make threads, and end the process.
static void *exit_9(void *arg) {
  (void)arg;
  if (LOAD(&record->atexit_runs) == 0) exit(9);
  return NULL;
}
static void timer_rings(union sigval v) {
  if (v.sival_int == 0) {
    pthread_join(abi_main_thread, NULL);
    for (int i = 0; i < 3; i++) join(start(small_thread, NULL));  // each is the last one for a while
    start(exit_9, NULL);
  }
}
static void call_by_timer(void (*function)(union sigval)) {
  struct sigevent ev = {.sigev_notify = SIGEV_THREAD, .sigev_notify_function = function};
  struct itimerspec soon = {.it_value.tv_nsec = 1};
  timer_t timer;
  CHECK_OK(timer_create(CLOCK_MONOTONIC, &ev, &timer));
  CHECK_OK(timer_settime(timer, 0, &soon, NULL));
}
static int main_leaves_a_timer(void *arg) {
  (void)arg;
  begin_record();
  join(start(small_thread, NULL));
  call_by_timer(timer_rings);
  pthread_exit(NULL);
}

// A thread of aio's ends when it has nothing to do, and then is the last one.
static int aio_pipe[2];
static int main_leaves_aio(void *arg) {
  begin_record();
  join(start(small_thread, arg));
  struct aioinit init = {.aio_threads = 1, .aio_num = 1, .aio_idle_time = 0};
  aio_init(&init);
  static struct aiocb cb;
  cb = (struct aiocb){.aio_fildes = aio_pipe[0], .aio_buf = &record->byte, .aio_nbytes = 1};
  CHECK_OK(aio_read(&cb));
  STORE(&record->steps, 1);
  pthread_exit(NULL);
}

static void threads_of_libcs_own_keep_the_process(void **state) {
  (void)state;
  CHECK_EQ(exit_code(in_child(main_leaves_a_timer, NULL)), 9);
  CHECK_EQ(record->atexit_runs, 1);
  CHECK_OK(pipe(aio_pipe));
  STORE(&record->steps, 0);
  pid_t pid = fork();
  if (pid == 0) _exit(main_leaves_aio(NULL));
  AWAIT(LOAD(&record->steps) == 1);
  yield_some(200);
  CHECK_EQ(write(aio_pipe[1], "x", 1), 1);
  int status;
  CHECK_EQ(waitpid(pid, &status, 0), pid);
  CHECK_EQ(exit_code(status), 0);
  CHECK_EQ(record->byte, 'x');
  CHECK_EQ(record->atexit_runs, 1);
  close(aio_pipe[0]);
  close(aio_pipe[1]);
}

// The child of such a thread's fork has it alone; it makes others and ends first. Its end was
// taken for the last one's, or took its kernel thread away from under the others.
static pthread_key_t first_ones;
static void first_ends(void *value) { STORE(&record->steps, (int)(intptr_t)value); }
static void *end_after(void *arg) {
  AWAIT(LOAD(&record->steps) == 1);
  yield_some(200);
  ADD(&record->threads_done, 1);
  return arg;
}
static int fork_how;
static void forks(void) {
  pid_t pid = fork();
  CHECK(pid >= 0);
  if (pid > 0) {
    int status;
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    _exit(exit_code(status));
  }
  CHECK_OK(pthread_key_create(&first_ones, first_ends));
  CHECK_OK(pthread_setspecific(first_ones, (void *)1));
  pthread_detach(start(end_after, NULL));
  if (fork_how == 1) pthread_exit(NULL);
}
static void *pinned_forks(void *arg) {
  forks();
  return arg;
}
static void timer_forks(union sigval v) {
  (void)v;
  forks();
}
static int pinned_child(void *arg) {
  (void)arg;
  begin_record();
  join(start(small_thread, NULL));
  start_pinned(pinned_forks, NULL);
  for (;;) pause();
  return 1;
}
static int timer_child(void *arg) {
  (void)arg;
  begin_record();
  join(start(small_thread, NULL));
  call_by_timer(timer_forks);
  for (;;) pause();
  return 1;
}

static void a_thread_of_libcs_own_forks(void **state) {
  (void)state;
  int (*const makes_it[])(void *) = {pinned_child, timer_child};
  for (int i = 0; i < 4; i++) {
    fork_how = i / 2;
    CHECK_EQ(exit_code(in_child(makes_it[i % 2], NULL)), 0);
    CHECK_EQ(record->atexit_runs, 1);
    CHECK_EQ(record->threads_done, 1);
  }
}

// Output of other threads that was written before exit is flushed by it.
static void *print_line(void *f) {
  fprintf(f, "line\n");
  return NULL;
}
static int print_and_exit(void *path) {
  FILE *f = fopen(path, "w");
  setvbuf(f, NULL, _IOFBF, 65536);
  pthread_t t[20];
  for (int i = 0; i < 20; i++) t[i] = start(print_line, f);
  for (int i = 0; i < 20; i++) join(t[i]);
  start_all_kinds();
  exit(3);
}

static void stdio_is_flushed(void **state) {
  (void)state;
  char path[TEMP_ROOM], text[256];
  temp_path(path, "weft-process-test-%d", getpid());
  CHECK_EQ(exit_code(in_child(print_and_exit, path)), 3);
  FILE *f = fopen(path, "r");
  CHECK(f != NULL);
  CHECK_EQ(fread(text, 1, sizeof text, f), 100);
  fclose(f);
  unlink(path);
}

// Everybody exits at once: one of them wins.
static pthread_barrier_t barrier;
static void *exit_together(void *arg) {
  pthread_barrier_wait(&barrier);
  exit((int)(intptr_t)arg);
}
static int exit_by_many(void *arg) {
  (void)arg;
  begin_record();
  pthread_barrier_init(&barrier, NULL, 8);
  for (intptr_t i = 1; i < 8; i++) start(exit_together, (void *)(i + 50));
  exit_together((void *)50);
  return 1;
}

static void exit_by_many_at_once(void **state) {
  (void)state;
  for (int i = 0; i < 10; i++) {
    int code = exit_code(in_child(exit_by_many, NULL));
    CHECK(code >= 50 && code < 58);
    CHECK(record->atexit_runs <= 1);  // another's _exit may come in the middle of a handler
  }
}

static int create_while_exiting(void *arg) {
  (void)arg;
  for (int i = 0; i < 50; i++) {
    pthread_t t;
    if (pthread_create(&t, NULL, small_thread, NULL) == 0) pthread_detach(t);
  }
  exit(7);
}
static void exit_right_after_creating(void **state) {
  (void)state;
  for (int i = 0; i < 20; i++) CHECK_EQ(exit_code(in_child(create_while_exiting, NULL)), 7);
}

// A daemon: session leader, second fork, descriptors closed; the grandchild works with threads
// and reports through a pipe.
static int report_pipe[2];
static int daemonise(void *arg) {
  (void)arg;
  start_all_kinds();
  if (setsid() < 0) return 1;
  pid_t pid = fork();
  if (pid < 0) return 2;
  if (pid > 0) _exit(0);
  close(0);
  open("/dev/null", O_RDWR);
  intptr_t sum = 0;
  pthread_t t[10];
  for (intptr_t i = 0; i < 10; i++) t[i] = start(small_thread, (void *)i);
  for (int i = 0; i < 10; i++) sum += (intptr_t)join(t[i]);
  char c = (char)sum;
  if (write(report_pipe[1], &c, 1) != 1) _exit(1);
  _exit(0);
}

static void daemon_by_double_fork(void **state) {
  (void)state;
  char c = 0;
  CHECK_OK(pipe(report_pipe));
  CHECK_OK(in_child(daemonise, NULL));
  close(report_pipe[1]);
  CHECK_EQ(read(report_pipe[0], &c, 1), 1);
  CHECK_EQ(c, 45);
  CHECK_EQ(read(report_pipe[0], &c, 1), 0);  // and it ended
  close(report_pipe[0]);
}

// A signal for the whole process ends it, whichever threads block it.
static void *block_all_signals(void *arg) {
  sigset_t all;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, NULL);
  ADD(&started, 1);
  for (;;) pause();
  return arg;
}
static int wait_to_be_killed(void *arg) {
  signal(SIGTERM, SIG_DFL);
  started = 0;
  for (int i = 0; i < 5; i++) start(block_all_signals, NULL);
  AWAIT(LOAD(&started) == 5);
  kill(getppid(), 0);
  *(volatile int *)arg = getpid();
  for (;;) pause();
  return 1;
}

static void killed_from_outside(void **state) {
  (void)state;
  volatile int *ready = shared_memory(4096);
  const int signals[] = {SIGTERM, SIGKILL};
  for (int i = 0; i < 2; i++) {
    *ready = 0;
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) _exit(wait_to_be_killed((void *)ready));
    AWAIT(*ready == pid);
    CHECK_OK(kill(pid, signals[i]));
    int status;
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    CHECK_EQ(death_signal(status), signals[i]);
  }
}

// A real return from main needs a process of its own: this program again, told to do so.
static int return_from_main(void) {
  for (int i = 0; i < 2; i++) start_all_kinds();
  return 47;
}
static int run_again(void *arg) {
  execl("/proc/self/exe", "process_test", (const char *)arg, (char *)NULL);
  return 1;
}
static void return_from_main_ends_the_process(void **state) {
  (void)state;
  for (int i = 0; i < 5; i++) CHECK_EQ(exit_code(in_child(run_again, (void *)"return-from-main")), 47);
}

int main(int argc, char **argv) {
  if (argc > 1 && strcmp(argv[1], "return-from-main") == 0) return return_from_main();
  record = shared_memory(sizeof *record);
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(every_end_from_main_and_from_a_thread),
      cmocka_unit_test(return_from_main_ends_the_process),
      cmocka_unit_test(last_thread_ends_the_process),
      cmocka_unit_test(exit_by_a_thread_after_main_left),
      cmocka_unit_test(a_thread_left_to_the_kernel_may_be_the_last),
      cmocka_unit_test(a_thread_left_to_the_kernel_needs_no_key),
      cmocka_unit_test(threads_of_libcs_own_keep_the_process),
      cmocka_unit_test(a_thread_of_libcs_own_forks),
      cmocka_unit_test(stdio_is_flushed),
      cmocka_unit_test(exit_right_after_creating),
      cmocka_unit_test(exit_by_many_at_once),
      cmocka_unit_test(daemon_by_double_fork),
      cmocka_unit_test(killed_from_outside),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

// cancel_points_test.c - family: every blocking call that is a cancellation point.
//
// Behaviours: for each call, a thread blocked in it is cancelled; a cancellation that was
// pending before the call is acted on by the call; the cleanup handler runs once, in
// the thread; join answers PTHREAD_CANCELED; what the call waits for is not consumed.
// Calls that are no cancellation points go on, syscall() among them.
// Invariant: no thread cancelled in a cancellation point goes on after it.
// libs: -lrt
#include "abi.h"

#include <aio.h>
#include <fcntl.h>
#include <mqueue.h>
#include <netinet/in.h>
#include <poll.h>
#include <semaphore.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/select.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <threads.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
static sem_t sem;
static int empty_pipe[2], full_pipe[2], empty_pair[2], full_pair[2], listener, epoll_fd, locked_fd, message_queue;
static pthread_t sleeper;
static pid_t child;
static mqd_t posix_queue;
static char fifo[TEMP_ROOM], buffer[4096];
static struct timespec later;
static sigset_t usr1;

static void unlock(void *m) { CHECK_OK(pthread_mutex_unlock(m)); }
// A cancelled wait comes back with the mutex; the handler would fail to unlock it otherwise.
#define WITH_LOCK(call)                    \
  do {                                     \
    pthread_mutex_lock(&lock);             \
    pthread_cleanup_push(unlock, &lock);   \
    for (;;) call;                         \
    pthread_cleanup_pop(1);                \
  } while (0)
static void do_cond_wait(void) { WITH_LOCK(pthread_cond_wait(&cond, &lock)); }
static void do_cond_timedwait(void) { WITH_LOCK(pthread_cond_timedwait(&cond, &lock, &later)); }
static void do_cond_clockwait(void) { WITH_LOCK(pthread_cond_clockwait(&cond, &lock, CLOCK_REALTIME, &later)); }
static void do_cnd_wait(void) { WITH_LOCK(cnd_wait((cnd_t *)&cond, (mtx_t *)&lock)); }
static void do_sem_wait(void) { sem_wait(&sem); }
static void do_sem_timedwait(void) { sem_timedwait(&sem, &later); }
static void do_sem_clockwait(void) { sem_clockwait(&sem, CLOCK_REALTIME, &later); }
static void do_join(void) { pthread_join(sleeper, NULL); }
static void do_timedjoin(void) { pthread_timedjoin_np(sleeper, NULL, &later); }
static void do_clockjoin(void) { pthread_clockjoin_np(sleeper, NULL, CLOCK_REALTIME, &later); }
static void do_nanosleep(void) { struct timespec t = {600, 0}; nanosleep(&t, NULL); }
static void do_thrd_sleep(void) { struct timespec t = {600, 0}; thrd_sleep(&t, NULL); }
static void do_clock_nanosleep(void) { clock_nanosleep(CLOCK_REALTIME, TIMER_ABSTIME, &later, NULL); }
static void do_usleep(void) { usleep(600000000); }
static void do_sleep(void) { sleep(600); }
static void do_pause(void) { pause(); }
static void do_sigsuspend(void) { sigset_t none; sigemptyset(&none); sigsuspend(&none); }
static void do_sigwait(void) { int sig; sigwait(&usr1, &sig); }
static void do_sigwaitinfo(void) { sigwaitinfo(&usr1, NULL); }
static void do_sigtimedwait(void) { struct timespec t = {600, 0}; sigtimedwait(&usr1, NULL, &t); }
static void do_testcancel(void) { for (;;) { pthread_testcancel(); sched_yield(); } }
static struct iovec iov = {buffer, sizeof buffer};
static void ignore(ssize_t n) { (void)n; }
static void do_read(void) { ignore(read(empty_pipe[0], buffer, 1)); }
static void do_readv(void) { ignore(readv(empty_pipe[0], &iov, 1)); }
static void do_write(void) { ignore(write(full_pipe[1], buffer, sizeof buffer)); }
static void do_writev(void) { ignore(writev(full_pipe[1], &iov, 1)); }
static void do_recv(void) { recv(empty_pair[0], buffer, 1, 0); }
static void do_recvfrom(void) { recvfrom(empty_pair[0], buffer, 1, 0, NULL, NULL); }
static void do_recvmsg(void) { struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1}; recvmsg(empty_pair[0], &m, 0); }
static void do_send(void) { send(full_pair[0], buffer, sizeof buffer, 0); }
static void do_sendto(void) { sendto(full_pair[0], buffer, sizeof buffer, 0, NULL, 0); }
static void do_sendmsg(void) { struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1}; sendmsg(full_pair[0], &m, 0); }
static void do_accept(void) { accept(listener, NULL, NULL); }
static void do_accept4(void) { accept4(listener, NULL, NULL, SOCK_CLOEXEC); }
static void do_poll(void) { struct pollfd p = {empty_pipe[0], POLLIN, 0}; poll(&p, 1, -1); }
static void do_poll_nothing(void) { poll(NULL, 0, -1); }
static void do_ppoll(void) { struct pollfd p = {empty_pipe[0], POLLIN, 0}; ppoll(&p, 1, NULL, NULL); }
static void do_select(void) { fd_set s; FD_ZERO(&s); FD_SET(empty_pipe[0], &s); select(empty_pipe[0] + 1, &s, NULL, NULL, NULL); }
static void do_pselect(void) { fd_set s; FD_ZERO(&s); FD_SET(empty_pipe[0], &s); pselect(empty_pipe[0] + 1, &s, NULL, NULL, NULL, NULL); }
static void do_epoll_wait(void) { struct epoll_event e; epoll_wait(epoll_fd, &e, 1, -1); }
static void do_epoll_pwait(void) { struct epoll_event e; epoll_pwait(epoll_fd, &e, 1, -1, NULL); }
static void do_waitpid(void) { waitpid(child, NULL, 0); }
static void do_wait(void) { wait(NULL); }
static void do_waitid(void) { siginfo_t i; waitid(P_PID, (id_t)child, &i, WEXITED); }
static void do_msgrcv(void) { msgrcv(message_queue, buffer, 8, 5, 0); }
static void do_mq_receive(void) { mq_receive(posix_queue, buffer, sizeof buffer, NULL); }
static void do_mq_timedreceive(void) { mq_timedreceive(posix_queue, buffer, sizeof buffer, NULL, &later); }
static void do_open_fifo(void) { open(fifo, O_RDONLY); }
static void do_fcntl_lock(void) { struct flock l = {.l_type = F_WRLCK}; fcntl(locked_fd, F_SETLKW, &l); }
static void do_lockf(void) { ignore(lockf(locked_fd, F_LOCK, 1)); }
static void do_fgetc(void) { FILE *f = fdopen(dup(empty_pipe[0]), "r"); fgetc(f); }
static void do_aio_suspend(void) {
  static struct aiocb cb;
  const struct aiocb *list[] = {&cb};
  static int started;
  if (!started) {
    started = 1;
    cb = (struct aiocb){.aio_fildes = empty_pipe[0], .aio_buf = buffer, .aio_nbytes = 1};
    cb.aio_sigevent.sigev_notify = SIGEV_NONE;
    CHECK_OK(aio_read(&cb));
  }
  aio_suspend(list, 1, NULL);
}

struct point {
  const char *name;
  void (*block)(void);
};
#define POINT(f) {#f, do_##f}
static const struct point points[] = {
    POINT(cond_wait), POINT(cond_timedwait), POINT(cond_clockwait), POINT(cnd_wait), POINT(sem_wait),
    POINT(sem_timedwait), POINT(sem_clockwait), POINT(join), POINT(timedjoin), POINT(clockjoin),
    POINT(nanosleep), POINT(thrd_sleep), POINT(clock_nanosleep), POINT(usleep), POINT(sleep),
    POINT(pause), POINT(sigsuspend), POINT(sigwait), POINT(sigwaitinfo), POINT(sigtimedwait),
    POINT(testcancel), POINT(read), POINT(readv), POINT(write), POINT(writev), POINT(recv),
    POINT(recvfrom), POINT(recvmsg), POINT(send), POINT(sendto), POINT(sendmsg), POINT(accept),
    POINT(accept4), POINT(poll), POINT(poll_nothing), POINT(ppoll), POINT(select), POINT(pselect),
    POINT(epoll_wait), POINT(epoll_pwait), POINT(waitpid), POINT(wait), POINT(waitid), POINT(msgrcv),
    POINT(mq_receive), POINT(mq_timedreceive), POINT(open_fifo), POINT(fcntl_lock), POINT(lockf),
    POINT(fgetc), POINT(aio_suspend)};
enum { kPoints = sizeof points / sizeof *points };

static int gate, at_call, cleaned;
static pthread_t cleaner;
static void clean(void *arg) {
  CHECK(pthread_equal(pthread_self(), cleaner));
  CHECK_EQ((intptr_t)arg, 7);
  ADD(&cleaned, 1);
}

static void *run_point(void *arg) {
  const struct point *p = arg;
  cleaner = pthread_self();
  pthread_sigmask(SIG_BLOCK, &usr1, NULL);
  pthread_cleanup_push(clean, (void *)7);
  STORE(&at_call, 1);
  p->block();
  dprintf(2, "%s went on, errno %d\n", p->name, errno);
  pthread_cleanup_pop(0);
  return NULL;
}

static void *run_point_with_pending(void *arg) {
  const struct point *p = arg;
  cleaner = pthread_self();
  pthread_sigmask(SIG_BLOCK, &usr1, NULL);
  CHECK_OK(pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, NULL));
  pthread_cleanup_push(clean, (void *)7);
  STORE(&at_call, 1);
  AWAIT(LOAD(&gate));
  CHECK_OK(pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, NULL));
  p->block();
  dprintf(2, "%s went on with a cancellation pending\n", p->name);
  pthread_cleanup_pop(0);
  return NULL;
}

// Threads may be the kernel's own (weft: by their attributes, or as they bound themselves to a CPU).
enum { kOrdinary, kByAttribute, kBoundByItself, kKindsOfThread };
static void *(*bound_runs)(void *);

static void *bind_and_run(void *arg) {
  cpu_set_t one;
  CHECK_OK(sched_getaffinity(0, sizeof one, &one));
  CHECK_OK(pthread_setaffinity_np(pthread_self(), sizeof one, &one));
  return bound_runs(arg);
}

static pthread_t start_kind(int kind, void *(*run)(void *), void *arg) {
  if (kind == kOrdinary) return start(run, arg);
  bound_runs = run;
  if (kind == kBoundByItself) return start(bind_and_run, arg);
  pthread_attr_t attr;
  pthread_t t;
  cpu_set_t first;
  CPU_ZERO(&first);
  cpu_set_t all;
  CHECK_OK(sched_getaffinity(0, sizeof all, &all));
  for (int i = 0; i < CPU_SETSIZE && CPU_COUNT(&first) == 0; i++)
    if (CPU_ISSET(i, &all)) CPU_SET(i, &first);
  CHECK_OK(pthread_attr_init(&attr));
  CHECK_OK(pthread_attr_setaffinity_np(&attr, sizeof first, &first));
  CHECK_OK(pthread_create(&t, &attr, run, arg));
  CHECK_OK(pthread_attr_destroy(&attr));
  return t;
}

static void cancel_each_in(int kind, void *(*run)(void *), int yields) {
  for (int i = 0; i < kPoints; i++) {
    if (points[i].block == do_msgrcv && message_queue < 0) continue;
    if ((points[i].block == do_mq_receive || points[i].block == do_mq_timedreceive) && posix_queue == (mqd_t)-1) continue;
    dprintf(1, " %s", points[i].name);  // a hang is one of this point
    at_call = gate = cleaned = 0;
    pthread_t t = start_kind(kind, run, (void *)&points[i]);
    AWAIT(LOAD(&at_call));
    yield_some(yields);
    CHECK_OK(pthread_cancel(t));
    STORE(&gate, 1);
    void *result = join(t);
    if (result != PTHREAD_CANCELED || cleaned != 1) dprintf(2, "point %s\n", points[i].name);
    CHECK(result == PTHREAD_CANCELED);
    CHECK_EQ(cleaned, 1);
  }
  dprintf(1, "\n");
}
static void cancel_each(void *(*run)(void *), int yields) { cancel_each_in(kOrdinary, run, yields); }

static void *sleep_for_ever(void *arg) {
  for (;;) pause();
  return arg;
}

static void fill(int fd) {
  int flags = fcntl(fd, F_GETFL);
  fcntl(fd, F_SETFL, flags | O_NONBLOCK);
  while (write(fd, buffer, sizeof buffer) > 0) {
  }
  fcntl(fd, F_SETFL, flags);
}

static int hold_file_lock(int fd, int ready) {
  struct flock l = {.l_type = F_WRLCK};
  if (fcntl(fd, F_SETLK, &l) != 0 || write(ready, "x", 1) != 1) return 1;
  for (;;) pause();
}

static int set_up(void **state) {
  (void)state;
  later = in_ms(CLOCK_REALTIME, 600000);
  sigemptyset(&usr1);
  sigaddset(&usr1, SIGUSR1);
  CHECK_OK(sem_init(&sem, 0, 0));
  CHECK(pipe(empty_pipe) == 0 && pipe(full_pipe) == 0);
  fill(full_pipe[1]);
  CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, empty_pair) == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, full_pair) == 0);
  fill(full_pair[0]);
  listener = socket(AF_INET, SOCK_STREAM, 0);
  struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  CHECK_OK(bind(listener, (struct sockaddr *)&in, sizeof in));
  CHECK_OK(listen(listener, 5));
  epoll_fd = epoll_create1(0);
  struct epoll_event e = {.events = EPOLLIN};
  CHECK_OK(epoll_ctl(epoll_fd, EPOLL_CTL_ADD, empty_pipe[0], &e));
  message_queue = msgget(IPC_PRIVATE, 0600);
  struct mq_attr attr = {.mq_maxmsg = 2, .mq_msgsize = sizeof buffer};
  char name[40];
  snprintf(name, sizeof name, "/weft-cancel-%d", getpid());
  posix_queue = mq_open(name, O_CREAT | O_RDWR, 0600, &attr);
  mq_unlink(name);
  temp_path(fifo, "weft-cancel-fifo-%d", getpid());
  CHECK_OK(mkfifo(fifo, 0600));
  locked_fd = fileno(tmpfile());
  int ready[2];
  CHECK_OK(pipe(ready));
  fflush(NULL);
  if ((child = fork()) == 0) _exit(hold_file_lock(locked_fd, ready[1]));
  CHECK_EQ(read(ready[0], buffer, 1), 1);
  sleeper = start(sleep_for_ever, NULL);
  return 0;
}

static int tear_down(void **state) {
  (void)state;
  kill(child, SIGKILL);
  waitpid(child, NULL, 0);
  unlink(fifo);
  msgctl(message_queue, IPC_RMID, NULL);
  CHECK_OK(pthread_cancel(sleeper));
  CHECK(join(sleeper) == PTHREAD_CANCELED);
  return 0;
}

static void cancelled_while_blocked(void **state) {
  (void)state;
  for (int round = 0; round < 3; round++) cancel_each(run_point, 30);
}

static void cancelled_in_every_kind_of_thread(void **state) {
  (void)state;
  for (int kind = kOrdinary; kind < kKindsOfThread; kind++)
    for (int yields = 0; yields <= 100; yields += 50) cancel_each_in(kind, run_point, yields);
}

// A wait that is none goes on, in every kind of thread (weft's own waits once ended with EINTR, each time anew).
static void *futex_with_pending(void *arg) {
  int word = 0;
  struct timespec ms = {0, 20000000};
  CHECK_OK(pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, NULL));
  CHECK_OK(pthread_cancel(pthread_self()));
  CHECK_OK(pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, NULL));
  CHECK_FAILS(syscall(SYS_futex, &word, 128 /*FUTEX_WAIT, private*/, 0, &ms), ETIMEDOUT);
  return arg;
}

static void a_pending_request_ends_no_other_wait(void **state) {
  (void)state;
  int mine;
  for (int kind = kOrdinary; kind < kKindsOfThread; kind++)
    for (int i = 0; i < 5; i++) CHECK(join(start_kind(kind, futex_with_pending, &mine)) == &mine);
}

// ... and sleeps: of 0.1 s that the waiter is in a call which is no cancellation point, little is processor time.
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_rwlock_t rwlock = PTHREAD_RWLOCK_INITIALIZER;
static pthread_barrier_t barrier;
static void lock_and_unlock(void) {
  CHECK_OK(pthread_mutex_lock(&mutex));
  CHECK_OK(pthread_mutex_unlock(&mutex));
}
static void write_lock_and_unlock(void) {
  CHECK_OK(pthread_rwlock_wrlock(&rwlock));
  CHECK_OK(pthread_rwlock_unlock(&rwlock));
}
static void meet(void) { pthread_barrier_wait(&barrier); }

static void *wait_with_pending(void *arg) {
  CHECK_OK(pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, NULL));
  CHECK_OK(pthread_cancel(pthread_self()));
  CHECK_OK(pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, NULL));
  STORE(&at_call, 1);
  ((const struct point *)arg)->block();
  return arg;
}

static void a_waiter_with_a_pending_request_sleeps(void **state) {
  (void)state;
  static const struct point none[] = {{"mutex", lock_and_unlock}, {"rwlock", write_lock_and_unlock}, {"barrier", meet}};
  CHECK_OK(pthread_barrier_init(&barrier, NULL, 2));
  for (int kind = kOrdinary; kind < kKindsOfThread; kind++)
    for (const struct point *p = none; p < none + sizeof none / sizeof *none; p++) {
      CHECK_OK(pthread_mutex_lock(&mutex));
      CHECK_OK(pthread_rwlock_wrlock(&rwlock));
      at_call = 0;
      pthread_t t = start_kind(kind, wait_with_pending, (void *)p);
      AWAIT(LOAD(&at_call));
      int64_t before = now_ns(CLOCK_PROCESS_CPUTIME_ID);
      usleep(100000);
      int64_t used = now_ns(CLOCK_PROCESS_CPUTIME_ID) - before;
      CHECK_OK(pthread_mutex_unlock(&mutex));
      CHECK_OK(pthread_rwlock_unlock(&rwlock));
      if (p->block == meet) meet();
      CHECK(join(t) == p);
      if (used >= 50000000) dprintf(2, "%s: %lld ns of processor time\n", p->name, (long long)used);
      CHECK(used < 50000000);
    }
}

static void cancelled_on_the_way_in(void **state) {
  (void)state;
  for (int round = 0; round < 3; round++) cancel_each(run_point, round);
}

static void cancelled_by_a_pending_request(void **state) {
  (void)state;
  cancel_each(run_point_with_pending, 3);
}

// What a cancelled waiter was waiting for is still there for the next one.
static void nothing_is_consumed(void **state) {
  (void)state;
  for (int i = 0; i < 100; i++) {
    at_call = gate = cleaned = 0;
    const struct point p = i & 1 ? (struct point){"read", do_read} : (struct point){"sem_wait", do_sem_wait};
    pthread_t t = start(run_point_with_pending, (void *)&p);
    AWAIT(LOAD(&at_call));
    if (i & 1) CHECK_EQ(write(empty_pipe[1], "y", 1), 1);
    else CHECK_OK(sem_post(&sem));
    CHECK_OK(pthread_cancel(t));
    STORE(&gate, 1);
    CHECK(join(t) == PTHREAD_CANCELED);
    if (i & 1) CHECK_EQ(read(empty_pipe[0], buffer, 1), 1);
    else CHECK_OK(sem_trywait(&sem));
  }
}

// Its tid's end is its end: then join has nothing to wait for.
static pid_t tids[3];
static void *ended(void *arg) {
  *(pid_t *)arg = gettid();
  return NULL;
}

// Calls that libc lets a cancelled thread make; some of them once ended it here.
static void *calls_with_pending(void *arg) {
  pthread_t *over = arg;
  char byte;
  off_t at = 0;
  int out = fileno(tmpfile());
  CHECK_EQ(write(out, "abc", 3), 3);
  CHECK_OK(pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, NULL));
  CHECK_OK(pthread_cancel(pthread_self()));
  CHECK_OK(pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, NULL));
  CHECK_OK(lockf(out, F_TLOCK, 1));
  CHECK_OK(lockf(out, F_ULOCK, 1));
  CHECK_EQ(sendfile(out, out, &at, 1), 1);
  CHECK_EQ(syscall(SYS_write, out, "x", 1), 1);
  CHECK_EQ(syscall(SYS_pread64, out, &byte, 1, 0), 1);
  CHECK_EQ(syscall(SYS_poll, NULL, 0, 1), 0);
  struct timespec ms = {0, 1000000}, past = {1, 0};
  CHECK_EQ(syscall(SYS_nanosleep, &ms, NULL), 0);
  CHECK_EQ(syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &ms, NULL), 0);
  CHECK_EQ(syscall(SYS_close, dup(out)), 0);
  CHECK_OK(pthread_join(over[0], NULL));
  CHECK_OK(pthread_timedjoin_np(over[1], NULL, &past));
  CHECK_OK(pthread_clockjoin_np(over[2], NULL, CLOCK_MONOTONIC, &past));
  close(out);
  dprintf(2, "close went on with a cancellation pending\n");
  return NULL;
}

// Blocked in one of them it is not woken by the request either.
static void *read_by_number(void *arg) {
  char byte;
  STORE(&at_call, 1);
  CHECK_EQ(syscall(SYS_read, *(int *)arg, &byte, 1), 1);
  STORE(&gate, 1);
  for (;;) pthread_testcancel();
  return NULL;
}

static void what_is_no_cancellation_point(void **state) {
  (void)state;
  pthread_t over[3];
  for (int i = 0; i < 3; i++) {
    tids[i] = 0;
    over[i] = start(ended, &tids[i]);
    AWAIT(LOAD(&tids[i]) != 0 && syscall(SYS_tgkill, getpid(), tids[i], 0) == -1);
  }
  CHECK(join(start(calls_with_pending, over)) == PTHREAD_CANCELED);
  for (int i = 0; i < 20; i++) {
    int fd[2];
    CHECK_OK(pipe(fd));
    at_call = gate = 0;
    pthread_t t = start(read_by_number, &fd[0]);
    AWAIT(LOAD(&at_call));
    yield_some(i * 3);
    CHECK_OK(pthread_cancel(t));
    yield_some(30);
    CHECK_EQ(LOAD(&gate), 0);
    CHECK_EQ(write(fd[1], "x", 1), 1);
    CHECK(join(t) == PTHREAD_CANCELED);
    CHECK_EQ(gate, 1);
    close(fd[0]);
    close(fd[1]);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(nothing_is_consumed),
      cmocka_unit_test(cancelled_while_blocked),
      cmocka_unit_test(cancelled_on_the_way_in),
      cmocka_unit_test(cancelled_in_every_kind_of_thread),
      cmocka_unit_test(cancelled_by_a_pending_request),
      cmocka_unit_test(what_is_no_cancellation_point),
      cmocka_unit_test(a_pending_request_ends_no_other_wait),
      cmocka_unit_test(a_waiter_with_a_pending_request_sleeps),
  };
  return cmocka_run_group_tests(tests, set_up, tear_down);
}

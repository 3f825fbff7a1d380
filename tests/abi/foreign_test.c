// foreign_test.c - family: threads that libc starts itself and that call our code.
//
// Behaviours: SIGEV_THREAD timers, aio with SIGEV_THREAD, aio_read/write/suspend/error/cancel,
// lio_listio, getaddrinfo_a, mq_notify SIGEV_THREAD; their callbacks lock, wait on conds, sems,
// barriers, rwlocks together with ordinary threads, create and join threads, use TSD.
// Invariant: a thread is a thread, whoever started it.
// libs: -lrt
#include "abi.h"

#include <aio.h>
#include <fcntl.h>
#include <mqueue.h>
#include <netdb.h>
#include <netinet/in.h>
#include <semaphore.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
static pthread_rwlock_t rwlock = PTHREAD_RWLOCK_INITIALIZER;
static pthread_barrier_t barrier;
static sem_t requests, answers;
static pthread_key_t key;
static pthread_once_t once;
static int stage, expirations, ticks, destroyed, once_runs, inside;
static __thread int tls_value = 71;

static void count_destroyed(void *value) { ADD(&destroyed, (int)(intptr_t)value); }
static void run_once(void) {
  sched_yield();
  once_runs++;
}
static void *twice(void *arg) {
  sched_yield();
  return (void *)(2 * (intptr_t)arg);
}

// Every primitive, with an ordinary thread as the partner: called by a foreign thread.
static void meet_an_ordinary_thread(void) {
  CHECK_EQ(tls_value, 71);
  tls_value = 1;
  CHECK(pthread_getspecific(key) == NULL);
  CHECK_OK(pthread_setspecific(key, (void *)1));
  CHECK_OK(pthread_once(&once, run_once));

  pthread_mutex_lock(&lock);  // held by the partner when we come
  CHECK_EQ(++inside, 1);
  sched_yield();
  inside--;
  stage = 2;
  pthread_cond_signal(&cond);
  while (stage != 3) pthread_cond_wait(&cond, &lock);
  struct timespec soon = in_ms(CLOCK_REALTIME, 2);
  int error;
  do error = pthread_cond_timedwait(&cond, &lock, &soon);
  while (error == 0);
  CHECK_EQ(error, ETIMEDOUT);
  pthread_mutex_unlock(&lock);

  CHECK_OK(sem_wait(&requests));
  CHECK_OK(sem_post(&answers));
  pthread_barrier_wait(&barrier);
  CHECK_OK(pthread_rwlock_rdlock(&rwlock));
  CHECK_OK(pthread_rwlock_unlock(&rwlock));
  struct timespec tiny = to_timespec(50000);
  CHECK_OK(nanosleep(&tiny, NULL));
  CHECK(join(start(twice, (void *)21)) == (void *)42);
  pthread_mutex_lock(&lock);
  stage = 4;
  pthread_cond_broadcast(&cond);
  pthread_mutex_unlock(&lock);
}

static void begin_meeting(void) {
  pthread_mutex_lock(&lock);
  stage = once_runs = 0;
  once = (pthread_once_t)PTHREAD_ONCE_INIT;
}

static void *meet_a_foreign_thread(void *arg) {
  CHECK_OK(pthread_rwlock_wrlock(&rwlock));
  CHECK_EQ(++inside, 1);
  yield_some(10);
  inside--;
  while (stage != 2) pthread_cond_wait(&cond, &lock);
  stage = 3;
  pthread_cond_broadcast(&cond);
  pthread_mutex_unlock(&lock);
  CHECK_OK(sem_post(&requests));
  CHECK_OK(sem_wait(&answers));
  pthread_barrier_wait(&barrier);
  CHECK_OK(pthread_rwlock_unlock(&rwlock));
  pthread_mutex_lock(&lock);
  while (stage != 4) pthread_cond_wait(&cond, &lock);
  pthread_mutex_unlock(&lock);
  CHECK_EQ(once_runs, 1);
  return arg;
}

static int set_up(void **state) {
  (void)state;
  CHECK_OK(pthread_key_create(&key, count_destroyed));
  CHECK_OK(sem_init(&requests, 0, 0));
  CHECK_OK(sem_init(&answers, 0, 0));
  CHECK_OK(pthread_barrier_init(&barrier, NULL, 2));
  return 0;
}

// Those of a periodic timer may still be about to count when it has been deleted: they have a
// counter of their own (they made the five of aio six, once in 20 runs on a busy machine).
enum { kTick = 1 };

static void on_event(union sigval value) {
  if (value.sival_int == 5) meet_an_ordinary_thread();
  ADD(value.sival_int == kTick ? &ticks : &expirations, 1);
}

static struct sigevent thread_event(int value) {
  struct sigevent event = {.sigev_notify = SIGEV_THREAD, .sigev_value.sival_int = value, .sigev_notify_function = on_event};
  return event;
}

static void *meet_a_timer(void *arg) {
  timer_t timer;
  struct sigevent event = thread_event(5);
  struct itimerspec at = {.it_value.tv_nsec = 1};
  begin_meeting();
  CHECK_OK(timer_create(CLOCK_MONOTONIC, &event, &timer));
  CHECK_OK(timer_settime(timer, 0, &at, NULL));
  meet_a_foreign_thread(NULL);
  CHECK_OK(timer_delete(timer));
  return arg;
}

static void timer_thread_meets_others(void **state) {
  (void)state;
  destroyed = 0;
  for (int i = 0; i < 5; i++) meet_a_timer(NULL);
  for (int i = 0; i < 5; i++) join(start(meet_a_timer, NULL));
  AWAIT(LOAD(&destroyed) == 10);
}

static pthread_t ended;
static int asked, got_errors, set_errors;
static void ask_about_ended(union sigval value) {
  (void)value;
  cpu_set_t its;
  STORE(&got_errors, pthread_getaffinity_np(ended, sizeof its, &its));
  STORE(&set_errors, pthread_setaffinity_np(ended, sizeof its, &its));
  STORE(&asked, 1);
}

static void *say_tid(void *arg) {
  STORE((int *)arg, gettid());
  return NULL;
}

// libc takes an ended thread's affinity for the caller's. Failed: ESRCH.
static void affinity_of_an_ended_thread(void **state) {
  (void)state;
  int tid = 0;
  timer_t timer;
  struct sigevent event = {.sigev_notify = SIGEV_THREAD, .sigev_notify_function = ask_about_ended};
  struct itimerspec at = {.it_value.tv_nsec = 1};
  ended = start(say_tid, &tid);
  AWAIT(LOAD(&tid) != 0 && syscall(SYS_tgkill, getpid(), LOAD(&tid), 0) == -1);
  CHECK_OK(timer_create(CLOCK_MONOTONIC, &event, &timer));
  CHECK_OK(timer_settime(timer, 0, &at, NULL));
  AWAIT(LOAD(&asked));
  CHECK_EQ(LOAD(&got_errors), 0);
  CHECK_EQ(LOAD(&set_errors), 0);
  CHECK_OK(timer_delete(timer));
  join(ended);
}

static void periodic_timers(void **state) {
  (void)state;
  timer_t timers[8];
  ticks = 0;
  for (int i = 0; i < 8; i++) {
    struct sigevent event = thread_event(kTick);
    struct itimerspec at = {.it_value.tv_nsec = 1000000, .it_interval.tv_nsec = 1000000};
    CHECK_OK(timer_create(i & 1 ? CLOCK_REALTIME : CLOCK_MONOTONIC, &event, &timers[i]));
    CHECK_OK(timer_settime(timers[i], 0, &at, NULL));
  }
  AWAIT(LOAD(&ticks) >= 100);
  for (int i = 0; i < 8; i++) CHECK_OK(timer_delete(timers[i]));
}

static void finish_aio(struct aiocb *cb, ssize_t want) {
  const struct aiocb *list[] = {cb};
  int error;
  while ((error = aio_error(cb)) == EINPROGRESS) CHECK(aio_suspend(list, 1, NULL) == 0 || errno == EINTR);
  CHECK_OK(error);
  CHECK_EQ(aio_return(cb), want);
}

static int temporary_file(void) {
  char name[TEMP_ROOM];
  temp_path(name, "weft-foreign-XXXXXX");
  int fd = mkstemp(name);
  CHECK(fd >= 0);
  unlink(name);
  return fd;
}

static void *write_and_read_back(void *arg) {
  char out[512], in[512];
  int fd = temporary_file();
  memset(out, 'a' + (int)(intptr_t)arg, sizeof out);
  for (int i = 0; i < 5; i++) {
    struct aiocb w = {.aio_fildes = fd, .aio_buf = out, .aio_nbytes = sizeof out, .aio_offset = i * 512};
    w.aio_sigevent.sigev_notify = SIGEV_NONE;
    CHECK_OK(aio_write(&w));
    finish_aio(&w, sizeof out);
    struct aiocb r = {.aio_fildes = fd, .aio_buf = in, .aio_nbytes = sizeof in, .aio_offset = i * 512};
    r.aio_sigevent.sigev_notify = SIGEV_NONE;
    errno = 0;
    CHECK_OK(aio_read(&r));
    CHECK_EQ(errno, 0);  // libc asks for our priority to queue by, and was not told it
    finish_aio(&r, sizeof in);
    CHECK_EQ(memcmp(in, out, sizeof in), 0);
  }
  close(fd);
  return NULL;
}

static void aio_in_threads(void **state) {
  (void)state;
  pthread_t t[8];
  write_and_read_back(NULL);
  for (intptr_t i = 0; i < 8; i++) t[i] = start(write_and_read_back, (void *)i);
  for (int i = 0; i < 8; i++) join(t[i]);
}

static void aio_notification_meets_others(void **state) {
  (void)state;
  int fd = temporary_file();
  char text[] = "some text";
  expirations = 0;
  for (int i = 0; i < 5; i++) {
    begin_meeting();
    struct aiocb cb = {.aio_fildes = fd, .aio_buf = text, .aio_nbytes = sizeof text, .aio_sigevent = thread_event(5)};
    CHECK_OK(aio_write(&cb));
    meet_a_foreign_thread(NULL);
    finish_aio(&cb, sizeof text);
  }
  AWAIT(LOAD(&expirations) == 5);
  expirations = 0;
  struct aiocb cbs[10], *list[10];
  for (int i = 0; i < 10; i++) {
    cbs[i] = (struct aiocb){.aio_fildes = fd, .aio_buf = text, .aio_nbytes = 5, .aio_offset = i * 5,
                            .aio_lio_opcode = LIO_WRITE, .aio_sigevent = thread_event(0)};
    list[i] = &cbs[i];
  }
  struct sigevent event = thread_event(0);
  CHECK_OK(lio_listio(LIO_WAIT, list, 10, NULL));
  for (int i = 0; i < 10; i++) finish_aio(&cbs[i], 5);
  CHECK_OK(lio_listio(LIO_NOWAIT, list, 10, &event));
  AWAIT(LOAD(&expirations) == 21);
  for (int i = 0; i < 10; i++) finish_aio(&cbs[i], 5);
  close(fd);
}

// A request that blocks in the kernel (an empty pipe) is ended by a write, of another thread.
static void *write_later(void *fd) {
  yield_some(20);
  CHECK_EQ(write((int)(intptr_t)fd, "z", 1), 1);
  return NULL;
}
static void aio_on_a_pipe(void **state) {
  (void)state;
  int ends[2];
  char c = 0;
  CHECK_OK(pipe(ends));
  for (int i = 0; i < 10; i++) {
    struct aiocb cb = {.aio_fildes = ends[0], .aio_buf = &c, .aio_nbytes = 1};
    cb.aio_sigevent.sigev_notify = SIGEV_NONE;
    const struct aiocb *list[] = {&cb};
    struct timespec soon = to_timespec(2000000);
    CHECK_OK(aio_read(&cb));
    CHECK_FAILS(aio_suspend(list, 1, &soon), EAGAIN);
    CHECK_EQ(aio_error(&cb), EINPROGRESS);
    pthread_t t = start(write_later, (void *)(intptr_t)ends[1]);
    finish_aio(&cb, 1);
    CHECK_EQ(c, 'z');
    join(t);
  }
  close(ends[0]);
  close(ends[1]);
}

static void check_resolved(struct gaicb *r) {
  CHECK_OK(gai_error(r));
  CHECK_EQ(ntohl(((struct sockaddr_in *)r->ar_result->ai_addr)->sin_addr.s_addr), INADDR_LOOPBACK);
  freeaddrinfo(r->ar_result);
}

static void asynchronous_resolver(void **state) {
  (void)state;
  struct addrinfo hints = {.ai_flags = AI_NUMERICHOST, .ai_family = AF_INET, .ai_socktype = SOCK_STREAM};
  for (int round = 0; round < 5; round++) {
    struct gaicb r[6], *list[6];
    for (int i = 0; i < 6; i++) {
      r[i] = (struct gaicb){.ar_name = "127.0.0.1", .ar_service = "80", .ar_request = &hints};
      list[i] = &r[i];
    }
    CHECK_OK(getaddrinfo_a(GAI_WAIT, list, 3, NULL));
    for (int i = 0; i < 3; i++) check_resolved(&r[i]);
    struct sigevent event = thread_event(5);
    begin_meeting();
    CHECK_OK(getaddrinfo_a(GAI_NOWAIT, list + 3, 3, &event));
    meet_a_foreign_thread(NULL);
    for (int i = 3; i < 6; i++) {
      int error;
      while ((error = gai_error(&r[i])) == EAI_INPROGRESS) gai_suspend((const struct gaicb *const *)&list[i], 1, NULL);
      check_resolved(&r[i]);
    }
  }
}

static void message_queue_notification(void **state) {
  (void)state;
  char name[40];
  struct mq_attr attr = {.mq_maxmsg = 4, .mq_msgsize = 32};
  snprintf(name, sizeof name, "/weft-foreign-%d", getpid());
  mqd_t q = mq_open(name, O_CREAT | O_RDWR | O_NONBLOCK, 0600, &attr);
  if (q == (mqd_t)-1) skip();
  mq_unlink(name);
  for (int i = 0; i < 5; i++) {
    char text[32];
    begin_meeting();
    struct sigevent event = thread_event(5);
    CHECK_OK(mq_notify(q, &event));
    CHECK_FAILS(mq_notify(q, &event), EBUSY);
    CHECK_OK(mq_send(q, "hello", 6, 1));
    meet_a_foreign_thread(NULL);
    CHECK_EQ(mq_receive(q, text, sizeof text, NULL), 6);
  }
  mq_close(q);
}

static int use_in_child(void *arg) {
  (void)arg;
  for (int i = 0; i < 2; i++) meet_a_timer(NULL);  // aio's helpers do not survive a fork, natively either
  return 0;
}
static void used_in_a_forked_child(void **state) {
  (void)state;
  CHECK_OK(in_child(use_in_child, NULL));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(timer_thread_meets_others),
      cmocka_unit_test(periodic_timers),
      cmocka_unit_test(aio_in_threads),
      cmocka_unit_test(aio_notification_meets_others),
      cmocka_unit_test(affinity_of_an_ended_thread),
      cmocka_unit_test(aio_on_a_pipe),
      cmocka_unit_test(asynchronous_resolver),
      cmocka_unit_test(message_queue_notification),
      cmocka_unit_test(used_in_a_forked_child),
  };
  return cmocka_run_group_tests(tests, set_up, NULL);
}

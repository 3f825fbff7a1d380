// sem_test.c - family: sem_*: unnamed, timed, process-shared, named.
//
// Behaviours: values and error codes; posts are taken exactly once; timed and clock waits;
// EINTR; posts from a signal handler; semaphores across fork; named semaphores between
// processes, unlink, O_EXCL; destroyed by the woken one right after its wait.
// Invariant: waits that succeeded = posts + initial value - value left.
#include "abi.h"

#include <fcntl.h>
#include <semaphore.h>
#include <sys/stat.h>

static int value_of(sem_t *s) {
  int value = -5;
  CHECK_OK(sem_getvalue(s, &value));
  return value;
}

static void values_and_codes(void **state) {
  (void)state;
  sem_t s;
  CHECK_OK(sem_init(&s, 0, 3));
  CHECK_EQ(value_of(&s), 3);
  for (int i = 2; i >= 0; i--) {
    CHECK_OK(i & 1 ? sem_wait(&s) : sem_trywait(&s));
    CHECK_EQ(value_of(&s), i);
  }
  CHECK_FAILS(sem_trywait(&s), EAGAIN);
  CHECK_OK(sem_post(&s));
  CHECK_EQ(value_of(&s), 1);
  CHECK_OK(sem_destroy(&s));
  CHECK_FAILS(sem_init(&s, 0, (unsigned)SEM_VALUE_MAX + 1), EINVAL);
  CHECK_OK(sem_init(&s, 0, SEM_VALUE_MAX));
  CHECK_EQ(value_of(&s), SEM_VALUE_MAX);
  CHECK_FAILS(sem_post(&s), EOVERFLOW);
  CHECK_OK(sem_wait(&s));
  CHECK_OK(sem_post(&s));
  CHECK_OK(sem_destroy(&s));
}

static void timed_waits(void **state) {
  (void)state;
  sem_t s;
  CHECK_OK(sem_init(&s, 0, 0));
  struct timespec when = in_ms(CLOCK_REALTIME, 15);
  CHECK_FAILS(sem_timedwait(&s, &when), ETIMEDOUT);
  CHECK(is_past(CLOCK_REALTIME, when));
  when = in_ms(CLOCK_REALTIME, 15);
  CHECK_FAILS(sem_clockwait(&s, CLOCK_REALTIME, &when), ETIMEDOUT);
  CHECK(is_past(CLOCK_REALTIME, when));
  when = in_ms(CLOCK_MONOTONIC, 15);
  CHECK_FAILS(sem_clockwait(&s, CLOCK_MONOTONIC, &when), ETIMEDOUT);
  CHECK(is_past(CLOCK_MONOTONIC, when));
  when = in_ms(CLOCK_REALTIME, -5000);
  CHECK_FAILS(sem_timedwait(&s, &when), ETIMEDOUT);
  CHECK_FAILS(sem_clockwait(&s, CLOCK_PROCESS_CPUTIME_ID, &when), EINVAL);
  struct timespec bad = {now_ns(CLOCK_REALTIME) / 1000000000 + 60, 1000000000};
  CHECK_FAILS(sem_timedwait(&s, &bad), EINVAL);
  bad.tv_nsec = -1;
  CHECK_FAILS(sem_timedwait(&s, &bad), EINVAL);
  CHECK_OK(sem_post(&s));
  when = in_ms(CLOCK_REALTIME, -5000);
  CHECK_OK(sem_timedwait(&s, &when));  // available: the time does not count
  CHECK_OK(sem_destroy(&s));
}

static sem_t sem, ack;
static long taken, rounds;

static void *take(void *arg) {
  long form = (long)arg;
  for (long i = 0; i < rounds; i++, form++) {
    struct timespec later = in_ms(form % 4 == 2 ? CLOCK_MONOTONIC : CLOCK_REALTIME, 60000);
    switch (form % 4) {
      case 0: CHECK_OK(sem_wait(&sem)); break;
      case 1: CHECK_OK(sem_timedwait(&sem, &later)); break;
      case 2: CHECK_OK(sem_clockwait(&sem, CLOCK_MONOTONIC, &later)); break;
      default:
        while (sem_trywait(&sem) != 0) sched_yield();
    }
    ADD(&taken, 1);
  }
  return NULL;
}

static void *give(void *arg) {
  for (long i = 0; i < rounds; i++) CHECK_OK(sem_post(&sem));
  return arg;
}

static void posts_are_taken_exactly_once(void **state) {
  (void)state;
  const int crowds[] = {1, 8, 64};
  for (int c = 0; c < 3; c++) {
    int n = crowds[c];
    pthread_t takers[64], givers[64];
    CHECK_OK(sem_init(&sem, 0, 0));
    taken = 0;
    rounds = 4000 / n;
    for (long i = 0; i < n; i++) takers[i] = start(take, (void *)i);
    for (int i = 0; i < n; i++) givers[i] = start(give, NULL);
    for (int i = 0; i < n; i++) join(givers[i]);
    for (int i = 0; i < n; i++) join(takers[i]);
    CHECK_EQ(taken, n * rounds);
    CHECK_EQ(value_of(&sem), 0);
    CHECK_OK(sem_destroy(&sem));
  }
}

static void *wait_once(void *arg) {
  CHECK_OK(sem_wait(&sem));
  ADD(&taken, 1);
  CHECK_OK(sem_post(&ack));
  return arg;
}

static void each_post_frees_one_waiter(void **state) {
  (void)state;
  pthread_t t[100];
  CHECK_OK(sem_init(&sem, 0, 0));
  CHECK_OK(sem_init(&ack, 0, 0));
  taken = 0;
  for (int i = 0; i < 100; i++) t[i] = start(wait_once, NULL);
  for (int i = 1; i <= 100; i++) {
    CHECK_OK(sem_post(&sem));
    CHECK_OK(sem_wait(&ack));
    CHECK_EQ(LOAD(&taken), i);
  }
  for (int i = 0; i < 100; i++) join(t[i]);
  CHECK_OK(sem_destroy(&sem));
  CHECK_OK(sem_destroy(&ack));
}

static void *echo_posts(void *arg) {
  for (int i = 0; i < 3000; i++) {
    CHECK_OK(sem_wait(&sem));
    CHECK_OK(sem_post(&ack));
  }
  return arg;
}

static void ping_pong(void **state) {
  (void)state;
  CHECK_OK(sem_init(&sem, 0, 0));
  CHECK_OK(sem_init(&ack, 0, 0));
  pthread_t t = start(echo_posts, NULL);
  for (int i = 0; i < 3000; i++) {
    CHECK_OK(sem_post(&sem));
    CHECK_OK(sem_wait(&ack));
  }
  join(t);
}

// The waiter owns the semaphore: once its wait returns, the memory is gone. A post must not
// touch it after it has let the waiter through.
static void *post_once(void *s) {
  CHECK_OK(sem_post(s));
  return NULL;
}

static void destroyed_right_after_the_wait(void **state) {
  (void)state;
  for (int i = 0; i < 400; i++) {
    sem_t *s = malloc(sizeof *s);
    CHECK_OK(sem_init(s, 0, 0));
    pthread_t t = start(post_once, s);
    CHECK_OK(sem_wait(s));
    CHECK_OK(sem_destroy(s));
    memset(s, 0xff, sizeof *s);
    free(s);
    join(t);
  }
}

static long successes;
static void *race_timeouts(void *arg) {
  unsigned seed = (unsigned)(long)arg + 5;
  for (int i = 0; i < 300; i++) {
    struct timespec soon = in_us(CLOCK_MONOTONIC, rand_r(&seed) % 40);
    if (sem_clockwait(&sem, CLOCK_MONOTONIC, &soon) == 0) ADD(&successes, 1);
    else CHECK_EQ(errno, ETIMEDOUT);
  }
  return NULL;
}

static void timeouts_racing_posts(void **state) {
  (void)state;
  pthread_t t[10];
  CHECK_OK(sem_init(&sem, 0, 0));
  successes = 0;
  for (long i = 0; i < 10; i++) t[i] = start(race_timeouts, (void *)i);
  for (int i = 0; i < 2000; i++) {
    CHECK_OK(sem_post(&sem));
    if (i % 3 == 0) sched_yield();
  }
  for (int i = 0; i < 10; i++) join(t[i]);
  CHECK_EQ(successes + value_of(&sem), 2000);
}

static void post_from_handler(int sig) {
  (void)sig;
  int saved = errno;
  if (sem_post(&sem) != 0) _exit(ABI_EXIT_FAILED);
  errno = saved;
}

static void posts_from_a_signal_handler(void **state) {
  (void)state;
  struct sigaction action = {.sa_handler = post_from_handler, .sa_flags = SA_RESTART}, old;
  CHECK_OK(sem_init(&sem, 0, 0));
  CHECK_OK(sem_init(&ack, 0, 0));
  CHECK_OK(sigaction(SIGUSR1, &action, &old));
  pthread_t t = start(echo_posts, NULL);
  for (int i = 0; i < 1500; i++) {
    CHECK_OK(raise(SIGUSR1));
    CHECK_OK(sem_wait(&ack));
    // And to the thread that sits in the wait, which it then ends itself.
    CHECK_OK(pthread_kill(t, SIGUSR1));
    CHECK_OK(sem_wait(&ack));
  }
  join(t);
  CHECK_OK(sigaction(SIGUSR1, &old, NULL));
}

static int handled;
static void note_signal(int sig) {
  (void)sig;
  ADD(&handled, 1);
}

static int interrupted_stop;
static pthread_t interrupted;
static void *keep_interrupting(void *arg) {
  while (!LOAD(&interrupted_stop)) {
    CHECK_OK(pthread_kill(interrupted, SIGUSR2));
    yield_some(5);
  }
  return arg;
}

// Without SA_RESTART a wait ends with EINTR; waits are retried and lose nothing.
static void interrupted_waits(void **state) {
  (void)state;
  struct sigaction action = {.sa_handler = note_signal}, old;
  CHECK_OK(sigaction(SIGUSR2, &action, &old));
  CHECK_OK(sem_init(&sem, 0, 0));
  interrupted = pthread_self();
  STORE(&interrupted_stop, 0);
  pthread_t t = start(keep_interrupting, NULL);
  for (int i = 0; i < 5; i++) CHECK_FAILS(sem_wait(&sem), EINTR);
  struct timespec later = in_ms(CLOCK_REALTIME, 60000);
  CHECK_FAILS(sem_timedwait(&sem, &later), EINTR);
  STORE(&interrupted_stop, 1);
  join(t);
  CHECK(LOAD(&handled) > 0);
  CHECK_OK(sem_post(&sem));
  CHECK_OK(sem_wait(&sem));
  CHECK_OK(sigaction(SIGUSR2, &old, NULL));
}

// Across processes.

struct shared {
  sem_t request, answer;
  long served;
};

static void *serve(void *arg) {
  struct shared *s = arg;
  for (int i = 0; i < 200; i++) {
    CHECK_OK(sem_wait(&s->request));
    ADD(&s->served, 1);
    CHECK_OK(sem_post(&s->answer));
  }
  return NULL;
}

static int serve_with_threads(void *arg) {
  pthread_t t[3];
  for (int i = 0; i < 3; i++) t[i] = start(serve, arg);
  for (int i = 0; i < 3; i++) join(t[i]);
  return 0;
}

static void *ask(void *arg) {
  struct shared *s = arg;
  for (int i = 0; i < 200; i++) {
    CHECK_OK(sem_post(&s->request));
    struct timespec later = in_ms(CLOCK_REALTIME, 60000);
    CHECK_OK(i & 1 ? sem_wait(&s->answer) : sem_timedwait(&s->answer, &later));
  }
  return NULL;
}

static void shared_between_processes(void **state) {
  (void)state;
  struct shared *s = shared_memory(sizeof *s);
  CHECK_OK(sem_init(&s->request, 1, 0));
  CHECK_OK(sem_init(&s->answer, 1, 0));
  pthread_t t[3];
  fflush(NULL);
  pid_t pid = fork();
  if (pid == 0) _exit(serve_with_threads(s));
  for (int i = 0; i < 3; i++) t[i] = start(ask, s);
  for (int i = 0; i < 3; i++) join(t[i]);
  int status;
  CHECK_EQ(waitpid(pid, &status, 0), pid);
  CHECK_OK(status);
  CHECK_EQ(s->served, 600);
}

static char name_a[40], name_b[40];

static int echo_named(void *arg) {
  (void)arg;
  sem_t *a = sem_open(name_a, 0), *b = sem_open(name_b, 0);
  CHECK(a != SEM_FAILED && b != SEM_FAILED);
  for (int i = 0; i < 200; i++) {
    CHECK_OK(sem_wait(a));
    CHECK_OK(sem_post(b));
  }
  CHECK_OK(sem_close(a));
  CHECK_OK(sem_close(b));
  return 0;
}

static void *echo_named_thread(void *arg) { return (void *)(intptr_t)echo_named(arg); }

static void named(void **state) {
  (void)state;
  snprintf(name_a, sizeof name_a, "/weft-abi-a-%d", getpid());
  snprintf(name_b, sizeof name_b, "/weft-abi-b-%d", getpid());
  CHECK(sem_open(name_a, 0) == SEM_FAILED && errno == ENOENT);
  sem_t *a = sem_open(name_a, O_CREAT | O_EXCL, 0600, 0), *b = sem_open(name_b, O_CREAT, 0600, 5);
  CHECK(a != SEM_FAILED && b != SEM_FAILED);
  CHECK(sem_open(name_a, O_CREAT | O_EXCL, 0600, 0) == SEM_FAILED && errno == EEXIST);
  CHECK(sem_open("/bad/name", O_CREAT, 0600, 0) == SEM_FAILED);
  CHECK_EQ(value_of(b), 5);
  for (int i = 0; i < 5; i++) CHECK_OK(sem_trywait(b));
  sem_t *again = sem_open(name_a, 0);
  CHECK(again == a);  // one mapping per process
  CHECK_OK(sem_close(again));
  struct timespec soon = in_ms(CLOCK_REALTIME, 5);
  CHECK_FAILS(sem_timedwait(a, &soon), ETIMEDOUT);

  for (int in_thread = 0; in_thread < 2; in_thread++) {
    pid_t pid = 0;
    pthread_t t = 0;
    fflush(NULL);
    if (in_thread) t = start(echo_named_thread, NULL);
    else if ((pid = fork()) == 0) _exit(echo_named(NULL));
    for (int i = 0; i < 200; i++) {
      CHECK_OK(sem_post(a));
      CHECK_OK(sem_wait(b));
    }
    if (in_thread) {
      CHECK(join(t) == NULL);
    } else {
      int status;
      CHECK_EQ(waitpid(pid, &status, 0), pid);
      CHECK_OK(status);
    }
  }
  CHECK_OK(sem_unlink(name_a));
  CHECK_OK(sem_post(a));  // works until closed
  CHECK_OK(sem_wait(a));
  CHECK_OK(sem_close(a));
  CHECK_OK(sem_close(b));
  CHECK_OK(sem_unlink(name_b));
  CHECK_FAILS(sem_unlink(name_b), ENOENT);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(values_and_codes),
      cmocka_unit_test(timed_waits),
      cmocka_unit_test(posts_are_taken_exactly_once),
      cmocka_unit_test(each_post_frees_one_waiter),
      cmocka_unit_test(ping_pong),
      cmocka_unit_test(destroyed_right_after_the_wait),
      cmocka_unit_test(timeouts_racing_posts),
      cmocka_unit_test(posts_from_a_signal_handler),
      cmocka_unit_test(interrupted_waits),
      cmocka_unit_test(shared_between_processes),
      cmocka_unit_test(named),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

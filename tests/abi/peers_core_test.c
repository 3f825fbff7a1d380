// peers_core_test.c - family: scheduling. run: weft
//
// A thread receives from a client in another process on this machine, and always finds something.
// Behaviour: the kernel thread that runs it sleeps now and then, so that the clients get at its core.
// How it failed: it never did, and in a scheduling group of its own it kept one of 8 clients of
// mariadbd from the core for 940 ms.
// Counted in processor time, not in time that passes. (Natively a thread sleeps when it waits.)
#include "io.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <signal.h>
#include <sys/wait.h>

enum { kRunMs = 400, kLeastSleeps = 8 };  // each 16 ms would be 25; sysmon and the spawner are not asked

static long clock_ms(clockid_t c) {
  struct timespec ts;
  clock_gettime(c, &ts);
  return ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

static void *receive(void *arg) {
  int fd = *(int *)arg;
  char byte;
  long until = clock_ms(CLOCK_THREAD_CPUTIME_ID) + kRunMs;
  for (;;) {
    for (int i = 0; i < 100; i++)
      if (recv(fd, &byte, 1, 0) != 1) return NULL;
    if (clock_ms(CLOCK_THREAD_CPUTIME_ID) >= until) return arg;
  }
}

// How often the kernel thread of this process slept that has computed the most.
static long sleeps_of_busiest(void) {
  DIR *d = opendir("/proc/self/task");
  if (d == NULL) return -1;
  unsigned long long most = 0;
  long sleeps = -1;
  for (struct dirent *e; (e = readdir(d)) != NULL;) {
    char path[300], line[256];
    unsigned long long ran = 0;
    snprintf(path, sizeof path, "/proc/self/task/%s/schedstat", e->d_name);
    FILE *f = fopen(path, "r");
    if (f == NULL) continue;
    int got = fscanf(f, "%llu", &ran);
    fclose(f);
    if (got != 1 || ran <= most) continue;
    snprintf(path, sizeof path, "/proc/self/task/%s/status", e->d_name);
    if ((f = fopen(path, "r")) == NULL) continue;
    most = ran;
    while (fgets(line, sizeof line, f) != NULL)
      if (strncmp(line, "voluntary_ctxt_switches:", 24) == 0) sleeps = atol(line + 24);
    fclose(f);
  }
  closedir(d);
  return sleeps;
}

static void sleeps_now_and_then(void **state) {
  (void)state;
  int listener = socket(AF_INET, SOCK_STREAM, 0);
  struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t n = sizeof a;
  assert_int_equal(bind(listener, (struct sockaddr *)&a, n), 0);
  assert_int_equal(listen(listener, 1), 0);
  assert_int_equal(getsockname(listener, (struct sockaddr *)&a, &n), 0);
  pid_t client = fork();
  if (client == 0) {
    static const char buf[1 << 16];
    int c = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(c, (struct sockaddr *)&a, sizeof a) != 0) _exit(1);
    while (send(c, buf, sizeof buf, MSG_NOSIGNAL) > 0) continue;
    _exit(0);
  }
  int fd = accept(listener, NULL, NULL);
  assert_true(fd >= 0);
  pthread_t t;
  void *done = NULL;
  assert_int_equal(pthread_create(&t, NULL, receive, &fd), 0);
  assert_int_equal(pthread_join(t, &done), 0);
  assert_ptr_equal(done, &fd);
  long sleeps = sleeps_of_busiest();
  close(fd);
  kill(client, SIGKILL);
  assert_int_equal(waitpid(client, NULL, 0), client);
  close(listener);
  if (sleeps < kLeastSleeps) fail_msg("it slept %ld times in %d ms", sleeps, kRunMs);
}

static const struct CMUnitTest tests[] = {
  T(sleeps_now_and_then),
};
IO_MAIN(tests)

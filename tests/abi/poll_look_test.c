// poll_look_test.c - a loop over poll whose descriptors are seldom ready when it asks.
//
// Behaviour: where nothing was ready the last few times, poll is one system call, the wait. Each
// wait was preceded by a look with timeout 0, in vain: of pgbench's 120 us of processor time a
// transaction 3 to 6 went there.
// How: the program is traced, and its tracer sends the byte that ends a wait when it sees the wait
// begin, so that no look can find it.
#include "abi.h"

#include <poll.h>
#include <stdbool.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

enum { kRounds = 200, kFds = 4 };

static int pairs[kFds][2];

static void *polls(void *arg) {
  (void)arg;
  for (int i = 0; i < kRounds; i++) {
    struct pollfd fds[kFds];
    for (int k = 0; k < kFds; k++) fds[k] = (struct pollfd){.fd = pairs[k][0], .events = POLLIN};
    if (poll(fds, kFds, -1) != 1 || fds[0].revents != POLLIN) return "poll";
    char c;
    if (recv(pairs[0][0], &c, 1, 0) != 1) return "recv";
  }
  return NULL;
}

static int traced(void) {
  if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) != 0 || raise(SIGSTOP) != 0) return 2;
  pthread_t t;
  void *failed;
  if (pthread_create(&t, NULL, polls, NULL) != 0 || pthread_join(t, &failed) != 0) return 3;
  return failed == NULL ? 0 : 4;
}

// What a call of the traced program is about.
static bool looks(const struct __ptrace_syscall_info *s) {
  return s->entry.nr == SYS_poll && (int)s->entry.args[2] == 0 && s->entry.args[1] == kFds;
}

static bool waits(const struct __ptrace_syscall_info *s) {
  switch (s->entry.nr) {
    case SYS_poll: return (int)s->entry.args[2] != 0;
    case SYS_ppoll: return s->entry.args[2] == 0;
    case SYS_epoll_wait: case SYS_epoll_pwait: return (int)s->entry.args[3] != 0;
    case SYS_epoll_pwait2: return true;
    default: return false;
  }
}

static void a_loop_that_waits_does_not_look_first(void **state) {
  (void)state;
  for (int k = 0; k < kFds; k++) CHECK_OK(socketpair(AF_UNIX, SOCK_STREAM, 0, pairs[k]));
  pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) _exit(traced());
  int status, seen = 0, waited = 0;
  CHECK_EQ(waitpid(child, &status, 0), child);
  CHECK(WIFSTOPPED(status));
  CHECK_EQ(ptrace(PTRACE_SETOPTIONS, child, NULL,
                  PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACECLONE | PTRACE_O_EXITKILL), 0);
  CHECK_EQ(ptrace(PTRACE_SYSCALL, child, NULL, NULL), 0);
  for (;;) {
    pid_t tid = waitpid(-1, &status, __WALL);
    CHECK(tid > 0);
    if (!WIFSTOPPED(status)) {
      if (tid == child) break;
      continue;
    }
    long pass = 0;
    int sig = WSTOPSIG(status);
    if (sig == (SIGTRAP | 0x80)) {
      struct __ptrace_syscall_info s;
      if (ptrace(PTRACE_GET_SYSCALL_INFO, tid, (void *)sizeof s, &s) > 0 &&
          s.op == PTRACE_SYSCALL_INFO_ENTRY) {
        seen += looks(&s);
        char left;
        if (waits(&s) && waited < kRounds &&
            recv(pairs[0][0], &left, 1, MSG_PEEK | MSG_DONTWAIT) < 0) {
          waited++;
          CHECK_EQ(write(pairs[0][1], "b", 1), 1);
        }
      }
    } else if (sig != SIGTRAP && sig != SIGSTOP) {
      pass = sig;
    }
    ptrace(PTRACE_SYSCALL, tid, NULL, (void *)pass);  // it may have died meanwhile
  }
  CHECK(WIFEXITED(status));
  CHECK_EQ(WEXITSTATUS(status), 0);
  printf("%d waits, %d looks before them\n", waited, seen);
  CHECK_EQ(waited, kRounds);
  CHECK(seen <= kRounds / 4);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(a_loop_that_waits_does_not_look_first)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}

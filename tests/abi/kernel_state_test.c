// kernel_state_test.c - family: state that the kernel keeps per thread.
//
// A thread that changes it has it from then on, whatever it does and wherever it waits;
// the other threads do not. prctl, unshare, setns, capset, personality, iopl, ioperm,
// arch_prctl, ptrace. What this machine does not permit is left out.
#include "abi.h"

#include <asm/prctl.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <sys/io.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>

int arch_prctl(int, unsigned long);
int capset(cap_user_header_t, const cap_user_data_t);
int capget(cap_user_header_t, cap_user_data_t);

// Gives the scheduler reasons to move the calling thread.
static void wander(void) {
  for (int i = 0; i < 20; i++) {
    sched_yield();
    if (i % 5 == 0) usleep(200);
  }
}

static int ready, leave;
// Runs `change`, which answers 0 or "not permitted", beside a thread that has not changed.
struct side {
  int (*change)(void);
  int (*changed)(void);  // 1 if the calling thread has it
  int allowed;
};
static void *changer(void *arg) {
  struct side *s = arg;
  CHECK_EQ(s->changed(), 0);
  s->allowed = s->change() == 0;
  for (int i = 0; i < 5; i++) {
    CHECK_EQ(s->changed(), s->allowed);
    wander();
  }
  STORE(&ready, 1);
  AWAIT(LOAD(&leave));
  CHECK_EQ(s->changed(), s->allowed);
  return NULL;
}
static void *other(void *arg) {
  struct side *s = arg;
  AWAIT(LOAD(&ready));
  for (int i = 0; i < 5; i++) {
    CHECK_EQ(s->changed(), 0);
    wander();
  }
  return NULL;
}
static int beside_in_child(void *arg) {
  pthread_t t[6];
  ready = leave = 0;
  pthread_t c = start(changer, arg);
  for (int i = 0; i < 6; i++) t[i] = start(other, arg);
  other(arg);
  for (int i = 0; i < 6; i++) join(t[i]);
  STORE(&leave, 1);
  join(c);
  return ((struct side *)arg)->changed();
}
static void beside(int (*change)(void), int (*changed)(void)) {
  struct side s = {change, changed, 0};
  CHECK_EQ(in_child(beside_in_child, &s), 0);
}

static int set_slack(void) { return prctl(PR_SET_TIMERSLACK, 123456UL); }
static int has_slack(void) { return prctl(PR_GET_TIMERSLACK) == 123456; }
static int set_keepcaps(void) { return prctl(PR_SET_KEEPCAPS, 1UL); }
static int has_keepcaps(void) { return prctl(PR_GET_KEEPCAPS) == 1; }
static int set_nnp(void) { return prctl(PR_SET_NO_NEW_PRIVS, 1UL, 0UL, 0UL, 0UL); }
static int has_nnp(void) { return prctl(PR_GET_NO_NEW_PRIVS, 0UL, 0UL, 0UL, 0UL) == 1; }
static int set_pdeath(void) { return prctl(PR_SET_PDEATHSIG, (unsigned long)SIGHUP); }
static int has_pdeath(void) {
  int sig = -1;
  CHECK_OK(prctl(PR_GET_PDEATHSIG, &sig));
  return sig == SIGHUP;
}
static void options_of_prctl(void **state) {
  (void)state;
  beside(set_slack, has_slack);
  beside(set_keepcaps, has_keepcaps);
  beside(set_nnp, has_nnp);
  beside(set_pdeath, has_pdeath);
}

static char host[65];
static int new_uts(void) {
  if (unshare(CLONE_NEWUTS) != 0) return -1;
  return sethostname("apart", 5);
}
static int has_new_uts(void) {
  char now[65] = {0};
  CHECK_OK(gethostname(now, sizeof now - 1));
  return strcmp(now, host) != 0;
}
// Into a namespace that another process holds.
static int enter_uts(void) {
  int fd[2], ns;
  char path[64], c;
  CHECK_OK(pipe(fd));
  pid_t pid = fork();
  if (pid == 0) {
    int ok = unshare(CLONE_NEWUTS) == 0 && sethostname("there", 5) == 0;
    if (write(fd[1], ok ? "y" : "n", 1) != 1) _exit(1);
    pause();
  }
  CHECK_EQ(read(fd[0], &c, 1), 1);
  snprintf(path, sizeof path, "/proc/%d/ns/uts", pid);
  ns = c == 'y' ? open(path, O_RDONLY) : -1;
  int r = ns < 0 ? -1 : setns(ns, CLONE_NEWUTS);
  CHECK_OK(kill(pid, SIGKILL));
  CHECK_EQ(waitpid(pid, NULL, 0), pid);
  return r;
}
static void namespaces(void **state) {
  (void)state;
  CHECK_OK(gethostname(host, sizeof host - 1));
  beside(new_uts, has_new_uts);
  beside(enter_uts, has_new_uts);
}

static int drop_cap(void) {
  struct __user_cap_header_struct h = {_LINUX_CAPABILITY_VERSION_3, 0};
  struct __user_cap_data_struct d[2];
  CHECK_OK(capget(&h, d));
  if ((d[0].effective & 1u << CAP_NET_RAW) == 0) return -1;
  d[0].effective &= ~(1u << CAP_NET_RAW);
  return capset(&h, d);
}
static int dropped_cap(void) {
  struct __user_cap_header_struct h = {_LINUX_CAPABILITY_VERSION_3, 0};
  struct __user_cap_data_struct d[2];
  CHECK_OK(capget(&h, d));
  static unsigned first;
  if (first == 0) first = d[0].permitted;
  return (first & 1u << CAP_NET_RAW) != 0 && (d[0].effective & 1u << CAP_NET_RAW) == 0;
}
static int set_persona(void) { return personality(ADDR_NO_RANDOMIZE) < 0; }
static int has_persona(void) { return personality(0xffffffff) == ADDR_NO_RANDOMIZE; }
static int set_gs(void) { return arch_prctl(ARCH_SET_GS, 0x1234000); }
static int has_gs(void) {
  unsigned long gs = 0;
  CHECK_OK(arch_prctl(ARCH_GET_GS, (unsigned long)&gs));
  return gs == 0x1234000;
}
static int set_io(void) { return ioperm(0x80, 1, 1); }
static int has_io(void) { return 0; }  // asking would need an out instruction
static void credentials_and_modes(void **state) {
  (void)state;
  beside(drop_cap, dropped_cap);
  beside(set_persona, has_persona);
  beside(set_gs, has_gs);
  if (ioperm(0x80, 1, 0) == 0 && iopl(0) == 0) CHECK_EQ(set_io() | has_io(), 0);
}

// A tracer in a thread: its child asks to be traced; it steps through three stops while
// the thread gets about.
static void *trace_child(void *arg) {
  int status;
  long word = 0x1122334455667788;
  wander();
  pid_t pid = fork();
  if (pid == 0) {
    CHECK_EQ(ptrace(PTRACE_TRACEME, 0, NULL, NULL), 0);
    raise(SIGSTOP);
    raise(SIGUSR1);
    _exit(word == 0x99 ? 51 : 1);
  }
  wander();
  CHECK_EQ(waitpid(pid, &status, 0), pid);
  CHECK(WIFSTOPPED(status));
  CHECK_EQ(WSTOPSIG(status), SIGSTOP);
  wander();
  CHECK_EQ(ptrace(PTRACE_PEEKDATA, pid, &word, NULL), word);
  CHECK_EQ(ptrace(PTRACE_POKEDATA, pid, &word, (void *)0x99), 0);
  CHECK_EQ(ptrace(PTRACE_CONT, pid, NULL, NULL), 0);
  CHECK_EQ(waitpid(pid, &status, 0), pid);
  CHECK_EQ(WSTOPSIG(status), SIGUSR1);
  wander();
  CHECK_EQ(ptrace(PTRACE_CONT, pid, NULL, NULL), 0);
  CHECK_EQ(waitpid(pid, &status, 0), pid);
  CHECK_EQ(exit_code(status), 51);
  CHECK_FAILS(ptrace(PTRACE_CONT, pid, NULL, NULL), ESRCH);
  return arg;
}
// And one that attaches to a process somebody else started.
static void *attach(void *arg) {
  pid_t pid = (pid_t)(intptr_t)arg;
  int status;
  wander();
  if (ptrace(PTRACE_ATTACH, pid, NULL, NULL) != 0) {
    CHECK_EQ(errno, EPERM);
    return NULL;
  }
  wander();
  CHECK_EQ(waitpid(pid, &status, 0), pid);
  CHECK(WIFSTOPPED(status));
  wander();
  CHECK_EQ(ptrace(PTRACE_DETACH, pid, NULL, NULL), 0);
  return NULL;
}
static void tracers(void **state) {
  (void)state;
  pthread_t t[8];
  for (int i = 0; i < 8; i++) t[i] = start(trace_child, NULL);
  for (int i = 0; i < 8; i++) join(t[i]);
  fflush(NULL);
  pid_t pid = fork();
  if (pid == 0)
    for (;;) pause();
  join(start(attach, (void *)(intptr_t)pid));
  CHECK_OK(kill(pid, SIGKILL));
  CHECK_EQ(waitpid(pid, NULL, 0), pid);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(options_of_prctl),
      cmocka_unit_test(namespaces),
      cmocka_unit_test(credentials_and_modes),
      cmocka_unit_test(tracers),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

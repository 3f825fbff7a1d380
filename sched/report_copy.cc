// report_copy.cc - the dump's forked copy of the process.
//
// A raw clone without CLONE_VM and without an exit signal: the program gets no SIGCHLD and
// its wait(-1) does not see the copy. The copy has this one thread; it prints, reading the
// other threads' stacks as they were at the fork, and ends by exit_group (no atexit).
// Locks of libc's that others held at that moment stay held in the copy: it may hang in
// dladdr, say. So it is given 10 s, then killed.
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "sched/report.h"

namespace weft {
namespace {

constexpr uint64_t kCopyNs = 10'000'000'000;

void print_all(const char* title, uint32_t events, bool stacks, bool own) {
  Out out;
  out << "weft: " << title << " of process " << (report_copy_parent != 0 ? report_copy_parent : sys_getpid())
      << "\n";
  if (events != 0) {
    report_ms(out, events);
    report_ps(out);
  }
  if (own && stacks && (t_g == nullptr || t_g->is_g0)) {
    out << "the calling thread\n";
    out.flush();
    host_print_stack(nullptr);
  }
  report_gs(out, stacks);
  if (report_all_asleep())
    out << "all threads are asleep, and no timer, descriptor or system call of theirs is left "
           "to wake one: a deadlock, unless a signal or another process is awaited\n";
  out << "weft: end of " << title << "\n";
}

}  // namespace

int report_in_copy(const char* title, uint32_t events, bool wait) {
  int parent = sys_getpid();
  long pid = sys_call(SYS_clone, 0, 0, 0, 0, 0);
  if (pid < 0) {
    print_all(title, events, false, false);
    return 0;
  }
  if (pid == 0) {
    report_copy_parent = parent;
    sys_call(SYS_prctl, PR_SET_PDEATHSIG, SIGKILL);
    print_all(title, events, true, wait);
    sys_call(SYS_exit_group, 0);
  }
  sys_call(SYS_prctl, PR_SET_PTRACER, pid);  // where Yama would forbid it; else no effect
  if (!wait) return static_cast<int>(pid);
  uint64_t started = host_now_ns();
  while (!report_copy_done(static_cast<int>(pid), started)) sys_sleep_ns(1'000'000);
  return 0;
}

bool report_copy_done(int pid, uint64_t started_ns) {
  if (sys_call(SYS_wait4, pid, 0, WNOHANG | __WALL, 0) != 0) return true;
  if (host_now_ns() - started_ns < kCopyNs) return false;
  sys_call(SYS_kill, pid, SIGKILL);
  sys_call(SYS_wait4, pid, 0, __WALL, 0);
  return true;
}

int report_copy_parent;

}  // namespace weft

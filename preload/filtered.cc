// filtered.cc - see filtered.h.
//
// A filter is made for the system calls that the program is known to make. Some of the scheduler's are
// others, and what is forbidden may end the process (Firefox, tor, what systemd guards). The filter
// cannot be read; so a child tries each of them, with arguments that do nothing, and one that it does not
// survive, or that is refused as no kernel refuses it, keeps the program native. What the scheduler
// can do without (membarrier, epoll_pwait2) may be refused, not deadly.
//
// The child is made by clone(2): no handler of the program runs, no SIGCHLD comes, and no wait of
// the program's finds it.
#include "preload/filtered.h"

#include <errno.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include <atomic>

#include "preload/api.h"

namespace weft {
namespace {

std::atomic<bool> is_set{false};

bool refused(long r) { return r == -EPERM || r == -EACCES || r == -ENOSYS; }

// In the child. Dies, or says whether all that is needed is there.
bool try_all() {
  struct {
    void* handler;
    unsigned long flags;
    void* restorer;
    uint64_t mask;
  } dfl = {};
  sys_call(SYS_rt_sigaction, SIGSYS, sys_arg(&dfl), 0, 8);  // a handler of the program's may exit quietly
  uint64_t no_core[2] = {0, 0};
  sys_call(SYS_prlimit64, 0, 4 /*core*/, sys_arg(no_core), 0);
  int pid = sys_getpid(), tid = sys_gettid();
  siginfo_t info;
  memset(&info, 0, sizeof info);
  info.si_code = SI_QUEUE;
  uint64_t mask = 0;
  struct timespec now = {0, 0};
  char buf[128];
  sys_call(SYS_membarrier, 0 /*query*/, 0, 0);
  sys_call(SYS_process_madvise, -1, 0, 0, 0, 0);
  long ep = sys_call(SYS_epoll_create1, 0), ev = sys_call(SYS_eventfd2, 0, 0);
  long file = sys_call(SYS_openat, -100 /*AT_FDCWD*/, sys_arg("/proc/self/stat"), 0, 0);
  sys_call(SYS_pread64, file, sys_arg(buf), sizeof buf, 0);
  sys_call(SYS_epoll_pwait2, ep, sys_arg(buf), 1, sys_arg(&now), 0, 8);
  return !refused(ep) && !refused(ev) && !refused(sys_call(SYS_epoll_ctl, ep, 2, ev, 0)) &&
         !refused(sys_call(SYS_epoll_pwait, ep, sys_arg(buf), 1, 0, 0, 8)) &&
         !refused(sys_call(SYS_rt_tgsigqueueinfo, pid, tid, 0, sys_arg(&info))) &&
         !refused(sys_call(SYS_rt_sigqueueinfo, pid, 0, sys_arg(&info))) &&
         !refused(sys_call(SYS_tgkill, pid, tid, 0)) &&
         !refused(sys_call(SYS_rt_sigprocmask, SIG_BLOCK, 0, sys_arg(&mask), 8)) &&
         !refused(sys_call(SYS_rt_sigpending, sys_arg(&mask), 8)) &&
         !refused(sys_call(SYS_rt_sigtimedwait, sys_arg(&mask), 0, sys_arg(&now), 8)) &&
         !refused(sys_call(SYS_sigaltstack, 0, sys_arg(buf))) &&
         !refused(sys_call(SYS_poll, 0, 0, 0)) && !refused(sys_call(SYS_sched_yield)) &&
         !refused(sys_call(SYS_nanosleep, sys_arg(&now), 0)) &&
         !refused(sys_call(SYS_prlimit64, 0, 3 /*stack*/, 0, sys_arg(buf))) &&
         !refused(sys_call(SYS_madvise, 0, 0, MADV_DONTNEED)) &&
         !refused(sys_call(SYS_clock_gettime, 3 /*thread*/, sys_arg(&now))) &&
         !refused(sys_call(SYS_dup3, ep, ep, 0)) && !refused(sys_call(SYS_fcntl, ep, 1 /*F_GETFD*/));
}

}  // namespace

void filter_is_set() { is_set.store(true, std::memory_order_relaxed); }

const char* filtered_by() {
  if (!is_set.load(std::memory_order_relaxed) && sys_call(SYS_prctl, PR_GET_SECCOMP) != SECCOMP_MODE_FILTER)
    return nullptr;
  uint64_t all = kAllSignals, mask;
  sys_sigprocmask(SIG_SETMASK, &all, &mask);  // no handler of the program's runs in the child
  long child = sys_call(SYS_clone, 0, 0, 0, 0, 0);
  if (child == 0) sys_call(SYS_exit_group, try_all() ? 0 : 1);
  int status = 1;
  if (child > 0)
    while (sys_call(SYS_wait4, child, sys_arg(&status), __WALL, 0) == -EINTR) {
    }
  sys_sigprocmask(SIG_SETMASK, &mask, nullptr);
  return status == 0 ? nullptr : "a seccomp filter forbids what the scheduler needs";
}

}  // namespace weft

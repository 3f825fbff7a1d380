// syscall_entry.cc - syscall(): system calls by number.
//
// What has a meaning for threads goes the way its named function goes: futex, gettid and
// everything in process_syscall (ids.h), signals by tid, the signal mask. Calls that may
// block are bracketed; the rest goes straight to the kernel. syscall() is no cancellation
// point.
//
// Declared with all six arguments instead of "...": what the caller left out is garbage in
// registers, which the kernel does not look at either.
#include <linux/futex.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>

#include "preload/filtered.h"
#include "preload/futex_syscall.h"
#include "preload/ids.h"
#include "preload/io_syscall.h"
#include "preload/io_uring.h"
#include "preload/signals.h"
#include "preload/vfork.h"

extern "C" __attribute__((visibility("default"), used)) long weft_syscall_entry(
    long nr, long a0, long a1, long a2, long a3, long a4, long a5) __asm__("syscall");

namespace weft {
namespace {

constexpr long kFutexWaitv = 449;

// What io_syscall does not know and may sleep for long. Anything missing here that sleeps
// is found by sysmon.
bool may_block(long nr) {
  switch (nr) {
    case SYS_semop: case SYS_semtimedop: case SYS_msgsnd: case SYS_msgrcv:
    case SYS_mq_timedsend: case SYS_mq_timedreceive:
    case SYS_io_getevents: case SYS_io_uring_enter: case SYS_getrandom:
    case SYS_rt_sigtimedwait: case SYS_rt_sigsuspend: case SYS_pause:
    case SYS_nanosleep: case SYS_clock_nanosleep:
    case SYS_fsync: case SYS_fdatasync: case SYS_sync: case SYS_syncfs: case SYS_msync:
    case SYS_fallocate: case SYS_flock: case SYS_fcntl: case SYS_ioctl:
    case SYS_copy_file_range: case SYS_vmsplice:
      return true;
    default:
      return nr > kFutexWaitv;  // newer than we are
  }
}

long plain(long nr, const long a[6]) {
  return sys_call(nr, a[0], a[1], a[2], a[3], a[4], a[5]);
}

// rt_sigprocmask of a G: its mask is more than the kernel thread's.
long change_mask(G* g, const long a[6]) {
  if (a[3] != 8) return -EINVAL;
  auto* set = reinterpret_cast<const uint64_t*>(a[1]);
  auto* old = reinterpret_cast<uint64_t*>(a[2]);
  uint64_t was = g->sigmask;
  if (set != nullptr) {
    uint64_t now = *set;
    switch (a[0]) {
      case SIG_BLOCK: now = was | now; break;
      case SIG_UNBLOCK: now = was & ~now; break;
      case SIG_SETMASK: break;
      default: return -EINVAL;
    }
    was = mask_swap(g, now);
  }
  if (old != nullptr) *old = was;
  return 0;
}

long by_number(long nr, const long a[6]) {
  switch (nr) {
    case SYS_futex: return weft_futex_syscall(a);
    case kFutexWaitv: return in_syscall_block([&] { return plain(nr, a); });
    case SYS_gettid:
      if (t_g != nullptr && !t_g->is_g0) return t_g->vtid;
      return sys_gettid();
    case SYS_tkill:
      if (sched.booted.load(std::memory_order_relaxed)) return signals_tgkill(-1, a[0], a[1]);
      break;
    case SYS_tgkill:
      if (sched.booted.load(std::memory_order_relaxed)) return signals_tgkill(a[0], a[1], a[2]);
      break;
    case SYS_rt_tgsigqueueinfo:
      if (sched.booted.load(std::memory_order_relaxed))
        return signals_tgqueue(a[0], a[1], a[2], reinterpret_cast<const siginfo_t*>(a[3]));
      break;
    case SYS_rt_sigprocmask:
      if (G* g = this_g()) return change_mask(g, a);
      break;
    case SYS_seccomp:
      if (a[0] == SECCOMP_SET_MODE_FILTER) filter_is_set();
      break;
    case SYS_prctl:
      if (a[0] == PR_SET_SECCOMP) filter_is_set();
      break;
    case SYS_io_uring_setup: case SYS_io_uring_register:
      if (!in_vfork_child()) return ring_syscall(nr, a);
      break;
    default: break;
  }
  if (!sched.booted.load(std::memory_order_relaxed) || in_vfork_child()) return plain(nr, a);
  long r;
  if (io_syscall(nr, a, &r) || process_syscall(nr, a, &r)) return r;
  if (may_block(nr)) return in_syscall([&] { return plain(nr, a); });
  return plain(nr, a);
}

}  // namespace
}  // namespace weft

using namespace weft;

long weft_syscall_entry(long nr, long a0, long a1, long a2, long a3, long a4, long a5) {
  const long a[6] = {a0, a1, a2, a3, a4, a5};
  int saved = errno;
  long r = by_number(nr, a);
  errno = saved;
  return errno_ret(r);
}

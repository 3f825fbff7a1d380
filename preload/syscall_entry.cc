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

#include "preload/futex_syscall.h"
#include "preload/ids.h"
#include "preload/signals.h"
#include "preload/vfork.h"

extern "C" __attribute__((visibility("default"), used)) long weft_syscall_entry(
    long nr, long a0, long a1, long a2, long a3, long a4, long a5) __asm__("syscall");

namespace weft {
namespace {

constexpr long kFutexWaitv = 449;

bool may_block(long nr) {
  switch (nr) {
    case SYS_read: case SYS_write: case SYS_readv: case SYS_writev:
    case SYS_pread64: case SYS_pwrite64: case SYS_preadv: case SYS_pwritev:
    case SYS_preadv2: case SYS_pwritev2: case SYS_open: case SYS_openat: case SYS_openat2:
    case SYS_poll: case SYS_ppoll: case SYS_select: case SYS_pselect6:
    case SYS_epoll_wait: case SYS_epoll_pwait: case SYS_epoll_pwait2:
    case SYS_nanosleep: case SYS_clock_nanosleep: case SYS_pause:
    case SYS_accept: case SYS_accept4: case SYS_connect:
    case SYS_recvfrom: case SYS_recvmsg: case SYS_recvmmsg:
    case SYS_sendto: case SYS_sendmsg: case SYS_sendmmsg: case SYS_sendfile:
    case SYS_splice: case SYS_tee: case SYS_vmsplice: case SYS_copy_file_range:
    case SYS_fsync: case SYS_fdatasync: case SYS_sync: case SYS_syncfs: case SYS_msync:
    case SYS_fallocate: case SYS_flock: case SYS_fcntl: case SYS_ioctl:
    case SYS_semop: case SYS_semtimedop: case SYS_msgsnd: case SYS_msgrcv:
    case SYS_mq_timedsend: case SYS_mq_timedreceive:
    case SYS_io_getevents: case SYS_io_uring_enter: case SYS_getrandom:
    case SYS_rt_sigtimedwait: case SYS_rt_sigsuspend: case SYS_close: case SYS_getdents64:
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
    default: break;
  }
  if (may_block(nr)) return in_syscall([&] { return plain(nr, a); });
  long r;
  if (!in_vfork_child() && process_syscall(nr, a, &r)) return r;
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

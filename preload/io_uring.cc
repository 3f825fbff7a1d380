// io_uring.cc - see io_uring.h.
//
// With IORING_SETUP_SINGLE_ISSUER (and so with DEFER_TASKRUN, which asks for it) a ring is
// of the kernel thread that made it, or that enabled it where it was made disabled:
// io_uring_enter from any other answers EEXIST. A number from IORING_REGISTER_RING_FDS is
// an index into a table of the kernel thread's, which on another M is empty or another
// ring. So a thread that has made such a ring, enabled one or registered one is wired. It
// is not asked which rings are enabled here: who enables one is about to issue.
//
// Other rings may be used from any M: every M lives as long as the process, so the kernel
// does not cancel what a G has under way when the G moves.
//
// liburing makes its calls without libc; they are not seen here.
#include "preload/io_uring.h"

#include <linux/io_uring.h>

#include <atomic>

#include "preload/wire.h"

namespace weft {
namespace {

// Newer than some headers.
constexpr unsigned kDisabled = 1U << 6, kSingleIssuer = 1U << 12;
constexpr unsigned kEnableRings = 12, kRegisterRingFds = 20;

struct RingParams {  // the head of the kernel's struct io_uring_params
  uint32_t sq_entries, cq_entries, flags;
};

// The process whose first thread has a ring of its own from before boot; 0: none. Not a
// flag, for a fork child has the descriptor, but is not the issuer.
std::atomic<int> main_has_ring{0};  // main's writes, read by main at boot

// Can the call bind the caller to its kernel thread? The other operations may wait.
bool may_bind(long nr, const long a[6]) {
  auto op = static_cast<unsigned>(a[1]);
  return nr == SYS_io_uring_setup || op == kEnableRings || op == kRegisterRingFds;
}

// It has succeeded: has it? The parameters are there, the kernel has read and written them.
bool has_bound(long nr, const long a[6]) {
  if (nr != SYS_io_uring_setup) return true;
  unsigned flags = reinterpret_cast<const RingParams*>(a[1])->flags;
  return (flags & kSingleIssuer) != 0 && (flags & kDisabled) == 0;
}

}  // namespace

long ring_syscall(long nr, const long a[6]) {
  auto raw = [&] { return sys_call(nr, a[0], a[1], a[2], a[3], a[4], a[5]); };
  if (!may_bind(nr, a)) return raw();
  G* g = this_g();
  if (g != nullptr) enter_to_stay(g);  // not to be moved between the call and the wiring
  long r = raw();
  bool bound = r >= 0 && has_bound(nr, a);
  if (g != nullptr) {
    if (bound) wire_thread_for_lock("a ring with one issuer");
    else engine_exit(g);
  } else if (bound && !sched.booted.load(std::memory_order_relaxed)) {
    if (int pid = sys_getpid(); pid == sys_gettid())
      main_has_ring.store(pid, std::memory_order_relaxed);
  }
  return r;
}

void ring_boot() {
  if (main_has_ring.load(std::memory_order_relaxed) == sys_getpid())
    wire_thread_for_lock("a ring with one issuer");
}

}  // namespace weft

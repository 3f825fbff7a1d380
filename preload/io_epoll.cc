// io_epoll.cc - epoll_wait, epoll_pwait, epoll_pwait2.
//
// Tried with timeout 0; a busy event loop always ends there and pays nothing. Else in place,
// if it is the only loop (io_watch.h), else parked on the program's own epoll descriptor,
// which nests in ours: each event it queues is an edge for us. Several Gs waiting on one
// are takers: one is woken per edge, and passes on what it left.
#include <sys/epoll.h>

#include "preload/io_signal.h"
#include "preload/io_wait.h"
#include "preload/io_watch.h"

namespace weft {
namespace {

long wait_now(int fd, struct epoll_event* ev, int max) {
  return sys_call(SYS_epoll_pwait, fd, sys_arg(ev), max, 0, 0, 8);
}

long wait_in_kernel(int fd, struct epoll_event* ev, int max, uint64_t deadline,
                    const sigset_t* mask) {
  KernelMask km(mask);
  auto call = [&] {
    Remaining rem;
    struct timespec* t = rem.set(deadline);
    long r = sys_call(SYS_epoll_pwait2, fd, sys_arg(ev), max, sys_arg(t), sys_arg(km.p), 8);
    if (r != -ENOSYS) return r;
    long ms = t == nullptr ? -1 : t->tv_sec * 1000 + (t->tv_nsec + 999999) / 1000000;
    return sys_call(SYS_epoll_pwait, fd, sys_arg(ev), max, ms, sys_arg(km.p), 8);
  };
  if (mask != nullptr) return io_masked_wait(mask, call);
  return io_undisturbed([&] { return in_cancel_syscall_block(call); });
}

long wait_parked(PollDesc* pd, struct epoll_event* ev, int max, uint64_t deadline) {
  PollTurn t;
  poll_turn_begin(t, pd, kPollIn);
  pd->ahead.store(true, std::memory_order_relaxed);
  for (;;) {
    poll_turn_sample(t);
    long r = wait_now(t.pd->fd, ev, max);
    SignalMark mark = signal_mark();
    int w = r != 0 ? 0 : poll_turn_wait(t, deadline, Wait::kPoll);
    if (r == 0 && (w == 0 || (w == -EINTR && io_wait_after_interrupt(mark)))) continue;
    if (r == 0) r = w == -ETIMEDOUT ? wait_now(t.pd->fd, ev, max) : w;
    poll_turn_end(t);
    return r;
  }
}

long g_wait(int fd, struct epoll_event* ev, int max, uint64_t deadline, const sigset_t* mask) {
  io_enter();
  long r;
  if (mask != nullptr) {
    r = wait_in_kernel(fd, ev, max, deadline, mask);
  } else {
    r = wait_now(fd, ev, max);
    if (r != 0) return r;
    PollDesc* pd = netpoll_enabled() ? polldesc_get(fd) : nullptr;
    bool here = in_place_begin(kEpollLoops);
    r = here || pd == nullptr ? -EPERM : wait_parked(pd, ev, max, deadline);
    if (r < 0 && r != -EINTR && r != -EBADF) r = wait_in_kernel(fd, ev, max, deadline, nullptr);
    if (here) in_place_end();
  }
  if (r == -EINTR) cancel_point();
  return r;
}

}  // namespace
}  // namespace weft

using namespace weft;

WEFT_EXPORT int epoll_wait(int fd, struct epoll_event* ev, int max, int ms) {
  if (this_g() == nullptr) return real().epoll_wait(fd, ev, max, ms);
  if (ms == 0) {
    io_enter();
    return static_cast<int>(errno_ret(wait_now(fd, ev, max)));
  }
  return static_cast<int>(errno_ret(g_wait(fd, ev, max, ms_deadline(ms), nullptr)));
}

WEFT_EXPORT int epoll_pwait(int fd, struct epoll_event* ev, int max, int ms, const sigset_t* mask) {
  if (this_g() == nullptr) return real().epoll_pwait(fd, ev, max, ms, mask);
  if (mask == nullptr) return epoll_wait(fd, ev, max, ms);
  return static_cast<int>(errno_ret(g_wait(fd, ev, max, ms_deadline(ms), mask)));
}

WEFT_EXPORT int epoll_pwait2(int fd, struct epoll_event* ev, int max, const struct timespec* t,
                             const sigset_t* mask) {
  if (this_g() == nullptr) return real().epoll_pwait2(fd, ev, max, t, mask);
  if (t != nullptr && bad_pointer(t)) return static_cast<int>(errno_ret(-EFAULT));
  if (t != nullptr && (!timespec_ok(t) || t->tv_sec < 0)) return static_cast<int>(errno_ret(-EINVAL));
  uint64_t deadline = t == nullptr ? kNever : deadline_in(t);
  return static_cast<int>(errno_ret(g_wait(fd, ev, max, deadline, mask)));
}

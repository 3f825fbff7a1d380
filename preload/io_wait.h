// io_wait.h - the loop of every call that may have to wait for a descriptor.
//
//   IoCall c;  io_begin(c, pd, dir, why);
//   for (;;) {
//     io_sample(c);
//     long r = <try once, without blocking, on io_fd(c)>;
//     if (r != -EAGAIN) return io_end(c, r);
//     int w = io_block(c);             // 0: try again
//     if (w != 0) return io_end(c, w); // kCannotWait: do it in the kernel
//   }
// io_run is that loop. Nothing in it has a destructor: a cancel may unwind from io_block
// (which has ended the turn by then).
#pragma once

#include "preload/cancel.h"
#include "preload/io_fd.h"

namespace weft {

// epoll does not take the file, or the line discipline wants the caller itself.
constexpr int kCannotWait = -4095;

struct IoCall {
  PollTurn turn;
  uint64_t deadline_ns = kNever;
  Wait why = Wait::kRead;
  bool asked = false;   // attributes are known
  bool timed = false;   // the socket has a timeout: never restarted after a handler
  bool untried = false; // the next wait begins without a try
  bool started = false; // something was transferred: EINTR ends the call, no cancel
};

inline void io_begin(IoCall& c, PollDesc* pd, PollDir dir, Wait why) {
  poll_turn_begin(c.turn, pd, dir);
  c.why = why;
  if (dir == kPollOut) t_g->answered = true;
}
inline void io_sample(IoCall& c) { poll_turn_sample(c.turn); }
inline int io_fd(const IoCall& c) { return c.turn.pd->fd; }
inline long io_end(IoCall& c, long r) {
  poll_turn_end(c.turn);
  return r;
}
// After EAGAIN: answers -EAGAIN if the program wants just that, else waits.
// 0: try again; kCannotWait; -EAGAIN (also: the socket's timeout), -EINTR, -EBADF.
int io_block(IoCall& c);

// One try's poll for the kinds that have no flag: -EAGAIN or 0.
long io_poll_now(int fd, PollDir dir);

template <class Try, class Block>
inline long io_run(PollDesc* pd, PollDir dir, Wait why, Try try_once, Block in_kernel) {
  IoCall c;
  io_begin(c, pd, dir, why);
  for (;;) {
    io_sample(c);
    long r = try_once(io_fd(c));
    if (WEFT_LIKELY(r != -EAGAIN)) return io_end(c, r);
    int w = io_block(c);
    if (w == 0) continue;
    int fd = io_fd(c);
    if (w == kCannotWait) {
      r = in_cancel_syscall_block([&] { return in_kernel(fd); });
      io_end(c, 0);
      if (r == -EINTR) cancel_point();
      return r;
    }
    return io_end(c, w);
  }
}

// The start of each call on a G: a cancellation point, and the place where a G yields that
// was to be preempted while it stood in libc or in a system call. An event loop under load
// never waits; without this sysmon would signal it until it hit a lucky instruction.
inline void io_enter() {
  cancel_point();
  G* g = t_g;
  if (WEFT_UNLIKELY(g->attention.load(std::memory_order_relaxed) != 0)) {
    engine_enter(g);
    engine_exit(g);
  }
}

// A call that may block in the kernel, as a cancellation point.
template <class F>
inline long io_kernel(F f) {
  cancel_point();
  long r = in_cancel_syscall(f);
  if (r == -EINTR) cancel_point();
  return r;
}
template <class F>
inline long io_kernel_block(F f) {
  cancel_point();
  long r = in_cancel_syscall_block(f);
  if (r == -EINTR) cancel_point();
  return r;
}

// libc's function inside the protocol, as a cancellation point: -1 and errno are its own.
template <class F>
inline auto libc_kernel(F f) {
  cancel_point();
  auto r = in_cancel_syscall([&] { return libc_call(f); });
  if (r == -1 && errno == EINTR) cancel_point();
  return r;
}

}  // namespace weft

// io_rw.h - one non-blocking try of a read or write on each kind of descriptor.
#pragma once

#include <limits.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "preload/cancel.h"
#include "preload/io_wait.h"

namespace weft {

constexpr size_t kMaxRw = 0x7ffff000;  // MAX_RW_COUNT: the kernel never moves more

// What is left of an iovec after `done` bytes, without allocating: up to kWindow pieces.
// Streams only, where a shorter call is followed by another.
struct IovWindow {
  static constexpr int kWindow = 16;
  struct iovec piece[kWindow];
  int n = 0;
};
void iov_window(IovWindow& w, const struct iovec* iov, int count, size_t done);
size_t iov_bytes(const struct iovec* iov, int count);

// -EAGAIN: nothing now.
long try_readv(PollDesc* pd, int fd, const struct iovec* iov, int count, int flags);
long try_writev(PollDesc* pd, int fd, const struct iovec* iov, int count, int flags, bool first);

// A read that gave less than asked for has emptied a TCP stream or a pipe: the next one
// parks without a try if no edge came since.
inline bool believe_drained(const PollDesc* pd, const IoCall& c) {
  return io_known_empty(pd, c.turn.seq) && pd->level.load(std::memory_order_relaxed) <= 0 &&
         io_surely_blocking(pd, kPollIn);
}
// A pipe's read end: r is what a read gave, `before` the level as it began. It may have been quicker
// than the writer's count, so the level goes below 0 for a moment. Bytes that come and go where we
// do not see it make it wrong; a read in vain puts it right: what was counted before is gone. Not
// to 0: a writer may have counted in what came since, and that would be missing for good.
inline void learn_level(PollDesc* pd, long r, int32_t before) {
  if (!pd->fed.load(std::memory_order_relaxed)) return;
  if (r > 0) {
    int32_t left = pd->level.fetch_sub(static_cast<int32_t>(r), std::memory_order_relaxed);
    if (left < -(1 << 20)) pd->level.store(0, std::memory_order_relaxed);
  } else if (r == -EAGAIN && before > 0) {
    pd->level.fetch_sub(before, std::memory_order_relaxed);
  }
}
void note_short_read(PollDesc* pd, const IoCall& c);

// A thread that serves a connection reads, answers, and reads again in vain. Where the
// first try of a read found nothing kGuessSure times in a row and no edge came since the
// last read, the wait begins without it (netsettle.cc looks later).
constexpr uint32_t kGuessSure = 3;
inline bool guess_empty(const PollDesc* pd, const IoCall& c) {
  return pd->guess.load(std::memory_order_relaxed) >= kGuessSure &&
         pd->read_seq.load(std::memory_order_relaxed) == c.turn.seq &&
         pd->level.load(std::memory_order_relaxed) <= 0 &&
         pd->sticky.load(std::memory_order_acquire) == 0 && (pd->armed & 1u << kPollIn) != 0 &&
         io_surely_blocking(pd, kPollIn);
}
inline void learn_guess(PollDesc* pd, bool empty) {
  uint32_t n = pd->guess.load(std::memory_order_relaxed);
  if (!empty && n != 0) pd->guess.store(0, std::memory_order_relaxed);
  else if (empty && n < kGuessSure) pd->guess.store(n + 1, std::memory_order_relaxed);
}

// A read has found something at once. Who has answered and whose peer asks again while it is itself
// off its core finds the next request there each time, and would have the P for a slice: every
// kUnwaited times those who wait have their turn; every kUnwaitedLook times, as after so many switches,
// those of whom only the kernel knows yet: with nobody to switch to, they waited for sysmon to look.
// Who only reads, or only writes, has its slice.
constexpr uint8_t kUnwaited = 4, kUnwaitedLook = 64;
inline void io_in_turn() {
  G* g = t_g;
  if (!g->answered) return;
  g->answered = false;
  if (WEFT_LIKELY(++g->unwaited % kUnwaited != 0)) return;
  if (this_g() != g || g->no_preempt != 0) return;  // wired since the call began; or bound to its M
  engine_enter(g);
  if (g->unwaited >= kUnwaitedLook) {
    g->unwaited = 0;
    g->m->p->look.store(true, std::memory_order_relaxed);
  }
  yield(false);
  engine_exit(g);
}

// Reads what there is, waiting for the first of it. try_once(fd, first): `first` is false where
// an event has just said that there is something. `n`: what a full answer would be; 0:
// a short one means nothing.
template <class Try, class Block>
inline long read_some(PollDesc* pd, size_t n, Try try_once, Block in_kernel) {
  IoCall c;
  io_begin(c, pd, kPollIn, Wait::kRead);
  for (bool first = true;; first = false) {
    io_sample(c);
    long r;
    if (first && n != 0 && believe_drained(pd, c)) {
      r = -EAGAIN;
    } else if (first && n != 0 && guess_empty(pd, c)) {
      r = -EAGAIN;
      c.untried = true;
    } else {
      int32_t level = pd->level.load(std::memory_order_relaxed);
      r = try_once(io_fd(c), first);
      if (first) learn_guess(pd, r == -EAGAIN);
      if (io_kind(pd) == kIoPipe) learn_level(pd, r, level);
    }
    if (r > 0) {
      pd->read_seq.store(c.turn.seq, std::memory_order_relaxed);
      if (first) io_in_turn();
      if (static_cast<size_t>(r) < n) note_short_read(pd, c);
    }
    if (r != -EAGAIN) return io_end(c, r);
    t_g->unwaited = 0;
    t_g->answered = false;
    int w = io_block(c);
    if (w == 0) continue;
    if (w != kCannotWait) return io_end(c, w);
    int fd = io_fd(c);
    r = in_cancel_syscall_block([&] { return in_kernel(fd); });
    io_end(c, 0);
    if (r == -EINTR) cancel_point();
    return r;
  }
}

// Writes all of a stream's bytes, or fewer if a handler, a timeout or an error came after
// some. `put(fd, done)` tries to write what is left.
template <class Put, class Block>
inline long io_write_all(PollDesc* pd, size_t total, Put put, Block in_kernel) {
  IoCall c;
  io_begin(c, pd, kPollOut, Wait::kWrite);
  size_t done = 0;
  for (;;) {
    io_sample(c);
    long r = put(io_fd(c), done);
    if (r > 0) {
      polldesc_fed(c.turn.pd, io_kind(c.turn.pd) == kIoPipe ? r : 0);
      done += static_cast<size_t>(r);
      c.started = true;
      if (done >= total) return io_end(c, static_cast<long>(done));
      continue;
    }
    if (r == -EAGAIN) {
      r = io_block(c);
      if (r == 0) continue;
      if (r == kCannotWait) {
        int fd = io_fd(c);
        r = in_cancel_syscall_block([&] { return in_kernel(fd, done); });
        if (r > 0) r += static_cast<long>(done);
      }
    }
    return io_end(c, done != 0 && r <= 0 ? static_cast<long>(done) : r);
  }
}

}  // namespace weft

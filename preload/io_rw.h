// io_rw.h - one non-blocking try of a read or write on each kind of descriptor.
#pragma once

#include <limits.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "preload/io_wait.h"

namespace weft {

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
        r = in_syscall_block([&] { return in_kernel(fd, done); });
        if (r > 0) r += static_cast<long>(done);
      }
    }
    return io_end(c, done != 0 && r <= 0 ? static_cast<long>(done) : r);
  }
}

}  // namespace weft

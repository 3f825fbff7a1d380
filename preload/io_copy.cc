// io_copy.cc - sendfile, splice, tee, vmsplice, copy_file_range.
//
// No flag makes one such call non-blocking on both sides, so each side is awaited first and
// the call then runs inside the syscall protocol, in pieces that a ready socket takes
// without much waiting. sendfile is no cancellation point, the others are.
#include <fcntl.h>
#include <sys/sendfile.h>

#include "preload/cancel.h"
#include "preload/io_wait.h"

namespace weft {
namespace {

constexpr size_t kPiece = 128 << 10;

// Until poll calls fd ready: 0. 1: do not wait, just call (not pollable, O_NONBLOCK).
// -EINTR; -EAGAIN: the socket's timeout.
long await(int fd, PollDir dir, bool started) {
  PollDesc* pd = io_desc(fd);
  if (pd == nullptr) return 1;
  IoAttr a;
  if (io_poll_now(fd, dir) == 0) return 0;
  if (io_attr(pd, dir, &a) != 0 || a.nonblock) return 1;
  IoCall c;
  io_begin(c, pd, dir, dir == kPollIn ? Wait::kRead : Wait::kWrite);
  c.started = started;
  for (;;) {
    io_sample(c);
    if (io_poll_now(io_fd(c), dir) == 0) return io_end(c, 0);
    int w = io_block(c);
    if (w == 0) continue;
    return io_end(c, w == kCannotWait || w == -EBADF ? 1 : w);
  }
}

long g_sendfile(int out, int in, off_t* at, size_t n) {
  io_enter();
  size_t done = 0;
  do {
    long ready = await(out, kPollOut, done != 0);
    if (ready < 0) return done != 0 ? static_cast<long>(done) : ready;
    size_t left = n - done;
    size_t piece = ready == 0 && left > kPiece ? kPiece : left;
    long r = in_syscall(
        [&] { return sys_call(SYS_sendfile, out, in, sys_arg(at), sys_arg(piece)); });
    if (r <= 0) return done != 0 ? static_cast<long>(done) : r;
    done += static_cast<size_t>(r);
    if (ready == 1) break;
  } while (done < n);
  return static_cast<long>(done);
}

template <class F>
long when_both_ready(int in, int out, bool wait, F call) {
  io_enter();
  if (wait) {
    long r = in < 0 ? 0 : await(in, kPollIn, false);
    if (r >= 0 && out >= 0) r = await(out, kPollOut, false);
    if (r < 0) return r;
  }
  return io_kernel(call);
}

}  // namespace
}  // namespace weft

using namespace weft;

WEFT_EXPORT ssize_t sendfile(int out, int in, off_t* at, size_t n) noexcept {
  if (this_g() == nullptr) return real().sendfile(out, in, at, n);
  return errno_ret(without_cancel([&] { return g_sendfile(out, in, at, n); }));
}

WEFT_EXPORT ssize_t splice(int in, off64_t* in_at, int out, off64_t* out_at, size_t n,
                           unsigned flags) {
  if (this_g() == nullptr) return real().splice(in, in_at, out, out_at, n, flags);
  return errno_ret(when_both_ready(in, out, n != 0 && (flags & SPLICE_F_NONBLOCK) == 0, [&] {
    return sys_call(SYS_splice, in, sys_arg(in_at), out, sys_arg(out_at), sys_arg(n), flags);
  }));
}

WEFT_EXPORT ssize_t tee(int in, int out, size_t n, unsigned flags) {
  if (this_g() == nullptr) return real().tee(in, out, n, flags);
  return errno_ret(when_both_ready(in, out, n != 0 && (flags & SPLICE_F_NONBLOCK) == 0, [&] {
    return sys_call(SYS_tee, in, out, sys_arg(n), flags);
  }));
}

WEFT_EXPORT ssize_t vmsplice(int fd, const struct iovec* iov, size_t n, unsigned flags) {
  if (this_g() == nullptr) return real().vmsplice(fd, iov, n, flags);
  bool wait = n != 0 && (flags & SPLICE_F_NONBLOCK) == 0;
  bool writes = wait && (sys_call(SYS_fcntl, fd, F_GETFL, 0) & O_ACCMODE) != O_RDONLY;
  return errno_ret(when_both_ready(writes ? -1 : fd, writes ? fd : -1, wait, [&] {
    return sys_call(SYS_vmsplice, fd, sys_arg(iov), sys_arg(n), flags);
  }));
}

WEFT_EXPORT ssize_t copy_file_range(int in, off64_t* in_at, int out, off64_t* out_at, size_t n,
                                    unsigned flags) {
  if (this_g() == nullptr) return real().copy_file_range(in, in_at, out, out_at, n, flags);
  return errno_ret(io_kernel([&] {
    return sys_call(SYS_copy_file_range, in, sys_arg(in_at), out, sys_arg(out_at), sys_arg(n), flags);
  }));
}

WEFT_TWIN(ssize_t, sendfile64, sendfile, (int, int, off64_t*, size_t));

// io_send.cc - send, sendto, sendmsg, sendmmsg.
//
// Streams are sent whole, piece by piece, with MSG_DONTWAIT; only the first piece may raise
// SIGPIPE, as natively. Datagrams go whole or not at all. A unix datagram socket waits for
// room in its peer's queue, which poll knows only for connected ones: it blocks in the kernel.
#include <string.h>

#include "preload/cancel.h"
#include "preload/io_rw.h"

namespace weft {
namespace {

// Calls that the kernel must see whole: urgent data has one mark, fast open connects.
constexpr int kWhole = MSG_OOB | MSG_FASTOPEN;

bool is_stream(const PollDesc* pd) { return io_kind(pd) == kIoTcp || io_kind(pd) == kIoStream; }

int later_flags(int flags, bool first) {
  return flags | MSG_DONTWAIT | (first ? 0 : MSG_NOSIGNAL);
}

bool passes_descriptors(const struct msghdr* m) {
  for (struct cmsghdr* c = CMSG_FIRSTHDR(m); c != nullptr;
       c = CMSG_NXTHDR(const_cast<struct msghdr*>(m), c))
    if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS) return true;
  return false;
}

// A datagram: tried, then waited for as its family allows.
template <class Try, class Block>
long send_datagram(PollDesc* pd, Try try_once, Block whole) {
  if ((io_notes(pd) & kNoteUnix) == 0) return io_run(pd, kPollOut, Wait::kWrite, try_once, whole);
  long r = try_once(pd->fd);
  if (r >= 0) polldesc_fed(pd, 0);
  if (r != -EAGAIN) return r;
  IoAttr a;
  int err = io_attr(pd, kPollOut, &a);
  if (err < 0) return err;
  if (a.nonblock) return -EAGAIN;
  return io_kernel_block([&] { return whole(pd->fd); });
}

long g_sendto(int fd, const void* buf, size_t n, int flags, const sockaddr* to, socklen_t len) {
  io_enter();
  auto piece = [&](int at, size_t done, int f) {
    return sys_call(SYS_sendto, at, sys_arg(static_cast<const char*>(buf) + done),
                    sys_arg(n - done), f, sys_arg(to), len);
  };
  if ((flags & MSG_DONTWAIT) != 0) return piece(fd, 0, flags);
  PollDesc* pd = io_desc(fd);
  if (pd == nullptr || !io_is_socket(io_kind(pd)) || (flags & kWhole) != 0)
    return io_kernel([&] { return piece(fd, 0, flags); });
  if (!is_stream(pd))
    return send_datagram(
        pd, [&](int at) { return piece(at, 0, flags | MSG_DONTWAIT); },
        [&](int at) { return piece(at, 0, flags); });
  return io_write_all(
      pd, n < kMaxRw ? n : kMaxRw,
      [&](int at, size_t done) { return piece(at, done, later_flags(flags, done == 0)); },
      [&](int at, size_t done) { return piece(at, done, flags); });
}

// A stream's message after its first piece: what is left, without address and control data.
long send_rest(int at, const struct msghdr* m, size_t done, int flags) {
  IovWindow w;
  iov_window(w, m->msg_iov, static_cast<int>(m->msg_iovlen), done);
  struct msghdr rest = {};
  rest.msg_iov = w.piece;
  rest.msg_iovlen = static_cast<size_t>(w.n);
  return sys_call(SYS_sendmsg, at, sys_arg(&rest), flags);
}

long g_sendmsg(int fd, const struct msghdr* m, int flags) {
  io_enter();
  auto first = [&](int at, int f) { return sys_call(SYS_sendmsg, at, sys_arg(m), f); };
  if ((flags & MSG_DONTWAIT) != 0) return first(fd, flags);
  PollDesc* pd = io_desc(fd);
  if (pd == nullptr || !io_is_socket(io_kind(pd)) || (flags & kWhole) != 0)
    return io_kernel([&] { return first(fd, flags); });
  if (!is_stream(pd))
    return send_datagram(
        pd, [&](int at) { return first(at, flags | MSG_DONTWAIT); },
        [&](int at) { return first(at, flags); });
  IoCall c;
  io_begin(c, pd, kPollOut, Wait::kWrite);
  size_t done = 0, total = 0;
  for (;;) {
    io_sample(c);
    long r = done == 0 ? first(io_fd(c), flags | MSG_DONTWAIT)
                       : send_rest(io_fd(c), m, done, later_flags(flags, false));
    if (r == 0 && done == 0) return io_end(c, 0);
    if (r > 0) {
      polldesc_fed(c.turn.pd, 0);
      if (done == 0) total = iov_bytes(m->msg_iov, static_cast<int>(m->msg_iovlen));
      done += static_cast<size_t>(r);
      c.started = true;
      if (done >= total) return io_end(c, static_cast<long>(done));
      continue;
    }
    if (r == -EAGAIN) {
      r = io_block(c);
      if (r == 0) continue;
      if (r == kCannotWait && done == 0) {
        int at = io_fd(c);
        r = in_cancel_syscall_block([&] { return first(at, flags); });
      }
    }
    return io_end(c, done != 0 ? static_cast<long>(done) : r);
  }
}

}  // namespace
}  // namespace weft

using namespace weft;

WEFT_EXPORT ssize_t sendto(int fd, const void* buf, size_t n, int flags, const sockaddr* to,
                           socklen_t len) {
  if (this_g() == nullptr) return real().sendto(fd, buf, n, flags, to, len);
  return errno_ret(g_sendto(fd, buf, n, flags, to, len));
}

WEFT_EXPORT ssize_t send(int fd, const void* buf, size_t n, int flags) {
  if (this_g() == nullptr) return real().send(fd, buf, n, flags);
  return errno_ret(g_sendto(fd, buf, n, flags, nullptr, 0));
}

WEFT_EXPORT ssize_t sendmsg(int fd, const struct msghdr* m, int flags) {
  bool g = this_g() != nullptr;
  ssize_t r = g ? errno_ret(g_sendmsg(fd, m, flags)) : real().sendmsg(fd, m, flags);
  if (r >= 0 && m->msg_controllen != 0 && passes_descriptors(m)) io_descriptors_shared();
  return r;
}

WEFT_EXPORT int sendmmsg(int fd, struct mmsghdr* v, unsigned n, int flags) {
  if (this_g() == nullptr) return real().sendmmsg(fd, v, n, flags);
  if (n > 1024) n = 1024;  // UIO_MAXIOV, as the kernel
  unsigned i = 0;
  long r = 0;
  for (; i < n; i++) {
    r = g_sendmsg(fd, &v[i].msg_hdr, flags);
    if (r < 0) break;
    v[i].msg_len = static_cast<unsigned>(r);
    if (v[i].msg_hdr.msg_controllen != 0 && passes_descriptors(&v[i].msg_hdr))
      io_descriptors_shared();
  }
  return static_cast<int>(i != 0 || n == 0 ? static_cast<long>(i) : errno_ret(r));
}

WEFT_TWIN(ssize_t, __send, send, (int, const void*, size_t, int));

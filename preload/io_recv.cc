// io_recv.cc - recv, recvfrom, recvmsg, recvmmsg and their fortified forms.
//
// Tried with MSG_DONTWAIT; EAGAIN parks. MSG_WAITALL on a stream gathers piece by piece.
// The rare combinations that cannot be had in pieces (MSG_PEEK or an iovec with
// MSG_WAITALL) block in the kernel, without the P.
#include <string.h>

#include "preload/io_peers.h"
#include "preload/io_rw.h"

namespace weft {
namespace {

constexpr int kNeverWaits = MSG_DONTWAIT | MSG_OOB | MSG_ERRQUEUE;

bool is_stream(const PollDesc* pd) { return io_kind(pd) == kIoTcp || io_kind(pd) == kIoStream; }

// A blocking reader of a socket with SO_RCVLOWAT waits for that much; poll knows it.
bool below_low_water(PollDesc* pd, int at) {
  IoAttr a;
  return io_poll_now(at, kPollIn) != 0 && io_attr(pd, kPollIn, &a) == 0 && !a.nonblock;
}

// What came by SCM_RIGHTS are new numbers of files that others have too.
void note_received(const struct msghdr* m) {
  for (struct cmsghdr* c = CMSG_FIRSTHDR(m); c != nullptr;
       c = CMSG_NXTHDR(const_cast<struct msghdr*>(m), c)) {
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
    size_t n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < n; i++) {
      int fd;
      memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
      io_made(fd, kIoUnknown, 0);
    }
  }
}

long recv_all(PollDesc* pd, char* buf, size_t n, int flags, sockaddr* from, socklen_t* len) {
  IoCall c;
  io_begin(c, pd, kPollIn, Wait::kRead);
  size_t got = 0;
  for (;;) {
    io_sample(c);
    long r = sys_call(SYS_recvfrom, io_fd(c), sys_arg(buf + got), sys_arg(n - got),
                      (flags & ~MSG_WAITALL) | MSG_DONTWAIT, sys_arg(from), sys_arg(len));
    if (r > 0) {
      got += static_cast<size_t>(r);
      c.started = true;
      if (got < n) continue;
    }
    if (r == -EAGAIN) {
      r = io_block(c);
      if (r == 0) continue;
    }
    return io_end(c, got != 0 ? static_cast<long>(got) : r == kCannotWait ? -EAGAIN : r);
  }
}

long g_recvfrom(int fd, void* buf, size_t n, int flags, sockaddr* from, socklen_t* len) {
  io_enter();
  auto whole = [&](int at) {
    return sys_call(SYS_recvfrom, at, sys_arg(buf), sys_arg(n), flags, sys_arg(from), sys_arg(len));
  };
  if ((flags & (kNeverWaits & ~MSG_DONTWAIT)) != 0) return whole(fd);
  PollDesc* pd = io_desc(fd);
  if (pd == nullptr || !io_is_socket(io_kind(pd))) return io_kernel([&] { return whole(fd); });
  io_let_peers_run(fd);
  if ((flags & MSG_DONTWAIT) != 0) {  // mostly followed by poll, which then need not look
    uint32_t seq = pd->seq[kPollIn].load(std::memory_order_acquire);
    long r = whole(fd);
    if (r == -EAGAIN) io_note_empty(pd, seq);
    return r;
  }
  if ((flags & MSG_WAITALL) != 0 && is_stream(pd)) {
    if ((flags & MSG_PEEK) != 0) return io_kernel_block([&] { return whole(fd); });
    if (n != 0) return recv_all(pd, static_cast<char*>(buf), n, flags, from, len);
  }
  bool odd = (io_notes(pd) & kNoteOdd) != 0;
  return read_some(
      pd, (flags & (MSG_PEEK | MSG_TRUNC)) == 0 ? n : 0,
      [&](int at, bool) -> long {
        if (odd && below_low_water(pd, at)) return -EAGAIN;
        return sys_call(SYS_recvfrom, at, sys_arg(buf), sys_arg(n), flags | MSG_DONTWAIT,
                        sys_arg(from), sys_arg(len));
      },
      whole);
}

long g_recvmsg(int fd, struct msghdr* m, int flags) {
  io_enter();
  auto whole = [&](int at) { return sys_call(SYS_recvmsg, at, sys_arg(m), flags); };
  if ((flags & kNeverWaits) != 0) return whole(fd);
  PollDesc* pd = io_desc(fd);
  if (pd == nullptr || !io_is_socket(io_kind(pd))) return io_kernel([&] { return whole(fd); });
  io_let_peers_run(fd);
  if ((flags & MSG_WAITALL) != 0 && is_stream(pd)) return io_kernel_block([&] { return whole(fd); });
  bool odd = (io_notes(pd) & kNoteOdd) != 0;
  return read_some(
      pd, 0,
      [&](int at, bool) -> long {
        if (odd && below_low_water(pd, at)) return -EAGAIN;
        return sys_call(SYS_recvmsg, at, sys_arg(m), flags | MSG_DONTWAIT);
      },
      whole);
}

// Waits for each message in turn, as the kernel does: the timeout is looked at after each.
long g_recvmmsg(int fd, struct mmsghdr* v, unsigned n, int flags, struct timespec* timeout) {
  io_enter();
  auto call = [&](int at, unsigned from, int f, struct timespec* t) {
    return sys_call(SYS_recvmmsg, at, sys_arg(v + from), n - from, f, sys_arg(t));
  };
  if ((flags & kNeverWaits) != 0) return call(fd, 0, flags, timeout);
  PollDesc* pd = io_desc(fd);
  if (pd == nullptr || !io_is_socket(io_kind(pd)) || (flags & MSG_WAITALL) != 0)
    return io_kernel_block([&] { return call(fd, 0, flags, timeout); });
  if (timeout != nullptr && !timespec_ok(timeout)) return -EINVAL;
  uint64_t until = timeout == nullptr ? kNever : deadline_in(timeout);
  IoCall c;
  io_begin(c, pd, kPollIn, Wait::kRead);
  unsigned got = 0;
  long r;
  for (;;) {
    io_sample(c);
    r = call(io_fd(c), got, (flags & ~MSG_WAITFORONE) | MSG_DONTWAIT, nullptr);
    if (r > 0) {
      got += static_cast<unsigned>(r);
      c.started = true;
      if (got >= n || (flags & MSG_WAITFORONE) != 0 || host_now_ns() >= until) break;
      continue;
    }
    if (r != -EAGAIN) break;
    r = io_block(c);
    if (r != 0) break;
  }
  io_end(c, 0);
  if (timeout != nullptr) {
    uint64_t now = host_now_ns();
    uint64_t left = until > now ? until - now : 0;
    *timeout = {static_cast<time_t>(left / 1000000000u), static_cast<long>(left % 1000000000u)};
  }
  return got != 0 ? static_cast<long>(got) : r == kCannotWait ? -EAGAIN : r;
}

}  // namespace
}  // namespace weft

using namespace weft;

WEFT_EXPORT ssize_t recvfrom(int fd, void* buf, size_t n, int flags, sockaddr* from,
                             socklen_t* len) {
  if (this_g() == nullptr) return real().recvfrom(fd, buf, n, flags, from, len);
  return errno_ret(g_recvfrom(fd, buf, n, flags, from, len));
}

WEFT_EXPORT ssize_t recv(int fd, void* buf, size_t n, int flags) {
  if (this_g() == nullptr) return real().recv(fd, buf, n, flags);
  return errno_ret(g_recvfrom(fd, buf, n, flags, nullptr, nullptr));
}

WEFT_EXPORT ssize_t __recv_chk(int fd, void* buf, size_t n, size_t room, int flags) {
  if (this_g() == nullptr || n > room) return real().__recv_chk(fd, buf, n, room, flags);
  return errno_ret(g_recvfrom(fd, buf, n, flags, nullptr, nullptr));
}

WEFT_EXPORT ssize_t __recvfrom_chk(int fd, void* buf, size_t n, size_t room, int flags,
                                   sockaddr* from, socklen_t* len) {
  if (this_g() == nullptr || n > room)
    return real().__recvfrom_chk(fd, buf, n, room, flags, from, len);
  return errno_ret(g_recvfrom(fd, buf, n, flags, from, len));
}

WEFT_EXPORT ssize_t recvmsg(int fd, struct msghdr* m, int flags) {
  bool g = this_g() != nullptr;
  ssize_t r = g ? errno_ret(g_recvmsg(fd, m, flags)) : real().recvmsg(fd, m, flags);
  if (r >= 0 && m->msg_controllen != 0) note_received(m);
  return r;
}

WEFT_EXPORT int recvmmsg(int fd, struct mmsghdr* v, unsigned n, int flags, struct timespec* t) {
  bool g = this_g() != nullptr;
  int r = g ? static_cast<int>(errno_ret(g_recvmmsg(fd, v, n, flags, t)))
            : real().recvmmsg(fd, v, n, flags, t);
  for (int i = 0; i < r; i++)
    if (v[i].msg_hdr.msg_controllen != 0) note_received(&v[i].msg_hdr);
  return r;
}


// io_conn.cc - sockets coming to be: socket, socketpair, accept, connect, and the options
// our records depend on.
//
// accept has no flag for one non-blocking call: the listener is polled, then accept runs
// inside the syscall protocol. If another process took the connection in between, the M
// waits there as a kernel thread would; Gs of this process are woken one per connection.
//
// connect runs inside the syscall protocol: O_NONBLOCK may not be set, and over loopback,
// where servers talk to their neighbours, it is immediate.
#include <netinet/in.h>
#include <netinet/tcp.h>

#include "preload/cancel.h"
#include "preload/io_rw.h"

namespace weft {
namespace {

constexpr int kSockFlags = SOCK_NONBLOCK | SOCK_CLOEXEC;
constexpr int kRcvTimeoNew = 66, kSndTimeoNew = 67;  // SO_*TIMEO_NEW: 64-bit time everywhere

bool listens(PollDesc* pd) {
  if ((io_notes(pd) & kNoteListener) != 0) return true;
  int on = 0;
  socklen_t n = sizeof on;
  sys_call(SYS_getsockopt, pd->fd, SOL_SOCKET, SO_ACCEPTCONN, sys_arg(&on), sys_arg(&n));
  if (on == 0) return false;
  io_note(pd, kNoteListener);
  pd->ahead.store(true, std::memory_order_relaxed);
  return true;
}

long g_accept(int fd, sockaddr* addr, socklen_t* len, int flags) {
  io_enter();
  auto call = [&](int at) {
    return sys_call(SYS_accept4, at, sys_arg(addr), sys_arg(len), flags);
  };
  PollDesc* pd = io_desc(fd);
  if (pd == nullptr || !io_is_socket(io_kind(pd)) || (flags & ~kSockFlags) != 0 || !listens(pd))
    return io_kernel([&] { return call(fd); });
  return io_run(
      pd, kPollIn, Wait::kAccept,
      [&](int at) -> long {
        if (io_poll_now(at, kPollIn) != 0) return -EAGAIN;
        return in_cancel_syscall([&] { return call(at); });
      },
      call);
}

void note_accepted(int listener, int fd, int flags) {
  if (fd < 0) return;
  PollDesc* pd = polldesc_peek(listener);
  if (pd == nullptr || pd->fd != listener || !io_is_socket(io_kind(pd))) {
    io_made(fd, kIoUnknown, 0);
    return;
  }
  io_made(fd, io_kind(pd), io_inherited_notes(pd, (flags & SOCK_NONBLOCK) != 0));
}

uint32_t fresh_notes(int domain, int type) {
  return kNoteBorn | kNoteAttr | ((type & SOCK_NONBLOCK) != 0 ? uint32_t{kNoteNonblock} : 0) |
         (domain == AF_UNIX ? uint32_t{kNoteUnix} : 0);
}

bool timeval_set(const void* v, socklen_t n) {
  auto* t = static_cast<const struct timeval*>(v);
  return n >= sizeof *t && (t->tv_sec != 0 || t->tv_usec != 0);
}

}  // namespace
}  // namespace weft

using namespace weft;

WEFT_EXPORT int accept4(int fd, sockaddr* addr, socklen_t* len, int flags) {
  int r = this_g() == nullptr ? real().accept4(fd, addr, len, flags)
                              : static_cast<int>(errno_ret(g_accept(fd, addr, len, flags)));
  note_accepted(fd, r, flags);
  return r;
}

WEFT_EXPORT int accept(int fd, sockaddr* addr, socklen_t* len) {
  int r = this_g() == nullptr ? real().accept(fd, addr, len)
                              : static_cast<int>(errno_ret(g_accept(fd, addr, len, 0)));
  note_accepted(fd, r, 0);
  return r;
}

WEFT_EXPORT int connect(int fd, const sockaddr* addr, socklen_t len) {
  if (this_g() == nullptr) return real().connect(fd, addr, len);
  return static_cast<int>(
      errno_ret(io_kernel([&] { return sys_call(SYS_connect, fd, sys_arg(addr), len); })));
}

WEFT_EXPORT int socket(int domain, int type, int protocol) noexcept {
  int fd = real().socket(domain, type, protocol);
  io_made(fd, io_socket_kind(domain, type & ~kSockFlags, protocol), fresh_notes(domain, type));
  return fd;
}

WEFT_EXPORT int socketpair(int domain, int type, int protocol, int fds[2]) noexcept {
  int r = real().socketpair(domain, type, protocol, fds);
  if (r != 0) return r;
  for (int i = 0; i < 2; i++)
    io_made(fds[i], io_socket_kind(domain, type & ~kSockFlags, protocol), fresh_notes(domain, type));
  io_paired(fds[0], fds[1]);
  io_paired(fds[1], fds[0]);
  return r;
}

// The end of a unix stream that shuts down its own sending side gets no event of it, but
// natively its blocked writers return.
WEFT_EXPORT int shutdown(int fd, int how) noexcept {
  int r = real().shutdown(fd, how);
  if (r == 0) io_wake_all(fd);
  return r;
}

WEFT_EXPORT int setsockopt(int fd, int level, int what, const void* v, socklen_t n) noexcept {
  int r = real().setsockopt(fd, level, what, v, n);
  if (r != 0) return r;
  if (level == SOL_SOCKET) {
    if (what == SO_RCVTIMEO || what == kRcvTimeoNew) io_timeo_set(fd, kPollIn, timeval_set(v, n));
    if (what == SO_SNDTIMEO || what == kSndTimeoNew) io_timeo_set(fd, kPollOut, timeval_set(v, n));
    if (what == SO_RCVLOWAT || what == SO_PEEK_OFF) io_mark_odd(fd);
  } else if (level == IPPROTO_TCP && (what == TCP_ULP || what == TCP_REPAIR)) {
    io_mark_odd(fd);
  }
  return r;
}

WEFT_TWIN(int, __connect, connect, (int, const sockaddr*, socklen_t));

// io_syscall.cc - see io_syscall.h: raw numbers go the way of the named functions.
//
// So a descriptor closed by syscall(SYS_close) reaches the records, and a read by number
// parks like any other. Cancellation is put off meanwhile: syscall() is no point of it.
#include "preload/io_syscall.h"

#include <type_traits>
#include <utility>

#include "preload/cancel.h"
#include "preload/io_fd.h"

namespace weft {
namespace {

template <class T>
T as(long v) {
  if constexpr (std::is_pointer_v<T>) return reinterpret_cast<T>(v);
  else return static_cast<T>(v);
}

template <class R, class... A, size_t... I>
long call(R (*f)(A...), const long a[6], std::index_sequence<I...>) {
  long r = without_cancel([&] { return static_cast<long>(f(as<A>(a[I])...)); });
  return r == -1 ? -static_cast<long>(errno) : r;
}

template <class R, class... A>
long by(R (*f)(A...), const long a[6]) {
  return call(f, a, std::index_sequence_for<A...>{});
}
template <class R, class... A>
long by(R (*f)(A...) noexcept, const long a[6]) {
  return call(static_cast<R (*)(A...)>(f), a, std::index_sequence_for<A...>{});
}

struct MaskArg {  // pselect6's sixth
  const sigset_t* set;
  size_t bytes;
};

}  // namespace

bool io_syscall(long nr, const long a[6], long* result) {
  int saved = errno;
  long r;
  switch (nr) {
    case SYS_read: r = by(read, a); break;
    case SYS_write: r = by(write, a); break;
    case SYS_readv: r = by(readv, a); break;
    case SYS_writev: r = by(writev, a); break;
    case SYS_recvfrom: r = by(recvfrom, a); break;
    case SYS_recvmsg: r = by(recvmsg, a); break;
    case SYS_recvmmsg: r = by(recvmmsg, a); break;
    case SYS_sendto: r = by(sendto, a); break;
    case SYS_sendmsg: r = by(sendmsg, a); break;
    case SYS_sendmmsg: r = by(sendmmsg, a); break;
    case SYS_sendfile: r = by(sendfile, a); break;
    case SYS_splice: r = by(splice, a); break;
    case SYS_tee: r = by(tee, a); break;
    case SYS_vmsplice: r = by(vmsplice, a); break;
    case SYS_accept: r = by(accept, a); break;
    case SYS_accept4: r = by(accept4, a); break;
    case SYS_connect: r = by(connect, a); break;
    case SYS_socket: r = by(socket, a); break;
    case SYS_socketpair: r = by(socketpair, a); break;
    case SYS_shutdown: r = by(shutdown, a); break;
    case SYS_setsockopt: r = by(setsockopt, a); break;
    case SYS_poll: r = by(poll, a); break;
    case SYS_ppoll: r = by(ppoll, a); break;
    case SYS_select: r = by(select, a); break;
    case SYS_pselect6: {
      auto* m = reinterpret_cast<const MaskArg*>(a[5]);
      long b[6] = {a[0], a[1], a[2], a[3], a[4], m == nullptr ? 0 : sys_arg(m->set)};
      r = by(pselect, b);
      break;
    }
    case SYS_epoll_wait: r = by(epoll_wait, a); break;
    case SYS_epoll_pwait: r = by(epoll_pwait, a); break;
    case SYS_epoll_pwait2: r = by(epoll_pwait2, a); break;
    case SYS_pipe: r = by(pipe, a); break;
    case SYS_pipe2: r = by(pipe2, a); break;
    case SYS_eventfd2: r = by(eventfd, a); break;
    case SYS_open:
      r = call<int>(+[](const char* p, int f, mode_t m) { return open(p, f, m); }, a,
                    std::make_index_sequence<3>{});
      break;
    case SYS_openat:
      r = call<int>(+[](int d, const char* p, int f, mode_t m) { return openat(d, p, f, m); }, a,
                    std::make_index_sequence<4>{});
      break;
    case SYS_close: r = by(close, a); break;
    case SYS_close_range: r = by(close_range, a); break;
    case SYS_dup: r = by(dup, a); break;
    case SYS_dup2: r = by(dup2, a); break;
    case SYS_dup3: r = by(dup3, a); break;
    case SYS_fcntl:
      r = call<int>(+[](int fd, int cmd, long v) { return fcntl(fd, cmd, v); }, a,
                    std::make_index_sequence<3>{});
      break;
    case SYS_ioctl:
      r = call<int>(+[](int fd, unsigned long what, long v) { return ioctl(fd, what, v); }, a,
                    std::make_index_sequence<3>{});
      break;
    case SYS_nanosleep: r = by(nanosleep, a); break;
    case SYS_clock_nanosleep:
      r = -without_cancel([&] {
        return clock_nanosleep(as<clockid_t>(a[0]), as<int>(a[1]), as<const struct timespec*>(a[2]),
                               as<struct timespec*>(a[3]));
      });
      break;
    case SYS_sched_yield: r = by(sched_yield, a); break;
    default: return false;
  }
  errno = saved;
  *result = r;
  return true;
}

}  // namespace weft

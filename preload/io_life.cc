// io_life.cc - descriptors made, duplicated and closed: close, close_range, closefrom, dup,
// pipe, eventfd, open, fcntl, ioctl.
//
// Each tells the records (io_fd.h) what happens to a number, then does what libc does.
// Calls that may block (open of a FIFO, close with linger, locks, terminal ioctls) run
// inside the syscall protocol. The netpoller's own descriptors are closed as far as the
// program can tell.
//
// dup2 onto one of ours: ours moves away first, so that the number is free as natively.
#include <limits.h>
#include <stdarg.h>

#include "preload/io_rw.h"
#include "preload/vfork.h"
#include "preload/wire.h"

namespace weft {
namespace {

int hidden() {
  errno = EBADF;
  return -1;
}

// A number that came out of the kernel for the file of `from`.
int note_dup(int from, int fd) {
  if (fd < 0) return fd;
  io_made(fd, kIoUnknown, 0);
  io_aliased(from, fd);
  return fd;
}

// The number `to` is about to be replaced by a duplicate of `from`, if that is open.
void before_replace(int from, int to) {
  if (from == to || in_vfork_child() || sys_call(SYS_fcntl, from, F_GETFD, 0) < 0) return;
  if (netpoll_owns(to)) netpoll_make_room(to);
  io_closing(to);
}

uint32_t flag_notes(int flags) {
  return kNoteBorn | kNoteAttr | ((flags & O_NONBLOCK) != 0 ? uint32_t{kNoteNonblock} : 0);
}

void note_pipe(const int fds[2], int flags) {
  // Packet pipes end reads early.
  uint32_t notes = flag_notes(flags) | ((flags & O_DIRECT) != 0 ? uint32_t{kNoteOdd} : 0);
  io_made(fds[0], kIoPipe, notes);
  io_made(fds[1], kIoPipe, notes);
  io_paired(fds[1], fds[0]);
}

void forget_range(unsigned first, unsigned last) {
  int max = polldesc_max_fd();
  for (int fd = static_cast<int>(first); fd >= 0 && fd <= max; fd++) {
    if (static_cast<unsigned>(fd) > last) break;
    if (!netpoll_owns(fd)) io_closing(fd);
  }
}

// The range without our numbers in it.
template <class Close>
long close_around_ours(unsigned first, unsigned last, Close close_part) {
  unsigned from = first;
  while (from <= last && from <= INT_MAX) {
    int ours = netpoll_next_owned(static_cast<int>(from));
    if (ours == INT_MAX || static_cast<unsigned>(ours) > last) break;
    if (static_cast<unsigned>(ours) > from) {
      long r = close_part(from, static_cast<unsigned>(ours) - 1);
      if (r < 0) return r;
    }
    from = static_cast<unsigned>(ours) + 1;
  }
  return from > last ? 0 : close_part(from, last);
}

int open_at(int dir, const char* path, int flags, mode_t mode) {
  long fd =
      io_kernel([&] { return sys_call(SYS_openat, dir, sys_arg(path), flags, static_cast<long>(mode)); });
  if (fd >= 0) io_made(static_cast<int>(fd), kIoUnknown, 0);
  return static_cast<int>(errno_ret(fd));
}

int opened(int fd) {
  if (fd >= 0) io_made(fd, kIoUnknown, 0);
  return fd;
}

bool wants_mode(int flags) { return (flags & O_CREAT) != 0 || (flags & O_TMPFILE) == O_TMPFILE; }

}  // namespace
}  // namespace weft

using namespace weft;

// ---------------------------------------------------------------- close

WEFT_EXPORT int close(int fd) {
  if (netpoll_owns(fd)) return hidden();
  if (this_g() == nullptr) {
    io_closing(fd);
    return real().close(fd);
  }
  cancel_point();
  io_closing(fd);
  return static_cast<int>(errno_ret(in_syscall([&] { return sys_call(SYS_close, fd); })));
}

WEFT_EXPORT int close_range(unsigned first, unsigned last, int flags) noexcept {
  constexpr int kUnshare = 2, kCloexec = 4;
  if ((flags & ~kUnshare) != 0 || first > last)
    return real().close_range(first, last, flags);
  // A table of its own belongs to a kernel thread: the G stays with it from now on.
  if ((flags & kUnshare) != 0 && this_g() != nullptr) wire_thread("close_range(CLOSE_RANGE_UNSHARE)");
  static_assert(kCloexec != kUnshare);
  if ((flags & kUnshare) == 0) forget_range(first, last);
  return static_cast<int>(errno_ret(close_around_ours(first, last, [&](unsigned a, unsigned b) {
    return in_syscall([&] { return sys_call(SYS_close_range, a, b, flags); });
  })));
}

WEFT_EXPORT void closefrom(int low) noexcept {
  if (this_g() == nullptr && netpoll_next_owned(0) == INT_MAX && polldesc_max_fd() < 0) {
    real().closefrom(low);
    return;
  }
  unsigned first = low < 0 ? 0 : static_cast<unsigned>(low);
  forget_range(first, ~0u);
  close_around_ours(first, ~0u, [&](unsigned a, unsigned b) -> long {
    long r = in_syscall([&] { return sys_call(SYS_close_range, a, b, 0); });
    if (r != -ENOSYS) return r;
    // An old kernel: number by number, up to what the last of ours or the table ends with.
    long top = sysconf(_SC_OPEN_MAX);
    for (unsigned fd = a; fd <= b && static_cast<long>(fd) < top; fd++) sys_call(SYS_close, fd);
    return 0;
  });
}

// ---------------------------------------------------------------- dup

WEFT_EXPORT int dup(int fd) noexcept {
  if (netpoll_owns(fd)) return hidden();
  return note_dup(fd, real().dup(fd));
}

WEFT_EXPORT int dup2(int fd, int to) noexcept {
  if (netpoll_owns(fd)) return hidden();
  before_replace(fd, to);
  if (fd == to || this_g() == nullptr) return fd == to ? real().dup2(fd, to) : note_dup(fd, real().dup2(fd, to));
  return note_dup(
      fd, static_cast<int>(errno_ret(in_syscall([&] { return sys_call(SYS_dup2, fd, to); }))));
}

WEFT_EXPORT int dup3(int fd, int to, int flags) noexcept {
  if (netpoll_owns(fd)) return hidden();
  if ((flags & ~O_CLOEXEC) == 0) before_replace(fd, to);
  return note_dup(fd, static_cast<int>(errno_ret(
                          in_syscall([&] { return sys_call(SYS_dup3, fd, to, flags); }))));
}

// ---------------------------------------------------------------- make

WEFT_EXPORT int pipe(int fds[2]) noexcept {
  int r = real().pipe(fds);
  if (r == 0) note_pipe(fds, 0);
  return r;
}

WEFT_EXPORT int pipe2(int fds[2], int flags) noexcept {
  int r = real().pipe2(fds, flags);
  if (r == 0) note_pipe(fds, flags);
  return r;
}

WEFT_EXPORT int eventfd(unsigned count, int flags) noexcept {
  int fd = real().eventfd(count, flags);
  io_made(fd, kIoNowait, flag_notes(flags));
  return fd;
}

WEFT_EXPORT int open(const char* path, int flags, ...) {
  mode_t mode = 0;
  if (wants_mode(flags)) {
    va_list ap;
    va_start(ap, flags);
    mode = va_arg(ap, mode_t);
    va_end(ap);
  }
  if (this_g() == nullptr) return opened(real().open(path, flags, mode));
  return open_at(AT_FDCWD, path, flags, mode);
}

WEFT_EXPORT int openat(int dir, const char* path, int flags, ...) {
  mode_t mode = 0;
  if (wants_mode(flags)) {
    va_list ap;
    va_start(ap, flags);
    mode = va_arg(ap, mode_t);
    va_end(ap);
  }
  if (this_g() == nullptr) return opened(real().openat(dir, path, flags, mode));
  return open_at(dir, path, flags, mode);
}

WEFT_EXPORT int creat(const char* path, mode_t mode) {
  if (this_g() == nullptr) return opened(real().creat(path, mode));
  return open_at(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode);
}

// Fortified: two arguments where the flags want a third is a fatal error of the program's.
WEFT_EXPORT int __open_2(const char* path, int flags) {
  if (this_g() == nullptr || wants_mode(flags)) return opened(real().__open_2(path, flags));
  return open_at(AT_FDCWD, path, flags, 0);
}

WEFT_EXPORT int __openat_2(int dir, const char* path, int flags) {
  if (this_g() == nullptr || wants_mode(flags)) return opened(real().__openat_2(dir, path, flags));
  return open_at(dir, path, flags, 0);
}

// ---------------------------------------------------------------- fcntl, ioctl

WEFT_EXPORT int fcntl(int fd, int cmd, ...) {
  va_list ap;
  va_start(ap, cmd);
  void* arg = va_arg(ap, void*);
  va_end(ap);
  if (netpoll_owns(fd)) return hidden();
  switch (cmd) {
    case F_DUPFD:
    case F_DUPFD_CLOEXEC:
      return note_dup(fd, real().fcntl(fd, cmd, arg));
    case F_SETFL: {
      int r = real().fcntl(fd, cmd, arg);
      if (r != 0) return r;
      auto flags = static_cast<int>(reinterpret_cast<intptr_t>(arg));
      io_flags_set(fd, (flags & O_NONBLOCK) != 0);
      if ((flags & O_DIRECT) != 0) io_mark_odd(fd);
      return r;
    }
    case F_SETLKW:
    case F_OFD_SETLKW:
      if (this_g() == nullptr) return real().fcntl(fd, cmd, arg);
      return static_cast<int>(
          errno_ret(io_kernel([&] { return sys_call(SYS_fcntl, fd, cmd, sys_arg(arg)); })));
    default:
      return real().fcntl(fd, cmd, arg);
  }
}

WEFT_EXPORT int ioctl(int fd, unsigned long what, ...) noexcept {
  va_list ap;
  va_start(ap, what);
  void* arg = va_arg(ap, void*);
  va_end(ap);
  if (netpoll_owns(fd)) return hidden();
  int r = this_g() == nullptr
              ? real().ioctl(fd, what, arg)
              : static_cast<int>(errno_ret(in_syscall(
                    [&] { return sys_call(SYS_ioctl, fd, static_cast<long>(what), sys_arg(arg)); })));
  if (what == FIONBIO && r == 0) io_flags_set(fd, *static_cast<int*>(arg) != 0);
  return r;
}

WEFT_TWIN(int, __close, close, (int));
WEFT_TWIN(int, __dup2, dup2, (int, int));
WEFT_TWIN(int, __pipe, pipe, (int*));
WEFT_TWIN(int, open64, open, (const char*, int, ...));
WEFT_TWIN(int, __open, open, (const char*, int, ...));
WEFT_TWIN(int, __open64, open, (const char*, int, ...));
WEFT_TWIN(int, openat64, openat, (int, const char*, int, ...));
WEFT_TWIN(int, creat64, creat, (const char*, mode_t));
WEFT_TWIN(int, __open64_2, __open_2, (const char*, int));
WEFT_TWIN(int, __openat64_2, __openat_2, (int, const char*, int));
WEFT_TWIN(int, fcntl64, fcntl, (int, int, ...));
WEFT_TWIN(int, __fcntl, fcntl, (int, int, ...));

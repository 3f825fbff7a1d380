// io_file.cc - calls on files that may sleep in the kernel: sync, locks, allocation, drains.
//
// None can be waited for by readiness: all run inside the syscall protocol, so that they
// never hold a P for long.
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <termios.h>
#include <unistd.h>

#include "preload/cancel.h"
#include "preload/io_wait.h"

using namespace weft;

WEFT_EXPORT int fsync(int fd) {
  if (this_g() == nullptr) return real().fsync(fd);
  return static_cast<int>(errno_ret(io_kernel([&] { return sys_call(SYS_fsync, fd); })));
}

WEFT_EXPORT int fdatasync(int fd) {
  if (this_g() == nullptr) return real().fdatasync(fd);
  return static_cast<int>(errno_ret(io_kernel([&] { return sys_call(SYS_fdatasync, fd); })));
}

WEFT_EXPORT void sync() noexcept {
  in_syscall([] { return sys_call(SYS_sync); });
}

WEFT_EXPORT int syncfs(int fd) noexcept {
  return static_cast<int>(errno_ret(in_syscall([&] { return sys_call(SYS_syncfs, fd); })));
}

WEFT_EXPORT int sync_file_range(int fd, off64_t at, off64_t n, unsigned flags) {
  if (this_g() == nullptr) return real().sync_file_range(fd, at, n, flags);
  return static_cast<int>(
      errno_ret(io_kernel([&] { return sys_call(SYS_sync_file_range, fd, at, n, flags); })));
}

WEFT_EXPORT int msync(void* at, size_t n, int flags) {
  if (this_g() == nullptr) return real().msync(at, n, flags);
  return static_cast<int>(
      errno_ret(io_kernel([&] { return sys_call(SYS_msync, sys_arg(at), sys_arg(n), flags); })));
}

WEFT_EXPORT int fallocate(int fd, int mode, off_t at, off_t n) {
  if (this_g() == nullptr) return real().fallocate(fd, mode, at, n);
  return static_cast<int>(
      errno_ret(io_kernel([&] { return sys_call(SYS_fallocate, fd, mode, at, n); })));
}

WEFT_EXPORT int posix_fallocate(int fd, off_t at, off_t n) {
  return in_syscall([&] { return real().posix_fallocate(fd, at, n); });
}

WEFT_EXPORT int flock(int fd, int op) noexcept {
  return static_cast<int>(errno_ret(in_syscall([&] { return sys_call(SYS_flock, fd, op); })));
}

WEFT_EXPORT int lockf(int fd, int cmd, off_t n) {
  if (this_g() == nullptr) return real().lockf(fd, cmd, n);
  if (cmd != F_LOCK) return in_syscall([&] { return real().lockf(fd, cmd, n); });
  return libc_kernel([&] { return real().lockf(fd, cmd, n); });
}

WEFT_EXPORT int tcdrain(int fd) {
  if (this_g() == nullptr) return real().tcdrain(fd);
  return libc_kernel([&] { return real().tcdrain(fd); });
}

WEFT_EXPORT ssize_t getrandom(void* buf, size_t n, unsigned flags) {
  if (this_g() == nullptr) return real().getrandom(buf, n, flags);
  return errno_ret(
      io_kernel([&] { return sys_call(SYS_getrandom, sys_arg(buf), sys_arg(n), flags); }));
}

WEFT_TWIN(int, fallocate64, fallocate, (int, int, off64_t, off64_t));
WEFT_TWIN(int, posix_fallocate64, posix_fallocate, (int, off64_t, off64_t));
WEFT_TWIN(int, lockf64, lockf, (int, int, off64_t));

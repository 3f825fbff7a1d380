// io_rw.cc - read, write and their vector, positioned and fortified forms.
//
// A descriptor that can be waited for is tried once without blocking: sockets by
// MSG_DONTWAIT, pipes and the like by RWF_NOWAIT, the rest by poll and then the call inside
// the syscall protocol. EAGAIN parks the G in the netpoller. Everything else (files,
// foreign threads, before boot) is the plain call.
#include "preload/io_rw.h"

#include <poll.h>
#include <unistd.h>

namespace weft {
namespace {

bool nowait_ok(const PollDesc* pd, PollDir dir) {
  return (io_notes(pd) & (uint32_t{kNoteNoNowait} << dir | kNoteOdd)) == 0 &&
         io_kind(pd) <= kIoNowait;
}

// RWF_NOWAIT was refused, or the file is not what we took it for.
bool refused(PollDesc* pd, PollDir dir, long r) {
  if (r != -EOPNOTSUPP && r != -ENOSYS && r != -ESPIPE) return false;
  io_note(pd, uint32_t{kNoteNoNowait} << dir);
  return true;
}

// read and write cost 100 ns less than preadv2 and pwritev2 with RWF_NOWAIT, a third of a pipe's
// call. They may be had where they will not wait, as far as we know: a read by the only reader
// after an event or of a pipe that holds something, a write to one that surely has room. If one
// waits all the same, the P is taken from it (without an M for that the call ends, EAGAIN:
// stranded.h), and its end does without them for some calls: few
// the first time, since a P is taken from who is off its core, too, many if it comes again soon.
constexpr uint32_t kCareful = 256, kCarefulMax = 16384;
constexpr uint32_t kSoonShift = 32;  // of the time stamp counter: one or two seconds

bool plain_ok(PollDesc* pd) {
  if (t_g->call_habit != 0) return false;
  uint16_t left = pd->careful.load(std::memory_order_relaxed);
  if (WEFT_LIKELY(left == 0)) return true;
  pd->careful.store(static_cast<uint16_t>(left - 1), std::memory_order_relaxed);
  return false;
}

WEFT_COLD void be_careful(PollDesc* pd) {
  t_g->call_habit = 0;  // that says nothing of other calls
  auto now = static_cast<uint32_t>(tsc() >> kSoonShift);
  uint32_t last = pd->taken_n.load(std::memory_order_relaxed);
  bool soon = last != 0 && pd->taken_at.load(std::memory_order_relaxed) == now;
  uint32_t n = !soon ? kCareful : last < kCarefulMax ? last * 4 : kCarefulMax;
  pd->taken_at.store(now, std::memory_order_relaxed);
  pd->taken_n.store(static_cast<uint16_t>(n), std::memory_order_relaxed);
  pd->room.store(0, std::memory_order_relaxed);
  pd->careful.store(static_cast<uint16_t>(n), std::memory_order_relaxed);
}

bool plain_read_ok(PollDesc* pd, bool first) {
  return io_kind(pd) == kIoPipe && (!first || pd->level.load(std::memory_order_relaxed) > 0) &&
         !polldesc_awaited(pd) && io_surely_blocking(pd, kPollIn) && plain_ok(pd);
}

// A pipe is a ring of pages. A write goes on in the last page if all of it fits there, else it
// begins one, so each holds all but the widest write; the page that is being read is still in use.
// Who writes at the same time has not counted its bytes yet, one writer a P.
constexpr size_t kPlainWrite = 2048;
constexpr uint32_t kWidthStep = 64;

WEFT_COLD void measure_room(PollDesc* pd, int fd, size_t n) {
  uint32_t widest = pd->widest.load(std::memory_order_relaxed);
  if (n > widest) widest = static_cast<uint32_t>(n + kWidthStep - 1) / kWidthStep * kWidthStep;
  long pages = sys_call(SYS_fcntl, fd, F_GETPIPE_SZ, 0) / static_cast<long>(kPageBytes);
  long room = (pages - 1) * static_cast<long>(kPageBytes - widest) -
              static_cast<long>(sched.procs) * static_cast<long>(widest);
  pd->widest.store(static_cast<uint16_t>(widest), std::memory_order_relaxed);
  pd->room.store(room > 0 ? static_cast<int32_t>(room) : -1, std::memory_order_relaxed);
}

bool plain_write_ok(PollDesc* pd, int fd, size_t n) {
  if (io_kind(pd) != kIoPipe || n > kPlainWrite) return false;
  const PollDesc* to = polldesc_peer(pd);
  if (to == nullptr) return false;
  if (WEFT_UNLIKELY(n > pd->widest.load(std::memory_order_relaxed) ||
                    pd->room.load(std::memory_order_relaxed) == 0))
    measure_room(pd, fd, n);
  return to->level.load(std::memory_order_relaxed) < pd->room.load(std::memory_order_relaxed) &&
         plain_ok(pd);
}

template <class F>
long plain(PollDesc* pd, F call) {
  t_g->in_plain.store(true, std::memory_order_relaxed);
  long r = in_cancel_syscall(call);
  t_g->in_plain.store(false, std::memory_order_relaxed);
  if (WEFT_UNLIKELY(t_g->call_habit != 0)) be_careful(pd);
  return r;
}

long try_read(PollDesc* pd, int fd, void* buf, size_t n, bool first) {
  if (plain_read_ok(pd, first))
    return plain(pd, [&] { return sys_call(SYS_read, fd, sys_arg(buf), sys_arg(n)); });
  if (io_is_socket(io_kind(pd)) && (io_notes(pd) & kNoteOdd) == 0) {
    long r = sys_call(SYS_recvfrom, fd, sys_arg(buf), sys_arg(n), MSG_DONTWAIT, 0, 0);
    if (WEFT_LIKELY(r != -ENOTSOCK)) return r;
    io_probe(pd);
  }
  struct iovec one = {buf, n};
  return try_readv(pd, fd, &one, 1, 0);
}

long try_write(PollDesc* pd, int fd, const void* buf, size_t n, bool first) {
  uint32_t k = io_kind(pd);
  if (k == kIoTcp || k == kIoStream) {
    // A broken connection after part of the data raises no SIGPIPE: the count is returned.
    long r = sys_call(SYS_sendto, fd, sys_arg(buf), sys_arg(n),
                      MSG_DONTWAIT | (first ? 0 : MSG_NOSIGNAL), 0, 0);
    if (WEFT_LIKELY(r != -ENOTSOCK)) return r;
    io_probe(pd);
  }
  if (first && plain_write_ok(pd, fd, n))
    return plain(pd, [&] { return sys_call(SYS_write, fd, sys_arg(buf), sys_arg(n)); });
  struct iovec one = {const_cast<void*>(buf), n};
  return try_writev(pd, fd, &one, 1, 0, first);
}

}  // namespace

void note_short_read(PollDesc* pd, const IoCall& c) {
  uint32_t k = io_kind(pd);
  if ((k == kIoTcp || k == kIoPipe) && !c.turn.orphan) io_note_empty(pd, c.turn.seq);
}

size_t iov_bytes(const struct iovec* iov, int count) {
  size_t n = 0;
  for (int i = 0; i < count; i++) n += iov[i].iov_len;
  return n < kMaxRw ? n : kMaxRw;
}

void iov_window(IovWindow& w, const struct iovec* iov, int count, size_t done) {
  w.n = 0;
  for (int i = 0; i < count && w.n < IovWindow::kWindow; i++) {
    if (done >= iov[i].iov_len) {
      done -= iov[i].iov_len;
      continue;
    }
    w.piece[w.n++] = {static_cast<char*>(iov[i].iov_base) + done, iov[i].iov_len - done};
    done = 0;
  }
}

long try_readv(PollDesc* pd, int fd, const struct iovec* iov, int count, int flags) {
  if (nowait_ok(pd, kPollIn)) {
    long r = sys_call(SYS_preadv2, fd, sys_arg(iov), count, -1, -1, flags | RWF_NOWAIT);
    if (!refused(pd, kPollIn, r)) return r;
  }
  IoAttr a;
  if (io_poll_now(fd, kPollIn) != 0 && io_attr(pd, kPollIn, &a) == 0 && !a.nonblock) return -EAGAIN;
  return in_syscall([&] { return sys_call(SYS_preadv2, fd, sys_arg(iov), count, -1, -1, flags); });
}

long try_writev(PollDesc* pd, int fd, const struct iovec* iov, int count, int flags, bool first) {
  uint32_t k = io_kind(pd);
  if ((k == kIoTcp || k == kIoStream) && !first) {
    struct msghdr m = {};
    m.msg_iov = const_cast<struct iovec*>(iov);
    m.msg_iovlen = static_cast<size_t>(count);
    return sys_call(SYS_sendmsg, fd, sys_arg(&m), MSG_DONTWAIT | MSG_NOSIGNAL);
  }
  // A unix datagram socket waits for its peer's queue, of which poll knows nothing.
  if (k == kIoDgram && (io_notes(pd) & kNoteUnix) != 0)
    return in_syscall([&] { return sys_call(SYS_pwritev2, fd, sys_arg(iov), count, -1, -1, flags); });
  if (nowait_ok(pd, kPollOut)) {
    long r = sys_call(SYS_pwritev2, fd, sys_arg(iov), count, -1, -1, flags | RWF_NOWAIT);
    if (!refused(pd, kPollOut, r)) return r;
  }
  IoAttr a;
  if (io_poll_now(fd, kPollOut) != 0 && io_attr(pd, kPollOut, &a) == 0 && !a.nonblock)
    return -EAGAIN;
  return in_syscall([&] { return sys_call(SYS_pwritev2, fd, sys_arg(iov), count, -1, -1, flags); });
}

namespace {

long g_read(int fd, void* buf, size_t n) {
  io_enter();
  PollDesc* pd = io_desc(fd);
  if (pd == nullptr || n == 0)
    return io_kernel([&] { return sys_call(SYS_read, fd, sys_arg(buf), sys_arg(n)); });
  return read_some(
      pd, n, [&](int at, bool first) { return try_read(pd, at, buf, n, first); },
      [&](int at) { return sys_call(SYS_read, at, sys_arg(buf), sys_arg(n)); });
}

long g_write(int fd, const void* buf, size_t n) {
  io_enter();
  PollDesc* pd = io_desc(fd);
  // An eventfd refuses less than 8 bytes before it waits.
  if (pd == nullptr || n == 0 || (io_kind(pd) == kIoNowait && n < sizeof(uint64_t)))
    return io_kernel([&] { return sys_call(SYS_write, fd, sys_arg(buf), sys_arg(n)); });
  auto* from = static_cast<const char*>(buf);
  size_t total = n < kMaxRw ? n : kMaxRw;
  return io_write_all(
      pd, total,
      [&](int at, size_t done) { return try_write(pd, at, from + done, total - done, done == 0); },
      [&](int at, size_t done) {
        return sys_call(SYS_write, at, sys_arg(from + done), sys_arg(total - done));
      });
}

long g_readv(int fd, const struct iovec* iov, int count, int flags) {
  io_enter();
  PollDesc* pd = io_desc(fd);
  auto whole = [&](int at) {
    return sys_call(SYS_preadv2, at, sys_arg(iov), count, -1, -1, flags);
  };
  if (pd == nullptr || count <= 0 || count > IOV_MAX || flags != 0)
    return io_kernel([&] { return whole(fd); });
  return read_some(
      pd, 0, [&](int at, bool) { return try_readv(pd, at, iov, count, flags); }, whole);
}

long g_writev(int fd, const struct iovec* iov, int count, int flags) {
  io_enter();
  PollDesc* pd = io_desc(fd);
  if (pd == nullptr || count <= 0 || count > IOV_MAX || flags != 0)
    return io_kernel([&] { return sys_call(SYS_pwritev2, fd, sys_arg(iov), count, -1, -1, flags); });
  size_t total = kMaxRw;  // summed up only after a short write: a bad pointer is the kernel's to find
  auto put = [&](int at, size_t done) {
    if (done == 0) {
      long r = try_writev(pd, at, iov, count, flags, true);
      if (r >= 0) total = iov_bytes(iov, count);
      return r;
    }
    IovWindow w;
    iov_window(w, iov, count, done);
    return try_writev(pd, at, w.piece, w.n, flags, false);
  };
  return io_write_all(pd, total, put, [&](int at, size_t done) {
    if (done == 0) return sys_call(SYS_pwritev2, at, sys_arg(iov), count, -1, -1, flags);
    IovWindow w;
    iov_window(w, iov, count, done);
    return sys_call(SYS_pwritev2, at, sys_arg(&w.piece[0]), w.n, -1, -1, flags);
  });
}

}  // namespace
}  // namespace weft

using namespace weft;

WEFT_EXPORT ssize_t read(int fd, void* buf, size_t n) {
  if (this_g() == nullptr) return real().read(fd, buf, n);
  return errno_ret(g_read(fd, buf, n));
}

WEFT_EXPORT ssize_t __read_chk(int fd, void* buf, size_t n, size_t room) {
  if (this_g() == nullptr || n > room) return real().__read_chk(fd, buf, n, room);
  return errno_ret(g_read(fd, buf, n));
}

WEFT_EXPORT ssize_t write(int fd, const void* buf, size_t n) {
  if (this_g() == nullptr) return real().write(fd, buf, n);
  return errno_ret(g_write(fd, buf, n));
}

WEFT_EXPORT ssize_t readv(int fd, const struct iovec* iov, int count) {
  if (this_g() == nullptr) return real().readv(fd, iov, count);
  return errno_ret(g_readv(fd, iov, count, 0));
}

WEFT_EXPORT ssize_t writev(int fd, const struct iovec* iov, int count) {
  if (this_g() == nullptr) return real().writev(fd, iov, count);
  return errno_ret(g_writev(fd, iov, count, 0));
}

// ---------------------------------------------------------------- at a position: files

WEFT_EXPORT ssize_t pread(int fd, void* buf, size_t n, off_t at) {
  if (this_g() == nullptr) return real().pread(fd, buf, n, at);
  return errno_ret(
      io_kernel([&] { return sys_call(SYS_pread64, fd, sys_arg(buf), sys_arg(n), at); }));
}

WEFT_EXPORT ssize_t pwrite(int fd, const void* buf, size_t n, off_t at) {
  if (this_g() == nullptr) return real().pwrite(fd, buf, n, at);
  return errno_ret(
      io_kernel([&] { return sys_call(SYS_pwrite64, fd, sys_arg(buf), sys_arg(n), at); }));
}

WEFT_EXPORT ssize_t __pread_chk(int fd, void* buf, size_t n, off_t at, size_t room) {
  if (n > room) return real().__pread_chk(fd, buf, n, at, room);
  return pread(fd, buf, n, at);
}

WEFT_EXPORT ssize_t preadv(int fd, const struct iovec* iov, int count, off_t at) {
  if (this_g() == nullptr) return real().preadv(fd, iov, count, at);
  return errno_ret(
      io_kernel([&] { return sys_call(SYS_preadv, fd, sys_arg(iov), count, at, 0); }));
}

WEFT_EXPORT ssize_t pwritev(int fd, const struct iovec* iov, int count, off_t at) {
  if (this_g() == nullptr) return real().pwritev(fd, iov, count, at);
  return errno_ret(
      io_kernel([&] { return sys_call(SYS_pwritev, fd, sys_arg(iov), count, at, 0); }));
}

WEFT_EXPORT ssize_t preadv2(int fd, const struct iovec* iov, int count, off_t at, int flags) {
  if (this_g() == nullptr) return real().preadv2(fd, iov, count, at, flags);
  if (at == -1) return errno_ret(g_readv(fd, iov, count, flags));
  return errno_ret(
      io_kernel([&] { return sys_call(SYS_preadv2, fd, sys_arg(iov), count, at, 0, flags); }));
}

WEFT_EXPORT ssize_t pwritev2(int fd, const struct iovec* iov, int count, off_t at, int flags) {
  if (this_g() == nullptr) return real().pwritev2(fd, iov, count, at, flags);
  if (at == -1) return errno_ret(g_writev(fd, iov, count, flags));
  return errno_ret(
      io_kernel([&] { return sys_call(SYS_pwritev2, fd, sys_arg(iov), count, at, 0, flags); }));
}

WEFT_TWIN(ssize_t, __read, read, (int, void*, size_t));
WEFT_TWIN(ssize_t, __write, write, (int, const void*, size_t));
WEFT_TWIN(ssize_t, __pread64, pread, (int, void*, size_t, off64_t));
WEFT_TWIN(ssize_t, __pwrite64, pwrite, (int, const void*, size_t, off64_t));
WEFT_TWIN(ssize_t, pread64, pread, (int, void*, size_t, off64_t));
WEFT_TWIN(ssize_t, pwrite64, pwrite, (int, const void*, size_t, off64_t));
WEFT_TWIN(ssize_t, __pread64_chk, __pread_chk, (int, void*, size_t, off64_t, size_t));
WEFT_TWIN(ssize_t, preadv64, preadv, (int, const struct iovec*, int, off64_t));
WEFT_TWIN(ssize_t, pwritev64, pwritev, (int, const struct iovec*, int, off64_t));
WEFT_TWIN(ssize_t, preadv64v2, preadv2, (int, const struct iovec*, int, off64_t, int));
WEFT_TWIN(ssize_t, pwritev64v2, pwritev2, (int, const struct iovec*, int, off64_t, int));

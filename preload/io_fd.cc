// io_fd.cc - see io_fd.h.
#include "preload/io_fd.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <termios.h>

#include "preload/vfork.h"

namespace weft {

std::atomic<uint32_t> io_share_epoch{0};

uint32_t io_socket_kind(int domain, int type, int protocol) {
  if (type != SOCK_STREAM) return kIoDgram;
  bool inet = domain == AF_INET || domain == AF_INET6;
  return inet && (protocol == IPPROTO_TCP || protocol == 0) ? kIoTcp : kIoStream;
}

namespace {

constexpr unsigned kMemMajor = 1;  // /dev/null, zero, full, random, urandom

int sock_int(int fd, int what) {
  int v = -1;
  socklen_t n = sizeof v;
  sys_call(SYS_getsockopt, fd, SOL_SOCKET, what, sys_arg(&v), sys_arg(&n));
  return v;
}

uint32_t kind_of(int fd, uint32_t* notes) {
  struct stat st;
  if (sys_call(SYS_fstat, fd, sys_arg(&st)) != 0) return kIoUnknown;
  switch (st.st_mode & S_IFMT) {
    case S_IFSOCK: {
      int domain = sock_int(fd, SO_DOMAIN);
      if (domain == AF_UNIX) *notes |= kNoteUnix;
      if (sock_int(fd, SO_RCVLOWAT) > 1) *notes |= kNoteOdd;
      return io_socket_kind(domain, sock_int(fd, SO_TYPE), sock_int(fd, SO_PROTOCOL));
    }
    case S_IFIFO:
      return kIoPipe;
    case S_IFCHR: {
      if (major(st.st_rdev) == kMemMajor) return kIoFile;
      struct termios t;
      return sys_call(SYS_ioctl, fd, TCGETS, sys_arg(&t)) == 0 ? kIoTty : kIoPoll;
    }
    case 0:
      return kIoNowait;
    default:
      return kIoFile;
  }
}

// Made before boot, when there are no records, and neither closed nor duplicated since: after boot
// too, for a record begins with the first use only.
constexpr int kEarly = 1024;
constexpr uint32_t kRecorded = ~0u;
struct Early {
  std::atomic<uint32_t> epoch{0};  // the share epoch then, plus one; kRecorded; 0: not one of these
  int peer = 0;                    // the other end, plus one; written before boot
};
constinit Early early[kEarly] = {};

uint32_t early_epoch(int fd) {
  return fd >= 0 && fd < kEarly ? early[fd].epoch.load(std::memory_order_relaxed) : 0;
}

void forget_early(int fd) {
  if (early_epoch(fd) != 0 && !in_vfork_child()) early[fd].epoch.store(0, std::memory_order_relaxed);
}

bool is_early(int fd) {
  return fd >= 0 && fd < kEarly && !sched.booted.load(std::memory_order_relaxed) && !in_vfork_child();
}

void note_early(int fd) {
  if (!is_early(fd)) return;
  early[fd].epoch.store(io_share_epoch.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
  early[fd].peer = 0;
}

bool recording() { return sched.booted.load(std::memory_order_acquire) && !in_vfork_child(); }

uint64_t timeo_of(int fd, int what) {
  struct timeval tv = {};
  socklen_t n = sizeof tv;
  if (sys_call(SYS_getsockopt, fd, SOL_SOCKET, what, sys_arg(&tv), sys_arg(&n)) != 0) return 0;
  return static_cast<uint64_t>(tv.tv_sec) * 1000000000u +
         static_cast<uint64_t>(tv.tv_usec) * 1000u;
}

// Nobody but this number, in this process, can have the file.
bool exclusive(const PollDesc* pd) {
  return (io_notes(pd) & (kNoteBorn | kNoteAliased)) == kNoteBorn &&
         pd->share_epoch.load(std::memory_order_relaxed) ==
             io_share_epoch.load(std::memory_order_relaxed);
}

void replace_attr(PollDesc* pd, uint32_t bits) {
  constexpr uint32_t kMask = kNoteNonblock | kNoteRcvTimeo | kNoteSndTimeo;
  uint32_t was = io_notes(pd);
  while (!pd->notes.compare_exchange_weak(was, (was & ~kMask) | bits | kNoteAttr,
                                          std::memory_order_relaxed)) {
  }
}

}  // namespace

bool io_probe(PollDesc* pd) {
  uint32_t notes = 0;
  uint32_t kind = kind_of(pd->fd, &notes);
  pd->drained.store(0, std::memory_order_relaxed);
  uint32_t epoch = early_epoch(pd->fd);
  if (epoch == io_share_epoch.load(std::memory_order_relaxed) + 1) {
    notes |= kNoteBorn;
    pd->share_epoch.store(epoch - 1, std::memory_order_relaxed);
    early[pd->fd].epoch.store(kRecorded, std::memory_order_relaxed);
    if (int peer = early[pd->fd].peer - 1; early_epoch(peer) != 0)
      if (PollDesc* to = polldesc_get(peer)) polldesc_pair(pd, to);
  }
  pd->notes.store(notes, std::memory_order_relaxed);
  pd->kind.store(kind, std::memory_order_relaxed);
  return kind > kIoFile;
}

PollDesc* io_desc_slow(int fd) {
  if (!netpoll_enabled()) return nullptr;
  PollDesc* pd = polldesc_get(fd);
  if (pd == nullptr) return nullptr;
  if (io_kind(pd) == kIoFile) {
    // A file's number may have become a socket's inside libc. The error to the safe side
    // costs an M while it waits, so look again now and then.
    uint64_t n = pd->drained.fetch_add(1, std::memory_order_relaxed);
    if (n % 64 != 63) return nullptr;
  }
  return io_probe(pd) ? pd : nullptr;
}

int io_attr(PollDesc* pd, PollDir dir, IoAttr* out) {
  uint32_t has = dir == kPollIn ? kNoteRcvTimeo : kNoteSndTimeo;
  int opt = dir == kPollIn ? SO_RCVTIMEO : SO_SNDTIMEO;
  bool keep = exclusive(pd);
  uint32_t notes = io_notes(pd);
  if (keep && (notes & kNoteAttr) != 0) {
    out->nonblock = (notes & kNoteNonblock) != 0;
    out->timeo_ns = (notes & has) != 0 ? timeo_of(pd->fd, opt) : 0;
    return 0;
  }
  long fl = sys_call(SYS_fcntl, pd->fd, F_GETFL, 0);
  if (fl < 0) return static_cast<int>(fl);
  out->nonblock = (fl & O_NONBLOCK) != 0;
  bool socket = io_is_socket(io_kind(pd));
  out->timeo_ns = socket && !out->nonblock ? timeo_of(pd->fd, opt) : 0;
  if (keep) {
    uint32_t bits = out->nonblock ? uint32_t{kNoteNonblock} : 0;
    if (socket && timeo_of(pd->fd, SO_RCVTIMEO) != 0) bits |= kNoteRcvTimeo;
    if (socket && timeo_of(pd->fd, SO_SNDTIMEO) != 0) bits |= kNoteSndTimeo;
    replace_attr(pd, bits);
  }
  return 0;
}

bool io_surely_blocking(const PollDesc* pd, PollDir dir) {
  uint32_t timeo = dir == kPollIn ? kNoteRcvTimeo : kNoteSndTimeo;
  return (io_notes(pd) & (kNoteAttr | kNoteNonblock | kNoteOdd | timeo)) == kNoteAttr &&
         exclusive(pd);
}

// ---------------------------------------------------------------- the life of numbers

void io_descriptors_shared() { io_share_epoch.fetch_add(1, std::memory_order_relaxed); }

void io_made(int fd, uint32_t kind, uint32_t notes) {
  bool known = kind == kIoPipe || (kind >= kIoTcp && kind <= kIoDgram);
  if (known) note_early(fd);
  if (!known || recording()) forget_early(fd);
  if (fd < 0 || !recording()) return;
  PollDesc* pd = polldesc_get(fd);
  if (pd == nullptr) return;
  polldesc_renew(pd);
  if (kind == kIoUnknown) return;
  pd->share_epoch.store(io_share_epoch.load(std::memory_order_relaxed),
                        std::memory_order_relaxed);
  pd->notes.store(notes, std::memory_order_relaxed);
  pd->kind.store(kind, std::memory_order_relaxed);
}

void io_paired(int from, int to) {
  if (is_early(from)) early[from].peer = to + 1;
  if (!recording()) return;
  PollDesc *a = polldesc_get(from), *b = polldesc_get(to);
  if (a != nullptr && b != nullptr) polldesc_pair(a, b);
}

void io_closing(int fd) {
  forget_early(fd);
  if (!recording()) return;
  PollDesc* pd = polldesc_peek(fd);
  if (pd == nullptr || pd->fd != fd) return;  // never asked for: nothing recorded
  if (pd->kind.load(std::memory_order_relaxed) == kIoUnknown && pd->armed == 0) return;
  polldesc_retire(pd);
}

void io_aliased(int fd, int other) {
  forget_early(fd);
  forget_early(other);
  if (!recording()) return;
  for (int n : {fd, other})
    if (PollDesc* pd = polldesc_peek(n); pd != nullptr && pd->fd == n) io_note(pd, kNoteAliased);
}

void io_wake_all(int fd) {
  if (!recording()) return;
  PollDesc* pd = polldesc_peek(fd);
  if (pd == nullptr || pd->fd != fd) return;
  bool aliased = (io_notes(pd) & kNoteAliased) != 0;
  int from = aliased ? 0 : fd, to = aliased ? polldesc_max_fd() : fd;
  Door in;
  for (int n = from; n <= to; n++) {
    pd = polldesc_peek(n);
    if (pd == nullptr || (pd->head[kPollIn] == nullptr && pd->head[kPollOut] == nullptr)) continue;
    GList out;
    pd->lock.lock();
    polldesc_fire(pd, 3, true, out);
    pd->lock.unlock();
    ready_list(out);
  }
}

void io_flags_set(int fd, bool nonblock) {
  if (!recording()) return;
  PollDesc* pd = polldesc_peek(fd);
  if (pd == nullptr || pd->fd != fd || io_kind(pd) == kIoUnknown) return;
  if (nonblock) pd->notes.fetch_or(kNoteNonblock, std::memory_order_relaxed);
  else pd->notes.fetch_and(~uint32_t{kNoteNonblock}, std::memory_order_relaxed);
}

uint32_t io_inherited_notes(const PollDesc* listener, bool nonblock) {
  uint32_t notes = kNoteBorn | (nonblock ? uint32_t{kNoteNonblock} : 0);
  if (listener == nullptr) return kNoteBorn;
  uint32_t its = io_notes(listener);
  notes |= its & kNoteUnix;
  // Timeouts come from the listener (Linux does not hand down O_NONBLOCK).
  if (exclusive(listener) && (its & kNoteAttr) != 0)
    notes |= kNoteAttr | (its & (kNoteRcvTimeo | kNoteSndTimeo));
  return notes;
}

void io_timeo_set(int fd, PollDir dir, bool nonzero) {
  if (!recording()) return;
  PollDesc* pd = polldesc_peek(fd);
  if (pd == nullptr || pd->fd != fd || io_kind(pd) == kIoUnknown) return;
  uint32_t bit = dir == kPollIn ? kNoteRcvTimeo : kNoteSndTimeo;
  if (nonzero) pd->notes.fetch_or(bit, std::memory_order_relaxed);
  else pd->notes.fetch_and(~bit, std::memory_order_relaxed);
}

void io_mark_odd(int fd) {
  if (!recording()) return;
  if (PollDesc* pd = polldesc_get(fd); pd != nullptr) {
    if (io_kind(pd) == kIoUnknown) io_probe(pd);
    io_note(pd, kNoteOdd);
  }
}

}  // namespace weft

// io_poll.cc - poll, ppoll, select, pselect.
//
// A try with timeout 0 answers at once whatever is ready. Else the G waits parked or in
// place (io_watch.h) and tries again. With a signal mask the wait is the kernel's own: only
// it changes the mask and waits in one step.
#include <poll.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/select.h>

#include "preload/io_signal.h"
#include "preload/io_wait.h"
#include "preload/io_watch.h"
#include "sched/fair.h"

namespace weft {
namespace {

constexpr short kInEvents = POLLIN | POLLPRI | POLLRDNORM | POLLRDBAND | POLLRDHUP;
constexpr short kOutEvents = POLLOUT | POLLWRNORM | POLLWRBAND;

std::atomic<uint32_t> n_in_place{0};

}  // namespace

bool in_place_begin(uint32_t most) {
  G* g = t_g;
  P* p = g->m->p;
  if (p == nullptr || p_has_work(p) || sched.globq_n.load(std::memory_order_relaxed) != 0)
    return false;
  if (most == kEpollLoops && netpoll_waiters()) return false;
  if (most == kPollLoops && placed_lately() && any_work()) return false;
  uint32_t n = n_in_place.load(std::memory_order_relaxed);
  while (n < most)
    if (n_in_place.compare_exchange_weak(n, n + 1, std::memory_order_relaxed)) return true;
  return false;
}

void in_place_end() { n_in_place.fetch_sub(1, std::memory_order_relaxed); }

// fork.cc calls it in the child, where no other thread waits.
void io_after_fork();
void io_after_fork() { n_in_place.store(0, std::memory_order_relaxed); }

bool watch_room(WatchSet& s, uint32_t n) {
  if (n <= s.cap) return true;
  watch_free(s);
  void* mem = sys_mmap(nullptr, n * sizeof(PollWatch), PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS);
  if (sys_failed(mem)) return false;
  s.w = static_cast<PollWatch*>(mem);
  s.cap = n;
  return true;
}

void watch_free(WatchSet& s) {
  if (s.w != s.small) sys_munmap(s.w, s.cap * sizeof(PollWatch));
  s.w = s.small;
  s.cap = WatchSet::kSmall;
}

bool watch_add(WatchSet& s, int fd, PollDir dir) {
  PollDesc* pd = polldesc_get(fd);
  if (pd == nullptr) return false;
  PollWatch& w = s.w[s.n++];
  w.pd = pd;
  w.dir = dir;
  w.linked = false;
  w.seq = pd->seq[dir].load(std::memory_order_acquire);
  return true;
}

struct timespec* Remaining::set(uint64_t deadline_ns) {
  if (deadline_ns == kNever) return nullptr;
  uint64_t now = host_now_ns();
  uint64_t left = deadline_ns > now ? deadline_ns - now : 0;
  ts = {static_cast<time_t>(left / 1000000000u), static_cast<long>(left % 1000000000u)};
  return &ts;
}

namespace {

long poll_now(struct pollfd* fds, nfds_t n) {
  return io_undisturbed([&] { return sys_call(SYS_poll, sys_arg(fds), sys_arg(n), 0); });
}

bool watch_all(WatchSet& s, const struct pollfd* fds, nfds_t n) {
  s.n = 0;
  for (nfds_t i = 0; i < n; i++) {
    if (fds[i].fd < 0) continue;
    bool out = (fds[i].events & kOutEvents) != 0;
    bool in = (fds[i].events & kInEvents) != 0 || !out;  // hang-up comes both ways
    if (in && !watch_add(s, fds[i].fd, kPollIn)) return false;
    if (out && !watch_add(s, fds[i].fd, kPollOut)) return false;
  }
  return true;
}

long poll_in_kernel(struct pollfd* fds, nfds_t n, uint64_t deadline, const sigset_t* mask) {
  KernelMask km(mask);
  auto call = [&] {
    Remaining rem;
    struct timespec* t = rem.set(deadline);
    return sys_call(SYS_ppoll, sys_arg(fds), sys_arg(n), sys_arg(t), sys_arg(km.p), 8);
  };
  if (mask != nullptr) return io_masked_wait(mask, call);
  return io_undisturbed([&] { return in_cancel_syscall_block(call); });
}

// Asked only whether they can be read, and known to be empty: a server's recv(MSG_DONTWAIT) and
// poll, a client's recv in vain on each of its connections. The look with timeout 0 is spared.
bool surely_not_ready(const struct pollfd* fds, nfds_t n, const WatchSet& s) {
  constexpr short kReadable = POLLIN | POLLRDNORM | POLLPRI;
  if (s.n != n) return false;
  for (nfds_t i = 0; i < n; i++) {
    bool read = (fds[i].events & ~kReadable) == 0 && (fds[i].events & POLLIN) != 0;
    if (!read || !io_known_empty(s.w[i].pd, s.w[i].seq)) return false;
  }
  return true;
}

// A look before the wait is a system call for nothing where descriptors are seldom ready by then, as
// for a client whose server shares its cores (pgbench: nine in ten); where they mostly are, it spares
// the wait's bracket, 0.3 us. Learnt by each thread: after kVain looks in vain it takes each
// kVainTry-th only.
constexpr uint8_t kVain = 4, kVainTry = 16;
thread_local constinit uint8_t t_looks_in_vain = 0, t_looks_left_out = 0;

long look_before_wait(struct pollfd* fds, nfds_t n) {
  if (t_looks_in_vain == kVain && ++t_looks_left_out % kVainTry != 0) return 0;
  long r = poll_now(fds, n);
  if (r != 0) t_looks_in_vain = 0;
  else if (t_looks_in_vain < kVain) t_looks_in_vain++;
  return r;
}

// Parked, round by round. -EPERM and the like: not possible this way.
long poll_parked(struct pollfd* fds, nfds_t n, uint64_t deadline) {
  WatchSet s;
  if (!watch_room(s, static_cast<uint32_t>(2 * n))) return -EPERM;
  long r;
  for (;;) {
    if (!watch_all(s, fds, n)) {
      r = -EPERM;
      break;
    }
    r = surely_not_ready(fds, n, s) ? 0 : poll_now(fds, n);
    if (r != 0) break;
    SignalMark mark = signal_mark();
    int w = poll_watch_wait(s.w, s.n, deadline, Wait::kPoll);
    if (w == 0 || (w == -EINTR && io_wait_after_interrupt(mark))) continue;
    r = w == -ETIMEDOUT ? poll_now(fds, n) : w;
    break;
  }
  watch_free(s);
  return r;
}

long g_poll(struct pollfd* fds, nfds_t n, uint64_t deadline, const sigset_t* mask) {
  io_enter();
  long r;
  if (n != 0 && bad_pointer(fds)) return -EFAULT;
  if (mask != nullptr) {
    r = poll_in_kernel(fds, n, deadline, mask);
  } else if (n == 0 && fds == nullptr) {
    SignalMark mark;
    Reason why;
    do {
      mark = signal_mark();
      G* g = t_g;
      engine_enter(g);
      why = park_sleep(g, deadline, Wait::kPoll, true);
      engine_exit(g);
    } while (why != Reason::kTimeout && io_wait_after_interrupt(mark));
    r = why == Reason::kTimeout ? 0 : -EINTR;
  } else if (n <= kFewFds) {
    r = poll_parked(fds, n, deadline);
    if (r < 0 && r != -EINTR && r != -EFAULT) r = poll_in_kernel(fds, n, deadline, nullptr);
  } else {
    bool few = 2 * n <= WatchSet::kSmall;  // no memory is asked for before they are looked at
    r = few ? 0 : poll_now(fds, n);
    if (r == 0) {
      bool here = in_place_begin(kPollLoops);
      if (!here && n <= 1u << 20) r = poll_parked(fds, n, deadline);
      else if (!few || (r = look_before_wait(fds, n)) == 0) r = -EPERM;
      if (r < 0 && r != -EINTR) r = poll_in_kernel(fds, n, deadline, nullptr);
      if (here) in_place_end();
    }
  }
  if (r == -EINTR) cancel_point();
  return r;
}

// ---------------------------------------------------------------- select

constexpr size_t kWordBits = 8 * sizeof(unsigned long);

// The three sets as the kernel sees them, and a copy to try on.
struct Sets {
  int n;
  size_t bytes;  // of one set, whole words
  void* user[3];
  unsigned long small[3][1024 / kWordBits];
  char* copy;
  size_t mapped;
};

bool sets_begin(Sets& s, int n, fd_set* r, fd_set* w, fd_set* e) {
  s.n = n;
  s.bytes = round_up(static_cast<size_t>(n), kWordBits) / 8;
  s.user[0] = r;
  s.user[1] = w;
  s.user[2] = e;
  s.copy = reinterpret_cast<char*>(s.small);
  s.mapped = 0;
  if (n <= 1024) return true;
  s.mapped = round_up(3 * s.bytes, kPageBytes);
  void* mem = sys_mmap(nullptr, s.mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
  s.copy = static_cast<char*>(mem);
  return !sys_failed(mem);
}

void* try_set(Sets& s, int i) {
  return s.user[i] == nullptr ? nullptr : s.copy + static_cast<size_t>(i) * s.bytes;
}

// A try on the copies; what came out replaces the program's only if something is ready.
long select_now(Sets& s) {
  for (int i = 0; i < 3; i++)
    if (s.user[i] != nullptr) memcpy(try_set(s, i), s.user[i], s.bytes);
  struct timespec zero = {0, 0};
  long r = io_undisturbed([&] {
    return sys_call(SYS_pselect6, s.n, sys_arg(try_set(s, 0)), sys_arg(try_set(s, 1)),
                    sys_arg(try_set(s, 2)), sys_arg(&zero), 0);
  });
  if (r > 0)
    for (int i = 0; i < 3; i++)
      if (s.user[i] != nullptr) memcpy(s.user[i], try_set(s, i), s.bytes);
  return r;
}

template <class F>
void each_fd(const Sets& s, int which, F f) {
  if (s.user[which] == nullptr) return;
  for (size_t word = 0; word * sizeof(long) < s.bytes; word++) {
    unsigned long bits;
    memcpy(&bits, static_cast<char*>(s.user[which]) + word * sizeof bits, sizeof bits);
    for (; bits != 0; bits &= bits - 1) {
      int fd = static_cast<int>(word * kWordBits) + __builtin_ctzl(bits);
      if (fd < s.n) f(fd);
    }
  }
}

uint32_t count_fds(const Sets& s) {
  uint32_t n = 0;
  for (int i = 0; i < 3; i++) each_fd(s, i, [&](int) { n++; });
  return n;
}

long select_parked(Sets& s, uint32_t n, uint64_t deadline) {
  WatchSet ws;
  if (!watch_room(ws, n)) return -EPERM;
  long r;
  for (;;) {
    ws.n = 0;
    bool ok = true;
    for (int i = 0; i < 3; i++)
      each_fd(s, i, [&](int fd) { ok = ok && watch_add(ws, fd, i == 1 ? kPollOut : kPollIn); });
    r = ok ? select_now(s) : -EPERM;
    if (r != 0) break;
    SignalMark mark = signal_mark();
    int w = poll_watch_wait(ws.w, ws.n, deadline, Wait::kPoll);
    if (w == 0 || (w == -EINTR && io_wait_after_interrupt(mark))) continue;
    r = w == -ETIMEDOUT ? select_now(s) : w;
    break;
  }
  watch_free(ws);
  return r;
}

void clear_sets(Sets& s) {
  for (void* u : s.user)
    if (u != nullptr) memset(u, 0, s.bytes);
}

long select_in_kernel(Sets& s, uint64_t deadline, const sigset_t* mask) {
  KernelMask km(mask);
  struct {
    const uint64_t* set;
    size_t bytes;
  } m = {km.p, 8};
  auto call = [&] {
    Remaining rem;
    struct timespec* t = rem.set(deadline);
    return sys_call(SYS_pselect6, s.n, sys_arg(s.user[0]), sys_arg(s.user[1]), sys_arg(s.user[2]),
                    sys_arg(t), sys_arg(&m));
  };
  if (mask != nullptr) return io_masked_wait(mask, call);
  return io_undisturbed([&] { return in_cancel_syscall_block(call); });
}

long g_select(int n, fd_set* rd, fd_set* wr, fd_set* ex, uint64_t deadline, const sigset_t* mask) {
  io_enter();
  Sets s;
  if (n < 0) return -EINVAL;
  for (fd_set* set : {rd, wr, ex})
    if (set != nullptr && n > 0 && bad_pointer(set)) return -EFAULT;
  if (!sets_begin(s, n, rd, wr, ex)) return -ENOMEM;
  long r;
  if (mask != nullptr) {
    r = select_in_kernel(s, deadline, mask);
  } else {
    r = select_now(s);
    if (r == 0 && deadline > 1) {
      uint32_t count = count_fds(s);
      bool here = count > kFewFds && in_place_begin(kPollLoops);
      r = here ? -EPERM : select_parked(s, count, deadline);
      if (r < 0 && r != -EINTR && r != -EBADF) r = select_in_kernel(s, deadline, nullptr);
      else if (r == 0) clear_sets(s);
      if (here) in_place_end();
    } else if (r == 0) {
      clear_sets(s);
    }
  }
  if (s.mapped != 0) sys_munmap(s.copy, s.mapped);
  if (r == -EINTR) cancel_point();
  return r;
}

}  // namespace
}  // namespace weft

using namespace weft;

WEFT_EXPORT int poll(struct pollfd* fds, nfds_t n, int ms) {
  if (this_g() == nullptr) return real().poll(fds, n, ms);
  if (ms == 0) {
    io_enter();
    return static_cast<int>(errno_ret(poll_now(fds, n)));
  }
  return static_cast<int>(errno_ret(g_poll(fds, n, ms_deadline(ms), nullptr)));
}

WEFT_EXPORT int __poll_chk(struct pollfd* fds, nfds_t n, int ms, size_t room) {
  if (room / sizeof *fds < n) return real().__poll_chk(fds, n, ms, room);
  return poll(fds, n, ms);
}

WEFT_EXPORT int ppoll(struct pollfd* fds, nfds_t n, const struct timespec* t, const sigset_t* mask) {
  if (this_g() == nullptr) return real().ppoll(fds, n, t, mask);
  if (t != nullptr && bad_pointer(t)) return static_cast<int>(errno_ret(-EFAULT));
  if (t != nullptr && (!timespec_ok(t) || t->tv_sec < 0)) return static_cast<int>(errno_ret(-EINVAL));
  if (t != nullptr && t->tv_sec == 0 && t->tv_nsec == 0 && mask == nullptr) return poll(fds, n, 0);
  uint64_t deadline = t == nullptr ? kNever : deadline_in(t);
  return static_cast<int>(errno_ret(g_poll(fds, n, deadline, mask)));
}

WEFT_EXPORT int __ppoll_chk(struct pollfd* fds, nfds_t n, const struct timespec* t,
                            const sigset_t* mask, size_t room) {
  if (room / sizeof *fds < n) return real().__ppoll_chk(fds, n, t, mask, room);
  return ppoll(fds, n, t, mask);
}

WEFT_EXPORT int select(int n, fd_set* r, fd_set* w, fd_set* e, struct timeval* t) {
  if (this_g() == nullptr) return real().select(n, r, w, e, t);
  uint64_t deadline = kNever;
  if (t != nullptr) {
    if (bad_pointer(t)) return static_cast<int>(errno_ret(-EFAULT));
    if (t->tv_sec < 0 || t->tv_usec < 0) return static_cast<int>(errno_ret(-EINVAL));
    struct timespec ts = {t->tv_sec + t->tv_usec / 1000000, t->tv_usec % 1000000 * 1000};
    deadline = ts.tv_sec == 0 && ts.tv_nsec == 0 ? 1 : deadline_in(&ts);
  }
  long got = g_select(n, r, w, e, deadline, nullptr);
  if (t != nullptr && deadline != 1 && deadline != kNever) {  // Linux tells what was left
    Remaining rem;
    rem.set(deadline);
    *t = {rem.ts.tv_sec, rem.ts.tv_nsec / 1000};
  }
  return static_cast<int>(errno_ret(got));
}

WEFT_EXPORT int pselect(int n, fd_set* r, fd_set* w, fd_set* e, const struct timespec* t,
                        const sigset_t* mask) {
  if (this_g() == nullptr) return real().pselect(n, r, w, e, t, mask);
  if (t != nullptr && bad_pointer(t)) return static_cast<int>(errno_ret(-EFAULT));
  if (t != nullptr && (!timespec_ok(t) || t->tv_sec < 0)) return static_cast<int>(errno_ret(-EINVAL));
  uint64_t deadline = t == nullptr ? kNever : t->tv_sec == 0 && t->tv_nsec == 0 ? 1 : deadline_in(t);
  return static_cast<int>(errno_ret(g_select(n, r, w, e, deadline, mask)));
}

WEFT_TWIN(int, __poll, poll, (struct pollfd*, nfds_t, int));
WEFT_TWIN(int, __select, select, (int, fd_set*, fd_set*, fd_set*, struct timeval*));

// xid.cc - setuid and its family: the ids of all threads change, as POSIX says.
//
// The kernel keeps ids per thread. libc signals (33) every thread on its lists and waits
// until each has marked its own struct pthread; an M that runs a G has that G's TCB in FS,
// so the mark would land elsewhere and libc would signal the M for ever. Hence our own
// broadcast, over kernel threads:
//
//   1  the caller makes the call itself; an error ends it here
//   2  list the tasks of the process (/proc/self/task; without it, our Ms)
//   3  each not yet done: put its tid into the order, tgkill 33, wait until it says done
//   4  again from 2 until a round finds nobody new: threads born meanwhile inherit from a
//      creator that may have been late
//
// Signal 33 is never blocked in any thread but for moments (fork's window). A thread that
// ends instead of answering is seen by tgkill's ESRCH. The handler does one system call
// and touches nothing of weft, so it may run anywhere, the engine and g0 included; a 33
// that is not ours goes to libc's handler.
#include <fcntl.h>
#include <grp.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#include "preload/api.h"
#include "preload/vfork.h"

namespace weft {
namespace {

constexpr int kSigSetxid = 33;
constexpr uint64_t kRecheckNs = 2'000'000;  // how often a silent thread is looked for

struct KernelAction {
  void (*handler)(int, siginfo_t*, void*);
  unsigned long flags;
  void (*restorer)();
  uint64_t mask;
};

struct Order {
  long nr, a, b, c;
  std::atomic<int> tid{0};        // who is to carry it out; 0 nobody
  std::atomic<uint32_t> done{0};  // futex of the caller
  long result = 0;
};
Order order;
KernelAction libc_action;
bool installed;
std::atomic<uint32_t> xid_word{0};  // one broadcast at a time: 0 free, 1 held, 2 and waited for

void on_signal(int sig, siginfo_t* info, void* context) {
  int me = sys_gettid();
  // Acquire: pairs with the caller's store after it filled the order.
  if (order.tid.load(std::memory_order_acquire) != me) {
    if (libc_action.handler != nullptr && reinterpret_cast<uintptr_t>(libc_action.handler) > 1)
      libc_action.handler(sig, info, context);
    return;
  }
  order.result = sys_call(order.nr, order.a, order.b, order.c);
  order.tid.store(0, std::memory_order_relaxed);
  order.done.store(1, std::memory_order_release);
  sys_futex_wake(&order.done, 1);
}

// The restorer and the mask are taken from libc's own action for this signal.
bool install() {
  if (installed) return true;
  if (sys_call(SYS_rt_sigaction, kSigSetxid, 0, sys_arg(&libc_action), 8) != 0) return false;
  KernelAction ours = libc_action;
  if (ours.restorer == nullptr) return false;  // libc has no threads: nobody to tell
  ours.handler = on_signal;
  ours.flags |= SA_SIGINFO | SA_RESTART;
  ours.flags &= ~static_cast<unsigned long>(SA_ONSTACK);
  ours.mask = ~uint64_t{0};
  if (sys_call(SYS_rt_sigaction, kSigSetxid, sys_arg(&ours), 0, 8) != 0) return false;
  installed = true;
  return true;
}

void tell(int tid) {
  int pid = sys_getpid();
  order.done.store(0, std::memory_order_relaxed);
  order.tid.store(tid, std::memory_order_release);
  if (sys_call(SYS_tgkill, pid, tid, kSigSetxid) == 0) {
    while (order.done.load(std::memory_order_acquire) == 0) {
      sys_futex_wait(&order.done, 0, host_now_ns() + kRecheckNs);
      int expected = tid;
      if (sys_call(SYS_tgkill, pid, tid, 0) != 0 &&
          order.tid.compare_exchange_strong(expected, 0, std::memory_order_acq_rel))
        return;  // it ended without answering
    }
    // libc's rule: half-changed ids are worse than an end.
    CHECK(order.result >= 0);
  }
  order.tid.store(0, std::memory_order_relaxed);
}

// Sorted by arrival; a page's worth of tids, then more by doubling.
struct Seen {
  int* tids = nullptr;
  size_t n = 0, cap = 0;
  bool has(int tid) const {
    for (size_t i = 0; i < n; i++)
      if (tids[i] == tid) return true;
    return false;
  }
  void add(int tid) {
    if (n == cap) {
      size_t want = cap == 0 ? kPageBytes / sizeof(int) : cap * 2;
      void* mem = sys_mmap(nullptr, want * sizeof(int), PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS);
      CHECK(!sys_failed(mem));
      if (cap != 0) {
        memcpy(mem, tids, n * sizeof(int));
        sys_munmap(tids, cap * sizeof(int));
      }
      tids = static_cast<int*>(mem);
      cap = want;
    }
    tids[n++] = tid;
  }
  void drop() {
    if (cap != 0) sys_munmap(tids, cap * sizeof(int));
  }
};

bool tell_once(Seen& seen, int tid) {
  if (tid <= 0 || seen.has(tid)) return false;
  seen.add(tid);
  tell(tid);
  return true;
}

struct Dirent {
  uint64_t ino;
  int64_t off;
  unsigned short reclen;
  unsigned char type;
  char name[1];
};

// One round over /proc/self/task. -1: not readable (chroot); else how many were new.
int round_proc(Seen& seen) {
  long fd = sys_call(SYS_openat, AT_FDCWD, sys_arg("/proc/self/task"),
                     O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return -1;
  int fresh = 0;
  alignas(8) char buf[2048];
  long n;
  while ((n = sys_call(SYS_getdents64, fd, sys_arg(&buf[0]), sizeof buf)) > 0)
    for (long at = 0; at < n;) {
      auto* d = reinterpret_cast<Dirent*>(buf + at);
      at += d->reclen;
      int tid = 0;
      for (const char* s = d->name; *s >= '0' && *s <= '9'; s++) tid = tid * 10 + (*s - '0');
      fresh += tell_once(seen, tid);
    }
  sys_call(SYS_close, fd);
  return fresh;
}

int round_ms(Seen& seen) {
  int fresh = 0;
  for (M* m = sched.all_m.load(std::memory_order_acquire); m != nullptr; m = m->all_next)
    fresh += tell_once(seen, m->tid.load(std::memory_order_relaxed));
  return fresh;
}

long broadcast(long nr, long a, long b, long c) {
  long r = sys_call(nr, a, b, c);
  if (r < 0 || !install()) return r;
  order.nr = nr;
  order.a = a;
  order.b = b;
  order.c = c;
  Seen seen;
  seen.add(sys_gettid());
  int fresh;
  do {
    fresh = round_proc(seen);
    if (fresh < 0) fresh = round_ms(seen);
  } while (fresh > 0);
  seen.drop();
  return r;
}

void xid_lock() {
  uint32_t free = 0;
  if (xid_word.compare_exchange_strong(free, 1, std::memory_order_acquire)) return;
  while (xid_word.exchange(2, std::memory_order_acquire) != 0)
    gfutex_wait(&xid_word, 2, kNever, Wait::kOther);
}
void xid_unlock() {
  if (xid_word.exchange(0, std::memory_order_release) == 2) gfutex_wake(&xid_word, 1);
}

// The caller stays on its kernel thread throughout: its M is one of those that changed.
long all_threads(long nr, long a, long b = 0, long c = 0) {
  xid_lock();
  G* g = this_g();
  if (g != nullptr) engine_enter(g);
  long r = broadcast(nr, a, b, c);
  if (g != nullptr) engine_exit(g);
  xid_unlock();
  return r;
}

// f(): libc's function, for a process without Gs. A vfork child's ids are its own alone.
template <class F>
int change(F libc, long nr, long a, long b = 0, long c = 0) {
  if (in_vfork_child()) return static_cast<int>(errno_ret(sys_call(nr, a, b, c)));
  if (!sched.booted.load(std::memory_order_acquire)) return libc();
  return static_cast<int>(errno_ret(all_threads(nr, a, b, c)));
}

constexpr long kKeep = -1;
long id(unsigned v) { return static_cast<long>(static_cast<int>(v)); }

int invalid() {
  errno = EINVAL;
  return -1;
}

}  // namespace

void xid_after_fork() {
  order.tid.store(0, std::memory_order_relaxed);
  xid_word.store(0, std::memory_order_relaxed);
}

}  // namespace weft

using namespace weft;

WEFT_EXPORT int setuid(uid_t u) {
  return change([&] { return real().setuid(u); }, SYS_setuid, id(u));
}
WEFT_EXPORT int setgid(gid_t g) {
  return change([&] { return real().setgid(g); }, SYS_setgid, id(g));
}
WEFT_EXPORT int seteuid(uid_t u) {
  if (u == static_cast<uid_t>(-1)) return invalid();
  return change([&] { return real().seteuid(u); }, SYS_setresuid, kKeep, id(u), kKeep);
}
WEFT_EXPORT int setegid(gid_t g) {
  if (g == static_cast<gid_t>(-1)) return invalid();
  return change([&] { return real().setegid(g); }, SYS_setresgid, kKeep, id(g), kKeep);
}
WEFT_EXPORT int setreuid(uid_t r, uid_t e) {
  return change([&] { return real().setreuid(r, e); }, SYS_setreuid, id(r), id(e));
}
WEFT_EXPORT int setregid(gid_t r, gid_t e) {
  return change([&] { return real().setregid(r, e); }, SYS_setregid, id(r), id(e));
}
WEFT_EXPORT int setresuid(uid_t r, uid_t e, uid_t s) {
  return change([&] { return real().setresuid(r, e, s); }, SYS_setresuid, id(r), id(e), id(s));
}
WEFT_EXPORT int setresgid(gid_t r, gid_t e, gid_t s) {
  return change([&] { return real().setresgid(r, e, s); }, SYS_setresgid, id(r), id(e), id(s));
}
WEFT_EXPORT int setgroups(size_t n, const gid_t* groups) {
  return change([&] { return real().setgroups(n, groups); }, SYS_setgroups, sys_arg(n),
                sys_arg(groups));
}

// libc's own would call its own setgroups.
WEFT_EXPORT int initgroups(const char* user, gid_t group) {
  if (!sched.booted.load(std::memory_order_acquire)) return real().initgroups(user, group);
  constexpr int kMost = 65536;  // NGROUPS_MAX
  void* mem = sys_mmap(nullptr, kMost * sizeof(gid_t), PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS);
  if (sys_failed(mem)) {
    errno = ENOMEM;
    return -1;
  }
  auto* groups = static_cast<gid_t*>(mem);
  int n = kMost;
  int r = getgrouplist(user, group, groups, &n);
  if (r >= 0) r = setgroups(static_cast<size_t>(n), groups);
  int saved = errno;
  sys_munmap(mem, kMost * sizeof(gid_t));
  errno = saved;
  return r;
}

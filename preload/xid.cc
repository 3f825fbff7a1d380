// xid.cc - setuid and its family: the ids of all threads change, as POSIX says.
//
// The kernel keeps ids per thread. libc signals (33) every thread on its lists and waits
// until each has marked its own struct pthread; an M that runs a G has that G's TCB in FS,
// so the mark would land elsewhere and libc would signal the M for ever. Hence our own
// broadcast, over kernel threads:
//
//   1  the caller makes the call itself; an error ends it here
//   2  list the tasks of the process (/proc/self/task; without it, our Ms)
//   3  each not yet done makes the call too (kcall.h), one after the other
//   4  again from 2 until a round finds nobody new: threads born meanwhile inherit from a
//      creator that may have been late
//
// Known limit: in a chroot without /proc, threads of libc's own (timers, aio) are missed.
#include <fcntl.h>
#include <grp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "preload/api.h"
#include "preload/kcall.h"
#include "preload/tasks.h"
#include "preload/vfork.h"

namespace weft {
namespace {

// In order of arrival: a page of tids, then more by doubling.
struct Seen {
  int* tids = nullptr;
  size_t n = 0, cap = 0;
  bool refused = false;  // by a thread whose ids were not those of the caller
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

bool tell_once(Seen& seen, int tid, KCall& call) {
  if (tid <= 0 || seen.has(tid)) return false;
  seen.add(tid);
  if (kcall_on(tid, &call) && call.result < 0) seen.refused = true;
  return true;
}

// One round over the kernel's list. -1: not readable; else how many were new.
int round_proc(Seen& seen, KCall& call) {
  int fresh = 0;
  return each_task([&](int tid) { fresh += tell_once(seen, tid, call); }) ? fresh : -1;
}

int round_ms(Seen& seen, KCall& call) {
  int fresh = 0;
  for (M* m = sched.all_m.load(std::memory_order_acquire); m != nullptr; m = m->all_next)
    fresh += tell_once(seen, m->tid.load(std::memory_order_relaxed), call);
  return fresh;
}

long broadcast(KCall& call, bool* refused) {
  long r = sys_call(call.nr, call.a, call.b, call.c);
  if (r < 0) return r;
  Seen seen;
  seen.add(sys_gettid());
  int fresh;
  do {
    fresh = round_proc(seen, call);
    if (fresh < 0) fresh = round_ms(seen, call);
  } while (fresh > 0);
  seen.drop();
  *refused = seen.refused;
  return r;
}

// The caller stays on its kernel thread throughout: its M is one of those that changed.
long all_threads(long nr, long a, long b = 0, long c = 0) {
  KCall call{nr, a, b, c};
  kcall_lock();
  G* g = this_g();
  if (g != nullptr) engine_enter(g);
  bool refused = false;
  long r = broadcast(call, &refused);
  if (g != nullptr) engine_exit(g);
  kcall_unlock();
  if (refused) abort();  // libc's rule: half-changed ids are worse than an end
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

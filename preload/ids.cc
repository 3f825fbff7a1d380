// ids.cc - see ids.h; gettid().
#include "preload/ids.h"

#include <sched.h>
#include <string.h>
#include <sys/resource.h>

#include "preload/fork.h"
#include "preload/tcb.h"
#include "preload/thread.h"
#include "preload/wire.h"

namespace weft {

thread_local constinit uint32_t t_own_id = 0;

namespace {

size_t tid_offset = 0;  // in a TCB; 0: not known (yet)

constexpr pid_t kFirstVirtual = 1 << 22;  // PID_MAX_LIMIT; see thread.cc

bool lives_as(const G* g, pid_t vtid) {
  return g != nullptr && g->thread != nullptr && static_cast<pid_t>(g->vtid) == vtid &&
         thread_of(g)->alive.load(std::memory_order_acquire);
}

}  // namespace

void ids_begin() {
  fork_hooks_install();
  if (tid_offset == 0) tid_offset = tcb_tid_offset();
}

uint32_t self_id_slow() {
  if (tid_offset == 0) return static_cast<uint32_t>(sys_gettid());
  uint32_t id;
  memcpy(&id, static_cast<const char*>(__builtin_thread_pointer()) + tid_offset, sizeof id);
  if (!raw_fork_child) t_own_id = id;
  return id;
}

namespace {

// A kernel thread that is as every unwired one: not the caller's, if that is wired.
pid_t plain_ktid() {
  if (this_g() != nullptr) return 0;
  for (M* m = sched.all_m.load(std::memory_order_acquire); m != nullptr; m = m->all_next) {
    G* g = m->curg.load(std::memory_order_acquire);
    int tid = m->tid.load(std::memory_order_relaxed);
    if (tid != 0 && !m->dying_g_wired && (g == nullptr || !g->wired)) return tid;
  }
  return 0;
}

}  // namespace

G* g_of_vtid(pid_t vtid) {
  if (!sched.booted.load(std::memory_order_acquire)) return nullptr;
  G* first = first_thread();
  if (lives_as(first, vtid)) return first;
  if (vtid < kFirstVirtual) return nullptr;
  for (G* g = all_gs_first(); g != nullptr; g = g->all_next)
    if (lives_as(g, vtid)) return g;
  return nullptr;
}

Target resolve_g(G* g) {
  Target t;
  t.g = g;
  t.self = g == t_g;
  t.wired = g->wired;
  if (t.wired && !t.self) wish_settle(g);
  if (!t.self) t.ktid = t.wired ? g->m->tid.load(std::memory_order_relaxed) : plain_ktid();
  return t;
}

Target resolve_tid(pid_t tid) {
  G* g = nullptr;
  if (tid == 0) {
    if (t_g != nullptr && !t_g->is_g0) g = t_g;
  } else {
    g = g_of_vtid(tid);
  }
  if (g != nullptr) return resolve_g(g);
  Target t;
  t.wired = true;
  t.ktid = tid;
  return t;
}

namespace {

// getpriority, setpriority, ioprio_*: (which, who) where which 0 or 1 means a thread.
long with_ktid(long nr, const long a[6], int at) {
  Target t = resolve_tid(static_cast<pid_t>(a[at]));
  long b[6] = {a[0], a[1], a[2], a[3], a[4], a[5]};
  if (t.g != nullptr) b[at] = t.ktid;
  return sys_call(nr, b[0], b[1], b[2], b[3], b[4], b[5]);
}

long self_or_plain(const char* why, long nr, const long a[6], int at) {
  Target t = resolve_tid(static_cast<pid_t>(a[at]));
  if (t.g == nullptr || t.wired) return with_ktid(nr, a, at);
  if (!t.self) return -EPERM;  // sched_setattr, ioprio_set for another, unwired thread
  long b[6] = {a[0], a[1], a[2], a[3], a[4], a[5]};
  b[at] = 0;
  return native_self(why, [&] { return sys_call(nr, b[0], b[1], b[2], b[3], b[4], b[5]); });
}

long raw_fork(long nr, const long a[6]) {
  fork_begin();
  long pid = sys_call(nr, a[0], a[1], a[2], a[3], a[4], a[5]);
  if (pid == 0) fork_in_raw_child();
  else fork_in_parent();
  return pid;
}

bool sched_syscall(long nr, const long a[6], long* r) {
  auto tid = static_cast<pid_t>(a[0]);
  auto* param = reinterpret_cast<struct sched_param*>(a[1]);
  switch (nr) {
    case SYS_sched_setaffinity:
      *r = do_sched_setaffinity(resolve_tid(tid), static_cast<size_t>(a[1]),
                                reinterpret_cast<const void*>(a[2]));
      return true;
    case SYS_sched_getaffinity:
      *r = do_sched_getaffinity(resolve_tid(tid), static_cast<size_t>(a[1]),
                                reinterpret_cast<void*>(a[2]));
      return true;
    case SYS_sched_setscheduler:
      *r = do_sched_setscheduler(resolve_tid(tid), static_cast<int>(a[1]),
                                 reinterpret_cast<const struct sched_param*>(a[2]));
      return true;
    case SYS_sched_getscheduler: *r = do_sched_getscheduler(resolve_tid(tid)); return true;
    case SYS_sched_setparam: *r = do_sched_setparam(resolve_tid(tid), param); return true;
    case SYS_sched_getparam: *r = do_sched_getparam(resolve_tid(tid), param); return true;
    case SYS_sched_rr_get_interval:
    case SYS_sched_getattr: *r = with_ktid(nr, a, 0); return true;
    case SYS_sched_setattr: *r = self_or_plain("sched_setattr", nr, a, 0); return true;
    default: return false;
  }
}

bool id_syscall(long nr, const long a[6], long* r) {
  switch (nr) {
    case SYS_gettid: *r = t_g->vtid; return true;
    case SYS_setpriority:
      if (a[0] != PRIO_PROCESS) return false;
      *r = do_setpriority(resolve_tid(static_cast<pid_t>(a[1])), static_cast<int>(a[2]));
      return true;
    case SYS_getpriority:
      if (a[0] != PRIO_PROCESS) return false;
      *r = do_getpriority(resolve_tid(static_cast<pid_t>(a[1])));
      return true;
    case SYS_ioprio_set:
    case SYS_ioprio_get:
      if (a[0] != 1 /*IOPRIO_WHO_PROCESS*/) return false;
      *r = nr == SYS_ioprio_get ? with_ktid(nr, a, 1) : self_or_plain("ioprio_set", nr, a, 1);
      return true;
    case SYS_fork: *r = raw_fork(nr, a); return true;
    case SYS_clone:
      if ((a[0] & CLONE_VM) != 0) return false;
      *r = raw_fork(nr, a);
      return true;
    case SYS_prctl: *r = do_prctl(a); return true;
    default: return false;
  }
}

}  // namespace

bool process_syscall(long nr, const long a[6], long* result) {
  if (t_g == nullptr || t_g->is_g0) {
    // Foreign or unbooted: only numbers that name a G, and forks, need us.
    if (!sched.booted.load(std::memory_order_relaxed)) return false;
    if (nr == SYS_gettid || nr == SYS_prctl) return false;
    return sched_syscall(nr, a, result) || id_syscall(nr, a, result);
  }
  if (sched_syscall(nr, a, result) || id_syscall(nr, a, result)) return true;
  long r = do_thread_state(nr, a);
  if (r == -ENOSYS) return false;
  *result = r;
  return true;
}

}  // namespace weft

using namespace weft;

WEFT_EXPORT pid_t gettid(void) {
  G* g = t_g;
  if (g != nullptr && !g->is_g0) return static_cast<pid_t>(g->vtid);
  return sys_gettid();
}

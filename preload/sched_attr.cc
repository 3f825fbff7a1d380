// sched_attr.cc - policy, priority, nice and affinity of threads.
//
// A G that asks for what only a kernel thread has is wired and gets it. What every thread
// has anyway (the present policy, the mask of the process) needs no wiring. A setter for
// another, unwired thread is tried out on the caller's own kernel thread first, so that
// its error is the native one, then left as a wish (wire.h).
//
// Of a wired thread libc notes policy and priority too: by pthread_t it is libc that sets
// and answers them, as it alone knows what a held priority ceiling has added.
#include <limits.h>
#include <sched.h>
#include <string.h>
#include <sys/resource.h>

#include "preload/ids.h"
#include "preload/thread.h"
#include "preload/wire.h"

namespace weft {
namespace {

struct Sched2 {  // policy and priority together
  int policy;
  int priority;
};

Sched2 sched_now(pid_t ktid) {
  struct sched_param p = {};
  Sched2 s;
  s.policy = static_cast<int>(sys_call(SYS_sched_getscheduler, ktid));
  sys_call(SYS_sched_getparam, ktid, sys_arg(&p));
  s.priority = p.sched_priority;
  return s;
}

long raw_setscheduler(pid_t ktid, int policy, int priority) {
  struct sched_param p = {};
  p.sched_priority = priority;
  return sys_call(SYS_sched_setscheduler, ktid, policy, sys_arg(&p));
}

// A wish that is not there (any more) has been carried out: its thread is wired by now, so
// look at it again after wish_get said no.
Target now_of(const Target& t) { return t.g == nullptr ? t : resolve_g(t.g); }

long no_memory_unless(bool ok) { return ok ? 0 : -ENOMEM; }

}  // namespace

// ---------------------------------------------------------------- policy

long do_sched_setscheduler(const Target& t, int policy, const struct sched_param* p) {
  if (t.wired) return sys_call(SYS_sched_setscheduler, t.ktid, policy, sys_arg(p));
  if (p == nullptr) return -EINVAL;
  Sched2 want{policy, p->sched_priority};
  Wish w;
  bool wished = wish_get(t.g, &w) && w.has_sched;
  if (!wished && t.g->wired) return sys_call(SYS_sched_setscheduler, now_of(t).ktid, policy, sys_arg(p));
  Sched2 now = sched_now(0);
  if (!wished && now.policy == want.policy && now.priority == want.priority) return 0;
  if (t.self)
    return native_self("scheduling policy",
                       [&] { return raw_setscheduler(0, want.policy, want.priority); });
  long r = try_out([&] {
    Sched2 old = sched_now(0);
    long err = raw_setscheduler(0, want.policy, want.priority);
    if (err >= 0) raw_setscheduler(0, old.policy, old.priority);
    return err;
  });
  if (r < 0) return r;
  return no_memory_unless(wish_add(
      t.g,
      [](Wish* to, const void* arg) {
        auto* s = static_cast<const Sched2*>(arg);
        to->has_sched = true;
        to->policy = s->policy;
        to->priority = s->priority;
      },
      &want));
}

long do_sched_setparam(const Target& t, const struct sched_param* p) {
  if (t.wired) return sys_call(SYS_sched_setparam, t.ktid, sys_arg(p));
  long policy = do_sched_getscheduler(t);
  if (policy < 0) return policy;
  return do_sched_setscheduler(t, static_cast<int>(policy), p);
}

long do_sched_getscheduler(const Target& t) {
  Wish w;
  if (t.g != nullptr && wish_get(t.g, &w) && w.has_sched) return w.policy;
  return sys_call(SYS_sched_getscheduler, now_of(t).ktid);
}

long do_sched_getparam(const Target& t, struct sched_param* p) {
  Wish w;
  if (p != nullptr && t.g != nullptr && wish_get(t.g, &w) && w.has_sched) {
    p->sched_priority = w.priority;
    return 0;
  }
  return sys_call(SYS_sched_getparam, now_of(t).ktid, sys_arg(p));
}

// ---------------------------------------------------------------- nice

long do_getpriority(const Target& t) {
  Wish w;
  if (t.g != nullptr && wish_get(t.g, &w) && w.has_nice) return 20 - w.nice;
  return sys_call(SYS_getpriority, PRIO_PROCESS, now_of(t).ktid);
}

long do_setpriority(const Target& t, int nice) {
  if (t.wired) return sys_call(SYS_setpriority, PRIO_PROCESS, t.ktid, nice);
  int want = nice < -20 ? -20 : nice > 19 ? 19 : nice;
  int now = 20 - static_cast<int>(do_getpriority(t));
  if (want == now) return 0;
  if (t.g->wired) return sys_call(SYS_setpriority, PRIO_PROCESS, now_of(t).ktid, want);
  if (t.self)
    return native_self("nice value",
                       [&] { return sys_call(SYS_setpriority, PRIO_PROCESS, 0, want); });
  if (want < now) {  // only that needs permission, and only that can be taken back
    long r = try_out([&] {
      long old = 20 - sys_call(SYS_getpriority, PRIO_PROCESS, 0);
      long err = sys_call(SYS_setpriority, PRIO_PROCESS, 0, want);
      if (err >= 0) sys_call(SYS_setpriority, PRIO_PROCESS, 0, old);
      return err;
    });
    if (r < 0) return r;
  }
  return no_memory_unless(wish_add(
      t.g,
      [](Wish* to, const void* arg) {
        to->has_nice = true;
        to->nice = *static_cast<const int*>(arg);
      },
      &want));
}

// ---------------------------------------------------------------- affinity

namespace {

struct Mask {
  unsigned char bits[kMaskBytes] = {};
  size_t bytes = 0;  // what the kernel fills in
};

long mask_now(Mask* m) {
  long r = sys_call(SYS_sched_getaffinity, 0, kMaskBytes, sys_arg(&m->bits[0]));
  if (r > 0) m->bytes = static_cast<size_t>(r);
  return r;
}

bool same(const Mask& a, const Mask& b) {
  return a.bytes == b.bytes && memcmp(a.bits, b.bits, a.bytes) == 0;
}

// Sets and looks at what the kernel made of it: 0 nothing new, 1 changed (and put back when
// `put_back`), or -errno.
long set_mask(size_t bytes, const void* mask, bool put_back) {
  Mask before, after;
  mask_now(&before);
  long r = sys_call(SYS_sched_setaffinity, 0, sys_arg(bytes), sys_arg(mask));
  if (r < 0) return r;
  mask_now(&after);
  if (same(before, after)) return 0;
  if (put_back) sys_call(SYS_sched_setaffinity, 0, sys_arg(before.bytes), sys_arg(&before.bits[0]));
  return 1;
}

}  // namespace

long do_sched_setaffinity(const Target& t, size_t bytes, const void* mask) {
  if (t.wired) return sys_call(SYS_sched_setaffinity, t.ktid, sys_arg(bytes), sys_arg(mask));
  if (t.self) {
    G* g = t.g;
    enter_to_stay(g);
    long r = set_mask(bytes, mask, false);
    if (r > 0) wire_thread("CPU affinity");
    else engine_exit(g);
    return r < 0 ? r : 0;
  }
  long r = try_out([&] { return set_mask(bytes, mask, true); });
  Wish w;
  if (r < 0) return r;
  bool wished = wish_get(t.g, &w) && w.has_mask;
  if (!wished && t.g->wired)
    return sys_call(SYS_sched_setaffinity, now_of(t).ktid, sys_arg(bytes), sys_arg(mask));
  if (!wished && r == 0) return 0;
  struct Arg {
    size_t bytes;
    const void* mask;
  } arg{bytes < kMaskBytes ? bytes : kMaskBytes, mask};
  return no_memory_unless(wish_add(
      t.g,
      [](Wish* to, const void* p) {
        auto* a = static_cast<const Arg*>(p);
        to->has_mask = true;
        to->mask_bytes = a->bytes;
        memcpy(to->mask, a->mask, a->bytes);
      },
      &arg));
}

long do_sched_getaffinity(const Target& t, size_t bytes, void* mask) {
  Wish w;
  bool wished = t.g != nullptr && wish_get(t.g, &w) && w.has_mask;
  long r = sys_call(SYS_sched_getaffinity, now_of(t).ktid, sys_arg(bytes), sys_arg(mask));
  if (r <= 0 || !wished) return r;
  auto* out = static_cast<unsigned char*>(mask);
  for (size_t i = 0; i < static_cast<size_t>(r); i++)
    out[i] = i < w.mask_bytes ? static_cast<unsigned char>(out[i] & w.mask[i]) : 0;
  return r;
}

}  // namespace weft

using namespace weft;

// ---------------------------------------------------------------- by tid

WEFT_EXPORT int sched_setscheduler(pid_t tid, int policy, const struct sched_param* p) {
  return static_cast<int>(errno_ret(do_sched_setscheduler(resolve_tid(tid), policy, p)));
}
WEFT_EXPORT int sched_getscheduler(pid_t tid) {
  return static_cast<int>(errno_ret(do_sched_getscheduler(resolve_tid(tid))));
}
WEFT_EXPORT int sched_setparam(pid_t tid, const struct sched_param* p) {
  return static_cast<int>(errno_ret(do_sched_setparam(resolve_tid(tid), p)));
}
WEFT_EXPORT int sched_getparam(pid_t tid, struct sched_param* p) {
  return static_cast<int>(errno_ret(do_sched_getparam(resolve_tid(tid), p)));
}
WEFT_EXPORT int __sched_setscheduler(pid_t tid, int policy, const struct sched_param* p) {
  return sched_setscheduler(tid, policy, p);
}
WEFT_EXPORT int __sched_getscheduler(pid_t tid) { return sched_getscheduler(tid); }
WEFT_EXPORT int __sched_getparam(pid_t tid, struct sched_param* p) { return sched_getparam(tid, p); }

WEFT_EXPORT int sched_rr_get_interval(pid_t tid, struct timespec* out) {
  Target t = resolve_tid(tid);
  return static_cast<int>(errno_ret(sys_call(SYS_sched_rr_get_interval, t.ktid, sys_arg(out))));
}

WEFT_EXPORT int sched_setaffinity(pid_t tid, size_t bytes, const cpu_set_t* mask) {
  return static_cast<int>(errno_ret(do_sched_setaffinity(resolve_tid(tid), bytes, mask)));
}

namespace {

// libc's form of the answer: 0, and zeros behind what the kernel wrote.
long getaffinity_filled(const Target& t, size_t bytes, cpu_set_t* mask) {
  long r = do_sched_getaffinity(t, bytes < INT_MAX ? bytes : INT_MAX, mask);
  if (r < 0) return r;
  memset(reinterpret_cast<char*>(mask) + r, 0, bytes - static_cast<size_t>(r));
  return 0;
}

}  // namespace

WEFT_EXPORT int sched_getaffinity(pid_t tid, size_t bytes, cpu_set_t* mask) {
  return static_cast<int>(errno_ret(getaffinity_filled(resolve_tid(tid), bytes, mask)));
}

WEFT_EXPORT int setpriority(__priority_which_t which, id_t who, int nice) {
  if (which != PRIO_PROCESS)
    return static_cast<int>(errno_ret(sys_call(SYS_setpriority, which, who, nice)));
  return static_cast<int>(errno_ret(do_setpriority(resolve_tid(static_cast<pid_t>(who)), nice)));
}

WEFT_EXPORT int getpriority(__priority_which_t which, id_t who) {
  long r = which != PRIO_PROCESS ? sys_call(SYS_getpriority, which, who)
                                 : do_getpriority(resolve_tid(static_cast<pid_t>(who)));
  return r < 0 ? static_cast<int>(errno_ret(r)) : 20 - static_cast<int>(r);
}

WEFT_EXPORT int nice(int increment) {
  Target t = resolve_tid(0);
  long now = 20 - do_getpriority(t);
  long want = now + increment;
  want = want < -20 ? -20 : want > 19 ? 19 : want;
  long r = do_setpriority(t, static_cast<int>(want));
  if (r == -EACCES) r = -EPERM;
  return r < 0 ? static_cast<int>(errno_ret(r)) : static_cast<int>(want);
}

// ---------------------------------------------------------------- by pthread_t

namespace {

// Null: libc's own thread (or nothing booted): the real function. *err: ESRCH when ended.
G* thread_target(pthread_t pt, int* err) {
  if (!sched.booted.load(std::memory_order_acquire)) return nullptr;
  G* g = g_of(pt);
  *err = g != nullptr && !thread_of(g)->alive.load(std::memory_order_acquire) ? ESRCH : 0;
  return g;
}

// g, wired, may be about to tell libc what scheduling it has (wire.cc): a change that came
// between its look and its telling would be lost.
void wait_told(const G* g) {
  const Thread* t = thread_of(g);
  while (!t->libc_told.load(std::memory_order_acquire) && t->alive.load(std::memory_order_acquire))
    sys_sched_yield();
}

// t is libc's to ask about.
bool libc_knows(const Target& t) {
  if (t.wired && !t.self) wait_told(t.g);
  return t.wired;
}

// After a change made past libc: it is libc's to make again if the thread has been wired meanwhile.
bool libc_knows_now(const Target& t) {
  if (!t.g->wired) return false;
  if (!t.self) wait_told(t.g);
  return true;
}

int positive(long r) { return r < 0 ? static_cast<int>(-r) : 0; }

}  // namespace

// libc's two do not look whether the thread has ended, and its tid is 0 then: the caller's.
// Null: libc is to be asked about `pt`.
static G* affinity_target(pthread_t& pt) {
  int err = 0;
  G* g = thread_target(pt, &err);
  if (err == 0) return g;
  if (t_g != nullptr && !t_g->is_g0) return t_g;
  pt = reinterpret_cast<pthread_t>(__builtin_thread_pointer());
  return nullptr;
}

WEFT_EXPORT int pthread_setaffinity_np(pthread_t pt, size_t bytes, const cpu_set_t* mask) {
  G* g = affinity_target(pt);
  if (g == nullptr) return real().pthread_setaffinity_np(pt, bytes, mask);
  return positive(do_sched_setaffinity(resolve_g(g), bytes, mask));
}

WEFT_EXPORT int pthread_getaffinity_np(pthread_t pt, size_t bytes, cpu_set_t* mask) {
  G* g = affinity_target(pt);
  if (g == nullptr) return real().pthread_getaffinity_np(pt, bytes, mask);
  return positive(getaffinity_filled(resolve_g(g), bytes, mask));
}

WEFT_EXPORT int pthread_setschedparam(pthread_t pt, int policy, const struct sched_param* p) {
  int err = 0;
  G* g = thread_target(pt, &err);
  if (g == nullptr) return real().pthread_setschedparam(pt, policy, p);
  if (err != 0) return err;
  Target t = resolve_g(g);
  if (!libc_knows(t)) {
    long r = do_sched_setscheduler(t, policy, p);
    if (r < 0 || !libc_knows_now(t)) return positive(r);
  }
  return real().pthread_setschedparam(pt, policy, p);
}

WEFT_EXPORT int pthread_getschedparam(pthread_t pt, int* policy, struct sched_param* p) {
  int err = 0;
  G* g = thread_target(pt, &err);
  if (g == nullptr) return real().pthread_getschedparam(pt, policy, p);
  if (err != 0) return err;
  Target t = resolve_g(g);
  if (libc_knows(t)) return real().pthread_getschedparam(pt, policy, p);
  long r = do_sched_getscheduler(t);
  if (r < 0) return positive(r);
  *policy = static_cast<int>(r);
  return positive(do_sched_getparam(t, p));
}

WEFT_EXPORT int pthread_setschedprio(pthread_t pt, int priority) {
  int err = 0;
  G* g = thread_target(pt, &err);
  if (g == nullptr) return real().pthread_setschedprio(pt, priority);
  if (err != 0) return err;
  Target t = resolve_g(g);
  if (!libc_knows(t)) {
    struct sched_param p = {};
    p.sched_priority = priority;
    long r = do_sched_setparam(t, &p);
    if (r < 0 || !libc_knows_now(t)) return positive(r);
  }
  return real().pthread_setschedprio(pt, priority);
}

// thread.cc - pthread_create to the end of a thread.
//
// A G's first code is host_g_main: it leaves a cancellation jump buffer, as libc's own
// threads do, so that libc's pthread_exit unwinds C++ frames and cleanup handlers and
// lands back here. The end: thread_local destructors, TSD destructors, TLS back in shape,
// then the joiner is told and the stack left.
//
// Everything pthread_* may ask about a thread stands before it can run: it may look itself
// up before its creator's pthread_create has returned (Java and Ruby do).
#include "preload/thread.h"

#include <limits.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "preload/api.h"
#include "preload/cancel.h"
#include "preload/ids.h"
#include "preload/interrupt.h"
#include "preload/knobs.h"
#include "preload/last.h"
#include "preload/signals.h"
#include "preload/spawn_attr.h"
#include "preload/tcb.h"
#include "preload/tls_modules.h"
#include "preload/wire.h"
#include "sched/cpuclock.h"
#include "sched/gfutex_line.h"
#include "sched/spinwait.h"
#include "sched/stack.h"

extern "C" {
// What pthread_cleanup_push expanded to in C before 2.34; still exported.
extern int __sigsetjmp(struct __jmp_buf_tag*, int) __attribute__((returns_twice));
extern void __pthread_register_cancel(__pthread_unwind_buf_t*);
extern void __pthread_unregister_cancel(__pthread_unwind_buf_t*);
}

namespace weft {

namespace {

constexpr uint32_t kFirstVtid = 1u << 22;  // above any kernel tid (PID_MAX_LIMIT)
constexpr uint32_t kVtidStep = 1u << 22;   // more Gs than that share ids with recycled slots
constexpr uint32_t kVtidEnd = 1u << 28;    // the clock id of a thread holds no more (cpuclock.cc)

// A recycled slot's next thread: the kernel does not give an id again for long either.
void next_vtid(G* g) {
  uint32_t v = g->vtid + kVtidStep;
  bool good = g->vtid >= kFirstVtid && v < kVtidEnd;  // a fork child's only thread had the pid
  g->vtid = good ? v : kFirstVtid + g->index;
  tcb_set_tid(g, g->vtid);
}

void set_stack(G* g, const SpawnAttr& a) {
  g->stack_lo = g->slot_lo + g->guard_bytes;
  g->stack_hi = g->slot_stack_hi;
  if (a.user_stack != nullptr) {
    g->stack_lo = static_cast<char*>(a.user_stack);
    g->stack_hi = g->stack_lo + a.stack_bytes;
  }
}

// Stack and guard together are a number, page by page.
bool has_a_size(const SpawnAttr& a) {
  size_t guard = round_up(a.guard_bytes, kPageBytes);
  return guard >= a.guard_bytes && a.stack_bytes + guard >= guard;
}

// With a stack of the program's, it holds only the TCB.
G* slot_for(const SpawnAttr& a) {
  Door in;
  return a.user_stack != nullptr ? g_alloc(kPageBytes, 0) : g_alloc(a.stack_bytes, a.guard_bytes);
}

void slot_back(G* g) {
  if (g->cls == nullptr) return;  // main's
  Door in;
  g_free(g);
}

// A G with a complete TCB, not running; null with *err set.
G* make_thread(const SpawnAttr& a, int* err) {
  G* g = slot_for(a);
  if (g == nullptr) {
    *err = EAGAIN;
    return nullptr;
  }
  set_stack(g, a);
  if (g->thread != nullptr) next_vtid(g);
  prepare_thread(g);
  Thread* t = thread_of(g);
  if (g->fresh) {
    uint32_t modules = tls_modules_version();
    if (!tcb_make(g)) {  // outside the engine: the dtv comes from the program's malloc
      slot_back(g);
      *err = EAGAIN;
      return nullptr;
    }
    g->fresh = false;
    std::atomic_thread_fence(std::memory_order_seq_cst);
    if (tls_modules_version() != modules) tls_reset_static(g->fs);
    t->first_run = true;
  }
  t->stack_bytes = a.user_stack != nullptr ? a.stack_bytes : g->cls->stack_bytes;
  t->guard_bytes = round_up(a.guard_bytes, kPageBytes);
  t->explicit_sched = a.explicit_sched;
  t->join.store(a.detached ? kDetached : kJoinable, std::memory_order_relaxed);
  Thread* creator = this_thread();
  if (creator != nullptr) memcpy(t->name, creator->name, sizeof t->name);
  else t->name[0] = '\0';
  return g;
}

int create(pthread_t* out, const pthread_attr_t* attr, void* (*start)(void*),
           int (*start_c11)(void*), void* arg) {
  SpawnAttr a;
  // Natively, please: by its attributes, or since the creator's kernel thread hands down
  // what only the kernel can (affinity, namespaces ...).
  if (!spawn_attr(attr, &a) || wire_inherited()) return -1;
  int err = 0;
  if (a.user_stack == nullptr && !has_a_size(a)) return EINVAL;
  tls_modules_refresh();
  G* self = this_g();
  G* g = make_thread(a, &err);
  if (g == nullptr) return err;
  Thread* t = thread_of(g);
  t->start = start;
  t->start_c11 = start_c11;
  t->arg = arg;
  uint64_t mask = a.has_sigmask ? a.sigmask : 0;
  if (!a.has_sigmask) {
    if (self != nullptr) mask = self->sigmask;
    else sys_sigprocmask(0, nullptr, &mask);
  }
  g->sigmask = mask & kAllSignals;
  if (a.has_sigmask) masks_note(0, ~g->sigmask);
  last_began(t);
  *out = pthread_of(g);
  g_prepare(g, g->stack_hi, [](void* p) { host_g_main(static_cast<G*>(p)); }, g);
  Door in;
  g_start(g);
  return 0;
}

}  // namespace

// Fields of a new life, for a slot fresh or recycled.
void prepare_thread(G* g) {
  auto* t = reinterpret_cast<Thread*>(g->fs + round_up(tcb_pthread_bytes(), 16));
  if (g->thread == nullptr) {
    g->thread = t;
    t->g = g;
    g->vtid = kFirstVtid + g->index;
  }
  t->result = nullptr;
  t->joining.store(0, std::memory_order_relaxed);
  t->joins.store(nullptr, std::memory_order_relaxed);
  t->cancel_requested.store(0, std::memory_order_relaxed);
  t->cancel_disabled.store(false, std::memory_order_relaxed);
  t->cancel_async = t->exiting = t->in_cancel_call = false;
  t->first_run = false;
  t->sigwait_set.store(0, std::memory_order_relaxed);
  t->sig_no_restart = false;
  t->mask_saved = false;
  t->clear_tid_set = false;
  cpu_reset(g);
  if (t->pending.bits.load(std::memory_order_relaxed) != 0) pending_drop(g);  // for the last one
  g->no_preempt = 0;
  g->in_plain.store(false, std::memory_order_relaxed);
  t->leaving.store(false, std::memory_order_relaxed);
  t->ending.store(false, std::memory_order_relaxed);
  t->closed.store(false, std::memory_order_relaxed);
  t->libc_told.store(false, std::memory_order_relaxed);
  t->opening.store(0, std::memory_order_relaxed);
  t->by_handler.store(0, std::memory_order_relaxed);
  t->handler_seq.store(0, std::memory_order_relaxed);
  t->alive.store(true, std::memory_order_relaxed);
  g->engine.store(1, std::memory_order_relaxed);  // host_g_main leaves it
  // A wish for native scheduling left for the slot's last thread is not this one's.
  if (g->attention.load(std::memory_order_relaxed) != 0 &&
      (g->attention.exchange(0, std::memory_order_relaxed) & kAttWire) != 0)
    wish_forget(g);
  g->altstack = AltStack{};
  g->wired = false;
  g->wait = Wait::kNone;
  g->wake_habit = 0;
  g->call_habit = 0;
  g->ahead = false;
  g->ready_tsc = 0;
  spin_reset(g);
}

G* g_of(pthread_t pt) {
  G* self = t_g;
  if (self != nullptr && !self->is_g0 && self->fs == pt) return self;
  G* g = g_at(reinterpret_cast<void*>(pt));
  if (g == nullptr) g = first_thread();
  return g != nullptr && g->fs == pt && g->thread != nullptr ? g : nullptr;
}

Thread* own_thread() {
  if (Thread* t = this_thread()) return t;
  G* g = sched.booted.load(std::memory_order_relaxed) ? nullptr : g_at(__builtin_thread_pointer());
  return g == nullptr ? nullptr : thread_of(g);
}

void host_g_main(G* g) {
  t_own_id = g->vtid;
  engine_exit(g);
  Thread* t = thread_of(g);
  if (WEFT_UNLIKELY(t->first_run)) tcb_first_run();
  __pthread_unwind_buf_t buf;
  if (__builtin_expect(
          __sigsetjmp(reinterpret_cast<struct __jmp_buf_tag*>(buf.__cancel_jmp_buf), 0) == 0, 1)) {
    __pthread_register_cancel(&buf);
    cancel_point_at_start();
    if (t->start_c11 != nullptr)
      t->result = reinterpret_cast<void*>(static_cast<intptr_t>(t->start_c11(t->arg)));
    else
      t->result = t->start(t->arg);
  } else {
    cancel_landed(t);
  }
  // Not by t_g: in a fork child of this thread it is null until something boots again.
  thread_finish(t);
}

void thread_finish(Thread* t) {
  G* g = t->g;
  t->exiting = true;
  tcb_run_dtors();
  tsd_run_destructors(t);
  if (t_g == nullptr) exit(0);  // the only thread of a fork child that never booted
  // Natively the last thread's end is exit(0), run by it, with its TLS still there, and the signals
  // that it accepts.
  if (last_ended(t)) exit(0);
  if (!g->wired) signals_leave(g);
  tls_modules_refresh();
  // A wired one's kernel thread lives a moment longer, the process's first one for ever: as libc does.
  uint64_t all = kAllSignals;
  if (g->wired) sys_sigprocmask(SIG_BLOCK, &all, nullptr);
  if (t->clear_tid_set) clear_tid_at_end(t);
  bool slot = g->cls != nullptr;  // the first thread's TCB stays as it is
  if (slot) tcb_reset(g);
  t->alive.store(false, std::memory_order_seq_cst);  // send_to (sigsend.cc)
  if (t->pending.bits.load(std::memory_order_seq_cst) != 0) pending_drop(g);
  t->ending.store(false, std::memory_order_release);
  bool wired = g->wired;
  if (wired) tcb_unwire(g);
  if (!wired) engine_enter(g);
  g_mark_dead(g);
  uint32_t was = kJoinable;
  G* joiner = nullptr;
  // From this CAS on a joiner may free the slot; it waits for on_cpu before reuse. Who joins
  // has set `joining` before it looks at `join` (both sides seq_cst): no joiner, no wake-up.
  if (t->join.compare_exchange_strong(was, kEnded, std::memory_order_seq_cst)) {
    if (t->joining.load(std::memory_order_seq_cst) != 0)
      gfutex_table::wake_one(&t->join, [&](Waiter* w, bool) {
        if (w != nullptr) joiner = w->g;  // runs next
        return false;
      });
  } else if (slot) {
    g_free(g);
  }
  g_exit(joiner);
}

}  // namespace weft

using namespace weft;

// POSIX pthread_create. EAGAIN when no slot can be had. Attributes that mean a kernel
// thread (explicit scheduling, affinity) give one.
WEFT_EXPORT int pthread_create(pthread_t* out, const pthread_attr_t* attr,
                               void* (*start)(void*), void* arg) {
  if (!weft_boot()) return real().pthread_create(out, attr, start, arg);
  int r = create(out, attr, start, nullptr, arg);
  return r >= 0 ? r : real().pthread_create(out, attr, start, arg);
}

WEFT_EXPORT int thrd_create(thrd_t* out, thrd_start_t start, void* arg) {
  if (!weft_boot()) return real().thrd_create(out, start, arg);
  int r = create(out, nullptr, nullptr, start, arg);
  if (r < 0) return real().thrd_create(out, start, arg);
  return r == 0 ? thrd_success : r == ENOMEM ? thrd_nomem : thrd_error;
}

namespace {

// EDEADLK when t waits for us, directly, and is not about to be cancelled.
int join_check(Thread* self, Thread* t) {
  if (t->join.load(std::memory_order_acquire) == kDetached) return EINVAL;
  if (self == t) return EDEADLK;
  if (self != nullptr && t->joins.load(std::memory_order_acquire) == self &&
      t->cancel_requested.load(std::memory_order_acquire) == 0)
    return EDEADLK;
  uint32_t free = 0;
  if (!t->joining.compare_exchange_strong(free, 1, std::memory_order_seq_cst)) return EINVAL;
  return 0;
}

int join_until(G* g, void** result, uint64_t deadline_ns) {
  Thread* t = thread_of(g);
  // Joined or detached, and gone. (Not alive but kJoinable: it is just ending.)
  if (t->join.load(std::memory_order_acquire) == kDetached &&
      !t->alive.load(std::memory_order_acquire))
    return ESRCH;
  Thread* self = this_thread();
  // As libc's, a cancellation point only where there is somebody to wait for. (Not alive but
  // kJoinable is as good as ended.)
  if (t->join.load(std::memory_order_acquire) == kJoinable &&
      t->alive.load(std::memory_order_acquire))
    check_cancel(self);
  if (int err = join_check(self, t)) return err;
  if (self != nullptr) self->joins.store(t, std::memory_order_release);
  int err = 0;
  while (t->join.load(std::memory_order_acquire) == kJoinable && err != ETIMEDOUT) {
    Waiter w;
    bool waits = gfutex_table::enqueue(&w, &t->join, Wait::kJoin, true, [&] {
      return t->join.load(std::memory_order_seq_cst) == kJoinable;
    });
    // A child that has not begun runs next, before all that queued up earlier: a recursion that makes
    // threads goes into the depth and has few alive at once (17,710 threads: 9.3 ms, so 5.4; two Ps 4.9, 2.5).
    G* next = waits && w.g != nullptr && deadline_ns == kNever ? claim_last(g) : nullptr;
    int r = waits ? gfutex_table::sleep(&w, deadline_ns, next) : 0;
    if (r == -ETIMEDOUT && t->join.load(std::memory_order_acquire) == kJoinable) err = ETIMEDOUT;
    if (r == -EINTR && t->alive.load(std::memory_order_acquire) && cancel_pending()) {
      if (self != nullptr) self->joins.store(nullptr, std::memory_order_relaxed);
      t->joining.store(0, std::memory_order_release);
      cancel_point();
    }
  }
  if (self != nullptr) self->joins.store(nullptr, std::memory_order_relaxed);
  if (err != 0) {
    t->joining.store(0, std::memory_order_release);
    return err;
  }
  if (result != nullptr) *result = t->result;
  t->join.store(kDetached, std::memory_order_relaxed);  // a second join: ESRCH or EINVAL
  slot_back(g);
  return 0;
}

template <class F>
int native_wait(F f) {  // another kernel thread's end: its own futex, in the kernel
  return in_syscall_block([&] { return libc_call(f); });
}

}  // namespace

WEFT_EXPORT int pthread_join(pthread_t pt, void** result) {
  G* g = g_of(pt);
  if (g == nullptr) return native_wait([&] { return real().pthread_join(pt, result); });
  return join_until(g, result, kNever);
}

WEFT_EXPORT int pthread_tryjoin_np(pthread_t pt, void** result) {
  G* g = g_of(pt);
  if (g == nullptr) return real().pthread_tryjoin_np(pt, result);
  // One that runs is busy, whoever is to join it.
  Thread* t = thread_of(g);
  if (t->join.load(std::memory_order_acquire) == kJoinable ||
      t->alive.load(std::memory_order_acquire))
    return EBUSY;
  return join_until(g, result, kNever);
}

WEFT_EXPORT int pthread_clockjoin_np(pthread_t pt, void** result, clockid_t clock,
                                     const struct timespec* abs) {
  G* g = g_of(pt);
  if (g == nullptr)
    return native_wait([&] { return real().pthread_clockjoin_np(pt, result, clock, abs); });
  if (clock != CLOCK_REALTIME && clock != CLOCK_MONOTONIC) return EINVAL;
  if (abs == nullptr) return join_until(g, result, kNever);
  if (thread_of(g)->join.load(std::memory_order_acquire) == kJoinable && !timespec_ok(abs))
    return EINVAL;
  return join_until(g, result, deadline_from(clock, abs));
}

WEFT_EXPORT int pthread_timedjoin_np(pthread_t pt, void** result, const struct timespec* abs) {
  G* g = g_of(pt);
  if (g == nullptr)
    return native_wait([&] { return real().pthread_timedjoin_np(pt, result, abs); });
  return pthread_clockjoin_np(pt, result, CLOCK_REALTIME, abs);
}

WEFT_EXPORT int pthread_detach(pthread_t pt) {
  G* g = g_of(pt);
  if (g == nullptr) return real().pthread_detach(pt);
  Thread* t = thread_of(g);
  uint32_t was = t->join.load(std::memory_order_acquire);
  // Joined already is gone; somebody waits to join it: libc's answer is 0, and it is theirs.
  if (was != kDetached && t->joining.load(std::memory_order_acquire) != 0) return 0;
  if (was == kJoinable &&
      t->join.compare_exchange_strong(was, kDetached, std::memory_order_acq_rel))
    return 0;
  if (was == kDetached) return t->alive.load(std::memory_order_acquire) ? EINVAL : ESRCH;
  t->join.store(kDetached, std::memory_order_relaxed);
  slot_back(g);
  return 0;
}

// libc's own unwinds; our landing (host_g_main, main_landing.cc) finds the result here.
WEFT_EXPORT void pthread_exit(void* result) {
  if (Thread* t = own_thread()) {
    t->result = result;
    t->exiting = true;
  }
  real().pthread_exit(result);
  __builtin_unreachable();
}

WEFT_EXPORT int thrd_join(thrd_t pt, int* result) {
  if (g_of(pt) == nullptr) return native_wait([&] { return real().thrd_join(pt, result); });
  void* r = nullptr;
  if (pthread_join(pt, &r) != 0) return thrd_error;
  if (result != nullptr) *result = static_cast<int>(reinterpret_cast<intptr_t>(r));
  return thrd_success;
}

WEFT_EXPORT int thrd_detach(thrd_t pt) {
  return pthread_detach(pt) == 0 ? thrd_success : thrd_error;
}

WEFT_EXPORT void thrd_exit(int result) {
  pthread_exit(reinterpret_cast<void*>(static_cast<intptr_t>(result)));
}

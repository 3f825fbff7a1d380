// cond.cc - pthread_cond_* over gfutex: a FIFO of waiters under the cond's address.
//
// Of glibc's object only the flag bits of __wrefs keep their meaning (clock, process-shared);
// the first word counts our waiters, so that a signal without waiters is one load. A waiter
// queues before it releases the mutex, and touches the cond no more once it is woken:
// destroying it right after a broadcast is fine.
//
// Signalling while holding the mutex (the usual case) does not wake: the waiter is claimed
// and put on the mutex's chain (mutex.h). Without the mutex, signal readies its waiter and
// broadcast readies the first, the others queue for the mutex.
//
// A signal handler runs in the waiter's context while it keeps its place (kGoOn), also once it is
// woken and in line for the mutex (called_out.h). A cancel
// takes it out of the queue; the mutex is taken back before it acts.
//
// Process-shared conds are libc's own, inside the syscall protocol, except with a mutex
// of ours: such a pair cannot be meant for other processes, and libc would release the
// mutex without seeing our waiters. Signal asks both worlds then.
#include "preload/cancel.h"
#include "preload/destroy.h"
#include "preload/interrupt.h"
#include "preload/mutex.h"
#include "sched/gfutex_line.h"

namespace weft {
namespace {

constexpr uint32_t kShared = 1, kMonotonic = 2;  // in __wrefs, glibc's

std::atomic<uint32_t>* count_of(pthread_cond_t* c) {
  return reinterpret_cast<std::atomic<uint32_t>*>(&c->__data.__wseq);
}
uint32_t flags_of(const pthread_cond_t* c) { return c->__data.__wrefs; }

void count_me(pthread_cond_t* c) {  // written under the queue's lock only
  std::atomic<uint32_t>* n = count_of(c);
  n->store(n->load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
}

// An asynchronous cancel must not unwind a queued waiter: deferred during the wait.
bool defer_cancel(Thread* t) {
  if (WEFT_LIKELY(t == nullptr || !t->cancel_async)) return false;
  t->cancel_async = false;
  return true;
}

void restore_cancel() { this_thread()->cancel_async = true; }

// errorcheck and recursive mutexes that the caller does not hold.
bool not_owner(const Mutex* m) {
  int k = m->kind & kKindMask;
  return (k == PTHREAD_MUTEX_RECURSIVE || k == PTHREAD_MUTEX_ERRORCHECK) && !mutex_held_by_me(m);
}

// A mutex of libc's own kinds. Who waits uses it still (destroy: EBUSY), as in libc's own wait.
int release_real(pthread_mutex_t* m) {
  mutex_of(m)->nusers++;
  int err = real().pthread_mutex_unlock(m);
  if (err != 0) mutex_of(m)->nusers--;
  return err;
}
int retake_real(pthread_mutex_t* m) {
  int err = in_syscall([&] { return real().pthread_mutex_lock(m); });
  mutex_of(m)->nusers--;
  return err;
}

// Both of the usual kind: the compiler leaves out what the others ask for.
bool plain(const pthread_cond_t* c, pthread_mutex_t* m) {
  return (flags_of(c) & kShared) == 0 && (mutex_of(m)->kind & 0xff) == 0;
}

WEFT_INLINE int wait_as(bool plain, pthread_cond_t* c, pthread_mutex_t* pm, uint64_t deadline_ns) {
  Thread* t = this_thread();
  check_cancel(t);
  Mutex* m = mutex_of(pm);
  bool ours = plain || mutex_is_ours(m);
  if (!plain && ours && not_owner(m)) return EPERM;
  bool async = defer_cancel(t);
  bool shared = !plain && (flags_of(c) & kShared) != 0;
  Waiter w;
  w.on_signal = OnSignal::kGoOn;
  w.stop = cancel_pending;
  w.arg = ours ? m : nullptr;
  w.counter = shared ? nullptr : count_of(c);
  gfutex_table::enqueue(&w, c, Wait::kCond, true, [&] {
    if (WEFT_LIKELY(!shared)) count_me(c);
    return true;
  });
  int err = 0;
  G* heir = nullptr;  // a G is in the engine since it queued
  // A recursive mutex held more than once stays held, as natively.
  bool nested = !plain && ours && (m->kind & kKindMask) == PTHREAD_MUTEX_RECURSIVE && m->count > 1;
  if (nested) m->count--;
  else if (ours) heir = mutex_release_for_wait(m);
  else err = release_real(pm);
  if (WEFT_UNLIKELY(err != 0)) deadline_ns = 1;  // leave the queue again
  int r = gfutex_table::sleep(&w, deadline_ns, heir);
  if (nested) m->count++;
  else if (ours) mutex_retake(m, &w);
  else if (err == 0) err = retake_real(pm);
  if (WEFT_UNLIKELY(async)) restore_cancel();
  if (WEFT_UNLIKELY(r == -EINTR)) cancel_point();
  return err != 0 ? err : r == -ETIMEDOUT ? ETIMEDOUT : 0;
}

__attribute__((noinline)) int wait(pthread_cond_t* c, pthread_mutex_t* m, uint64_t deadline_ns) {
  return wait_as(false, c, m, deadline_ns);
}

// A process-shared cond with a mutex to match.
bool is_real(const pthread_cond_t* c, pthread_mutex_t* m) {
  return WEFT_UNLIKELY((flags_of(c) & kShared) != 0) && !mutex_is_ours(mutex_of(m));
}

WEFT_INLINE bool chain_or_ready(Waiter* w) {
  if (w == nullptr || w->g == nullptr || w->arg == nullptr) return true;
  auto* m = static_cast<Mutex*>(w->arg);
  if (!mutex_held_by_me(m)) return true;
  mutex_chain(m, w);
  return false;
}

bool signal_one(pthread_cond_t* c) {
  return gfutex_table::wake_one(c, [](Waiter* w, bool) { return chain_or_ready(w); });
}

struct Taken {
  Waiter* head = nullptr;
  bool any = false;
};

void take_all(WaitQueue& q, void* arg) {
  auto* t = static_cast<Taken*>(arg);
  Waiter** tail = &t->head;
  for (Waiter* w = q.first(); w != nullptr;) {
    Waiter* next = q.next(w);
    if (w->arg == nullptr) t->any |= q.wake(w);
    else t->any |= q.take(w, &tail);
    w = next;
  }
}

bool broadcast(pthread_cond_t* c) {
  Door in;  // who is taken and not in line yet hears no signal: no handler of ours now
  Taken t;
  gfutex_visit(c, take_all, &t);
  if (t.head == nullptr) return t.any;
  auto* m = static_cast<Mutex*>(t.head->arg);
  if (!mutex_held_by_me(m)) {
    mutex_requeue(m, t.head);
    return true;
  }
  for (Waiter* w = t.head; w != nullptr;) {
    Waiter* next = w->next;
    mutex_chain(m, w);
    w = next;
  }
  return true;
}

}  // namespace
}  // namespace weft

using namespace weft;

WEFT_EXPORT int pthread_cond_wait(pthread_cond_t* c, pthread_mutex_t* m) {
  if (WEFT_LIKELY(plain(c, m))) return wait_as(true, c, m, kNever);
  if (is_real(c, m)) return in_libc_cancel_point([&] { return real().pthread_cond_wait(c, m); });
  return wait(c, m, kNever);
}

WEFT_EXPORT int pthread_cond_timedwait(pthread_cond_t* c, pthread_mutex_t* m,
                                       const struct timespec* abs) {
  if (is_real(c, m))
    return in_libc_cancel_point([&] { return real().pthread_cond_timedwait(c, m, abs); });
  if (!timespec_ok(abs)) return EINVAL;
  clockid_t clock = (flags_of(c) & kMonotonic) != 0 ? CLOCK_MONOTONIC : CLOCK_REALTIME;
  return wait(c, m, deadline_from(clock, abs));
}

WEFT_EXPORT int pthread_cond_clockwait(pthread_cond_t* c, pthread_mutex_t* m, clockid_t clock,
                                       const struct timespec* abs) {
  if (is_real(c, m))
    return in_libc_cancel_point([&] { return real().pthread_cond_clockwait(c, m, clock, abs); });
  if (!timespec_ok(abs)) return EINVAL;
  if (clock != CLOCK_REALTIME && clock != CLOCK_MONOTONIC) return EINVAL;
  return wait(c, m, deadline_from(clock, abs));
}

WEFT_EXPORT int pthread_cond_signal(pthread_cond_t* c) {
  if (WEFT_UNLIKELY((flags_of(c) & kShared) != 0)) {
    if (signal_one(c)) return 0;
    return real().pthread_cond_signal(c);
  }
  // Relaxed: who must be woken was counted before it released the mutex that the caller
  // has held since.
  if (count_of(c)->load(std::memory_order_relaxed) != 0) signal_one(c);
  return 0;
}

WEFT_EXPORT int pthread_cond_broadcast(pthread_cond_t* c) {
  if (WEFT_UNLIKELY((flags_of(c) & kShared) != 0)) {
    broadcast(c);
    return real().pthread_cond_broadcast(c);
  }
  if (count_of(c)->load(std::memory_order_relaxed) != 0) broadcast(c);  // as in signal
  return 0;
}

// Those that are woken have left: they look at nothing of the cond any more.
WEFT_EXPORT int pthread_cond_destroy(pthread_cond_t* c) {
  if ((flags_of(c) & kShared) != 0)
    return in_syscall_block([&] { return real().pthread_cond_destroy(c); });
  wait_till_left(count_of(c), Wait::kCond);
  return 0;
}

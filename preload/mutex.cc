// mutex.cc - pthread_mutex_*; the object and its protocol are described in mutex.h.
//
// The fast paths are one CAS each way and enter nothing. Mutexes that the kernel must know
// (PI, robust) or whose owner other processes must tell apart (process-shared recursive and
// errorcheck ones: vtids are unique in one process only) wire the G first.
//
// Spinning: a waiter spins while its turn is likely to come within a wake-up's cost, which
// is so only if the holder runs at this moment on another P; with one P never. Whether the
// holder of this lock usually does is learnt (Mutex::wasted).
#include "preload/mutex.h"

#include <sys/single_threaded.h>

#include "preload/allocator.h"
#include "preload/wire.h"
#include "sched/gfutex_line.h"

namespace weft {

uint32_t fork_generation = 1;
bool kernel_lock_before_boot = false;

void wire_owner(const char* why) {
  if (!sched.booted.load(std::memory_order_relaxed)) kernel_lock_before_boot = true;
  wire_thread_for_lock(why);
}

void sync_after_fork() { fork_generation++; }

namespace {

constexpr uint64_t kStarvingTsc = 2'500'000;  // 1 ms at 2.5 GHz: Go's starvation threshold
constexpr uint64_t kHandEveryTsc = 62'500;    // 25 us: a hand-over costs about 1
// 0.2 us, doubled four times: 6 us in all at 2.5 GHz. Looking at the word takes its line
// from a holder that locks again and again, at 0.1 us each, so the looks get rarer: with
// steady pauses two Ps get 12 to 16 M sections/s out of one lock, doubled ones 23.
constexpr uint64_t kSpinFirstTsc = 500;
constexpr int kSpinRounds = 5;
constexpr uint8_t kWastedMany = 8;

bool cas(Mutex* m, uint32_t from, uint32_t to) {
  return m->word.compare_exchange_strong(from, to, std::memory_order_acq_rel,
                                         std::memory_order_relaxed);
}

// ---------------------------------------------------------------- taking

bool still_contended(void* m) {
  return static_cast<Mutex*>(m)->word.load(std::memory_order_seq_cst) == 2;
}

// Worth it unless nobody runs who could unlock, or the lock is one that is held for long:
// then only now and then, to learn when that changes.
bool worth_spinning(const Mutex* m) {
  if (sched.n_idle_p.load(std::memory_order_relaxed) + 1 >= sched.procs) return false;
  return m->wasted.load(std::memory_order_relaxed) < kWastedMany || (tsc() >> 8 & 15) == 0;
}

// Takes the lock as `to` if it comes free soon.
bool spin(Mutex* m, uint32_t to) {
  if (!worth_spinning(m)) return false;
  uint64_t pause_tsc = kSpinFirstTsc;
  for (int i = 0; i < kSpinRounds; i++, pause_tsc *= 2) {
    for (uint64_t until = tsc() + pause_tsc; tsc() < until;) cpu_relax();
    if (m->word.load(std::memory_order_relaxed) == 0 && cas(m, 0, to)) {
      if (m->wasted.load(std::memory_order_relaxed) != 0)
        m->wasted.store(0, std::memory_order_relaxed);
      return true;
    }
  }
  uint8_t n = m->wasted.load(std::memory_order_relaxed);
  if (n < kWastedMany) m->wasted.store(static_cast<uint8_t>(n + 1), std::memory_order_relaxed);
  return false;
}

// Waits for the lock; `duty` as in mutex.h, `barges` as in Waiter. 0 or ETIMEDOUT.
int acquire_slow(Mutex* m, uint64_t deadline_ns, bool slept, bool duty, bool barges = false) {
  Waiter w;
  w.since_tsc = 0;
  w.barges = barges;
  for (;;) {
    uint32_t v = m->word.load(std::memory_order_relaxed);
    if (v == 0) {
      if (cas(m, 0, duty ? 2 : 1)) return 0;
      continue;
    }
    if (v != 2 && !cas(m, v, 2)) continue;
    if (w.since_tsc == 0) w.since_tsc = tsc();
    w.word.store(0, std::memory_order_relaxed);
    w.claimed = w.handed = false;
    w.front = slept;
    if (!gfutex_enqueue(&w, m, Wait::kMutex, true, still_contended, m)) continue;
    int r = gfutex_sleep(&w, deadline_ns);
    if (r == 0) {
      if (w.handed) return 0;
      slept = true;
      duty = w.duty;
      if (m->word.load(std::memory_order_relaxed) != 0 && spin(m, duty ? 2 : 1)) return 0;
    } else if (r == -ETIMEDOUT) {
      return ETIMEDOUT;
    }
    // -EINTR: handlers ran, the wait goes on. The word may be 0 by now.
  }
}

inline int acquire(Mutex* m) {
  if (cas(m, 0, 1) || spin(m, 1)) return 0;
  return acquire_slow(m, kNever, false, false);
}

// ---------------------------------------------------------------- giving back

bool starving(Mutex* m, const Waiter* w) {
  uint64_t now = tsc();
  if (now - w->since_tsc <= kStarvingTsc || now - m->handed_tsc <= kHandEveryTsc) return false;
  m->handed_tsc = now;
  return true;
}

bool free_or_hand(Waiter* w, bool more, void* arg) {
  auto* m = static_cast<Mutex*>(arg);
  if (w == nullptr) {
    m->word.store(0, std::memory_order_release);
    return true;
  }
  w->duty = more;
  w->handed = !w->barges && starving(m, w);
  m->word.store(!w->handed ? 0 : more ? 2 : 1, std::memory_order_release);
  return true;
}

bool hand(Waiter* w, bool more, void* arg) {
  auto* m = static_cast<Mutex*>(arg);
  if (w != nullptr) w->handed = true;
  m->word.store(w == nullptr ? 0 : more ? 2 : 1, std::memory_order_release);
  return true;
}

// Whoever waits longest, in the chain or in the queue.
void release_in_order(Mutex* m) {
  if (Waiter* chain = mutex_live_chain(m)) {
    m->chain = nullptr;
    gfutex_queue_claimed(m, chain);
  }
  gfutex_wake_one(m, free_or_hand, m);
}

// The word is not 1, or there is a chain.
__attribute__((noinline)) void release_slow(Mutex* m) {
  uint32_t v = m->word.load(std::memory_order_relaxed);
  if (v == 0) return;  // was not locked: as natively, nothing
  Waiter* first = mutex_live_chain(m);
  if (first == nullptr) {
    release_in_order(m);
    return;
  }
  Door in;  // who is neither in line nor readied hears no signal: no handler of ours now
  if (mutex_queues_turn(m, v)) {
    release_in_order(m);
    return;
  }
  Waiter* rest = first->next;
  m->chain = nullptr;
  if (rest != nullptr) gfutex_queue_claimed(m, rest);
  first->duty = rest != nullptr || v == 2;
  if (first->duty || !cas(m, 1, 0)) {
    first->duty = true;
    m->word.store(0, std::memory_order_release);
  }
  if (chain_leave(first)) gfutex_ready(first);
}

inline void release(Mutex* m) {
  if (WEFT_LIKELY(m->chain == nullptr && cas(m, 1, 0))) return;
  release_slow(m);
}

inline void own(Mutex* m, uint32_t id) {
  m->owner.store(id, std::memory_order_relaxed);
  m->nusers++;
}

// ---------------------------------------------------------------- libc's kinds

void wire_for(int kind) {
  if (kind < 0) return;  // destroyed: libc answers EINVAL
  int k = kind & kKindMask;
  if ((kind & (kKindRobust | kKindInherit | kKindProtect)) == 0 && k != PTHREAD_MUTEX_RECURSIVE &&
      k != PTHREAD_MUTEX_ERRORCHECK)
    return;
  wire_owner("a robust, PI or process-shared mutex");
}

template <class F>
int real_lock(Mutex* m, F f) {
  wire_for(m->kind);
  return in_syscall(f);
}

// Everything but the fast path: `take` gets hold of the word (0 or an error number).
template <class Take>
inline int lock_kinds(Mutex* m, Take take) {
  uint32_t id = self_id();
  int k = m->kind & kKindMask;
  if (k == PTHREAD_MUTEX_RECURSIVE || k == PTHREAD_MUTEX_ERRORCHECK) {
    if (m->owner.load(std::memory_order_relaxed) == id) {
      if (k == PTHREAD_MUTEX_ERRORCHECK) return EDEADLK;
      if (m->count + 1 == 0) return EAGAIN;
      m->count++;
      return 0;
    }
  }
  if (int err = take()) return err;
  if (k == PTHREAD_MUTEX_RECURSIVE) m->count = 1;
  own(m, id);
  return 0;
}

// By the allocator: its locks keep their G on an M (allocator.h). Foreign threads look again
// every millisecond: the lock may be free, and the G that was woken for it without an M.
int acquire_for_allocator(Mutex* m, bool foreign) {
  if (cas(m, 0, 1) || spin(m, 1)) return 0;
  if (!foreign) return acquire_slow(m, kNever, false, false, true);
  while (acquire_slow(m, host_now_ns() + 1'000'000, false, false, true) != 0) {
  }
  return 0;
}

int lock_for_allocator(Mutex* m) {
  G* g = this_g();
  if (g != nullptr) g->no_preempt++;
  int r = lock_kinds(m, [&] { return acquire_for_allocator(m, g == nullptr); });
  if (g != nullptr) g->no_preempt--;
  return r;
}

void release_for_allocator(Mutex* m) {
  if (m->chain == nullptr && cas(m, 1, 0)) return;
  G* g = this_g();
  if (g != nullptr) g->no_preempt++;
  release_slow(m);
  if (g != nullptr) g->no_preempt--;
}

__attribute__((noinline)) int lock_slow(Mutex* m, const void* caller) {
  if (!mutex_is_ours(m))
    return real_lock(m, [&] { return real().pthread_mutex_lock(native_of(m)); });
  if (from_allocator(caller)) return lock_for_allocator(m);
  return lock_kinds(m, [&] { return acquire(m); });
}

__attribute__((noinline)) int unlock_kinds(Mutex* m, const void* caller) {
  if (!mutex_is_ours(m)) return real().pthread_mutex_unlock(native_of(m));
  int k = m->kind & kKindMask;
  if (k == PTHREAD_MUTEX_RECURSIVE || k == PTHREAD_MUTEX_ERRORCHECK) {
    if (!mutex_held_by_me(m)) return EPERM;
    if (k == PTHREAD_MUTEX_RECURSIVE && --m->count != 0) return 0;
  }
  m->owner.store(0, std::memory_order_relaxed);
  m->nusers--;
  if (from_allocator(caller)) release_for_allocator(m);
  else release(m);
  return 0;
}

// glibc's order of checks: nothing is looked at unless the lock must be waited for.
int acquire_until(Mutex* m, clockid_t clock, const struct timespec* abs) {
  if (cas(m, 0, 1) || spin(m, 1)) return 0;
  if (abs->tv_sec < 0) return ETIMEDOUT;
  if (!timespec_ok(abs)) return EINVAL;
  return acquire_slow(m, deadline_from(clock, abs), false, false);
}

int lock_until(Mutex* m, clockid_t clock, const struct timespec* abs) {
  return lock_kinds(m, [&] { return acquire_until(m, clock, abs); });
}

}  // namespace

// ---------------------------------------------------------------- for cond.cc

void mutex_requeue(Mutex* m, Waiter* list) {
  Waiter* first = list;
  if (first->next != nullptr) {
    gfutex_queue_claimed(m, first->next);
    first->duty = true;
  }
  gfutex_ready(first);
}

void mutex_release_slow(Mutex* m) {
  if (mutex_live_chain(m) != nullptr) {
    release_in_order(m);
    return;
  }
  if (cas(m, 1, 0)) return;
  if (m->word.load(std::memory_order_relaxed) != 0) gfutex_wake_one(m, hand, m);
}

void mutex_retake_slow(Mutex* m, const Waiter* w) {
  if (w->duty || !cas(m, 0, 1)) acquire_slow(m, kNever, true, w->duty);
}

}  // namespace weft

using namespace weft;

WEFT_EXPORT int pthread_mutex_lock(pthread_mutex_t* pm) {
  Mutex* m = mutex_of(pm);
  uint32_t id = t_own_id;
  if (WEFT_LIKELY((m->kind & 0xff) == 0 && id != 0)) {
    if (__libc_single_threaded && m->word.load(std::memory_order_relaxed) == 0) {
      m->word.store(1, std::memory_order_relaxed);
      own(m, id);
      return 0;
    }
    if (WEFT_LIKELY(cas(m, 0, 1))) {
      own(m, id);
      return 0;
    }
  }
  return lock_slow(m, __builtin_return_address(0));
}

WEFT_EXPORT int pthread_mutex_unlock(pthread_mutex_t* pm) {
  Mutex* m = mutex_of(pm);
  if (WEFT_LIKELY((m->kind & 0xff) == 0)) {
    m->owner.store(0, std::memory_order_relaxed);
    m->nusers--;
    if (WEFT_LIKELY(m->chain == nullptr)) {
      if (__libc_single_threaded && m->word.load(std::memory_order_relaxed) == 1) {
        m->word.store(0, std::memory_order_relaxed);
        return 0;
      }
      if (WEFT_LIKELY(cas(m, 1, 0))) return 0;
    }
    if (from_allocator(__builtin_return_address(0))) release_for_allocator(m);
    else release_slow(m);
    return 0;
  }
  return unlock_kinds(m, __builtin_return_address(0));
}

WEFT_EXPORT int pthread_mutex_trylock(pthread_mutex_t* pm) {
  Mutex* m = mutex_of(pm);
  if (!mutex_is_ours(m)) {
    wire_for(m->kind);
    return real().pthread_mutex_trylock(pm);
  }
  uint32_t id = self_id();
  bool recursive = (m->kind & kKindMask) == PTHREAD_MUTEX_RECURSIVE;
  if (recursive && m->owner.load(std::memory_order_relaxed) == id) {
    if (m->count + 1 == 0) return EAGAIN;
    m->count++;
    return 0;
  }
  if (m->word.load(std::memory_order_relaxed) != 0 || !cas(m, 0, 1)) return EBUSY;
  if (recursive) m->count = 1;
  own(m, id);
  return 0;
}

WEFT_EXPORT int pthread_mutex_timedlock(pthread_mutex_t* pm, const struct timespec* abs) {
  Mutex* m = mutex_of(pm);
  if (!mutex_is_ours(m))
    return real_lock(m, [&] { return real().pthread_mutex_timedlock(pm, abs); });
  return lock_until(m, CLOCK_REALTIME, abs);
}

WEFT_EXPORT int pthread_mutex_clocklock(pthread_mutex_t* pm, clockid_t clock,
                                        const struct timespec* abs) {
  Mutex* m = mutex_of(pm);
  if (!mutex_is_ours(m))
    return real_lock(m, [&] { return real().pthread_mutex_clocklock(pm, clock, abs); });
  if (clock != CLOCK_REALTIME && clock != CLOCK_MONOTONIC) return EINVAL;
  return lock_until(m, clock, abs);
}

// Takes the lock inside libc; for priority ceilings, where the kernel thread matters.
WEFT_EXPORT int pthread_mutex_setprioceiling(pthread_mutex_t* pm, int ceiling, int* old) {
  return real_lock(mutex_of(pm),
                   [&] { return real().pthread_mutex_setprioceiling(pm, ceiling, old); });
}

// Old names, which programs linked before glibc 2.34 may still ask for.
WEFT_EXPORT int __pthread_mutex_lock(pthread_mutex_t*)
    __attribute__((alias("pthread_mutex_lock"), copy(pthread_mutex_lock)));
WEFT_EXPORT int __pthread_mutex_trylock(pthread_mutex_t*)
    __attribute__((alias("pthread_mutex_trylock"), copy(pthread_mutex_trylock)));
WEFT_EXPORT int __pthread_mutex_unlock(pthread_mutex_t*)
    __attribute__((alias("pthread_mutex_unlock"), copy(pthread_mutex_unlock)));

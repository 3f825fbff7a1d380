// mutex.h - the private mutex (normal, recursive, errorcheck, adaptive) over gfutex.
//
// The object is glibc's, static initialisers included. Robust, PI, PP and process-shared
// kinds are libc's own affair (mutex.cc: real).
//
// word     meaning
//   0      free
//   1      held, nobody asked for it meanwhile
//   2      held, and somebody may wait in gfutex under the mutex's address
// Invariant: chain is empty unless the word is 1 or 2.
// Duty: when the word is not 2 although waiters are linked in gfutex, some awake thread has
// been told (Waiter::duty) to take the lock with 2. Every wake-up from the queue with
// others behind gives that duty; a waiter that queues sets 2 itself.
//
// chain: waiters of a condition variable that the holder has signalled. They are claimed
// (woken as far as the cond is concerned) and wait for the lock; the list belongs to the
// holder and goes with the lock. So signal takes no lock of the mutex's queue, and unlock
// knows whom to wake without looking. It lies where glibc links robust mutexes.
//
// Unlock with waiters is barging: the word becomes 0 and one waiter is readied, which runs
// when this G parks or another P steals it. Until then the unlocker may lock again at full
// speed. Two exceptions hand the lock over without freeing it: the head of the queue has
// waited more than kStarvingTsc (Go's rule; at most once in kHandEveryTsc, or a long queue
// would run at the speed of hand-overs for good), or the unlocker is about to sleep in a cond
// wait, so that its heir is the next to run here.
#pragma once

#include <pthread.h>

#include "preload/ids.h"
#include "sched/called_out.h"

namespace weft {

struct Mutex {  // glibc's struct __pthread_mutex_s
  std::atomic<uint32_t> word;
  uint32_t count;                // recursion depth; owner only
  std::atomic<uint32_t> owner;   // self_id() of the holder, 0 between
  uint32_t nusers;               // glibc's: destroy answers EBUSY by it
  int kind;
  std::atomic<uint8_t> wasted;   // spins in vain of late, saturating; a hint
  uint8_t handoffs;              // times the chain went before the queue; holder only
  uint16_t generation;           // fork generation of `chain`; holder only
  Waiter* chain;                 // head; head->prev is the last. Holder only
  uint64_t handed_tsc;           // when it was last handed to a starving waiter; bucket lock
};
static_assert(sizeof(Mutex) == sizeof(pthread_mutex_t));
static_assert(offsetof(Mutex, kind) == offsetof(struct __pthread_mutex_s, __kind) &&
              offsetof(Mutex, owner) == offsetof(struct __pthread_mutex_s, __owner) &&
              offsetof(Mutex, nusers) == offsetof(struct __pthread_mutex_s, __nusers) &&
              offsetof(Mutex, chain) == offsetof(struct __pthread_mutex_s, __list));

inline Mutex* mutex_of(pthread_mutex_t* m) { return reinterpret_cast<Mutex*>(m); }
inline pthread_mutex_t* native_of(Mutex* m) { return reinterpret_cast<pthread_mutex_t*>(m); }

constexpr int kKindMask = 3;            // normal, recursive, errorcheck, adaptive
constexpr int kKindRobust = 16;
constexpr int kKindInherit = 32;
constexpr int kKindProtect = 64;
constexpr int kKindShared = 128;
constexpr int kKindReal = kKindRobust | kKindInherit | kKindProtect | kKindShared;
inline bool mutex_is_ours(const Mutex* m) { return (m->kind & kKindReal) == 0; }

// The calling thread is about to own a lock by its kernel thread's id: it is to keep that.
void wire_owner(const char* why);
// The first thread was, before there was a scheduler: boot.cc wires it. Else another G could be
// wired there, to find itself the owner (EDEADLK), or main elsewhere, and not be it any more.
extern bool kernel_lock_before_boot;

// Rises in each fork child: waiters and once-initialisers of the parent are not here.
extern uint32_t fork_generation;

// The chain, unless a fork has left its waiters behind.
inline Waiter* mutex_live_chain(Mutex* m) {
  if (m->chain == nullptr) return nullptr;
  if (WEFT_LIKELY(m->generation == static_cast<uint16_t>(fork_generation))) return m->chain;
  m->chain = nullptr;
  return nullptr;
}

// The chain first would starve who waits for the lock alone; every now and then it is not.
inline bool mutex_queues_turn(Mutex* m, uint32_t v) {
  constexpr uint8_t kHandoffsInRow = 16;
  return v == 2 && ++m->handoffs % kHandoffsInRow == 0;
}

// ---- for cond.cc; all of these for mutexes of ours. In line: two of each to a round trip
inline bool mutex_held_by_me(const Mutex* m) {
  return m->owner.load(std::memory_order_relaxed) == self_id();
}

// Adds a claimed waiter (gfutex_wake_one's decide) to the chain. Caller holds m.
inline void mutex_chain(Mutex* m, Waiter* w) {
  Waiter* head = mutex_live_chain(m);
  w->next = nullptr;
  if (head == nullptr) {
    m->generation = static_cast<uint16_t>(fork_generation);
    m->chain = w;
    w->prev = w;
  } else {
    head->prev->next = w;
    head->prev = w;
  }
  chain_enter(w);
}

// Claimed waiters queue for m, held by anybody or nobody, and the first is readied.
void mutex_requeue(Mutex* m, Waiter* list);

// Releases m for a wait that is already queued for: to the first of the chain, whom the caller
// is to switch to or to ready; null: there is none, and whoever waits otherwise is told.
void mutex_release_slow(Mutex* m);
inline G* mutex_release_for_wait(Mutex* m) {
  m->owner.store(0, std::memory_order_relaxed);
  Waiter* heir = mutex_live_chain(m);
  if (WEFT_UNLIKELY(heir == nullptr || mutex_queues_turn(m, m->word.load(std::memory_order_relaxed)))) {
    mutex_release_slow(m);
    return nullptr;
  }
  Waiter* next = heir->next;
  if (next != nullptr) next->prev = heir->prev;
  m->chain = next;
  heir->handed = true;  // the word stays: 1, or 2 if others wait
  return WEFT_LIKELY(chain_leave(heir)) ? heir->g : nullptr;
}

// After the wait w.
void mutex_retake_slow(Mutex* m, const Waiter* w);
inline void mutex_retake(Mutex* m, const Waiter* w) {
  if (WEFT_UNLIKELY(!w->handed)) mutex_retake_slow(m, w);
  m->owner.store(self_id(), std::memory_order_relaxed);
  m->count = 1;  // of a recursive one; others have no use for it
}

}  // namespace weft

// thread.h - the pthread side of a G: what pthread_create asked for and pthread_join wants.
//
// A Thread lies behind struct pthread in its G's slot (the first thread's: static). Like
// the G it is type-stable.
//
// Join protocol (Thread::join, one word that is also the futex joiners sleep on):
//   kJoinable --end--> kEnded (joiner frees)        kJoinable --detach--> kDetached
//   kDetached --end--> freed by itself              kEnded --detach--> freed by detach
// Each arrow is a CAS; the loser of a race sees the other's state and acts on it.
#pragma once

#include <pthread.h>
#include <resolv.h>

#include "sched/g.h"
#include "sched/lock.h"

namespace weft {

enum JoinState : uint32_t { kJoinable = 0, kEnded = 1, kDetached = 2 };
enum Over : uint32_t { kOver = 0, kLives = 1, kCounted = 2 };  // last.h

// Signals queued for a thread or the process; sigsend.cc.
struct PendingSet {
  Lock lock;
  std::atomic<uint64_t> bits{0};         // written under the lock
  void* head = nullptr;                  // oldest first; guarded by lock
};

struct Thread {
  G* g = nullptr;
  void* (*start)(void*) = nullptr;
  int (*start_c11)(void*) = nullptr;
  void* arg = nullptr;
  void* result = nullptr;
  std::atomic<uint32_t> join{kJoinable};
  std::atomic<uint32_t> joining{0};      // a joiner is at work: a second one gets EINVAL
  std::atomic<Thread*> joins{nullptr};   // whom this thread joins, for EDEADLK
  std::atomic<uint32_t> over{kOver};
  std::atomic<bool> alive{false};
  bool tsd_used = false;
  bool first_run = false;                // its TCB was made just now
  // --- cancellation (cancel.cc); written by the thread, requested and senders by anyone
  std::atomic<uint32_t> cancel_requested{0};
  std::atomic<uint32_t> cancel_senders{0};  // in pthread_cancel of this thread just now
  std::atomic<bool> cancel_disabled{false};
  bool cancel_async = false;
  bool in_cancel_call = false;           // in the kernel call of a cancellation point
  bool exiting = false;                  // unwinding: no cancel is acted on any more
  // --- signals (signals.h)
  PendingSet pending;
  std::atomic<uint64_t> sigwait_set{0};  // what it sleeps for in sigwait; senders look
  std::atomic<bool> leaving{false};      // ends: sysmon keeps nothing open for it (signals_leave)
  std::atomic<bool> ending{false};       // it may end without that mark (the same)
  std::atomic<bool> closed{false};       // takes no more signals of the process; under pending.lock
  std::atomic<uint64_t> opening{0};      // in its mask, not yet in its M's (set_masks)
  std::atomic<uint64_t> by_handler{0};   // of its mask: blocked until its handlers return (sigrun.cc)
  std::atomic<uint32_t> handler_seq{0};  // odd while one begins or ends: by_handler and mask change
  uint64_t sig_handled = 0;              // handlers run so far; own thread only
  bool sig_no_restart = false;           // one of them had no SA_RESTART
  bool mask_saved = false;               // saved_mask comes back as the first handler returns
  uint64_t saved_mask = 0;
  std::atomic<bool> libc_told{false};    // wired, and libc knows its policy (wire.cc)
  // --- set_tid_address(2); own thread only
  void* clear_tid = nullptr;             // cleared and woken at its end, as the kernel does
  bool clear_tid_set = false;            // else it is libc's own, in the TCB
  // --- attributes as pthread_getattr_np tells them
  size_t stack_bytes = 0;
  size_t guard_bytes = 0;
  bool explicit_sched = false;
  char name[16] = {};
  struct __res_state res = {};
};

enum BootState : int { kCold, kBooting, kUp, kNative };
extern std::atomic<BootState> boot_state;
// Boots weft if that has not happened. False: this process runs natively.
bool weft_boot_first();
inline bool weft_boot() {
  return WEFT_LIKELY(boot_state.load(std::memory_order_acquire) == kUp) || weft_boot_first();
}

// The G behind a pthread_t, or null for native threads. Ended ones included.
G* g_of(pthread_t t);
inline Thread* thread_of(const G* g) { return static_cast<Thread*>(g->thread); }
// The calling thread's Thread, wired ones included; null on foreign threads.
inline Thread* this_thread() {
  G* g = t_g;
  return g == nullptr || g->is_g0 ? nullptr : thread_of(g);
}
// As this_thread, and in the unbooted child of a G's fork still that G's.
Thread* own_thread();
inline pthread_t pthread_of(const G* g) { return static_cast<pthread_t>(g->fs); }

// Runs the rest of the calling thread's life: destructors, joiner, slot. Not to return.
[[noreturn]] void thread_finish(Thread* t);
// Fields of a new life, for a slot fresh or recycled; its TCB comes after.
void prepare_thread(G* g);
// The G of the thread that booted, or null when main stayed native.
G* first_thread();
void boot_after_fork();
// g1, the caller, will end in thread_finish. False: that cannot be had (main_landing.cc).
bool land_first(const G* g1);
// TSD destructors, four rounds (tsd.cc).
void tsd_run_destructors(Thread* t);

}  // namespace weft

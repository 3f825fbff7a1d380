// gfutex.h - the one blocking primitive: wait on an address, wake by address.
//
// A table of buckets, each with a lock and a FIFO of waiters; a waiter is a G or a foreign
// thread (a kernel thread that is no M, a wired G), so every primitive built on it accepts
// both. Real-time threads (foreign always) stand before all of lower priority, as in the
// kernel's futex queues. Mutex, cond, rwlock, sem, barrier, once, join and syscall(SYS_futex) are small ABI
// files over these calls.
//
//   waiter                                   waker
//   1 lock bucket                            a  change the word
//   2 word == expected? else -EAGAIN         b  lock bucket
//   3 token = park_begin; link; unlock       c  claim a waiter of addr, unlink it;
//   4 park                                      lost (timed out, interrupted): next one
//   5 woken: nothing left to do              d  unlock; ready
//     else: lock, unlink if still linked
// Either 2 sees a, or c sees 3.
//
// A Waiter lives on its owner's stack. It is touched only under the bucket lock, or by the
// waker between a won claim and ready(): its G cannot run in between.
//
// A foreign waiter sleeps in the kernel, which restarts a futex wait after a handler with SA_RESTART,
// and one that begins just after the handler sleeps on. So a handler that has news for its
// thread (a cancel) sets its word to 3, gfutex_nudge(): whether the wait is still to come or begun
// anew, the kernel finds another value than 0, and the waiter looks (host_cancel_due).
// Model: nudge_model.
//
// Signals during a wait (Waiter::on_signal):
//   kDefer  the handler runs when the wait is over.
//   kEintr  the wait ends: unlinked, handlers run, -EINTR.
//   kGoOn   the handlers run while the waiter keeps its place (cond and barrier: a wake-up
//           that comes meanwhile is theirs). While they run it is as a foreign waiter:
//           wakers set `word` and nobody is readied.
//
// Callers: any thread; a G enters the engine by itself, any other thread has its signals
// blocked while it holds a bucket (its handler may post a semaphore). Stack: any but g0.
// Errors: 0 or -errno as futex(2): EAGAIN, ETIMEDOUT, EINTR.
#pragma once

#include "sched/park.h"

namespace weft {

enum class OnSignal : uint8_t { kDefer, kEintr, kGoOn };

struct Waiter {
  // The first five and `priority` are set by gfutex_enqueue.
  Waiter* next;
  Waiter* prev;
  const void* addr;                      // changes when requeued; guarded by the bucket lock
  G* g;                                  // null: foreign, sleeps on `word`
  uint64_t token;                        // foreign: the word of the wait that a handler of its interrupted
  std::atomic<uint32_t> word{0};         // foreign: 0 waiting, 1 woken, 2 gave up, 3 waiting and nudged
  uint32_t bitset = ~0u;
  // Counts the waiters of an address; the ABI file adds, under the bucket lock, unlink
  // subtracts. Nobody else changes it (sem: what shares its 64-bit word with it, by a CAS of all).
  std::atomic<uint32_t>* counter = nullptr;
  bool (*stop)() = nullptr;              // kGoOn: asked around the handlers; true: -EINTR
  void* arg = nullptr;                   // the ABI file's own (cond: the mutex)
  uint64_t since_tsc = 0;                // for hand-off: when it started to wait; 0 unknown
  uint32_t tag = 0;                      // the ABI file's own (rwlock: reader or writer)
  uint8_t priority = 0;                  // real-time, of a foreign thread
  OnSignal on_signal = OnSignal::kDefer;
  bool front = false;                    // it has waited before: goes to the head
  bool linked = false;
  bool claimed = false;                  // woken already, queued for its turn (requeue)
  bool handed = false;                   // what it waits for was given to it
  bool barges = false;                   // it is not to be, before it runs
  bool duty = false;                     // others wait behind it: see mutex.h
};

struct WakeResult {
  uint32_t woken = 0;
  uint32_t requeued = 0;
};

// Waits while *addr == expected. deadline: CLOCK_MONOTONIC ns or kNever. `interruptible`:
// a signal ends it with -EINTR (also without a handler having run: the caller looks).
int gfutex_wait(const std::atomic<uint32_t>* addr, uint32_t expected, uint64_t deadline_ns,
                Wait why, bool interruptible = false, uint32_t bitset = ~0u);
uint32_t gfutex_wake(const void* addr, uint32_t n, uint32_t bitset = ~0u);
// Wakes n_wake waiters of `from` and moves up to n_requeue more onto `to`. With `check`,
// nothing is done unless *check == expected under both locks (-EAGAIN).
int gfutex_requeue(const void* from, uint32_t n_wake, const void* to, uint32_t n_requeue,
                   const std::atomic<uint32_t>* check, uint32_t expected, WakeResult* out);

// ---- in two steps, for cond (enqueue while the mutex is held) and for custom checks
// Links w as waiting for addr. `still` (may be null) decides under the bucket lock whether
// to wait at all; false: not linked. From here until gfutex_sleep returns the calling G is
// in the engine. `interruptible` makes a kDefer waiter kEintr.
bool gfutex_enqueue(Waiter* w, const void* addr, Wait why, bool interruptible,
                    bool (*still)(void*), void* arg);
// Sleeps until w is woken: 0, -ETIMEDOUT, -EINTR. Between the two calls the caller may
// release a lock (that readies others), but not wait for anything else.
int gfutex_sleep(Waiter* w, uint64_t deadline_ns);
// Wakes at most one waiter of addr. `decide(w, more, arg)` runs under the bucket lock with
// the claimed waiter (null: nobody waits) and whether others of addr remain linked: the
// place to change the word so that it agrees with the queue. It may answer false for a
// waiter that is a G (w->g set): then w is claimed but not readied, and the caller's to
// ready (gfutex_ready, gfutex_queue_claimed). True if one was woken.
bool gfutex_wake_one(const void* addr, bool (*decide)(Waiter* w, bool more, void* arg), void* arg);
// Readies a waiter that decide or WaitQueue::take kept.
void gfutex_ready(Waiter* w);
// A list (through next) of claimed waiters queues for addr, last in line: each will be
// found by a later wake of addr as if it were waiting there.
void gfutex_queue_claimed(const void* addr, Waiter* list);

// The waiters of one address, under the bucket lock, for whoever must choose (rwlock).
class WaitQueue {
 public:
  Waiter* first() const;
  Waiter* next(const Waiter* w) const;
  // Claims and unlinks w, to be readied when the visit is over. False: it gave up just
  // now (and stays linked until it has seen so).
  bool wake(Waiter* w);
  // The same, but w is not readied: it goes to the caller through *kept (see
  // gfutex_wake_one; foreign waiters are woken all the same and not kept).
  bool take(Waiter* w, Waiter*** kept_tail);

 private:
  friend void gfutex_visit(const void*, void (*)(WaitQueue&, void*), void*);
  struct Wakes {
    Waiter* head = nullptr;
    Waiter** tail = &head;
  };
  void* bucket_ = nullptr;
  const void* addr_ = nullptr;
  Wakes wakes_;
};
void gfutex_visit(const void* addr, void (*visit)(WaitQueue& q, void* arg), void* arg);

// From a signal handler of a thread that is no G or a wired one. False: it is not in such a wait; true:
// nothing may unwind it now, and it looks at what is due to it by itself.
bool gfutex_nudge();

void gfutex_boot();
void gfutex_after_fork();

}  // namespace weft

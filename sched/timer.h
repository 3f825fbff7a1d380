// timer.h - per-P timers: a 4-ary heap of intrusive nodes.
//
// Invariant: heap_[t->index] == t while t->pending; the parent is never later.
//            A timer never moves to another heap: other Ms run a P's heap in place.
// Locks:     one per heap; `fire` runs under it and may take what stands right of
//            "timers" in lock.h (it may ready a G). It must not touch *t after the claim
//            that lets the owner go: the node usually lives on the owner's stack.
// Memory:    the array grows by mmap; a failed growth is fatal (8 bytes a timer).
// Callers:   add: an M that holds the P. del: any thread. run: an M that holds any P,
//            sysmon.
#pragma once

#include "sched/lock.h"

namespace weft {

class TimerHeap;

struct Timer {
  uint64_t deadline_ns = 0;       // CLOCK_MONOTONIC
  void (*fire)(Timer*) = nullptr;
  TimerHeap* heap = nullptr;  // where add() put it; the owner's
  uint32_t index = 0;         // guarded by heap->lock_, like pending
  bool pending = false;
};

class TimerHeap {
 public:
  // Returns true when t became the earliest of this heap.
  bool add(Timer* t);
  // Runs what is due at `now_ns`; returns how many fired.
  int run(uint64_t now_ns);
  // kNever when empty. A racing reader may be late by one add; the adder then wakes it.
  uint64_t earliest() const { return earliest_.load(std::memory_order_acquire); }
  uint32_t size() const { return n_; }
  void reset();  // fork child

  // Removes t. After it returns, fire is neither running nor to come (it takes the lock
  // that a running fire holds). True if it was still pending. Owner only.
  static bool del(Timer* t);

 private:
  void up(uint32_t i);
  void down(uint32_t i);
  void place(uint32_t i, Timer* t);
  void remove_at(uint32_t i);
  void grow();

  Lock lock_;
  Timer** heap_ = nullptr;
  uint32_t n_ = 0, cap_ = 0;
  std::atomic<uint64_t> earliest_{kNever};
};

}  // namespace weft

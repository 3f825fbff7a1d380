// called_out.h - a G that a condition has woken and that stands in line for the mutex: its signals.
//
// Such a G is claimed, so a signal cannot end its park (park.h), and it is not readied before the
// mutex is its: who has the mutex may hold it for long, or may be waiting for that very handler (a
// collector that stops the world). So the sender calls it out: it runs its handlers and goes back
// to its park, and if its turn comes meanwhile it is told.
//
// In the holder's chain (preload/mutex.h), which no lock guards (the hot side):
//
//   who chains it               who takes it out                 sender (attention is set)
//   1 stands = kChain           3 stands = kNowhere              a  stands == kChain?
//   2 attention? call it out    4 called? settle by CAS; lost:   b  called: kNone -> kAsking
//                                 told, not readied              c  membarrier
//                                                                d  stands == kChain still?
//                                                                e  called: kAsking -> kOut: ready it
// Either 2 sees the attention or a sees 1; either d sees 3 or 4 sees b. Of e and 4's CAS to kNone one
// wins. The G itself goes back with a CAS of kOut to kNone, then does 2; 4's kOut to kPassed tells it.
//
// Senders ask one at a time, under a lock, which may be taken with a bucket's held.
//
// In the mutex's queue (gfutex_queue_claimed) the bucket's lock decides: the sender unlinks it and
// readies it. It comes back as one that waits for the lock like any other.
//
// Callers: the preload's mutex and cond (chain_enter, chain_leave), who notifies of signals (call_out).
// Without membarrier both hot sides have a fence instead.
#pragma once

#include "sched/gfutex.h"

namespace weft {

// To g, whose attention is set and whose park cannot be interrupted. True: it was in line, and runs.
// In the engine or on a foreign thread.
bool call_out(G* g);

// Is that why its park ended? A sender may be asking for one that has left the line meanwhile.
inline bool was_called_out(const G* g) {
  Called c = g->called.load(std::memory_order_relaxed);
  return c == Called::kOut || c == Called::kPassed;
}

// g was called out while it waited with `w`: runs its handlers and waits on. In the engine.
// Returns when it is w's turn.
void stay_in_line(G* g, Waiter* w);

void call_out_after_fork();

void call_out_new(G* g);
bool leave_called(Waiter* w);

inline void line_fence() {
  compiler_barrier();
  if (WEFT_UNLIKELY(!sched.membarrier)) std::atomic_thread_fence(std::memory_order_seq_cst);
}

// By who puts the claimed w into a chain, once it is linked.
inline void chain_enter(Waiter* w) {
  G* g = w->g;
  g->stands.store(Stands::kChain, std::memory_order_release);  // step 1
  line_fence();
  if (WEFT_UNLIKELY((g->attention.load(std::memory_order_relaxed) & kAttSignal) != 0)) call_out_new(g);
}

// By who takes w out of a chain, once `handed` and `duty` say what it gets. False: it is told and runs
// already; w is not to be touched any more, nor its G readied.
inline bool chain_leave(Waiter* w) {
  G* g = w->g;
  g->stands.store(Stands::kNowhere, std::memory_order_relaxed);  // step 3
  line_fence();
  return WEFT_LIKELY(g->called.load(std::memory_order_relaxed) == Called::kNone) || leave_called(w);
}

}  // namespace weft

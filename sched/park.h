// park.h - the one way to block a G, and the one way to wake it.
//
//   sleeper (a G, in the engine)              waker (anyone)
//   1 token = park_begin(g, wait, on)         a  finds (g, token) in a queue
//   2 publish (g, token) in a queue           b  park_claim(g, token, reason)
//   3 park(g) -> Reason                       c  only the winner: ready(g)
//
// The park word is [sequence | Reason]. park_begin makes it [n | kWaiting]; the claim is
// a CAS to [n | reason], so of a wake, a timeout and an interrupt exactly one wins, and a
// token from an earlier wait never matches. The winner may ready g before step 3 or
// before g has left its stack: the switch handles it (G::on_cpu). Step 3 therefore always
// switches, even when the claim has been made: the winner's ready() has put g on a queue
// and g must leave through that queue.
//
// Between 1 and 3 the sleeper may change its mind only by claiming itself
// (park_claim(g, token, kNone) true: nobody else did, do not park).
//
// The word lives in the G, which is type-stable, so a stale token is harmless.
// Claim: acq_rel: what the waker wrote before is visible to the sleeper after.
#pragma once

#include "sched/sched.h"

namespace weft {

inline uint64_t park_begin(G* g, Wait why, const void* on, bool interruptible = false) {
  uint64_t seq = (g->park.load(std::memory_order_relaxed) >> 3) + 1;
  g->wait = why;
  g->wait_on = on;
  g->wait_since_ns = sched.coarse_ns.load(std::memory_order_relaxed);
  int by = !interruptible ? 0 : is_cancel_point(why) ? kAttEndsWait : kAttEndsWait & ~kAttCancel;
  g->ended_by.store(static_cast<uint8_t>(by), std::memory_order_relaxed);  // ordered by park
  uint64_t token = seq << 3 | static_cast<uint64_t>(Reason::kWaiting);
  uint64_t calls = g->state.load(std::memory_order_relaxed) & ~uint64_t{0xffffffff};
  g->state.store(calls | static_cast<uint64_t>(GState::kWaiting), std::memory_order_relaxed);
  g->park.store(token, std::memory_order_release);
  // StoreLoad against whoever sets attention and then looks at the park word (park.cc,
  // park_word_of): one of the two sees the other. park() looks at attention. The fence is
  // the other side's membarrier; here only where there is none.
  if (WEFT_UNLIKELY(interruptible && !sched.membarrier))
    std::atomic_thread_fence(std::memory_order_seq_cst);
  return token;
}

// After the sleeper has claimed its own park: it runs on.
inline void park_abandon(G* g) {
  uint64_t calls = g->state.load(std::memory_order_relaxed) & ~uint64_t{0xffffffff};
  g->state.store(calls | static_cast<uint64_t>(GState::kRunning), std::memory_order_relaxed);
}

inline bool park_claim(G* g, uint64_t token, Reason r) {
  uint64_t want = token;
  return g->park.compare_exchange_strong(want, (token & ~uint64_t{7}) | static_cast<uint64_t>(r),
                                         std::memory_order_acq_rel, std::memory_order_relaxed);
}

// A signal or a cancel (bits of attention) came before we published: true if the park is over.
bool park_ends_early(G* g, uint32_t bits);

// Sleeps until claimed. In the engine, with nothing locked. In line, as the whole way down to the
// switch is: each return on the other side is to an address that the processor did not foresee.
// `next`, claimed by the caller, is to be the next to run here (switch_to); null: whoever it is.
inline Reason park(G* g, G* next = nullptr) {
  // Who parks gives its P up anyway: the end of its slice, which sysmon may mark at any moment,
  // ends no wait.
  constexpr uint32_t kEndsNoWait = kAttProbe | kAttResumed | kAttPreempt | kAttMakeWay;
  uint32_t bits = g->attention.load(std::memory_order_relaxed) & ~kEndsNoWait;
  if (WEFT_UNLIKELY(bits != 0) && park_ends_early(g, bits)) {
    if (next != nullptr) ready(next);
    return Reason::kInterrupted;
  }
  if (next != nullptr) switch_to(next);
  else switch_away();
  gave_way(g);  // asked before it parked
  return static_cast<Reason>(g->park.load(std::memory_order_acquire) & 7);
}

// The same with a deadline (CLOCK_MONOTONIC ns; kNever: none).
Reason park_timed(G* g, uint64_t token, uint64_t deadline_ns);
inline Reason park_until(G* g, uint64_t token, uint64_t deadline_ns) {
  return deadline_ns == kNever ? park(g) : park_timed(g, token, deadline_ns);
}

// Ends g's park with kInterrupted if `why` (kAttSignal, kAttCancel: set in its attention) ends that one.
bool park_interrupt(G* g, Attention why);

// Ends whatever park g is in: for an asynchronous cancel, which takes the G out of its wait
// and acts before the wait's caller goes on.
bool park_break(G* g);

// Sleeps without a queue. Returns kTimeout or kInterrupted.
Reason park_sleep(G* g, uint64_t deadline_ns, Wait why, bool interruptible);

}  // namespace weft

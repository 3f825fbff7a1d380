// fair.h - wake-up preemption: a woken G does not wait out the slice of one that computes.
//
// Go has one slice, 10 ms, so its sleepers wake late beside busy Ps. Here a G that was woken
// (timer, netpoll, gfutex) while every P is busy gets in as soon as the G before it has had
// kShareNs:
//  - sysmon fires due timers and polls descriptors for busy Ps, and places what it readies
//    as runnext of the P whose G has run longest (place_woken);
//  - ready() marks its P (P::woke); sysmon preempts a marked P's G after a share, an
//    unmarked one's, whose queue holds only Gs that were preempted themselves, after a slice;
//  - who readies a G while computing itself ends sysmon's long sleep (note_hog).
// A preempted G goes to the global queue's tail, so those who compute share in turn.
//
// A G that waits in a loop of its own, without any call, is worse than one that computes:
// whoever ends its wait may stand behind it in the queue. So sysmon has each G looked at
// twice in a slice while others wait. Found both times at the same place with the same
// registers but for a count (sigpreempt.cc) it is preempted, and looked at sooner in its next
// slices (G::spins), until it is found to have got on. More threads than cores at a
// spinning barrier (tests/bench oversub_spin) took 6 times native's time with slices of
// 10 ms only. The price, for Gs that compute: two signals in 10 ms.
#pragma once

#include "sched/sched.h"

namespace weft {

constexpr uint64_t kShareNs = 500'000;  // half of the 1 ms that a woken G may have to wait
constexpr uint64_t kLookNs = 200'000;   // between the start of a slice and looks
constexpr uint64_t kLookSoonNs = 50'000;  // at one that was found waiting before
constexpr uint8_t kLooks = 2;           // a slice
constexpr uint8_t kSpinsMost = 3;       // times it may be found to have got on before it is believed

// The second look at g, the caller, in one slice: did it wait all the time?
inline void note_spin(G* g, bool waits) {
  uint8_t n = g->spins.load(std::memory_order_relaxed);
  if (waits) n = kSpinsMost;
  else if (n != 0) n--;
  g->spins.store(n, std::memory_order_relaxed);
}

// From no P's own M, with no P idle: g runs next on the P that has run one G the longest.
// False: put it elsewhere.
bool place_woken(G* g);
// The M of p, computing since sysmon last looked, has readied a G.
void note_hog(P* p);
// sysmon: true if p's G has had its share and a woken one waits.
bool share_is_over(const P* p, uint64_t now);
// sysmon: true if it is time to look at g, which runs on p while others wait.
bool look_is_due(const P* p, const G* g, uint64_t now);
// sysmon: how long it may sleep while all Ps are busy; kNever: as it likes.
uint64_t fair_delay(uint64_t now);
// A timer is now the earliest of a P: sysmon must not sleep past it if all are busy.
void note_timer(uint64_t deadline_ns);
// sysmon, around its sleep: for how long, at most `longest`.
uint64_t sysmon_begins_sleep(uint64_t now, uint64_t longest);
void sysmon_ends_sleep();

}  // namespace weft

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
// Gs that wait by spinning are spinwait.h's.
#pragma once

#include "sched/sched.h"

namespace weft {

constexpr uint64_t kShareNs = 500'000;  // half of the 1 ms that a woken G may have to wait
// From no P's own M, with no P idle: g runs next on the P that has run one G the longest.
// False: put it elsewhere.
bool place_woken(G* g);
// The M of p, computing since sysmon last looked, has readied a G.
void note_hog(P* p);
// sysmon: true if p's G has had its share and a woken one waits.
bool share_is_over(const P* p, uint64_t now);
// sysmon: how long it may sleep while all Ps are busy; kNever: as it likes.
uint64_t fair_delay(uint64_t now);
// A timer is now the earliest of a P: sysmon must not sleep past it if all are busy.
void note_timer(uint64_t deadline_ns);
// sysmon, around its sleep: for how long, at most `longest`.
uint64_t sysmon_begins_sleep(uint64_t now, uint64_t longest);
void sysmon_ends_sleep();

}  // namespace weft

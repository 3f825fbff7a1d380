// fair.h - slices, and wake-up preemption: a woken G does not wait out the slice of one that
// computes.
//
// Go has one slice, 10 ms, so its sleepers wake late beside busy Ps. Here a G that was woken
// (timer, netpoll, gfutex) while every P is busy gets in as soon as the G before it has had
// kShareNs:
//  - sysmon fires due timers and polls descriptors for busy Ps, and places what it readies
//    as runnext of the P whose G has run longest (place_woken); if that P's M turns out to
//    have lost its core, on another (check_slice);
//  - sysmon preempts a G after a share where a woken one waits (runnext, or in the ring up
//    to P::woken_until), after a slice where only Gs wait that were preempted themselves;
//  - who readies a G while computing itself ends sysmon's long sleep (note_hog).
//
// Whose slice is over goes to the global queue's tail, so those who compute share in turn.
// Who only makes way keeps its turn: it goes on here after the woken ones (yield_preempted),
// and what it has used already counts (G::slice_used_ns). When it lost its turn, the threads
// that compute were 25 % apart after 2 s beside one sleeper.
//
// sysmon must run when it wants to, beside Ms that compute. The kernel lets a thread that
// wakes run at once, unless it has just run: woken within 50 us of going to sleep it is not
// eligible yet (EEVDF) and waits for the next tick, 4 ms. Hence kAgainNs, and hence sysmon
// looks by itself each kShareNs for a while after a woken G was placed (kFairForNs), so that
// a sleeper need not wake it just after it has gone to sleep.
//
// A G that makes calls is asked by a mark first (kAttMakeWay, kAttPreempt in G::attention), which
// its next call finds. A signal interrupts its M, sysmon and, by the membarrier, the other Ms, and
// three in four found a server's thread in libc or the kernel and came to nothing: mariadbd with
// 128 connections had 1,600 a second, and has 30.
//
// A crowd is many that wait for a P on which all make calls, as the threads of a server do that
// has more requests than cores. Each of them waits for most of the others whatever the share is,
// but each switch brings the cache lines of another connection (mariadbd: 10 us of the
// 30 a query takes; without any switch while requests come one query costs the server 19 us, not
// 32, and some connections wait 2 s). So there the share is a part of a round of kRoundNs, up to
// kAheadShareNs, events queue behind those that wait already, and sysmon looks less often.
// mariadbd and sysbench on the same 2 cores, point_select, medians of 3, k/s: 128 connections 44.5,
// before 29.0, natively 28.0; 1000: 22.0, before 17.8, natively 15.9.
//
// That is with both in one scheduling group of the kernel. In one each (autogroup, systemd) it was
// 37.0, before 31.6, natively 40.2, and 18.4, 18.7, 20.0: two Ms that never sleep keep a core
// from the other group's woken threads, for up to 200 ms (nothing but the M and sysmon ran there), and
// the kernel leaves a client on its core (a waker of many does not draw them to its own), so that
// seven in ten answers went to the other core. Sending each event's G to the P on the core of
// SO_INCOMING_CPU, through an inbox of the P, made 40 to 50 of the 37 in half of the runs and
// nothing in the others: not kept.
//
// A G that computes in libc, or on a stack of its own making, cannot be stopped (sigpreempt.cc). When
// it has been asked in vain kDeafAsks times its P goes on without it, as if it slept (retake_hidden): it is a
// kernel thread among others until it next enters the engine. Beside 4 that print into strings all
// the time on one core, sleeps of 1 ms took 53 ms, at most 282, and take 1.4, at most 22; natively 1.2.
//
// Gs that wait by spinning are spinwait.h's.
#pragma once

#include "sched/sched.h"

namespace weft {

constexpr uint64_t kShareNs = 500'000;  // half of the 1 ms that a woken G may have to wait
// A thread that serves many (G::ahead) has the kernel's share: a thousand connections that come at
// once are accepted in a few of these, while those accepted last wait behind those accepted first.
constexpr uint64_t kAheadShareNs = 3'000'000;
constexpr uint32_t kCrowd = 16;
constexpr uint64_t kRoundNs = 100'000'000;
constexpr uint64_t kCrowdLookNs = 1'500'000;

// From no P's own M, with no P idle: g runs next on the P that has run one G the longest.
// False: put it elsewhere.
bool place_woken(G* g);
// One was so placed of late, and may stand there yet.
bool placed_lately();
// Somebody could use p at once.
bool others_wait(const P* p);
// Many wait for p, none of whom was woken: they yield, or were preempted, and come round again.
bool crowd_of_unwoken(const P* p);
// Every P is busy, and somebody waits for what comes from outside the process.
bool outside_waits();
// The M of p, computing since sysmon last looked, has readied a G.
void note_hog(P* p);
// sysmon: p's M m runs g and computes, as far as one sees. Preempts it if it is time. True: it cannot be
// stopped where it is, and p is to go on without it.
bool check_slice(P* p, M* m, G* g, uint64_t now);
// sysmon: p runs another G than at the last look.
void check_moved(P* p, M* m, G* g, uint64_t now, bool running);
// sysmon: for how long what comes from outside may wait for the Ps, all busy, to look.
uint64_t outside_share();
// sysmon: g is in a system call on p, most likely one of many short ones. If it is time, it
// gives way as it comes out of it; no signal is needed.
void check_slice_in_call(P* p, G* g, uint64_t now);
// sysmon: p runs another slice now; the tick before it noticed was at `before`.
void slice_begins(P* p, uint64_t now, uint64_t before);
// sysmon: how long it may sleep while all Ps are busy; kNever: as it likes.
uint64_t fair_delay(uint64_t now);
// A timer is now the earliest of a P: sysmon must not sleep past it if all are busy.
void note_timer(uint64_t deadline_ns);
// sysmon, around its sleep: for how long, at most `longest`.
uint64_t sysmon_begins_sleep(uint64_t now, uint64_t longest);
void sysmon_ends_sleep();

}  // namespace weft

// netpoll.h - readiness, sleep and break: the epoll descriptor and who may wait on it.
//
// The scheduler calls netpoll() from idle Ms (blocking), busy Ms (now and then) and sysmon
// (not blocking). One M at a time blocks in it: Sched::last_poll_ns == 0 says so.
// netpoll_break() ends that block early; it is cheap when a break is already under way.
//
// The epoll descriptor is made at the first wait of a G for a descriptor. Before that,
// netpoll() sleeps on a futex word, so timers need no descriptor. Both descriptors have
// high numbers and are hidden: for the program they are not open (netpoll_owns).
#pragma once

#include "sched/sched.h"

namespace weft {

struct PollDesc;

// ---- for the scheduler
// Gs made ready by events, claimed, not yet queued. delay_ns: 0 polls, kNever blocks, else
// at most that long. *more: there may be events left. g0 or sysmon.
GList netpoll(uint64_t delay_ns, bool* more = nullptr);
void netpoll_break();
// True while some G may be readied by netpoll: it is worth polling.
bool netpoll_waiters();
// Looks at p's waits that began without a try (netsettle.cc), after a look that left no event in
// the kernel. True: to be done once more, after another such look, before the P goes idle.
// g0, or a G in the engine, that holds p.
bool netpoll_settle(P* p, GList& out);
// The same for all Ps at once, begun before this tick of sysmon's, who alone calls it; with that
// other look.
void netpoll_settle_all(uint64_t now_ns);
// sysmon, once a tick: re-verifies waits that last (netverify.cc).
void netpoll_verify(uint64_t now_ns);
void netpoll_after_fork();

// ---- for polldesc.cc, under pd's lock
// Registers pd for `dirs` (1 << PollDir) more. 0 or -errno.
int netpoll_arm(PollDesc* pd, uint32_t dirs);
void netpoll_disarm(PollDesc* pd);
// Whether p has room to note such a wait:
bool netpoll_may_leave_untried(const P* p);
// Wait `no` to read from pd, in its life `tag`, of a G on p, began without a try; not under pd's lock.
void netpoll_note_untried(P* p, PollDesc* pd, uint32_t tag, uint32_t no);
void netpoll_settle_old(uint64_t now_ns);
void netpoll_settle_after_fork();
// Asks the kernel about a registration: 0 fine, -ENOENT: it is another file's.
int netpoll_rearm(PollDesc* pd);

// Counts the looks that left no event in the kernel. More than there are Ps since a moment, and
// sysmon's own: one of them began after it.
uint64_t netpoll_drains();
// True once every event that was fetched before the first call with *mark == 0 has been
// handled (an M can lose its core between the two, for long).
bool netpoll_all_handled(uint64_t* mark);

// ---- for the I/O layer
// Off for good (WEFT_NETPOLL=off, or no epoll to be had): calls block in the kernel.
void netpoll_disable();
bool netpoll_enabled();
// One of ours: closed, as far as the program can tell.
bool netpoll_owns(int fd);
// The lowest of our numbers that is >= from; INT_MAX: none.
int netpoll_next_owned(int from);
// The number is wanted by the program (dup2): ours moves out of its way.
void netpoll_make_room(int fd);
// A duplicate of fd with a number the program does not come to. -errno on failure.
int netpoll_high_dup(int fd);

struct NetpollStats {
  uint64_t polls, events, breaks, repaired, readded;
};
NetpollStats netpoll_stats();
uint64_t netpoll_repaired();                // lost wake-ups found by re-verification
uint64_t netpoll_readded();                 // stale registrations found by it

}  // namespace weft

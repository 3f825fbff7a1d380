// polldesc.h - what the netpoller knows of a descriptor number, and who waits for it.
//
// A PollDesc belongs to a number, not to a file. It is type-stable: cut from chunks that
// are never unmapped, so a stale pointer may always be locked and looked at.
//
// Edges are counted, not stored. Per direction a PollDesc has seq, the number of edges seen:
//
//   G                                         whoever runs netpoll()
//   1 s = seq                                 a  an edge comes out of epoll_wait
//   2 try the call without blocking           b  lock; seq++; unlink whom it wakes; unlock
//   3 EAGAIN: lock; seq == s? link : again    c  ready them
//   4 unlock; park
// If the file became ready after 2, its edge is fetched after 2 too: either 3 sees b, or b
// sees the link of 3. If it became ready before 2, then 2 succeeds. Registering lazily in
// step 3 is as good: EPOLL_CTL_ADD reports readiness that is already there as an edge.
// Go's rg/wg words hold one waiter and one remembered edge each; counting serves any
// number of readers and needs no reset before the call.
//
// Whom an edge wakes. Waiters are observers (poll, select: they take nothing) or takers
// (read, accept: they may use the readiness up). An edge wakes every observer and the first
// taker. Two connections may come as one edge, so a woken taker passes it on: when it is
// done and others wait in its direction, it asks the kernel (poll, 0.2 us) and wakes the
// next taker if more is left. So each connection wakes one G, and a taker that was
// overtaken by a newcomer waits again without harm:
//   - A woken, B new takes all that was there: A gets EAGAIN; nothing is left behind.
//   - B takes half: A, still on its way, takes the rest or passes on.
//   - A times out at once with the edge: the claim has one winner (park.h); a lost claim
//     moves on to the next taker.
// Hang-up and errors stay, so they wake all in both directions, as EPOLLRDHUP does readers.
//
// close() over waiters (polldesc_retire): the kernel lets a blocked call keep the file it
// began with. So do we: the waiters, and takers woken but not yet back, move to a
// duplicate with a high number, closed by the last of them. The number itself starts a
// new life: `tag` changes, and events that carry the old one are dropped.
//
// Locks: PollDesc::lock ("poll desc" in lock.h's order); the orphan list's lock after it.
// Callers: wait: a G in the engine. fire: anyone. retire: any thread.
#pragma once

#include "sched/park.h"

namespace weft {

struct PollDesc;

enum PollDir : uint32_t { kPollIn = 0, kPollOut = 1 };

// One wait of one G on one direction. Lives on the waiter's stack; touched under pd->lock,
// and no more once it is unlinked and its G claimed.
struct PollWaiter {
  PollWaiter* next = nullptr;
  PollWaiter* prev = nullptr;
  PollDesc* pd = nullptr;
  G* g = nullptr;
  uint64_t token = 0;
  uint32_t dir = kPollIn;
  bool observer = false;
  bool linked = false;
};

enum PollSticky : uint32_t { kSeenHup = 1, kSeenPri = 2 };

struct alignas(kCacheLine) PollDesc {
  Lock lock;
  int fd = -1;                              // constant once the chunk is made
  std::atomic<uint32_t> tag{0};             // life of the number; changes under lock
  std::atomic<uint32_t> seq[2]{};           // edges seen; changes under lock
  std::atomic<uint32_t> sticky{0};          // PollSticky seen in this life
  std::atomic<bool> ahead{false};           // listens, or is an epoll: its waiters go first
  // --- guarded by lock
  uint32_t armed = 0;                       // 1 << dir for each direction epoll reports
  PollWaiter* head[2] = {};                 // FIFO; head->prev is the tail
  std::atomic<uint32_t> wait_no[2]{};       // counts waits, for netsettle.cc and netverify.cc
  uint32_t untried_no = 0;                  // the last to read that began without a try
  std::atomic<uint32_t> in_flight[2]{};     // takers woken and not yet back with their try
  // --- of a duplicate that keeps a closed file for its waiters
  uint32_t orphans = 0;                     // takers that still need it
  int was_fd = -1;
  uint32_t was_tag = 0;
  PollDesc* orphan_next = nullptr;          // list of such, under orphan lock
  // --- verification, sysmon only
  uint32_t seen_waits = 0;
  uint32_t seen_seq[2] = {};
  uint8_t verify_step = 0;
  // --- the I/O layer's notes on this life of the number (preload/io_fd.h); 0 at its start
  std::atomic<uint32_t> kind{0};
  std::atomic<uint32_t> notes{0};
  std::atomic<uint32_t> share_epoch{0};
  // --- of a pipe's end, for plain reads and writes (io_rw.cc)
  std::atomic<uint16_t> careful{0};         // calls to come that must not wait
  std::atomic<uint16_t> taken_n{0};         // as many were said last, and when that was
  std::atomic<uint32_t> taken_at{0};
  std::atomic<uint16_t> widest{0};          // no plain write was wider
  std::atomic<int32_t> room{0};             // one fits below this level; 0: not known, < 0: never
  std::atomic<uint64_t> drained{0};         // 1<<32 | seq[in]: a read found it empty then
  std::atomic<uint32_t> guess{0};           // first tries of a read in a row that found nothing
  std::atomic<uint32_t> read_seq{0};        // seq[in] as the last read that got data sampled it
  // What goes into this end of a pipe or socket pair comes out of: tag << 32 | fd + 1. 0: not known.
  std::atomic<uint64_t> peer{0};
  std::atomic<bool> fed{false};             // it is somebody's peer; and, of a pipe's read end,
  std::atomic<int32_t> level{0};            // the bytes that wait in it, as far as we saw
};

// Null beyond the table, for negative numbers and before the first need (_peek only looks).
PollDesc* polldesc_get(int fd);
PollDesc* polldesc_peek(int fd);
bool polldesc_any_waits();                  // some G is linked somewhere
int polldesc_max_fd();                      // no PollDesc above it was ever asked for

// One call's way through steps 1 to 4.
struct PollTurn {
  PollDesc* pd = nullptr;
  uint32_t dir = kPollIn;
  uint32_t tag = 0;
  uint32_t seq = 0;
  bool woken = false;                       // the last wait ended by an edge: pass it on
  bool orphan = false;                      // pd is a duplicate; its number is pd->fd
  bool forked = false;                      // the last wait ended in a handler that forked: the child
};
inline void poll_turn_begin(PollTurn& t, PollDesc* pd, PollDir dir) {
  t.pd = pd;
  t.dir = dir;
  t.tag = pd->tag.load(std::memory_order_acquire);
}
inline void poll_turn_sample(PollTurn& t) {
  t.seq = t.pd->seq[t.dir].load(std::memory_order_acquire);
}
// Step 3 and 4. 0: try again. -ETIMEDOUT, -EINTR; -EPERM: epoll does not take this file, or the G was
// wired since its call began: it must not park, the call is the kernel's;
// -EBADF: the number was closed since the turn began; other -errno from epoll_ctl.
// `untried`: step 2 was left out; the wait is settled later (netsettle.cc).
int poll_turn_wait(PollTurn& t, uint64_t deadline_ns, Wait why, bool untried = false);
void poll_turn_finish(PollTurn& t);
// Ends a turn: passes readiness on, lets a duplicate go. Before the call's result is used.
inline void poll_turn_end(PollTurn& t) {
  if (WEFT_UNLIKELY(t.woken || t.orphan)) poll_turn_finish(t);
}

// Observers: waits until one of the n descriptors has an edge past its sample. The caller
// filled pd, dir and `seq` (sampled before its own poll(0)). Same results as above.
struct PollWatch : PollWaiter {
  uint32_t seq = 0;
};
int poll_watch_wait(PollWatch* w, uint32_t n, uint64_t deadline_ns, Wait why);

// An edge in the directions of `dirs` (1 << PollDir); `all`: takers too.
void polldesc_fire(PollDesc* pd, uint32_t dirs, bool all, GList& out);
// `from` and `to` are the two ends of one file pair: bytes go from the first to the second.
void polldesc_pair(PollDesc* from, PollDesc* to);
// The other end of `from`; null: not known, or closed.
PollDesc* polldesc_peer(const PollDesc* from);
// The calling G has just put bytes into `from`: whoever waits at the other end need not wait for
// epoll to tell. Only ever a hint: where it is not given, or comes too early, the event does.
// `counted`: a pipe's, how many, added to the level there.
void polldesc_fed_peer(PollDesc* from, long counted);
inline void polldesc_fed(PollDesc* from, long counted) {
  if (from->peer.load(std::memory_order_relaxed) != 0) polldesc_fed_peer(from, counted);
}
// Somebody waits to read.
inline bool polldesc_awaited(const PollDesc* pd) {
  return reinterpret_cast<const std::atomic<PollWaiter*>*>(&pd->head[kPollIn])
             ->load(std::memory_order_relaxed) != nullptr;
}
// The number is about to be closed or replaced (before the kernel does it).
void polldesc_retire(PollDesc* pd);
// The number has just been made by a call we saw; whatever we knew is void.
void polldesc_renew(PollDesc* pd);
// True for a duplicate kept for waiters: the program must not see it.
bool polldesc_is_orphan(int fd);
int polldesc_next_orphan(int from);         // lowest of them >= from; INT_MAX: none
void polldesc_after_fork();

}  // namespace weft

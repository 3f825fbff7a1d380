// netsettle.cc - waits begun without a try, looked at later, many at once.
//
// A thread that serves a connection reads, answers and reads again; that last read finds
// nothing and costs a system call. Where it always went so (the I/O layer learns it per
// descriptor) the G parks untried. If the guess was wrong, data are there whose edge was
// used up by the read before, and no new edge comes. So each untried wait is noted with its
// P, and settled by one poll() over all of them:
//   - when the P has nothing else to run, before it spins or sleeps (find_runnable);
//   - every 64 switches, and when the list is full;
//   - by sysmon after 2 ms without that (a P that computes, or lost its M).
// Most were answered by their edge before that and cost nothing. 30 ns a descriptor
// instead of 200 for a try.
//
// Lock: one per list, around its arrays only; taken before any PollDesc's.
#include <poll.h>

#include "sched/netpoll.h"
#include "sched/polldesc.h"

namespace weft {
namespace {

constexpr uint32_t kMost = 64;
constexpr uint64_t kOldNs = 2'000'000;

struct Untried {
  PollDesc* pd;
  uint32_t wait_no;
  uint32_t tag;
};

struct alignas(kCacheLine) SettleList {
  Lock lock;
  std::atomic<uint32_t> n{0};
  std::atomic<uint32_t> rounds{0};        // times it was emptied
  uint32_t seen_rounds = 0;               // sysmon only
  uint64_t seen_ns = 0;
  Untried at[kMost];
};
SettleList lists[kMaxProcs];

bool still_waits(const Untried& u) {
  return u.pd->wait_no.load(std::memory_order_relaxed) == u.wait_no &&
         u.pd->tag.load(std::memory_order_relaxed) == u.tag && u.pd->head[kPollIn] != nullptr;
}

bool settle(SettleList& l) {
  Untried mine[kMost];
  struct pollfd fds[kMost];
  uint32_t n = 0;
  {
    Hold hold(l.lock);
    for (uint32_t i = 0; i < l.n.load(std::memory_order_relaxed); i++)
      if (still_waits(l.at[i])) mine[n++] = l.at[i];
    l.n.store(0, std::memory_order_relaxed);
    l.rounds.fetch_add(1, std::memory_order_relaxed);
  }
  if (n == 0) return false;
  for (uint32_t i = 0; i < n; i++) fds[i] = {mine[i].pd->fd, POLLIN | POLLRDHUP, 0};
  if (sys_call(SYS_poll, sys_arg(&fds[0]), n, 0) <= 0) return false;
  GList out;
  for (uint32_t i = 0; i < n; i++) {
    if (fds[i].revents == 0) continue;
    PollDesc* pd = mine[i].pd;
    pd->lock.lock();
    if (still_waits(mine[i])) polldesc_fire(pd, 1u << kPollIn, false, out);
    // Left over, or just come: the next read tries, and unlearns if it finds something.
    if (pd->guess.load(std::memory_order_relaxed) > 1) pd->guess.store(2, std::memory_order_relaxed);
    pd->lock.unlock();
  }
  bool any = out.head != nullptr;
  ready_list(out);
  return any;
}

}  // namespace

void netpoll_note_untried(P* p, PollDesc* pd) {
  SettleList& l = lists[p->id];
  if (l.n.load(std::memory_order_relaxed) == kMost) settle(l);
  Hold hold(l.lock);
  uint32_t n = l.n.load(std::memory_order_relaxed);
  if (n == kMost) n--;  // sysmon and we met: the last note is lost to re-verification
  l.at[n] = {pd, pd->wait_no.load(std::memory_order_relaxed),
             pd->tag.load(std::memory_order_relaxed)};
  l.n.store(n + 1, std::memory_order_relaxed);
}

bool netpoll_settle(P* p) {
  SettleList& l = lists[p->id];
  return l.n.load(std::memory_order_relaxed) != 0 && settle(l);
}

void netpoll_settle_old(uint64_t now_ns) {
  for (uint32_t i = 0; i < sched.procs; i++) {
    SettleList& l = lists[i];
    if (l.n.load(std::memory_order_relaxed) == 0) {
      l.seen_ns = 0;
      continue;
    }
    uint32_t rounds = l.rounds.load(std::memory_order_relaxed);
    if (l.seen_ns == 0 || l.seen_rounds != rounds) {
      l.seen_ns = now_ns;
      l.seen_rounds = rounds;
    } else if (now_ns - l.seen_ns > kOldNs) {
      settle(l);
      l.seen_ns = 0;
    }
  }
}

void netpoll_settle_after_fork() {
  for (uint32_t i = 0; i < sched.procs; i++) {
    lists[i].lock.reset();
    lists[i].n.store(0, std::memory_order_relaxed);
  }
}

}  // namespace weft

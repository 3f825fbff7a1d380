// netverify.cc - waits that last are looked at again: no wake-up depends on luck alone.
//
// A number can be closed and made anew inside libc (fclose, closedir, popen), where we do
// not see it. A wait for its new file then stands on the registration of the old one and
// no edge ever comes. sysmon walks over the PollDescs, every kEveryNs a full round (a
// slice a tick when there are many); a wait met in three rounds is looked at:
//
//   round 1, 2  met
//   round 3  the same wait: is the file ready? (one poll() for many such)
//            ready: perhaps its edge is on the way. A suspect: judged kJudgeNs later. When no
//              event is left in the kernel and all are handled, still ready, still the same
//              wait, without an edge since, no woken taker under way: the edge was lost.
//              Wake them and count it: `repaired`.
//   round 4  it was not ready: is it registered (EPOLL_CTL_MOD)? ENOENT: register it (its
//              readiness comes as an edge). Done. Of many only some in each round; of the
//              others it is asked again whether they are ready.
//
// What was ready from the start is found within 100 ms. A healthy wait costs three looks, 0.1 us
// of a poll() and one system call, and then nothing. That late, and so few at a time, because of
// crowds: of 5000 connections each waits some 50 ms for its next request, and two system calls
// for most of them made them a third slower (66,000 looks in 2 s beside 290,000 reads and writes).
//
// sysmon sleeps deep only after all Ps were idle for a second: nearly every wait has been seen.
#include <errno.h>
#include <poll.h>

#include "sched/netpoll.h"
#include "sched/polldesc.h"

namespace weft {
namespace {

constexpr uint64_t kEveryNs = 20'000'000;
constexpr uint64_t kEveryOfCrowdNs = 30'000'000;  // which is busy, so sysmon's ticks are short
constexpr uint32_t kCrowd = 1000;
constexpr uint64_t kJudgeNs = 4'000'000;
constexpr int kSlice = 4096;              // PollDescs a tick: about 20 us
constexpr int kMaxChecks = 256;           // system calls a tick
constexpr uint32_t kLooks = 64;           // descriptors a poll()
constexpr uint32_t kRegistrations = 64;   // asked for in a round, at least;
constexpr uint32_t kPart = 16;            // and at least one part in so many of all

enum Step : uint8_t { kMet = 0, kMetAgain, kNotReady, kDone };

// Those whose readiness is asked for, all by one system call.
struct Looks {
  PollDesc* pd[kLooks] = {};
  struct pollfd fds[kLooks] = {};
  uint32_t n = 0;
};

// All sysmon's.
uint64_t next_round_ns;
int at = -1;                              // < 0: between rounds
uint32_t met;                             // waits met in this round
uint32_t registrations_left;              // to be asked for in this round
constinit Looks suspects;
uint64_t judge_ns;                        // when
uint64_t fetch_mark;                      // netpoll_all_handled's, as of the last suspect
uint64_t drain_mark;                      // netpoll_drains() then
std::atomic<uint64_t> n_repaired{0}, n_readded{0};

uint32_t waiting_dirs(const PollDesc* pd) {
  return (pd->head[kPollIn] != nullptr ? 1u << kPollIn : 0) |
         (pd->head[kPollOut] != nullptr ? 1u << kPollOut : 0);
}

uint32_t waits(const PollDesc* pd) {  // begun in this life and those before
  return pd->wait_no[kPollIn].load(std::memory_order_relaxed) +
         pd->wait_no[kPollOut].load(std::memory_order_relaxed);
}

bool quiet_since(const PollDesc* pd) {
  bool quiet = true;
  for (uint32_t d = 0; d < 2; d++)
    quiet = quiet && pd->in_flight[d].load(std::memory_order_relaxed) == 0 &&
            pd->seq[d].load(std::memory_order_relaxed) == pd->seen_seq[d];
  return quiet;
}

// The wait that was met last time is still going on, and nothing has come for it.
bool same_wait(const PollDesc* pd) {
  return pd->seen_waits == waits(pd) && (pd->verify_step == kDone || quiet_since(pd));
}

void meet(PollDesc* pd) {
  pd->seen_waits = waits(pd);
  for (uint32_t d = 0; d < 2; d++) pd->seen_seq[d] = pd->seq[d].load(std::memory_order_relaxed);
  pd->verify_step = kMet;
}

void add(Looks& l, PollDesc* pd, uint32_t dirs) {
  short events = static_cast<short>(((dirs & 1u << kPollIn) != 0 ? POLLIN : 0) |
                                    ((dirs & 1u << kPollOut) != 0 ? POLLOUT : 0));
  l.pd[l.n] = pd;
  l.fds[l.n++] = {pd->fd, events, 0};
}

bool ask(Looks& l) { return l.n != 0 && sys_call(SYS_poll, sys_arg(&l.fds[0]), l.n, 0) >= 0; }

uint32_t ready_dirs(const struct pollfd& p, uint32_t waiting) {
  if ((p.revents & (POLLERR | POLLHUP | POLLNVAL)) != 0) return waiting;
  return waiting & (((p.revents & POLLIN) != 0 ? 1u << kPollIn : 0) |
                    ((p.revents & POLLOUT) != 0 ? 1u << kPollOut : 0));
}

void register_again(PollDesc* pd) {
  uint32_t dirs = pd->armed;
  netpoll_disarm(pd);
  netpoll_arm(pd, dirs);
  n_readded.fetch_add(1, std::memory_order_relaxed);
}

void suspect(PollDesc* pd, uint32_t dirs, uint64_t now) {
  if (suspects.n == kLooks) return;  // it will be met again
  if (suspects.n == 0) judge_ns = now + kJudgeNs;
  add(suspects, pd, dirs);
  fetch_mark = 0;
  netpoll_all_handled(&fetch_mark);
  drain_mark = netpoll_drains();
}

void look(Looks& l, uint64_t now) {
  bool asked = ask(l);
  for (uint32_t i = 0; asked && i < l.n; i++) {
    PollDesc* pd = l.pd[i];
    Hold hold(pd->lock);
    uint32_t dirs = waiting_dirs(pd);
    if (dirs == 0 || !same_wait(pd)) continue;  // the next round meets another
    if (ready_dirs(l.fds[i], dirs) == 0) pd->verify_step = kNotReady;
    else suspect(pd, dirs, now);
  }
  l.n = 0;
}

// Under pd's lock: its edge was lost; or, if the wait began without a try, there was none to come,
// and nobody has settled it yet.
void repair(PollDesc* pd, uint32_t ready, GList& out) {
  bool untried = ready == 1u << kPollIn &&
                 pd->untried_no == pd->wait_no[kPollIn].load(std::memory_order_relaxed);
  if (netpoll_rearm(pd) != -ENOENT && !untried) n_repaired.fetch_add(1, std::memory_order_relaxed);
  register_again(pd);
  polldesc_fire(pd, ready, true, out);
  pd->verify_step = kMet;
}

// Of the events as of the last suspect. One still in the kernel is late, not lost. We fetch them
// ourselves only where nobody else does (sysmon.cc, leave_to_a_p).
bool none_in_kernel() {
  if (sched.ps_look) return netpoll_drains() - drain_mark > sched.procs + 1;
  bool more = true;
  GList events = netpoll(0, &more);
  ready_list(events);
  return !more;
}

void judge_suspects(uint64_t now) {
  bool sure = ask(suspects) && none_in_kernel() && netpoll_all_handled(&fetch_mark);
  uint32_t left = 0;
  for (uint32_t i = 0; i < suspects.n; i++) {
    PollDesc* pd = suspects.pd[i];
    GList out;
    pd->lock.lock();
    uint32_t ready = ready_dirs(suspects.fds[i], waiting_dirs(pd));
    if (ready != 0 && same_wait(pd)) {
      if (sure) {
        repair(pd, ready, out);
      } else {
        suspects.pd[left] = pd;
        suspects.fds[left++] = suspects.fds[i];
      }
    }
    pd->lock.unlock();
    ready_list(out);
  }
  suspects.n = left;
  judge_ns = now + kJudgeNs;
}

void check_registration(PollDesc* pd) {
  Hold hold(pd->lock);
  if (waiting_dirs(pd) == 0 || !same_wait(pd)) return;
  if (netpoll_rearm(pd) == -ENOENT) register_again(pd);
  pd->verify_step = kDone;
}

// How many system calls it took.
int visit(PollDesc* pd, Looks& l, uint64_t now) {
  uint32_t dirs = waiting_dirs(pd);
  if (dirs == 0) return 0;
  met++;
  if (!same_wait(pd)) {
    meet(pd);
  } else if (pd->verify_step == kMet) {
    pd->verify_step = kMetAgain;
  } else if (pd->verify_step == kNotReady && registrations_left != 0) {
    registrations_left--;
    check_registration(pd);
    return 1;
  } else if (pd->verify_step != kDone) {
    add(l, pd, dirs);
    if (l.n < kLooks) return 0;
    look(l, now);
    return 1;
  }
  return 0;
}

}  // namespace

void netpoll_verify(uint64_t now_ns) {
  if (!netpoll_waiters()) return;
  netpoll_settle_old(now_ns);
  if (suspects.n != 0 && now_ns >= judge_ns) judge_suspects(now_ns);
  if (at < 0) {
    if (now_ns < next_round_ns) return;
    next_round_ns = now_ns + (met > kCrowd ? kEveryOfCrowdNs : kEveryNs);
    at = 0;
    registrations_left = met / kPart > kRegistrations ? met / kPart : kRegistrations;
    met = 0;
  }
  int end = polldesc_max_fd() + 1;
  int checks = 0;
  Looks looks;
  for (int i = 0; i < kSlice && checks < kMaxChecks && at < end; i++, at++)
    if (PollDesc* pd = polldesc_peek(at)) checks += visit(pd, looks, now_ns);
  look(looks, now_ns);
  if (at >= end) at = -1;
}

uint64_t netpoll_readded() { return n_readded.load(std::memory_order_relaxed); }
uint64_t netpoll_repaired() { return n_repaired.load(std::memory_order_relaxed); }

}  // namespace weft

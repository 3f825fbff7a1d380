// netverify.cc - waits that last are looked at again: no wake-up depends on luck alone.
//
// A number can be closed and made anew inside libc (fclose, closedir, popen), where we do
// not see it. A wait for its new file then stands on the registration of the old one and
// no edge ever comes. sysmon walks over the PollDescs, every kEveryNs a full round (a
// slice a tick when there are many); a wait met in two rounds is examined, once:
//
//   round 1  met
//   round 2  the same wait: is the file ready? no: is it registered (EPOLL_CTL_MOD)?
//              ENOENT: register it (its readiness comes as an edge). Done.
//            ready: perhaps its edge is on the way
//   round 3  still the same wait, no edge since, no woken taker under way, every event that
//              any M had fetched by then handled, and still ready: the edge was lost.
//              Wake them and count it: `repaired`.
//
// Three rounds end within 100 ms. A healthy wait costs two looks and then nothing; sysmon
// sleeps deep only after all Ps were idle for a second, when every wait has been seen.
#include <errno.h>
#include <poll.h>

#include "sched/netpoll.h"
#include "sched/polldesc.h"

namespace weft {
namespace {

constexpr uint64_t kEveryNs = 30'000'000;
constexpr int kSlice = 4096;              // PollDescs a tick: about 20 us
constexpr int kMaxChecks = 256;           // system calls a tick

uint64_t next_round_ns;                   // sysmon only, like at
int at = -1;                              // < 0: between rounds
std::atomic<uint64_t> n_repaired{0}, n_readded{0};

enum Step : uint8_t { kMet = 0, kSuspect = 1, kDone = 2 };

uint32_t waiting_dirs(const PollDesc* pd) {
  return (pd->head[kPollIn] != nullptr ? 1u << kPollIn : 0) |
         (pd->head[kPollOut] != nullptr ? 1u << kPollOut : 0);
}

uint32_t ready_dirs(int fd, uint32_t dirs) {
  struct pollfd p = {fd, 0, 0};
  if ((dirs & 1u << kPollIn) != 0) p.events |= POLLIN;
  if ((dirs & 1u << kPollOut) != 0) p.events |= POLLOUT;
  if (sys_call(SYS_poll, sys_arg(&p), 1, 0) <= 0) return 0;
  if ((p.revents & (POLLERR | POLLHUP | POLLNVAL)) != 0) return dirs;
  return ((p.revents & POLLIN) != 0 ? 1u << kPollIn : 0) |
         ((p.revents & POLLOUT) != 0 ? 1u << kPollOut : 0);
}

bool quiet_since(const PollDesc* pd) {
  bool quiet = true;
  for (uint32_t d = 0; d < 2; d++)
    quiet = quiet && pd->in_flight[d].load(std::memory_order_relaxed) == 0 &&
            pd->seq[d].load(std::memory_order_relaxed) == pd->seen_seq[d];
  return quiet;
}

void register_again(PollDesc* pd) {
  uint32_t dirs = pd->armed;
  netpoll_disarm(pd);
  netpoll_arm(pd, dirs);
  n_readded.fetch_add(1, std::memory_order_relaxed);
}

// Under pd's lock; true if it cost system calls.
bool examine(PollDesc* pd, GList& out) {
  uint32_t dirs = waiting_dirs(pd);
  uint32_t no = pd->wait_no.load(std::memory_order_relaxed);
  if (dirs == 0) return false;
  if (pd->seen_wait_no != no || (pd->verify_step != kDone && !quiet_since(pd))) {
    pd->seen_wait_no = no;
    pd->verify_step = kMet;
    for (uint32_t d = 0; d < 2; d++)
      pd->seen_seq[d] = pd->seq[d].load(std::memory_order_relaxed);
    return false;
  }
  if (pd->verify_step == kDone) return false;
  uint32_t ready = ready_dirs(pd->fd, dirs);
  if (ready == 0) {
    if (netpoll_rearm(pd) == -ENOENT) register_again(pd);
    pd->verify_step = kDone;
  } else if (pd->verify_step == kMet) {
    pd->verify_step = kSuspect;
    pd->fetch_mark = 0;
    netpoll_all_handled(&pd->fetch_mark);
  } else if (netpoll_all_handled(&pd->fetch_mark)) {
    n_repaired.fetch_add(1, std::memory_order_relaxed);
    register_again(pd);
    polldesc_fire(pd, ready, true, out);
    pd->verify_step = kMet;
  }
  return true;
}

}  // namespace

void netpoll_verify(uint64_t now_ns) {
  if (!netpoll_waiters()) return;
  netpoll_settle_old(now_ns);
  if (at < 0) {
    if (now_ns < next_round_ns) return;
    next_round_ns = now_ns + kEveryNs;
    at = 0;
    GList gs = netpoll(0);  // an event still in the kernel is late, not lost
    ready_list(gs);
  }
  int end = polldesc_max_fd() + 1;
  int checks = 0;
  for (int i = 0; i < kSlice && checks < kMaxChecks && at < end; i++, at++) {
    PollDesc* pd = polldesc_peek(at);
    if (pd == nullptr || waiting_dirs(pd) == 0) continue;
    GList out;
    pd->lock.lock();
    checks += examine(pd, out);
    pd->lock.unlock();
    ready_list(out);
  }
  if (at >= end) at = -1;
}

uint64_t netpoll_readded() { return n_readded.load(std::memory_order_relaxed); }
uint64_t netpoll_repaired() { return n_repaired.load(std::memory_order_relaxed); }

}  // namespace weft

// fair.cc - see fair.h.
#include "sched/fair.h"

#include "sched/netpoll.h"
#include "sched/sysmon.h"

namespace weft {
namespace {

constexpr uint64_t kTimerGraceNs = 20'000;  // sysmon.cc leaves a due timer to its P so long

bool runs_long(const P* p, uint64_t now) {
  return p->m.load(std::memory_order_relaxed) != nullptr &&
         p->switches.load(std::memory_order_relaxed) ==
             p->seen_switches.load(std::memory_order_relaxed) &&
         now >= p->slice_before_ns;
}

}  // namespace

bool place_woken(G* g) {
  if (sched.preempt_ms == 0) return false;
  P* best = nullptr;
  uint64_t since = kNever;
  uint64_t now = host_now_ns();
  for (uint32_t i = 0; i < sched.procs; i++) {
    P* p = &sched.p[i];
    if (p->runq.has_next() || !runs_long(p, now) || p->slice_before_ns >= since) continue;
    best = p;
    since = p->slice_before_ns;
  }
  if (best == nullptr || !best->runq.offer_next(g)) return false;  // a full fence on x86
  best->woke.store(true, std::memory_order_relaxed);
  if (sched.n_idle_p.load(std::memory_order_seq_cst) != 0) wake_p();  // submit (sched.cc)
  if (!sysmon_thread()) sysmon_kick();
  return true;
}

void note_hog(P* p) {
  if (sched.preempt_ms != 0 && p->switches.load(std::memory_order_relaxed) ==
                                   p->seen_switches.load(std::memory_order_relaxed))
    sysmon_kick();
}

bool share_is_over(const P* p, uint64_t now) {
  return p->woke.load(std::memory_order_relaxed) && p_has_work(p) &&
         now - p->slice_before_ns >= kShareNs;
}

uint64_t fair_delay(uint64_t now) {
  if (sched.preempt_ms == 0 || sched.n_idle_p.load(std::memory_order_relaxed) != 0) return kNever;
  uint64_t delay = netpoll_waiters() ? kShareNs : kNever;
  for (uint32_t i = 0; i < sched.procs; i++) {
    const P* p = &sched.p[i];
    uint64_t due = p->timers.earliest();
    if (due != kNever) due += kTimerGraceNs;
    if (p->woke.load(std::memory_order_relaxed) && p_has_work(p) &&
        p->slice_before_ns + kShareNs < due)
      due = p->slice_before_ns + kShareNs;
    if (due == kNever) continue;
    uint64_t left = due > now ? due - now : 0;
    if (left < delay) delay = left;
  }
  return delay;
}

}  // namespace weft

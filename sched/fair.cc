// fair.cc - see fair.h.
#include "sched/fair.h"

#include "sched/netpoll.h"
#include "sched/spinwait.h"
#include "sched/sysmon.h"

namespace weft {
namespace {

constexpr uint64_t kTimerGraceNs = 20'000;  // sysmon.cc leaves a due timer to its P so long

}  // namespace

bool place_woken(G* g) {
  if (sched.preempt_ms == 0) return false;
  P* best = nullptr;
  uint64_t since = kNever;
  for (uint32_t i = 0; i < sched.procs; i++) {
    P* p = &sched.p[i];
    if (p->m.load(std::memory_order_relaxed) == nullptr || p->runq.has_next() ||
        p->slice_before_ns >= since)
      continue;
    best = p;
    since = p->slice_before_ns;
  }
  if (best == nullptr || !best->runq.offer_next(g)) return false;  // a full fence on x86
  best->woke.store(true, std::memory_order_relaxed);
  if (sched.n_idle_p.load(std::memory_order_seq_cst) != 0) wake_p();  // submit (sched.cc)
  if (!sysmon_thread()) sysmon_kick();
  return true;
}

void note_timer(uint64_t deadline_ns) {
  if (sched.n_idle_p.load(std::memory_order_relaxed) != 0 || sched.preempt_ms == 0) return;
  std::atomic_thread_fence(std::memory_order_seq_cst);  // the timer is in; sysmon_begins_sleep
  if (deadline_ns + kTimerGraceNs < sched.sysmon_until_ns.load(std::memory_order_relaxed))
    sysmon_kick();
}

uint64_t sysmon_begins_sleep(uint64_t now, uint64_t longest) {
  sched.sysmon_until_ns.store(kNever, std::memory_order_relaxed);
  std::atomic_thread_fence(std::memory_order_seq_cst);  // whom we miss below sees kNever
  uint64_t busy = fair_delay(now), sleep = busy < longest ? busy : longest;
  sched.sysmon_until_ns.store(now + sleep, std::memory_order_relaxed);
  if (sleep > kShareNs) sched.sysmon_slow.store(true, std::memory_order_relaxed);
  return sleep;
}

void sysmon_ends_sleep() {
  sched.sysmon_slow.store(false, std::memory_order_relaxed);
  sched.sysmon_until_ns.store(0, std::memory_order_relaxed);
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
  if (uint64_t spin = spin_delay(now); spin < delay) delay = spin;
  for (uint32_t i = 0; i < sched.procs; i++) {
    const P* p = &sched.p[i];
    uint64_t due = p->timers.earliest();
    if (due != kNever) due += kTimerGraceNs;
    if (p->woke.load(std::memory_order_relaxed) && p_has_work(p) &&
        p->slice_before_ns + kShareNs < due)
      due = p->slice_before_ns + kShareNs;
    if (due == kNever) continue;
    uint64_t left = due > now + kTimerGraceNs ? due - now : kTimerGraceNs;  // never a busy loop
    if (left < delay) delay = left;
  }
  return delay;
}

}  // namespace weft

// stats.cc - WEFT_STATS=1: the scheduler's counters on standard error at exit.
//
// A destructor of the library, so it runs at exit() and at main's return, after the
// program's atexit handlers; not at _exit. Nothing is printed if weft never booted.
#include "preload/knobs.h"
#include "sched/netpoll.h"
#include "sched/report.h"

namespace weft {
namespace {

__attribute__((destructor)) void print_stats() {
  if (!knobs().stats || !sched.booted.load(std::memory_order_acquire)) return;
  uint64_t switches = 0, steals = 0, handoffs = 0, gs = 0;
  for (uint32_t i = 0; i < sched.procs; i++) {
    const P& p = sched.p[i];
    switches += p.switches.load(std::memory_order_relaxed);
    steals += p.n_steals;
    handoffs += p.n_handoffs;
  }
  for (const G* g = all_gs_first(); g != nullptr; g = g->all_next) gs++;
  auto counter = [](const std::atomic<uint64_t>& c) { return c.load(std::memory_order_relaxed); };
  NetpollStats np = netpoll_stats();
  Out out;
  out << "weft: procs=" << sched.procs << " kernel_threads=" << sched.n_m.load() + 2
      << " slots=" << gs << " switches=" << switches << " steals=" << steals
      << " wakes=" << counter(sched.n_wakes) << " handoffs=" << handoffs
      << " retakes=" << counter(sched.n_retakes) << " hidden=" << counter(sched.n_hidden)
      << " preempts=" << counter(sched.n_preempts)
      << " refused=" << counter(sched.n_refused) << " polls=" << np.polls
      << " events=" << np.events << " breaks=" << np.breaks << " repaired=" << np.repaired << "\n";
}

}  // namespace
}  // namespace weft

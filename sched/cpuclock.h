// cpuclock.h - how much processor time each G has used.
//
// Off until somebody asks (cpu_count_begin): a time stamp costs a switch about as much as
// the switch itself. From then on each M charges what it used to the G it ran. Stretches
// shorter than kLongNs are taken from the time stamp counter; at the end of a longer one
// the M asks the kernel for its own clock and charges what is not charged yet, so the Gs'
// clocks never sum up to more than the threads' (a stretch that the kernel interrupted for
// others is a long one).
//
// Before the first question sysmon's ticks are the estimate (cpu_sample).
// Callers: the M itself in the engine or on g0; cpu_used: anybody.
#pragma once

#include "sched/sched.h"

namespace weft {

void cpu_count_begin();
// m goes on with `next` (null: g0). Only while sched.count_cpu.
void cpu_switch(M* m, G* next);
// ns that g has used; exact for the caller's own G.
uint64_t cpu_used(G* g);
// sysmon: g was seen running at two ticks in a row.
void cpu_sample(G* g, uint64_t ns);
// A slot's new life.
inline void cpu_reset(G* g) {
  g->cpu_ns.store(0, std::memory_order_relaxed);
  g->cpu_shown.store(0, std::memory_order_relaxed);
}

}  // namespace weft

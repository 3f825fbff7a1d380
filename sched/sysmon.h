// sysmon.h - the watcher thread, and what it calls outward.
#pragma once

#include "sched/sched.h"

namespace weft {

void sysmon_main(void*);
// Ends sysmon's sleep. Any thread, signal handlers included.
void sysmon_kick();
// Asked in the tick of `now`: false if the thread of m, p's M, sleeps in the kernel.
bool sysmon_computes(const P* p, const M* m, uint64_t now);
// CPU time of a kernel thread, by the clock id that its tid encodes (clock_getres(2)).
uint64_t cpu_time_ns(int tid);
// True on sysmon's own thread.
bool sysmon_thread();
// Once a tick: schedtrace, signal routing, deadlock detection (trace.cc).
void sysmon_hook(uint64_t now_ns);
void spawner_main(void*);

}  // namespace weft

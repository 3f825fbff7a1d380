// dump.h - the dump signal, and what boot hands to sched/watch.
//
// Callers: dump_boot: boot, once per boot (a fork child's too), before boot is announced.
#pragma once

namespace weft {

// Hands the knobs to sched/watch and installs the dump signal's handler.
void dump_boot();

}  // namespace weft

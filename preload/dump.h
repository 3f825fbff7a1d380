// dump.h - the dump signal, and what boot hands to sched/watch.
//
// Callers: dump_boot: boot, once per boot (a fork child's too), before sysmon starts;
//          dump_signal_bit: sysmon; dump_signal_taken: sigaction, no lock held.
#pragma once

#include <stdint.h>

namespace weft {

// Hands the knobs to sched/watch and installs the dump signal's handler.
void dump_boot();
// Its bit, to be kept open in sysmon whatever the program blocks; 0: none, or the program's.
uint64_t dump_signal_bit();
// The program has set its own action for sig: if that is the dump signal, it wins, and we say so.
void dump_signal_taken(int sig);

}  // namespace weft

// spinwait.h - Gs that wait by spinning, beside others that cannot run meanwhile.
//
// A thread that polls a word in a loop without calls (redis's I/O threads and its main
// thread, libgomp's barriers) never tells us that it waits. With more such threads than Ps
// each one burns its whole slice while the G it waits for stands in a queue: every step of
// the program then costs slices. The kernel has the same trouble. A G is recognised by what
// it does around its preemptions:
//  - quiet while it ran, then a call into weft right after it got the P back: what it had
//    waited for came to pass while others ran. A G that computes makes its next call at any
//    time of its slice, so it is taken for one only once in a hundred slices, and two in a
//    row are asked for;
//  - or stopped beside a pause instruction, which stands in loops of this kind only.
// A recognised G is preempted as soon as it has been quiet for kSpinLookNs while others
// wait, and keeps its P as long as it makes calls. Each such preemption takes away one
// of its marks, so a G that was taken for one by mistake is rid of it after some ms.
//
// "Quiet" is found without a cost to calls: a bit of G::attention is set by sysmon (kAttProbe) or
// by the resumed G itself (kAttResumed), beside the time, and goes away at the next call, which
// looks at attention anyway. Each keeps a time of its own. Sysmon may be late between its steps,
// and the G have made calls meanwhile or be on another M, so
//   1 probe_cpu_ns = none   2 kAttProbe   3 t = the M's clock   4 still on that M: probe_cpu_ns = t
// A bit that stands was set before t was read, and no call came after that.
// Quiet is counted in processor time: on a busy machine a G whose M has lost its core for
// some ms makes no call meanwhile either, and its next one soon after.
// Calls that enter nothing (an uncontended mutex, which redis's loop takes now and then)
// leave it alone.
//
// Who calls: sysmon (spin_look, spin_delay), the preempted G itself (spin_preempted,
// spin_resumed), the G leaving the engine (spin_called). Nothing blocks.
#pragma once

#include "sched/sched.h"

namespace weft {

constexpr uint64_t kSpinLookNs = 50'000;  // a look costs sysmon 3 to 5 us

// sysmon, others wait for the P of m: true if g, which runs there, is known to spin and has been
// quiet since the last look.
bool spin_look(const M* m, G* g, uint64_t now);
// g is being preempted at `pc`. Outside the engine. True if all that run have had their turn
// and spin on: what they wait for comes from outside, and may need this core.
bool spin_preempted(G* g, uintptr_t pc);
// g was to be preempted and stands where it cannot be (in libc): it polls no word.
void spin_refused(G* g);
// g runs again.
void spin_resumed(G* g);
// One of the two bits was set and g makes a call.
void spin_called(G* g);
// A new thread in g's slot.
void spin_reset(G* g);
// Some G was preempted for spinning within the last milliseconds.
bool spin_going_on(uint64_t now);
// sysmon: how long it may sleep while all Ps are busy.
uint64_t spin_delay(uint64_t now);

}  // namespace weft

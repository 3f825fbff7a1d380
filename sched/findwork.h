// findwork.h - what g0 does when no next G is known: it looks further, spins, sleeps.
//
// Callers: schedule (sched.cc), on g0.
#pragma once

#include "sched/sched.h"

namespace weft {

// The next G for m, which may come without a P and leaves with one. Blocks until there is one.
G* find_runnable(M* m);

// m has found work: it spins no more, and another M may begin to.
void reset_spinning(M* m);

}  // namespace weft

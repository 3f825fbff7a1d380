// cancel.h - cancellation, as the other interposers see it. See cancel.cc.
#pragma once

#include "sched/g.h"

namespace weft {

// The calling thread is to be cancelled, has it enabled, and is not ending already.
bool cancel_pending();
void cancel_point();
// A thread cancelled before its first instruction acts only if it is asynchronous then.
void cancel_point_at_start();
// Asynchronous cancels, from host_attention.
void cancel_attention(G* g);

}  // namespace weft

// allocator.h - the library that has the program's malloc, if that is neither libc nor the
// executable (jemalloc, tcmalloc).
//
// Who makes an M needs memory, for libc's pthread_create (sched/m.cc). A G that holds a lock of
// the allocator and stands in a queue may wait for just that M: all others are away with
// Gs that sleep in the kernel. So it is not to lose its M there: no preemption inside the
// library (sigpreempt.cc), nor by its calls of clock_gettime, pthread_mutex_lock and
// pthread_mutex_unlock, and no lock is given to one of its waiters before that runs. What is
// left is a G that waits for one such lock with another in hand.
#pragma once

#include "sched/base.h"

namespace weft {

extern uintptr_t allocator_lo, allocator_bytes;  // no bytes: none; set at boot

// `caller`: __builtin_return_address(0) of the interposed function.
inline bool from_allocator(const void* caller) {
  return reinterpret_cast<uintptr_t>(caller) - allocator_lo < allocator_bytes;
}

}  // namespace weft

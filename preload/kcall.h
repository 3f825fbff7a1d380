// kcall.h - a system call made by a kernel thread of ours that is not the caller's.
//
// For what the kernel keeps per thread and the program means for the process (setuid), or
// has tied to a thread the caller has left (the tracer that forked, ptrace).
// One order at a time: hold kcall_lock() around kcall_on. Order: kcall before every Lock.
#pragma once

#include "sched/base.h"

namespace weft {

struct KCall {
  long nr = 0, a = 0, b = 0, c = 0, d = 0;
  long result = 0;
};

void kcall_lock();
void kcall_unlock();
// Has kernel thread `tid` of this process make the call; waits for it. False: no such
// thread, or it ended. Any thread; a G inside the engine (it must not change its M).
bool kcall_on(int tid, KCall* call);
void kcall_after_fork();

}  // namespace weft

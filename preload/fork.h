// fork.h - what fork needs of boot, and what raw forks (clone, syscall) need of fork.cc.
#pragma once

#include <stdint.h>

namespace weft {

// Registers our atfork handlers, once. Before main, and __register_atfork's interposer before
// any other handler of the process.
void fork_hooks_install();

// Around a raw fork-like system call on any thread: fork_begin before it, then one of the
// other two by the result. Signals are blocked in between; nothing of the program runs.
void fork_begin();
void fork_in_parent();
void fork_in_child();
// The same in a child that libc does not know of (clone(2), fork(2) by number): its TCB has the parent's
// id and no robust list of its own, and more often than not it is a sandbox, whose filter forbids
// system calls that a scheduler lives by. Threads there are native.
void fork_in_raw_child();
extern bool raw_fork_child;

// The kernel thread that made the caller's last child: its tracer, should it ask to be
// traced (PTRACE_TRACEME). 0: none.
extern thread_local constinit int t_fork_ktid;

}  // namespace weft

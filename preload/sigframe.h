// sigframe.h - the kernel's signal frames: moving one, and the stack an M takes them on.
//
// Every M owns the alternate stack that the kernel knows of, for good. A frame that the
// kernel put there is moved to the G's own stack before any of the program's code runs, so
// nothing on an M's stack ever outlives the wrapper that runs there with all signals
// blocked. Gs' alternate stacks are therefore a matter of user space: sigaltstack() is no
// system call, and a switch between Gs with different ones costs nothing.
//
// Callers: sigrun.cc, sigaction.cc (kernel actions), host.cc (new Ms).
#pragma once

#include <signal.h>
#include <ucontext.h>

#include "sched/g.h"

namespace weft {

using FrameFn = void (*)(int, siginfo_t*, void*);

// Where the frame of (info, uc) stands: on the alternate stack the kernel has here?
bool frame_on_kernel_stack(const ucontext_t* uc);
// Bytes of a frame, from its return address to the end of the saved vector state.
size_t frame_bytes(const ucontext_t* uc);
// Moves the frame so that it ends at or below `top` and goes on in fn there.
[[noreturn]] void frame_move(int sig, siginfo_t* info, ucontext_t* uc, uintptr_t top, FrameFn fn);
// rt_sigreturn sets the alternate stack from the frame, but leaves it when what it finds
// there is no valid setting: the frame may be on another M by then.
void frame_forget_stack(ucontext_t* uc);
// The same for the handler's eyes: it sees its own thread's setting.
void frame_show_stack(ucontext_t* uc, const AltStack& own);

// Gives the calling kernel thread an alternate stack of its own, for good.
void signal_stack_for_thread();
// The first thread of the process that boots: a static one.
void signal_stack_for_boot();

}  // namespace weft

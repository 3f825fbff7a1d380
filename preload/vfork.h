// vfork.h - what a vfork child may not do, told to everyone who keeps records.
//
// Between vfork and exec (or _exit) the child runs in our memory, on the caller's TCB, but
// with descriptors and signal actions of its own. Its t_g is null, so every interposer
// takes the real call by itself. Whoever keeps records for foreign threads too (descriptor
// tables, signal handlers) asks in_vfork_child() and leaves them alone.
#pragma once

#include <stdint.h>

namespace weft {

// How many vforks deep the calling code is. Per G, like all our TLS; the parent is
// suspended while it is not 0 for its child, and puts it back when it goes on.
extern thread_local constinit uint32_t t_vfork_depth;

inline bool in_vfork_child() { return __builtin_expect(t_vfork_depth != 0, 0); }

}  // namespace weft

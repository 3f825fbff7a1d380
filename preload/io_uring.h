// io_uring.h - rings that the kernel keeps for one thread.
#pragma once

namespace weft {

// io_uring_setup and io_uring_register by number, from any thread, before boot too. The
// kernel's answer; may wire the calling G. Not in a vfork child.
long ring_syscall(long nr, const long a[6]);
// Main has just become G1: it stays with its kernel thread if it has such a ring.
void ring_boot();

}  // namespace weft

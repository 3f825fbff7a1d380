// io_syscall.h - the I/O calls of syscall(), by number.
#pragma once

namespace weft {

// True: nr is ours, and *result is the kernel's answer (-errno on failure).
bool io_syscall(long nr, const long a[6], long* result);

}  // namespace weft

// futex_syscall.h - SYS_futex as a program issues it through syscall().
#pragma once

namespace weft {

// The kernel's answer, -errno on failure. Any thread; a G may park. a: the six arguments.
long weft_futex_syscall(const long a[6]);

}  // namespace weft

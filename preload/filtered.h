// filtered.h - does a seccomp filter let through what the scheduler lives by?
//
// Callers: boot, once (some 0.25 ms where there is a filter, else one system call); prctl and
// syscall, as the program sets one.
#pragma once

namespace weft {

// The process sets a filter itself: boot need not ask whether there is one (that may be forbidden).
void filter_is_set();
// Why the program is to run natively, or nullptr.
const char* filtered_by();

}  // namespace weft

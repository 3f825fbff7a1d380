// stranded.h - Gs are ready, a P is idle, and no M comes for them. Caller: sysmon.
// Tests: tests/abi/tls_dlopen_test; RLIMIT_NPROC by hand (as another user, stdio_pipe_test with 4 and 5).
#pragma once

#include "sched/sched.h"

namespace weft {

// Once a tick. True: it is so, and sysmon is to go on ticking.
bool stranded_check(uint64_t now_ns);

}  // namespace weft

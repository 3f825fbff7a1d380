// api.h - what every interposer file starts from.
//
// An interposer decodes its arguments, asks "is the caller a G?" (this_g()), takes the
// engine's way or calls real().name inside in_syscall(), and turns -errno into what the
// function promises. It keeps no queue and no state machine.
//
// Before boot and on foreign threads this_g() is null: then every interposer must behave
// as libc's, except that the primitives over gfutex still use gfutex (it serves both).
#pragma once

#include <errno.h>

#include "preload/real.h"
#include "sched/gfutex.h"
#include "sched/sched.h"
#include "sched/syscall.h"

#define WEFT_EXPORT extern "C" __attribute__((visibility("default"), used))

// A second exported name for the same function; both in one file.
#define WEFT_TWIN(ret, name, of, args) \
  extern "C" __attribute__((visibility("default"), used, alias(#of), copy(of))) ret name args

namespace weft {

// -errno to the C convention: -1 and errno.
inline long errno_ret(long r) {
  if (WEFT_UNLIKELY(r < 0)) {
    errno = static_cast<int>(-r);
    return -1;
  }
  return r;
}

// An absolute deadline on `clock` as CLOCK_MONOTONIC ns. Past deadlines give 1. CLOCK_REALTIME
// is converted at the moment of the call; a jump of the wall clock during the wait is seen
// at the next re-check only (timed waits re-check at most every second when on
// CLOCK_REALTIME: see deadline.cc). Returns kNever for a time beyond 500 years.
uint64_t deadline_from(clockid_t clock, const struct timespec* abs);
uint64_t deadline_in(const struct timespec* rel);
inline bool timespec_ok(const struct timespec* t) {
  return t->tv_nsec >= 0 && t->tv_nsec < 1000000000;
}

// Cancellation, cancel.cc. A cancellation point calls cancel_point() before it waits and
// after a wait that ended with -EINTR; it does not return when a cancel is to be acted on.
// On foreign threads it is libc's pthread_testcancel.
void cancel_point();

}  // namespace weft

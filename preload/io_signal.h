// io_signal.h - what a signal does to a call that waits.
//
// A handler that ran ends a wait with EINTR, or, with SA_RESTART, lets it go on where
// signal(7) says so (reads, writes, accept without a timeout). An interrupt without a
// handler (a signal turned out to be ignored) ends nothing. All of it is decided here.
#pragma once

#include <signal.h>
#include <string.h>

#include "preload/api.h"
#include "preload/cancel.h"
#include "preload/signals.h"
#include "preload/thread.h"
#undef p_type  // <resolv.h>, by way of thread.h, renames it

namespace weft {

// A pointer that no mapping can hold: the kernel would answer EFAULT, so do we. Other bad
// pointers fault in our code instead of in the kernel's.
inline bool bad_pointer(const void* p) {
  auto at = reinterpret_cast<uintptr_t>(p);
  return at < kPageBytes || at >= uintptr_t{1} << 47;
}

// Before a wait: what counts as interrupting it happens from here on.
struct SignalMark {
  uint64_t handled;
};
inline SignalMark signal_mark() {
  signals_wait_begins();
  return {this_thread()->sig_handled};
}
inline bool handler_ran(const SignalMark& m) { return this_thread()->sig_handled != m.handled; }

// The wait that began at m was interrupted. True: it goes on (SA_RESTART, or no handler).
bool io_restart_after_interrupt(const SignalMark& m);
// The same for calls that SA_RESTART does not restart: poll, select, epoll_wait, sleeps,
// and sockets with a timeout.
inline bool io_wait_after_interrupt(const SignalMark& m) {
  return !handler_ran(m) && !cancel_pending();
}

// A call that the kernel may end with EINTR for a signal of weft's own (a slice that was
// over just as the call began): made again unless a handler of the program has run.
template <class F>
inline long io_undisturbed(F call) {
  if (this_thread() == nullptr) return call();
  for (;;) {
    SignalMark mark = signal_mark();
    long r = call();
    if (r != -EINTR || !io_wait_after_interrupt(mark)) return r;
  }
}

// What the kernel gets for such a call: weft's own signals stay open.
struct KernelMask {
  uint64_t bits = 0;
  const uint64_t* p = nullptr;
  explicit KernelMask(const sigset_t* mask) {
    if (mask == nullptr) return;
    memcpy(&bits, mask, sizeof bits);
    bits = mask_for_kernel(bits);
    p = &bits;
  }
};

// The wait of ppoll, pselect and epoll_pwait: `call` is the kernel's own, with `mask` among
// its arguments, so that it lets signals in and sleeps in one step. Repeated while it is
// interrupted by nothing (signals.h, masked_begin).
template <class F>
inline long io_masked_wait(const sigset_t* mask, F call) {
  G* g = t_g;
  uint64_t open_bits;
  memcpy(&open_bits, mask, sizeof open_bits);
  SignalMark mark = signal_mark();
  uint64_t old = masked_begin(g, open_bits);
  long r;
  do {
    masked_enter(g);
    r = call();
    exit_syscall(g);
  } while (r == -EINTR && !handler_ran(mark) && !cancel_pending());
  masked_end(g, old);
  return r;
}

}  // namespace weft

// cancel.h - cancellation, as the other interposers see it. See cancel.cc.
//
// A cancellation point of POSIX calls cancel_point() before it waits and after a wait that
// ended with -EINTR, and makes its blocking kernel calls by in_cancel_syscall[_block].
// Functions that are none use in_syscall and never call cancel_point.
#pragma once

#include "preload/thread.h"
#include "sched/syscall.h"

namespace weft {

// The calling thread is to be cancelled, has it enabled, and is not ending already.
bool cancel_pending();
void cancel_point();
// A thread cancelled before its first instruction acts only if it is asynchronous then.
void cancel_point_at_start();
// Asynchronous cancels, from host_attention.
void cancel_attention(G* g);
// Where an unwinding ends (host_g_main, main_landing.cc), whoever began it.
void cancel_landed(Thread* t);
// From in_cancel_syscall: leaves the bracket and acts, if a cancel is due.
void cancel_before_call(Thread* t);

// The kernel call of a cancellation point. From t->in_cancel_call = true on, pthread_cancel's
// poke acts at once, wherever it finds us up to the `syscall` instruction; a request that
// came before is seen by the check. So none is slept over.
template <class F>
inline auto cancellable(Thread* t, F f) {
  t->in_cancel_call = true;
  compiler_barrier();
  if (WEFT_UNLIKELY(t->cancel_requested.load(std::memory_order_relaxed) != 0)) cancel_before_call(t);
  auto r = f();
  compiler_barrier();
  t->in_cancel_call = false;
  return r;
}
template <class F>
inline auto in_cancel_syscall(F f) {
  Thread* t = this_thread();
  if (t == nullptr) return f();
  return in_syscall([&] { return cancellable(t, f); });
}
template <class F>
inline auto in_cancel_syscall_block(F f) {
  Thread* t = this_thread();
  if (t == nullptr) return f();
  return in_syscall_block([&] { return cancellable(t, f); });
}

}  // namespace weft

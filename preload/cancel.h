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

// A call of a libc function that may be left by unwinding: libc acts on a cancel by itself,
// inside. The frame between ends our bracket before any of the program's clean-up runs.
extern "C" __attribute__((visibility("hidden"))) long weft_libc_call(long (*fn)(void*), void* arg);
template <class F>
inline auto libc_call(F f) {
  auto body = [](void* p) -> long { return (*static_cast<F*>(p))(); };
  return static_cast<decltype(f())>(weft_libc_call(body, &f));
}

// A cancellation point of libc's that is more than its kernel call: libc alone says where it
// may be left (it marks the thread asynchronous there) and what is to be undone.
template <class F>
inline auto in_libc_cancel_point(F f) {
  return in_syscall([&] { return libc_call(f); });
}

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

// A call that is no cancellation point, by way of functions of ours that are. (A thread that
// is asynchronous may be cancelled anywhere.)
template <class F>
inline auto without_cancel(F f) {
  Thread* t = this_thread();
  if (t == nullptr || t->cancel_async) return f();
  int was;
  pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &was);
  auto r = f();
  pthread_setcancelstate(was, nullptr);
  return r;
}

}  // namespace weft

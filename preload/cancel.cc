// cancel.cc - cancellation of Gs: libc's state machine in our own words.
//
// A request sets Thread::cancel_requested and ends an interruptible park. The target acts
// at its next cancellation point, by libc's own pthread_exit(PTHREAD_CANCELED), whose
// unwinding runs cleanup handlers and C++ destructors and lands in host_g_main. libc's own
// cancellation bits of a G are never set, so its internal cancellation points stay quiet.
#include "preload/api.h"
#include "preload/cancel.h"
#include "preload/thread.h"

namespace weft {
namespace {

[[noreturn]] void act(Thread* t) {
  t->exiting = true;
  t->result = PTHREAD_CANCELED;
  real().pthread_exit(PTHREAD_CANCELED);
  __builtin_unreachable();
}

}  // namespace

bool cancel_pending() {
  Thread* t = this_thread();
  return t != nullptr && t->cancel_requested.load(std::memory_order_acquire) != 0 &&
         !t->cancel_disabled && !t->exiting;
}

void cancel_point() {
  Thread* t = this_thread();
  if (t == nullptr) {
    if (sched.booted.load(std::memory_order_relaxed)) real().pthread_testcancel();
    return;
  }
  if (WEFT_UNLIKELY(t->cancel_requested.load(std::memory_order_acquire) != 0) && cancel_pending())
    act(t);
}

void cancel_point_at_start() {
  Thread* t = this_thread();
  if (WEFT_UNLIKELY(t->cancel_requested.load(std::memory_order_acquire) != 0) && t->cancel_async)
    cancel_point();
}

void cancel_attention(G*) {
  Thread* t = this_thread();
  if (t != nullptr && t->cancel_async && cancel_pending()) act(t);
}

}  // namespace weft

using namespace weft;

WEFT_EXPORT int pthread_cancel(pthread_t pt) {
  G* g = g_of(pt);
  if (g == nullptr) return real().pthread_cancel(pt);
  Thread* t = thread_of(g);
  if (!t->alive.load(std::memory_order_acquire))
    return t->join.load(std::memory_order_acquire) == kEnded ? 0 : ESRCH;
  t->cancel_requested.store(1, std::memory_order_seq_cst);
  if (g == t_g) {
    if (t->cancel_async && cancel_pending()) act(t);
    return 0;
  }
  G* self = this_g();
  if (self != nullptr) engine_enter(self);
  g->attention.fetch_or(kAttCancel, std::memory_order_seq_cst);
  if (!t->cancel_disabled) park_interrupt(g);
  if (self != nullptr) engine_exit(self);
  return 0;
}

WEFT_EXPORT int pthread_setcancelstate(int state, int* old) {
  if (state != PTHREAD_CANCEL_ENABLE && state != PTHREAD_CANCEL_DISABLE) return EINVAL;
  Thread* t = this_thread();
  if (t == nullptr) return real().pthread_setcancelstate(state, old);
  if (old != nullptr) *old = t->cancel_disabled ? PTHREAD_CANCEL_DISABLE : PTHREAD_CANCEL_ENABLE;
  t->cancel_disabled = state == PTHREAD_CANCEL_DISABLE;
  if (t->cancel_async && cancel_pending()) act(t);
  return 0;
}

WEFT_EXPORT int pthread_setcanceltype(int type, int* old) {
  if (type != PTHREAD_CANCEL_DEFERRED && type != PTHREAD_CANCEL_ASYNCHRONOUS) return EINVAL;
  Thread* t = this_thread();
  if (t == nullptr) return real().pthread_setcanceltype(type, old);
  if (old != nullptr) *old = t->cancel_async ? PTHREAD_CANCEL_ASYNCHRONOUS : PTHREAD_CANCEL_DEFERRED;
  t->cancel_async = type == PTHREAD_CANCEL_ASYNCHRONOUS;
  if (t->cancel_async && cancel_pending()) act(t);
  return 0;
}

WEFT_EXPORT void pthread_testcancel(void) {
  if (this_thread() == nullptr) {
    real().pthread_testcancel();
    return;
  }
  cancel_point();
}

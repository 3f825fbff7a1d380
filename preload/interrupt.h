// interrupt.h - what signals and cancels mean to a wait, in line for the usual case: none.
//
// Callers: interposers on the program's stack, outside the engine.
#pragma once

#include "preload/api.h"
#include "preload/cancel.h"
#include "preload/thread.h"
#undef p_type  // <resolv.h>, by way of thread.h, renames it

namespace weft {

// cancel_point() with its usual answer in line. `t`: this_thread().
inline void check_cancel(const Thread* t) {
  // Relaxed: whoever looks too early meets kAttBreak or an interrupted park later on.
  if (WEFT_UNLIKELY(t == nullptr || t->cancel_requested.load(std::memory_order_relaxed) != 0))
    cancel_point();
}

// For sem_wait and futex: whether an -EINTR is to reach the program. On threads that the
// scheduler does not run the kernel has decided.
class Interrupt {
 public:
  explicit Interrupt(Thread* t) : t_(t), native_(t == nullptr || t->g->wired) {
    if (WEFT_UNLIKELY(t == nullptr)) return;
    handled_ = t->sig_handled;
    t->sig_no_restart = false;
  }
  // A handler has run that ends the wait: any, or (untimed waits) one without SA_RESTART.
  bool ends_wait(bool timed) const {
    if (native_) return true;
    return timed ? t_->sig_handled != handled_ : t_->sig_no_restart;
  }

 private:
  Thread* t_;
  const bool native_;  // as it began: being wired ends no wait
  uint64_t handled_ = 0;
};

}  // namespace weft

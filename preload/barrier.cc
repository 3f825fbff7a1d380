// barrier.cc - pthread_barrier_*: arrivals counted under the queue's own lock.
//
// Arriving and queueing are one step under gfutex's bucket lock, so whoever waits is in the
// queue when the last one comes, and nobody looks at the barrier after its wake-up:
// destroying or unmapping it right after the wait is fine, and a fast thread of the next
// cycle stands behind the count - 1 waiters that are woken, in FIFO order. A signal handler
// runs while the waiter keeps its place.
//
// glibc's fields: `in` counts arrivals, `count` and `shared` are what init wrote.
// Process-shared barriers are libc's, inside the syscall protocol.
#include "preload/api.h"
#include "preload/cancel.h"
#include "preload/destroy.h"
#include "preload/thread.h"

namespace weft {
namespace {

// A barrier is no cancellation point, but an asynchronous cancel needs none: then the
// waiter must leave the queue before its stack is unwound.
bool async_cancel_due() {
  Thread* t = this_thread();
  return t != nullptr && t->cancel_async && cancel_pending();
}

struct Barrier {  // glibc's struct pthread_barrier
  uint32_t in;
  uint32_t round;
  uint32_t count;
  int shared;
  uint32_t out;
};
static_assert(sizeof(Barrier) <= sizeof(pthread_barrier_t));

Barrier* barrier_of(pthread_barrier_t* b) { return reinterpret_cast<Barrier*>(b); }

struct Arrival {
  Barrier* barrier;
  uint32_t count = 0;
  explicit Arrival(Barrier* b) : barrier(b) {}
};

// False for the last of a cycle.
bool arrive(void* arg) {
  auto* a = static_cast<Arrival*>(arg);
  a->count = a->barrier->count;
  if (++a->barrier->in < a->count) return true;
  a->barrier->in = 0;
  return false;
}

}  // namespace
}  // namespace weft

using namespace weft;

WEFT_EXPORT int pthread_barrier_wait(pthread_barrier_t* pb) {
  Barrier* b = barrier_of(pb);
  if (WEFT_UNLIKELY(b->shared != 0))
    return in_syscall_block([&] { return real().pthread_barrier_wait(pb); });
  Waiter w;
  w.on_signal = OnSignal::kGoOn;
  w.stop = async_cancel_due;
  Arrival a(b);
  if (gfutex_enqueue(&w, b, Wait::kBarrier, true, arrive, &a)) {
    gfutex_sleep(&w, kNever);
    return 0;
  }
  if (a.count > 1) gfutex_wake(b, a.count - 1);
  return PTHREAD_BARRIER_SERIAL_THREAD;
}

WEFT_EXPORT int pthread_barrier_destroy(pthread_barrier_t* pb) {
  Barrier* b = barrier_of(pb);
  if (b->shared != 0)
    return in_syscall_block([&] { return real().pthread_barrier_destroy(pb); });
  wait_till_left(reinterpret_cast<std::atomic<uint32_t>*>(&b->in), Wait::kBarrier);
  return 0;
}

// spin.cc - pthread_spin_*: a lock word that is polled, by Gs that step aside.
//
// glibc's values: 1 free, 0 or below held. A holder that is not running (its G was
// preempted, its kernel thread lost the core) would be waited for by burning its own time:
// after a short spin a G yields, which with one P is at once; where there is nobody to
// yield to, the kernel is asked. Process-shared ones differ in nothing. Init and destroy
// are libc's.
#include "preload/api.h"

namespace weft {
namespace {

std::atomic<int>& word_of(pthread_spinlock_t* l) {
  return *reinterpret_cast<std::atomic<int>*>(const_cast<int*>(l));
}

bool take(std::atomic<int>& w) {
  return w.load(std::memory_order_relaxed) > 0 && w.exchange(0, std::memory_order_acquire) > 0;
}

void step_aside(int round) {
  G* g = this_g();
  if (g != nullptr) {
    engine_enter(g);
    yield(false);
    engine_exit(g);
  }
  if (g == nullptr || round % 64 == 63) sys_sched_yield();
}

__attribute__((noinline)) void lock_slow(std::atomic<int>& w) {
  for (int round = 0;; round++) {
    int spins = sched.procs > 1 ? 50 : 1;  // some 1 to 2 us
    for (int i = 0; i < spins; i++) {
      if (take(w)) return;
      cpu_relax();
    }
    step_aside(round);
  }
}

}  // namespace
}  // namespace weft

using namespace weft;

WEFT_EXPORT int pthread_spin_lock(pthread_spinlock_t* l) {
  std::atomic<int>& w = word_of(l);
  if (WEFT_UNLIKELY(w.exchange(0, std::memory_order_acquire) <= 0)) lock_slow(w);
  return 0;
}

WEFT_EXPORT int pthread_spin_trylock(pthread_spinlock_t* l) {
  return word_of(l).exchange(0, std::memory_order_acquire) > 0 ? 0 : EBUSY;
}

WEFT_EXPORT int pthread_spin_unlock(pthread_spinlock_t* l) {
  word_of(l).store(1, std::memory_order_release);
  return 0;
}

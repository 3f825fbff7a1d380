// lock.h - the engine's own lock: spins briefly, then sleeps in the kernel.
//
// Held for tens of nanoseconds and never across a park. The holder's M can lose its
// core to the kernel (Ps may outnumber cores), so a waiter sleeps on a futex after a
// short spin instead of burning the holder's time slice.
//
// Lock order (a lock may be taken while one to its left is held):
//   timers -> futex bucket -> poll desc -> sched -> stack pool -> all_gs
// Callers on a G must be inside the engine (g->engine > 0): preemption or a program's
// signal handler must not run while one is held.
//
// word: 0 free, 1 held, 2 held and somebody may sleep. Acquire in lock() pairs with
// release in unlock().
#pragma once

#include "sched/sys.h"

namespace weft {

class Lock {
 public:
  void lock() {
    uint32_t free = 0;
    if (WEFT_LIKELY(word_.compare_exchange_strong(free, 1, std::memory_order_acquire,
                                                  std::memory_order_relaxed)))
      return;
    lock_slow();
  }
  bool try_lock() {
    uint32_t free = 0;
    return word_.compare_exchange_strong(free, 1, std::memory_order_acquire,
                                         std::memory_order_relaxed);
  }
  void unlock() {
    if (WEFT_UNLIKELY(word_.exchange(0, std::memory_order_release) == 2)) sys_futex_wake(&word_, 1);
  }
  bool held() const { return word_.load(std::memory_order_relaxed) != 0; }
  // Only for the fork child, where whoever held it does not exist.
  void reset() { word_.store(0, std::memory_order_relaxed); }

 private:
  void lock_slow() {
    for (int i = 0; i < 60; i++) {
      uint32_t free = 0;
      if (word_.load(std::memory_order_relaxed) == 0 &&
          word_.compare_exchange_weak(free, 1, std::memory_order_acquire,
                                      std::memory_order_relaxed))
        return;
      cpu_relax();
    }
    while (word_.exchange(2, std::memory_order_acquire) != 0) sys_futex_wait(&word_, 2);
  }
  std::atomic<uint32_t> word_{0};
};

// Scope guard for code that cannot park inside the scope.
class Hold {
 public:
  explicit Hold(Lock& l) : l_(l) { l_.lock(); }
  ~Hold() { l_.unlock(); }
  Hold(const Hold&) = delete;
  Hold& operator=(const Hold&) = delete;

 private:
  Lock& l_;
};

}  // namespace weft

// high_water.h - how far a fixed table of slots was ever used.
//
// Invariant: a slot that was ever claimed lies below top(), also for a fork child whose
//            parent's other threads were just claiming: reach() comes before the claim.
// Callers:   tables whose slots a fork child frees again (sigroute.cc, sigtimer.cc). It then
//            touches the pages that were used, no others: each is a page fault in every child.
#pragma once

#include <stdint.h>

#include <atomic>

namespace weft {

class HighWater {
 public:
  void reach(uint32_t i) {
    uint32_t top = top_.load(std::memory_order_relaxed);
    while (top <= i && !top_.compare_exchange_weak(top, i + 1, std::memory_order_relaxed)) {
    }
  }
  uint32_t top() const { return top_.load(std::memory_order_relaxed); }

 private:
  std::atomic<uint32_t> top_{0};
};

}  // namespace weft

// destroy.h - destroying what others still wait on: as libc does, that lasts until they have left.
//
// It is the program's mistake, and rare: nobody is told to wake us, who wait in line or time out
// pay nothing for it, and we look each millisecond.
// Callers: pthread_cond_destroy, pthread_barrier_destroy; no cancellation points.
#pragma once

#include "preload/api.h"
#include "sched/gfutex_line.h"

namespace weft {

// Returns once `count` is 0.
inline void wait_till_left(const std::atomic<uint32_t>* count, Wait why) {
  constexpr uint64_t kLookNs = 1'000'000;
  while (WEFT_UNLIKELY(count->load(std::memory_order_acquire) != 0)) {
    Waiter w;
    w.on_signal = OnSignal::kGoOn;
    gfutex_table::enqueue(&w, &w, why, true, [] { return true; });  // nobody wakes that address
    gfutex_table::sleep(&w, host_now_ns() + kLookNs);
  }
}

}  // namespace weft

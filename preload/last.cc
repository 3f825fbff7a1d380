// last.cc - see last.h.
#include "preload/last.h"

#include <linux/membarrier.h>

namespace weft {

std::atomic<bool> main_left{false};

namespace {

std::atomic<uint32_t> count{0};

// d, and what a counted one does at its end.
bool take_out() { return count.fetch_sub(1, std::memory_order_acq_rel) == 1; }

void count_others(const G* main) {
  main_left.store(true, std::memory_order_seq_cst);                                       // a
  if (sched.membarrier) sys_call(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0);  // b
  else std::atomic_thread_fence(std::memory_order_seq_cst);
  for (G* g = all_gs_first(); g != nullptr; g = g->all_next)
    if (g != main && g->thread != nullptr) last_count(thread_of(g));
}

}  // namespace

void last_boot() {
  main_left.store(false, std::memory_order_relaxed);
  count.store(1, std::memory_order_relaxed);
}

void last_count(Thread* t) {
  uint32_t lives = kLives;
  if (t->over.load(std::memory_order_relaxed) != lives) return;
  count.fetch_add(1, std::memory_order_relaxed);
  // Lost: it has ended, or the other one that was at it has counted it.
  if (!t->over.compare_exchange_strong(lives, kCounted, std::memory_order_acq_rel)) take_out();
}

bool last_ended(Thread* t) {
  if (t->g == first_thread()) count_others(t->g);
  else if (t->over.exchange(kOver, std::memory_order_acq_rel) != kCounted) return false;
  return take_out();
}

void last_began_native() { count.fetch_add(1, std::memory_order_relaxed); }
bool last_ended_native() { return take_out(); }

}  // namespace weft

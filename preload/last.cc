// last.cc - see last.h.
#include "preload/last.h"

#include <linux/membarrier.h>
#include <stdlib.h>

#include "preload/api.h"
#include "preload/foreign.h"

namespace weft {

std::atomic<bool> main_left{false};

namespace {

std::atomic<uint32_t> count{0};       // futex of the keeper
std::atomic<uint32_t> begun{0};       // threads counted so far
std::atomic<bool> keeper{false};      // there is one, and it decides
std::atomic<bool> over{false};        // somebody has gone to exit

// d, and what a counted one does at its end.
bool take_out() { return count.fetch_sub(1, std::memory_order_acq_rel) == 1; }

void count_others(const G* main) {
  main_left.store(true, std::memory_order_seq_cst);                                       // a
  if (sched.membarrier) sys_call(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0);  // b
  else std::atomic_thread_fence(std::memory_order_seq_cst);
  for (G* g = all_gs_first(); g != nullptr; g = g->all_next)
    if (g != main && g->thread != nullptr) last_count(thread_of(g));
}

// Whoever is there can only have been begun by one who was: if none has begun while we looked,
// nobody was there.
bool nobody_lives() {
  uint32_t seen = begun.load(std::memory_order_seq_cst);
  return count.load(std::memory_order_seq_cst) == 0 && foreign_thread() == 0 &&
         begun.load(std::memory_order_seq_cst) == seen;
}

bool first_to_exit() { return !over.exchange(true, std::memory_order_acq_rel); }

void* keep(void*) {
  while (!nobody_lives()) {
    if (uint32_t others = count.load(std::memory_order_acquire); others != 0)
      sys_futex_wait(&count, others);
    else if (int tid = foreign_thread(); tid != 0)
      foreign_await_end(tid);
  }
  if (first_to_exit()) exit(0);
  return nullptr;
}

bool start_keeper() {
  uint64_t all = kAllSignals, old;
  pthread_t t;
  sys_sigprocmask(SIG_SETMASK, &all, &old);
  int err = real().pthread_create(&t, nullptr, keep, nullptr);
  sys_sigprocmask(SIG_SETMASK, &old, nullptr);
  return err == 0;
}

}  // namespace

void last_boot() {
  main_left.store(false, std::memory_order_relaxed);
  count.store(1, std::memory_order_relaxed);
  keeper.store(false, std::memory_order_relaxed);
  over.store(false, std::memory_order_relaxed);
}

void last_count(Thread* t) {
  uint32_t lives = kLives;
  if (t->over.load(std::memory_order_relaxed) != lives) return;
  begun.fetch_add(1, std::memory_order_seq_cst);
  count.fetch_add(1, std::memory_order_relaxed);
  // Lost: it has ended, or the other one that was at it has counted it.
  if (!t->over.compare_exchange_strong(lives, kCounted, std::memory_order_acq_rel)) take_out();
}

bool last_ended(Thread* t) {
  if (t->g == first_thread()) count_others(t->g);
  else if (t->over.exchange(kOver, std::memory_order_acq_rel) != kCounted) return false;
  if (!take_out()) return false;
  if (!keeper.load(std::memory_order_acquire)) {
    if (nobody_lives()) return first_to_exit();
    if (count.load(std::memory_order_seq_cst) != 0) return false;  // begun meanwhile: that one is the last
    if (!keeper.exchange(true, std::memory_order_acq_rel)) return !start_keeper() && first_to_exit();
  }
  sys_futex_wake(&count, 1);
  return false;
}

}  // namespace weft

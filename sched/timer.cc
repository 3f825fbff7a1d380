// timer.cc - the heap behind timer.h; four children a node keeps it two levels shallower.
#include "sched/timer.h"

#include <sys/mman.h>

namespace weft {

void TimerHeap::place(uint32_t i, Timer* t) {
  heap_[i] = t;
  t->index = i;
}

void TimerHeap::up(uint32_t i) {
  Timer* t = heap_[i];
  while (i > 0) {
    uint32_t parent = (i - 1) / 4;
    if (heap_[parent]->deadline_ns <= t->deadline_ns) break;
    place(i, heap_[parent]);
    i = parent;
  }
  place(i, t);
}

void TimerHeap::down(uint32_t i) {
  Timer* t = heap_[i];
  for (;;) {
    uint32_t best = 4 * i + 1;
    if (best >= n_) break;
    for (uint32_t c = best + 1; c < best + 4 && c < n_ && c < 4 * i + 5; c++)
      if (heap_[c]->deadline_ns < heap_[best]->deadline_ns) best = c;
    if (t->deadline_ns <= heap_[best]->deadline_ns) break;
    place(i, heap_[best]);
    i = best;
  }
  place(i, t);
}

void TimerHeap::grow() {
  uint32_t cap = cap_ == 0 ? 512 : cap_ * 2;
  void* p = sys_mmap(nullptr, cap * sizeof(Timer*), PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS);
  CHECK(!sys_failed(p));
  auto** wider = static_cast<Timer**>(p);
  for (uint32_t i = 0; i < n_; i++) wider[i] = heap_[i];
  if (heap_ != nullptr) sys_munmap(heap_, cap_ * sizeof(Timer*));
  heap_ = wider;
  cap_ = cap;
}

bool TimerHeap::add(Timer* t) {
  Hold hold(lock_);
  DCHECK(!t->pending);
  if (n_ == cap_) grow();
  t->heap = this;
  t->pending = true;
  n_++;
  place(n_ - 1, t);
  up(n_ - 1);
  earliest_.store(heap_[0]->deadline_ns, std::memory_order_release);
  return heap_[0] == t;
}

void TimerHeap::remove_at(uint32_t i) {
  heap_[i]->pending = false;
  Timer* last = heap_[--n_];
  if (i != n_) {
    place(i, last);
    up(i);
    down(last->index);
  }
  earliest_.store(n_ == 0 ? kNever : heap_[0]->deadline_ns, std::memory_order_release);
}

int TimerHeap::run(uint64_t now_ns) {
  if (earliest() > now_ns) return 0;
  Hold hold(lock_);
  int fired = 0;
  while (n_ > 0 && heap_[0]->deadline_ns <= now_ns) {
    Timer* t = heap_[0];
    remove_at(0);
    t->fire(t);
    fired++;
  }
  return fired;
}

bool TimerHeap::del(Timer* t) {
  if (t->heap == nullptr) return false;
  Hold hold(t->heap->lock_);
  if (!t->pending) return false;
  t->heap->remove_at(t->index);
  return true;
}

void TimerHeap::reset() {
  lock_.reset();
  n_ = 0;
  earliest_.store(kNever, std::memory_order_relaxed);
}

}  // namespace weft

// called_out.cc - see called_out.h.
#include "sched/called_out.h"

#include <linux/membarrier.h>

#include "sched/gfutex_line.h"

namespace weft {

using namespace gfutex_table;

namespace {

// One asks at a time: one that asks for the other's kAsking in d to e would run a G that has left.
Lock asking;

bool change(G* g, Called from, Called to) {
  return g->called.compare_exchange_strong(from, to, std::memory_order_acq_rel);
}

// Steps a to e without the last word. True: g, still in its chain, is the caller's to run.
bool win(G* g) {
  if (g->stands.load(std::memory_order_acquire) != Stands::kChain) return false;
  Hold hold(asking);
  if (!change(g, Called::kNone, Called::kAsking)) return false;  // it is out
  if (sched.membarrier) sys_call(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0);
  else std::atomic_thread_fence(std::memory_order_seq_cst);
  if (g->stands.load(std::memory_order_acquire) == Stands::kChain) return change(g, Called::kAsking, Called::kOut);
  change(g, Called::kAsking, Called::kNone);  // who took it out may have done so
  return false;
}

bool take_out_of_queue(G* g) {
  if (g->stands.load(std::memory_order_acquire) != Stands::kQueue) return false;
  const void* addr = __atomic_load_n(&g->wait_on, __ATOMIC_RELAXED);
  Bucket& b = bucket_of(addr);
  b.lock.lock();
  Waiter* w = next_of(b.head, addr);
  while (w != nullptr && !(w->claimed && w->g == g)) w = next_of(w->next, addr);
  if (w != nullptr) {
    unlink(b, w);
    g->stands.store(Stands::kNowhere, std::memory_order_relaxed);
  }
  b.lock.unlock();
  if (w != nullptr) ready(g);
  return w != nullptr;
}

}  // namespace

bool call_out(G* g) {
  if (!win(g)) return take_out_of_queue(g);  // where it may have gone to meanwhile
  uint64_t word = g->park.load(std::memory_order_relaxed);
  g->park.store((word & ~uint64_t{7}) | static_cast<uint64_t>(Reason::kInterrupted), std::memory_order_release);
  ready(g);
  return true;
}

WEFT_COLD void call_out_new(G* g) {
  Door in;
  call_out(g);
}

WEFT_COLD bool leave_called(Waiter* w) {
  G* g = w->g;
  for (;;) {
    switch (g->called.load(std::memory_order_acquire)) {
      case Called::kNone:
        return true;
      case Called::kAsking:
        if (change(g, Called::kAsking, Called::kNone)) return true;
        break;
      case Called::kOut:
        if (change(g, Called::kOut, Called::kPassed)) return false;
        break;
      default:  // kAlone: it sleeps as its kernel thread, until its word changes
        g->called.store(Called::kPassed, std::memory_order_relaxed);
        w->word.store(1, std::memory_order_release);
        sys_futex_wake(&w->word, 1);
        return false;
    }
  }
}

void call_out_after_fork() {
  asking.reset();
  if (t_g != nullptr) t_g->called.store(Called::kNone, std::memory_order_relaxed);
}

WEFT_COLD void stay_in_line(G* g, Waiter* w) {
  for (;;) {
    engine_exit(g);  // the handlers
    engine_enter(g);
    if (g->wired) {  // it has no P to park on
      if (change(g, Called::kOut, Called::kAlone))
        while (w->word.load(std::memory_order_acquire) == 0) sys_futex_wait(&w->word, 0, kNever);
      break;
    }
    uint64_t token = park_begin(g, static_cast<Wait>(w->tag >> 24), w->addr);
    CHECK(park_claim(g, token, Reason::kWoken));  // it is nobody's to end
    if (!change(g, Called::kOut, Called::kNone)) {
      park_abandon(g);
      break;
    }
    // In line again, and as step 2: a sender that found us out has set attention before.
    bool due = (g->attention.load(std::memory_order_relaxed) & kAttSignal) != 0;
    if (due && win(g)) {
      park_abandon(g);
      continue;
    }
    if (park(g) == Reason::kWoken) break;
  }
  g->called.store(Called::kNone, std::memory_order_relaxed);
  g->stands.store(Stands::kNowhere, std::memory_order_relaxed);
}

}  // namespace weft

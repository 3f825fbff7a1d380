// park.cc - see park.h.
#include "sched/park.h"

#include <linux/membarrier.h>

#include "sched/fair.h"
#include "sched/netpoll.h"

namespace weft {
namespace {

struct SleepTimer : Timer {
  G* g = nullptr;
  uint64_t token = 0;
};

void fire_sleep(Timer* t) {
  auto* s = static_cast<SleepTimer*>(t);
  G* g = s->g;
  if (park_claim(g, s->token, Reason::kTimeout)) ready(g);
}

}  // namespace

bool park_ends_early(G* g, uint32_t bits) {
  if ((bits & (g->ended_by.load(std::memory_order_relaxed) | kAttBreak)) == 0) return false;
  // If the claim is lost, somebody else ends this park and has put us on a queue: leave through
  // that.
  uint64_t w = g->park.load(std::memory_order_relaxed);
  if ((w & 7) != static_cast<uint64_t>(Reason::kWaiting) || !park_claim(g, w, Reason::kInterrupted))
    return false;
  park_abandon(g);
  return true;
}

Reason park_timed(G* g, uint64_t token, uint64_t deadline_ns) {
  SleepTimer t;
  t.deadline_ns = deadline_ns;
  t.fire = fire_sleep;
  t.g = g;
  t.token = token;
  if (g->m->p->timers.add(&t)) {
    // An M sleeping in the netpoller knows no deadline earlier than poll_until_ns. Its
    // store of poll_until_ns and second look pair with this fence (findwork.cc).
    std::atomic_thread_fence(std::memory_order_seq_cst);
    uint64_t until = sched.poll_until_ns.load(std::memory_order_relaxed);
    if (until != 0 && deadline_ns < until) netpoll_break();
    note_timer(deadline_ns);
  }
  Reason r = park(g);
  if (r != Reason::kTimeout) TimerHeap::del(&t);
  return r;
}

namespace {

// g->attention has been set: g's park word, such that a g whose park begins later than what
// we see looks at attention after it (park_begin).
uint64_t park_word_of(G* g) {
  uint64_t w = g->park.load(std::memory_order_acquire);
  if ((w & 7) == static_cast<uint64_t>(Reason::kWaiting) || !sched.membarrier) return w;
  sys_call(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0);
  return g->park.load(std::memory_order_acquire);
}

}  // namespace

bool park_interrupt(G* g, Attention why) {
  uint64_t w = park_word_of(g);
  if ((w & 7) != static_cast<uint64_t>(Reason::kWaiting)) return false;
  if ((g->ended_by.load(std::memory_order_relaxed) & why) == 0) return false;  // written before park
  if (!park_claim(g, w, Reason::kInterrupted)) return false;
  ready(g);
  return true;
}

bool park_break(G* g) {
  uint64_t w = park_word_of(g);
  if ((w & 7) != static_cast<uint64_t>(Reason::kWaiting)) return false;
  if (!park_claim(g, w, Reason::kInterrupted)) return false;
  ready(g);
  return true;
}

Reason park_sleep(G* g, uint64_t deadline_ns, Wait why, bool interruptible) {
  if (WEFT_UNLIKELY(g->wired)) {  // since its call began: it sleeps as its kernel thread
    std::atomic<uint32_t> never{0};
    return sys_futex_wait(&never, 0, deadline_ns) == -ETIMEDOUT ? Reason::kTimeout : Reason::kInterrupted;
  }
  uint64_t token = park_begin(g, why, nullptr, interruptible);
  return park_until(g, token, deadline_ns);
}

}  // namespace weft

// syscall.cc - see syscall.h.
#include "sched/syscall.h"

#include <linux/membarrier.h>

#include "sched/fair.h"
#include "sched/netpoll.h"
#include "sched/park.h"

namespace weft {
namespace {

constexpr uint64_t kCountOne = uint64_t{1} << 32;
constexpr uint64_t kStateMask = 0xffffffffu;

uint64_t with_state(uint64_t word, uint32_t s) { return (word & ~kStateMask) | s; }

// The G came back without a P: the old one, any idle one, else queue and let the M sleep.
// On the G's stack, in the engine.
void get_p_or_queue(G* g) {
  M* m = g->m;
  sched.n_away.fetch_sub(1, std::memory_order_relaxed);
  {
    P* p = nullptr;
    {
      Hold hold(sched.lock);
      // The old one is warm: take it if it is idle.
      for (P** l = &sched.idle_p; *l != nullptr; l = &(*l)->idle_link)
        if (*l == m->old_p) {
          p = *l;
          *l = p->idle_link;
          p->idle_link = nullptr;
          sched.n_idle_p.fetch_sub(1, std::memory_order_seq_cst);
          break;
        }
      if (p == nullptr) p = idle_p_get_locked();
    }
    if (p != nullptr) {
      acquire_p(m, p);
      g->state.store(with_state(g->state.load(std::memory_order_relaxed),
                                static_cast<uint32_t>(GState::kRunning)),
                     std::memory_order_release);
      return;
    }
  }
  m->trace.add(Ev::kSysLost, g->index);
  g->state.store(with_state(g->state.load(std::memory_order_relaxed),
                            static_cast<uint32_t>(GState::kRunnable)),
                 std::memory_order_release);
  if (!place_woken(g)) {
    Hold hold(sched.lock);
    globq_put_locked(g);
  }
  // A P may have gone idle since we looked; its M looked at the global queue under the lock.
  switch_away();
}

}  // namespace

// A signal of ours is under way to this M, or somebody is deciding to send one. The bound:
// fork and masked waits come here with signals blocked.
void let_signals_land(G* g) {
  for (int i = 0; i < 100 && g->m->sent.load(std::memory_order_relaxed) != 0; i++)
    sys_sched_yield();
}

void enter_syscall_masked(G* g) {
  M* m = g->m;
  m->trace.add(Ev::kSysEnter, g->index);
  uint64_t w = g->state.load(std::memory_order_relaxed);
  // Step 1. Release: sysmon's acquire sees the P as we leave it.
  g->state.store(with_state(w + kCountOne, static_cast<uint32_t>(GState::kSyscall)),
                 std::memory_order_release);
}

void enter_syscall(G* g) {
  enter_syscall_masked(g);
  // Pairs with the membarrier in sent_begin: it sees our state or we see its mark.
  compiler_barrier();
  if (WEFT_UNLIKELY(g->m->sent.load(std::memory_order_relaxed) != 0)) let_signals_land(g);
}

namespace {

// One way into the bracket. False: something wants attention first.
bool give_p_up(G* g) {
  engine_enter(g);
  M* m = g->m;
  P* p = m->p;
  bool others = !p->runq.empty() || sched.globq_n.load(std::memory_order_relaxed) != 0;
  uint64_t w = g->state.load(std::memory_order_relaxed) + kCountOne;
  bool unwatched = sched.last_poll_ns.load(std::memory_order_relaxed) != 0 &&
                   (netpoll_waiters() || p->timers.earliest() != kNever);
  // Who is away comes back, and not to an idle P if we keep the last one.
  bool shared = g->call_habit != 0 && sched.n_away.load(std::memory_order_relaxed) != 0;
  if (others || unwatched || shared ||
      sched.n_idle_p.load(std::memory_order_relaxed) + 1 < sched.procs) {
    release_p(m);
    sched.n_away.fetch_add(1, std::memory_order_relaxed);
    g->state.store(with_state(w, kSyscallLost), std::memory_order_release);
    hand_off_p(p);
  } else {
    // All else is idle, nothing waits, and somebody watches descriptors and timers (or
    // there are none): keep the P; sysmon retakes it if that changes.
    g->state.store(with_state(w, static_cast<uint32_t>(GState::kSyscall)),
                   std::memory_order_release);
  }
  // Not engine_exit: whatever wants attention may park, and we are no longer to.
  compiler_barrier();
  g->engine.store(g->engine.load(std::memory_order_relaxed) - 1, std::memory_order_relaxed);
  compiler_barrier();
  if (WEFT_UNLIKELY(g->attention.load(std::memory_order_relaxed) != 0)) return false;
  if (WEFT_UNLIKELY(g->m->sent.load(std::memory_order_relaxed) != 0)) let_signals_land(g);
  return true;
}

}  // namespace

void enter_syscall_block(G* g) {
  // exit_syscall attends (and may wire g). What is not to be settled that way, or comes later, finds
  // us outside the engine and interrupts the call.
  for (int tries = 0; tries < 2 && !g->wired; tries++) {
    if (give_p_up(g)) return;
    exit_syscall(g);
  }
  enter_syscall(g);
}

bool sent_begin(M* m, G* g, uint32_t bit, bool running_only) {
  for (;;) {
    // Whoever set it sends, and what lands looks at everything that is due.
    if ((m->sent.fetch_or(bit, std::memory_order_seq_cst) & bit) != 0) return false;
    if (g == t_g) return true;
    if (sched.membarrier) sys_call(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0);
    G* now = m->curg.load(std::memory_order_acquire);
    GState s = now == nullptr ? GState::kDead : g_state(now);
    bool in_call = s == GState::kSyscall || static_cast<uint32_t>(s) == kSyscallLost;
    bool reachable = s == GState::kRunning || (in_call && !running_only);
    if (now == g && reachable && runs_on(g, m)) return true;
    m->sent.fetch_and(~bit, std::memory_order_seq_cst);
    // Another sender may have relied on us for whoever is there now.
    G* other = m->curg.load(std::memory_order_acquire);
    if (other == nullptr || other == g || other->wired ||
        (other->attention.load(std::memory_order_seq_cst) & (kAttSignal | kAttCancel)) == 0)
      return false;
    g = other;
    running_only = false;
  }
}

// A signal handler may come between any two steps: it brackets itself with the exit and the
// enter of its own, so the state word is what it was but for the count, or the P is lost
// meanwhile, or was lost and is there again.
void exit_syscall(G* g) {
  uint64_t w = g->state.load(std::memory_order_relaxed);
  for (;;) {
    // Step 3. Acquire-release against retake_syscall's CAS: one of us owns the P.
    while (WEFT_LIKELY((w & kStateMask) == static_cast<uint64_t>(GState::kSyscall))) {
      if (!g->state.compare_exchange_strong(
              w, with_state(w, static_cast<uint32_t>(GState::kRunning)),
              std::memory_order_acq_rel, std::memory_order_relaxed))
        continue;
      if (WEFT_UNLIKELY(g->attention.load(std::memory_order_relaxed) != 0 &&
                        g->engine.load(std::memory_order_relaxed) == 0))
        host_attention(g);
      return;
    }
    g->engine.store(g->engine.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
    compiler_barrier();  // from here on handlers are put off
    w = g->state.load(std::memory_order_relaxed);
    if ((w & kStateMask) != static_cast<uint64_t>(GState::kSyscall)) break;
    g->engine.store(g->engine.load(std::memory_order_relaxed) - 1, std::memory_order_relaxed);
    compiler_barrier();
  }
  M* m = g->m;
  if (m->p != nullptr) {  // sysmon took it (retake_syscall); this side is ours to clear
    if (g->call_habit < kCallsSleep) g->call_habit++;
    m->trace.add(Ev::kRetake, g->index, m->p->id);
    m->old_p = m->p;
    m->p = nullptr;
  }
  get_p_or_queue(g);
  engine_exit(g);
}

bool retake_syscall(P* p, M* m, G* g, uint64_t state) {
  // Step b: see syscall.h for why the order state, association, CAS is enough.
  if (p->m.load(std::memory_order_acquire) != m || !runs_on(g, m)) return false;
  if (!g->state.compare_exchange_strong(state, with_state(state, kSyscallLost),
                                        std::memory_order_acq_rel, std::memory_order_relaxed))
    return false;
  // From the CAS on the G may be back. m->p is its M's to clear (exit_syscall); p is ours.
  sched.n_away.fetch_add(1, std::memory_order_relaxed);
  detach_p(p);
  return true;
}

// ---------------------------------------------------------------- hidden blocks

bool retake_hidden(P* p, M* m, G* g) {
  m->retake.store(1, std::memory_order_seq_cst);                           // a
  sys_call(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0);        // b
  bool ours = p->m.load(std::memory_order_acquire) == m &&                 // c
              g->engine.load(std::memory_order_acquire) == 0 && g_state(g) == GState::kRunning &&
              runs_on(g, m);
  if (!ours) {
    m->retake.store(0, std::memory_order_release);
    return false;
  }
  release_p(m);
  sched.n_away.fetch_add(1, std::memory_order_relaxed);
  m->retake.store(2, std::memory_order_release);
  return true;
}

void engine_reacquire(G* g) {
  // Step 3. g->engine is up, so sysmon's decision is final once it is made; it takes no
  // lock on the way, only its own time slice.
  M* m = g->m;
  uint32_t r;
  for (int i = 0; (r = m->retake.load(std::memory_order_acquire)) == 1; i++) {
    cpu_relax();
    if (i > 1000) sys_sched_yield();
  }
  if (r != 2) return;
  m->retake.store(0, std::memory_order_relaxed);
  get_p_or_queue(g);
}

// ---------------------------------------------------------------- wired Gs

void wire_self(const char*) {
  G* g = t_g;
  if (g == nullptr || g->is_g0 || g->wired) return;
  engine_enter(g);
  M* m = g->m;
  m->trace.add(Ev::kWire, g->index);
  P* p = m->p;
  g->wired = true;
  release_p(m);
  sched.n_away.fetch_add(1, std::memory_order_relaxed);
  hand_off_p(p);
  g->engine.store(0, std::memory_order_relaxed);
}

}  // namespace weft

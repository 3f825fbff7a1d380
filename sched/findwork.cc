// findwork.cc - where g0 finds the next G: find_runnable, Go's, in Go's order.
//
// Own queue, global queue, netpoller; then, spinning, other Ps' queues; then the P goes back
// and the M sleeps, the last one in the netpoller. Un-spinning pairs with submitting
// (sched.cc). Every look at queues after the P was given back is there for that pair, or for
// the pair of timers and poll_until_ns (park.cc).
#include "sched/findwork.h"

#include "sched/netpoll.h"
#include "sched/park.h"
#include "sched/stack.h"

namespace weft {
namespace {

constexpr uint64_t kRunnextGraceTsc = 9000;  // about 3 us before runnext may be stolen

uint64_t earliest_timer() {
  uint64_t t = kNever;
  for (uint32_t i = 0; i < sched.procs; i++) {
    uint64_t e = sched.p[i].timers.earliest();
    if (e < t) t = e;
  }
  return t;
}

// Every P's, not only our own: a P that went idle leaves its timers behind.
void run_due_timers() {
  if (earliest_timer() == kNever) return;
  uint64_t now = host_now_ns();
  for (uint32_t i = 0; i < sched.procs; i++) sched.p[i].timers.run(now);
}

G* steal_work(M* m, P* p) {
  uint32_t start = next_random(m->rng);
  bool last = false;
  for (int round = 0; round < 4; round++) {
    last = round == 3;
    for (uint32_t i = 0; i < sched.procs; i++) {
      P* v = &sched.p[(start + i) % sched.procs];
      if (v == p) continue;
      bool take_next = false;
      if (last && v->runq.ring_empty() && v->runq.has_next()) {
        // The G that readied runnext most likely parks in a moment and runs it itself.
        uint32_t seen = v->switches.load(std::memory_order_relaxed);
        uint64_t until = tsc() + kRunnextGraceTsc;
        while (tsc() < until && v->switches.load(std::memory_order_relaxed) == seen) cpu_relax();
        take_next = v->switches.load(std::memory_order_relaxed) == seen;
      }
      if (G* g = p->runq.steal(v->runq, take_next)) {
        p->woken_until.store(p->runq.place(), std::memory_order_relaxed);  // some may be
        p->n_steals++;
        m->trace.add(Ev::kSteal, g->index, v->id);
        return g;
      }
    }
  }
  return nullptr;
}

// When a P last looked at the netpoller (tsc). A spinner leaves events to a P that looks all
// the time: taking them would move its Gs from core to core.
std::atomic<uint64_t> last_look_tsc{0};
constexpr uint64_t kLookTsc = 30000;  // about 12 us

GList look_netpoll() {
  last_look_tsc.store(tsc(), std::memory_order_relaxed);
  note_look();
  return netpoll(0);
}

// Waiting for work while spinning is learnt by each M: kVain times in a row nothing came, and it only
// looks around, but for each kVainTry-th time. Beside other processes that need the cores (pgbench
// and its backends) most of it was in vain: 0.7 s of 4 s of processor time, natively 0.2.
constexpr uint8_t kVain = 4;
constexpr uint8_t kVainTry = 16;

bool worth_waiting(M* m) {
  return m->spins_in_vain < kVain || m->spins_in_vain % kVainTry == 0;
}

G* look_around(M* m, P* p) {
  if (G* g = steal_work(m, p)) return g;
  if (G* g = globq_get(p, kRunqSize)) return g;
  if (netpoll_waiters() && sched.last_poll_ns.load(std::memory_order_relaxed) != 0 &&
      tsc() - last_look_tsc.load(std::memory_order_relaxed) > kLookTsc) {
    GList gs = look_netpoll();
    G* g = gs.pop();
    ready_list(gs);
    if (g != nullptr) return g;
  }
  run_due_timers();
  return p->runq.get();
}

// Steals until something is found or the spin time is over.
G* spin_for_work(M* m, P* p) {
  if (!m->spinning) {
    uint32_t busy = sched.procs - sched.n_idle_p.load(std::memory_order_relaxed);
    if (2 * sched.n_spinning.load(std::memory_order_relaxed) >= busy) return nullptr;
    m->spinning = true;
    sched.n_spinning.fetch_add(1, std::memory_order_seq_cst);
  }
  uint64_t until = 0;
  for (;;) {
    if (G* g = look_around(m, p)) {
      if (until != 0) m->spins_in_vain = 0;
      return g;
    }
    if (stack_cut_ahead()) continue;
    uint64_t now = tsc();
    if (until == 0) until = worth_waiting(m) ? now + uint64_t{sched.spin_us} * 2500 : now;  // about; a knob in us
    if (now >= until) {
      m->spins_in_vain++;
      return nullptr;
    }
    for (int i = 0; i < 30; i++) cpu_relax();
  }
}

void stop_spinning(M* m) {
  m->spinning = false;
  CHECK(sched.n_spinning.fetch_sub(1, std::memory_order_seq_cst) != 0);
}

// Takes an idle P again after p was given back; true if m has one now.
bool retake_idle_p(M* m) {
  P* p;
  {
    Hold hold(sched.lock);
    p = idle_p_get_locked();
  }
  if (p == nullptr) return false;
  acquire_p(m, p);
  return true;
}

// The last M to go idle sleeps in the netpoller, up to the next timer. Returns with or
// without a P; what became ready is queued.
void sleep_in_netpoll(M* m) {
  uint64_t when = earliest_timer();
  uint64_t now = host_now_ns();
  uint64_t delay = when == kNever ? kNever : when > now ? when - now : 0;
  sched.poll_until_ns.store(when, std::memory_order_seq_cst);
  // A timer added between earliest_timer() and here saw poll_until_ns too old; look again.
  if (earliest_timer() < when) delay = 0;
  m->trace.add(Ev::kPoll, 0, delay);
  block_signals(m);
  GList gs = netpoll(delay);
  sched.poll_until_ns.store(0, std::memory_order_relaxed);
  sched.last_poll_ns.store(host_now_ns(), std::memory_order_seq_cst);
  bool timers_due = earliest_timer() <= host_now_ns();
  if (gs.head == nullptr && !timers_due && !any_work()) return;
  if (retake_idle_p(m)) {
    ready_list(gs);
    return;
  }
  if (gs.head == nullptr) return;
  {
    Hold hold(sched.lock);
    while (G* g = gs.pop()) globq_put_locked(g);
  }
  wake_p();
}

// Without a P: sleeps in the netpoller unless another M does or nothing is waited for. An
// event that readies nobody, or a break, does not end the watch: the M that went idle while
// we were on our way back saw last_poll_ns 0 and has stopped. It gave its P up before that
// (seq_cst on both), so either it sees our time stamp or we see its P. With no P idle, those
// who have them look.
void watch(M* m) {
  while ((netpoll_waiters() || earliest_timer() != kNever) &&
         sched.last_poll_ns.exchange(0, std::memory_order_seq_cst) != 0) {
    sleep_in_netpoll(m);
    if (m->p != nullptr || sched.n_idle_p.load(std::memory_order_seq_cst) == 0) return;
  }
}

}  // namespace

G* find_runnable(M* m) {
  for (;;) {
    P* p = m->p;
    if (p == nullptr) {
      stop_m(m);
      continue;
    }
    run_due_timers();
    if (p->switches.load(std::memory_order_relaxed) % kGlobalEvery == 0)
      if (G* g = globq_get(p, 1)) return g;
    p->inherit = false;
    if (G* g = p->runq.get_next()) {
      p->inherit = true;
      return g;
    }
    if (G* g = p->runq.get()) return g;
    if (G* g = globq_get(p, kRunqSize)) return g;
    if (netpoll_waiters() && sched.last_poll_ns.load(std::memory_order_relaxed) != 0) {
      GList gs = look_netpoll();
      if (G* g = gs.pop()) {
        ready_list(gs);
        return g;
      }
    }
    GList late;
    bool again = netpoll_settle(p, late);  // before it spins or sleeps: netsettle.cc
    if (G* g = late.pop()) {
      ready_list(late);
      return g;
    }
    if (again) continue;
    if (G* g = spin_for_work(m, p)) return g;

    // Nothing: give the P back, then look once more, as the un-spin protocol wants.
    {
      Hold hold(sched.lock);
      if (sched.globq.n != 0) continue;
      release_p(m);
      idle_p_put_locked(p);
    }
    bool was_spinning = m->spinning;
    if (was_spinning) stop_spinning(m);
    std::atomic_thread_fence(std::memory_order_seq_cst);
    if (any_work() || earliest_timer() <= host_now_ns()) {
      if (retake_idle_p(m)) {
        if (was_spinning) {
          m->spinning = true;
          sched.n_spinning.fetch_add(1, std::memory_order_seq_cst);
        }
        continue;
      }
    }
    watch(m);
    if (m->p == nullptr) stop_m(m);
  }
}

void reset_spinning(M* m) {
  if (!m->spinning) return;
  stop_spinning(m);
  // We found work; there may be more: the next M starts spinning (Go's resetspinning).
  if (sched.n_idle_p.load(std::memory_order_relaxed) != 0 && any_work()) wake_p();
}

}  // namespace weft

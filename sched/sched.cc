// sched.cc - who runs next.
//
// The design is Go's proc.go: local queue and runnext, global queue, stealing, spinning
// Ms. What differs, and why:
//  - A G that blocks switches straight to the next G when one is known (switch_away). g0
//    is visited only to look further. A visit costs a second switch, 12 ns.
//  - Publishing: G::on_cpu instead of a commit callback (g.h).
//  - Wake-ups of other Ms are paid for by habit. Waking an idle core costs 25-30 us here
//    (the virtual CPU has halted), and 2-5 us of the waker. A G that always parks right
//    after readying one other G (ping-pong, create+join) gains nothing from a second M:
//    its partner runs next on this P. So each G learns (G::wake_habit): 2 times parked
//    within kHabitTsc of a ready, and the wake is left out; once longer, and it wakes at
//    once again. sysmon's tick is the net below it.
//  - Ping-pong by runnext cannot starve the ring: every kMaintain switches runnext goes
//    to the tail.
//
// Submitting and un-spinning (Go's protocol; both fences are StoreLoad):
//   submitter: put G; fence; if an idle P and no spinner: wake_p
//   spinner:   n_spinning--; fence; look at every queue again; sleep
// One of the two sees the other, so no G is left queued while all others sleep.
#include "sched/sched.h"

#include "sched/cpuclock.h"
#include "sched/fair.h"
#include "sched/findwork.h"
#include "sched/netpoll.h"
#include "sched/park.h"
#include "sched/stack.h"

namespace weft {

constinit Sched sched;

namespace {

constexpr uint32_t kMaintain = 64;        // switches between looks at the wider world
// Where more Gs are ready than a ring holds, those in it can feed each other for ever (pipes)
// while hundreds stand in the global queue: that has each fourth turn then. Not where they are
// new ones: a recursion that forks would go on in breadth (forkjoin: 5 ms, so 16).
constexpr uint32_t kGlobalTurn = 4;
constexpr uint64_t kHabitTsc = 60000;     // 20-30 us at 2-3 GHz: what a wake would cost
constexpr uint8_t kHabitSure = 2;
// A creator that runs on and on would have each of its threads begin, and end, with stack,
// TLS and TCB long gone from the caches (25 lines each), and new slots for all of them:
// with 1000 made in one go each costs twice as much as when 64 take turns. Only who makes so
// many itself gives way: in a recursion that forks it would open the tree in breadth. A server
// that accepts does not: the next connections would wait behind those it has.
constexpr uint8_t kCreateAhead = 64;

void set_state(G* g, GState s) {
  uint64_t calls = g->state.load(std::memory_order_relaxed) & ~uint64_t{0xffffffff};
  g->state.store(calls | static_cast<uint64_t>(s), std::memory_order_release);
}

// Half of a full ring and `g` go to the global queue.
void runq_overflow(P* p, G* g) {
  G* batch[kRunqSize / 2];
  uint32_t n = p->runq.take_half(batch);
  Hold hold(sched.lock);
  for (uint32_t i = 0; i < n; i++) globq_put_locked(batch[i]);
  globq_put_locked(g);
}

void runq_put_tail(P* p, G* g) {
  if (WEFT_UNLIKELY(!p->runq.put(g))) runq_overflow(p, g);
}

// A woken one: those who compute make way for it (fair.h).
void runq_put_woken(P* p, G* g) {
  runq_put_tail(p, g);
  p->woken_until.store(p->runq.place(), std::memory_order_relaxed);
}

}  // namespace

G* claim_last(G* g) {
  P* p = t_g->m->p;
  if (p == nullptr || !p->runq.take_last(g)) return nullptr;
  uint32_t place = p->runq.place();
  if (p->woken_until.load(std::memory_order_relaxed) == place + 1)  // whoever comes there next is another
    p->woken_until.store(place, std::memory_order_relaxed);
  return g;
}

namespace {

WEFT_INLINE void wake_for(G* self, P* p, bool displaced) {
  if (sched.n_idle_p.load(std::memory_order_relaxed) == 0) {
    if (WEFT_UNLIKELY(sched.sysmon_slow.load(std::memory_order_relaxed))) note_hog(p);
    return;
  }
  bool learn = !displaced && self != nullptr;
  if (!learn || self->wake_habit < kHabitSure || !p->runq.ring_empty()) wake_p();
  // The counter costs 10 ns a look: a G that is sure is measured each 7th time only.
  if (learn && (self->wake_habit < kHabitSure ||
                p->switches.load(std::memory_order_relaxed) % 7 == 0))
    self->ready_tsc = tsc();
}

// g is about to run, after the others of its bunch: what it touches first comes meanwhile (echo,
// 5000 connections, with the PollDescs in netpoll(): 2 %, within what runs differ by).
void warm(const G* g) {
  const char* sp = static_cast<const char*>(g->sp);
  for (int i = 0; i < 10; i++) __builtin_prefetch(sp + 64 * i, 1, 2);
  __builtin_prefetch(&g->attention, 1, 2);
  __builtin_prefetch(g->thread, 1, 2);
  __builtin_prefetch(reinterpret_cast<const char*>(g->fs) - 64, 1, 2);
}

// One that an event has readied, on p's own M. Events come in bunches of which none has more to
// do with the present G than another: to the tail. Who serves many, the thread that accepts or
// waits on an epoll descriptor, goes before them: the others would come to nothing else than
// more of themselves, while the backlog overflows (a connection refused, or a second lost).
// mariadbd on one P refused some of 1000 that came at once.
void ready_event(P* p, G* g) {
  set_state(g, GState::kRunnable);
  p->m.load(std::memory_order_relaxed)->trace.add(Ev::kReady, g->index, t_g->index);
  if (g->ahead) {
    if (G* old = p->runq.put_next(g)) runq_put_woken(p, old);
  } else if (p->runq.ring_empty() || p->crowd.load(std::memory_order_relaxed) || sched.n_idle_p.load(std::memory_order_relaxed) != 0 ||
             !p->runq.offer_next(g)) {
    // Where all compute, those in the ring may have been preempted: not behind them.
    warm(g);
    runq_put_woken(p, g);
  }
  std::atomic_thread_fence(std::memory_order_seq_cst);  // submit (head comment)
}

// The netpoller's turn, and that of waits begun without a try (netsettle.cc). No more events while
// as many wait here: a ring that overflows sends its oldest to the global queue, past which the
// others come round again (echo, 5000 connections: 99th percentile 109 to 134 ms, so 84 to 130).
void take_events(P* p) {
  p->look.store(false, std::memory_order_relaxed);
  // Where another M sleeps in the netpoller nothing stays there, if it has a core: beside Ps all busy
  // it needs one of theirs, and can only queue what it gets.
  bool watched = sched.last_poll_ns.load(std::memory_order_relaxed) == 0 &&
                 sched.n_idle_p.load(std::memory_order_relaxed) != 0;
  bool more = false;
  if (netpoll_waiters() && !watched) {
    more = true;
    // Those in the global queue came before what is in the kernel.
    if (p->runq.size() < kMaintain)
      if (G* older = globq_get(p, kMaintain)) runq_put_tail(p, older);
    if (p->runq.size() < kMaintain) {
      note_look();
      GList gs = netpoll(0, &more);
      while (G* e = gs.pop()) ready_event(p, e);
      if (p->runq.size() > 1) wake_for(nullptr, p, true);
    }
  }
  if (more) return;
  GList late;
  netpoll_settle(p, late);
  while (G* e = late.pop()) ready_event(p, e);
}

// Every kMaintain switches: give the ring, the global queue, timers and the netpoller their
// turn.
WEFT_COLD void maintain(P* p) {
  if (!p->runq.ring_empty())
    if (G* next = p->runq.get_next()) runq_put_woken(p, next);
  G* g = globq_get(p, 1);
  // It keeps nobody from this turn, and not if it is who gives way: it would go on at once, and as
  // that is no switch, be here again each time (redis with two I/O threads on one P hung).
  if (g != nullptr && g->ahead && g != t_g) {
    if (G* old = p->runq.put_next(g)) runq_put_tail(p, old);
    g = globq_get(p, 1);
  }
  if (g != nullptr) runq_put_tail(p, g);
  p->global_turns = p->fed && sched.globq_n.load(std::memory_order_relaxed) > kMaintain;
  p->fed = false;
  if (p->timers.earliest() != kNever) p->timers.run(host_now_ns());
  take_events(p);
}

// The next G without leaving the caller's stack, or null: then g0 looks further.
WEFT_INLINE G* pick_local(P* p) {
  uint32_t switches = p->switches.load(std::memory_order_relaxed);
  if (WEFT_UNLIKELY((switches % kMaintain) == 0 || p->look.load(std::memory_order_relaxed))) maintain(p);
  if (WEFT_UNLIKELY(p->global_turns) && switches % kGlobalTurn == 0)
    if (G* g = globq_get(p, 1)) {
      p->inherit = false;
      return g;
    }
  if (G* g = p->runq.get_next()) {
    p->inherit = true;
    return g;
  }
  p->inherit = false;
  return p->runq.get();
}

void count(std::atomic<uint32_t>& c) {  // owner-written, read by others
  c.store(c.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
}

// m runs g from here on; the switch follows. The trace has it as `ev` with `arg`.
WEFT_INLINE void begin_run(M* m, P* p, G* g, Ev ev, uint64_t arg) {
  g->m = m;
  m->curg.store(g, std::memory_order_relaxed);
  g->on_cpu.store(1, std::memory_order_relaxed);  // ordered by whoever publishes g next
  set_state(g, GState::kRunning);
  count(p->switches);
  if (!p->inherit) count(p->tick);
  m->trace.add(ev, g->index, arg);
  if (WEFT_UNLIKELY(sched.count_cpu.load(std::memory_order_relaxed))) cpu_switch(m, g);
  if (WEFT_UNLIKELY(m->kmask != g->sigmask)) host_sync_signals(m, g);
}

void do_switch(G* from, G* to) {
  if (WEFT_LIKELY(sched.fsgsbase)) weft_switch(from, to);
  else weft_switch_prctl(from, to);
}

// Learns whether g parks soon after it readied another one (head comment).
// Whether the woken G was still there does not count: the wake itself takes the waker so
// long (a system call, an interrupt to the other core) that the woken M steals it meanwhile,
// which would look as if the wake had paid, for ever.
WEFT_COLD void learn_habit(G* g) {
  uint64_t ran = tsc() - g->ready_tsc;
  g->ready_tsc = 0;
  if (ran < kHabitTsc) {
    if (g->wake_habit < kHabitSure) g->wake_habit++;
  } else {
    g->wake_habit = 0;
  }
}

}  // namespace

// Who serves many waits for the next maintain(), not for all those whom it serves.
void globq_put_locked(G* g) {
  const G* head = sched.globq.head;
  if (g->ahead && head != nullptr && !head->ahead) sched.globq.push_front(g);
  else sched.globq.push(g);
  sched.globq_n.store(sched.globq.n, std::memory_order_release);
}

// A fair share of the global queue; one is returned, the others go to p's ring.
G* globq_get(P* p, uint32_t max) {
  if (sched.globq_n.load(std::memory_order_acquire) == 0) return nullptr;
  Hold hold(sched.lock);
  uint32_t n = sched.globq.n / sched.procs + 1;
  if (n > max) n = max;
  if (n > kRunqSize / 2) n = kRunqSize / 2;
  G* first = sched.globq.pop();
  for (uint32_t i = 1; i < n; i++) {
    G* g = sched.globq.head;
    if (g == nullptr || !p->runq.put(g)) break;
    sched.globq.pop();
  }
  sched.globq_n.store(sched.globq.n, std::memory_order_release);
  return first;
}

void ready(G* g) {
  set_state(g, GState::kRunnable);
  G* self = t_g;
  M* m = self == nullptr ? nullptr : self->m;
  P* p = m == nullptr ? nullptr : m->p;
  if (p == nullptr) {  // foreign or wired: no queue of its own
    if (sched.n_idle_p.load(std::memory_order_relaxed) == 0 && place_woken(g)) return;
    {
      Hold hold(sched.lock);
      globq_put_locked(g);
    }
    wake_p();
    return;
  }
  if (self->is_g0) {  // timers, netpoll: nobody here is about to park for it
    ready_event(p, g);
    if (p->runq.size() > 1) wake_for(nullptr, p, true);
    return;
  }
  m->trace.add(Ev::kReady, g->index, self->index);
  G* old = p->runq.put_next(g);  // a full fence on x86: the submit's
  if (old != nullptr) {
    runq_put_woken(p, old);
    std::atomic_thread_fence(std::memory_order_seq_cst);
  }
  wake_for(self, p, old != nullptr);
}

void ready_in_turn(G* g) {
  M* m = this_m();
  P* p = m == nullptr ? nullptr : m->p;
  if (p == nullptr || (p->runq.ring_empty() && sched.globq_n.load(std::memory_order_relaxed) == 0)) {
    ready(g);
    return;
  }
  p->fed = true;
  ready_event(p, g);
  wake_for(t_g, p, true);
}

void ready_list(GList& gs) {
  while (G* g = gs.pop()) ready(g);
}

void g_mark_dead(G* g) {
  g->wake_habit = kHabitSure;
  set_state(g, GState::kDead);
}

void wait_off_cpu(G* g) {
  for (int i = 0; g->on_cpu.load(std::memory_order_acquire) != 0; i++) {
    cpu_relax();
    if (i > 1000) sys_sched_yield();  // that M lost its core; let it have this one
  }
}

void g_start(G* g) {
  M* m = this_m();
  P* p = m == nullptr ? nullptr : m->p;
  if (p != nullptr) m->trace.add(Ev::kCreate, g->index);
  ready(g);
  G* self = t_g;
  if (p == nullptr || self->is_g0 || ++self->made < kCreateAhead) return;
  self->made = 0;
  if (p->runq.size() >= kCreateAhead && !self->ahead) yield(false);
}

namespace {

// Whether next, claimed by the caller, may run on p without standing in a queue: nobody sees it
// before it does, so there is nobody to be told. If others are due, or it is still on its way off
// another M, it is readied. What stays in runnext has its turn at the next maintain(), as it would
// behind two that ready each other.
WEFT_INLINE bool goes_at_once(P* p, G* next) {
  if (WEFT_LIKELY(p != nullptr && p->switches.load(std::memory_order_relaxed) % kMaintain != 0 &&
                  !p->look.load(std::memory_order_relaxed) && !p->global_turns &&
                  next->on_cpu.load(std::memory_order_acquire) == 0)) {
    p->inherit = true;
    return true;
  }
  ready(next);
  return false;
}

// g, whose state says how it stands, leaves m to next; null: g0 looks further.
WEFT_INLINE void leave(G* g, M* m, P* p, G* next) {
  if (next == g) {  // readied before it could leave: it just goes on
    set_state(g, GState::kRunning);
    return;
  }
  if (next != nullptr && next->on_cpu.load(std::memory_order_acquire) == 0) {
    begin_run(m, p, next, Ev::kRun, p->id);
    do_switch(g, next);
    return;
  }
  m->pending = next;
  do_switch(g, &m->g0);
}

}  // namespace

void switch_away() {
  G* g = t_g;
  M* m = g->m;
  P* p = m->p;
  if (g->ready_tsc != 0) learn_habit(g);
  auto why = static_cast<uint64_t>(g->wait);
  G* next = p == nullptr ? nullptr : pick_local(p);
  if (WEFT_LIKELY(next != nullptr && next != g && next->on_cpu.load(std::memory_order_acquire) == 0)) {
    begin_run(m, p, next, Ev::kSwitch, why);
    do_switch(g, next);
    return;
  }
  m->trace.add(Ev::kPark, g->index, why);
  leave(g, m, p, next);
}

void switch_to(G* next) {
  G* g = t_g;
  M* m = g->m;
  if (!goes_at_once(m->p, next)) {
    switch_away();
    return;
  }
  if (g->ready_tsc != 0) learn_habit(g);
  begin_run(m, m->p, next, Ev::kSwitch, static_cast<uint64_t>(g->wait));
  do_switch(g, next);
}

void yield(bool to_global) {
  G* g = t_g;
  // In a system call's bracket the P may be another M's by now, and the state is not ours to change.
  CHECK(g_state(g) == GState::kRunning);
  M* m = g->m;
  P* p = m->p;
  if (!to_global) {
    if (p->runq.empty() && sched.globq_n.load(std::memory_order_relaxed) == 0 &&
        !p->look.load(std::memory_order_relaxed))
      return;
    set_state(g, GState::kRunnable);
    // The next one first: a full ring then has room, and g is not picked again.
    G* next = pick_local(p);
    if (next == nullptr) next = globq_get(p, 1);
    if (next == nullptr) {
      set_state(g, GState::kRunning);
      return;
    }
    runq_put_tail(p, g);
    g->ready_tsc = 0;
    m->trace.add(Ev::kYield, g->index);
    leave(g, m, p, next);
    return;
  }
  set_state(g, GState::kRunnable);
  count(p->tick);  // whoever follows, by runnext too, has a slice of its own
  m->trace.add(Ev::kPreempt, g->index);
  // Before g is put there: at its head it would be the next itself.
  G* next = p->runq.empty() ? globq_get(p, kRunqSize) : nullptr;
  {
    Hold hold(sched.lock);
    globq_put_locked(g);
  }
  if (next == nullptr) next = pick_local(p);
  else p->inherit = false;
  g->ready_tsc = 0;
  leave(g, m, p, next);
}

void yield_preempted(Preempt why) {
  G* g = t_g;
  P* p = g->m->p;
  gave_way(g);  // a mark from before the signal would have it give way again as it comes back
  if (why == Preempt::kMakeWay) {
    uint32_t queued = p->runq.size() + (p->runq.has_next() ? 1 : 0);
    if (!others_wait(p)) return;  // somebody else has taken the woken one
    uint32_t near = g->ahead ? kMaintain / 2 : kRunqSize / 2;
    if (queued != 0 && queued < near && sched.n_idle_p.load(std::memory_order_relaxed) == 0) {
      set_state(g, GState::kRunnable);
      count(p->tick);
      g->m->trace.add(Ev::kPreempt, g->index);
      // Gs that go on for long switch seldom, so that maintain() has few turns. In a crowd those
      // in the global queue were woken, too, by sysmon.
      take_events(p);
      if (p->crowd.load(std::memory_order_relaxed))
        if (G* other = globq_get(p, 1)) runq_put_woken(p, other);
      runq_put_tail(p, g);
      // Not by pick_local: its upkeep may send runnext to the tail, and g is to make way for it.
      G* next = p->runq.get_next();
      p->inherit = next != nullptr;
      leave(g, g->m, p, next != nullptr ? next : p->runq.get());
      return;
    }
  }
  yield(true);
}

void leave_m() {
  G* g = t_g;
  M* m = g->m;
  P* p = m->p;
  set_state(g, GState::kRunnable);
  if (G* old = p->runq.put_next(g)) runq_put_tail(p, old);
  g->ready_tsc = 0;
  m->trace.add(Ev::kYield, g->index);
  m->gives_p = true;
  m->pending = nullptr;
  do_switch(g, &m->g0);
}

void g_exit(G* next) {
  G* g = t_g;
  M* m = g->m;
  m->trace.add(Ev::kExit, g->index);
  P* p = m->p;
  if (next != nullptr && !goes_at_once(p, next)) next = nullptr;
  if (g->wired) {
    m->dying_g_wired = true;  // once off its core g may be another thread already
    do_switch(g, &m->g0);     // schedule ends this kernel thread
    __builtin_unreachable();
  }
  if (next == nullptr) next = pick_local(p);
  if (next != nullptr && next->on_cpu.load(std::memory_order_acquire) == 0) {
    begin_run(m, p, next, Ev::kRun, p->id);
    do_switch(g, next);
  } else {
    m->pending = next;
    do_switch(g, &m->g0);
  }
  __builtin_unreachable();
}

void schedule() {
  G* g0 = t_g;
  M* m = g0->m;
  for (;;) {
    if (m->curg.load(std::memory_order_relaxed) != nullptr) {
      m->curg.store(nullptr, std::memory_order_relaxed);
      if (WEFT_UNLIKELY(sched.count_cpu.load(std::memory_order_relaxed))) cpu_switch(m, nullptr);
      if (m->dying_g_wired) {
        sched.n_away.fetch_sub(1, std::memory_order_relaxed);
        sched.n_m.fetch_sub(1, std::memory_order_relaxed);
        __atomic_store_n(&m->kmask, kMaskNoG, __ATOMIC_RELEASE);
        host_end_thread();
      }
    }
    if (WEFT_UNLIKELY(m->gives_p)) {
      m->gives_p = false;
      P* p = m->p;
      release_p(m);
      hand_off_p(p);
    }
    G* g = m->pending;
    m->pending = nullptr;
    if (g == nullptr) g = find_runnable(m);
    reset_spinning(m);
    wait_off_cpu(g);
    begin_run(m, m->p, g, Ev::kRun, m->p->id);
    do_switch(g0, g);
  }
}

}  // namespace weft

// sysmon.cc - the watcher: a foreign thread that needs no P.
//
// Every tick (20 us, backing off to 10 ms after 1 ms without an event, Go's numbers):
//  1. timers that are overdue because every P computes are run here;
//  2. the netpoller, if nobody looked for 10 ms, or for a share (fair.h) where all Ps compute;
//  3. Ps whose M sleeps in a system call since a tick or 20 us, while others want to run, are
//     retaken, or if it computes there for a share; so are Ps whose M sleeps in a call that we
//     cannot see;
//  4. Ps whose G has run longer than its slice while others wait, or waits by spinning
//     (spinwait.h): check_slice (fair.h);
//  5. queued work beside an idle P (the net under the wake habit, sched.cc): wake_p. If no M can
//     be had for it: stranded.h.
// With every P idle for a second it sleeps until acquire_p wakes it: an idle program
// costs nothing.
//
// Hidden blocks: tick and switch count of a P stand still and its G is kRunning. Then
// the CPU clock of its M, asked every 40 us, says whether it computes; if it does not,
// /proc/self/task/TID/syscall says whether it sleeps in the kernel (a number) or has merely
// lost its core ("running").
// What that costs the resolver, which waits inside libc: 64 threads with one look-up each, a name
// server that answers after 5 ms, the machine otherwise quiet, medians of 5: natively 16 ms, on 2
// Ps 44, on one P 49. Each thread found and its kernel thread's birth come one after the other,
// 0.45 ms a thread, once: later look-ups by the same 64 run as natively (8.2 thousand a second
// against 8.6), and so does a single thread (180 a second, both). Names in files and numeric ones
// do not wait.
#include "sched/sysmon.h"

#include <sys/prctl.h>

#include <algorithm>

#include "sched/asleep.h"
#include "sched/fair.h"
#include "sched/netpoll.h"
#include "sched/spinwait.h"
#include "sched/stranded.h"
#include "sched/syscall.h"
#include "sched/watch.h"

namespace weft {
namespace {

constexpr uint64_t kTickNs = 20'000;
constexpr uint64_t kMaxTickNs = 10'000'000;
constexpr uint32_t kIdleTicks = 50;
constexpr uint64_t kSyscallNs = 20'000;
constexpr uint64_t kHiddenNs = 40'000;
constexpr uint64_t kStillNs = 5'000;
constexpr uint64_t kPollNs = 10'000'000;
constexpr uint32_t kOften = 4;            // switches in a share, or as many for a shorter tick
constexpr uint64_t kLateNs = 10'000'000;
constexpr uint64_t kDeepAfterNs = 1'000'000'000;

}  // namespace

uint64_t cpu_time_ns(int tid) {
  constexpr long kPerThreadSched = 6;
  struct timespec ts;
  if (sys_call(SYS_clock_gettime, (~static_cast<long>(tid) << 3) | kPerThreadSched, sys_arg(&ts)) != 0)
    return 0;
  return static_cast<uint64_t>(ts.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(ts.tv_nsec);
}

namespace {

// Its CPU time moves between two looks, a fraction of a microsecond apart.
bool on_core_now(int tid) {
  uint64_t before = cpu_time_ns(tid);
  return cpu_time_ns(tid) != before;
}

thread_local constinit bool t_sysmon = false;
uint64_t last_tick_ns;
bool few_came = true;                     // at our last look at the netpoller

// Whether m, the M of p, sleeps; its clock stands at `cpu`.
Asleep sleeps(P* p, const M* m, int tid, uint64_t cpu) {
  // Who waits for a core can have gone to sleep only after it had one.
  if (p->off_core_cpu_ns == cpu && cpu != 0) return Asleep::kNo;
  p->off_core_cpu_ns = 0;
  Asleep asleep = asleep_in_kernel(m->id, tid);
  if (asleep == Asleep::kNo) p->off_core_cpu_ns = cpu;
  return asleep;
}

// In its call m does not sleep, and has not computed for a share. Who has merely lost its core needs it
// back, not another M beside it that needs one, too: apache's two children of 2 Ps on 2 cores had
// some 200 Ps a second taken so, each, and 1 ms of quick ticks after each: 11,000 wake-ups of both sysmons
// a second and 0.85 to 0.91 of the native requests; so 5,300 and 1.0.
bool on_its_way(P* p, const M* m) {
  int tid = m->tid.load(std::memory_order_relaxed);
  uint64_t cpu = cpu_time_ns(tid);
  if (p->call_cpu_ns == 0) p->call_cpu_ns = cpu;
  return cpu - p->call_cpu_ns < kShareNs && sleeps(p, m, tid, cpu) == Asleep::kNo;
}

// In a system call for long: worth taking only if somebody could use the P.
bool check_syscall(P* p, M* m, G* g, uint64_t state, uint64_t now) {
  if (state != p->seen_state) {
    p->seen_state = state;
    p->seen_since_ns = now;
    p->call_cpu_ns = p->off_core_cpu_ns = 0;
    return false;
  }
  if (now - p->seen_since_ns < kSyscallNs) return false;
  bool polled = sched.last_poll_ns.load(std::memory_order_relaxed) == 0;
  bool idle_elsewhere = sched.n_idle_p.load(std::memory_order_relaxed) +
                            sched.n_spinning.load(std::memory_order_relaxed) > 0;
  // With no work queued, keep it (a short wait in place is cheapest), unless nobody is left
  // to watch descriptors and timers, or it has been away for 10 ms.
  if (!others_wait(p) && (idle_elsewhere || polled || !worth_watching()) &&
      now - p->seen_since_ns < kMaxTickNs)
    return false;
  if (now - p->seen_since_ns < kMaxTickNs && on_its_way(p, m)) return false;
  if (!retake_syscall(p, m, g, state)) return false;
  sched.n_retakes.fetch_add(1, std::memory_order_relaxed);
  hand_off_p(p);
  return true;
}

bool take_hidden(P* p, M* m, G* g) {
  if (!retake_hidden(p, m, g)) return false;
  sched.n_hidden.fetch_add(1, std::memory_order_relaxed);
  hand_off_p(p);
  return true;
}

bool check_hidden(P* p, M* m, G* g, uint64_t now) {
  if (!sched.membarrier || now - p->hidden_since_ns < kHiddenNs) return false;
  p->hidden_since_ns = now;
  if (g->engine.load(std::memory_order_relaxed) != 0) return false;
  // It computes if its CPU time moves. Only otherwise look into /proc (asleep.h).
  int tid = m->tid.load(std::memory_order_relaxed);
  uint64_t cpu = cpu_time_ns(tid);
  bool moved = cpu > p->seen_cpu_ns + kStillNs || cpu < p->seen_cpu_ns;
  bool by_this_g = p->seen_cpu_at_ns > p->moved_ns && cpu > p->seen_cpu_ns;
  if (by_this_g && (cpu - p->seen_cpu_ns) * 4 >= (now - p->seen_cpu_at_ns) * 3) p->on_core_ns = now;
  p->seen_cpu_ns = cpu;
  p->seen_cpu_at_ns = now;
  if (moved) {
    p->computed_ns = now;
    return false;
  }
  Asleep asleep = sleeps(p, m, tid, cpu);
  if (asleep == Asleep::kUnknown) {
    // It is asked again, and in the end taken to sleep. If it waits for a core it only goes on without its P.
    if (now - std::max(p->moved_ns, p->computed_ns) < kMaxTickNs) return false;
    asleep = Asleep::kYes;
  }
  if (asleep == Asleep::kYes) return take_hidden(p, m, g);
  p->off_core_at_ns = now;
  return false;
}

bool check_p(P* p, uint64_t now) {
  M* m = p->m.load(std::memory_order_acquire);
  if (m == nullptr) return false;
  G* g = m->curg.load(std::memory_order_acquire);
  if (g == nullptr) return false;
  uint64_t state = g->state.load(std::memory_order_acquire);
  auto s = static_cast<GState>(state & 0xffffffffu);
  uint32_t switches = p->switches.load(std::memory_order_relaxed);
  uint32_t tick = p->tick.load(std::memory_order_relaxed);
  if (tick != p->seen_tick) {
    p->seen_tick = tick;
    slice_begins(p, now, last_tick_ns);
  }
  if (s == GState::kSyscall) {
    if (check_syscall(p, m, g, state, now)) return true;
    check_slice_in_call(p, g, now);
    return false;
  }
  if (uint32_t since = switches - p->seen_switches.load(std::memory_order_relaxed); since != 0) {
    p->often = since * kShareNs >= kOften * std::min(now - last_tick_ns, kShareNs);
    p->off_core_cpu_ns = 0;
    p->seen_switches.store(switches, std::memory_order_relaxed);
    p->hidden_since_ns = p->moved_ns = now;
    p->asked_ns = p->asks = 0;
    check_moved(p, m, g, now, s == GState::kRunning);
    return false;
  }
  if (s != GState::kRunning) return false;
  if (check_hidden(p, m, g, now)) return true;
  return check_slice(p, m, g, now) && sched.membarrier && take_hidden(p, m, g);
}

bool run_timers(uint64_t now) {
  bool fired = false;
  for (uint32_t i = 0; i < sched.procs; i++) {
    TimerHeap& h = sched.p[i].timers;
    // A P that looks at its timers itself is left to do so for 100 us; if all are busy,
    // they may all be computing.
    bool busy = sched.n_idle_p.load(std::memory_order_relaxed) == 0;
    if (h.earliest() != kNever && h.earliest() + (busy ? 20'000 : 100'000) <= now) fired |= h.run(now) != 0;
  }
  return fired;
}

// How long after the last look at the netpoller it is sysmon's turn.
uint64_t poll_after(uint64_t now) {
  if (sched.n_idle_p.load(std::memory_order_relaxed) != 0) return kPollNs;
  return spin_going_on(now) ? kSpinLookNs : outside_share();
}

// A P that switches all the time looks by itself, at the latest when it is asked. What we fetch
// goes through the global queue, past which those in the ring come round again: of 5000
// connections each got between 41 and 57 answers in 2 s (Go: 44 or 45). But as long as many stand
// in its ring, or it takes up as many from the global queue, it does not.
// Where those in its ring only yield (400 of them: its ring is always full) and few events come, nobody
// is passed: then it is our turn at once (a read took 50 ms, natively 0.9, now 0.8). With many events, as of
// those 5000 connections, that cost a seventh of the answers.
bool leave_to_a_p(uint64_t now, uint64_t last) {
  bool queued = sched.globq_n.load(std::memory_order_relaxed) != 0;
  if (now > last + (queued ? 2 : 1) * kLateNs) return false;
  for (uint32_t i = 0; i < sched.procs; i++) {
    P& p = sched.p[i];
    uint32_t since = p.switches.load(std::memory_order_relaxed) - p.seen_switches.load(std::memory_order_relaxed);
    if (since < kOften || (few_came && crowd_of_unwoken(&p))) continue;
    p.look.store(true, std::memory_order_relaxed);
    return true;
  }
  return false;
}

bool poll_descriptors(uint64_t now) {
  uint64_t last = sched.last_poll_ns.load(std::memory_order_relaxed);
  sched.ps_look = sched.looked.load(std::memory_order_relaxed);
  if (sched.ps_look) {
    sched.looked.store(false, std::memory_order_relaxed);
    if (last != 0) sched.last_poll_ns.compare_exchange_strong(last, now, std::memory_order_relaxed);
    return false;
  }
  if (!netpoll_waiters() || last == 0 || now < last + poll_after(now)) return false;
  if (leave_to_a_p(now, last)) return false;
  if (!sched.last_poll_ns.compare_exchange_strong(last, now, std::memory_order_relaxed))
    return false;
  bool more = true;
  GList gs = netpoll(0, &more);
  bool any = gs.head != nullptr;
  few_came = gs.n < kCrowd;
  ready_list(gs);
  if (!more) netpoll_settle_all(now);
  return any;
}

// A single G seen queued on a P that switches all the time is on its way; waking another
// M for it would only move a ping-pong from core to core.
bool stuck_work(const P* p, uint64_t now) {
  return p_has_work(p) && (p->runq.size() > 1 || p->hidden_since_ns != now);
}

bool wake_for_queued(uint64_t now) {
  if (sched.n_idle_p.load(std::memory_order_relaxed) == 0 ||
      sched.n_spinning.load(std::memory_order_relaxed) != 0)
    return false;
  bool work = sched.globq_n.load(std::memory_order_relaxed) != 0;
  for (uint32_t i = 0; !work && i < sched.procs; i++) work = stuck_work(&sched.p[i], now);
  if (work) wake_p();
  return work;
}

void deep_sleep() {
  uint32_t awake = 0;  // 2: kicked just now
  if (!sched.sysmon_word.compare_exchange_strong(awake, 1, std::memory_order_seq_cst)) return;
  // Work is queued before its P is left without an M (start_m), which then looks at the word.
  if (sched.n_idle_p.load(std::memory_order_seq_cst) == sched.procs && !any_work() && !watch_wants_ticks())
    while (sched.sysmon_word.load(std::memory_order_acquire) == 1)
      sys_futex_wait(&sched.sysmon_word, 1);
  sched.sysmon_word.store(0, std::memory_order_relaxed);
}

// Woken beside busy threads we are to run at once, not when their kernel slice is over: ask
// for a short one (kernel 6.12: sched_runtime of SCHED_OTHER; older ones ignore it).
void ask_for_short_slice() {
  struct {
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period;
  } a = {};
  a.size = sizeof a;
  if (sys_call(SYS_sched_getattr, 0, sys_arg(&a), sizeof a, 0) != 0 || a.policy != 0) return;
  a.runtime = 100'000;
  sys_call(SYS_sched_setattr, 0, sys_arg(&a), 0);
}

}  // namespace

void sysmon_kick() {
  if (sched.sysmon_word.exchange(2, std::memory_order_acq_rel) != 2)
    sys_futex_wake(&sched.sysmon_word, 1);
}

bool sysmon_thread() { return t_sysmon; }

bool sysmon_computes(const P* p, const M* m, uint64_t now) {
  // Off its core is not asleep: it may be us who took the core.
  int tid = m->tid.load(std::memory_order_relaxed);
  if (on_core_now(tid)) return true;
  Asleep asleep = asleep_in_kernel(m->id, tid);
  // Where nobody says: that its clock has moved may be what it did before it went to sleep.
  return asleep == Asleep::kNo || (asleep == Asleep::kUnknown && p->on_core_ns == now);
}

void sysmon_main(void*) {
  t_sysmon = true;
  sched.sysmon_tid.store(sys_gettid(), std::memory_order_relaxed);
  sys_call(SYS_prctl, PR_SET_TIMERSLACK, 1);  // 50 us of slack by default: longer than a tick
  ask_for_short_slice();
  uint64_t delay = kTickNs;
  uint32_t quiet = 0;
  uint64_t all_idle_since = 0;
  for (;;) {
    uint64_t from = host_now_ns();
    sys_futex_wait(&sched.sysmon_word, 0, from + sysmon_begins_sleep(from, delay));
    sysmon_ends_sleep();
    // An exchange: who kicks and finds it at 2 already has put in what we look at below.
    sched.sysmon_word.exchange(0, std::memory_order_seq_cst);
    uint64_t now = host_now_ns();
    sched.coarse_ns.store(now, std::memory_order_relaxed);
    host_tick(now);
    bool did = false;
    run_timers(now);
    poll_descriptors(now);
    netpoll_verify(now);
    for (uint32_t i = 0; i < sched.procs; i++) did |= check_p(&sched.p[i], now);
    did |= wake_for_queued(now);
    bool stranded = stranded_check(now);
    sysmon_hook(now);
    last_tick_ns = now;
    if (did) {
      quiet = 0;
      delay = kTickNs;
    } else if (++quiet > kIdleTicks) {
      delay = delay * 2 > kMaxTickNs ? kMaxTickNs : delay * 2;
    }
    if (sched.n_idle_p.load(std::memory_order_relaxed) != sched.procs || stranded || watch_wants_ticks()) {
      all_idle_since = 0;
    } else if (all_idle_since == 0) {
      all_idle_since = now;
    } else if (unwatched()) {  // a kernel thread for it could not be had just then
      wake_p();
    } else if (now - all_idle_since > kDeepAfterNs) {
      deep_sleep();
      all_idle_since = 0;
      quiet = 0;
      delay = kTickNs;
    }
  }
}

}  // namespace weft

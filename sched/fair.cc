// fair.cc - see fair.h.
#include "sched/fair.h"

#include <algorithm>

#include "sched/netpoll.h"
#include "sched/spinwait.h"
#include "sched/sysmon.h"

namespace weft {
namespace {

constexpr uint64_t kTimerGraceNs = 20'000;    // sysmon.cc leaves a due timer to its P so long
constexpr uint64_t kAgainNs = 50'000;         // sooner than that sysmon may not get a core
constexpr uint64_t kFairForNs = 10'000'000;
constexpr uint64_t kAskAgainNs = 1'000'000;   // a refused end of a slice is asked for again,
constexpr uint64_t kAskParts = 8;             // after a part of a short slice
constexpr uint64_t kMakeWayAgainNs = 250'000;
constexpr uint64_t kLookNs = 2'000'000;       // while the Ps look at the netpoller themselves
constexpr uint32_t kDeafAsks = 8;             // signals in a row that found a G where it cannot be stopped
constexpr uint64_t kLandsNs = 150'000;        // a signal to a thread on its core lands in 10 us

bool asked_in_vain(const M* m) { return (m->sent.load(std::memory_order_relaxed) & kSentUrg) != 0; }

// The P without runnext that has run one G the longest; one whose M takes its signals first.
P* longest_running(const P* but) {
  P* best = nullptr;
  bool best_deaf = true;
  for (uint32_t i = 0; i < sched.procs; i++) {
    P* p = &sched.p[i];
    const M* m = p->m.load(std::memory_order_acquire);
    if (p == but || m == nullptr || p->runq.has_next()) continue;
    bool deaf = asked_in_vain(m);
    if (best != nullptr &&
        (deaf != best_deaf ? deaf : p->slice_before_ns >= best->slice_before_ns))
      continue;
    best = p;
    best_deaf = deaf;
  }
  return best;
}

uint64_t slice_ns() { return uint64_t{sched.preempt_ms} * 1'000'000; }

// Then sysmon also sees that another G runs there, whose slice begins with that look.
uint64_t ask_again_ns() { return std::min(kAskAgainNs, slice_ns() / kAskParts); }

// What g had had of its slice before it made way; 0: the slice is a new one.
uint64_t used_before(const G* g) {
  return g->slice_park == g->park.load(std::memory_order_relaxed) ? g->slice_used_ns : 0;
}

uint64_t slice_used(const P* p, const G* g, uint64_t now) {
  return used_before(g) + (now > p->slice_since_ns ? now - p->slice_since_ns : 0);
}

// Of those who wait for p some were woken, not preempted.
bool p_has_woken(const P* p) {
  return p->runq.has_next() || p->runq.holds_before(p->woken_until.load(std::memory_order_relaxed));
}

// `calls`: as far as one sees nobody on p computes.
void note_crowd(P* p, bool calls) {
  bool yes = calls && p->runq.size() >= kCrowd;
  if (yes != p->crowd.load(std::memory_order_relaxed))
    p->crowd.store(yes, std::memory_order_relaxed);
}

// True if g, which runs on p, has had its share and a woken one waits.
bool share_is_over(P* p, const G* g, uint64_t now) {
  p->share_ns = g->ahead ? kAheadShareNs : kShareNs;
  if (p->crowd.load(std::memory_order_relaxed)) {
    uint64_t part = kRoundNs / std::max(p->runq.size(), kCrowd);
    p->share_ns = std::max(p->share_ns, std::min(part, kAheadShareNs));
  }
  return now - p->slice_before_ns >= p->share_ns && p_has_woken(p);
}

// p's M has not taken the signal: it is not on a core. Whoever was to run next there does so
// elsewhere.
void move_woken(P* p) {
  P* to = longest_running(p);
  const M* m = to != nullptr ? to->m.load(std::memory_order_acquire) : nullptr;
  if (m == nullptr || asked_in_vain(m)) return;  // null: it has been left since
  G* g = p->runq.get_next();
  if (g == nullptr) return;
  if (to->runq.offer_next(g)) {
    std::atomic_thread_fence(std::memory_order_seq_cst);  // submit (sched.cc)
  } else {
    Hold hold(sched.lock);
    globq_put_locked(g);
  }
  if (sched.n_idle_p.load(std::memory_order_seq_cst) != 0) wake_p();
}

}  // namespace

bool others_wait(const P* p) {
  return p_has_work(p) || sched.globq_n.load(std::memory_order_relaxed) != 0;
}

bool crowd_of_unwoken(const P* p) { return p->runq.size() >= kCrowd && !p_has_woken(p); }

bool outside_waits() {
  return sched.n_idle_p.load(std::memory_order_relaxed) == 0 && netpoll_waiters();
}

bool place_woken(G* g) {
  if (sched.preempt_ms == 0) return false;
  P* best = longest_running(nullptr);
  if (best == nullptr || !best->runq.offer_next(g)) return false;  // a full fence on x86
  if (sched.n_idle_p.load(std::memory_order_seq_cst) != 0) wake_p();  // submit (sched.cc)
  sched.fair_since_ns.store(sched.coarse_ns.load(std::memory_order_relaxed), std::memory_order_relaxed);
  if (!sysmon_thread()) sysmon_kick();
  return true;
}

bool placed_lately() {
  uint64_t now = sched.coarse_ns.load(std::memory_order_relaxed);
  return now - sched.fair_since_ns.load(std::memory_order_relaxed) < kFairForNs;
}

void slice_begins(P* p, uint64_t now, uint64_t before) {
  if (G* g = p->way_g) {  // it made way; if it has parked since, slice_park shows that
    g->slice_used_ns = p->way_used_ns;
    g->slice_park = p->way_park;
    p->way_g = nullptr;
  }
  p->slice_since_ns = now;
  p->slice_before_ns = before;
  p->asked_ns = p->asks = 0;
}

namespace {

// g is being asked to stop.
void note_asked(P* p, G* g, bool slice_over, uint64_t used) {
  if (slice_over) {
    g->slice_used_ns = 0;
    p->way_g = nullptr;
  } else {
    p->way_g = g;
    p->way_used_ns = used;
    p->way_park = g->park.load(std::memory_order_relaxed);
  }
}

// False: it was asked before, in vain.
bool ask_at_call(G* g, bool slice_over) {
  constexpr uint32_t kBoth = kAttPreempt | kAttMakeWay;
  uint32_t bit = slice_over ? kAttPreempt : kAttMakeWay;
  return (g->attention.fetch_or(bit, std::memory_order_seq_cst) & kBoth) == 0;
}

}  // namespace

void check_moved(P* p, M* m, G* g, uint64_t now, bool running) {
  note_crowd(p, true);
  if (running && (others_wait(p) || outside_waits())) spin_look(m, g, now);
}

bool check_slice(P* p, M* m, G* g, uint64_t now) {
  if (sched.preempt_ms == 0) return false;
  bool calls = (g->attention.load(std::memory_order_acquire) & (kAttProbe | kAttResumed)) == 0;
  note_crowd(p, calls);
  if (p->asked_ns != 0 && now - p->asked_ns >= kLandsNs && asked_in_vain(m)) move_woken(p);
  uint64_t used = slice_used(p, g, now);
  bool slice_over = others_wait(p) && used >= slice_ns();
  if ((others_wait(p) || outside_waits()) && spin_look(m, g, now)) slice_over = true;
  if (!slice_over && !share_is_over(p, g, now)) return false;
  if (calls && ask_at_call(g, slice_over)) {
    note_asked(p, g, slice_over, used);
    p->slice_before_ns = now - p->share_ns + kAgainNs;
    if (slice_over) p->slice_since_ns = now - slice_ns() + kAgainNs;
    return false;
  }
  if (p->asks >= kDeafAsks && !asked_in_vain(m)) {
    p->asks = 0;  // where it cannot be taken after all, it is asked again
    return true;
  }
  // A refused one is asked for again.
  if (slice_over) p->slice_since_ns = now - slice_ns() + ask_again_ns();
  // Only while it computes: a call that we cannot see and that it has just gone to sleep in
  // would end with EINTR.
  if (p->off_core_at_ns != now && !sysmon_computes(p, m, now)) return false;
  note_asked(p, g, slice_over, used);
  p->slice_before_ns = now - p->share_ns + kMakeWayAgainNs;
  if (p->asked_ns == 0) p->asked_ns = now;
  if (!asked_in_vain(m)) p->asks++;
  host_preempt(m, slice_over ? Preempt::kSliceOver : Preempt::kMakeWay);
  return false;
}

void check_slice_in_call(P* p, G* g, uint64_t now) {
  if (sched.preempt_ms == 0 || !others_wait(p)) return;
  bool over = slice_used(p, g, now) >= slice_ns();
  if (!over && !share_is_over(p, g, now)) return;
  ask_at_call(g, over);
  p->slice_before_ns = now - p->share_ns + kMakeWayAgainNs;
}

void note_timer(uint64_t deadline_ns) {
  if (sched.n_idle_p.load(std::memory_order_relaxed) != 0 || sched.preempt_ms == 0) return;
  std::atomic_thread_fence(std::memory_order_seq_cst);  // the timer is in; sysmon_begins_sleep
  if (deadline_ns + kTimerGraceNs < sched.sysmon_until_ns.load(std::memory_order_relaxed))
    sysmon_kick();
}

uint64_t sysmon_begins_sleep(uint64_t now, uint64_t longest) {
  sched.sysmon_until_ns.store(kNever, std::memory_order_relaxed);
  std::atomic_thread_fence(std::memory_order_seq_cst);  // whom we miss below sees kNever
  uint64_t busy = fair_delay(now), sleep = busy < longest ? busy : longest;
  sched.sysmon_until_ns.store(now + sleep, std::memory_order_relaxed);
  if (sleep > kShareNs) sched.sysmon_slow.store(true, std::memory_order_relaxed);
  return sleep;
}

void sysmon_ends_sleep() {
  sched.sysmon_slow.store(false, std::memory_order_relaxed);
  sched.sysmon_until_ns.store(0, std::memory_order_relaxed);
}

void note_hog(P* p) {
  if (sched.preempt_ms != 0 && p->switches.load(std::memory_order_relaxed) ==
                                   p->seen_switches.load(std::memory_order_relaxed))
    sysmon_kick();
}

// When the share of the G on p may be over. Gs that follow each other by runnext have one
// slice, which has long been over then; but where each look finds another G, nobody computes,
// and a look each kAgainNs would cost more than it finds (mariadbd, 128 connections: 8,000
// looks a second, a tenth of its processor time).
static uint64_t next_look(const P* p) {
  bool many = p->crowd.load(std::memory_order_relaxed);
  uint64_t share = p->slice_before_ns + p->share_ns;
  uint64_t moved = p->moved_ns + (many ? kCrowdLookNs : p->often ? 2 * kShareNs : kShareNs / 2);
  return share > moved ? share : moved;
}

// When the slice of the G on p may be over.
static uint64_t slice_end(const P* p) {
  return std::max(p->slice_since_ns, p->moved_ns) + slice_ns();
}

uint64_t outside_share() {
  for (uint32_t i = 0; i < sched.procs; i++)
    if (!sched.p[i].crowd.load(std::memory_order_relaxed)) return kShareNs;
  return kCrowdLookNs;
}

uint64_t fair_delay(uint64_t now) {
  if (sched.preempt_ms == 0 || sched.n_idle_p.load(std::memory_order_relaxed) != 0) return kNever;
  bool lately = now - sched.fair_since_ns.load(std::memory_order_relaxed) < kFairForNs;
  uint64_t delay = lately ? outside_share() : kNever;
  if (netpoll_waiters()) delay = sched.ps_look ? kLookNs : outside_share();
  if (uint64_t spin = spin_delay(now); spin < delay) delay = spin;
  for (uint32_t i = 0; i < sched.procs; i++) {
    const P* p = &sched.p[i];
    uint64_t due = p->timers.earliest();
    if (due != kNever) due += kTimerGraceNs;
    if (uint64_t look = next_look(p); look < due && p_has_woken(p)) due = look;
    if (uint64_t end = slice_end(p); end < due && others_wait(p)) due = end;
    if (due == kNever) continue;
    uint64_t left = due > now + kAgainNs ? due - now : kAgainNs;  // never a busy loop
    if (left < delay) delay = left;
  }
  return delay;
}

}  // namespace weft

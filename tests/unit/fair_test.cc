// fair_test.cc - when sysmon looks at Ps whose Gs compute (fair.h), without running any.
#include "sched/fair.h"

#include <criterion/criterion.h>

using namespace weft;

namespace {

constexpr uint64_t kMs = 1'000'000;
constexpr uint64_t kNow = 1000 * kMs;

P* one_busy_p(uint32_t preempt_ms) {
  sched.p = new P[1];
  sched.procs = 1;
  sched.preempt_ms = preempt_ms;
  sched.p[0].slice_since_ns = sched.p[0].slice_before_ns = sched.p[0].moved_ns = kNow;
  return &sched.p[0];
}

}  // namespace

// Looks came every 10 ms whatever WEFT_PREEMPT said: slices of 1 ms were 15.
Test(fair, the_look_comes_when_the_slice_of_one_for_whom_others_wait_is_over) {
  for (uint32_t ms : {1u, 3u, 10u, 100u}) {
    P* p = one_busy_p(ms);
    cr_assert_eq(fair_delay(kNow), kNever);  // nobody waits
    G waiting;
    cr_assert(p->runq.put(&waiting));
    cr_assert_eq(fair_delay(kNow), ms * kMs);
    cr_assert_eq(fair_delay(kNow + kMs / 2), ms * kMs - kMs / 2);
  }
}

Test(fair, a_p_that_goes_from_g_to_g_is_looked_at_once_in_a_slice) {
  P* p = one_busy_p(10);
  G waiting;
  cr_assert(p->runq.put(&waiting));
  p->slice_since_ns = kNow - 50 * kMs;  // runnext hands the slice on
  p->moved_ns = kNow;
  cr_assert_eq(fair_delay(kNow), 10 * kMs);
}

Test(fair, a_look_that_is_overdue_is_no_busy_loop) {
  P* p = one_busy_p(1);
  G waiting;
  cr_assert(p->runq.put(&waiting));
  uint64_t late = fair_delay(kNow + 20 * kMs);
  cr_assert_geq(late, 20'000u);
  cr_assert_leq(late, kMs);
}

namespace {

// One P whose M runs `g` since kNow, and `n` woken ones that wait for it.
struct Busy {
  P* p;
  M m;
  G g;
  G waiting[64];
  explicit Busy(uint32_t n) : p(one_busy_p(10)) {
    g.m = &m;
    g.state.store(static_cast<uint64_t>(GState::kRunning));
    m.curg.store(&g);
    p->m.store(&m);
    for (uint32_t i = 0; i < n; i++) cr_assert(p->runq.put(&waiting[i]));
    p->woken_until.store(p->runq.place());
  }
  bool asked() const { return (g.attention.load() & (kAttMakeWay | kAttPreempt)) != 0; }
  // A look at g, which has made a call since the last one.
  void look(uint64_t after) {
    g.attention.fetch_and(~uint32_t{kAttProbe | kAttResumed});
    check_slice(p, &m, &g, kNow + after);
  }
};

}  // namespace

// Each end of a share was a signal, and three in four found the thread in libc or the kernel.
Test(fair, who_makes_calls_is_asked_by_a_mark_and_signalled_only_if_that_is_in_vain) {
  Busy b(1);
  b.look(kShareNs - 1);
  cr_assert_not(b.asked());
  b.look(kShareNs);
  cr_assert(b.asked());
  cr_assert_eq(b.p->asked_ns, 0u);  // no signal
  uint64_t again = fair_delay(kNow + kShareNs);
  cr_assert_leq(again, 100'000u);
  b.look(kShareNs + again);
  cr_assert_neq(b.p->asked_ns, 0u);
}

Test(fair, who_computes_is_signalled_at_once) {
  Busy b(1);
  b.g.attention.fetch_or(kAttProbe);
  check_slice(b.p, &b.m, &b.g, kNow + kShareNs);
  cr_assert_not(b.asked());
  cr_assert_neq(b.p->asked_ns, 0u);
}

// With half a millisecond each a server's threads came to five requests between two switches,
// each of which brings another connection's cache lines.
Test(fair, in_a_crowd_that_makes_calls_the_share_is_a_part_of_a_round) {
  Busy b(50);
  b.look(kShareNs);
  cr_assert_not(b.asked());
  b.look(kRoundNs / 50 - 1);
  cr_assert_not(b.asked());
  b.look(kRoundNs / 50);
  cr_assert(b.asked());
  Busy few(kCrowd);
  few.look(kAheadShareNs - 1);
  cr_assert_not(few.asked());
  few.look(kAheadShareNs);
  cr_assert(few.asked());
}

Test(fair, one_that_computes_in_a_crowd_has_the_short_share) {
  Busy b(50);
  b.look(kShareNs / 2);
  b.g.attention.fetch_or(kAttProbe);
  check_slice(b.p, &b.m, &b.g, kNow + kShareNs);
  cr_assert_neq(b.p->asked_ns, 0u);
}

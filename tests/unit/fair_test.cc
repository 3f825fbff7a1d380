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

// spin_test.cc - how long an M without work looks for it before it sleeps, counted in looks.
//
// A timer of the far future makes each look ask for the time once (run_due_timers), which the host counts.
#include <criterion/criterion.h>

#include "tests/unit/fake_host.h"

using namespace weft;

namespace {

constexpr uint32_t kWakes = 100, kMostWakes = 100 * kWakes;
constexpr uint64_t kLooks = 100;          // more than an M takes that only looks around

std::atomic<uint32_t> word{0}, woken{0};

// The G has been woken so often, and nobody runs or looks for work any more. This thread must not ask for
// the time.
void wait_for_rest(uint32_t n) {
  while (woken != n || sched.n_idle_p != sched.procs || sched.n_spinning != 0) sys_sched_yield();
}

}  // namespace

// Waiting for work while spinning was in vain for 0.5 s of 4 s beside processes that needed the cores.
// After some times in a row an M only looks around; now and then it waits once more. One that loses its
// core meanwhile is not seen to wait: then there are more wakes, until it has.
Test(spin, an_m_that_waits_in_vain_learns_not_to, .timeout = 60) {
  boot(1);
  sched.spin_us = 1000;
  go([] {
    std::atomic<uint32_t> never{0};
    gfutex_wait(&never, 0, host_now_ns() + 3'600'000'000'000, Wait::kSleep);
  });
  go([] {
    for (; woken < kMostWakes; woken++) gfutex_wait(&word, woken, kNever, Wait::kFutex);
  });
  uint32_t waited = 0, at_first = 0;      // 5 times, then 6 in 95
  for (uint32_t i = 1; i <= kWakes || (waited == at_first && i <= kMostWakes); i++) {
    wait_for_rest(i - 1);
    uint64_t before = fake::clock_reads;
    word = i;
    gfutex_wake(&word, 1);
    wait_for_rest(i);
    waited += fake::clock_reads - before > kLooks;
    if (i == kWakes / 2) at_first = waited;
  }
  cr_assert(waited < kWakes / 4, "it waited %u times", waited);
  cr_assert(waited > at_first, "it waited %u times, and not again", waited);
}

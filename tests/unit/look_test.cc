// look_test.cc - who looks at the netpoller beside Gs that yield all the time and never wait.
//
// More of them than a P may have in its ring as it looks, so sysmon is to. Time is counted in its ticks,
// each for 1 ms at the most: a loaded machine makes them longer, not more. (Not by their number: where a P
// was off its core for long it is taken from its M, and for 50 ticks sysmon sleeps 20 us.) The P was left
// alone for 10 to 20 ms each time; and a wait begun without a try, of which no event tells, for 90 ms.
#include <criterion/criterion.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>

#include "sched/netpoll.h"
#include "sched/polldesc.h"
#include "tests/unit/fake_host.h"

using namespace weft;

namespace {

constexpr uint32_t kYielders = 400, kBytes = 16;
constexpr uint64_t kMs = 1'000'000;
constexpr uint64_t kMost = 4 * kMs;       // for one byte: a tick of half a ms or two, and its turn in the queues
constexpr uint64_t kWarm = 20 * kMs;      // sysmon's first ticks are short

std::atomic<uint64_t> seen_ns{0}, passed_ns{0};
std::atomic<bool> stop{false};

void yield_once() {
  G* g = this_g();
  engine_enter(g);
  yield(false);
  engine_exit(g);
}

// By all of them: each may stand in the queues for long.
void yield_and_count() {
  for (; !stop; yield_once()) {
    uint64_t now = sched.coarse_ns.load(std::memory_order_relaxed), seen = seen_ns.load();
    if (now > seen && seen_ns.compare_exchange_strong(seen, now)) passed_ns += std::min(now - seen, kMs);
  }
}

// One byte; `untried`: the first try is left out.
char take_byte(int fd, bool untried) {
  PollTurn t;
  poll_turn_begin(t, polldesc_get(fd), kPollIn);
  for (bool first = true;; first = false) {
    poll_turn_sample(t);
    char c = 0;
    bool skip = first && untried;
    if (!skip && sys_call(SYS_recvfrom, fd, sys_arg(&c), 1, MSG_DONTWAIT, 0, 0) == 1) {
      poll_turn_end(t);
      return c;
    }
    EXPECT(poll_turn_wait(t, kNever, Wait::kRead, skip) == 0);
  }
}

// The time, in all, that passed until a G had read each of kBytes times what was written
// as it waited; `untried`: two bytes, which come as one event, used up by the read of the first. Counted is
// then what the second one takes.
uint64_t passed_beside_yielders(bool untried) {
  boot(1);
  sched.preempt_ms = 10;                   // else sysmon does not care for what is fair
  int end[2];
  cr_assert(socketpair(AF_UNIX, SOCK_STREAM, 0, end) == 0);
  Latch done(kYielders + 2);
  for (uint32_t i = 0; i < kYielders; i++)
    go([&] {
      yield_and_count();
      done.done();
    });
  cr_assert(wait_until([] { return passed_ns > kWarm && sched.globq_n > 0; }));
  std::atomic<uint64_t> from{0};
  std::atomic<uint32_t> fed{0}, read{0};
  uint64_t waited = 0;
  go([&] {
    for (; read < kBytes; read++) {
      EXPECT(take_byte(end[0], false) == 'a');
      if (untried) {
        from = passed_ns.load();
        EXPECT(take_byte(end[0], true) == 'b');
      }
      waited += passed_ns - from;
    }
    stop = true;
    done.done();
  });
  go([&] {
    for (; fed < kBytes; fed++) {
      while (read != fed || !polldesc_awaited(polldesc_get(end[0]))) yield_once();
      from = passed_ns.load();
      EXPECT(write(end[1], "ab", untried ? 2 : 1) == (untried ? 2 : 1));
    }
    done.done();
  });
  done.wait();
  cr_assert(fake::failures() == 0);
  cr_assert(netpoll_repaired() == 0);
  return waited;
}

}  // namespace

Test(look, an_event_is_fetched_at_sysmons_next_ticks, .timeout = 60) {
  uint64_t waited = passed_beside_yielders(false);
  cr_assert(waited <= kBytes * kMost, "%lu us", waited / 1000);
}

Test(look, a_wait_begun_without_a_try_is_settled_at_sysmons_next_ticks, .timeout = 60) {
  uint64_t waited = passed_beside_yielders(true);
  cr_assert(waited <= kBytes * kMost, "%lu us", waited / 1000);
}

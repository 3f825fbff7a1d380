// look_test.cc - who looks at the netpoller beside Gs that yield all the time and never wait.
//
// More of them than a P may have in its ring as it looks, so sysmon is to. Time is counted in its ticks:
// a loaded machine makes them longer, not more. The P was left alone for 10 to 20 ms, 20 to 40 ticks,
// each time; and a wait begun without a try, of which no event tells, for 90 ms.
#include <criterion/criterion.h>
#include <sys/socket.h>
#include <unistd.h>

#include "sched/netpoll.h"
#include "sched/polldesc.h"
#include "tests/unit/fake_host.h"

using namespace weft;

namespace {

constexpr uint32_t kYielders = 400, kBytes = 16;
constexpr uint32_t kTicks = 2;            // for one byte: mostly it is one
constexpr uint32_t kWarm = 100;           // sysmon's first ticks are short

std::atomic<uint32_t> ticks{0};
std::atomic<bool> stop{false};

void yield_once() {
  G* g = this_g();
  engine_enter(g);
  yield(false);
  engine_exit(g);
}

void yield_and_count() {
  for (uint64_t seen = 0; !stop; yield_once()) {
    uint64_t now = sched.coarse_ns.load(std::memory_order_relaxed);
    if (now != seen) ticks++;
    seen = now;
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

// The ticks of sysmon's, in all, that passed until a G had read each of kBytes times what was written
// as it waited; `untried`: two bytes, which come as one event, used up by the read of the first. Counted is
// then what the second one takes.
uint32_t ticks_beside_yielders(bool untried) {
  boot(1);
  sched.preempt_ms = 10;                   // else sysmon does not care for what is fair
  int end[2];
  cr_assert(socketpair(AF_UNIX, SOCK_STREAM, 0, end) == 0);
  Latch done(kYielders + 3);
  go([&] {
    yield_and_count();
    done.done();
  });
  for (uint32_t i = 0; i < kYielders; i++)
    go([&] {
      while (!stop) yield_once();
      done.done();
    });
  cr_assert(wait_until([] { return ticks > kWarm && sched.globq_n > 0; }));
  std::atomic<uint32_t> from{0}, fed{0}, read{0};
  uint32_t waited = 0;
  go([&] {
    for (; read < kBytes; read++) {
      EXPECT(take_byte(end[0], false) == 'a');
      if (untried) {
        from = ticks.load();
        EXPECT(take_byte(end[0], true) == 'b');
      }
      waited += ticks - from;
    }
    stop = true;
    done.done();
  });
  go([&] {
    for (; fed < kBytes; fed++) {
      while (read != fed || !polldesc_awaited(polldesc_get(end[0]))) yield_once();
      from = ticks.load();
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
  uint32_t waited = ticks_beside_yielders(false);
  cr_assert(waited <= kBytes * kTicks, "%u ticks", waited);
}

Test(look, a_wait_begun_without_a_try_is_settled_at_sysmons_next_ticks, .timeout = 60) {
  uint32_t waited = ticks_beside_yielders(true);
  cr_assert(waited <= kBytes * kTicks, "%u ticks", waited);
}

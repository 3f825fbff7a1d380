// look_model.cc - who looks at the netpoller while every P is busy (sysmon.cc, sched.cc).
//
// Transcribed: poll_descriptors and leave_to_a_p, take_events and note_look, and how an M begins and
// ends its sleep in the netpoller. A tick of sysmon's is kLateNs long. The P switches often between
// two ticks or not at all, as the order has it. What is to be found is an event, or the bytes of a wait
// begun without a try, of which no event tells (netsettle.cc; settle_model.cc has the rest of it).
// Must hold: it is found within kBound ticks, whatever stands in the P's ring and in the global queue,
// and at the next if those only yield; one M at a time sleeps in the netpoller.
#include "tests/model/interleave.h"

namespace {

using namespace model;

enum Mutant {
  kNone, kSaysItLookedBefore, kLeavesItForEver, kBelievesOldLooks, kStampsOverASleeper,
  kSysmonDoesNotSettle, kLeavesItToYielders,
};
constexpr int kBound = 3;
constexpr uint32_t kTicks = 5, kTurns = 5;

struct Look : Model {
  using Model::Model;
  bool ring_stays = false;                 // full, whatever runs
  bool refilled = false;                   // the global queue, all the time
  bool unwoken = false;                    // all in the ring yield
  bool untried = false;                    // not an event
  int bound = kBound;

  Atomic<uint32_t> last_poll{1, "last_poll_ns"};  // 0: an M sleeps in the netpoller
  Atomic<uint32_t> looked{0, "looked"}, wish{0, "look"}, switches{0, "switches"};
  Var<int> event = 1, sleepers = 0, now = 1;
  uint32_t seen_switches = 0;              // sysmon's

  void fetch() { event = 0; }
  void note_look() {
    if (looked.load() == 0) looked.store(1);
  }
  void take_events() {
    wish.store(0);
    if (last_poll.load() == 0) return;
    if (!ring_stays && mutant == kSaysItLookedBefore) note_look();
    if (ring_stays || refilled) return;    // full by now
    note_look();
    fetch();
  }
  void p() {
    for (uint32_t i = 0; i < kTurns && event == 1; i++) {
      locals(91, i);
      switches.store(i + 1);
      take_events();
    }
  }
  bool leave_to_a_p(uint32_t last) {
    if (unwoken && mutant != kLeavesItToYielders) return false;
    uint32_t late = refilled || ring_stays ? 2 : 1;
    if (static_cast<uint32_t>(now) > last + late && mutant != kLeavesItForEver) return false;
    if (switches.load() == seen_switches) return false;
    wish.store(1);
    return true;
  }
  void poll_descriptors() {
    uint32_t last = last_poll.load(), at = static_cast<uint32_t>(now);
    if (looked.load() != 0) {
      if (mutant != kBelievesOldLooks) looked.store(0);
      if (mutant == kStampsOverASleeper) last_poll.store(at);
      else if (last != 0) last_poll.compare_exchange_strong(last, at);
      return;
    }
    if (last == 0 || leave_to_a_p(last)) return;
    if (!last_poll.compare_exchange_strong(last, at)) return;
    if (!untried || mutant != kSysmonDoesNotSettle) fetch();
  }
  void sysmon() {
    for (uint32_t i = 0; i < kTicks && event == 1; i++) {
      locals(92, i, seen_switches);
      step();
      now = now + 1;
      poll_descriptors();
      seen_switches = switches.load();
      check(event == 0 || last_poll.peek() == 0 || now <= 1 + bound, "nobody looks");
    }
  }
};

template <bool kRingStays, bool kRefilled>
struct Busy : Look {
  explicit Busy(int m) : Look(m) {
    ring_stays = kRingStays;
    refilled = kRefilled;
  }
  void start() {
    go("P", [this] { p(); });
    go("sysmon", [this] { sysmon(); });
  }
};

struct Yielders : Busy<true, true> {
  explicit Yielders(int m) : Busy(m) {
    unwoken = true;
    bound = 1;
  }
};

struct Untried : Yielders {
  explicit Untried(int m) : Yielders(m) { untried = true; }
};

// The last look was before the event.
struct LookedBefore : Look {
  explicit LookedBefore(int m) : Look(m) { ring_stays = true; }
  void start() {
    looked.store(1);
    go("P", [this] { p(); });
    go("sysmon", [this] { sysmon(); });
  }
};

struct BesideSleepers : Look {
  using Look::Look;
  void start() {
    looked.store(1);
    go("sysmon", [this] { poll_descriptors(); });
    for (int m = 0; m < 2; m++)
      go("M", [this] {
        if (last_poll.exchange(0) == 0) return;
        sleepers = sleepers + 1;
        check(sleepers == 1, "two sleep in the netpoller");
        step();
        sleepers = sleepers - 1;
        last_poll.store(1, std::memory_order_seq_cst);
      });
  }
};

}  // namespace

int main() {
  expect_holds<Busy<false, false>>("few wait for the P");
  expect_holds<Busy<true, false>>("its ring is always full");
  expect_holds<Busy<false, true>>("the global queue fills its ring each time");
  expect_holds<Yielders>("its ring is full of those that yield");
  expect_holds<Untried>("a wait begun without a try, beside them");
  expect_holds<LookedBefore>("the P looked before the event");
  expect_holds<BesideSleepers>("Ms begin to sleep in the netpoller as sysmon notes a look");
  expect_breaks<Busy<false, true>>("it says that it has looked before it takes up the global queue", kSaysItLookedBefore);
  expect_breaks<Busy<true, false>>("sysmon leaves it to the P for ever", kLeavesItForEver);
  expect_breaks<Yielders>("sysmon leaves it to a P whose ring is full of those that yield", kLeavesItToYielders);
  expect_breaks<Untried>("sysmon fetches events and settles nothing", kSysmonDoesNotSettle);
  expect_breaks<LookedBefore>("sysmon goes on believing an old look", kBelievesOldLooks);
  expect_breaks<BesideSleepers>("sysmon stamps the time over a sleeper", kStampsOverASleeper);
  return summary();
}

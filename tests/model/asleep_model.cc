// asleep_model.cc - is a kernel thread that does not move asleep, or waiting for a core? (check_hidden,
// sched/sysmon.cc) in every order.
//
// sysmon reads the clock of the P's M; where it stands still it asks /proc, once: who waits for a
// core is not asked about again before its clock has moved. The M runs, loses its core, has one again
// for a moment, and goes to sleep in a call that we cannot see.
// Must hold: it is found asleep by one of the looks that come after that.
#include "tests/model/interleave.h"

namespace {

using namespace model;

enum Mutant {
  kNone, kClockAfterTheQuestion, kShortRunUnseen, kCannotTellIsNotAsleep, kNoClockRemembered,
  kKeptOverASwitch,
};
enum State : uint32_t { kOnCore, kWaitsForCore, kAsleep };
constexpr int kLooksAfter = 3;

struct Hidden : Model {
  using Model::Model;
  bool no_clock = false;                   // it cannot be read
  bool no_proc = false;                    // /proc cannot be, the first time

  Atomic<uint32_t> clock[2];               // of two Ms
  Var<uint32_t> state[2];
  Atomic<uint32_t> m{0, "the P's M"}, switches{0, "switches"};
  Var<int> over = 0, asked = 0;
  Var<int> found = 0;

  uint32_t read_clock() { return no_clock ? 0 : clock[m.load()].load(); }
  // 1 asleep, 0 not, -1 cannot tell.
  int ask() {
    bool first = asked == 0;
    asked = 1;
    if (no_proc && first) return -1;
    return state[m.load()] == kAsleep;
  }
  void sysmon() {
    uint32_t seen_switches = 0, seen_cpu = ~0u, off_core = 0;
    for (int left = kLooksAfter; left > 0 && found == 0;) {
      locals(90, left, seen_switches, seen_cpu, off_core);
      if (over == 1) left--;
      if (uint32_t n = switches.load(); n != seen_switches) {
        seen_switches = n;
        if (mutant != kKeptOverASwitch) off_core = 0;
        continue;
      }
      uint32_t cpu = read_clock();
      bool moved = cpu != seen_cpu && (cpu > seen_cpu + 1 || cpu < seen_cpu);
      seen_cpu = cpu;
      if (moved) continue;
      bool same = mutant == kShortRunUnseen ? off_core != 0 && cpu <= off_core + 1 : off_core == cpu;
      if (same && (cpu != 0 || mutant == kNoClockRemembered)) continue;
      off_core = 0;
      int r = ask();
      if (r > 0) found = 1;
      else if (r == 0 || mutant == kCannotTellIsNotAsleep)
        off_core = mutant == kClockAfterTheQuestion ? read_clock() : cpu;
    }
  }
  void runs_for(int i, uint32_t ticks) {
    step();
    state[i] = kOnCore;
    for (uint32_t t = 1; t < ticks; t++) clock[i].fetch_add(1);
  }
  void goes_to(int i, State s) {           // from its core, and that takes time
    clock[i].fetch_add(1);
    state[i] = s;
  }
  void finish() { check(found == 1, "it sleeps, and nobody finds out"); }
};

struct RunsAndSleeps : Hidden {
  using Hidden::Hidden;
  void start() {
    clock[0].store(5);
    go("M", [this] {
      goes_to(0, kWaitsForCore);
      runs_for(0, 3);
      goes_to(0, kWaitsForCore);
      runs_for(0, 1);
      goes_to(0, kAsleep);
      over = 1;
    });
    go("sysmon", [this] { sysmon(); });
  }
};

struct NoClock : RunsAndSleeps {
  explicit NoClock(int m) : RunsAndSleeps(m) { no_clock = true; }
};
struct NoProc : RunsAndSleeps {
  explicit NoProc(int m) : RunsAndSleeps(m) { no_proc = true; }
};

// The P is another M's by then, whose clock happens to stand where the first one's did.
struct OtherM : Hidden {
  using Hidden::Hidden;
  void start() {
    clock[0].store(4);
    clock[1].store(5);
    state[1] = kAsleep;
    go("P", [this] {
      goes_to(0, kWaitsForCore);
      step();
      m.store(1, std::memory_order_seq_cst);
      switches.fetch_add(1);
      over = 1;
    });
    go("sysmon", [this] { sysmon(); });
  }
};

}  // namespace

int main() {
  expect_holds<RunsAndSleeps>("it runs for a moment and sleeps");
  expect_holds<NoClock>("its clock cannot be read");
  expect_holds<NoProc>("/proc cannot be read");
  expect_holds<OtherM>("its P is another M's");
  expect_breaks<RunsAndSleeps>("the clock is read after the question", kClockAfterTheQuestion);
  expect_breaks<RunsAndSleeps>("a short run is not seen", kShortRunUnseen);
  expect_breaks<NoProc>("who cannot be asked about is taken to wait for a core", kCannotTellIsNotAsleep);
  expect_breaks<NoClock>("a clock that cannot be read is taken to stand still", kNoClockRemembered);
  expect_breaks<OtherM>("what was found out outlives a switch", kKeptOverASwitch);
  return summary();
}

// spinwait_model.cc - who is taken for one that waits by spinning (sched/spinwait.*), in every order.
//
// Transcribed: spin_look, spin_preempted, spin_called and spin_resumed of spinwait.cc, the order of
// preempt_here (preload/sigpreempt.cc) and of host_attention around them, and sysmon's way from a P
// to its G. One G is preempted while sysmon looks whenever it likes, and late: between any two
// steps of a look the G may make calls, be preempted, and run again on another M.
// Time goes by in the G's steps alone: 8 units are long, 0 are soon. Each M has its own clock.
// Must hold: quiet is never longer than since the last call; who computes gets no marks for calls
// that do not come right after it was resumed; who spins gets them; no look says yes of a G that
// has made a call since it was probed.
#include "tests/model/interleave.h"

namespace {

using namespace model;

enum Mutant {
  kNone, kClockBeforeTheBit, kTimeOfTheLastProbe, kOneTimeForBoth, kOtherMsClock, kBitNotTakenBack,
  kSoonSinceTheProbe, kNotProbedAgain, kCallLeavesTheBit,
};

constexpr uint32_t kAttProbe = 64, kAttResumed = 128, kBoth = kAttProbe | kAttResumed;
constexpr uint64_t kLong = 8, kSoon = 4, kLook = 2;  // kLongNs, kSoonNs, kSpinLookNs
constexpr uint64_t kNever = ~uint64_t{0};
constexpr int kMarksKnown = 4, kMarksSlice = 3;

struct Spin {
  explicit Spin(int m) : mutant(m) {}
  int mutant;

  Atomic<uint32_t> attention{0, "attention"};
  Atomic<uint64_t> probe_cpu{kNever, "probe_cpu"}, resumed_cpu{0, "resumed_cpu"};
  Atomic<uint32_t> marks{0, "marks"};
  Atomic<int> place{0, "the G's M"};       // -1: it stands in a queue
  Atomic<uint64_t> probe_tsc{0, "probe_tsc"};  // of a mutant
  Var<uint64_t> quiet_ns = 0, resumed_tsc = 0;
  Var<uint64_t> now = 10, cpu[2] = {{5}, {0}};
  // ---- what a perfect observer knows
  Var<uint64_t> quiet_cpu = 0;             // processor time since its last call
  Var<int> calls = 0, calls_then = 0;      // as of the setting of the bit
  Var<int> looks_begun = 0, looks_ended = 0;

  // ---- spinwait.cc
  void set_probe(uint32_t bit) {
    if (mutant == kSoonSinceTheProbe) probe_tsc.store(now, std::memory_order_relaxed);
    attention.fetch_or(bit);
    calls_then = int{calls};
  }
  uint64_t clock_of(int m) {
    step();
    return cpu[m];
  }
  // Since when, by bits of attention.
  uint64_t since(uint32_t bits) {
    if ((bits & kAttResumed) != 0 && mutant != kOneTimeForBoth) return resumed_cpu.load();
    return (bits & kBoth) != 0 ? probe_cpu.load() : kNever;
  }
  bool spin_look(int m) {
    uint64_t early = mutant == kClockBeforeTheBit ? clock_of(m) : 0;
    uint32_t bits = attention.load();
    bool called = calls != calls_then;
    if ((bits & kBoth) == 0) {
      if (mutant != kTimeOfTheLastProbe) probe_cpu.store(kNever, std::memory_order_relaxed);
      set_probe(kAttProbe);
      uint64_t at = mutant == kClockBeforeTheBit ? early : clock_of(m);
      if (place.load() == m || mutant == kOtherMsClock) probe_cpu.store(at, std::memory_order_relaxed);
      return false;
    }
    if (marks.load() < kMarksKnown) return false;
    uint64_t from = since(bits);
    if (from == kNever || clock_of(m) < from + kLook / 2) return false;
    check(!called, "a G that made a call since is said to spin");
    return true;
  }
  void spin_preempted(int m) {
    quiet_ns = 0;
    uint32_t bits = mutant == kBitNotTakenBack ? attention.load() : attention.fetch_and(~kBoth);
    uint64_t from = since(bits);
    if (from == kNever) return;
    uint64_t quiet = cpu[m] - from;
    check(quiet <= quiet_cpu, "quiet for longer than since its last call");
    quiet_ns = quiet;
  }
  void spin_called() {
    uint64_t quiet = quiet_ns;
    if (quiet == 0) return;
    quiet_ns = 0;
    uint64_t soon = now - (mutant == kSoonSinceTheProbe ? probe_tsc.load() : uint64_t{resumed_tsc});
    if (soon >= quiet / 8 || soon >= kSoon) return;
    marks.store(marks.load() + (quiet >= kLong ? kMarksSlice : 0));
  }
  void spin_resumed(int m) {
    resumed_tsc = uint64_t{now};
    if (mutant == kNotProbedAgain) return;
    (mutant == kOneTimeForBoth ? probe_cpu : resumed_cpu).store(cpu[m], std::memory_order_relaxed);
    set_probe(kAttResumed);
  }

  // ---- the G
  void engine_exit(bool is_call) {  // host_attention
    uint32_t bits = attention.load();
    if (is_call && bits == 0) called();
    if (bits == 0) return;
    if (mutant != kCallLeavesTheBit) bits = attention.exchange(0);
    if (is_call) called();
    if ((bits & kBoth) != 0) spin_called();
  }
  void called() {
    calls = calls + 1;
    quiet_cpu = 0;
  }
  void call() { engine_exit(true); }
  void work(uint64_t t) {
    step();
    now = now + t;
    quiet_cpu = quiet_cpu + t;
    int m = place.peek();
    cpu[m] = cpu[m] + t;
  }
  // preempt_here: others run, then it goes on, on M `to`.
  void preempted(int to) {
    spin_preempted(place.peek());
    place.store(-1, std::memory_order_seq_cst);
    step();
    now = now + 1;
    cpu[0] = cpu[0] + 1;
    place.store(to, std::memory_order_seq_cst);
    quiet_cpu = 0;
    engine_exit(false);  // no call of the program's
    spin_resumed(to);
  }

  // ---- sysmon
  void look() {
    looks_begun = looks_begun + 1;
    int m = place.load();  // check_p: the M of a P, and its G
    if (m >= 0) spin_look(m);
    fence();               // the system call that it sleeps in
    looks_ended = looks_ended + 1;
  }
  void start() {
    go("G", [this] { run(); });
    go("sysmon", [this] {
      for (int i = 0; i < looks; i++) look();
    });
  }
  int looks = 2;
  virtual void run() = 0;
  void finish() {}
};

// Calls in the middle of its slices, none right after it was resumed.
struct Computes : Spin {
  using Spin::Spin;
  int other = 0;
  void run() override {
    for (int round = 0; round < 2; round++) {
      work(kLong);
      if (round == 1) call();
      work(kLong);
      preempted(round == 0 ? other : 0);
    }
    work(kLong);
    call();
    check(marks.peek() == 0, "one that computes has marks");
  }
};

struct Migrates : Computes {
  explicit Migrates(int m) : Computes(m) { other = 1; }
};

// A look, then quiet to the end of its slice, then its wait is over: at once when it runs again.
struct Waits : Spin {
  explicit Waits(int m) : Spin(m) { looks = 4; }
  void run() override {
    for (int round = 0; round < 2; round++) {
      int begun = looks_begun;
      await([this, begun] { return looks_begun == looks_ended && (looks_ended > begun || looks_ended == looks); });
      int seen = looks_ended > begun ? int{looks_ended} : -1;
      work(kLong);
      preempted(0);
      if (looks_begun != seen) seen = -1;  // one came between: this slice does not count
      uint32_t before = marks.peek();
      call();
      check(seen < 0 || marks.peek() > before, "one that spins got no marks");
    }
  }
};

// Known, by mistake, and calls all the time.
struct Calls : Spin {
  explicit Calls(int m) : Spin(m) { looks = 3; }
  void run() override {
    marks.store(kMarksKnown, std::memory_order_seq_cst);
    for (int i = 0; i < 3; i++) {
      call();
      work(1);
    }
    call();
  }
};

}  // namespace

int main() {
  expect_holds<Computes>("one that computes is preempted twice");
  expect_holds<Migrates>("one that computes goes on on another M");
  expect_holds<Waits>("one that spins is preempted twice");
  expect_holds<Calls>("one that makes calls, known by mistake");
  expect_breaks<Computes>("sysmon reads the clock before it sets the bit", kClockBeforeTheBit);
  expect_breaks<Computes>("the bit is set beside an earlier probe's time", kTimeOfTheLastProbe);
  expect_breaks<Computes>("sysmon and the G keep their times in one place", kOneTimeForBoth);
  expect_breaks<Migrates>("sysmon does not look at the M again", kOtherMsClock);
  expect_breaks<Computes>("soon is since the last probe, sysmon's too", kSoonSinceTheProbe);
  expect_breaks<Waits>("the bit stays while others run", kBitNotTakenBack);
  expect_breaks<Waits>("not probed when it is resumed", kNotProbedAgain);
  expect_breaks<Calls>("a call leaves the bit", kCallLeavesTheBit);
  return summary();
}

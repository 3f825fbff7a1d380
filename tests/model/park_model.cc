// park_model.cc - park, claim, ready and on_cpu (sched/park.h, g.h) under every order.
//
// One G waits three times. A waker ends each wait; a timer, armed for the first wait only,
// fires whenever it likes, in the second too. Two Ms switch from the G and pick it up; a third
// ends a wait of its own and runs the G at once (switch_to), or readies it if it still leaves.
// Must hold: the G runs on one M at a time, from saved registers; each wait ends once; a
// token of an earlier wait ends no later one; no wake is lost.
#include "tests/model/interleave.h"

namespace {

using namespace model;

enum Mutant { kNone, kPickerDoesNotWait, kClaimInTwoSteps, kNoSequence, kOffCpuTooSoon, kSkipsThePark, kSwitchesToOnCpu };
enum Reason : uint64_t { kWaiting = 1, kWoken = 2, kTimeout = 3 };
constexpr uint64_t kRounds = 3;

struct Park {
  explicit Park(int m) : mutant(m) {}
  int mutant;

  // --- the G
  Atomic<uint64_t> word{0, "park"};
  Atomic<uint32_t> on_cpu{1, "on_cpu"};
  Atomic<uint64_t> saved{0, "saved"};   // its registers: the round it is in
  Var<uint64_t> round = 0;              // what they should be
  Var<int> runs_on = 1;                 // 0: nobody
  Var<int> ended = 0;
  // --- a run queue that can hold it
  Lock lock;
  Var<int> queued = 0;
  // --- where wakers find the token
  Atomic<uint64_t> published{0, "published"};
  Atomic<uint64_t> armed{0, "armed"};

  bool claim(uint64_t token, Reason r) {
    uint64_t to = (token & ~uint64_t{7}) | r;
    if (mutant != kClaimInTwoSteps) return word.compare_exchange_strong(token, to);
    if (word.load() != token) return false;
    word.store(to);
    return true;
  }
  void ready() {
    Hold hold(lock);
    check(queued == 0, "readied twice");
    queued = 1;
  }
  bool pop() {
    Hold hold(lock);
    if (queued == 0) return false;
    queued = 0;
    return true;
  }

  void stop_running() { runs_on = 0; }

  // Runs the G on M `me` until it leaves; true if this M has it again at once.
  bool run(int me, bool first) {
    for (;;) {
      locals(10, me, first);
      if (!first) {
        uint64_t r = word.load() & 7;
        check(r == kWoken || r == kTimeout, "left a wait that was not ended");
        check(r != kTimeout || round == 1, "a timer of an earlier wait ended this one");
      }
      first = false;
      if (round == kRounds) {
        ended = 1;
        stop_running();
        return false;
      }
      round = round + 1;
      // park_begin, publish, park
      uint64_t seq = mutant == kNoSequence ? 1 : (word.load() >> 3) + 1;
      uint64_t token = seq << 3 | kWaiting;
      word.store(token);
      if (round == 1) armed.store(token);
      published.store(token);
      if (mutant == kSkipsThePark && (word.load() & 7) != kWaiting) continue;
      // switch_away
      if (pop()) continue;  // readied before it could leave: it just goes on
      if (mutant == kOffCpuTooSoon) {
        on_cpu.store(0);
        saved.store(round);
        stop_running();
      } else {
        saved.store(round);
        stop_running();
        on_cpu.store(0);
      }
      return true;
    }
  }

  void resume(int me) {
    check(runs_on == 0, "runs on two Ms");
    runs_on = me;
    on_cpu.store(1);
    check(saved.load() == round, "continued from registers that were not saved");
    run(me, false);
  }

  void m_loop(int me, bool has_it) {
    if (has_it) run(me, true);
    for (;;) {
      locals(11, me);
      await([this] { return queued == 1 || ended == 1; });
      if (ended == 1) return;
      if (!pop()) continue;
      if (mutant != kPickerDoesNotWait) await([this] { return on_cpu.peek() == 0; });
      resume(me);
    }
  }

  // Whose G, about to sleep, wakes ours. Once: the others are there for more.
  void switch_to(int me) {
    await([this] { return published.peek() != 0 || ended == 1; });
    if (ended == 1) return;
    if (!claim(published.exchange(0), kWoken)) return;
    if (mutant != kSwitchesToOnCpu && on_cpu.load() != 0) ready();
    else resume(me);
  }

  void start() {
    go("M1", [this] { m_loop(1, true); });
    go("M2", [this] { m_loop(2, false); });
    go("M3", [this] { switch_to(3); });
    go("waker", [this] {
      for (;;) {
        locals(12);
        await([this] { return published.peek() != 0 || ended == 1; });
        if (ended == 1) return;
        uint64_t token = published.exchange(0);
        if (claim(token, kWoken)) ready();
      }
    });
    go("timer", [this] {
      await([this] { return armed.peek() != 0; });
      if (claim(armed.load(), kTimeout)) ready();
    });
  }
  void finish() {
    check(ended == 1 && round == kRounds, "the G did not get through");
    check(queued == 0, "a dead G is queued");
  }
};

}  // namespace

int main() {
  model::expect_holds<Park>("three waits, two wakers, a stray timer, three Ms");
  model::expect_breaks<Park>("the picker does not wait for on_cpu", kPickerDoesNotWait);
  model::expect_breaks<Park>("claim is a load and a store", kClaimInTwoSteps);
  model::expect_breaks<Park>("tokens carry no sequence", kNoSequence);
  model::expect_breaks<Park>("on_cpu is cleared before the registers are saved", kOffCpuTooSoon);
  model::expect_breaks<Park>("a G already claimed goes on without parking", kSkipsThePark);
  model::expect_breaks<Park>("it is run at once while it still leaves", kSwitchesToOnCpu);
  return model::summary();
}

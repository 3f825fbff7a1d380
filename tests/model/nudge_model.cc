// nudge_model.cc - a thread of the kernel's waits on a word of its own (sleep_foreign, sched/gfutex.cc), and
// is cancelled or woken, in every order.
//
// The cancel is noted first; then its signal's handler runs in the waiter, before, in or after the wait. The
// kernel begins a wait that a handler interrupted anew, so the handler changes the word: 0 waiting, 1 woken,
// 2 gave up, 3 waiting and nudged. Here it is a thread of its own, which may do more than a handler; but it
// sees what its thread has stored (begin_foreign's store drains).
// Must hold: it ends its wait; woken if the waker took it, else cancelled, and then the wake is another's.
#include "tests/model/interleave.h"

namespace {

using namespace model;

enum Mutant {
  kNone, kNoLookOnTheWayIn, kNudgeOverwrites, kWakerWantsZero, kGivesUpBlindly, kNudgeForgotten,
};

struct Nudge : Model {
  using Model::Model;
  bool is_woken = false;  // somebody wakes one, too
  bool at_point = true;   // the wait is a cancellation point

  Atomic<uint32_t> word{0, "word"};
  Atomic<int> due{0, "due"}, signalled{0, "signalled"}, sleeps{0, "t_sleeps_on"};
  Var<int> linked = 1, wakes = 0, taken = 0, woken = 0, cancelled = 0;
  Lock bucket;

  void canceller() {
    due.store(1, std::memory_order_seq_cst);
    signalled.store(1, std::memory_order_seq_cst);
  }
  void handler() {
    await([this] { return signalled.peek() == 1; });
    if (sleeps.load() == 0) return;
    uint32_t waiting = 0;
    if (mutant == kNudgeOverwrites) word.store(3, std::memory_order_seq_cst);
    else word.compare_exchange_strong(waiting, 3);
  }
  void waker() {
    Hold hold(bucket);
    wakes = 1;
    if (linked == 0) return;
    uint32_t v = word.load();
    while (v == 0 || (v == 3 && mutant != kWakerWantsZero)) {
      if (!word.compare_exchange_strong(v, 1)) continue;
      taken = 1;
      linked = 0;
      return;
    }
  }
  bool is_due() { return at_point && due.load() == 1; }
  void waiter() {
    sleeps.store(1, std::memory_order_seq_cst);
    bool look = mutant != kNoLookOnTheWayIn && is_due(), gives_up = false;
    for (uint32_t v; (v = word.load()) == 0 || v == 3;) {
      locals(1, look, v);
      if (v == 3) {
        if (!word.compare_exchange_strong(v, 0)) continue;
        look = mutant != kNudgeForgotten && is_due();
      }
      if (!look) {
        await([this] { return word.peek() != 0; });
        continue;
      }
      v = word.load();
      if (mutant == kGivesUpBlindly) word.store(2, std::memory_order_seq_cst), v = 2;
      while (v != 1 && v != 2)
        if (word.compare_exchange_strong(v, 2)) v = 2;
      gives_up = v != 1;
      break;
    }
    Hold hold(bucket);
    linked = 0;
    if (gives_up) cancelled = 1;
    else woken = 1;
  }

  void start() {
    go("waiter", [this] { waiter(); });
    go("canceller", [this] { canceller(); });
    go("handler", [this] { handler(); });
    if (is_woken) go("waker", [this] { waker(); });
  }
  void finish() {
    check(woken + cancelled == 1, "it ended twice, or not");
    check(woken == taken, "it was woken and gave up all the same, or the other way round");
  }
};

struct Woken : Nudge {
  explicit Woken(int m) : Nudge(m) { is_woken = true; }
};

struct NoPoint : Woken {  // of a mutex, say
  explicit NoPoint(int m) : Woken(m) { at_point = false; }
};

}  // namespace

int main() {
  model::expect_holds<Nudge>("a waiter is cancelled");
  model::expect_holds<Woken>("a waiter is cancelled and woken");
  model::expect_holds<NoPoint>("a waiter that no cancel ends is cancelled and woken");
  model::expect_breaks<Nudge>("no look on the way in", kNoLookOnTheWayIn);
  model::expect_breaks<Woken>("the nudge overwrites a wake", kNudgeOverwrites);
  model::expect_breaks<NoPoint>("the waker passes over one that was nudged", kWakerWantsZero);
  model::expect_breaks<Woken>("it gives up over a wake", kGivesUpBlindly);
  model::expect_breaks<Nudge>("it takes the nudge down and does not look", kNudgeForgotten);
  return model::summary();
}

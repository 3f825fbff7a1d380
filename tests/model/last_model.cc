// last_model.cc - who is the last thread to end (preload/last.h), under every order.
//
// Main leaves and counts. One thread lives from before; it makes another one, and ends. Each does
// at its end what last_ended says.
// Must hold: exactly one is told that it is the last, and when it is, all have ended.
#include "tests/model/interleave.h"

namespace {

using namespace model;

enum Mutant { kNone, kNoMembarrier, kCreatorDoesNotLook, kCountsAfterTheCas, kTakesItselfOutAnyway };
enum Over : uint32_t { kOver, kLives, kCounted };
constexpr int kThreads = 2;

struct Last {
  explicit Last(int m) : mutant(m) {}
  int mutant;

  Atomic<uint32_t> main_left{0, "main_left"};
  Atomic<uint32_t> count{1, "count"};
  Atomic<uint32_t> over[kThreads]{{kLives, "over"}, {kOver, "over"}};
  Atomic<uint32_t> made{1, "made"};  // threads in a run queue
  Var<int> alive = 2;  // main and the first
  Var<int> told = 0;

  void take_out() {
    if (count.fetch_sub(1) != 1) return;
    check(alive == 0, "told while another lives");
    told = told + 1;
  }
  void count_in(int i) {
    uint32_t lives = kLives;
    if (over[i].load() != lives) return;
    if (mutant != kCountsAfterTheCas) count.fetch_add(1);
    bool won = over[i].compare_exchange_strong(lives, kCounted);
    if (mutant == kCountsAfterTheCas) {
      if (won) count.fetch_add(1);
    } else if (!won) {
      take_out();
    }
  }
  void begin(int i) {
    alive = alive + 1;
    over[i].store(kLives);
    if (mutant != kCreatorDoesNotLook && main_left.load() != 0) count_in(i);
    made.exchange(static_cast<uint32_t>(i) + 1);  // ready() has a fence
  }
  void end(int i) {
    alive = alive - 1;
    if (over[i].exchange(kOver) == kCounted || mutant == kTakesItselfOutAnyway) take_out();
  }

  void start() {
    go("main", [this] {
      alive = alive - 1;
      main_left.store(1);
      if (mutant != kNoMembarrier) membarrier();
      for (int i = 0; i < kThreads; i++) count_in(i);
      take_out();
    });
    go("first", [this] {
      begin(1);
      end(0);
    });
    go("second", [this] {
      await([this] { return made.peek() == 2; });
      end(1);
    });
  }
  void finish() { check(told == 1, "nobody is told, or more than one"); }
};

}  // namespace

int main() {
  model::expect_holds<Last>("main leaves while a thread makes another and both end");
  model::expect_breaks<Last>("main counts without a membarrier", kNoMembarrier);
  model::expect_breaks<Last>("a creator does not look whether main has left", kCreatorDoesNotLook);
  model::expect_breaks<Last>("counted only when the CAS is won", kCountsAfterTheCas);
  model::expect_breaks<Last>("who was not counted takes itself out", kTakesItselfOutAnyway);
  return model::summary();
}

// leave_model.cc - threads end while a process signal that only they take is in somebody's hand.
//
// tests/model/sigroute.h has what sysmon keeps open; here are put_aside, signals_route,
// signal_process, signals_leave (sigroute.cc), the queue and send_to (sigsend.cc) and the end of
// thread_finish (thread.cc), for one signal with a handler, sent once to the process. All Gs are
// parked or on their way to their end: none takes it in its M's mask.
// Must hold: what sysmon took from the kernel while somebody accepted it is handled by one of those;
// nothing waits in the kernel while somebody who stays accepts it; nothing is handled twice.
#include "tests/model/sigroute.h"

namespace {

using namespace model;

constexpr int kSlots = 2;

struct Leave : Sigroute {
  explicit Leave(int m) : Sigroute(m) { coarse = true; }
  Atomic<int> slot[kSlots];                // 0 free, 1 being filled, 2 full, 3 being emptied
  Atomic<int> n_deferred{0, "n_deferred"};
  Atomic<int> queued[kGs];                 // PendingSet::bits
  Atomic<int> closed[kGs], ending[kGs];
  Lock queue_lock[kGs];
  int stage[kGs] = {};                     // where a G calls from; own thread only
  Var<int> handled = 0, had_taker = 0;
  static constexpr int kSysmon = -1, kOther = -2;

  void put_aside() {
    for (auto& s : slot) {
      int none = 0;
      if (!s.compare_exchange_strong(none, 1)) continue;
      n_deferred.fetch_add(1);
      s.store(2);
      kick();
      return;
    }
    check(false, "no slot");
  }
  void took_one() override {
    had_taker = any_accepts() ? 1 : 0;
    put_aside();
  }
  bool deferred_pending() {
    step();
    int any = 0;
    for (auto& s : slot) any |= s.peek() >= 2 ? 1 : 0;
    return at_once(any) == 1;
  }

  int who_accepts() {
    for (int g = lowest; g < kGs; g++) {
      step();
      if (at_once(alive[g].peek() == 1 && closed[g].peek() == 0 && blocked[g].peek() == 0) == 1) return g;
    }
    return -1;
  }
  bool send_to(int g) {  // false: -ESRCH
    Hold hold(queue_lock[g]);
    if (alive[g].load() == 0) return false;
    if (closed[g].load() == 1 && mutant != kTakesAfterItsLook) return false;
    queued[g].fetch_or(1);
    return true;
  }
  bool dequeue(int g) {
    if (queued[g].load() == 0) return false;
    Hold hold(queue_lock[g]);
    return queued[g].exchange(0) == 1;
  }
  void signal_process(int me) {
    for (;;) {
      int g = who_accepts();
      if (g < 0) break;
      if (send_to(g)) return;
    }
    if (me != kSysmon) {
      put_aside();
      return;
    }
    dirty.store(1);
    fence();
    sysmon_has_it_open = 0;
    pending = 1;  // give_to_kernel
  }
  void signals_route(int me) {
    if (n_deferred.load() == 0) return;
    for (auto& s : slot) {
      locals(61, me, &s - slot, me >= 0 ? stage[me] : 0);
      int full = 2;
      if (!s.compare_exchange_strong(full, 3)) continue;
      if (mutant == kFreedBeforeQueued) {
        n_deferred.fetch_sub(1);
        s.store(0);
        signal_process(me);
        continue;
      }
      signal_process(me);
      n_deferred.fetch_sub(1);
      s.store(0);
    }
  }
  void route() override { signals_route(kSysmon); }
  void attention(int g) {  // signals_attention: the handler runs
    signals_route(g);
    if (blocked[g].peek() == 0 && dequeue(g)) handled = handled + 1;
  }

  // Main and the last ones to end beside it: 1 ending 2 main keeps it open? gone unmarked
  // main: a leaving  b membarrier  c who is ending, unmarked?
  void wait_for_enders() {
    membarrier();
    await([this] { return ending[1].peek() == 0 || leaving[1].peek() == 1; });
  }
  void signals_leave(int g) {
    int mine = 1;
    for (;;) {
      locals(67, g);
      ending[g].store(1, std::memory_order_relaxed);
      mine = 1 - blocked[g].load();
      if (g != 0 && lowest == 0 && keeps_open(0) == 1) mine = 0;
      if (mine != 0) break;
      if (queued[g].load() == 0) return;
      ending[g].store(0, std::memory_order_relaxed);
      attention(g);
    }
    if (mutant == kMarkedByAPlainStore) {
      leaving[g].store(1, std::memory_order_relaxed);
    } else if (mutant != kNotMarked) {
      leaving[g].store(1, std::memory_order_seq_cst);
      fence();
    }
    if (g == 0 && mutant != kMainDoesNotWait) wait_for_enders();
    bool left = g == 0 || only_mine(g);
    locals(62, g, left);
    if (left && mutant != kNotClosed) masks_close();
    locals(63, g);
    stage[g] = 1;
    if (mutant == kLooksBeforeTheDoor) close_door(g);
    while (mutant != kNotWaitedFor && deferred_pending()) {
      locals(60, g);
      attention(g);
      await([this] {  // sched_yield, until there is something to do
        for (auto& s : slot)
          if (s.peek() == 3 || s.peek() == 1) return false;
        return true;
      });
    }
    if (mutant != kLooksBeforeTheDoor) close_door(g);
    stage[g] = 2;
    if (queued[g].load() == 1) attention(g);
    locals(64, g);
    blocked[g].store(1);  // mask_swap; what it tells sysmon makes no difference any more
    fence();
    locals(65, g);
  }
  void close_door(int g) {
    Hold hold(queue_lock[g]);
    closed[g].store(1);
  }
  void thread_finish(int g) {
    signals_leave(g);
    alive[g].store(0, std::memory_order_seq_cst);
    if (queued[g].load() == 1 && dequeue(g)) signal_process(g);  // pending_drop
    ending[g].store(0);
    fence();
    left_to_end = left_to_end - 1;
  }
  // Stays to the end, parked: a notify ends that.
  void stays(int g) {
    for (;;) {
      await([this, g] { return queued[g].peek() == 1 || quiet(); });
      if (queued[g].peek() == 0) return;
      attention(g);
    }
  }
  // Sent before all, or, to have fewer ways, once `after` holds.
  void go_all(int ends, int stays_one, std::function<bool()> after = nullptr) {
    left_to_end = after ? 1 : 0;
    for (int g = kGs - 1; g >= 0; g--)
      if ((ends >> g & 1) != 0) {
        left_to_end = left_to_end + 1;
        go(g == 0 ? "main" : "G", [this, g] { thread_finish(g); });
      }
    if (stays_one >= 0) go("who stays", [this, stays_one] { stays(stays_one); });
    go("sysmon", [this] { sysmon(); });
    if (!after) {
      pending = 1;
      return;
    }
    go("sender", [this, after] {
      await(after);
      pending = 1;
      left_to_end = left_to_end - 1;
    });
  }
  void finish() {
    check(handled <= 1, "handled twice");
    check(had_taker == 0 || handled == 1, "taken from the kernel for one that accepts it, and lost");
    check(pending == 0 || !any_accepts(), "waits in the kernel while somebody accepts it");
  }
};

struct One : Leave {
  using Leave::Leave;
  void start() {
    lowest = 1;
    gs(0, 1, 0);
    go_all(1 << 1, -1, [] { return true; });
  }
};

struct Two : Leave {
  using Leave::Leave;
  void start() {
    lowest = 1;
    gs(0, 1, 1);
    go_all(1 << 1 | 1 << 2, -1);
  }
};

struct OneStays : Leave {
  using Leave::Leave;
  void start() {
    lowest = 1;
    gs(0, 1, 1);
    go_all(1 << 1, 2, [] { return true; });
  }
};

// Sent when sysmon has looked for main: what comes meanwhile is as with two others.
struct MainLeaves : Leave {
  using Leave::Leave;
  void start() {
    gs(1, 1, 0);
    go_all(1 | 1 << 1, -1, [this] { return seen.peek() >= 1; });
  }
};

}  // namespace

int main() {
  expect_holds<One>("the only taker ends");
  expect_holds<Two>("the last two end", false);
  expect_holds<OneStays>("one of two ends");
  expect_holds<MainLeaves>("main and the other taker end", false);
  expect_breaks<One>("who ends does not have sysmon close what is its own", kNotClosed);
  expect_breaks<One>("it does not wait for what is in somebody's hand", kNotWaitedFor);
  expect_breaks<One>("a slot is free before its signal is queued", kFreedBeforeQueued);
  expect_breaks<Two>("who ends is not marked", kNotMarked);
  expect_breaks<Two>("it is marked by a plain store", kMarkedByAPlainStore);
  expect_breaks<Two>("it takes one after its last look", kTakesAfterItsLook, false);
  expect_breaks<Two>("its door closes while one is in somebody's hand", kLooksBeforeTheDoor, false);
  expect_breaks<MainLeaves>("main does not wait for who has just relied on it", kMainDoesNotWait, false);
  return summary();
}

// settle_model.cc - waits begun without a try, settled later (sched/netsettle.cc), in every order.
//
// A reader waits although bytes may lie there whose edge the read before used up. It is noted with
// its P, whose M, looking for work, fetches events and then settles; sysmon does both where no P has
// its turn at the netpoller, and settles where the P does not. Time is left out: sysmon may come at any
// moment. The verifier (netverify.cc) is not here.
// Must hold: no reader waits while there is something to read; and whom its P settles had its
// bytes when it began to wait: who has an event coming is to be served in its turn.
#include "tests/model/interleave.h"

namespace {

using namespace model;

enum Mutant {
  kNone, kOneCountForBoth, kNotedBeforeItWaits, kNotedWithoutTheLock, kForgetsWhatIsInDoubt,
  kSysmonLeavesDoubt, kSysmonLooksOnce, kFiredAtOnce, kFiredBeforeTheNextLook, kFireDoesNotLookAgain, kErrorMeansEmpty,
};
constexpr int kMost = 3;

struct Settle : Model {
  using Model::Model;
  int readers = 1, reads = 1;              // each; and what comes from outside
  int comes = 0;
  bool poll_fails = false;                 // the first time
  bool in_turn = true;                     // the second rule is asked for
  bool never_looks = false;                // the P, whose ring is always full

  // --- the kernel's
  Atomic<int> items{0, "bytes"};
  Var<int> edge = 0;
  // --- the PollDesc
  Lock lock;
  Atomic<uint32_t> seq{0, "seq"}, waits_in{0, "waits"}, waits_both{0, "waits of both"};
  Var<int> queue[2] = {{-1}, {-1}};
  Var<int> had_bytes[2];                   // as its wait began
  // --- each P's list, and what is in doubt
  struct List {
    Lock lock;
    Atomic<uint32_t> n, n_doubtful;
    Atomic<uint32_t> at[kMost];
    Var<uint32_t> doubtful[kMost];
  } lists[2];
  // --- the Gs
  Var<int> readied[2], ended = 0, lost_m = 0, failed_once = 0;

  bool over() { return ended == readers; }
  Atomic<uint32_t>& count() { return mutant == kOneCountForBoth ? waits_both : waits_in; }

  // ---- waits
  void link(int t) {
    queue[queue[0] == -1 ? 0 : 1] = t;
    waits_in.store(waits_in.load() + 1);
    waits_both.store(waits_both.load() + 1);
    had_bytes[t] = items.load() > 0;
  }
  int fire_locked() {
    seq.store(seq.load() + 1);
    int t = queue[0];
    queue[0] = static_cast<int>(queue[1]);
    queue[1] = -1;
    return t;
  }
  void ready(int t) {
    if (t >= 0) readied[t] = 1;
  }
  bool fetch() {
    step();
    if (edge == 0) return false;
    edge = 0;
    lock.lock();
    int t = fire_locked();
    lock.unlock();
    ready(t);
    return true;
  }
  bool take_one() {
    for (;;) {
      int n = items.load();
      if (n == 0) return false;
      if (items.compare_exchange_strong(n, n - 1)) return true;
    }
  }

  // ---- netsettle.cc
  void note(int t, uint32_t no) {
    List& l = lists[t];
    bool locked = mutant != kNotedWithoutTheLock;
    if (locked) l.lock.lock();
    uint32_t n = l.n.load();
    check(n < kMost, "no room");
    l.at[n].store(no);
    l.n.store(n + 1);
    if (locked) l.lock.unlock();
  }
  bool still_waits(uint32_t no) { return count().load() == no && queue[0] != -1; }
  void fire(uint32_t no, bool by_p) {
    int t = -1;
    {
      Hold hold(lock);
      if (mutant != kFireDoesNotLookAgain && !still_waits(no)) return;
      if (by_p && in_turn && queue[0] != -1) check(had_bytes[queue[0]] == 1, "served before its turn");
      t = fire_locked();
    }
    ready(t);
  }
  void fire_doubtful(List& l, bool by_p) {
    if (l.n_doubtful.load() == 0) return;
    Hold hold(l.lock);
    uint32_t n = l.n_doubtful.load();
    for (uint32_t i = 0; i < n; i++) fire(l.doubtful[i], by_p);
    l.n_doubtful.store(0);
  }
  // poll(): 1 ready, 0 not, -1 failed.
  int poll_now() {
    if (poll_fails && failed_once == 0) {
      failed_once = 1;
      return -1;
    }
    return items.load() > 0;
  }
  void settle(List& l, bool by_p) {
    uint32_t mine[kMost];
    uint32_t n = 0;
    {
      Hold hold(l.lock);
      uint32_t end = l.n.load();
      for (uint32_t i = 0; i < end; i++)
        if (uint32_t no = l.at[i].load(); still_waits(no)) mine[n++] = no;
      l.n.store(0);
    }
    for (uint32_t i = 0; i < n; i++) {
      int r = poll_now();
      if (r == 0 || (r < 0 && mutant == kErrorMeansEmpty)) continue;
      if (!by_p || mutant == kFiredAtOnce || r < 0) {
        fire(mine[i], by_p && r > 0);
        continue;
      }
      Hold hold(l.lock);
      uint32_t d = l.n_doubtful.load();
      l.doubtful[d] = mine[i];
      l.n_doubtful.store(d + 1);
    }
  }
  bool settle_own(int t) {
    List& l = lists[t];
    fire_doubtful(l, true);
    if (l.n.load() != 0) settle(l, true);
    return l.n_doubtful.load() != 0;
  }

  // sysmon's look, and netpoll_settle_all.
  void settle_all() {
    fetch();
    if (!settle_own(0)) return;
    if (mutant != kSysmonLooksOnce) fetch();
    fire_doubtful(lists[0], true);
  }

  // ---- who runs
  // The M of t's P, until t is ready: the end of find_runnable.
  void look_for_work(int t) {
    for (;;) {
      locals(80, t);
      if (readied[t] == 1) break;
      if (never_looks) {
        await([this, t] { return readied[t] == 1; });
        break;
      }
      if (lost_m == 1) {  // the P was handed off, and nobody had it since
        await([this, t] { return readied[t] == 1; });
        break;
      }
      if (fetch()) continue;
      bool again = settle_own(t);
      if (mutant == kFiredBeforeTheNextLook) again = settle_own(t);
      if (readied[t] == 1 || (again && mutant != kForgetsWhatIsInDoubt)) continue;
      await([this, t] { return readied[t] == 1 || edge == 1 || lost_m == 1; });
    }
    readied[t] = 0;
  }
  void read_one(int t) {
    bool woken = false;
    for (bool untried = true;; untried = false) {
      locals(81, t, untried, woken);
      uint32_t seen = seq.load();
      if (!untried && take_one()) break;
      lock.lock();
      bool wait = seq.load() == seen;
      uint32_t no = count().load() + 1;
      if (untried && wait && mutant == kNotedBeforeItWaits) {
        lock.unlock();
        note(t, no);
        lock.lock();
      }
      if (wait) link(t);
      lock.unlock();
      if (!wait) continue;
      if (untried && mutant != kNotedBeforeItWaits) note(t, no);
      look_for_work(t);
      woken = true;
    }
    if (!woken) return;
    lock.lock();
    int next = queue[0] != -1 && items.load() > 0 ? fire_locked() : -1;
    lock.unlock();
    ready(next);
  }
  void reader(int t) {
    for (int i = 0; i < reads; i++) read_one(t);
    ended = ended + 1;
  }
  void peer() {
    for (int i = 0; i < comes; i++) {
      items.fetch_add(1);
      edge = 1;
    }
  }
  // A thread that waits for room, on a P of its own.
  void writer() {
    Hold hold(lock);
    waits_both.store(waits_both.load() + 1);
  }
  void sysmon_looks() {
    for (;;) {
      locals(83);
      await([this] { return over() || edge == 1 || lists[0].n.peek() != 0 || lists[0].n_doubtful.peek() != 0; });
      if (over()) return;
      settle_all();
    }
  }
  void sysmon() {
    for (;;) {
      locals(82);
      auto due = [this](int t) {
        bool doubt = mutant != kSysmonLeavesDoubt && lists[t].n_doubtful.peek() != 0;
        return lists[t].n.peek() != 0 || doubt;
      };
      await([this, due] { return over() || due(0) || due(1); });
      if (over()) return;
      for (int t = 0; t < readers; t++) {
        if (!due(t)) continue;
        if (mutant != kSysmonLeavesDoubt) fire_doubtful(lists[t], false);
        settle(lists[t], false);
      }
    }
  }
};

struct ThereAlready : Settle {
  explicit ThereAlready(int m) : Settle(m) { reads = 2; }
  void start() {
    items.store(2);
    go("reader", [this] { reader(0); });
    go("writer", [this] { writer(); });
  }
};

struct Comes : Settle {
  explicit Comes(int m) : Settle(m) { reads = comes = 2; }
  void start() {
    go("reader", [this] { reader(0); });
    go("peer", [this] { peer(); });
  }
};

struct WithSysmon : Settle {
  explicit WithSysmon(int m) : Settle(m) { reads = 2; }
  void start() {
    items.store(1);
    comes = 1;
    in_turn = false;  // sysmon may have what is in doubt in hand
    go("reader", [this] { reader(0); });
    go("peer", [this] { peer(); });
    go("sysmon", [this] { sysmon(); });
  }
};

struct BesideAFullRing : Settle {
  explicit BesideAFullRing(int m) : Settle(m) {
    reads = 2;
    comes = 1;
    never_looks = true;
  }
  void start() {
    items.store(1);
    go("reader", [this] { reader(0); });
    go("peer", [this] { peer(); });
    go("sysmon", [this] { sysmon_looks(); });
  }
};

struct HandedOff : Settle {
  using Settle::Settle;
  void start() {
    items.store(1);
    go("reader", [this] { reader(0); });
    go("its M", [this] { lost_m = 1; });
    go("sysmon", [this] { sysmon(); });
  }
};

struct Fails : ThereAlready {
  explicit Fails(int m) : ThereAlready(m) { poll_fails = true; }
};

struct TwoReaders : Settle {
  explicit TwoReaders(int m) : Settle(m) { readers = 2; }
  void start() {
    items.store(2);
    in_turn = false;
    go("reader 0", [this] { reader(0); });
    go("reader 1", [this] { reader(1); });
  }
};

}  // namespace

int main() {
  expect_holds<ThereAlready>("bytes were there, beside a wait for room");
  expect_holds<Comes>("bytes come at any time");
  expect_holds<WithSysmon>("sysmon settles, too");
  expect_holds<BesideAFullRing>("sysmon looks and settles for a P that never does");
  expect_holds<HandedOff>("the P is handed off");
  expect_holds<Fails>("poll fails");
  expect_holds<TwoReaders>("two readers on two Ps");
  expect_breaks<ThereAlready>("one count for the waits of both directions", kOneCountForBoth);
  expect_breaks<WithSysmon>("noted before it waits", kNotedBeforeItWaits);
  expect_breaks<WithSysmon>("noted without the lock", kNotedWithoutTheLock);
  expect_breaks<ThereAlready>("a P goes to sleep with one in doubt", kForgetsWhatIsInDoubt);
  expect_breaks<HandedOff>("sysmon leaves what is in doubt", kSysmonLeavesDoubt);
  expect_breaks<BesideAFullRing>("sysmon fires what is in doubt without another look", kSysmonLooksOnce);
  expect_breaks<Comes>("what is ready is not put in doubt", kFiredAtOnce);
  expect_breaks<Comes>("no look between doubt and fire", kFiredBeforeTheNextLook);
  expect_breaks<Comes>("who fires does not look whether it is the same wait", kFireDoesNotLookAgain);
  expect_breaks<Fails>("an error is taken for nothing there", kErrorMeansEmpty);
  return summary();
}

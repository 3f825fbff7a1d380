// gfutex_model.cc - waiting and waking by address (sched/gfutex.cc) under every order.
//
// The functions have the names and the order of steps of gfutex.cc: enqueue, sleep, take,
// requeue, lock_bucket_of, stay_for_handlers. Two addresses, a bucket each. A waiter that is
// a G sleeps until it is readied; a foreign one until its word changes.
// Must hold: a wake-up counted has woken somebody; none is lost to a waiter that gave up;
// nobody touches a waiter whose frame is gone or a list whose lock is not held.
#include "tests/model/interleave.h"

namespace {

using namespace model;

enum Mutant {
  kNone, kChecksBeforeLock, kStopsAtTheFirst, kLeavesItself, kLocksTheOldBucket,
  kWakesAfterUnlock, kDropsInterrupted, kReadiesTwice,
};
enum Reason : uint32_t { kWaiting = 1, kWoken, kTimeout, kInterrupted };
enum Kind { kG, kForeign, kGoOn };

struct Waiter {
  Kind kind = kG;
  Atomic<int> addr{0, "addr"};
  Atomic<uint32_t> park{0, "park"};     // of its G
  Atomic<uint32_t> word{0, "word"};     // foreign
  Var<int> is_g = 0, linked = 0, alive = 0, readied = 0;
  Var<int> expired = 0, interrupted = 0;
  Var<int> result = 0;                  // 0 not back; else Reason
};

struct Bucket {
  Lock lock;
  Var<int> holder = -1;
  Var<Waiter*> list[3];                 // in order of arrival; null: none
};

struct Gfutex {
  explicit Gfutex(int m) : mutant(m) {}
  int mutant;
  Atomic<uint32_t> value{0, "value"};   // what the waiters compare: 0 waits
  Bucket buckets[2];
  Waiter w[2];
  Var<int> wakes = 0;

  void lock(Bucket& b) {
    b.lock.lock();
    b.holder = ex.current;
  }
  void unlock(Bucket& b) {
    b.holder = -1;
    b.lock.unlock();
  }
  void touch(Waiter* x) { check(x->alive == 1, "touched a waiter whose frame is gone"); }

  void link_tail(Bucket& b, Waiter* x) {
    check(b.holder == ex.current, "list changed without its lock");
    for (auto& slot : b.list)
      if (slot == nullptr) {
        slot = x;
        x->linked = 1;
        return;
      }
    check(false, "model: list too short");
  }
  void unlink(Bucket& b, Waiter* x) {
    check(b.holder == ex.current, "list changed without its lock");
    int at = 0;
    while (at < 3 && b.list[at] != x) at++;
    check(at < 3, "unlinked from a list that it is not in");
    for (; at < 2; at++) b.list[at] = static_cast<Waiter*>(b.list[at + 1]);
    b.list[2] = nullptr;
    x->linked = 0;
  }
  bool take(Bucket& b, Waiter* x) {
    touch(x);
    if (x->is_g == 0) {
      uint32_t waiting = 0;
      if (!x->word.compare_exchange_strong(waiting, 1)) return false;
    } else {
      uint32_t waiting = kWaiting;
      if (!x->park.compare_exchange_strong(waiting, kWoken)) {
        if (waiting != kInterrupted || x->kind != kGoOn || mutant == kDropsInterrupted) return false;
        x->is_g = 0;  // it runs already, on its way to this lock
        x->word.store(1);
      }
    }
    unlink(b, x);
    return true;
  }
  void ready(Waiter* x) {
    check(x->readied == 0, "readied twice");
    x->readied = 1;
  }

  bool enqueue(Waiter* x, int a) {
    x->alive = 1;
    x->is_g = x->kind == kForeign ? 0 : 1;
    x->addr.store(a);
    bool wait = true;
    if (mutant == kChecksBeforeLock) wait = value.load() == 0;
    Bucket& b = buckets[a];
    lock(b);
    if (mutant != kChecksBeforeLock) wait = value.load() == 0;
    if (wait) {
      if (x->is_g == 1) x->park.store(kWaiting);
      link_tail(b, x);
    }
    unlock(b);
    return wait;
  }
  Bucket& lock_bucket_of(Waiter* x) {
    if (mutant == kLocksTheOldBucket) {
      lock(buckets[0]);
      return buckets[0];
    }
    for (;;) {
      int a = x->addr.load();
      lock(buckets[a]);
      if (x->addr.load() == a) return buckets[a];
      unlock(buckets[a]);
    }
  }
  Reason stay_for_handlers(Waiter* x) {
    Bucket* b = &lock_bucket_of(x);
    if (x->is_g == 1) {
      x->is_g = 0;
      unlock(*b);
      b = &lock_bucket_of(x);  // the handlers ran in between
    }
    Reason r = kWaiting;
    if (x->word.load() == 1) {
      r = kWoken;
    } else {
      x->is_g = 1;
      x->park.store(kWaiting);
    }
    unlock(*b);
    return r;
  }
  uint32_t sleep_foreign(Waiter* x) {
    uint32_t r = kWoken;
    await([x] { return x->word.peek() != 0 || x->expired == 1; });
    uint32_t waiting = 0;
    if (x->word.load() == 0 && x->word.compare_exchange_strong(waiting, 2)) r = kTimeout;
    Bucket& b = lock_bucket_of(x);
    if (x->linked == 1) unlink(b, x);
    unlock(b);
    return r;
  }
  uint32_t sleep(Waiter* x) {
    if (x->is_g == 0) return sleep_foreign(x);
    uint32_t r;
    do {
      await([x] { return x->readied == 1; });
      x->readied = 0;
      r = x->park.load();
      if (r == kInterrupted && x->kind == kGoOn) r = stay_for_handlers(x);
    } while (r == kWaiting);
    if (r != kWoken && mutant != kLeavesItself) {
      Bucket& b = lock_bucket_of(x);
      if (x->linked == 1) unlink(b, x);
      unlock(b);
    }
    return r;
  }
  void wait(Waiter* x, int a) {
    uint32_t r = enqueue(x, a) ? sleep(x) : kWaiting;
    x->alive = 0;
    x->result = static_cast<int>(r);
  }

  int wake(int a, int n) {
    Waiter *list[2], *late[2];
    int woken = 0, gs = 0, foreign = 0;
    Bucket& b = buckets[a];
    lock(b);
    for (int i = 0; i < 3 && woken < n;) {
      Waiter* x = b.list[i];
      if (x == nullptr) break;
      if (!take(b, x)) {
        if (mutant == kStopsAtTheFirst) break;
        i++;
        continue;
      }
      woken++;
      if (x->is_g == 1) list[gs++] = x;
      else if (mutant == kWakesAfterUnlock) late[foreign++] = x;
      else touch(x);  // the kernel's futex wake, on its word
    }
    unlock(b);
    for (int i = 0; i < gs; i++) {
      step();
      touch(list[i]);
      ready(list[i]);
    }
    for (int i = 0; i < foreign; i++) {
      step();
      touch(late[i]);
    }
    return woken;
  }
  // Moves all of address 0 to address 1.
  void requeue() {
    lock(buckets[0]);
    lock(buckets[1]);
    while (Waiter* x = buckets[0].list[0]) {
      touch(x);
      unlink(buckets[0], x);
      x->addr.store(1);
      link_tail(buckets[1], x);
    }
    unlock(buckets[1]);
    unlock(buckets[0]);
  }

  // A timer or a signal: claims the G's park at any time, or never.
  void end_by(Waiter* x, Reason r) {
    uint32_t waiting = kWaiting;
    if (x->kind == kForeign) x->expired = 1;
    else if (x->park.compare_exchange_strong(waiting, r)) ready(x);
    else if (mutant == kReadiesTwice && waiting == kWoken) ready(x);
  }
  void finish() {
    for (Bucket& b : buckets) check(b.list[0] == nullptr, "somebody is still queued");
    for (Waiter& x : w) check(x.kind == kG || x.readied == 0, "readied but not waiting");
  }
};

// Two waiters, one of which may time out; whoever is woken wakes the next (as a semaphore).
template <Kind first, Kind second>
struct Wake : Gfutex {
  using Gfutex::Gfutex;
  void waiter(Waiter* x) {
    wait(x, 0);
    if (x->result == kWoken) wake(0, 1);
  }
  void start() {
    w[0].kind = first;
    w[1].kind = second;
    go("waiter 0", [this] { waiter(&w[0]); });
    go("waiter 1", [this] { waiter(&w[1]); });
    go("timer", [this] { end_by(&w[0], first == kGoOn ? kInterrupted : kTimeout); });
    go("waker", [this] {
      value.store(1);
      wake(0, 1);
    });
  }
};

// A waiter times out while it is moved to another address and woken there.
template <Kind first>
struct Move : Gfutex {
  using Gfutex::Gfutex;
  Var<int> moved = 0;
  void start() {
    w[0].kind = first;
    go("waiter 0", [this] { wait(&w[0], 0); });
    go("timer", [this] {
      await([this] { return w[0].linked == 1 || w[0].result != 0; });
      end_by(&w[0], first == kGoOn ? kInterrupted : kTimeout);
    });
    go("mover", [this] {
      await([this] { return w[0].linked == 1 || w[0].result != 0; });
      requeue();
      moved = 1;
    });
    go("waker", [this] {
      await([this] { return moved == 1; });
      wakes = wake(1, 1);
    });
  }
  void finish() {
    Gfutex::finish();
    check((wakes == 1) == (w[0].result == kWoken), "the wake's count is not what happened");
  }
};

}  // namespace

int main() {
  expect_holds<Wake<kG, kG>>("two Gs, one times out, a wake passed on");
  expect_holds<Wake<kForeign, kG>>("a foreign thread times out beside a G");
  expect_holds<Wake<kG, kForeign>>("a G times out beside a foreign thread");
  expect_holds<Wake<kGoOn, kG>>("a waiter runs signal handlers and keeps its place");
  expect_holds<Move<kG>>("a G times out while it is moved and woken");
  expect_holds<Move<kForeign>>("a foreign thread times out while it is moved and woken");
  expect_holds<Move<kGoOn>>("a waiter runs handlers while it is moved and woken");
  expect_breaks<Wake<kG, kG>>("the word is compared before the lock", kChecksBeforeLock);
  expect_breaks<Wake<kG, kG>>("a wake stops at a waiter that gave up", kStopsAtTheFirst);
  expect_breaks<Wake<kG, kG>>("a timed-out waiter leaves itself queued", kLeavesItself);
  expect_breaks<Wake<kG, kG>>("a timer readies without having claimed", kReadiesTwice);
  expect_breaks<Wake<kForeign, kG>>("a foreign thread is woken after the unlock", kWakesAfterUnlock);
  expect_breaks<Wake<kGoOn, kG>>("a waiter in its handlers counts as gone", kDropsInterrupted);
  expect_breaks<Move<kG>>("a moved waiter locks the bucket it came from", kLocksTheOldBucket);
  return summary();
}

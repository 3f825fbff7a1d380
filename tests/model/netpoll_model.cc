// netpoll_model.cc - waiting for a descriptor (sched/polldesc.h) in every order.
//
// A file with items (connections, say), edge-triggered: items that come close together make
// one edge. Takers try, then wait for an edge past the one they had seen before the try;
// an edge wakes one taker, and a woken taker passes on what it leaves. A poller fetches
// edges. The verifier (netverify.cc) is not here: the protocol must do without.
// Must hold: no taker waits while an item lies there.
#include "tests/model/interleave.h"

namespace {

using namespace model;

enum Mutant { kNone, kLinksWithoutLooking, kSamplesAfterTheTry, kDoesNotPassOn, kGivesUpSilently,
              kStopsAtALostClaim };
enum Reason : uint32_t { kWaiting = 1, kWoken, kTimeout };

struct Netpoll {
  explicit Netpoll(int m) : mutant(m) {}
  int mutant;
  // --- the kernel's
  Atomic<uint32_t> items{0, "items"};
  Atomic<uint32_t> edge{0, "edge"};        // an event waits in the epoll file
  Var<int> registered = 0;
  // --- the PollDesc
  Lock lock;
  Atomic<uint32_t> seq{0, "seq"};
  Var<int> queue[3] = {{-1}, {-1}, {-1}};  // takers, in order of arrival
  // --- per taker
  Atomic<uint32_t> park[3];
  Var<int> readied[3], linked[3], ended[3];
  int takers = 2, writes = 1;
  Var<int> got = 0, all_written = 0;

  void link(int t) {
    for (auto& q : queue)
      if (q == -1) {
        q = t;
        linked[t] = 1;
        return;
      }
  }
  void unlink(int t) {
    int i = 0;
    while (i < 3 && queue[i] != t) i++;
    check(i < 3, "unlinked twice");
    for (; i < 2; i++) queue[i] = static_cast<int>(queue[i + 1]);
    queue[2] = -1;
    linked[t] = 0;
  }
  // fire_dir, under the lock; the G to be readied, or -1.
  int fire() {
    seq.store(seq.load() + 1);
    while (queue[0] != -1) {
      int t = queue[0];
      unlink(t);
      uint32_t waiting = kWaiting;
      if (park[t].compare_exchange_strong(waiting, kWoken)) return t;
      if (mutant == kStopsAtALostClaim) break;
    }
    return -1;
  }
  void fire_and_ready() {
    lock.lock();
    int t = fire();
    lock.unlock();
    if (t >= 0) readied[t] = 1;
  }

  bool try_take() {
    for (;;) {
      uint32_t n = items.load();
      if (n == 0) return false;
      if (items.compare_exchange_strong(n, n - 1)) return true;
    }
  }
  void turn_end(bool woken) {
    if (!woken || mutant == kDoesNotPassOn) return;
    lock.lock();
    bool more = queue[0] != -1;
    lock.unlock();
    if (more && items.load() > 0) fire_and_ready();
  }
  // `gives_up`: it is cancelled when it wakes, before it has tried again.
  void taker(int t, bool gives_up) {
    bool woken = false;
    for (;;) {
      locals(30, t, woken);
      uint32_t seen = seq.load();
      if (try_take()) {
        got = got + 1;
        break;
      }
      if (mutant == kSamplesAfterTheTry) seen = seq.load();
      woken = false;
      lock.lock();
      if (registered == 0) {  // EPOLL_CTL_ADD tells of readiness that is there already
        registered = 1;
        if (items.load() > 0) edge.store(1, std::memory_order_seq_cst);
      }
      bool wait = seq.load() == seen || mutant == kLinksWithoutLooking;
      if (wait) {
        park[t].store(kWaiting);
        link(t);
      }
      lock.unlock();
      if (!wait) continue;
      await([this, t] { return readied[t] == 1; });
      readied[t] = 0;
      if (park[t].load() == kTimeout) {
        lock.lock();
        if (linked[t] == 1) unlink(t);
        lock.unlock();
        break;
      }
      woken = true;
      if (gives_up) {
        if (mutant == kGivesUpSilently) woken = false;
        break;
      }
    }
    turn_end(woken);
    ended[t] = 1;
  }
  bool over() {
    for (int t = 0; t < takers; t++)
      if (ended[t] == 0) return false;
    return all_written == 1;
  }
  void writer() {
    for (int i = 0; i < writes; i++) {
      items.fetch_add(1);
      if (registered == 1) edge.store(1, std::memory_order_seq_cst);
    }
    all_written = 1;
  }
  void poller() {
    for (;;) {
      locals(31);
      await([this] { return edge.peek() == 1 || over(); });
      if (over()) return;
      edge.exchange(0);
      fire_and_ready();
    }
  }
  void timer(int t) {
    uint32_t waiting = kWaiting;
    if (park[t].compare_exchange_strong(waiting, kTimeout)) readied[t] = 1;
  }
  void finish() {}
};

struct OneOfEach : Netpoll {
  using Netpoll::Netpoll;
  void start() {
    takers = 1;
    go("taker", [this] { taker(0, false); });
    go("writer", [this] { writer(); });
    go("poller", [this] { poller(); });
  }
};

struct Registered : OneOfEach {
  using OneOfEach::OneOfEach;
  void start() {
    registered = 1;
    OneOfEach::start();
  }
};

struct TwoTakers : Netpoll {
  using Netpoll::Netpoll;
  void start() {
    writes = 2;
    go("taker 0", [this] { taker(0, false); });
    go("taker 1", [this] { taker(1, false); });
    go("writer", [this] { writer(); });
    go("poller", [this] { poller(); });
  }
};

// One item; the first taker may give up or time out, the other must get it.
struct GivesUp : Netpoll {
  using Netpoll::Netpoll;
  void start() {
    go("taker 0", [this] { taker(0, true); });
    go("taker 1", [this] {
      // Waits behind the first, so that it is the one left with the item.
      await([this] { return linked[0] == 1 || ended[0] == 1; });
      if (got == 0) taker(1, false);
      else ended[1] = 1;
    });
    go("writer", [this] {
      await([this] { return linked[0] == 1; });
      writer();
    });
    go("poller", [this] { poller(); });
  }
};

struct TimesOut : Netpoll {
  using Netpoll::Netpoll;
  void start() {
    writes = 2;  // enough for both if none times out
    go("taker 0", [this] { taker(0, false); });
    go("taker 1", [this] { taker(1, false); });
    go("writer", [this] { writer(); });
    go("poller", [this] { poller(); });
    go("timer", [this] { timer(0); });
  }
};

}  // namespace

int main() {
  expect_holds<OneOfEach>("one taker, one item");
  expect_holds<Registered>("one taker, one item, registered before");
  expect_holds<TwoTakers>("two takers, two items, perhaps one edge");
  expect_holds<GivesUp>("a woken taker gives up beside another");
  expect_holds<TimesOut>("a taker times out as the edge comes");
  expect_breaks<Registered>("a taker links without looking at seq", kLinksWithoutLooking);
  expect_breaks<Registered>("seq is sampled after the try", kSamplesAfterTheTry);
  expect_breaks<TwoTakers>("a woken taker does not pass on", kDoesNotPassOn);
  expect_breaks<GivesUp>("a woken taker leaves without a word", kGivesUpSilently);
  expect_breaks<TimesOut>("an edge is spent on a taker that timed out", kStopsAtALostClaim);
  return summary();
}

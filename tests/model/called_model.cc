// called_model.cc - a woken G in line for the mutex and the signals for it (sched/called_out.h) under every order.
//
// The functions have the names and steps of called_out.cc. One G has been woken by a condition; a
// holder of the mutex chains it and takes it out again, itself or by way of the mutex's queue.
// Senders signal it meanwhile; in half of the models the holder waits for their handlers first.
// Must hold: the G is readied once for each time it parks; it gets its turn; a handler that the
// holder waits for runs.
#include "tests/model/interleave.h"

namespace {

using namespace model;

enum Mutant {
  kNone, kNoBarrier, kNoSecondBarrier, kLooksOnce, kChainsBlindly, kQueuesBlindly, kGoesBackBlindly,
  kGoesBackByStore, kDoesNotSettle, kAskTogether,
};
enum Stands { kNowhere, kChain, kQueue };
enum Called { kNobody, kAsking, kOut, kPassed };
enum Reason { kWoken, kInterrupted };

struct Line : Model {
  using Model::Model;
  Atomic<int> stands{kNowhere, "stands"}, called{kNobody, "called"}, attention{0, "attention"};
  Atomic<int> reason{kWoken, "park"};   // the G is claimed from the start
  Atomic<int> pending{0, "pending"};
  Var<int> handled = 0, readied = 0, ended = 0;
  Lock runq, bucket, asking;
  Var<int> linked = 0;

  void ready() {
    Hold hold(runq);
    check(readied == 0, "readied twice");
    readied = 1;
  }
  bool change(int from, int to) { return called.compare_exchange_strong(from, to); }

  bool win() {
    if (stands.load() != kChain) return false;
    if (mutant == kAskTogether) return ask();
    Hold hold(asking);
    return ask();
  }
  bool ask() {
    if (!change(kNobody, kAsking)) return false;
    if (mutant != kNoSecondBarrier) membarrier();
    if (mutant == kLooksOnce || stands.load() == kChain) return change(kAsking, kOut);
    change(kAsking, kNobody);
    return false;
  }
  bool take_out_of_queue() {
    return stands.load() == kQueue && wake_queue();
  }
  bool call_out() {
    if (!win()) return take_out_of_queue();
    reason.store(kInterrupted);
    ready();
    return true;
  }
  void send() {
    pending.fetch_add(1);
    attention.fetch_or(1);
    if (mutant != kNoBarrier) membarrier();
    call_out();
  }

  void chain_enter() {
    stands.store(kChain);
    if (mutant != kChainsBlindly && attention.load() != 0) call_out();
  }
  bool leave_called() {
    for (;;) {
      switch (called.load()) {
        case kNobody: return true;
        case kAsking:
          if (change(kAsking, kNobody)) return true;
          break;
        default:
          if (change(kOut, kPassed)) return false;
      }
    }
  }
  bool chain_leave() {
    stands.store(kNowhere);
    return mutant == kDoesNotSettle || called.load() == kNobody || leave_called();
  }
  // True: to be readied.
  bool queue_one() {
    Hold hold(bucket);
    if (!chain_leave()) return false;
    stands.store(kQueue);
    if (mutant != kQueuesBlindly && attention.load() != 0) {
      stands.store(kNowhere);
      return true;
    }
    linked = 1;
    return false;
  }
  bool wake_queue() {
    bucket.lock();
    bool found = linked == 1;
    if (found) {
      linked = 0;
      stands.store(kNowhere);
    }
    bucket.unlock();
    if (found) ready();
    return found;
  }

  void handlers() {
    if (attention.exchange(0) != 0) handled = handled + pending.exchange(0);
  }
  Reason park() {
    await([this] { return readied == 1; });
    Hold hold(runq);
    readied = 0;
    return static_cast<Reason>(reason.load());
  }
  void stay_in_line() {
    for (;;) {
      locals(1);
      handlers();
      reason.store(kWoken);
      if (mutant == kGoesBackByStore) called.store(kNobody, std::memory_order_seq_cst);
      else if (!change(kOut, kNobody)) break;
      if (mutant != kGoesBackBlindly && attention.load() != 0 && win()) continue;
      if (park() == kWoken) break;
    }
    called.store(kNobody);
    stands.store(kNowhere);
  }
  void g() {
    if (park() == kInterrupted) stay_in_line();
    handlers();
    ended = 1;
  }
  void finish() {
    check(ended == 1 && readied == 0 && linked == 0, "its turn came to nothing");
    check(called.peek() == kNobody && stands.peek() == kNowhere, "a mark is left");
  }
};

// `awaited`: how many senders' handlers the holder wants before it gives the mutex up.
template <int senders, bool by_queue, bool waits>
struct Turn : Line {
  using Line::Line;
  void await_handlers() {
    if (waits) await([this] { return handled == senders; });
  }
  void start() {
    go("g", [this] { g(); });
    go("holder", [this] {
      chain_enter();
      if (!by_queue) {
        await_handlers();
        if (chain_leave()) ready();
        return;
      }
      if (queue_one()) ready();
      await_handlers();
      wake_queue();
    });
    for (int i = 0; i < senders; i++) go("sender", [this] { send(); });
  }
};

}  // namespace

int main() {
  expect_holds<Turn<1, false, true>>("the holder of the chain waits for the handler");
  expect_holds<Turn<2, false, true>>("the same, two senders", false);
  expect_holds<Turn<2, false, false>>("two senders, and the turn comes at any time", false);
  expect_holds<Turn<1, true, true>>("into the queue, and who moved it waits for the handler");
  expect_holds<Turn<1, true, false>>("the queue, and the turn comes at any time");
  expect_breaks<Turn<1, false, true>>("the sender looks without a barrier", kNoBarrier);
  expect_breaks<Turn<1, false, false>>("the sender asks without a barrier", kNoSecondBarrier);
  expect_breaks<Turn<1, false, false>>("the sender does not look again", kLooksOnce);
  expect_breaks<Turn<1, false, true>>("who chains it does not look for signals", kChainsBlindly);
  expect_breaks<Turn<1, true, true>>("who queues it does not look for signals", kQueuesBlindly);
  expect_breaks<Turn<2, false, true>>("it goes back without a look for signals", kGoesBackBlindly);
  expect_breaks<Turn<1, false, false>>("it goes back by a store", kGoesBackByStore);
  expect_breaks<Turn<1, false, false>>("who takes it out does not settle", kDoesNotSettle);
  expect_breaks<Turn<2, false, false>>("two senders ask at a time", kAskTogether);
  return summary();
}

// wiring_model.cc - signals are sent to a thread that is just being wired (sigsend.cc, wire.cc).
//
// An unwired thread's signals stand in a queue of ours, a wired one's are the kernel's, and it does not
// look into the queue any more. pending_wired and send_to, with two senders of one signal each.
// Must hold: in the end both are with the kernel, once each, and none is queued.
#include "tests/model/interleave.h"

namespace {

using namespace model;

enum Mutant { kNone, kNoFence, kSenderDoesNotLook, kThreadDoesNotLook, kLooksBeforeItIsWired };
constexpr int kSenders = 2;

struct Wiring : Model {
  using Model::Model;

  Atomic<int> wired{0, "wired"};
  Atomic<int> queued{0, "queued"};  // PendingSet::bits, of real-time signals
  Atomic<int> with_kernel{0, "with_kernel"};
  Lock queue_lock;

  bool dequeue() {
    Hold hold(queue_lock);
    if (queued.load(std::memory_order_relaxed) == 0) return false;
    queued.fetch_sub(1);
    return true;
  }
  void pending_wired() {
    if (mutant != kNoFence) fence();
    if (queued.load(std::memory_order_relaxed) == 0) return;
    while (dequeue()) with_kernel.fetch_add(1);
  }
  void send_to() {
    if (wired.load(std::memory_order_relaxed) == 1) {
      with_kernel.fetch_add(1);
      return;
    }
    {
      Hold hold(queue_lock);
      queued.fetch_add(1);
    }
    if (mutant != kSenderDoesNotLook && wired.load(std::memory_order_relaxed) == 1) pending_wired();
  }

  void start() {
    go("thread", [this] {
      if (mutant == kLooksBeforeItIsWired) pending_wired();
      wired.store(1, std::memory_order_relaxed);
      if (mutant != kThreadDoesNotLook && mutant != kLooksBeforeItIsWired) pending_wired();
    });
    for (int i = 0; i < kSenders; i++) go("sender", [this] { send_to(); });
  }
  void finish() {
    check(queued.peek() == 0, "one is left in the queue");
    check(with_kernel.peek() == kSenders, "the kernel has too few, or one twice");
  }
};

}  // namespace

int main() {
  model::expect_holds<Wiring>("signals are sent to a thread as it is wired");
  model::expect_breaks<Wiring>("no fence between being wired and the look at the queue", kNoFence);
  model::expect_breaks<Wiring>("the sender does not look whether it is wired by now", kSenderDoesNotLook);
  model::expect_breaks<Wiring>("the thread does not look at its queue", kThreadDoesNotLook);
  model::expect_breaks<Wiring>("the thread looks before it is wired", kLooksBeforeItIsWired);
  return model::summary();
}

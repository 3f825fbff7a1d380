// idle_model.cc - submitting work while Ms go idle (sched.cc, findwork.cc, m.cc) under every order.
//
// Two Ps. P0's M computes and never looks at its queue again; P1 comes and goes. wake_p,
// start_m, stop_m, hand_off_p and the end of find_runnable have the steps of the engine.
// Must hold: once all is quiet, no work is queued while a P is idle (sysmon would mend it
// 10 ms later; the protocol alone must do); an M woken has its P; counts do not go astray.
#include "tests/model/interleave.h"

namespace {

using namespace model;

enum Mutant {
  kNone, kSubmitWithoutFence, kNoSecondLook, kUncountsOutsideLock, kWakesByNextP,
  kStopLooksAtIdlePsAlone, kHandOffDoesNotLook,
};

struct Idle {
  explicit Idle(int m) : mutant(m) {}
  int mutant;
  int submitters = 0;

  Lock lock;                              // sched.lock
  Atomic<uint32_t> n_spinning{0, "n_spinning"}, n_idle{0, "n_idle_p"};
  Atomic<uint32_t> tail{0, "P0 tail"}, head{0, "P0 head"};
  Atomic<uint32_t> globq_n{0, "globq_n"};
  Var<int> p1_idle = 0;
  Var<int> idle_m = -1;                   // only M1 (0) or a new M (1) can be here, a list of one
  Var<int> second_idle_m = -1;
  Atomic<uint32_t> want_m{0, "want_m"};
  Atomic<uint32_t> next_p[2], park[2];
  Var<int> done = 0, asleep = 0, ran = 0;

  bool any_work() {
    if (tail.load() != head.load()) return true;
    return globq_n.load() != 0;
  }
  bool get_work() {
    for (;;) {
      uint32_t h = head.load();
      if (tail.load() == h) break;
      if (head.compare_exchange_strong(h, h + 1)) return true;
    }
    if (globq_n.load() == 0) return false;
    Hold hold(lock);
    if (globq_n.peek() == 0) return false;
    globq_n.store(globq_n.load() - 1);
    return true;
  }
  bool idle_p_get_locked() {
    if (p1_idle == 0) return false;
    p1_idle = 0;
    n_idle.fetch_sub(1);
    return true;
  }
  void idle_p_put_locked() {
    check(p1_idle == 0, "P1 is idle twice");
    p1_idle = 1;
    n_idle.fetch_add(1);
  }

  void start_m(bool spinning) {
    int m;
    {
      Hold hold(lock);
      m = idle_m;
      if (m < 0) {
        idle_p_put_locked();
      } else {
        idle_m = static_cast<int>(second_idle_m);
        second_idle_m = -1;
      }
    }
    if (m < 0) {
      if (spinning) n_spinning.fetch_sub(1);
      want_m.exchange(1);
      return;
    }
    next_p[m].store(spinning ? 2 : 1);
    park[m].store(1);
    fence();  // the futex call
  }
  void wake_p() {
    if (n_spinning.load() != 0) return;
    uint32_t none = 0;
    if (!n_spinning.compare_exchange_strong(none, 1)) return;
    bool p;
    {
      Hold hold(lock);
      p = idle_p_get_locked();
      if (!p && mutant != kUncountsOutsideLock) n_spinning.fetch_sub(1);
    }
    if (!p && mutant == kUncountsOutsideLock) n_spinning.fetch_sub(1);
    if (p) start_m(true);
  }
  void hand_off_p() {
    if (globq_n.load() != 0) {
      start_m(false);
      return;
    }
    bool keep = false;
    {
      Hold hold(lock);
      if (globq_n.peek() == 0 || mutant == kHandOffDoesNotLook) idle_p_put_locked();
      else keep = true;
    }
    if (keep) {
      start_m(false);
      return;
    }
    fence();
    if (mutant != kHandOffDoesNotLook && globq_n.load() != 0) wake_p();
  }

  // ready() on P0: the ring's tail, then the submit side of the protocol.
  void submit_local() {
    tail.store(tail.load() + 1);
    if (mutant != kSubmitWithoutFence) fence();
    if (n_idle.load() != 0) wake_p();
    done = done + 1;
  }
  // ready() on a foreign thread.
  void submit_foreign() {
    {
      Hold hold(lock);
      globq_n.store(globq_n.load() + 1);
    }
    locals(21);
    wake_p();
    done = done + 1;
  }

  // 0: the end of the model; 1: has P1; 2: and is spinning.
  uint32_t stop_m(int m) {
    bool found = false;
    {
      Hold hold(lock);
      bool work = globq_n.peek() != 0;  // P1's own queue is always empty here
      if (!work && mutant != kStopLooksAtIdlePsAlone && mutant != kNoSecondLook) work = any_work();
      if (p1_idle == 1 && work) found = idle_p_get_locked();
      if (!found) {
        if (idle_m >= 0) second_idle_m = m; else idle_m = m;
      }
    }
    if (found) return 1;
    if (mutant != kWakesByNextP || next_p[m].load() == 0) {
      asleep = asleep + 1;
      if (!woken(m)) return 0;
    }
    uint32_t p = next_p[m].load();
    next_p[m].store(0);
    check(p != 0, "an M goes on without a P");
    return p;
  }
  // No M is on its way: what holds now holds for good.
  bool quiet() {
    return over == 1 ||
           (done == submitters && awake == asleep && (want_m.peek() == 0 || new_m_is_up == 1));
  }
  Var<int> awake = 0, new_m_is_up = 0, over = 0;

  // False at the end of the model.
  bool woken(int m) {
    await([this, m] { return park[m].peek() == 1 || quiet(); });
    if (park[m].peek() == 0) {
      over = 1;
      return false;
    }
    asleep = asleep - 1;
    park[m].store(0);
    return true;
  }

  void find_runnable(int m, bool has_p, bool spinning) {
    for (;;) {
      locals(20, m, has_p, spinning);
      if (!has_p) {
        uint32_t p = stop_m(m);
        if (p == 0) return;
        has_p = true;
        spinning = p == 2;
        continue;
      }
      bool got = get_work();
      if (!got && !spinning) {
        uint32_t busy = 2 - n_idle.load();
        if (2 * n_spinning.load() < busy) {
          spinning = true;
          n_spinning.fetch_add(1);
          got = get_work();
        }
      }
      if (got) {  // schedule(): reset_spinning, then run it
        ran = ran + 1;
        if (spinning) {
          check(n_spinning.fetch_sub(1) != 0, "more un-spun than spun");
          if (n_idle.load() != 0 && any_work()) wake_p();
          spinning = false;
        }
        continue;
      }
      {
        Hold hold(lock);
        if (globq_n.peek() != 0) continue;
        has_p = false;
        idle_p_put_locked();
      }
      bool was = spinning;
      if (was) {
        spinning = false;
        check(n_spinning.fetch_sub(1) != 0, "more un-spun than spun");
      }
      fence();
      if (mutant == kNoSecondLook || !any_work()) continue;
      {
        Hold hold(lock);
        has_p = idle_p_get_locked();
      }
      if (has_p && was) {
        spinning = true;
        n_spinning.fetch_add(1);
      }
    }
  }

  void m_thread(int m, bool has_p, bool spinning) {
    awake = awake + 1;
    find_runnable(m, has_p, spinning);
  }
  // The spawner's child: up when asked for, or never.
  void new_m() {
    await([this] { return want_m.peek() == 1 || quiet(); });
    if (want_m.peek() == 0) return;
    new_m_is_up = 1;
    m_thread(1, false, false);
  }

  void finish() {
    check(n_spinning.peek() == 0, "somebody is counted as spinning for ever");
    bool work = tail.peek() != head.peek() || globq_n.peek() != 0;
    check(!work || p1_idle == 0, "work is queued, a P is idle, and everybody sleeps");
  }
};

struct Local : Idle {
  using Idle::Idle;
  void start() {
    submitters = 1;
    awake = 1;
    go("P0", [this] { submit_local(); });
    go("M1", [this] { find_runnable(0, true, false); });
    go("new M", [this] { new_m(); });
  }
};

struct TwoForeign : Idle {
  using Idle::Idle;
  void start() {
    submitters = 2;
    awake = 1;
    go("foreign 1", [this] { submit_foreign(); });
    go("foreign 2", [this] { submit_foreign(); });
    go("M1", [this] { find_runnable(0, true, false); });
    go("new M", [this] { new_m(); });
  }
};

struct LocalAndForeign : Idle {
  using Idle::Idle;
  void start() {
    submitters = 2;
    awake = 1;
    go("P0", [this] { submit_local(); });
    go("foreign", [this] { submit_foreign(); });
    go("M1", [this] { find_runnable(0, true, false); });
    go("new M", [this] { new_m(); });
  }
};

// No M sleeps that could be woken: one has to be made.
struct NewM : Idle {
  using Idle::Idle;
  void start() {
    submitters = 2;
    p1_idle = 1;
    n_idle.store(1);
    go("foreign", [this] { submit_foreign(); });
    go("P0", [this] { submit_local(); });
    go("new M", [this] { new_m(); });
  }
};

// sysmon has retaken P1 from an M that is away; one M sleeps.
struct HandOff : Idle {
  using Idle::Idle;
  void start() {
    submitters = 2;
    idle_m = 0;
    awake = 1;
    asleep = 1;
    go("sysmon", [this] {
      hand_off_p();
      done = done + 1;
    });
    go("foreign", [this] { submit_foreign(); });
    go("M1", [this] {
      if (!woken(0)) return;
      uint32_t p = next_p[0].load();
      next_p[0].store(0);
      find_runnable(0, true, p == 2);
    });
    go("new M", [this] { new_m(); });
  }
};

}  // namespace

int main() {
  expect_holds<Local>("P0 submits while P1's M goes idle");
  expect_holds<TwoForeign>("two foreign threads submit while P1's M goes idle");
  expect_holds<LocalAndForeign>("P0 and a foreign thread submit while P1's M goes idle");
  expect_holds<NewM>("work and an idle P wait for an M to be made");
  expect_holds<HandOff>("sysmon hands P1 off while a foreign thread submits");
  expect_breaks<Local>("the submitter has no fence", kSubmitWithoutFence);
  expect_breaks<Local>("no second look after giving the P up", kNoSecondLook);
  expect_breaks<TwoForeign>("a wake without a P is uncounted outside the lock", kUncountsOutsideLock);
  expect_breaks<TwoForeign>("an M takes next_p for the wake-up", kWakesByNextP);
  expect_breaks<NewM>("a new M looks for work on idle Ps alone", kStopLooksAtIdlePsAlone);
  expect_breaks<HandOff>("a hand-off does not look at the global queue again", kHandOffDoesNotLook);
  return summary();
}

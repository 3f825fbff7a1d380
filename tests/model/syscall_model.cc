// syscall_model.cc - who owns the P around a system call (sched/syscall.*), in every order.
//
// One M and one P, retaken by sysmon while the G is away; an idle second P may stand by.
// Two halves: calls that the engine knows of (state word with a count, one CAS each side),
// and blocks that it does not (engine flag, membarrier, m->retake).
// Must hold: a P has one user at a time; a G that runs knows whether it has a P; nobody
// waits for ever.
#include "tests/model/interleave.h"

namespace {

using namespace model;

enum Mutant {
  kNone, kNoCount, kReturnByStore, kSysmonClearsTheM, kSysmonDoesNotLookAgain,
  kNoMembarrier, kEntersWithoutLooking, kTakesWhateverTheFlag, kForgetsToDecide,
};

enum State : uint64_t { kRunning = 2, kSyscall = 3, kWaiting = 4, kLost = 15 };

// ---- calls known to the engine. Two Gs take turns on M; each makes system calls.
struct Known {
  explicit Known(int m) : mutant(m) {}
  int mutant;

  Atomic<uint64_t> state[2];               // [calls | State] of G0 and G1
  Atomic<uint32_t> curg{0, "m->curg"};
  Atomic<uint32_t> p_m{1, "p->m"};         // 1: M; 0: nobody
  Atomic<uint32_t> m_p{1, "m->p"};         // 1: P, 2: the spare P, 0: none
  Var<int> p_user = 1;                     // 1: M's G in user code, 2: sysmon's heir
  Var<int> spare_idle = 1, p_free = 0;

  static uint64_t with(uint64_t w, State s) { return (w & ~uint64_t{0xff}) | s; }
  uint64_t one() { return mutant == kNoCount ? 0 : 0x100; }

  void use(int who) {
    check(p_user == 0 || p_user == who, "two users of one P");
    p_user = who;
  }
  void leave_user_code() {
    if (m_p.peek() == 1) p_user = 0;
  }
  void enter(int g) {
    leave_user_code();
    state[g].store(with(state[g].load() + one(), kSyscall));
  }
  void exit(int g) {
    uint64_t w = state[g].load();
    if ((w & 0xff) == kSyscall) {
      if (mutant == kReturnByStore) {
        state[g].store(with(w, kRunning));
        use(1);
        return;
      }
      if (state[g].compare_exchange_strong(w, with(w, kRunning))) {
        check(m_p.peek() == 1 || m_p.peek() == 2, "back from the call without a P");
        if (m_p.peek() == 1) use(1);
        return;
      }
    }
    if (mutant != kSysmonClearsTheM) m_p.store(0);
    acquire_p();
    state[g].store(with(state[g].load(), kRunning));
  }
  // get_p_or_queue, where something can always be had in the end.
  void acquire_p() {
    await([this] { return spare_idle == 1 || p_free == 1; });
    check(m_p.peek() == 0, "acquires a P while it has one");
    if (p_free == 1) {
      p_free = 0;
      m_p.store(1);
      p_m.store(1);
      use(1);
    } else {
      spare_idle = 0;
      m_p.store(2);
    }
  }
  void sysmon() {
    uint32_t g = curg.load();
    uint64_t w = state[g].load();
    if ((w & 0xff) != kSyscall) return;
    if (mutant != kSysmonDoesNotLookAgain) {
      if (p_m.load() != 1 || curg.load() != g) return;
    }
    if (!state[g].compare_exchange_strong(w, with(w, kLost))) return;
    p_m.store(0);
    if (mutant == kSysmonClearsTheM) m_p.store(0);
    use(2);     // hand_off_p: another M runs on it
    step();
    p_user = 0;
    p_free = 1;  // and goes idle
  }
  void finish() {}
};

struct Calls : Known {
  using Known::Known;
  void start() {
    state[0].store(kRunning);
    go("G on M", [this] {
      for (int i = 0; i < 2; i++) {
        enter(0);
        exit(0);
        step();
      }
    });
    go("sysmon", [this] {
      sysmon();
      sysmon();
    });
  }
};

// Between sysmon's look and its CAS the M changes to another G, without a P of ours, and
// back: G0's word must not look the same again.
struct Switches : Known {
  using Known::Known;
  void start() {
    state[0].store(kRunning);
    state[1].store(kWaiting);
    go("M", [this] {
      enter(0);
      exit(0);
      if (m_p.peek() == 1) {  // G0 is moved to the spare P by the scheduler
        p_user = 0;
        m_p.store(2);
        p_m.store(0);
        spare_idle = 0;
        use(3);  // a third M runs on P
      }
      enter(0);
      exit(0);
    });
    go("sysmon", [this] { sysmon(); });
  }
};

// ---- blocks unknown to the engine.
struct Hidden {
  explicit Hidden(int m) : mutant(m) {}
  int mutant;
  Atomic<uint32_t> engine{0, "g->engine"}, retake{0, "m->retake"}, curg{0, "m->curg"};
  Atomic<uint32_t> p_m{1, "p->m"};
  Var<int> inside = 0;   // the G uses the P inside the engine
  Var<int> taken = 0;    // sysmon owns it

  void engine_enter() {
    engine.store(engine.load() + 1, std::memory_order_relaxed);
    // compiler barrier
    if (mutant != kEntersWithoutLooking && retake.load() != 0) {
      await([this] { return retake.peek() != 1; });
      if (retake.load() == 2) {
        retake.store(0);
        await([this] { return taken == 2; });  // get_p_or_queue: it is idle by now
        taken = 0;
        p_m.store(1);
      }
    }
    check(taken == 0, "in the engine without its P");
    inside = 1;
  }
  void engine_exit() {
    inside = 0;
    engine.store(engine.load() - 1, std::memory_order_relaxed);
  }
  bool retake_hidden() {
    if (p_m.load() != 1) return false;  // check_p: p has no M
    retake.store(1, std::memory_order_seq_cst);
    if (mutant != kNoMembarrier) membarrier();
    bool ours = p_m.load() == 1 && curg.load() == 0 &&
                (engine.load() == 0 || mutant == kTakesWhateverTheFlag);
    if (!ours) {
      if (mutant != kForgetsToDecide) retake.store(0);
      return false;
    }
    check(inside == 0, "took the P of a G inside the engine");
    taken = 1;
    p_m.store(0);
    retake.store(2);
    return true;
  }
  void start() {
    go("G", [this] {
      for (int i = 0; i < 2; i++) {
        engine_enter();
        step();
        if (i == 0) {  // another G ran on this M meanwhile
          curg.store(1);
          curg.store(0);
        }
        engine_exit();
      }
    });
    go("sysmon", [this] {
      for (int i = 0; i < 2; i++)
        if (retake_hidden()) {
          step();
          taken = 2;  // handed off, used and idle again
        }
    });
  }
  void finish() {}
};

// A G that computes where it cannot be stopped loses its P so, and may just be entering a call that
// the engine knows of, which does not look at m->retake (fair.h).
struct ComputesAndCalls : Hidden {
  using Hidden::Hidden;
  Atomic<uint64_t> state{kRunning, "g->state"};

  void gets_a_p() {
    await([this] { return taken == 2; });
    taken = 0;
    p_m.store(1);
  }
  void call() {
    state.store((state.load() & ~uint64_t{0xff}) + 0x100 + kSyscall);
    step();
    uint64_t w = state.load();
    while ((w & 0xff) == kSyscall)
      if (state.compare_exchange_strong(w, (w & ~uint64_t{0xff}) + kRunning)) return;
    gets_a_p();
    state.store((w & ~uint64_t{0xff}) + kRunning);
  }
  bool retake_known() {
    uint64_t w = state.load();
    if ((w & 0xff) != kSyscall) return false;
    if (mutant != kSysmonDoesNotLookAgain && p_m.load() != 1) return false;
    if (!state.compare_exchange_strong(w, (w & ~uint64_t{0xff}) + kLost)) return false;
    check(taken == 0, "sysmon takes a P that it has taken");
    taken = 1;
    p_m.store(0);
    return true;
  }
  void start() {
    go("G", [this] {
      for (int i = 0; i < 2; i++) {
        call();
        engine_enter();
        step();
        engine_exit();
      }
    });
    go("sysmon", [this] {
      for (int i = 0; i < 2; i++) {
        if (state.load() % 0x100 == kRunning && retake_hidden()) {
          step();
          taken = 2;
        }
        if (retake_known()) {
          step();
          taken = 2;
        }
      }
    });
  }
};

}  // namespace

int main() {
  expect_holds<Calls>("two calls, sysmon retakes twice");
  expect_holds<Switches>("sysmon's look is outdated when it acts");
  expect_holds<Hidden>("a G enters the engine while sysmon takes its P");
  expect_holds<ComputesAndCalls>("a G that computes enters a call while sysmon takes its P");
  expect_breaks<Calls>("the G returns by a plain store", kReturnByStore);
  expect_breaks<Calls>("sysmon clears m->p after its CAS", kSysmonClearsTheM);
  expect_breaks<Switches>("the state word carries no count", kNoCount);
  expect_breaks<Switches>("sysmon does not look at the P again", kSysmonDoesNotLookAgain);
  expect_breaks<ComputesAndCalls>("sysmon takes from the call what it took before it", kSysmonDoesNotLookAgain);
  expect_breaks<Hidden>("no membarrier", kNoMembarrier);
  expect_breaks<Hidden>("the G does not look at m->retake", kEntersWithoutLooking);
  expect_breaks<Hidden>("sysmon ignores g->engine", kTakesWhateverTheFlag);
  expect_breaks<Hidden>("sysmon leaves its question open", kForgetsToDecide);
  return summary();
}

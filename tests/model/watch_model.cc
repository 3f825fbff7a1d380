// watch_model.cc - somebody watches descriptors and timers when nobody runs (findwork.cc, m.cc).
//
// Transcribed: watch, sleep_in_netpoll and the end of find_runnable (findwork.cc), wake_p, start_m,
// stop_m, hand_off_p and unwatched (m.cc), give_p_up (syscall.cc), what of check_syscall
// (sysmon.cc) is about watching, and the timer half of park_until (park.cc). One G waits for a
// descriptor all the time. Nothing else is ever ready: submitting is idle_model's.
// Must hold, once all is quiet: if every P is idle, an M is in the netpoller; if a P is idle that
// was given back by its M, too; and who is there knows of the earliest timer. (sysmon would mend
// it, but only while it does not sleep deep, and after 10 ms.)
#include "tests/model/interleave.h"

namespace {

using namespace model;

enum Mutant {
  kNone, kHandOffDoesNotLook, kHandOffLooksFirst, kStopDoesNotLook, kStopLooksUnlocked,
  kWatchEndsAtABreak, kStampByAPlainStore, kLooksBeforeItGivesUp, kSysmonLeavesIt, kTimerWithoutFence,
  kNoSecondLookAtTimers,
};

struct Watch {
  explicit Watch(int m) : mutant(m) {}
  int mutant;
  uint32_t procs = 1;
  bool handed = true;                      // some P is idle by hand_off_p, not by its M

  Lock lock;                               // sched.lock
  Atomic<uint32_t> n_idle{0, "n_idle_p"}, n_spinning{0, "n_spinning"};
  Atomic<uint32_t> last_poll{1, "last_poll_ns"}, poll_until{0, "poll_until_ns"};  // 1: no timer
  Atomic<uint32_t> timer{1, "earliest timer"};  // 1: none; 0: there is one
  Atomic<uint32_t> in_call{0, "the G's state"};  // 1: in a system call, with the P
  Atomic<uint32_t> want_m{0, "want_m"}, breaking{0, "break"};
  Atomic<uint32_t> next_p[4], park[4];
  Var<int> idle_ms = 0;                    // bits
  Var<int> sleeper = -1, slept_until = 1;  // who is in epoll_wait, and for how long
  Var<int> at_rest = 0, made = 0, over = 0;
  int ms = 2;                              // that run
  bool no_more_ms = false;                 // else the spawner makes them

  bool unwatched() { return last_poll.load() != 0 && n_idle.load() == procs; }
  void idle_p_put() { n_idle.fetch_add(1); }
  bool idle_p_get() {
    if (n_idle.peek() == 0) return false;
    n_idle.fetch_sub(1);
    return true;
  }

  void start_m() {
    int m = -1;
    {
      Hold hold(lock);
      for (int i = 0; i < 4 && m < 0; i++)
        if ((idle_ms >> i & 1) != 0) m = i;
      if (m < 0) idle_p_put();
      else idle_ms = idle_ms & ~(1 << m);
    }
    if (m < 0) {
      n_spinning.fetch_sub(1);
      want_m.exchange(1);
      return;
    }
    next_p[m].store(1);
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
      p = idle_p_get();
      if (!p) n_spinning.fetch_sub(1);
    }
    if (p) start_m();
  }
  void hand_off_p() {
    bool look = mutant == kHandOffLooksFirst ? last_poll.load() != 0 && n_idle.load() + 1 == procs : false;
    {
      Hold hold(lock);
      idle_p_put();
    }
    fence();
    if (mutant == kHandOffDoesNotLook) return;
    if (mutant == kHandOffLooksFirst ? look : unwatched()) wake_p();
  }

  // ---- rest: asleep in the kernel with nothing on its way
  bool quiet() {
    for (auto& p : park)
      if (p.peek() != 0) return false;
    return at_rest == ms + made && (want_m.peek() == 0 || no_more_ms) && breaking.peek() == 0 && !sysmon_is_due();
  }
  bool sysmon_is_due() {
    return in_call.peek() == 1 && last_poll.peek() != 0 && mutant != kSysmonLeavesIt;
  }
  // True: woken by `f`; false: the model is over.
  bool rest(std::function<bool()> f) {
    at_rest = at_rest + 1;
    await([this, f] { return over == 1 || f() || quiet(); });
    if (over == 1 || !f()) {
      over = 1;
      return false;
    }
    at_rest = at_rest - 1;
    return true;
  }

  // Has a P when it returns; false: over.
  bool stop_m(int m) {
    bool found = false, look = mutant == kStopLooksUnlocked && unwatched();
    {
      Hold hold(lock);
      if (mutant != kStopLooksUnlocked) look = mutant != kStopDoesNotLook && unwatched();
      if (look) found = idle_p_get();
      if (!found) idle_ms = idle_ms | 1 << m;
    }
    if (found) return true;
    if (!rest([this, m] { return park[m].peek() == 1; })) return false;
    park[m].store(0);
    check(next_p[m].exchange(0) == 1, "woken without a P");
    n_spinning.fetch_sub(1);  // it was counted for it; it will find nothing
    return true;
  }
  // An event that readies nobody, or a break, ends it. False: over.
  bool sleep_in_netpoll(int m) {
    uint32_t when = timer.load();
    poll_until.store(when + 1, std::memory_order_seq_cst);
    if (mutant != kNoSecondLookAtTimers) when = timer.load();  // earlier than when: a delay of 0
    sleeper = m;
    slept_until = static_cast<int>(when);
    if (!rest([this] { return breaking.peek() == 1; })) return false;
    sleeper = -1;
    breaking.exchange(0);
    poll_until.store(0, std::memory_order_relaxed);
    last_poll.store(1, mutant == kStampByAPlainStore ? std::memory_order_relaxed
                                                     : std::memory_order_seq_cst);
    return true;
  }
  bool watch(int m) {
    while (last_poll.exchange(0) != 0) {
      locals(70, m);
      if (!sleep_in_netpoll(m)) return false;
      if (mutant == kWatchEndsAtABreak || n_idle.load() == 0) return true;
    }
    return true;
  }
  void find_runnable(int m, bool has_p) {
    for (;;) {
      locals(71, m, has_p);
      if (has_p) {
        bool late = mutant == kLooksBeforeItGivesUp && last_poll.load() == 0;
        {
          Hold hold(lock);
          idle_p_put();
        }
        fence();
        if (!late && !watch(m)) return;
      }
      if (!stop_m(m)) return;
      has_p = true;
    }
  }
  void in_netpoll_first(int m) {
    if (!sleep_in_netpoll(m)) return;
    if (n_idle.load() != 0 && mutant != kWatchEndsAtABreak && !watch(m)) return;
    if (stop_m(m)) find_runnable(m, true);
  }
  // The G's M is away from here on.
  void give_p_up() {
    bool alone = last_poll.load() == 0 && n_idle.load() + 1 >= procs;
    if (alone) {
      in_call.store(1);
    } else {
      hand_off_p();
    }
    fence();
    rest([] { return false; });
  }
  void sysmon() {
    for (;;) {
      locals(72);
      if (!rest([this] { return sysmon_is_due(); })) return;
      uint32_t w = in_call.load();
      if (w == 0 || last_poll.load() == 0 || n_idle.load() + n_spinning.load() > 0) continue;
      if (in_call.compare_exchange_strong(w, 0)) hand_off_p();
    }
  }
  void new_m(int m) {  // the spawner's
    do {
      await([this] { return want_m.peek() == 1 || over == 1; });
      if (over == 1) return;
    } while (want_m.exchange(0) == 0);
    made = made + 1;
    find_runnable(m, false);
  }
  void breaker() {
    step();
    breaking.exchange(1);
  }
  void finish() {
    bool watched = sleeper != -1;
    bool idle = handed ? n_idle.peek() == procs : n_idle.peek() != 0;
    check(!idle || watched, "a P is idle, and nobody watches");
    check(in_call.peek() == 0 || watched, "a P is away with its G, and nobody watches");
    check(!watched || timer.peek() == 1 || slept_until == 0, "a timer is slept over");
    check(n_spinning.peek() == 0, "somebody is counted as spinning for ever");
  }
};

// The last P is given up for a call; nobody watches, and no M is idle.
struct Away : Watch {
  using Watch::Watch;
  void start() {
    ms = 1;
    go("G's M", [this] { give_p_up(); });
    go("new M", [this] { new_m(2); });
  }
};

// An M is just going to sleep beside it; another cannot be had.
struct AwayBesideIdle : Watch {
  explicit AwayBesideIdle(int m) : Watch(m) { no_more_ms = true; }
  void start() {
    go("G's M", [this] { give_p_up(); });
    go("M1", [this] {
      if (stop_m(1)) find_runnable(1, true);
    });
  }
};

struct TwoAway : Watch {
  explicit TwoAway(int m) : Watch(m) { procs = 2; }
  void start() {
    go("M0", [this] { give_p_up(); });
    go("M1", [this] { give_p_up(); });
    for (int m = 2; m < 4; m++) go("new M", [this, m] { new_m(m); });
  }
};

// One gives its P back as the watcher is broken; the other P computes for ever.
struct BreakBesideIdle : Watch {
  explicit BreakBesideIdle(int m) : Watch(m) {
    procs = 2;
    handed = false;
  }
  void start() {
    last_poll.store(0);
    go("M0", [this] { find_runnable(0, true); });
    go("watcher", [this] { in_netpoll_first(1); });
    go("break", [this] { breaker(); });
  }
};

// The only P's G makes a call, which keeps it while somebody watches; he is broken.
struct BreakBesideCall : Watch {
  explicit BreakBesideCall(int m) : Watch(m) { ms = 3; }
  void start() {
    last_poll.store(0);
    go("G's M", [this] { give_p_up(); });
    go("watcher", [this] { in_netpoll_first(1); });
    go("break", [this] { breaker(); });
    go("sysmon", [this] { sysmon(); });
    go("new M", [this] { new_m(2); });
  }
};

// A G on another P adds a timer and parks; its M gives that P back.
struct Timer : Watch {
  explicit Timer(int m) : Watch(m) {
    procs = 2;
    handed = false;
  }
  void start() {
    go("G", [this] {
      timer.store(0, std::memory_order_relaxed);  // of its own P: an unlock, no fence
      if (mutant != kTimerWithoutFence) fence();
      uint32_t until = poll_until.load();
      if (until == 2) breaking.exchange(1);
      find_runnable(0, true);
    });
    go("M1", [this] { find_runnable(1, true); });
  }
};

}  // namespace

int main() {
  expect_holds<Away>("the last P is given up for a call");
  expect_holds<AwayBesideIdle>("it is given up as an M goes to sleep");
  expect_holds<TwoAway>("the last two are given up");
  expect_holds<BreakBesideIdle>("the watcher is broken as a P is given back");
  expect_holds<BreakBesideCall>("the watcher is broken as a call keeps the last P");
  expect_holds<Timer>("a timer is added as the watcher goes to sleep");
  expect_breaks<Away>("who hands a P off does not look", kHandOffDoesNotLook);
  expect_breaks<TwoAway>("it looks before the P is idle", kHandOffLooksFirst);
  expect_breaks<Away>("a new M does not look before it sleeps", kStopDoesNotLook);
  expect_breaks<AwayBesideIdle>("an M looks before the lock", kStopLooksUnlocked);
  expect_breaks<BreakBesideIdle>("a break ends the watch", kWatchEndsAtABreak);
  expect_breaks<BreakBesideIdle>("the watcher's time stamp is a plain store", kStampByAPlainStore);
  expect_breaks<BreakBesideIdle>("an M looks for a watcher before it gives its P back", kLooksBeforeItGivesUp);
  expect_breaks<BreakBesideCall>("sysmon leaves a P in its call", kSysmonLeavesIt);
  expect_breaks<Timer>("no fence after a timer", kTimerWithoutFence);
  expect_breaks<Timer>("no second look at timers", kNoSecondLookAtTimers);
  return summary();
}

// sigroute.h - what sysmon keeps open for the process (preload/sigroute.cc), for the models of it.
//
// One signal, a bit a mask. Transcribed, by the same names: keeps_open, only_mine, masks_note,
// masks_close, host_tick, sysmon_kick and the clearing of sysmon_word. Sysmon sleeps until it is
// kicked, as in its deep sleep. G 0 is main. The kernel gives what is pending to sysmon at any of
// its steps at which its mask is open; the others have theirs open as they say (models).
#pragma once

#include "tests/model/interleave.h"

namespace model {

enum SigMutant {
  kNoMutant, kNoteWithoutFence, kComputingNotShown, kTickWithoutFence, kDirtyClearedLate,
  kOpenShownBefore, kUptoReadLate, kOpeningReadFirst, kNoOpening, kWordClearedByStore,
  kNobodyLookedAt,
  // of leave_model.cc
  kNotMarked, kMarkedByAPlainStore, kNotClosed, kNotWaitedFor, kFreedBeforeQueued, kTakesAfterItsLook,
  kMainDoesNotWait, kLooksBeforeTheDoor,
};

struct Sigroute {
  explicit Sigroute(int m) : mutant(m) {}
  static constexpr int kGs = 3;
  int mutant;
  bool coarse = false;                     // keeps_open is one step
  int lowest = 0;                          // 1: main blocks it, and is not looked at
  bool handler = true;                     // the program handles it; else the default action
  // ---- Gs
  Atomic<int> blocked[kGs], opening[kGs], leaving[kGs], alive[kGs];
  // ---- the kernel's
  Var<int> pending = 0, sysmon_has_it_open = 0;
  // ---- sysmon's
  Atomic<int> dirty{0, "masks_dirty"}, open_word{0, "sysmon_open"}, computing{0, "masks_computing"};
  Atomic<int> seen{0, "masks_seen"}, changed{0, "masks_changed"}, last{-1, "last_acceptor"};
  Atomic<int> word{0, "sysmon_word"};
  Var<int> left_to_end = 1, sysmon_busy = 0;

  void gs(int open0, int open1, int open2) {
    int open[kGs] = {open0, open1, open2};
    int any = open0 | open1 | open2;
    for (int i = 0; i < kGs; i++) {
      blocked[i].store(1 - open[i]);
      alive[i].store(1);
    }
    open_word.store(any);
    sysmon_has_it_open = any;
  }
  bool any_accepts() {
    for (int i = 0; i < kGs; i++)
      if (alive[i].peek() == 1 && blocked[i].peek() == 0) return true;
    return false;
  }

  // A look at several fields of one G, as one step.
  int at_once(int result) {
    if (ex.current >= 0) ex.me().seen = mix(ex.me().seen, static_cast<uint64_t>(result) + 1);
    return result;
  }
  int keeps_open(int g) {
    if (coarse) {
      step();
      return at_once(alive[g].peek() == 1 && leaving[g].peek() == 0 && opening[g].peek() == 0 &&
                     blocked[g].peek() == 0);
    }
    if (alive[g].load() == 0) return 0;
    int is_opening = mutant == kOpeningReadFirst ? opening[g].load() : 0;
    int open = 1 - blocked[g].load();
    if (mutant != kOpeningReadFirst) is_opening = opening[g].load();
    if (is_opening == 1) open = 0;
    return leaving[g].load() == 1 ? 0 : open;
  }
  bool only_mine(int me) {
    if (me != 0 && lowest == 0 && keeps_open(0) == 1) return false;
    int from = last.load();
    if (from < 0) from = lowest;
    for (int i = 0; i < kGs; i++) {
      int g = (from + i) % kGs;
      if (g < lowest || g == me || keeps_open(g) == 0) continue;
      last.store(g, std::memory_order_relaxed);
      return false;
    }
    return true;
  }
  void kick() { word.exchange(2); }
  void masks_close() {
    if (computing.load() == 0 && open_word.load() == 0) return;
    int want = changed.fetch_add(1) + 1;
    dirty.store(1);
    kick();
    await([this, want] { return seen.peek() >= want; });
  }
  void masks_note(int me, bool now_blocked, bool now_open) {
    if (mutant != kNoteWithoutFence) fence();
    bool shown = computing.load() == 1;
    int open = shown ? 0 : open_word.load();
    if (now_open && open == 0) {
      dirty.store(1);
      kick();
    }
    open = computing.load() == 1 ? 1 : open_word.load();
    if (!now_blocked || open == 0) return;
    dirty.store(1);
    if (!handler && only_mine(me)) masks_close();
  }

  // ---- sysmon's thread
  virtual void route() {}
  virtual void took_one() {}
  void deliver() {  // the kernel interrupts sysmon here
    if (pending == 0 || sysmon_has_it_open == 0) return;
    pending = 0;
    took_one();
  }
  void host_tick() {
    route();
    if (mutant == kDirtyClearedLate ? dirty.load() == 0 : dirty.exchange(0) == 0) return;
    int upto = changed.load();
    bool shows = mutant != kComputingNotShown;
    if (shows) computing.store(1, mutant == kTickWithoutFence ? std::memory_order_release
                                                               : std::memory_order_seq_cst);
    if (mutant != kTickWithoutFence && shows) fence();
    int open = 0;
    for (int g = lowest; g < kGs; g++) open |= keeps_open(g);
    locals(51, upto, open);
    if (mutant == kDirtyClearedLate) dirty.exchange(0);
    if (mutant == kOpenShownBefore) {
      open_word.store(open);
      computing.store(0, std::memory_order_seq_cst);
    } else {
      open_word.fetch_or(open);
    }
    deliver();
    fence();  // the system call
    sysmon_has_it_open = open;
    deliver();
    open_word.store(open);
    computing.store(0, std::memory_order_seq_cst);
    if (mutant == kUptoReadLate) upto = changed.load();
    deliver();
    seen.exchange(upto);
  }
  bool quiet() { return left_to_end == 0 && word.peek() == 0 && sysmon_busy == 0 && !deliverable(); }
  bool deliverable() { return pending == 1 && sysmon_has_it_open == 1; }
  void sysmon() {
    for (;;) {
      sysmon_busy = 0;
      locals(50);
      await([this] { return word.peek() == 2 || deliverable() || quiet(); });
      if (quiet()) return;
      sysmon_busy = 1;
      deliver();
      if (mutant == kWordClearedByStore) word.store(0, std::memory_order_relaxed);
      else word.exchange(0);
      host_tick();
    }
  }
};

}  // namespace model

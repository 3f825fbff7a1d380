// masks_model.cc - threads change their masks while sysmon finds out what to keep open.
//
// tests/model/sigroute.h has what is transcribed, and set_masks, mask_swap and swapcontext (sigmask.cc)
// are here.
// Must hold: once all is quiet, a signal that somebody accepts is open in sysmon; one with a default
// action that nobody accepts any more is closed there when the thread that blocked it goes on; one
// that was pending in the kernel is handled before the call that unblocks it returns; sysmon does
// not sleep over one that is put aside.
#include "tests/model/sigroute.h"

namespace {

using namespace model;

struct Masks : Sigroute {
  using Sigroute::Sigroute;
  Var<int> handled = 0, aside = 0;

  void took_one() override {
    step();  // in hand
    aside = 1;
    kick();
  }
  void route() override {
    if (aside == 0) return;
    for (int g = 0; g < kGs; g++)
      if (blocked[g].load() == 0) {
        aside = 0;
        handled = 1;
        return;
      }
    aside = 0;  // nobody: back
    sysmon_has_it_open = 0;
    dirty.store(1);
    pending = 1;
  }
  // swapcontext: libc's system call comes later.
  void swap_context(int g, int block) {
    blocked[g].store(block);
    masks_note(g, block == 1, block == 0);
  }
  // Who runs has its M's mask open from here on, or closed.
  void set_masks(int g, int block, bool runs) {
    if (mutant != kNoOpening) opening[g].store(block == 0 ? 1 : 0);
    blocked[g].store(block);
    fence();  // the system call
    if (runs && block == 0 && pending == 1) {
      pending = 0;
      handled = 1;
    }
    opening[g].store(0);
  }
  void mask_swap(int g, int block, bool runs = false) {
    set_masks(g, block, runs);
    masks_note(g, block == 1, block == 0);
    if (runs && block == 0) route();  // signals_attention
  }
  void ended() {
    fence();
    left_to_end = left_to_end - 1;
  }
  void finish() {
    check(!any_accepts() || sysmon_has_it_open == 1, "a signal that is accepted is open nowhere");
    check(any_accepts() || handler || sysmon_has_it_open == 0, "a default action is open in sysmon");
  }
};

// Closed and opened again at once; sysmon was told to look just before.
struct Reopens : Masks {
  using Masks::Masks;
  void start() {
    gs(0, 1, 0);
    dirty.store(1);
    word.store(2);
    go("G", [this] {
      mask_swap(1, 1);
      mask_swap(1, 0);
      ended();
    });
    go("sysmon", [this] { sysmon(); });
  }
};

struct Opens : Masks {
  using Masks::Masks;
  void start() {
    gs(0, 0, 0);
    left_to_end = 2;
    for (int g = 1; g < 3; g++)
      go("G", [this, g] {
        mask_swap(g, 0);
        ended();
      });
    go("sysmon", [this] { sysmon(); });
  }
};

struct Closes : Masks {
  explicit Closes(int m) : Masks(m) { handler = false; }
  void start() {
    gs(0, 1, 0);
    dirty.store(1);
    word.store(2);
    go("G", [this] {
      mask_swap(1, 1);
      check(sysmon_has_it_open == 0, "goes on while a default action is open in sysmon");
      ended();
    });
    go("sysmon", [this] { sysmon(); });
  }
};

struct TwoClose : Masks {
  explicit TwoClose(int m) : Masks(m) { handler = false; }
  void start() {
    gs(0, 1, 1);
    left_to_end = 2;
    for (int g = 1; g < 3; g++)
      go("G", [this, g] {
        swap_context(g, 1);
        ended();
      });
    go("sysmon", [this] { sysmon(); });
  }
};

// Pending in the kernel, closed in sysmon, which looks at all masks just now.
struct Unblocks : Masks {
  using Masks::Masks;
  void start() {
    gs(0, 0, 0);
    pending = 1;
    dirty.store(1);
    word.store(2);
    go("G", [this] {
      mask_swap(1, 0, true);
      check(handled == 1, "unblocked, and not handled before the call returned");
      ended();
    });
    go("sysmon", [this] { sysmon(); });
  }
};

// Put aside by a thread just as sysmon, told to look for something else, has begun to.
struct PutAside : Sigroute {
  using Sigroute::Sigroute;
  Atomic<int> n_deferred{0, "n_deferred"};
  void route() override {
    if (n_deferred.load() != 0) n_deferred.fetch_sub(1);
  }
  void start() {
    gs(0, 1, 0);
    word.store(2);
    go("G", [this] {
      n_deferred.fetch_add(1);
      kick();
      left_to_end = 0;
    });
    go("sysmon", [this] { sysmon(); });
  }
  void finish() { check(n_deferred.peek() == 0, "put aside, and sysmon sleeps"); }
};

}  // namespace

int main() {
  expect_holds<Reopens>("closed and opened while sysmon looks");
  expect_holds<Opens>("two open");
  expect_holds<Closes>("a default action is closed while sysmon looks");
  expect_holds<TwoClose>("the last two close a default action");
  expect_holds<Unblocks>("what is pending is unblocked while sysmon looks");
  expect_holds<PutAside>("one is put aside as sysmon begins");
  expect_breaks<Reopens>("who opens does not say that sysmon is to begin anew", kComputingNotShown);
  expect_breaks<Reopens>("no fence between a mask and the look whether sysmon looks", kNoteWithoutFence);
  expect_breaks<Reopens>("no fence before sysmon reads masks", kTickWithoutFence);
  expect_breaks<Reopens>("sysmon forgets what came while it looked", kDirtyClearedLate);
  expect_breaks<Closes>("sysmon shows what it has open before it has", kOpenShownBefore);
  expect_breaks<Closes>("sysmon says seen of what came after it looked", kUptoReadLate);
  expect_breaks<TwoClose>("no fence between a mask and the look at others'", kNoteWithoutFence);
  expect_breaks<Unblocks>("sysmon takes what is just being let in", kNoOpening);
  expect_breaks<Unblocks>("opening is read before the mask", kOpeningReadFirst);
  expect_breaks<PutAside>("sysmon clears its futex word by a store", kWordClearedByStore);
  return summary();
}

// pair_model.cc - the two ends of a pipe that know each other (polldesc.cc, io_rw.h), in every order.
//
// Transcribed: polldesc_fed_peer, polldesc_peer and polldesc_retire, what of fire_dir and
// poll_turn_wait they meet (sched/polldesc.cc); believe_drained, note_short_read and learn_level
// within read_some, and the writes of io_write_all (preload/io_rw.h).
// Must hold:
//  - hints alone: a reader is woken by the writer, however late epoll's events come; only of what
//    was written while the reader was registering does epoll have to tell;
//  - belief: who waits without a try, for it has emptied the pipe, sleeps over nothing;
//  - level: once all is quiet it is what lies in the pipe, though bytes went where nobody counts;
//  - reuse: a hint wakes nobody at a number that has become another pipe's.
#include "tests/model/interleave.h"

namespace {

using namespace model;

enum Mutant {
  kNone, kDoesNotCount, kLooksWithoutTheLock, kLooksBeforeTheWrite, kLinksWithoutLooking,
  kNotesTheLaterSeq, kBelievesWhateverCame, kFullReadEmpties, kPutsTheLevelTo0, kLeavesTheLevel,
  kTagBeforeTheLock,
};

struct Pair {
  explicit Pair(int m) : mutant(m) {}
  int mutant;
  bool events = true;                      // else only what no hint doubles
  bool counts = true;                      // a pipe, not a socket
  // --- the kernel's
  Atomic<uint32_t> bytes{0, "bytes"};
  Atomic<uint32_t> edge{0, "edge"};        // an event waits in the epoll file
  Var<int> registered = 0;
  // --- the reader's PollDesc
  Lock lock;
  Atomic<uint32_t> seq{0, "seq"}, armed{0, "armed"}, drained{0, "drained"}, tag{0, "tag"};
  Atomic<int> level{0, "level"};
  Var<int> queue[2] = {{-1}, {-1}};
  // --- per reader
  Var<int> readied[2];  // by place in `queue`: 1 waits in the number's next life
  // --- what the model knows
  Var<int> got = 0, ended = 0, writers_left = 1, life = 0, wrong_wakes = 0;
  int all = 2;

  void set_edge(bool told) {
    if (registered == 1 && (events || !told)) edge.store(1, std::memory_order_seq_cst);
  }

  // ---- the writer
  void fed_peer(uint32_t was_tag) {  // polldesc_fed_peer
    if (tag.load() != was_tag) return;
    if (counts) level.fetch_add(1);
    if (mutant != kLooksBeforeTheWrite && armed.load() == 0) return;
    if (mutant == kLooksWithoutTheLock && queue[0] == -1) return;
    lock.lock();
    bool same = mutant == kTagBeforeTheLock || tag.load() == was_tag;
    int woken = same ? fire(true) : -1;
    lock.unlock();
    if (woken >= 0) readied[woken] = 1;
  }
  void write_one() {
    uint32_t was_armed = mutant == kLooksBeforeTheWrite ? armed.load() : 1;
    bytes.fetch_add(1);
    set_edge(armed.peek() == 1);
    if (was_armed == 1) fed_peer(0);
  }
  void writer(int n) {
    for (int i = 0; i < n; i++) {
      locals(43, i);
      write_one();
    }
    writers_left = writers_left - 1;
  }

  // ---- edges; under the lock
  int fire(bool by_hint) {
    if (!by_hint || mutant != kDoesNotCount) seq.store(seq.load() + 1);
    if (by_hint && life != 0) wrong_wakes = wrong_wakes + 1;
    int first = queue[0];
    if (first == -1) return -1;
    queue[0] = int{queue[1]};
    queue[1] = -1;
    return first;
  }
  bool over() { return ended == 1 && writers_left == 0; }
  void poller() {
    for (;;) {
      locals(40);
      await([this] { return edge.peek() == 1 || over(); });
      if (over()) return;
      edge.exchange(0);
      if (bytes.load() == 0) continue;  // found read by the time epoll asks: not reported
      lock.lock();
      int woken = fire(false);
      lock.unlock();
      if (woken >= 0) readied[woken] = 1;
    }
  }

  // ---- the reader
  uint32_t take(uint32_t most) {
    for (;;) {
      uint32_t n = bytes.load(), r = n < most ? n : most;
      if (n == 0 || bytes.compare_exchange_strong(n, n - r)) return r;
    }
  }
  void learn_level(uint32_t r, int before) {
    if (r > 0) level.fetch_sub(static_cast<int>(r));
    else if (mutant == kPutsTheLevelTo0) level.load() > 0 ? level.store(0) : void();
    else if (before > 0 && mutant != kLeavesTheLevel) level.fetch_sub(before);
  }
  // One call of read_some for `most` bytes; 0: gave up as the readers have all.
  uint32_t read(int me, uint32_t most) {
    for (bool first = true;; first = false) {
      uint32_t s = seq.load();
      locals(41, me, first, s);
      bool believed = first && drained.load() == (s | 0x100) && (!counts || level.load() <= 0);
      if (mutant == kBelievesWhateverCame) believed = first && drained.load() != 0;
      if (!believed) {
        int before = counts ? level.load() : 0;
        uint32_t r = take(most);
        if (counts) learn_level(r, before);
        if (r != 0) {
          bool is_short = r < most || mutant == kFullReadEmpties;
          if (is_short && armed.load() != 0)
            drained.store((mutant == kNotesTheLaterSeq ? seq.load() : s) | 0x100);
          return r;
        }
      }
      if (got == all) return 0;
      lock.lock();
      if (armed.load() == 0) {  // netpoll_arm; EPOLL_CTL_ADD tells of what is there already
        registered = 1;
        if (bytes.load() > 0) edge.store(1, std::memory_order_seq_cst);
        armed.store(1);
      }
      bool wait = seq.load() == s || mutant == kLinksWithoutLooking;
      if (wait) queue[queue[0] == -1 ? 0 : 1] = me;
      lock.unlock();
      if (!wait) continue;
      await([this, me] { return readied[me] == 1 || got == all; });
      if (readied[me] == 0) return 0;
      readied[me] = 0;
    }
  }
  void reader(int me, uint32_t most) {
    while (got < all) {
      locals(42, me);
      uint32_t r = read(me, most);
      got = got + static_cast<int>(r);
    }
    ended = ended + 1;
  }
  void finish() {}
};

// The poller may be as late as it likes: what a hint told of has no event here.
struct Hints : Pair {
  explicit Hints(int m) : Pair(m) { events = false; }
  void start() {
    go("reader", [this] { reader(0, 1); });
    go("writer", [this] { writer(2); });
    go("poller", [this] { poller(); });
  }
};

struct HintsAlone : Hints {
  using Hints::Hints;
  void start() {
    registered = 1;
    armed.store(1);
    Hints::start();
  }
};

// For `kMost` bytes at a time.
template <uint32_t kMost>
struct Reads : Pair {
  explicit Reads(int m) : Pair(m) { counts = false; }
  void start() {
    registered = 1;
    armed.store(1);
    go("reader", [this] { reader(0, kMost); });
    go("writer", [this] { writer(2); });
    go("poller", [this] { poller(); });
  }
};
using Short = Reads<2>;
using Full = Reads<1>;

struct Level : Pair {
  using Pair::Pair;
  void start() {
    registered = 1;
    armed.store(1);
    go("reader", [this] { reader(0, 2); });
    go("writer", [this] { writer(2); });
    go("poller", [this] { poller(); });
  }
  void finish() {
    check(level.peek() == static_cast<int>(bytes.peek()), "the level is not what lies in the pipe");
  }
};

// What was written and counted before went away by splice.
struct Unseen : Level {
  using Level::Level;
  void start() {
    level.store(3);
    go("reader", [this] {
      for (int i = 0; i < 2; i++) look();
    });
    go("writer", [this] { writer(1); });
  }
  void look() {
    int before = level.load();
    learn_level(take(2), before);
  }
  void finish() {
    look();
    look();
    Level::finish();
  }
};

// The reader's number is closed, and becomes another pipe's, while a hint for it is under way.
struct Reuse : Pair {
  using Pair::Pair;
  void start() {
    registered = 1;
    armed.store(1);
    queue[0] = 0;
    go("writer", [this] { writer(1); });
    go("closer", [this] {
      lock.lock();  // polldesc_retire
      armed.store(0);
      tag.store(tag.load() + 1);
      fire(false);
      life = 1;
      lock.unlock();
      lock.lock();  // somebody waits at the new one
      armed.store(1);
      queue[0] = 1;
      lock.unlock();
    });
  }
  void finish() { check(wrong_wakes == 0, "a hint for a pipe that is closed woke at another"); }
};

}  // namespace

int main() {
  expect_holds<Hints>("hints wake a reader that registers meanwhile");
  expect_holds<HintsAlone>("hints wake a reader that is registered");
  expect_holds<Short>("a reader that believes what a short read told", false);
  expect_holds<Full>("full reads tell nothing", false);
  expect_holds<Level>("one counts in, one counts out");
  expect_holds<Unseen>("some went away unseen");
  expect_holds<Reuse>("the number is another pipe's by then");
  expect_breaks<HintsAlone>("a hint is not counted as an edge", kDoesNotCount);
  expect_breaks<HintsAlone>("the hint looks for readers without the lock", kLooksWithoutTheLock);
  expect_breaks<Hints>("the writer looks for a registration before it writes", kLooksBeforeTheWrite);
  expect_breaks<HintsAlone>("the reader links without looking", kLinksWithoutLooking);
  expect_breaks<Short>("empty is noted with the seq after the read", kNotesTheLaterSeq, false);
  expect_breaks<Short>("empty is believed after an edge", kBelievesWhateverCame, false);
  expect_breaks<Full>("a full read is taken for a short one", kFullReadEmpties, false);
  expect_breaks<Level>("a vain read puts the level to 0", kPutsTheLevelTo0);
  expect_breaks<Unseen>("a vain read leaves the level", kLeavesTheLevel);
  expect_breaks<Reuse>("the tag is not looked at under the lock", kTagBeforeTheLock);
  return summary();
}

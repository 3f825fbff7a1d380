// runq_model.cc - the run queue (sched/runq.h, its very text) under every interleaving.
//
// A ring of 4. Its owner puts, takes, uses runnext and overflows while two others steal.
// Must hold: every item is taken once, and none is left behind.
// Mutants: one atomic update made of two steps, a load and a store.
#include "sched/runq.h"

#include "tests/model/interleave.h"

namespace weft {
void fatal(const char* what) {
  fprintf(stderr, "%s\n", what);
  abort();
}
}  // namespace weft

namespace {

enum Mutant { kNone, kSplitCas, kSplitExchange, kBlindCas, kNotCounted };
int mutant_now;

// model::Atomic, less what the mutant leaves out.
template <class T>
struct Cell : model::Atomic<T> {
  using Base = model::Atomic<T>;
  using Base::Base;
  T exchange(T v, std::memory_order o = std::memory_order_seq_cst) {
    if (mutant_now != kSplitExchange) return Base::exchange(v, o);
    T old = Base::load(o);
    Base::store(v, o);
    return old;
  }
  bool compare_exchange_strong(T& want, T v, std::memory_order a = std::memory_order_seq_cst,
                               std::memory_order b = std::memory_order_seq_cst) {
    if constexpr (std::is_same_v<T, uint64_t>)
      if (mutant_now == kNotCounted) v = static_cast<uint32_t>(v);
    if (mutant_now == kNone || mutant_now == kSplitExchange || mutant_now == kNotCounted)
      return Base::compare_exchange_strong(want, v, a, b);
    T old = Base::load(a);
    if (mutant_now == kSplitCas && old != want) {
      want = old;
      return false;
    }
    Base::store(v, a);
    return true;
  }
  bool compare_exchange_weak(T& want, T v, std::memory_order a = std::memory_order_seq_cst,
                             std::memory_order b = std::memory_order_seq_cst) {
    return compare_exchange_strong(want, v, a, b);
  }
};

struct Item {
  model::Var<int> taken;
};
using Q = weft::RunQ<Item, 4, Cell>;

template <int kItems>
struct Base {
  explicit Base(int mutant) { mutant_now = mutant; }
  Item items[kItems];
  Q q;

  void take(Item* g) {
    if (g == nullptr) return;
    model::check(g->taken == 0, "an item was taken twice");
    g->taken = 1;
  }
  void put(Item* g) {
    while (!q.put(g)) {
      Item* out[Q::kHalf];
      uint32_t n = q.take_half(out);
      for (uint32_t i = 0; i < n; i++) take(out[i]);
    }
  }
  void steal(bool take_next) {
    Q mine;
    take(mine.steal(q, take_next));
    while (Item* g = mine.get()) take(g);
  }
  void finish() {
    while (Item* g = q.get()) take(g);
    take(q.get_next());
    for (Item& i : items) model::check(i.taken == 1, "an item was lost");
  }
};

struct StealVersusGet : Base<3> {
  using Base::Base;
  void start() {
    for (int i = 0; i < 2; i++) q.put(&items[i]);
    model::go("owner", [this] {
      take(q.get());
      put(&items[2]);
      take(q.get());
    });
    model::go("thief 1", [this] { steal(false); });
    model::go("thief 2", [this] { steal(false); });
  }
};

// The ring was full when put() looked; thieves may have taken from it by the time the owner
// takes half. take_half once went on from the new head and past the tail, so that a G ran
// twice.
struct Overflow : Base<5> {
  using Base::Base;
  void start() {
    for (int i = 0; i < 4; i++) q.put(&items[i]);
    model::go("owner", [this] { put(&items[4]); });
    model::go("thief 1", [this] { steal(false); });
    model::go("thief 2", [this] { steal(false); });
  }
};

// The ring has turned once: a thief with an old head must not take what came later.
struct Wrap : Base<6> {
  using Base::Base;
  void start() {
    q.put(&items[0]);
    q.put(&items[1]);
    model::go("owner", [this] {
      take(q.get());
      put(&items[2]);
      take(q.get());
      put(&items[3]);
      put(&items[4]);
      put(&items[5]);
    });
    model::go("thief", [this] { steal(false); });
  }
};

// A thief that has read the tail before the owner took the last one back; the owner puts another
// in its place.
struct TakeLast : Base<3> {
  using Base::Base;
  void start() {
    q.put(&items[0]);
    q.put(&items[1]);
    model::go("owner", [this] {
      if (q.take_last(&items[1])) take(&items[1]);
      put(&items[2]);
      if (q.take_last(&items[0])) take(&items[0]);
    });
    model::go("thief 1", [this] { steal(false); });
    model::go("thief 2", [this] { steal(false); });
  }
};

struct Next : Base<3> {
  using Base::Base;
  void start() {
    q.put_next(&items[0]);
    model::go("owner", [this] {
      for (int i = 1; i < 3; i++)
        if (Item* old = q.put_next(&items[i])) put(old);
      take(q.get_next());
    });
    model::go("thief 1", [this] { steal(true); });
    model::go("thief 2", [this] { steal(true); });
  }
};

}  // namespace

int main() {
  model::expect_holds<StealVersusGet>("owner gets, two steal");
  model::expect_holds<Overflow>("owner overflows, two steal");
  model::expect_holds<Wrap>("the ring turns under a thief");
  model::expect_holds<TakeLast>("the owner takes back what it has put, two steal");
  model::expect_holds<Next>("runnext is displaced, taken and stolen");
  model::expect_breaks<StealVersusGet>("steal and get update head in two steps", kSplitCas);
  model::expect_breaks<Overflow>("head moves whoever moved it meanwhile", kBlindCas);
  model::expect_breaks<Wrap>("the thief's update of head compares nothing", kBlindCas);
  model::expect_breaks<TakeLast>("nobody counts what is taken back", kNotCounted);
  model::expect_breaks<TakeLast>("head is compared in two steps", kSplitCas);
  model::expect_breaks<Next>("put_next reads and writes in two steps", kSplitExchange);
  return model::summary();
}

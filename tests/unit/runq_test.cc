// runq_test.cc - a P's run queue: order, overflow, stealing, and that nothing is lost or
// doubled while an owner and several stealers work on it.
#include "sched/runq.h"

#include <criterion/criterion.h>

#include <thread>
#include <vector>

using namespace weft;

namespace {
struct Item {
  int id = 0;
  std::atomic<int> taken{0};
};
using Q = RunQ<Item, 8>;
}  // namespace

Test(runq, is_first_in_first_out_across_the_ring_end) {
  Q q;
  Item items[40];
  for (int i = 0; i < 40; i++) items[i].id = i;
  int next = 0;
  for (int i = 0; i < 40; i++) {
    cr_assert(q.put(&items[i]));
    if (i % 3 == 2)
      for (int k = 0; k < 3; k++) cr_assert_eq(q.get()->id, next++);
  }
  cr_assert_eq(q.get()->id, next);
  cr_assert_null(q.get());
  cr_assert(q.empty());
}

Test(runq, refuses_when_full_and_gives_up_its_older_half) {
  Q q;
  Item items[9], *out[Q::kHalf];
  for (int i = 0; i < 8; i++) cr_assert(q.put(&items[i]));
  cr_assert_not(q.put(&items[8]));
  cr_assert_eq(q.take_half(out), 4u);
  for (int i = 0; i < 4; i++) cr_assert_eq(out[i], &items[i]);
  cr_assert(q.put(&items[8]));
  cr_assert_eq(q.size(), 5u);
  cr_assert_eq(q.get(), &items[4]);
}

Test(runq, gives_its_owner_back_what_was_put_last) {
  Q q;
  Item a, b, c;
  cr_assert_not(q.take_last(&a));
  q.put(&a);
  q.put(&b);
  cr_assert_not(q.take_last(&a));
  cr_assert(q.take_last(&b));
  cr_assert_not(q.take_last(&b));
  q.put(&c);
  cr_assert_eq(q.size(), 2u);
  cr_assert_eq(q.get(), &a);
  cr_assert(q.take_last(&c));
  cr_assert(q.empty());
  cr_assert_null(q.get());
}

Test(runq, next_goes_first_and_displaces) {
  Q q;
  Item a, b;
  cr_assert_null(q.put_next(&a));
  cr_assert_not(q.empty());
  cr_assert(q.ring_empty());
  cr_assert_eq(q.put_next(&b), &a);
  cr_assert_eq(q.get_next(), &b);
  cr_assert_null(q.get_next());
  cr_assert(q.empty());
}

Test(runq, tells_whether_one_put_before_a_place_is_still_there) {
  Q q;
  Item items[4];
  uint32_t start = q.place();
  cr_assert_not(q.holds_before(start));
  q.put(&items[0]);
  q.put(&items[1]);
  uint32_t place = q.place();
  q.put(&items[2]);
  cr_assert(q.holds_before(place));
  cr_assert_not(q.holds_before(start));
  q.get();
  cr_assert(q.holds_before(place));
  q.get();
  cr_assert_not(q.holds_before(place));
  for (int i = 0; i < 100; i++) {
    q.put(&items[3]);
    q.get();
    cr_assert_not(q.holds_before(place));
  }
}

Test(runq, steal_takes_half_rounded_up_oldest_first) {
  for (int n = 0; n <= 8; n++) {
    Q victim, thief;
    Item items[8];
    for (int i = 0; i < n; i++) victim.put(&items[i]);
    Item* g = thief.steal(victim, false);
    uint32_t moved = thief.size() + (g != nullptr ? 1 : 0);
    cr_assert_eq(moved, static_cast<uint32_t>(n - n / 2), "n=%d moved=%u", n, moved);
    cr_assert_eq(victim.size(), static_cast<uint32_t>(n / 2));
    for (uint32_t i = 0; i + 1 < moved; i++) cr_assert_eq(thief.get(), &items[i]);
    if (g != nullptr) cr_assert_eq(g, &items[moved - 1]);
  }
}

Test(runq, steal_takes_next_only_when_told_and_nothing_else_is_there) {
  Q victim, thief;
  Item a, b;
  victim.put_next(&a);
  cr_assert_null(thief.steal(victim, false));
  victim.put(&b);
  cr_assert_eq(thief.steal(victim, true), &b);
  cr_assert_eq(thief.steal(victim, true), &a);
  cr_assert(victim.empty());
}

// Owner puts, gets, takes back, uses next and overflows; three thieves steal into queues of their own.
Test(runq, every_item_is_taken_exactly_once, .timeout = 60) {
  constexpr int kItems = 300000;
  auto q = new Q;
  auto* items = new Item[kItems];
  std::atomic<bool> done{false};
  std::atomic<int> total{0};
  auto take = [&](Item* g) {
    g->taken++;
    total++;
  };
  std::vector<std::thread> thieves;
  for (int t = 0; t < 3; t++)
    thieves.emplace_back([&, t] {
      Q mine;
      for (uint32_t i = 0; !done.load() || !q->empty(); i++) {
        if (Item* g = mine.steal(*q, (i + static_cast<uint32_t>(t)) % 4 == 0)) take(g);
        while (Item* g = mine.get()) take(g);
        if (i % 64 == 0) std::this_thread::yield();
      }
    });
  for (int i = 0; i < kItems; i++) {
    Item* g = &items[i];
    if (i % 5 == 0) {
      g = q->put_next(g);
      if (g == nullptr) continue;
    }
    while (!q->put(g)) {
      Item* out[Q::kHalf];
      uint32_t n = q->take_half(out);
      for (uint32_t k = 0; k < n; k++) take(out[k]);
    }
    if (i % 3 == 0 && q->take_last(g)) take(g);
    if (i % 7 == 0)
      if (Item* mine = i % 2 ? q->get() : q->get_next()) take(mine);
  }
  done = true;
  for (auto& t : thieves) t.join();
  while (Item* g = q->get()) take(g);
  if (Item* g = q->get_next()) take(g);
  cr_assert_eq(total.load(), kItems);
  for (int i = 0; i < kItems; i++)
    cr_assert_eq(items[i].taken.load(), 1, "item %d taken %d times", i, items[i].taken.load());
}

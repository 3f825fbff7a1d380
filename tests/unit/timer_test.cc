// timer_test.cc - the timer heap against an ordered list, over seeded random operations.
#include "sched/timer.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>

#include <map>
#include <random>
#include <thread>
#include <vector>

using namespace weft;

namespace {

struct Node : Timer {
  int id = 0;
  bool live = false;
};
std::vector<int>* fired;
void on_fire(Timer* t) { fired->push_back(static_cast<Node*>(t)->id); }

unsigned seed() {
  const char* s = getenv("WEFT_TEST_SEED");
  unsigned v = s != nullptr ? static_cast<unsigned>(atoi(s)) : std::random_device{}();
  fprintf(stderr, "seed %u\n", v);
  return v;
}

}  // namespace

Test(timer, agrees_with_an_ordered_list) {
  std::mt19937 rng(seed());
  auto heap = new TimerHeap;
  std::vector<int> order;
  fired = &order;
  constexpr int kNodes = 1500;
  std::vector<Node> nodes(kNodes);
  std::multimap<uint64_t, int> reference;
  uint64_t now = 1000;
  for (int step = 0; step < 200000; step++) {
    int i = static_cast<int>(rng() % kNodes);
    Node& n = nodes[static_cast<size_t>(i)];
    uint32_t what = rng() % 100;
    if (what < 60 && !n.live) {
      n.id = i;
      n.fire = on_fire;
      n.deadline_ns = now + rng() % 5000;
      bool first = reference.empty() || n.deadline_ns < reference.begin()->first;
      cr_assert_eq(heap->add(&n), first);
      n.live = true;
      reference.emplace(n.deadline_ns, i);
    } else if (what < 85 && n.live) {
      cr_assert(TimerHeap::del(&n));
      n.live = false;
      for (auto it = reference.lower_bound(n.deadline_ns);; ++it)
        if (it->second == i) {
          reference.erase(it);
          break;
        }
    } else if (what >= 97) {
      now += rng() % 800;
      order.clear();
      int ran = heap->run(now);
      cr_assert_eq(static_cast<size_t>(ran), order.size());
      uint64_t last = 0;
      for (int id : order) {
        Node& f = nodes[static_cast<size_t>(id)];
        cr_assert(f.live && f.deadline_ns <= now && f.deadline_ns >= last);
        last = f.deadline_ns;
        f.live = false;
        cr_assert_not(TimerHeap::del(&f));
      }
      auto end = reference.upper_bound(now);
      cr_assert_eq(static_cast<size_t>(std::distance(reference.begin(), end)), order.size());
      reference.erase(reference.begin(), end);
    }
    cr_assert_eq(heap->size(), reference.size());
    cr_assert_eq(heap->earliest(), reference.empty() ? kNever : reference.begin()->first);
  }
}

Test(timer, del_of_a_timer_never_added_is_harmless) {
  Node n;
  cr_assert_not(TimerHeap::del(&n));
}

// Once del has returned, fire is neither running nor to come: the node may go.
Test(timer, fire_and_del_race_to_exactly_one_winner, .timeout = 60) {
  struct Shot : Timer {
    std::atomic<int> fired{0};
  };
  auto heap = new TimerHeap;
  std::atomic<bool> stop{false};
  std::thread runner([&] {
    while (!stop) heap->run(10);
  });
  int by_fire = 0, by_del = 0;
  for (int i = 0; i < 100000; i++) {
    Shot s;
    s.deadline_ns = 5;
    s.fire = [](Timer* t) { static_cast<Shot*>(t)->fired++; };
    heap->add(&s);
    for (int k = i % 50; k > 0; k--) cpu_relax();
    bool mine = TimerHeap::del(&s);
    cr_assert_eq(s.fired.load() + (mine ? 1 : 0), 1);
    (mine ? by_del : by_fire)++;
  }
  stop = true;
  runner.join();
  cr_assert_eq(by_fire + by_del, 100000);
}

// gfutex_test.cc - waiting by address: Gs and foreign threads alike, in every mix.
#include "sched/gfutex.h"

#include <criterion/criterion.h>
#include <errno.h>

#include <thread>
#include <vector>

#include "tests/unit/fake_host.h"

using namespace weft;

namespace {

using Word = std::atomic<uint32_t>;

// Wakes until `n` waiters in all were woken: they may not wait yet when we first look.
bool wake_all(Word* w, uint32_t n) {
  uint32_t woken = 0;
  return wait_until([&] { return (woken += gfutex_wake(w, ~0u)) >= n; }) && woken == n;
}

}  // namespace

Test(gfutex, a_changed_word_is_not_waited_for) {
  boot(1);
  Word w{1};
  cr_assert_eq(gfutex_wait(&w, 0, kNever, Wait::kFutex), -EAGAIN);
  Latch l(1);
  go([&] {
    EXPECT(gfutex_wait(&w, 0, kNever, Wait::kFutex) == -EAGAIN);
    l.done();
  });
  l.wait();
  cr_assert_eq(fake::failures(), 0);
}

Test(gfutex, a_deadline_ends_the_wait_of_a_g_and_of_a_foreign_thread) {
  boot(2);
  Word w{0};
  uint64_t t0 = host_now_ns();
  cr_assert_eq(gfutex_wait(&w, 0, t0 + 20'000'000, Wait::kFutex), -ETIMEDOUT);
  cr_assert_geq(host_now_ns(), t0 + 20'000'000);
  Latch l(1);
  go([&] {
    uint64_t t1 = host_now_ns();
    EXPECT(gfutex_wait(&w, 0, t1 + 20'000'000, Wait::kFutex) == -ETIMEDOUT);
    EXPECT(host_now_ns() >= t1 + 20'000'000);
    EXPECT(gfutex_wait(&w, 0, 1, Wait::kFutex) == -ETIMEDOUT);  // long past
    l.done();
  });
  l.wait();
  cr_assert_eq(gfutex_wake(&w, 10), 0u);
  cr_assert_eq(fake::failures(), 0);
}

Test(gfutex, a_g_wakes_a_foreign_thread_and_a_foreign_thread_a_g) {
  boot(2);
  Word a{0}, b{0};
  go([&] {
    EXPECT(gfutex_wait(&a, 0, kNever, Wait::kFutex) == 0);
    EXPECT(wake_all(&b, 1));
  });
  cr_assert(wake_all(&a, 1));
  cr_assert_eq(gfutex_wait(&b, 0, kNever, Wait::kFutex), 0);
  cr_assert_eq(fake::failures(), 0);
}

Test(gfutex, wake_n_wakes_n_in_order_of_arrival) {
  boot(1);
  Word w{0};
  Word woken[6] = {};
  Latch l(6);
  std::atomic<int> at{0};
  for (int i = 0; i < 6; i++)
    go([&, i] {
      EXPECT(gfutex_wait(&w, 0, kNever, Wait::kFutex) == 0);
      woken[i] = static_cast<uint32_t>(++at);
      l.done();
    });
  cr_assert(wait_until([&] {
    uint32_t n = 0;
    for (G* g = all_gs_first(); g != nullptr; g = g->all_next) n += g_state(g) == GState::kWaiting;
    return n == 6;
  }));
  cr_assert_eq(gfutex_wake(&w, 2), 2u);
  cr_assert(wait_until([&] { return at == 2; }));
  cr_assert_eq(gfutex_wake(&w, 3), 3u);
  cr_assert(wait_until([&] { return at == 5; }));
  cr_assert_eq(gfutex_wake(&w, 3), 1u);
  l.wait();
  for (int i = 1; i < 6; i++) {
    bool same_batch = (i < 2) || (i >= 3 && i < 5);
    if (!same_batch) cr_assert_gt(woken[i].load(), woken[i - 1].load());
  }
  cr_assert_eq(fake::failures(), 0);
}

Test(gfutex, a_bitset_chooses_who_wakes) {
  boot(2);
  Word w{0}, woken{0};
  for (uint32_t bit : {1u, 2u})
    go([&, bit] {
      EXPECT(gfutex_wait(&w, 0, kNever, Wait::kFutex, false, bit) == 0);
      woken |= bit;
    });
  cr_assert(wait_until([&] { return gfutex_wake(&w, 5, 2) == 1; }));
  cr_assert(wait_until([&] { return woken == 2; }));
  cr_assert(wait_until([&] { return gfutex_wake(&w, 5, 1) == 1; }));
  cr_assert(wait_until([&] { return woken == 3; }));
  cr_assert_eq(gfutex_wake(&w, 5), 0u);
  cr_assert_eq(fake::failures(), 0);
}

Test(gfutex, requeue_wakes_some_and_moves_the_rest) {
  boot(2);
  Word a{0}, b{0};
  std::atomic<int> out{0};
  for (int i = 0; i < 5; i++)
    go([&] {
      EXPECT(gfutex_wait(&a, 0, kNever, Wait::kCond) == 0);
      out++;
    });
  cr_assert(wait_until([&] {
    uint32_t n = 0;
    for (G* g = all_gs_first(); g != nullptr; g = g->all_next) n += g_state(g) == GState::kWaiting;
    return n == 5;
  }));
  WakeResult r;
  cr_assert_eq(gfutex_requeue(&a, 1, &b, 9, &a, 7, &r), -EAGAIN);
  cr_assert_eq(gfutex_requeue(&a, 1, &b, 3, &a, 0, &r), 0);
  cr_assert_eq(r.woken, 1u);
  cr_assert_eq(r.requeued, 3u);
  cr_assert(wait_until([&] { return out == 1; }));
  cr_assert_eq(gfutex_wake(&b, 9), 3u);
  cr_assert_eq(gfutex_wake(&a, 9), 1u);
  cr_assert(wait_until([&] { return out == 5; }));
  cr_assert_eq(fake::failures(), 0);
}

// A waiter that times out after it was moved must leave the queue that it was moved to.
Test(gfutex, a_moved_waiter_may_time_out) {
  boot(2);
  Word a{0}, b{0};
  Latch l(2);
  auto body = [&] {
    EXPECT(gfutex_wait(&a, 0, host_now_ns() + 50'000'000, Wait::kCond) == -ETIMEDOUT);
    l.done();
  };
  go(body);
  std::thread foreign(body);
  uint32_t moved = 0;
  cr_assert(wait_until([&] {
    WakeResult r;
    gfutex_requeue(&a, 0, &b, 9, nullptr, 0, &r);
    return (moved += r.requeued) == 2;
  }));
  l.wait();
  foreign.join();
  cr_assert_eq(gfutex_wake(&b, 9), 0u);
  cr_assert_eq(fake::failures(), 0);
}

Test(gfutex, an_interrupt_ends_an_interruptible_wait_only) {
  boot(2);
  Word w{0};
  Latch l(1);
  std::atomic<G*> g{nullptr};
  go([&] {
    g = t_g;
    EXPECT(gfutex_wait(&w, 0, kNever, Wait::kFutex, true) == -EINTR);
    EXPECT(gfutex_wait(&w, 0, kNever, Wait::kFutex, false) == 0);
    l.done();
  });
  cr_assert(wait_until([&] { return g.load() != nullptr && park_interrupt(g, kAttSignal); }));
  cr_assert(wait_until([&] { return g_state(g) == GState::kWaiting; }));
  cr_assert_not(park_interrupt(g, kAttSignal));
  cr_assert(wake_all(&w, 1));
  l.wait();
  cr_assert_eq(fake::failures(), 0);
}

Test(gfutex, wake_one_decides_under_the_lock_with_the_waiter_in_hand) {
  boot(2);
  Word w{0};
  std::atomic<int> handed{0};
  auto body = [&] {
    Waiter me;
    if (!gfutex_enqueue(&me, &w, Wait::kMutex, false, nullptr, nullptr)) return;
    EXPECT(gfutex_sleep(&me, kNever) == 0);
    EXPECT(me.handed);
    handed++;
  };
  go(body);
  std::thread foreign(body);
  struct Seen {
    int woken = 0, last = 0;
  } seen;
  auto decide = [](Waiter* x, bool more, void* arg) {
    auto* s = static_cast<Seen*>(arg);
    if (x == nullptr) return true;
    x->handed = true;
    s->woken++;
    s->last = more;
    return true;
  };
  cr_assert(wait_until([&] {
    gfutex_wake_one(&w, decide, &seen);
    return seen.woken == 2;
  }));
  cr_assert_eq(seen.last, 0);
  foreign.join();
  cr_assert(wait_until([&] { return handed == 2; }));
  cr_assert_not(gfutex_wake_one(&w, decide, &seen));
  cr_assert_eq(fake::failures(), 0);
}

// A lock and a counter, Gs and foreign threads mixed, with timed waits that race wakes.
static void contend(uint32_t procs) {
  boot(procs);
  fake::Mutex mu;
  uint64_t counter = 0;
  Latch l(40);
  for (int i = 0; i < 40; i++)
    go([&] {
      for (int k = 0; k < 500; k++) {
        mu.lock();
        counter++;
        mu.unlock();
        if (k % 16 == 0) {
          Word w{0};
          gfutex_wait(&w, 0, host_now_ns() + 1000, Wait::kSleep);
        }
      }
      l.done();
    });
  std::vector<std::thread> foreign;
  for (int i = 0; i < 4; i++)
    foreign.emplace_back([&] {
      for (int k = 0; k < 500; k++) {
        mu.lock();
        counter++;
        mu.unlock();
      }
    });
  for (auto& t : foreign) t.join();
  l.wait();
  cr_assert_eq(counter, 44u * 500);
}
Test(gfutex, contended_with_1_proc, .timeout = 60) { contend(1); }
Test(gfutex, contended_with_2_procs, .timeout = 60) { contend(2); }
Test(gfutex, contended_with_8_procs, .timeout = 60) { contend(8); }

// Timeouts and wakes race for the same waiter: each wait ends once, and a wake that says
// it woke somebody did.
static void race(uint32_t procs) {
  boot(procs);
  Word w{0};
  std::atomic<uint32_t> got{0}, ended{0};
  std::atomic<bool> stop{false};
  Latch l(8);
  for (int i = 0; i < 8; i++)
    go([&, i] {
      for (int k = 0; k < 400; k++) {
        int r = gfutex_wait(&w, 0, host_now_ns() + static_cast<uint64_t>(k * 37 % 3000 + i), Wait::kFutex);
        EXPECT(r == 0 || r == -ETIMEDOUT);
        if (r == 0) got++;
        ended++;
      }
      l.done();
    });
  uint32_t sent = 0;
  while (l.left() != 0) sent += gfutex_wake(&w, 2);
  l.wait();
  cr_assert_eq(ended.load(), 8u * 400);
  cr_assert_eq(got.load(), sent);
  cr_assert_eq(fake::failures(), 0);
}
Test(gfutex, timeouts_race_wakes_with_1_proc, .timeout = 60) { race(1); }
Test(gfutex, timeouts_race_wakes_with_4_procs, .timeout = 60) { race(4); }

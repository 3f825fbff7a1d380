// atomic_wait_test.cc - family: C++20 atomic wait and notify, latch, barrier, semaphore.
//
// Behaviours: wait on int (a futex) and on wide and narrow types (libstdc++'s proxy words);
// notify_one and notify_all; latch, barrier with completion, counting_semaphore with
// timeouts; shared_mutex. All reach the kernel through syscall(SYS_futex).
// Invariant: every waiter returns once the value has changed and a notify followed.
#include <atomic>
#include <barrier>
#include <chrono>
#include <latch>
#include <mutex>
#include <semaphore>
#include <shared_mutex>
#include <thread>
#include <vector>

#include "abi.h"

using namespace std::chrono_literals;

template <typename T>
static void pass_values() {
  std::atomic<T> value{0};
  std::atomic<int> seen{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 10; i++)
    threads.emplace_back([&] {
      T last = 0;
      while (last < 50) {
        value.wait(last);
        T now = value.load();
        CHECK(now > last);
        last = now;
      }
      seen++;
    });
  for (int i = 1; i <= 50; i++) {
    value.store((T)i);
    value.notify_all();
    std::this_thread::yield();
  }
  for (auto &t : threads) t.join();
  CHECK_EQ(seen, 10);
}

static void wait_on_every_width(void **) {
  pass_values<int>();
  pass_values<unsigned>();
  pass_values<char>();
  pass_values<short>();
  pass_values<long>();
}

static void notify_one_ping_pong(void **) {
  std::atomic<int> turn{0};
  std::thread other([&] {
    for (int i = 0; i < 2000; i++) {
      turn.wait(0);
      turn = 0;
      turn.notify_one();
    }
  });
  for (int i = 0; i < 2000; i++) {
    turn = 1;
    turn.notify_one();
    turn.wait(1);
  }
  other.join();
  std::atomic_flag flag;
  std::thread setter([&] {
    flag.test_and_set();
    flag.notify_one();
  });
  flag.wait(false);
  setter.join();
}

static void latch_and_barrier(void **) {
  std::latch ready(20), go(1);
  std::atomic<int> phases{0};
  auto completion = [&]() noexcept { phases++; };
  std::barrier meet(20, completion);
  std::vector<std::thread> threads;
  for (int i = 0; i < 20; i++)
    threads.emplace_back([&, i] {
      ready.count_down();
      go.wait();
      for (int round = 0; round < 20; round++) {
        if (i % 5 == round % 5) std::this_thread::yield();
        meet.arrive_and_wait();
        CHECK(phases >= round + 1);
      }
    });
  ready.wait();
  go.count_down();
  for (auto &t : threads) t.join();
  CHECK_EQ(phases, 20);
}

static void counting_semaphore(void **) {
  std::counting_semaphore<100> items(0);
  std::binary_semaphore one(1);
  long sum = 0;
  CHECK(!items.try_acquire());
  CHECK(!items.try_acquire_for(5ms));
  CHECK(!items.try_acquire_until(std::chrono::steady_clock::now() + 5ms));
  std::vector<std::thread> threads;
  for (int i = 0; i < 10; i++)
    threads.emplace_back([&] {
      for (int n = 0; n < 100; n++) {
        items.acquire();
        one.acquire();
        sum++;
        one.release();
      }
    });
  for (int i = 0; i < 100; i++) items.release(10);
  for (auto &t : threads) t.join();
  CHECK_EQ(sum, 1000);
}

static void shared_mutex_and_timed(void **) {
  std::shared_mutex m;
  std::shared_timed_mutex timed;
  std::recursive_timed_mutex recursive;
  std::atomic<int> readers{0}, writers{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 12; i++)
    threads.emplace_back([&, i] {
      for (int n = 0; n < 100; n++) {
        if ((i + n) % 4 == 0) {
          std::unique_lock hold(m);
          CHECK_EQ(++writers, 1);
          CHECK_EQ(readers.load(), 0);
          std::this_thread::yield();
          writers--;
        } else {
          std::shared_lock hold(m);
          readers++;
          CHECK_EQ(writers.load(), 0);
          readers--;
        }
      }
    });
  for (auto &t : threads) t.join();
  std::unique_lock hold(timed);
  std::unique_lock hold_recursive(recursive);
  std::thread([&] {
    CHECK(!timed.try_lock_for(2ms));
    CHECK(!timed.try_lock_shared_until(std::chrono::system_clock::now() + 2ms));
    CHECK(!recursive.try_lock_for(2ms));
  }).join();
  CHECK(recursive.try_lock_for(2ms));
  recursive.unlock();
}

int main() {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(wait_on_every_width),
      cmocka_unit_test(notify_one_ping_pong),
      cmocka_unit_test(latch_and_barrier),
      cmocka_unit_test(counting_semaphore),
      cmocka_unit_test(shared_mutex_and_timed),
  };
  return cmocka_run_group_tests(tests, nullptr, nullptr);
}

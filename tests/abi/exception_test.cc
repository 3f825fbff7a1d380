// exception_test.cc - family: C++ exceptions and forced unwinding inside threads.
//
// Behaviours: throw, catch, rethrow with yields and blocking in between, current_exception
// and uncaught_exceptions per thread, exception_ptr across threads; pthread_exit runs the
// destructors of C++ frames and cleanup handlers, is not swallowed by catch of a type,
// passes through catch (...) that rethrows; std::thread, async, promise, condition variables.
// Invariant: an exception in flight belongs to one thread, wherever that thread runs.
#include <atomic>
#include <condition_variable>
#include <exception>
#include <future>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "abi.h"

struct Tagged : std::runtime_error {
  long id;
  explicit Tagged(long i) : std::runtime_error("tag " + std::to_string(i)), id(i) {}
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void block_a_little() {
  sched_yield();
  pthread_mutex_lock(&lock);
  sched_yield();
  pthread_mutex_unlock(&lock);
}

struct YieldsInDestructor {
  std::atomic<long> &count;
  ~YieldsInDestructor() {
    // Destructors run while the exception is in flight: switching here is the hard case.
    CHECK_EQ(std::uncaught_exceptions(), 1);
    block_a_little();
    CHECK_EQ(std::uncaught_exceptions(), 1);
    count++;
  }
};

static std::atomic<long> destroyed;

static __attribute__((noinline)) void throw_below(int depth, long id) {
  YieldsInDestructor guard{destroyed};
  if (depth == 0) throw Tagged(id);
  throw_below(depth - 1, id);
  asm volatile("" ::"r"(&guard) : "memory");
}

static void *throw_and_catch(void *arg) {
  long id = (long)arg;
  for (int round = 0; round < 10; round++) {
    CHECK_EQ(std::uncaught_exceptions(), 0);
    CHECK(!std::current_exception());
    try {
      try {
        throw_below(4, id);
      } catch (const Tagged &e) {
        block_a_little();
        CHECK_EQ(e.id, id);
        CHECK(std::current_exception() != nullptr);
        try {
          throw_below(2, id + 1000);
        } catch (const std::runtime_error &inner) {
          block_a_little();
          CHECK_EQ(dynamic_cast<const Tagged &>(inner).id, id + 1000);
        }
        block_a_little();
        throw;
      }
      CHECK(!"not reached");
    } catch (std::exception &e) {
      block_a_little();
      CHECK(e.what() == "tag " + std::to_string(id));
    }
  }
  return nullptr;
}

static void exceptions_with_switches_in_flight(void **) {
  enum { kThreads = 40 };
  pthread_t t[kThreads];
  destroyed = 0;
  for (long i = 0; i < kThreads; i++) t[i] = start(throw_and_catch, (void *)(i + 1));
  for (int i = 0; i < kThreads; i++) join(t[i]);
  CHECK_EQ(destroyed, kThreads * 10 * (5 + 3));
}

static void *fail_with(void *arg) {
  auto *slot = (std::exception_ptr *)arg;
  try {
    throw Tagged(99);
  } catch (...) {
    *slot = std::current_exception();
  }
  return nullptr;
}

static void exception_ptr_across_threads(void **) {
  for (int i = 0; i < 50; i++) {
    std::exception_ptr carried;
    join(start(fail_with, &carried));
    try {
      std::rethrow_exception(carried);
    } catch (const Tagged &e) {
      CHECK_EQ(e.id, 99);
    }
  }
}

// Forced unwinding.

static thread_local std::vector<int> *trail;
struct Mark {
  int what;
  ~Mark() {
    sched_yield();
    trail->push_back(what);
  }
};

static void cleanup(void *arg) { trail->push_back((int)(long)arg); }

static __attribute__((noinline)) void exit_inside(void *value) {
  Mark third{3};
  pthread_cleanup_push(cleanup, (void *)4L);
  Mark fifth{5};
  block_a_little();
  pthread_exit(value);
  pthread_cleanup_pop(0);
}

static void *exit_through_frames(void *arg) {
  trail = (std::vector<int> *)arg;
  Mark first{1};
  pthread_cleanup_push(cleanup, (void *)2L);
  try {
    exit_inside((void *)61);
  } catch (const std::exception &) {
    trail->push_back(-1);
  } catch (...) {
    trail->push_back(6);
    throw;
  }
  trail->push_back(-2);
  pthread_cleanup_pop(1);
  return nullptr;
}

static void pthread_exit_unwinds_cxx_frames(void **) {
  for (int round = 0; round < 30; round++) {
    std::vector<int> trails[8];
    pthread_t t[8];
    for (int i = 0; i < 8; i++) t[i] = start(exit_through_frames, &trails[i]);
    for (int i = 0; i < 8; i++) {
      CHECK(join(t[i]) == (void *)61);
      CHECK(trails[i] == (std::vector<int>{5, 4, 3, 6, 2, 1}));
    }
  }
}

static void *exit_after_handled(void *) {
  try {
    throw Tagged(1);
  } catch (...) {
  }
  pthread_exit((void *)5);
}

static void pthread_exit_after_an_exception(void **) {
  for (int i = 0; i < 100; i++) CHECK(join(start(exit_after_handled, nullptr)) == (void *)5);
}

static int escape(void *) {
  fclose(stderr);
  signal(SIGABRT, SIG_DFL);
  std::thread([] { throw Tagged(3); }).join();
  return 1;
}

static void *escape_pthread(void *) { throw Tagged(4); }
static int escape_from_pthread(void *) {
  fclose(stderr);
  signal(SIGABRT, SIG_DFL);
  join(start(escape_pthread, nullptr));
  return 1;
}

static int own_terminate(void *) {
  std::set_terminate([] { _exit(33); });
  join(start(escape_pthread, nullptr));
  return 1;
}

static void uncaught_exception_terminates(void **) {
  CHECK_EQ(death_signal(in_child(escape, nullptr)), SIGABRT);
  CHECK_EQ(death_signal(in_child(escape_from_pthread, nullptr)), SIGABRT);
  CHECK_EQ(exit_code(in_child(own_terminate, nullptr)), 33);
}

// The standard library's own threads, on top.

static void std_thread_and_ids(void **) {
  std::atomic<int> sum{0};
  std::vector<std::thread> threads;
  std::mutex m;
  std::vector<std::thread::id> ids;
  for (int i = 1; i <= 50; i++)
    threads.emplace_back([&, i] {
      sum += i;
      std::lock_guard hold(m);
      ids.push_back(std::this_thread::get_id());
    });
  for (auto &t : threads) t.join();
  CHECK_EQ(sum, 1275);
  CHECK_EQ(ids.size(), 50);
  std::thread detached;
  std::promise<int> done;
  std::thread([&] { done.set_value_at_thread_exit(17); }).detach();
  CHECK_EQ(done.get_future().get(), 17);
  CHECK(!detached.joinable());
}

static int fibonacci(int n) {
  if (n < 2) return n;
  auto left = std::async(std::launch::async, fibonacci, n - 1);
  int right = fibonacci(n - 2);
  return left.get() + right;
}

static void std_async_and_future_exceptions(void **) {
  CHECK_EQ(fibonacci(11), 89);
  for (int i = 0; i < 30; i++) {
    auto f = std::async(std::launch::async, [i]() -> int { throw Tagged(i); });
    try {
      f.get();
      CHECK(!"not reached");
    } catch (const Tagged &e) {
      CHECK_EQ(e.id, i);
    }
  }
}

static void std_condition_variables(void **) {
  std::mutex m;
  std::condition_variable cv;
  std::condition_variable_any any;
  int turn = 0;
  std::thread other([&] {
    for (int i = 0; i < 200; i++) {
      std::unique_lock hold(m);
      cv.wait(hold, [&] { return turn == 1; });
      turn = 0;
      any.notify_one();
    }
  });
  for (int i = 0; i < 200; i++) {
    std::unique_lock hold(m);
    turn = 1;
    cv.notify_one();
    any.wait(hold, [&] { return turn == 0; });
  }
  other.join();
  std::unique_lock hold(m);
  CHECK(cv.wait_for(hold, std::chrono::milliseconds(5)) == std::cv_status::timeout);
  std::jthread stopping([](std::stop_token stop) {
    while (!stop.stop_requested()) std::this_thread::yield();
  });
  stopping.request_stop();
}

static void std_call_once_with_exception(void **) {
  std::once_flag flag;
  std::atomic<int> tries{0}, done{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 16; i++)
    threads.emplace_back([&] {
      try {
        std::call_once(flag, [&] {
          std::this_thread::yield();
          if (++tries < 4) throw Tagged(tries);
          done++;
        });
      } catch (const Tagged &) {
      }
    });
  for (auto &t : threads) t.join();
  CHECK_EQ(tries, 4);
  CHECK_EQ(done, 1);
}

int main() {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(exceptions_with_switches_in_flight),
      cmocka_unit_test(exception_ptr_across_threads),
      cmocka_unit_test(pthread_exit_unwinds_cxx_frames),
      cmocka_unit_test(pthread_exit_after_an_exception),
      cmocka_unit_test(uncaught_exception_terminates),
      cmocka_unit_test(std_thread_and_ids),
      cmocka_unit_test(std_async_and_future_exceptions),
      cmocka_unit_test(std_condition_variables),
      cmocka_unit_test(std_call_once_with_exception),
  };
  return cmocka_run_group_tests(tests, nullptr, nullptr);
}

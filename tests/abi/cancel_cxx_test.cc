// cancel_cxx_test.cc - family: cancellation through C++ frames.
//
// Behaviours: destructors of all frames run, in order, with C cleanup handlers and cleanup
// attributes between them; catch of a type is passed by, catch (...) with rethrow runs;
// destructors that block and that throw and catch inside; thread_local destructors after;
// std::thread's body cancelled; swallowed and noexcept cancellations end the process.
// Invariant: a cancelled thread leaves no frame without having unwound it.
#include <atomic>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "abi.h"

static std::atomic<int> phase, alive;
static std::string *trail;

struct Mark {
  char c;
  explicit Mark(char mark) : c(mark) { alive++; }
  ~Mark() {
    struct timespec tiny = to_timespec(1000);
    nanosleep(&tiny, nullptr);  // a cancellation point, inside the unwinding
    try {
      throw std::runtime_error("inside a destructor");
    } catch (const std::exception &) {
      sched_yield();
    }
    trail->push_back(c);
    alive--;
  }
};

static void note(void *c) { trail->push_back((char)(intptr_t)c); }
static void note_attribute(int *c) { trail->push_back((char)*c); }

static int pipe_ends[2];
static __attribute__((noinline)) void block_in_read() {
  Mark e('e');
  std::vector<std::unique_ptr<Mark>> many;
  many.push_back(std::make_unique<Mark>('m'));
  char c;
  phase = 1;
  if (read(pipe_ends[0], &c, 1) != 1) abort();
}

static __attribute__((noinline)) void middle() {
  Mark c('c');
  pthread_cleanup_push(note, (void *)(intptr_t)'d');
  try {
    block_in_read();
  } catch (const std::exception &) {
    trail->push_back('!');
  } catch (...) {
    trail->push_back('x');
    throw;
  }
  pthread_cleanup_pop(0);
}

struct AtThreadEnd {
  bool used = false;
  ~AtThreadEnd() {
    if (used) trail->push_back('z');
  }
};
static thread_local AtThreadEnd at_thread_end;

static void *outer(void *) {
  at_thread_end.used = true;
  Mark a('a');
  __attribute__((cleanup(note_attribute))) int b = 'b';
  std::string text(1000, 'q');
  middle();
  return nullptr;
}

static void frames_unwind_in_order(void **) {
  CHECK_OK(pipe(pipe_ends));
  for (int i = 0; i < 50; i++) {
    std::string seen;
    trail = &seen;
    phase = 0;
    pthread_t t = start(outer, nullptr);
    AWAIT(phase == 1);
    if (i & 1) yield_some(20);
    CHECK_OK(pthread_cancel(t));
    CHECK(join(t) == PTHREAD_CANCELED);
    if (seen != "mexdcbaz") dprintf(2, "%s\n", seen.c_str());
    CHECK(seen == "mexdcbaz");
    CHECK_EQ(alive, 0);
  }
}

static pthread_mutex_t mutex = PTHREAD_ERRORCHECK_MUTEX_INITIALIZER_NP;
static pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
static std::atomic<int> waiting;

struct Lock {
  Lock() { CHECK_OK(pthread_mutex_lock(&mutex)); }
  ~Lock() { CHECK_OK(pthread_mutex_unlock(&mutex)); }
};

static void *wait_with_raii(void *) {
  Lock hold;
  waiting++;
  for (;;) pthread_cond_wait(&cond, &mutex);
}

static void raii_lock_around_a_cancelled_wait(void **) {
  for (int round = 0; round < 10; round++) {
    pthread_t t[20];
    waiting = 0;
    for (auto &x : t) x = start(wait_with_raii, nullptr);
    AWAIT(waiting == 20);
    for (auto &x : t) CHECK_OK(pthread_cancel(x));
    CHECK_OK(pthread_cond_broadcast(&cond));
    for (auto &x : t) CHECK(join(x) == PTHREAD_CANCELED);
    CHECK_OK(pthread_mutex_trylock(&mutex));
    CHECK_OK(pthread_mutex_unlock(&mutex));
  }
}

static void std_thread_cancelled(void **) {
  for (int i = 0; i < 20; i++) {
    std::string seen;
    trail = &seen;
    phase = 0;
    alive = 0;
    std::thread t([] {
      Mark a('1');
      char c;
      phase = 1;
      if (read(pipe_ends[0], &c, 1) != 1) abort();
    });
    AWAIT(phase == 1);
    CHECK_OK(pthread_cancel(t.native_handle()));
    t.join();
    CHECK(seen == "1");
  }
}

// Swallowing a cancellation is an error that the runtime reports by ending the process.
static void *swallow(void *) {
  try {
    phase = 1;
    for (;;) pause();
  } catch (...) {
  }
  return nullptr;
}
static int run_swallow(void *) {
  fclose(stderr);
  close(2);
  signal(SIGABRT, SIG_DFL);
  pthread_t t = start(swallow, nullptr);
  pthread_cancel(t);
  join(t);
  return 1;
}
static void swallowed_cancellation_aborts(void **) {
  CHECK_EQ(death_signal(in_child(run_swallow, nullptr)), SIGABRT);
}

static void *throw_in_noexcept(void *) {
  []() noexcept {
    phase = 1;
    for (;;) pause();
  }();
  return nullptr;
}
static int run_noexcept(void *) {
  fclose(stderr);
  close(2);
  signal(SIGABRT, SIG_DFL);
  pthread_t t = start(throw_in_noexcept, nullptr);
  pthread_cancel(t);
  join(t);
  return 1;
}
static void cancellation_through_noexcept_terminates(void **) {
  CHECK_EQ(death_signal(in_child(run_noexcept, nullptr)), SIGABRT);
}

int main() {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(frames_unwind_in_order),
      cmocka_unit_test(raii_lock_around_a_cancelled_wait),
      cmocka_unit_test(std_thread_cancelled),
      cmocka_unit_test(swallowed_cancellation_aborts),
      cmocka_unit_test(cancellation_through_noexcept_terminates),
  };
  return cmocka_run_group_tests(tests, nullptr, nullptr);
}

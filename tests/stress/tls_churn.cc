// tls_churn.cc - stress: TLS, thread_local objects, TSD, exceptions and memory under churn.
//
// Invariants checked: every new thread sees initial TLS values; objects constructed = objects
// destroyed; errno and TLS are kept over every switch; memory freed by other threads stays
// whole; exceptions in flight stay with their thread. Usage: tls_churn [seed [seconds]].
#include <atomic>
#include <deque>
#include <mutex>
#include <stdexcept>
#include <string>

#include "stress.h"

static std::atomic<long> constructed, destroyed, threads, exceptions;

struct Counted {
  std::string text;
  Counted() : text("initial text that does not fit inside the object") { constructed++; }
  ~Counted() { destroyed++; }
};

static __thread long number = 987;
static __thread char bytes[5000];
static __thread long *pointer;
static thread_local Counted object;
static Counted &lazy() {
  static thread_local Counted it;
  return it;
}

static std::mutex heap_lock;
static std::deque<std::string *> heap;

static void exchange_memory(Random *r, long id) {
  auto *mine = new std::string((size_t)below(r, 3000) + 1, (char)('a' + id % 26));
  std::string *theirs = nullptr;
  {
    std::lock_guard hold(heap_lock);
    heap.push_back(mine);
    if (heap.size() > 200) {
      theirs = heap.front();
      heap.pop_front();
    }
  }
  if (!theirs) return;
  for (char c : *theirs) CHECK_EQ(c, theirs->front());
  delete theirs;
}

static __attribute__((noinline)) void throw_below(Random *r, int depth, long id) {
  std::string local(50, 'x');
  if (depth == 0) throw std::runtime_error(std::to_string(id));
  if (below(r, 3) == 0) sched_yield();
  throw_below(r, depth - 1, id);
  asm volatile("" ::"r"(local.data()) : "memory");
}

static void check_fresh() {
  CHECK_EQ(number, 987);
  for (size_t i = 0; i < sizeof bytes; i += 97) CHECK_EQ(bytes[i], 0);
  CHECK(pointer == nullptr);
  CHECK_EQ(errno, 0);
}

static void *churn(void *arg) {
  long id = (long)arg;
  Random r = random_stream((uint64_t)id);
  check_fresh();
  number = id;
  memset(bytes, (int)id | 1, sizeof bytes);
  pointer = &number;
  int my_errno = (int)(id % 130) + 1;
  errno = my_errno;
  if (below(&r, 2)) {
    CHECK(object.text[0] == 'i');
    object.text = "changed by " + std::to_string(id) + " to something else that is long";
  }
  if (below(&r, 3) == 0) {
    CHECK(lazy().text[1] == 'n');
    lazy().text.assign(500, 'l');
  }
  for (int i = below(&r, 20); i > 0; i--) {
    switch (below(&r, 4)) {
      case 0: sched_yield(); break;
      case 1: exchange_memory(&r, id); break;
      case 2:
        try {
          throw_below(&r, 3, id);
        } catch (const std::exception &e) {
          sched_yield();
          CHECK_EQ(atol(e.what()), id);
          exceptions++;
        }
        break;
      default: {
        struct timespec tiny = to_timespec(below(&r, 20000));
        nanosleep(&tiny, nullptr);
      }
    }
    CHECK_EQ(errno, my_errno);
    CHECK(number == id && pointer == &number);
    CHECK_EQ(bytes[4999], (char)((int)id | 1));
  }
  threads++;
  if (below(&r, 4) == 0) pthread_exit(arg);
  return arg;
}

static void *run_waves(void *arg) {
  Random r = random_stream(100000 + (uint64_t)(uintptr_t)arg);
  for (long wave = 0; time_left(); wave++) {
    pthread_t t[30];
    int n = below(&r, 30) + 1;
    for (long i = 0; i < n; i++) t[i] = start(churn, (void *)(((long)(uintptr_t)arg * 1000000 + wave * 30 + i) | 1));
    for (int i = 0; i < n; i++) CHECK(join(t[i]) == (void *)(((long)(uintptr_t)arg * 1000000 + wave * 30 + i) | 1));
  }
  return nullptr;
}

int main(int argc, char **argv) {
  pthread_t t[4];
  stress_begin(argc, argv, 5);
  for (long i = 0; i < 4; i++) t[i] = start(run_waves, (void *)i);
  for (int i = 0; i < 4; i++) join(t[i]);
  CHECK_EQ(constructed.load(), destroyed.load());
  for (auto *s : heap) delete s;
  printf("%ld threads, %ld objects, %ld exceptions, nothing seen twice\n", threads.load(), constructed.load(), exceptions.load());
  return 0;
}

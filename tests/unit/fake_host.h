// fake_host.h - the engine under test, on kernel threads of libc and with no preload/.
//
// boot() makes the calling thread G1 or leaves it foreign; go() starts a G. A G's TCB and
// TLS are libc's own (as in preload/tcb.cc, less its care for recycling), so code on a G
// may use libc. Criterion runs each test in a process of its own: boot once per test.
//
// Criterion's assertions belong on the thread that runs the test: Gs report through
// expect() and the test asks failures() at its end.
#pragma once

#include <functional>

#include "sched/gfutex.h"
#include "sched/stack.h"
#include "sched/syscall.h"
#include "sched/sysmon.h"

namespace fake {

enum class Caller { kForeign, kG1 };

void boot(uint32_t procs, Caller caller = Caller::kForeign);
// Only the probe for the TCB layout: for tests of slots without a scheduler.
void probe();
// A G that runs f. Safe from a G and from a foreign thread.
weft::G* go(std::function<void()> f, size_t stack_bytes = 64 << 10);

// Counts to zero; wait() works for Gs and foreign threads (it is a gfutex).
class Latch {
 public:
  explicit Latch(uint32_t n) : n_(n) {}
  void done() {
    if (n_.fetch_sub(1) == 1) weft::gfutex_wake(&n_, ~0u);
  }
  void wait() {
    for (uint32_t v; (v = n_.load()) != 0;) weft::gfutex_wait(&n_, v, weft::kNever, weft::Wait::kFutex);
  }
  uint32_t left() const { return n_.load(); }

 private:
  std::atomic<uint32_t> n_;
};

// Waits for an event that another thread brings about; false after about 10 s.
bool wait_until(const std::function<bool()>& event);

// A plain lock over gfutex, as preload's mutex is one: 0 free, 1 held, 2 with waiters.
class Mutex {
 public:
  void lock();
  void unlock();

 private:
  std::atomic<uint32_t> w_{0};
};

// Notes a failed condition, with where; counted, first one printed.
void expect_at(bool ok, const char* what, int line);
int failures();
#define EXPECT(cond) ::fake::expect_at((cond), #cond, __LINE__)

// The host calls made so far, for tests that ask whether the engine made one.
extern std::atomic<uint32_t> kernel_threads_started;
extern std::atomic<uint32_t> attentions;
extern std::atomic<uint64_t> clock_reads;

}  // namespace fake

// The words of the tests.
using fake::boot;
using fake::go;
using fake::Latch;
using fake::wait_until;

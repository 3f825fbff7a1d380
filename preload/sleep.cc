// sleep.cc - nanosleep, clock_nanosleep, usleep, sleep, thrd_sleep, sched_yield, thrd_yield.
//
// A sleeping G is a timer and nothing else. Absolute sleeps on clocks that can be set are
// cut into pieces of a second, so that a set clock is noticed; processor-time and alarm
// clocks are the kernel's business (syscall protocol). A handler ends a sleep with EINTR
// always; SA_RESTART does not apply.
#include <threads.h>
#include <time.h>
#include <unistd.h>

#include "preload/io_fd.h"
#include "preload/io_signal.h"

namespace weft {
namespace {

constexpr uint32_t kAskKernelEvery = 64;
// Threads of a P that yield to each other may wait for one on an M that has no core but this
// M's: then each step took a slice of the kernel's (LLVM's OpenMP barrier, another program on the
// second core: up to 3.8 s, natively and now 1.4). Some 70 us of yields.
constexpr uint32_t kAskAmongEvery = 1024;
constexpr uint64_t kSecondNs = 1'000'000'000;

Reason sleep_until(uint64_t deadline) {
  G* g = t_g;
  for (;;) {
    SignalMark mark = signal_mark();
    Reason r = Reason::kTimeout;
    engine_enter(g);
    if (deadline > host_now_ns() || g->wired) r = park_sleep(g, deadline, Wait::kSleep, true);
    else yield(false);
    engine_exit(g);
    if (r == Reason::kTimeout || !io_wait_after_interrupt(mark)) return r;
  }
}

struct timespec left_until(uint64_t deadline) {
  uint64_t now = host_now_ns();
  uint64_t left = deadline > now ? deadline - now : 0;
  return {static_cast<time_t>(left / kSecondNs), static_cast<long>(left % kSecondNs)};
}

// 0 or an error number, as clock_nanosleep.
int sleep_for(const struct timespec* req, struct timespec* rem) {
  cancel_point();  // before what the kernel would look at
  if (bad_pointer(req)) return EFAULT;
  if (!timespec_ok(req) || req->tv_sec < 0) return EINVAL;
  uint64_t deadline = deadline_in(req);
  if (sleep_until(deadline) == Reason::kTimeout) return 0;
  cancel_point();
  if (rem != nullptr) *rem = left_until(deadline);
  return EINTR;
}

int sleep_to(clockid_t clock, const struct timespec* at) {
  cancel_point();
  if (bad_pointer(at)) return EFAULT;
  if (!timespec_ok(at) || at->tv_sec < 0) return EINVAL;
  for (;;) {
    uint64_t deadline = deadline_from(clock, at);
    uint64_t now = host_now_ns();
    bool last = clock == CLOCK_MONOTONIC || deadline <= now + kSecondNs;
    if (sleep_until(last ? deadline : now + kSecondNs) != Reason::kTimeout) {
      cancel_point();
      return EINTR;
    }
    struct timespec t;
    clock_gettime(clock, &t);
    if (t.tv_sec > at->tv_sec || (t.tv_sec == at->tv_sec && t.tv_nsec >= at->tv_nsec)) return 0;
  }
}

int sleep_in_kernel(clockid_t clock, int flags, const struct timespec* req, struct timespec* rem) {
  cancel_point();
  long r = in_cancel_syscall_block(
      [&] { return sys_call(SYS_clock_nanosleep, clock, flags, sys_arg(req), sys_arg(rem)); });
  if (r == -EINTR) cancel_point();
  return static_cast<int>(-r);
}

}  // namespace
}  // namespace weft

using namespace weft;

WEFT_EXPORT int nanosleep(const struct timespec* req, struct timespec* rem) {
  if (this_g() == nullptr) return real().nanosleep(req, rem);
  int err = sleep_for(req, rem);
  return static_cast<int>(errno_ret(-err));
}

WEFT_EXPORT int clock_nanosleep(clockid_t clock, int flags, const struct timespec* req,
                                struct timespec* rem) {
  if (this_g() == nullptr) return real().clock_nanosleep(clock, flags, req, rem);
  if (clock == CLOCK_THREAD_CPUTIME_ID) return EINVAL;
  bool wall = clock == CLOCK_REALTIME || clock == CLOCK_TAI || clock == CLOCK_BOOTTIME;
  if (clock != CLOCK_MONOTONIC && !wall) return sleep_in_kernel(clock, flags, req, rem);
  return (flags & TIMER_ABSTIME) != 0 ? sleep_to(clock, req) : sleep_for(req, rem);
}

WEFT_EXPORT int usleep(useconds_t us) {
  if (this_g() == nullptr) return real().usleep(us);
  struct timespec t = {static_cast<time_t>(us / 1000000), static_cast<long>(us % 1000000) * 1000};
  return static_cast<int>(errno_ret(-sleep_for(&t, nullptr)));
}

WEFT_EXPORT unsigned sleep(unsigned seconds) {
  if (this_g() == nullptr) return real().sleep(seconds);
  struct timespec t = {static_cast<time_t>(seconds), 0}, rem = {0, 0};
  if (sleep_for(&t, &rem) == 0) return 0;
  return static_cast<unsigned>(rem.tv_sec) + (rem.tv_nsec >= 500000000);  // rounded, as libc
}

WEFT_EXPORT int thrd_sleep(const struct timespec* req, struct timespec* rem) {
  if (this_g() == nullptr) return real().thrd_sleep(req, rem);
  int err = sleep_for(req, rem);
  return err == 0 ? 0 : err == EINTR ? -1 : -2;
}

// With nobody else to run on this P the core goes to whoever the kernel finds: the thread
// that is waited for may be running on an M that lost its core.
WEFT_EXPORT int sched_yield() noexcept {
  G* g = this_g();
  if (g == nullptr) return real().sched_yield();
  engine_enter(g);
  P* p = g->m->p;
  bool others = p_has_work(p) || sched.globq_n.load(std::memory_order_relaxed) != 0;
  if (others) {  // before the switch: then nothing is kept across it
    if (WEFT_UNLIKELY(p->switches.load(std::memory_order_relaxed) % kAskAmongEvery == 0)) sys_sched_yield();
    yield(false);
  }
  engine_exit(g);
  // With a core for every P the others are running: the kernel is asked now and then only.
  static thread_local constinit uint32_t alone = 0;
  if (!others && (sched.crowded || ++alone % kAskKernelEvery == 0)) sys_sched_yield();
  return 0;
}

WEFT_EXPORT void thrd_yield() {
  sched_yield();
}

WEFT_TWIN(int, __nanosleep, nanosleep, (const struct timespec*, struct timespec*));
WEFT_TWIN(int, __sched_yield, sched_yield, ());
// The header turns pthread_yield into sched_yield; old binaries still ask for the name.
extern "C" __attribute__((visibility("default"), used, alias("sched_yield"))) int old_yield()
    noexcept __asm__("pthread_yield");

// cpuclock.cc - clocks: clock_gettime, gettimeofday, pthread_getcpuclockid, getrusage.
//
// A G's clock id has the kernel's form for threads, with the virtual tid in it: no kernel
// thread can have that number. Main's is its pid's, as natively. All other clocks stay
// libc's, at the speed of the vdso.
#include <string.h>
#include <sys/resource.h>
#include <sys/time.h>

#include "preload/allocator.h"
#include "preload/api.h"
#include "preload/ids.h"
#include "preload/thread.h"
#include "sched/cpuclock.h"

namespace weft {
namespace {

constexpr clockid_t kPerThread = 6;  // of the kernel's CPU clock ids: scheduler clock, thread

clockid_t clock_of(pid_t tid) {
  return static_cast<clockid_t>(~static_cast<unsigned>(tid) << 3) | kPerThread;
}

// The G whose clock it is; null: not one of ours.
G* g_of_clock(clockid_t c) {
  if (c == CLOCK_THREAD_CPUTIME_ID) return this_g();
  if (c >= 0 || (c & 7) != kPerThread) return nullptr;
  G* g = g_of_vtid(~(c >> 3));
  return g == nullptr || g->wired ? nullptr : g;
}

// Threads that are 1:1: the kernel's own clock.
clockid_t kernel_clock(clockid_t c) {
  if (c >= 0 || (c & 7) != kPerThread) return c;
  G* g = g_of_vtid(~(c >> 3));
  return g != nullptr && g->wired ? clock_of(g->m->tid.load(std::memory_order_relaxed)) : c;
}

// Loops that read the clock until something comes to pass are nearly always found in libc or
// in the vdso, where a G is not preempted: it makes way here.
inline void make_way_if_asked(const void* caller) {
  G* g = t_g;
  if (WEFT_LIKELY(g == nullptr || (g->attention.load(std::memory_order_relaxed) & (kAttPreempt | kAttMakeWay)) == 0))
    return;
  // Not where it is inside a system call's bracket, as far as the engine knows: the P may be gone.
  if (g_state(g) != GState::kRunning || from_allocator(caller)) return;
  int saved = errno;
  engine_enter(g);
  engine_exit(g);
  errno = saved;
}

}  // namespace
}  // namespace weft

using namespace weft;

WEFT_EXPORT int clock_gettime(clockid_t c, struct timespec* ts) noexcept {
  if (WEFT_LIKELY(c >= 0 && c != CLOCK_THREAD_CPUTIME_ID)) {
    int r = real().clock_gettime(c, ts);
    make_way_if_asked(__builtin_return_address(0));
    return r;
  }
  G* g = g_of_clock(c);
  if (g == nullptr) return real().clock_gettime(kernel_clock(c), ts);
  uint64_t ns = cpu_used(g);
  *ts = {static_cast<time_t>(ns / 1'000'000'000), static_cast<long>(ns % 1'000'000'000)};
  return 0;
}

WEFT_EXPORT int gettimeofday(struct timeval* tv, void* tz) noexcept {
  int r = real().gettimeofday(tv, tz);
  make_way_if_asked(__builtin_return_address(0));
  return r;
}
WEFT_TWIN(int, __gettimeofday, gettimeofday, (struct timeval*, void*) noexcept);

WEFT_EXPORT int clock_getres(clockid_t c, struct timespec* ts) noexcept {
  if (c < 0 && g_of_clock(c) != nullptr) c = CLOCK_THREAD_CPUTIME_ID;
  return real().clock_getres(c, ts);
}

WEFT_EXPORT int pthread_getcpuclockid(pthread_t pt, clockid_t* out) noexcept {
  G* g = g_of(pt);
  if (g == nullptr) return real().pthread_getcpuclockid(pt, out);
  if (!thread_of(g)->alive.load(std::memory_order_acquire)) return ESRCH;
  if (!g->wired) cpu_count_begin();
  *out = clock_of(static_cast<pid_t>(g->vtid));
  return 0;
}

// The kernel tells user from system time; of a G only the sum is known: all of it is user's.
WEFT_EXPORT int getrusage(__rusage_who_t who, struct rusage* ru) noexcept {
  int r = real().getrusage(who, ru);
  G* g = this_g();
  if (r != 0 || static_cast<int>(who) != RUSAGE_THREAD || g == nullptr) return r;
  uint64_t ns = cpu_used(g);
  ru->ru_utime = {static_cast<time_t>(ns / 1'000'000'000),
                  static_cast<suseconds_t>(ns % 1'000'000'000 / 1000)};
  ru->ru_stime = {0, 0};
  return 0;
}

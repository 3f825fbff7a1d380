// sigtimer.cc - timers that signal one thread (SIGEV_THREAD_ID).
//
// The kernel cannot aim at a G. Its timer aims at sysmon instead, with SIGSTKFLT and our
// record as value; from there it is routed to the G as the signal the program asked for.
// While that waits to be taken, further expirations are its overruns, as natively.
// A timer on the thread's own CPU clock makes the thread 1:1: then the kernel can do it.
// Timers of any other kind are libc's own business.
//
// A timer_t of libc's (since 2.34) is the kernel's number unless it is a SIGEV_THREAD one;
// so ours are usable with libc's timer_settime and timer_gettime.
#include <string.h>

#include "preload/api.h"
#include "preload/high_water.h"
#include "preload/ids.h"
#include "preload/signals.h"
#include "preload/thread.h"
#include "preload/wire.h"

namespace weft {
namespace {

constexpr uint32_t kMaxTimers = 1024;

struct Record {
  std::atomic<uint32_t> used{0};  // 0 free, 1 being made, 2 live
  int id = 0;
  G* g = nullptr;
  int sig = 0;
  union sigval value = {};
  std::atomic<uint32_t> queued{0};    // the signal is on its way or pending
  std::atomic<int> overruns{0};       // since it was queued
  std::atomic<int> last_overruns{0};  // of the one taken last: timer_getoverrun
};
Record records[kMaxTimers];
std::atomic<uint32_t> n_records{0};
HighWater records_used;

Record* record_of(const void* p) {
  auto at = reinterpret_cast<uintptr_t>(p), lo = reinterpret_cast<uintptr_t>(records);
  if (at < lo || at >= lo + sizeof records || (at - lo) % sizeof(Record) != 0) return nullptr;
  return &records[(at - lo) / sizeof(Record)];
}

Record* find(timer_t t) {
  if (n_records.load(std::memory_order_relaxed) == 0) return nullptr;
  auto id = static_cast<int>(reinterpret_cast<intptr_t>(t));
  for (Record& r : records)
    if (r.used.load(std::memory_order_acquire) == 2 && r.id == id) return &r;
  return nullptr;
}

// 0 or an error number.
int create(clockid_t clock, const struct sigevent* ev, G* g, timer_t* out) {
  if (ev->sigev_signo < 1 || ev->sigev_signo >= kSignals) return EINVAL;
  Record* r = nullptr;
  for (uint32_t i = 0; i < kMaxTimers && r == nullptr; i++) {
    records_used.reach(i);
    uint32_t free = 0;
    if (records[i].used.compare_exchange_strong(free, 1, std::memory_order_acquire)) r = &records[i];
  }
  if (r == nullptr) return EAGAIN;
  struct sigevent kev;
  memset(&kev, 0, sizeof kev);
  kev.sigev_notify = SIGEV_THREAD_ID;
  kev.sigev_signo = kHard;
  kev.sigev_value.sival_ptr = r;
  kev._sigev_un._tid = sched.sysmon_tid.load(std::memory_order_relaxed);
  r->g = g;
  r->sig = ev->sigev_signo;
  r->value = ev->sigev_value;
  r->queued.store(0, std::memory_order_relaxed);
  r->overruns.store(0, std::memory_order_relaxed);
  r->last_overruns.store(0, std::memory_order_relaxed);
  int id = 0;
  long err = sys_call(SYS_timer_create, clock, sys_arg(&kev), sys_arg(&id));
  if (err < 0) {
    r->used.store(0, std::memory_order_release);
    return static_cast<int>(-err);
  }
  r->id = id;
  n_records.fetch_add(1, std::memory_order_relaxed);
  r->used.store(2, std::memory_order_release);
  *out = reinterpret_cast<timer_t>(static_cast<intptr_t>(id));
  return 0;
}

bool thread_clock(clockid_t c) { return c == CLOCK_THREAD_CPUTIME_ID || (c < 0 && (c & 7) == 6); }

}  // namespace

bool timer_arrived(const siginfo_t* info) {
  Record* r = record_of(info->si_value.sival_ptr);
  if (r == nullptr) return false;
  if (r->used.load(std::memory_order_acquire) != 2) return true;  // deleted meanwhile
  if (r->queued.exchange(1, std::memory_order_acq_rel) != 0) {
    r->overruns.fetch_add(1 + info->si_overrun, std::memory_order_relaxed);
    return true;
  }
  r->overruns.store(info->si_overrun, std::memory_order_relaxed);
  siginfo_t out = *info;
  out.si_signo = r->sig;
  out.si_value = r->value;
  signal_defer_to(r->g, r->sig, &out);
  return true;
}

void timer_taken(siginfo_t* info) {
  Record* r = find(reinterpret_cast<timer_t>(static_cast<intptr_t>(info->si_timerid)));
  if (r == nullptr) return;
  info->si_overrun = r->overruns.exchange(0, std::memory_order_relaxed);
  r->last_overruns.store(info->si_overrun, std::memory_order_relaxed);
  r->queued.store(0, std::memory_order_release);
}

void sigtimer_after_fork() {  // timers are not inherited
  for (uint32_t i = 0; i < records_used.top(); i++)
    records[i].used.store(0, std::memory_order_relaxed);
  n_records.store(0, std::memory_order_relaxed);
}

}  // namespace weft

using namespace weft;

WEFT_EXPORT int timer_create(clockid_t clock, struct sigevent* ev, timer_t* out) noexcept {
  if (ev == nullptr || ev->sigev_notify != SIGEV_THREAD_ID ||
      !sched.booted.load(std::memory_order_relaxed))
    return real().timer_create(clock, ev, out);
  G* g = g_of_vtid(ev->_sigev_un._tid);
  if (g == nullptr) return real().timer_create(clock, ev, out);
  if (g == this_g() && thread_clock(clock)) {
    wire_thread("timer on its CPU clock");
    clock = CLOCK_THREAD_CPUTIME_ID;
  }
  if (g->wired) {
    struct sigevent kev = *ev;
    kev._sigev_un._tid = g->m->tid.load(std::memory_order_relaxed);
    return real().timer_create(clock, &kev, out);
  }
  int err = create(clock, ev, g, out);
  if (err == 0) return 0;
  errno = err;
  return -1;
}

WEFT_EXPORT int timer_delete(timer_t t) noexcept {
  Record* r = find(t);
  int err = real().timer_delete(t);
  if (r != nullptr && err == 0) {
    n_records.fetch_sub(1, std::memory_order_relaxed);
    r->used.store(0, std::memory_order_release);
  }
  return err;
}

WEFT_EXPORT int timer_getoverrun(timer_t t) noexcept {
  Record* r = find(t);
  return r == nullptr ? real().timer_getoverrun(t)
                      : r->last_overruns.load(std::memory_order_relaxed);
}

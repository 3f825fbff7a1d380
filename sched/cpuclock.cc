// cpuclock.cc - see cpuclock.h.
//
// Per M: cpu_last is the kernel's clock at the last question, cpu_since what has been charged
// by time stamps since then. All are the M's own; cpu_used reads those of another M without
// a lock and bounds what it makes of them by what it has shown before (cpu_shown).
#include "sched/cpuclock.h"

#include <time.h>

namespace weft {
namespace {

constexpr uint64_t kLongNs = 100'000;  // 0.3 us for the kernel's answer is nothing then
uint64_t boot_tsc, boot_ns;
std::atomic<uint32_t> tsc_per_1024ns{2560};

uint64_t to_ns(uint64_t ticks) {
  return ticks * 1024 / tsc_per_1024ns.load(std::memory_order_relaxed);
}

// The kernel's clock of a thread of ours.
uint64_t thread_clock(int tid) {
  struct timespec ts = {};
  sys_call(SYS_clock_gettime, (~static_cast<long>(tid) << 3) | 6, sys_arg(&ts));
  return static_cast<uint64_t>(ts.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(ts.tv_nsec);
}

void charge(G* g, uint64_t ns) {
  if (g != nullptr && ns != 0) g->cpu_ns.fetch_add(ns, std::memory_order_relaxed);
}

// What the M has used and charged to nobody.
uint64_t uncharged(const M* m, uint64_t clock) {
  uint64_t done = m->cpu_last + m->cpu_since;
  return clock > done ? clock - done : 0;
}

void settle(M* m, G* g) {
  uint64_t clock = thread_clock(m->tid.load(std::memory_order_relaxed));
  uint64_t ns = uncharged(m, clock);
  m->cpu_since = m->cpu_last + m->cpu_since > clock ? m->cpu_last + m->cpu_since - clock : 0;
  m->cpu_last = clock;
  m->cpu_tsc = tsc();
  charge(g, ns);
}

}  // namespace

void cpu_count_begin() {
  static std::atomic<bool> begun{false};
  if (begun.exchange(true, std::memory_order_acq_rel)) {
    if (sched.count_cpu.load(std::memory_order_relaxed)) return;
  }
  if (boot_ns == 0) {
    boot_ns = host_now_ns();
    boot_tsc = tsc();
    while (host_now_ns() < boot_ns + 200'000) cpu_relax();
  }
  uint64_t ns = host_now_ns() - boot_ns, ticks = tsc() - boot_tsc;
  if (ns > 100'000) tsc_per_1024ns.store(static_cast<uint32_t>(ticks * 1024 / ns), std::memory_order_relaxed);
  sched.count_cpu.store(true, std::memory_order_release);
}

void cpu_switch(M* m, G* next) {
  if (!m->cpu_known) {  // the first time here: what was before is nobody's
    m->cpu_known = true;
    m->cpu_last = thread_clock(m->tid.load(std::memory_order_relaxed));
    m->cpu_since = 0;
    m->cpu_tsc = tsc();
  } else {
    uint64_t now = tsc(), ns = to_ns(now - m->cpu_tsc);
    if (m->cpu_g != nullptr && ns >= kLongNs) {
      settle(m, m->cpu_g);
    } else if (m->cpu_g != nullptr) {
      m->cpu_since += ns;
      m->cpu_tsc = now;
      charge(m->cpu_g, ns);
    } else if (next != nullptr) {  // g0's own time is nobody's: do not charge it to the next
      if (ns >= kLongNs) settle(m, nullptr);
      else m->cpu_since += ns;
      m->cpu_tsc = tsc();
    }
  }
  m->cpu_g = next;
}

uint64_t cpu_used(G* g) {
  if (!sched.count_cpu.load(std::memory_order_acquire)) cpu_count_begin();
  M* m = g->m;
  uint64_t used;
  if (g == t_g && m != nullptr) {
    engine_enter(g);
    m = g->m;
    if (!m->cpu_known || m->cpu_g != g) {
      cpu_switch(m, g);
    } else {
      settle(m, g);
    }
    used = g->cpu_ns.load(std::memory_order_relaxed);
    engine_exit(g);
  } else {
    used = g->cpu_ns.load(std::memory_order_relaxed);
    if (m != nullptr && m->cpu_known && m->cpu_g == g && m->curg.load(std::memory_order_acquire) == g)
      used += uncharged(m, thread_clock(m->tid.load(std::memory_order_relaxed)));
  }
  // Never backwards, whatever the race above made of it.
  uint64_t shown = g->cpu_shown.load(std::memory_order_relaxed);
  while (used > shown &&
         !g->cpu_shown.compare_exchange_weak(shown, used, std::memory_order_relaxed)) {
  }
  return used > shown ? used : shown;
}

void cpu_sample(G* g, uint64_t ns) { charge(g, ns); }

}  // namespace weft

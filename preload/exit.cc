// exit.cc - the end of the process: the counters, on request.
//
// exit, quick_exit, _exit and abort stay libc's, from any G: atexit handlers run on the
// calling G while the others go on, as natively; exit_group ends every M. abort's raise
// asks the kernel for its tid, so it hits the kernel thread it runs on.
#include "preload/api.h"
#include "preload/knobs.h"

namespace weft {
namespace {

struct Line {
  char text[256];
  size_t n = 0;
  void put(const char* s) {
    while (*s != 0 && n < sizeof text) text[n++] = *s++;
  }
  void put(uint64_t v) {
    char digits[20];
    int d = 0;
    do digits[d++] = static_cast<char>('0' + v % 10);
    while ((v /= 10) != 0);
    while (d > 0 && n < sizeof text) text[n++] = digits[--d];
  }
};

}  // namespace

void weft_at_exit() {
  if (!knobs().stats || !sched.booted.load(std::memory_order_acquire)) return;
  uint64_t threads = 0, switches = 0, steals = 0, handoffs = 0;
  for (G* g = all_gs_first(); g != nullptr; g = g->all_next) threads++;
  for (uint32_t i = 0; i < sched.procs; i++) {
    switches += sched.p[i].switches.load(std::memory_order_relaxed);
    steals += sched.p[i].n_steals;
    handoffs += sched.p[i].n_handoffs;
  }
  Line l;
  const struct {
    const char* name;
    uint64_t value;
  } rows[] = {
      {"weft: procs=", sched.procs},
      {" ms=", sched.n_m.load(std::memory_order_relaxed)},
      {" gs=", threads},
      {" switches=", switches},
      {" steals=", steals},
      {" handoffs=", handoffs},
      {" wakes=", sched.n_wakes.load(std::memory_order_relaxed)},
      {" retakes=", sched.n_retakes.load(std::memory_order_relaxed)},
      {" hidden=", sched.n_hidden.load(std::memory_order_relaxed)},
      {" preempts=", sched.n_preempts.load(std::memory_order_relaxed)},
  };
  for (const auto& r : rows) {
    l.put(r.name);
    l.put(r.value);
  }
  l.put("\n");
  sys_call(SYS_write, 2, sys_arg(&l.text[0]), sys_arg(l.n));
}

namespace {
__attribute__((destructor)) void at_exit() { weft_at_exit(); }
}  // namespace

}  // namespace weft

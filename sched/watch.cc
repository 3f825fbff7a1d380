// watch.cc - see watch.h. Runs on sysmon's thread, so it works when every M is stuck.
//
// A dump is printed by a forked copy of the process: it has all memory as of one moment,
// may crash over a wild stack, and takes no lock that the program needs. sysmon goes on
// with its work and collects the copy on a later tick.
#include "sched/watch.h"

#include "sched/report.h"
#include "sched/sysmon.h"

namespace weft {
namespace {

constinit WatchConfig config;
std::atomic<bool> dump_wanted{false};
// --- sysmon only
uint64_t started_ns, traced_ns, copy_started_ns;
int copy_pid;

void schedtrace(uint64_t now) {
  if (now - traced_ns < uint64_t{config.schedtrace_ms} * 1'000'000) return;
  traced_ns = now;
  Out out;
  report_schedtrace(out, (now - started_ns) / 1'000'000, config.scheddetail);
}

}  // namespace

void watch_config(const WatchConfig& c) {
  config = c;
  started_ns = 0;  // sysmon of a fork child starts afresh
  copy_pid = 0;
  dump_wanted.store(false, std::memory_order_relaxed);
}

void watch_request_dump() {
  dump_wanted.store(true, std::memory_order_release);
  if (sched.sysmon_word.exchange(0, std::memory_order_acq_rel) == 1)
    sys_futex_wake(&sched.sysmon_word, 1);
}

bool watch_wants_ticks() {
  return config.schedtrace_ms != 0 || copy_pid != 0 ||
         dump_wanted.load(std::memory_order_relaxed);
}

void sysmon_hook(uint64_t now_ns) {
  if (WEFT_UNLIKELY(started_ns == 0)) started_ns = traced_ns = now_ns;
  if (config.schedtrace_ms != 0) schedtrace(now_ns);
  if (WEFT_UNLIKELY(copy_pid != 0) && report_copy_done(copy_pid, copy_started_ns)) copy_pid = 0;
  if (WEFT_UNLIKELY(dump_wanted.load(std::memory_order_acquire)) && copy_pid == 0) {
    dump_wanted.store(false, std::memory_order_relaxed);
    copy_started_ns = now_ns;
    copy_pid = report_in_copy("dump", 8, false);
  }
}

}  // namespace weft

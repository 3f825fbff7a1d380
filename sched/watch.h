// watch.h - what sysmon does for the person who looks: schedtrace lines, dumps on request.
//
// Callers: watch_config at boot, before sysmon's first tick; watch_request_dump from a
// signal handler on any thread; sysmon_hook (sysmon.h) and watch_wants_ticks: sysmon.
#pragma once

#include "sched/base.h"

namespace weft {

struct WatchConfig {
  uint32_t schedtrace_ms = 0;  // 0: off
  bool scheddetail = false;
};
void watch_config(const WatchConfig& c);
void watch_request_dump();
// sysmon must not sleep deep now.
bool watch_wants_ticks();

}  // namespace weft

// trace.h - the last events of each M, for fatal() and the dump.
//
// A ring per M, written by that M alone with two plain stores (about 1 ns), so it stays on
// in release builds. Readers (fatal, the dump) accept a torn last entry. No time stamp:
// the order within an M is what a hang needs.
#pragma once

#include "sched/base.h"

namespace weft {

enum class Ev : uint8_t {
  kNone, kRun, kPark, kReady, kYield, kPreempt, kSysEnter, kSysExit, kSysLost, kHandOff,
  kRetake, kHidden, kSteal, kStopM, kStartM, kPoll, kCreate, kExit, kWire, kSignal,
  kSwitch,  // who ran parks (arg: its Wait), and g is next: kPark and kRun in one
  kCount,
};
extern const char* const kEvNames[];

struct TraceRing {
  static constexpr uint32_t kSize = 256;
  struct Entry {
    uint32_t g;    // G::index
    uint32_t ev;   // Ev
    uint64_t arg;
  };
  uint32_t n = 0;
  Entry entry[kSize] = {};

  void add(Ev ev, uint32_t g, uint64_t arg = 0) {
    Entry& e = entry[n++ % kSize];
    e.g = g;
    e.ev = static_cast<uint32_t>(ev);
    e.arg = arg;
  }
};

}  // namespace weft

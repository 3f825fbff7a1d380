// io_watch.h - waiting for one of several descriptors, and waiting in place.
//
// Two ways for poll, select and epoll_wait to wait. Parked: observers on each descriptor,
// the G costs nothing. In place: the real call without the P, as a kernel thread would;
// the cheapest wait of all when nothing else is to run, and it costs an M. So: in place
// only while the P has nothing to run, only for what looks like an event loop
// (epoll_wait, or more than kFewFds descriptors), and by a bounded number of Ms.
#pragma once

#include "preload/io_fd.h"

namespace weft {

constexpr uint32_t kFewFds = 2;  // a thread per connection polls its one descriptor

// True: the caller may block in the kernel; it calls in_place_end afterwards.
bool in_place_begin();
void in_place_end();

// The observers of one call. add() is called again for each round, after clear().
struct WatchSet {
  static constexpr uint32_t kSmall = 16;
  PollWatch small[kSmall];
  PollWatch* w = small;
  uint32_t n = 0, cap = kSmall;
};
// Room for n; false: no memory.
bool watch_room(WatchSet& s, uint32_t n);
void watch_free(WatchSet& s);
// Samples the descriptor's direction. False: the descriptor is beyond our table.
bool watch_add(WatchSet& s, int fd, PollDir dir);

// Remaining time as poll's and select's callers hand it to the kernel; null: for ever.
struct Remaining {
  struct timespec ts;
  struct timespec* set(uint64_t deadline_ns);
};

}  // namespace weft

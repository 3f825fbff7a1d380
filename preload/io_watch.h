// io_watch.h - waiting for one of several descriptors, and waiting in place.
//
// Two ways for poll, select and epoll_wait to wait. Parked: observers on each descriptor,
// the G costs nothing. In place: the real call without the P, as a kernel thread would.
// In place is cheapest for the one event loop of a program that does nothing else meanwhile
// (redis with one client: 14 us of CPU a request natively and in place, 25 parked, for the
// idle M spins before it sleeps). With several busy loops it costs most: each return needs a P,
// each wait gives one away, and Ms wake each other (memcached -t 4, 64 connections: 14 us
// natively, 17 to 21 in place, 11 to 12 parked). So of those that wait on an epoll: one at a time,
// while no other waits for a descriptor. Loops over poll and select have few descriptors each, and
// beside peers that need the cores a wake-up through our epoll comes too late (pgbench -c 16 -j 4,
// 2 cores: 3,400 to 4,500 tx/s natively, 2,300 to 2,900 parked, 4,200 in place): kPollLoops of them.
// Either way only while the P has nothing to run, and only for what looks like a loop (epoll_wait, or
// more than kFewFds descriptors). Of the loops over poll and select none that could take up what stands on
// another P: one that came back from its wait while all were busy stands there as runnext, behind a G whose
// M may have lost its core (place_woken), and waited up to half a millisecond for sysmon, now for the next
// who would wait. pgbench: 127 us of processor time a transaction, before 134, natively 108, and 5.6
// switches in the kernel, before 5.9, natively 5.0.
#pragma once

#include "preload/io_fd.h"

namespace weft {

constexpr uint32_t kFewFds = 2;  // a thread per connection polls its one descriptor
constexpr uint32_t kPollLoops = 8, kEpollLoops = 1;

// True: the caller may block in the kernel, not more than `most` at a time; it calls in_place_end
// afterwards.
bool in_place_begin(uint32_t most);
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

// The deadline of a call that is given milliseconds, negative: none.
inline uint64_t ms_deadline(int ms) {
  return ms < 0 ? kNever : host_now_ns() + static_cast<uint64_t>(ms) * 1000000u;
}

// Remaining time as poll's and select's callers hand it to the kernel; null: for ever.
struct Remaining {
  struct timespec ts;
  struct timespec* set(uint64_t deadline_ns);
};

}  // namespace weft

// asleep.cc - see asleep.h.
//
// A table of kSlots files, an M's by its number; more Ms than that share slots and pay an
// open each time they alternate. Every close() of the program asks asleep_owns: `lowest`
// answers for nearly all of them.
#include "sched/asleep.h"

#include <errno.h>
#include <fcntl.h>

#include "sched/lock.h"
#include "sched/netpoll.h"

namespace weft {
namespace {

constexpr uint32_t kSlots = 16;
constexpr int kKeepFrom = 256;  // a lower number: the program may open few, so none is kept

struct Slot {
  std::atomic<int> fd{-1};  // changes under slots_lock
  int tid = 0;              // sysmon only
};
Slot slots[kSlots];
Lock slots_lock;            // leaf
std::atomic<int> lowest{__INT_MAX__};  // no number kept here was ever below it

int open_status(int tid) {
  char path[48] = "/proc/self/task/";
  size_t n = 16;
  char digits[12];
  int d = 0;
  for (int v = tid; v > 0; v /= 10) digits[d++] = static_cast<char>('0' + v % 10);
  while (d > 0) path[n++] = digits[--d];
  for (const char* s = "/syscall"; *s != 0; s++) path[n++] = *s;
  path[n] = 0;
  long low = sys_call(SYS_openat, AT_FDCWD, sys_arg(&path[0]), O_RDONLY | O_CLOEXEC);
  if (low < 0) return static_cast<int>(low);
  int high = netpoll_high_dup(static_cast<int>(low));
  sys_call(SYS_close, low);
  return high;
}

// The slot's file becomes fd; -1: none.
void replace(Slot& s, int fd) {
  slots_lock.lock();
  int was = s.fd.load(std::memory_order_relaxed);
  s.fd.store(fd, std::memory_order_relaxed);
  if (fd >= 0 && fd < lowest.load(std::memory_order_relaxed))
    lowest.store(fd, std::memory_order_relaxed);
  // Under the lock: a dup2 to the number waits in asleep_make_room until it is free.
  if (was >= 0) sys_call(SYS_close, was);
  slots_lock.unlock();
}

}  // namespace

bool asleep_in_kernel(uint32_t m_id, int tid) {
  Slot& s = slots[m_id % kSlots];
  if (s.tid != tid || s.fd.load(std::memory_order_relaxed) < 0) {
    int fd = open_status(tid);
    replace(s, fd < 0 ? -1 : fd);
    s.tid = tid;
    if (fd < 0) return false;
  }
  char buf[8];
  int fd = s.fd.load(std::memory_order_relaxed);
  long got = sys_call(SYS_pread64, fd, sys_arg(&buf[0]), sizeof buf, 0);
  if (got <= 0 || fd < kKeepFrom) replace(s, -1);  // not positive: the thread has ended
  return got > 0 && buf[0] >= '0' && buf[0] <= '9';
}

bool asleep_owns(int fd) {
  return fd >= lowest.load(std::memory_order_relaxed) && asleep_next_owned(fd) == fd;
}

int asleep_next_owned(int from) {
  int best = __INT_MAX__;
  if (lowest.load(std::memory_order_relaxed) == best) return best;
  for (Slot& s : slots) {
    int fd = s.fd.load(std::memory_order_relaxed);
    if (fd >= from && fd < best) best = fd;
  }
  return best;
}

void asleep_make_room(int fd) {
  slots_lock.lock();
  for (Slot& s : slots)
    if (s.fd.load(std::memory_order_relaxed) == fd) {
      s.fd.store(-1, std::memory_order_relaxed);
      sys_call(SYS_close, fd);
    }
  slots_lock.unlock();
}

void asleep_after_fork() {
  for (Slot& s : slots) {
    if (int fd = s.fd.load(std::memory_order_relaxed); fd >= 0) sys_call(SYS_close, fd);
    s.fd.store(-1, std::memory_order_relaxed);
    s.tid = 0;
  }
  lowest.store(__INT_MAX__, std::memory_order_relaxed);
  slots_lock.reset();
}

}  // namespace weft

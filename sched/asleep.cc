// asleep.cc - see asleep.h.
//
// kSlots high numbers are taken at once, at the first need or with netpoll's two, whichever
// comes first: a program that lists its descriptors before and after finds as many. The file
// of an M comes to stand under one of them, by the M's number; more Ms share a slot and pay an
// open each time they alternate. A slot without a number (the program has taken it, or may
// open few files) keeps nothing.
#include "sched/asleep.h"

#include <fcntl.h>

#include "sched/lock.h"
#include "sched/netpoll.h"

namespace weft {
namespace {

constexpr uint32_t kSlots = 8;
constexpr int kKeepFrom = 256;  // a lower number: the program may open few

struct Slot {
  std::atomic<int> fd{-1};  // changes under slots_lock
  int tid = 0;              // whose file stands there; sysmon only, as what follows
  bool stat = false;        // it is `stat`
};
Slot slots[kSlots];
Lock slots_lock;            // leaf
std::atomic<bool> reserved{false};
std::atomic<int> lowest{__INT_MAX__};  // no number kept here is below it

long open_file(int tid, const char* name) {
  char path[48] = "/proc/self/task/";
  size_t n = 16;
  char digits[12];
  int d = 0;
  for (int v = tid; v > 0; v /= 10) digits[d++] = static_cast<char>('0' + v % 10);
  while (d > 0) path[n++] = digits[--d];
  for (; *name != 0; name++) path[n++] = *name;
  path[n] = 0;
  return sys_call(SYS_openat, AT_FDCWD, sys_arg(&path[0]), O_RDONLY | O_CLOEXEC);
}

// `syscall` is root's alone in a process that has changed its user (a server that began as root),
// `stat` everybody's: TID (NAME) S, where the name may be anything. It costs 5 us.
Asleep says(int fd, bool stat) {
  char buf[64];
  long got = sys_call(SYS_pread64, fd, sys_arg(&buf[0]), stat ? sizeof buf : 8, 0);
  if (got <= 0) return Asleep::kUnknown;
  if (!stat) return buf[0] >= '0' && buf[0] <= '9' ? Asleep::kYes : Asleep::kNo;
  while (got > 2 && buf[got - 3] != ')') got--;
  char state = buf[got - 1];
  return state == 'S' || state == 'D' ? Asleep::kYes : Asleep::kNo;
}

}  // namespace

Asleep asleep_in_kernel(uint32_t m_id, int tid) {
  Slot& s = slots[m_id % kSlots];
  if (s.tid == tid)
    if (Asleep a = says(s.fd.load(std::memory_order_relaxed), s.stat); a != Asleep::kUnknown) return a;
  long low = open_file(tid, "/syscall");
  bool stat = low == -EACCES;
  if (stat) low = open_file(tid, "/stat");
  if (low < 0) return Asleep::kUnknown;
  asleep_reserve(static_cast<int>(low));
  slots_lock.lock();
  // Under the lock: asleep_make_room knows that the number is not ours afterwards.
  int fd = s.fd.load(std::memory_order_relaxed);
  bool kept = fd >= 0 && sys_call(SYS_dup3, low, fd, O_CLOEXEC) == fd;
  slots_lock.unlock();
  s.tid = kept ? tid : 0;
  s.stat = stat;
  Asleep a = says(static_cast<int>(low), stat);
  sys_call(SYS_close, low);
  return a;
}

void asleep_reserve(int some_fd) {
  if (reserved.load(std::memory_order_relaxed)) return;
  Hold hold(slots_lock);
  if (reserved.load(std::memory_order_relaxed)) return;
  reserved.store(true, std::memory_order_relaxed);
  for (Slot& s : slots) {
    int fd = netpoll_high_dup(some_fd);
    if (fd < kKeepFrom) {
      if (fd >= 0) sys_call(SYS_close, fd);
      return;
    }
    if (fd < lowest.load(std::memory_order_relaxed)) lowest.store(fd, std::memory_order_relaxed);
    s.fd.store(fd, std::memory_order_relaxed);
  }
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
  Hold hold(slots_lock);
  for (Slot& s : slots)
    if (s.fd.load(std::memory_order_relaxed) == fd) {
      s.fd.store(-1, std::memory_order_relaxed);
      sys_call(SYS_close, fd);
    }
}

void asleep_after_fork() {
  for (Slot& s : slots) {
    if (int fd = s.fd.load(std::memory_order_relaxed); fd >= 0) sys_call(SYS_close, fd);
    s.fd.store(-1, std::memory_order_relaxed);
    s.tid = 0;
  }
  reserved.store(false, std::memory_order_relaxed);
  lowest.store(__INT_MAX__, std::memory_order_relaxed);
  slots_lock.reset();
}

}  // namespace weft

// foreign.cc - see foreign.h.
//
// Foreign is every task of the process that host.cc has not started, but its first: that one is
// an M, or waits for the process to end. A task that is just being started is not in the table
// yet, so the list of tasks counts only if none was, from before it was opened to its end.
#include "preload/foreign.h"

#include <fcntl.h>
#include <poll.h>

#include "preload/high_water.h"
#include "preload/tasks.h"

namespace weft {
namespace {

constexpr uint32_t kMaxOwn = 10240;          // Ms are bounded at 10000 (sched/m.cc)
constexpr int kPidfdThread = O_EXCL;         // since Linux 6.9
std::atomic<int> own[kMaxOwn];               // 0: free
HighWater own_used;
std::atomic<uint32_t> starts{0};             // odd: one is being started

bool is_own(int tid) {
  for (uint32_t i = 0; i < own_used.top(); i++)
    if (own[i].load(std::memory_order_relaxed) == tid) return true;
  return false;
}

}  // namespace

int foreign_thread() {
  for (;;) {
    uint32_t seen = starts.load(std::memory_order_seq_cst);
    int found = 0;
    each_task([&](int tid) {
      if (found == 0 && tid != sys_getpid() && tid != sys_gettid() && !is_own(tid)) found = tid;
    });
    if ((seen & 1) == 0 && starts.load(std::memory_order_seq_cst) == seen) return found;
    sys_sched_yield();
  }
}

void foreign_await_end(int tid) {
  long fd = sys_call(SYS_pidfd_open, tid, kPidfdThread);
  if (fd < 0) {  // an older kernel, or it has just ended
    sys_sleep_ns(10'000'000);
    return;
  }
  struct pollfd p = {static_cast<int>(fd), POLLIN, 0};
  sys_call(SYS_poll, sys_arg(&p), 1, -1);
  sys_call(SYS_close, fd);
}

void own_thread_asked() { starts.fetch_add(1, std::memory_order_seq_cst); }
void own_thread_made() { starts.fetch_add(1, std::memory_order_seq_cst); }

void own_thread_begins() {
  int tid = sys_gettid();
  for (uint32_t i = 0; i < kMaxOwn; i++) {
    own_used.reach(i);
    int free = 0;
    if (own[i].compare_exchange_strong(free, tid, std::memory_order_relaxed)) return;
  }
}

void own_thread_ends() {
  int tid = sys_gettid();
  for (uint32_t i = 0; i < own_used.top(); i++) {
    int mine = tid;
    if (own[i].compare_exchange_strong(mine, 0, std::memory_order_relaxed)) return;
  }
}

void own_threads_after_fork() {
  for (uint32_t i = 0; i < own_used.top(); i++) own[i].store(0, std::memory_order_relaxed);
  starts.store(0, std::memory_order_relaxed);
}

}  // namespace weft

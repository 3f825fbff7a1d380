// kcall.cc - see kcall.h.
//
//   caller                                  the thread
//   1 fill the order; order.tid = tid       a  handler of 33: order.tid is mine?
//   2 tgkill(tid, 33)                       b  make the call, store the result
//   3 wait for order.done                   c  order.tid = 0; done = 1; wake
//
// Signal 33 is libc's for the same purpose, never blocked and hidden from programs. The
// handler touches nothing of weft but the order, so it may run anywhere, the engine and g0
// included. A 33 that is not ours goes to libc's handler. A thread that ends instead of
// answering is seen by tgkill's ESRCH.
#include "preload/kcall.h"

#include "preload/api.h"

namespace weft {
namespace {

constexpr int kSig = 33;
constexpr uint64_t kRecheckNs = 2'000'000;  // how often a silent thread is looked for

struct KernelAction {  // the kernel's struct sigaction
  void (*handler)(int, siginfo_t*, void*);
  unsigned long flags;
  void (*restorer)();
  uint64_t mask;
};

struct Order {
  KCall* call = nullptr;
  std::atomic<int> tid{0};        // who is to carry it out; 0 nobody
  std::atomic<uint32_t> done{0};  // futex of the caller
};
Order order;
KernelAction libc_action;
bool installed;                     // guarded by word
std::atomic<uint32_t> word{0};      // 0 free, 1 held, 2 held and waited for

void on_signal(int sig, siginfo_t* info, void* context) {
  // Acquire: pairs with the caller's store after it filled the order.
  if (order.tid.load(std::memory_order_acquire) != sys_gettid()) {
    if (reinterpret_cast<uintptr_t>(libc_action.handler) > 1)
      libc_action.handler(sig, info, context);
    return;
  }
  KCall* k = order.call;
  k->result = sys_call(k->nr, k->a, k->b, k->c, k->d);
  order.tid.store(0, std::memory_order_relaxed);
  order.done.store(1, std::memory_order_release);
  sys_futex_wake(&order.done, 1);
}

// The restorer is taken from libc's own action for this signal, which it sets with its
// first thread: there is always one when Gs exist.
bool install() {
  if (installed) return true;
  if (sys_call(SYS_rt_sigaction, kSig, 0, sys_arg(&libc_action), 8) != 0) return false;
  KernelAction ours = libc_action;
  if (ours.restorer == nullptr) return false;
  ours.handler = on_signal;
  ours.flags |= SA_SIGINFO | SA_RESTART;
  ours.flags &= ~static_cast<unsigned long>(SA_ONSTACK);
  ours.mask = ~uint64_t{0};
  if (sys_call(SYS_rt_sigaction, kSig, sys_arg(&ours), 0, 8) != 0) return false;
  installed = true;
  return true;
}

}  // namespace

void kcall_lock() {
  uint32_t free = 0;
  if (word.compare_exchange_strong(free, 1, std::memory_order_acquire)) return;
  while (word.exchange(2, std::memory_order_acquire) != 0)
    gfutex_wait(&word, 2, kNever, Wait::kOther);
}

void kcall_unlock() {
  if (word.exchange(0, std::memory_order_release) == 2) gfutex_wake(&word, 1);
}

bool kcall_on(int tid, KCall* call) {
  if (!install()) return false;
  int pid = sys_getpid();
  order.call = call;
  order.done.store(0, std::memory_order_relaxed);
  order.tid.store(tid, std::memory_order_release);
  if (sys_call(SYS_tgkill, pid, tid, kSig) != 0) {
    order.tid.store(0, std::memory_order_relaxed);
    return false;
  }
  while (order.done.load(std::memory_order_acquire) == 0) {
    sys_futex_wait(&order.done, 0, host_now_ns() + kRecheckNs);
    int expected = tid;
    if (sys_call(SYS_tgkill, pid, tid, 0) != 0 &&
        order.tid.compare_exchange_strong(expected, 0, std::memory_order_acq_rel))
      return false;
  }
  return true;
}

void kcall_after_fork() {
  order.tid.store(0, std::memory_order_relaxed);
  word.store(0, std::memory_order_relaxed);
}

}  // namespace weft

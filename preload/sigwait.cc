// sigwait.cc - waiting for signals.
//
// The kernel does the waiting, on this G's M, in the syscall protocol: process-directed
// signals are the kernel's to give away, and a G waiting for signals is rare enough to keep
// an M. Signals that weft holds for this G arrive as pokes of the same number: the waits
// below take the poke and look into the queue.
//
//   waiter                                 sender (signal_g)
//   1 sigwait_set = set                    a  enqueue
//   2 queue has one of set? done           b  sees sigwait_set: poke M
//   3 rt_sigtimedwait on M
// Either 2 sees a, or b sees 1, and then the poke waits for 3 in the kernel.
#include <string.h>

#include "preload/api.h"
#include "preload/cancel.h"
#include "preload/signals.h"
#include "preload/thread.h"

namespace weft {
namespace {

constexpr size_t kSetBytes = 8;

// 0 and *out, or -errno. deadline: kNever waits on; 0 polls.
int wait_for(G* g, uint64_t set, siginfo_t* out, uint64_t deadline_ns) {
  Thread* t = thread_of(g);
  int r = -EAGAIN;
  signals_wait_begins();
  t->sigwait_set.store(set, std::memory_order_seq_cst);
  for (;;) {
    if (pending_take(g, set, out)) {
      r = 0;
      break;
    }
    struct timespec ts = {0, 0};
    struct timespec* tp = &ts;
    if (deadline_ns == kNever) {
      tp = nullptr;
    } else if (deadline_ns != 0) {
      uint64_t now = host_now_ns();
      uint64_t left = deadline_ns > now ? deadline_ns - now : 0;
      ts = {static_cast<time_t>(left / 1000000000), static_cast<long>(left % 1000000000)};
    }
    siginfo_t info;
    memset(&info, 0, sizeof info);
    enter_syscall_block(g);
    long k = sys_call(SYS_rt_sigtimedwait, sys_arg(&set), sys_arg(&info), sys_arg(tp), kSetBytes);
    exit_syscall(g);
    if (k > 0 && is_poke(&info)) continue;  // the queue has it, or it was for another G
    if (k > 0) *out = info;
    r = k > 0 ? 0 : static_cast<int>(k);
    if (r == -EINTR && cancel_pending()) {
      t->sigwait_set.store(0, std::memory_order_relaxed);
      cancel_point();
    }
    break;
  }
  t->sigwait_set.store(0, std::memory_order_relaxed);
  return r;
}

uint64_t bits_of(const sigset_t* set) {
  uint64_t b;
  memcpy(&b, set, sizeof b);
  return b & kAllSignals;
}

}  // namespace
}  // namespace weft

using namespace weft;

WEFT_EXPORT int sigtimedwait(const sigset_t* set, siginfo_t* info, const struct timespec* rel) {
  G* g = this_g();
  if (g == nullptr) return real().sigtimedwait(set, info, rel);
  cancel_point();
  if (rel != nullptr && (!timespec_ok(rel) || rel->tv_sec < 0)) {
    errno = EINVAL;
    return -1;
  }
  uint64_t deadline = rel == nullptr ? kNever : rel->tv_sec == 0 && rel->tv_nsec == 0 ? 0 : deadline_in(rel);
  siginfo_t got;
  int r = wait_for(g, bits_of(set), &got, deadline);
  if (r < 0) {
    errno = -r;
    return -1;
  }
  // As libc: a signal sent by tgkill reads as one by kill.
  if (got.si_code == SI_TKILL) got.si_code = SI_USER;
  if (info != nullptr) *info = got;
  return got.si_signo;
}

WEFT_EXPORT int sigwaitinfo(const sigset_t* set, siginfo_t* info) {
  return sigtimedwait(set, info, nullptr);
}

WEFT_EXPORT int sigwait(const sigset_t* set, int* sig) {
  G* g = this_g();
  if (g == nullptr) return real().sigwait(set, sig);
  cancel_point();
  siginfo_t got;
  int r;
  do r = wait_for(g, bits_of(set), &got, kNever);
  while (r == -EINTR);
  if (r != 0) return -r;
  *sig = got.si_signo;
  return 0;
}

// The mask stands until a handler has run; the handler's own return restores ours.
WEFT_EXPORT int sigsuspend(const sigset_t* set) {
  G* g = this_g();
  if (g == nullptr) return real().sigsuspend(set);
  cancel_point();
  uint64_t mask = bits_of(set) & ~(sig_bit(SIGKILL) | sig_bit(SIGSTOP));
  uint64_t old = g->sigmask, handlers = thread_of(g)->sig_handled, all = kAllSignals;
  // The kernel lets signals in at the moment it sleeps; senders see `mask` from now on.
  // no_preempt: between here and the call, kernel mask and g->sigmask differ.
  g->no_preempt++;
  sys_sigprocmask(SIG_SETMASK, &all, nullptr);
  g->sigmask = mask;
  masks_note(old & ~mask, ~mask);
  while (thread_of(g)->sig_handled == handlers && !cancel_pending()) {
    // A poke sent while all is blocked waits in the kernel for the call.
    if (uint64_t due = pending_of(g) & ~mask) poke(g, __builtin_ctzll(due) + 1);
    enter_syscall(g);
    sys_call(SYS_rt_sigsuspend, sys_arg(&mask), kSetBytes);
    exit_syscall(g);
  }
  g->sigmask = all;
  g->m->kmask = all;
  g->no_preempt--;
  mask_swap(g, old);
  cancel_point();
  errno = EINTR;
  return -1;
}

WEFT_EXPORT int pause(void) {
  G* g = this_g();
  if (g == nullptr) return real().pause();
  cancel_point();
  sigset_t now;
  memset(&now, 0, sizeof now);
  memcpy(&now, &g->sigmask, sizeof g->sigmask);
  return sigsuspend(&now);  // without its race between a look and the sleep
}

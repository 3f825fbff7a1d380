// sigwait.cc - waiting for signals.
//
// sigwait and its kin: the kernel does the waiting, on this G's M, in the syscall protocol:
// process signals are the kernel's to give away, and a G waiting for signals is rare enough
// to keep an M. Signals that weft holds for this G arrive as pokes; SIGSTKFLT is blocked
// and waited for with the others, so that a poke cannot come too early:
//
//   waiter                                 sender (signal_g)
//   1 sigwait_set = set                    a  enqueue
//   2 block it                              b  sees sigwait_set: poke
//   3 queue has one of set? done
//   4 rt_sigtimedwait(set and it)
// Either 3 sees a, or the poke comes after 2 and waits for 4.
//
// sigsuspend, pause and sigpause park: what arrives for the process comes by sysmon.
#include <string.h>

#include "preload/api.h"
#include "preload/cancel.h"
#include "preload/signals.h"
#include "preload/thread.h"
#include "sched/park.h"

namespace weft {
namespace {

constexpr size_t kSetBytes = 8;
constexpr long kLook = 1000;

void kernel_mask_exactly(G* g, uint64_t mask, uint64_t noted) {
  sys_sigprocmask(SIG_SETMASK, &mask, nullptr);
  g->m->kmask = noted;
}

struct timespec* left_until(uint64_t deadline_ns, struct timespec* ts) {
  if (deadline_ns == kNever) return nullptr;
  uint64_t now = deadline_ns == 0 ? 0 : host_now_ns();
  uint64_t left = deadline_ns > now ? deadline_ns - now : 0;
  *ts = {static_cast<time_t>(left / 1000000000), static_cast<long>(left % 1000000000)};
  return ts;
}

// One wait in the kernel: a signal of `set` in *info, kLook for "look into the queue",
// or -errno.
long wait_in_kernel(G* g, uint64_t set, siginfo_t* info, uint64_t deadline_ns) {
  struct timespec ts;
  if (deadline_ns == 0) enter_syscall(g);
  else enter_syscall_block(g);
  const uint64_t cancel = sig_bit(32);  // pthread_cancel's poke, as kHard (cancel.cc)
  kernel_mask_exactly(g, mask_for_kernel(g->sigmask) | kOurs | cancel, kMaskNoG);  // step 2
  long k = kLook;
  if ((pending_of(g) & set) == 0 && !cancel_pending()) {                   // step 3
    uint64_t all = set | sig_bit(kHard) | cancel;
    k = sys_call(SYS_rt_sigtimedwait, sys_arg(&all), sys_arg(info),
                 sys_arg(left_until(deadline_ns, &ts)), kSetBytes);
    if (k == 32) {
      k = kLook;
    } else if (k > 0 && is_poke(info)) {
      g->m->sent.fetch_and(k == kSoft ? ~kSentUrg : ~kSentPoke, std::memory_order_seq_cst);
      k = kLook;
    }
  }
  kernel_mask_exactly(g, mask_for_kernel(g->sigmask), g->sigmask);
  exit_syscall(g);
  return k;
}

// 0 and *out, or -errno. deadline: kNever waits on; 0 polls.
int wait_for(G* g, uint64_t set, siginfo_t* out, uint64_t deadline_ns) {
  Thread* t = thread_of(g);
  int r;
  uint64_t handlers = t->sig_handled;
  signals_wait_begins();
  t->sigwait_set.store(set, std::memory_order_seq_cst);                    // step 1
  for (;;) {
    r = 0;
    if (pending_take(g, set, out)) break;
    siginfo_t info;
    memset(&info, 0, sizeof info);
    long k = wait_in_kernel(g, set, &info, deadline_ns);
    if (k == kLook) {
      if (t->sig_handled != handlers || cancel_pending()) {
        r = -EINTR;
        break;
      }
      continue;
    }
    carried(&info);
    if (k > 0) *out = info;
    else r = static_cast<int>(k);
    break;
  }
  t->sigwait_set.store(0, std::memory_order_relaxed);
  pending_pass_on(g);
  if (r == -EINTR) cancel_point();
  return r;
}

uint64_t bits_of(const sigset_t* set) {
  uint64_t b;
  memcpy(&b, set, sizeof b);
  return b & kMaskable;
}

}  // namespace

uint64_t masked_begin(G* g, uint64_t open) {
  Thread* t = thread_of(g);
  uint64_t old = g->sigmask;
  engine_enter(g);
  t->saved_mask = old;
  t->mask_saved = true;
  g->sigmask = open & kMaskable;
  g->m->kmask = kMaskNoG;
  engine_exit(g);
  masks_note(g->sigmask & ~old, old & ~g->sigmask);
  return old;
}

void masked_enter(G* g) {
  enter_syscall_masked(g);
  kernel_mask_exactly(g, ~uint64_t{0} & ~sig_bit(33), kMaskNoG);
  std::atomic_thread_fence(std::memory_order_seq_cst);  // notify's look at mask_saved
  // What is due waits in the kernel for the call to let it in.
  if ((pending_of(g) & ~g->sigmask) != 0) poke_self(g);
}

void masked_end(G* g, uint64_t old) {
  uint64_t was = g->sigmask;
  thread_of(g)->mask_saved = false;
  set_masks(g, old);
  masks_note(old & ~was, was & ~old);
  if ((pending_of(g) & ~old) != 0) signals_attention(g);
}

}  // namespace weft

using namespace weft;

WEFT_EXPORT int sigtimedwait(const sigset_t* set, siginfo_t* info, const struct timespec* rel) {
  G* g = this_g();
  if (g == nullptr) {
    int sig = real().sigtimedwait(set, info, rel);
    if (sig > 0 && info != nullptr) carried(info);
    return sig;
  }
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

namespace {

// The caller has been wired since: no handler may come between the look and the sleep.
void suspend_wired(const Thread* t, const sigset_t* set, uint64_t handlers) {
  uint64_t all = kAllSignals, mask;
  sys_sigprocmask(SIG_SETMASK, &all, &mask);
  if (t->sig_handled == handlers) real().sigsuspend(set);
  sys_sigprocmask(SIG_SETMASK, &mask, nullptr);
}

}  // namespace

// The mask stands until a handler has run; its return restores ours.
WEFT_EXPORT int sigsuspend(const sigset_t* set) {
  G* g = this_g();
  if (g == nullptr) return in_syscall([&] { return real().sigsuspend(set); });
  cancel_point();
  Thread* t = thread_of(g);
  uint64_t old = g->sigmask, handlers = t->sig_handled;
  t->saved_mask = old;
  t->mask_saved = true;
  mask_swap(g, bits_of(set));
  while (t->sig_handled == handlers && !cancel_pending()) {
    engine_enter(g);  // from here on a handler shows as attention, which ends the park
    if (g->wired) suspend_wired(t, set, handlers);
    else if (t->sig_handled == handlers) park_sleep(g, kNever, Wait::kSignal, true);
    engine_exit(g);
  }
  t->mask_saved = false;
  mask_swap(g, old);
  cancel_point();
  errno = EINTR;
  return -1;
}
WEFT_TWIN(int, __sigsuspend, sigsuspend, (const sigset_t*));

WEFT_EXPORT int pause(void) {
  G* g = this_g();
  if (g == nullptr) return real().pause();
  cancel_point();
  sigset_t now;
  memset(&now, 0, sizeof now);
  memcpy(&now, &g->sigmask, sizeof g->sigmask);
  return sigsuspend(&now);  // without its race between a look and the sleep
}

// X/Open's form waits for one signal more than the mask lets in, BSD's has a mask of 32.
WEFT_EXPORT int __sigpause(int sig_or_mask, int is_sig) {
  sigset_t set;
  memset(&set, 0, sizeof set);
  if (is_sig == 0) {
    memcpy(&set, &sig_or_mask, sizeof sig_or_mask);
  } else {
    sigprocmask(SIG_SETMASK, nullptr, &set);
    if (sigdelset(&set, sig_or_mask) != 0) return -1;
  }
  return sigsuspend(&set);
}

// <signal.h> gives the plain name to X/Open's form.
WEFT_EXPORT int bsd_sigpause(int mask) __asm__("sigpause");
WEFT_EXPORT int bsd_sigpause(int mask) { return __sigpause(mask, 0); }
#undef sigpause
WEFT_EXPORT int sigpause(int sig) { return __sigpause(sig, 1); }

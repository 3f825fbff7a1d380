// sigaction.cc - the program's signal actions.
//
// Before boot the kernel has them as the program set them. From boot on, every signal with
// a handler has signals_wrapper in the kernel, with the program's mask and flags (so that
// SA_RESTART and SA_NOCLD* are the kernel's work), and the handler stands here. Where the
// kernel uses the M's own stack (SA_ONSTACK) all signals are blocked until the wrapper has
// left it. SA_RESETHAND is done by the wrapper: a deferred signal must not spend it.
// Default and ignored ones are the kernel's alone. SIGURG and SIGSTKFLT are ours, whatever
// the program says (signals.h).
//
// The table survives fork (so do the kernel's actions); a vfork child must not touch it.
// Lock: actions_lock, in the engine; readers take a consistent copy by the sequence word.
#include <string.h>

#include "preload/api.h"
#include "preload/dump.h"
#include "preload/signals.h"
#include "preload/vfork.h"

namespace weft {
namespace {

struct KernelAction {  // what rt_sigaction(2) takes
  void (*handler)(int);
  uint64_t flags;
  void (*restorer)();
  uint64_t mask;
};
constexpr uint64_t kSaRestorer = 0x04000000;

struct Slot {
  std::atomic<uint32_t> seq{0};  // odd while written; readers retry
  std::atomic<void (*)(int)> handler{nullptr};
  std::atomic<uint64_t> mask{0};
  std::atomic<uint64_t> flags{0};
  std::atomic<bool> ours{false};  // the kernel has the wrapper
};
Slot slots[kSignals];
Lock actions_lock;
std::atomic<bool> wrapping{false};

// libc's own return stub, taken from an action that libc installed.
std::atomic<void (*)()> restorer{nullptr};

long kernel_action(int sig, const KernelAction* set, KernelAction* old) {
  return sys_call(SYS_rt_sigaction, sig, sys_arg(set), sys_arg(old), 8);
}

bool is_handler(void (*h)(int)) { return h != SIG_DFL && h != SIG_IGN; }

void slot_write(Slot& s, const Action& a) {
  s.seq.fetch_add(1, std::memory_order_acq_rel);
  s.handler.store(a.handler, std::memory_order_relaxed);
  s.mask.store(a.mask, std::memory_order_relaxed);
  s.flags.store(a.flags, std::memory_order_relaxed);
  s.seq.fetch_add(1, std::memory_order_release);
}

// A restorer can only be had by letting libc install something once.
void learn_restorer() {
  if (restorer.load(std::memory_order_relaxed) != nullptr) return;
  KernelAction was, now;
  kernel_action(SIGURG, nullptr, &was);
  struct sigaction any;
  memset(&any, 0, sizeof any);
  any.sa_handler = SIG_IGN;
  real().sigaction(SIGURG, &any, nullptr);
  kernel_action(SIGURG, nullptr, &now);
  restorer.store(now.restorer, std::memory_order_relaxed);
  kernel_action(SIGURG, &was, nullptr);
}

void (*as_handler(void (*f)(int, siginfo_t*, void*)))(int) {
  return reinterpret_cast<void (*)(int)>(reinterpret_cast<void*>(f));
}

void install_wrapper(int sig, const Action& a) {
  KernelAction k;
  k.handler = as_handler(signals_wrapper);
  k.flags = (a.flags & ~static_cast<uint64_t>(SA_RESETHAND)) | SA_SIGINFO | kSaRestorer;
  if (is_ours(sig)) k.flags |= SA_ONSTACK;
  if (sig == kSoft) k.flags |= SA_RESTART;
  if (sig == kHard) k.flags &= ~static_cast<uint64_t>(SA_RESTART);
  k.restorer = restorer.load(std::memory_order_relaxed);
  k.mask = (k.flags & SA_ONSTACK) != 0 ? ~sig_bit(33) : a.mask & ~kOurs;
  kernel_action(sig, &k, nullptr);
  slots[sig].ours.store(true, std::memory_order_relaxed);
}

Action from_user(const struct sigaction* sa) {
  Action a;
  a.handler = sa->sa_handler;
  memcpy(&a.mask, &sa->sa_mask, sizeof a.mask);
  a.flags = static_cast<uint32_t>(sa->sa_flags);
  return a;
}

void to_user(const Action& a, struct sigaction* out) {
  memset(out, 0, sizeof *out);
  out->sa_handler = a.handler;
  memcpy(&out->sa_mask, &a.mask, sizeof a.mask);
  out->sa_flags = static_cast<int>(a.flags & ~kSaRestorer);
}

int set_locked(int sig, const struct sigaction* set, struct sigaction* old) {
  Door in;
  Hold hold(actions_lock);
  int r = 0;
  Slot& s = slots[sig];
  Action was = {};
  bool wrapped = s.ours.load(std::memory_order_relaxed);
  if (wrapped) was = action_of(sig);
  if (set == nullptr || !is_handler(set->sa_handler)) {
    if (is_ours(sig) && wrapped && set != nullptr) slot_write(s, from_user(set));
    else if (!wrapped || set != nullptr) r = real().sigaction(sig, set, wrapped ? nullptr : old);
    if (r == 0 && set != nullptr && (set->sa_handler == SIG_IGN || default_ignores(sig)))
      pending_discard(sig);  // POSIX
    if (r == 0 && set != nullptr && !is_ours(sig)) s.ours.store(false, std::memory_order_relaxed);
  } else {
    KernelAction k;
    if (!wrapped && (r = real().sigaction(sig, nullptr, old)) != 0) {
    } else if (kernel_action(sig, nullptr, &k) == 0 && sig != SIGKILL && sig != SIGSTOP) {
      slot_write(s, from_user(set));
      install_wrapper(sig, from_user(set));
    } else {
      errno = EINVAL;
      r = -1;
    }
  }
  if (r == 0 && wrapped && old != nullptr) to_user(was, old);
  return r;
}

int set_action(int sig, const struct sigaction* set, struct sigaction* old) {
  int r = set_locked(sig, set, old);
  if (r == 0 && set != nullptr) dump_signal_taken(sig);
  return r;
}

}  // namespace

Action action_of(int sig) {
  Slot& s = slots[sig];
  for (;;) {
    uint32_t seq = s.seq.load(std::memory_order_acquire);
    Action a{s.handler.load(std::memory_order_relaxed), s.mask.load(std::memory_order_relaxed),
             s.flags.load(std::memory_order_relaxed)};
    std::atomic_thread_fence(std::memory_order_acquire);
    if ((seq & 1) == 0 && s.seq.load(std::memory_order_relaxed) == seq) return a;
    cpu_relax();
  }
}

void (*signal_restorer())() {
  learn_restorer();
  return restorer.load(std::memory_order_relaxed);
}

bool has_handler(int sig) {
  return slots[sig].ours.load(std::memory_order_relaxed) &&
         is_handler(slots[sig].handler.load(std::memory_order_relaxed));
}

bool default_ignores(int sig) {
  return sig == SIGCHLD || sig == SIGURG || sig == SIGWINCH || sig == SIGCONT;
}

void action_default(int sig) {
  struct sigaction dfl;
  memset(&dfl, 0, sizeof dfl);
  real().sigaction(sig, &dfl, nullptr);
  uint64_t bit = sig_bit(sig);
  sys_sigprocmask(SIG_UNBLOCK, &bit, nullptr);
  real_tgkill(sys_gettid(), sig);
}

void action_reset(int sig) {
  struct sigaction dfl;
  memset(&dfl, 0, sizeof dfl);
  dfl.sa_handler = SIG_DFL;
  set_action(sig, &dfl, nullptr);
}

void actions_boot() {
  learn_restorer();
  wrapping.store(true, std::memory_order_relaxed);
  for (int sig = 1; sig < kSignals; sig++) {
    if (sig == 32 || sig == 33 || slots[sig].ours.load(std::memory_order_relaxed)) continue;
    KernelAction k;
    if (kernel_action(sig, nullptr, &k) != 0) continue;
    if (is_handler(k.handler)) {
      Action a{k.handler, k.mask, k.flags & ~kSaRestorer};
      slot_write(slots[sig], a);
      install_wrapper(sig, a);
    } else if (is_ours(sig)) {
      Action a{k.handler, 0, 0};
      slot_write(slots[sig], a);
      install_wrapper(sig, a);
    }
  }
}

void actions_after_fork() { actions_lock.reset(); }

}  // namespace weft

using namespace weft;

WEFT_EXPORT int sigaction(int sig, const struct sigaction* set, struct sigaction* old) {
  if (!wrapping.load(std::memory_order_relaxed) || in_vfork_child() || sig <= 0 ||
      sig >= kSignals || sig == 32 || sig == 33)
    return real().sigaction(sig, set, old);
  return set_action(sig, set, old);
}
// Erlang has a sigaction of its own, which calls the next one under this name.
WEFT_TWIN(int, __sigaction, sigaction, (int, const struct sigaction*, struct sigaction*));

namespace {

sighandler_t set_handler(int sig, sighandler_t h, int flags) {
  struct sigaction sa, old;
  memset(&sa, 0, sizeof sa);
  sa.sa_handler = h;
  sa.sa_flags = flags;
  if (h == SIG_ERR) {
    errno = EINVAL;
    return SIG_ERR;
  }
  return sigaction(sig, &sa, &old) == 0 ? old.sa_handler : SIG_ERR;
}

std::atomic<uint64_t> no_restart{0};  // siginterrupt(sig, 1): bits of signals

}  // namespace

WEFT_EXPORT sighandler_t signal(int sig, sighandler_t h) {
  bool interrupts =
      sig > 0 && sig < kSignals && (no_restart.load(std::memory_order_relaxed) & sig_bit(sig)) != 0;
  return set_handler(sig, h, interrupts ? 0 : SA_RESTART);
}

WEFT_EXPORT sighandler_t bsd_signal(int sig, sighandler_t h) { return signal(sig, h); }
WEFT_EXPORT sighandler_t ssignal(int sig, sighandler_t h) { return signal(sig, h); }

WEFT_EXPORT sighandler_t sysv_signal(int sig, sighandler_t h) {
  return set_handler(sig, h, static_cast<int>(SA_RESETHAND | SA_NODEFER));
}

WEFT_EXPORT sighandler_t __sysv_signal(int sig, sighandler_t h) { return sysv_signal(sig, h); }

WEFT_EXPORT int siginterrupt(int sig, int on) {
  struct sigaction sa;
  if (sigaction(sig, nullptr, &sa) != 0) return -1;
  if (on != 0) {
    no_restart.fetch_or(sig_bit(sig), std::memory_order_relaxed);
    sa.sa_flags &= ~SA_RESTART;
  } else {
    no_restart.fetch_and(~sig_bit(sig), std::memory_order_relaxed);
    sa.sa_flags |= SA_RESTART;
  }
  return sigaction(sig, &sa, nullptr);
}

WEFT_EXPORT int sigignore(int sig) { return set_handler(sig, SIG_IGN, 0) == SIG_ERR ? -1 : 0; }

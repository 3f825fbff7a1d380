// sigrun.cc - the wrapper that every handler of the program starts from.
//
// Where it may find itself, and what it does (signals.h has the whole):
//   foreign or wired thread       the handler, as natively
//   g0, or a G inside the engine  defer; a fault is never deferred
//   a G in a system call          gets a P first (exit_syscall), then the handler, and is
//                                 back in the call's bracket afterwards
//   a G that runs                 the handler
// A frame that stands on the M's own signal stack is moved to the G's first (sigframe.h):
// until then every signal is blocked, and afterwards the M does not matter any more.
//
// Around the handler g->sigmask is what the kernel's mask is, so that a handler that parks
// keeps its mask on whatever M goes on with it. At the end:
//   1 g->sigmask = the mask after            a  (sender) enqueue
//   2 anything due under it? run it, too     b  not blocked by g->sigmask? poke
// Either 2 sees a or b sees 1; a poke that lands between 1 and rt_sigreturn runs nested.
#include <string.h>

#include "preload/api.h"
#include "preload/cancel.h"
#include "preload/sigframe.h"
#include "preload/signals.h"
#include "preload/thread.h"
#include "sched/sysmon.h"

namespace weft {
namespace {

constexpr uintptr_t kRedZone = 128;
constexpr uint64_t kCountBump = uint64_t{0x10000} << 32;  // see run_one

bool is_handler(void (*h)(int)) { return h != SIG_DFL && h != SIG_IGN; }

// Faults the kernel raised for the instruction at hand: never deferred, never routed.
bool is_fault(int sig, const siginfo_t* info) {
  if (info->si_code <= 0) return false;
  if (info->si_code == SI_KERNEL) return sig == SIGSEGV || sig == SIGBUS || sig == SIGTRAP;
  return sig == SIGSEGV || sig == SIGBUS || sig == SIGFPE || sig == SIGILL || sig == SIGTRAP ||
         sig == SIGSYS;
}

uint64_t mask_in(const ucontext_t* uc) {
  uint64_t m;
  memcpy(&m, &uc->uc_sigmask, sizeof m);
  return m;
}

void mask_out(ucontext_t* uc, uint64_t m) { memcpy(&uc->uc_sigmask, &m, sizeof m); }

void kernel_mask(uint64_t mask) {
  mask = mask_for_kernel(mask);
  sys_sigprocmask(SIG_SETMASK, &mask, nullptr);
}

uint64_t mask_during(uint64_t base, int sig, const Action& a) {
  uint64_t m = base | a.mask;
  if ((a.flags & SA_NODEFER) == 0) m |= sig_bit(sig);
  return m & kMaskable;
}

void call_handler(int sig, siginfo_t* info, void* uc, const Action& a) {
  if ((a.flags & SA_RESETHAND) != 0) action_reset(sig);
  if ((a.flags & SA_SIGINFO) != 0)
    reinterpret_cast<void (*)(int, siginfo_t*, void*)>(reinterpret_cast<void*>(a.handler))(
        sig, info, uc);
  else
    a.handler(sig);
}

// A thread that is no G: as the kernel would have called it.
void run_in_place(int sig, siginfo_t* info, ucontext_t* uc) {
  Action a = action_of(sig);
  if (!is_handler(a.handler)) return;
  if (Thread* t = this_thread()) {  // wired, perhaps since its wait began
    t->sig_handled++;
    if ((a.flags & SA_RESTART) == 0) t->sig_no_restart = true;
  }
  kernel_mask(mask_during(mask_in(uc), sig, a));
  call_handler(sig, info, uc, a);
}

// The lowest due signal that has a handler; 0: none. Others are left to attention.
int next_due(G* g, uint64_t mask) {
  uint64_t due = pending_of(g) & ~mask;
  for (; due != 0; due &= due - 1) {
    int sig = __builtin_ctzll(due) + 1;
    if (has_handler(sig)) return sig;
    g->attention.fetch_or(kAttSignal, std::memory_order_relaxed);
  }
  return 0;
}

struct Run {  // one frame's worth of handlers
  G* g;
  ucontext_t* uc;
  uint64_t seen;     // uc's mask as last seen
  uint64_t after;    // the mask when all is done
  uint64_t by_outer; // Thread::by_handler of the handler we interrupted, if any
  bool in_call = false;
};

// g's mask as a handler begins or ends, and what of it that handler, or one that it interrupted, blocks.
void mask_turns(G* g, uint64_t mask, uint64_t by_handler) {
  Thread* t = thread_of(g);
  uint32_t seq = t->handler_seq.load(std::memory_order_relaxed);
  t->handler_seq.store(seq + 1, std::memory_order_relaxed);
  std::atomic_thread_fence(std::memory_order_release);
  g->sigmask = mask;
  t->by_handler.store(by_handler, std::memory_order_relaxed);
  t->handler_seq.store(seq + 2, std::memory_order_release);
}

// Sets the masks for sig's handler and leaves the system call, if there was one.
void begin_handler(Run& r, const Action& a, int sig) {
  G* g = r.g;
  Thread* t = thread_of(g);
  uint64_t during = mask_during(g->sigmask, sig, a);
  if (t->mask_saved) {  // sigsuspend and its like: the first handler's end restores it
    t->mask_saved = false;
    r.after = t->saved_mask;
    mask_out(r.uc, mask_for_kernel(r.after));
    r.seen = mask_in(r.uc);
  }
  g->attention.fetch_and(~uint32_t{kAttSignal}, std::memory_order_relaxed);
  g->no_preempt++;  // the M stays the same until it and g agree
  mask_turns(g, during, r.by_outer | (during & ~r.after));
  kernel_mask(during);
  g->m->kmask = during;
  g->no_preempt--;
  auto s = static_cast<uint32_t>(g->state.load(std::memory_order_relaxed));
  if (s == static_cast<uint32_t>(GState::kSyscall) || s == kSyscallLost) {
    r.in_call = true;
    exit_syscall(g);
  } else {
    // enter_syscall may be interrupted between its load and store of the count: what the
    // handler counts must not come again after that store (syscall.h, ABA).
    g->state.fetch_add(kCountBump, std::memory_order_relaxed);
  }
}

void run_one(Run& r, int sig, siginfo_t* info, const Action& a) {
  Thread* t = thread_of(r.g);
  if ((a.flags & SA_RESTART) == 0) t->sig_no_restart = true;
  if (M* m = r.g->m; m != nullptr && m->p != nullptr)
    m->trace.add(Ev::kSignal, r.g->index, static_cast<uint64_t>(sig));
  t->sig_handled++;
  pending_pass_on_handling(r.g, sig);
  frame_show_stack(r.uc, r.g->altstack);
  call_handler(sig, info, r.uc, a);
  // It forked, and this is the child. What it returns to is in the middle of a scheduled process:
  // this becomes one again, with g as its first thread.
  if (WEFT_UNLIKELY(r.g->m == nullptr)) weft_boot();
  if (mask_in(r.uc) != r.seen) {  // the handler chose another mask for its return
    r.after = mask_in(r.uc) & kMaskable;
    mask_out(r.uc, mask_for_kernel(r.after));
    r.seen = mask_in(r.uc);
  }
}

// Runs what is queued for g. False if nothing (more) was.
bool run_queued_one(Run& r, bool* began) {
  G* g = r.g;
  uint64_t under = *began ? r.after : g->sigmask;
  int sig = next_due(g, under);
  if (sig == 0) return false;
  g->sigmask = under;
  Action a = action_of(sig);
  begin_handler(r, a, sig);
  *began = true;
  siginfo_t info;
  if (pending_take(g, sig_bit(sig), &info) && is_handler(a.handler)) run_one(r, sig, &info, a);
  return true;
}

void end_run(Run& r) {
  mask_turns(r.g, r.after, r.by_outer);                     // step 1
  r.g->m->kmask = r.after;                                  // as of rt_sigreturn
  std::atomic_thread_fence(std::memory_order_seq_cst);
  // While the handler ran nobody else may have accepted what it blocked, and sysmon closed it.
  masks_note(0, ~r.after);
}

// A real-time signal that came straight to g while older ones of its number are put aside or queued
// for it: it is queued behind them. The engine is left without a look at what is due: that is next.
bool queued_behind(G* g, int sig, const siginfo_t* info) {
  uint64_t bit = sig_bit(sig);
  if (sig < SIGRTMIN || ((pending_of(g) | deferred_pending()) & bit) == 0) return false;
  engine_enter(g);
  while ((deferred_pending() & bit) != 0) {
    signals_route();
    sys_sched_yield();  // another may have it in hand
  }
  bool queued = signal_g_of_process(g, sig, info) == 0;
  compiler_barrier();
  g->engine.store(g->engine.load(std::memory_order_relaxed) - 1, std::memory_order_relaxed);
  return queued;
}

// On g's stack. sig 0: what is queued.
void run_on_g(int sig, siginfo_t* info, ucontext_t* uc) {
  G* g = t_g;
  int saved = errno;
  Run r{g, uc, mask_in(uc), g->sigmask, thread_of(g)->by_handler.load(std::memory_order_relaxed)};
  bool began = false;
  if (sig != 0 && queued_behind(g, sig, info)) sig = 0;
  if (sig != 0) {
    Action a = action_of(sig);
    if (is_handler(a.handler)) {
      begin_handler(r, a, sig);
      began = true;
      errno = saved;
      run_one(r, sig, info, a);
    }
  }
  for (;;) {
    while (run_queued_one(r, &began)) {
    }
    if (began) end_run(r);
    if (next_due(g, g->sigmask) == 0) break;                // step 2
  }
  frame_forget_stack(uc);
  if (r.in_call) enter_syscall(g);
  errno = saved;
}

void run_direct(int sig, siginfo_t* info, void* uc) {
  run_on_g(sig, info, static_cast<ucontext_t*>(uc));
}

void run_queued(int, siginfo_t*, void* uc) { run_on_g(0, nullptr, static_cast<ucontext_t*>(uc)); }

bool cancel_is_due(const G* g) {
  const Thread* t = thread_of(g);
  return t->cancel_async && !t->cancel_disabled && !t->exiting &&
         t->cancel_requested.load(std::memory_order_relaxed) != 0;
}

// An asynchronous cancel: does not come back if it is acted on.
void run_cancel(int, siginfo_t*, void* uc) {
  G* g = t_g;
  kernel_mask(g->sigmask);
  frame_forget_stack(static_cast<ucontext_t*>(uc));
  cancel_attention(g);
}

// The kernel's rule for an alternate stack that is too small.
void die_of_stack() {
  struct sigaction dfl;
  memset(&dfl, 0, sizeof dfl);
  real().sigaction(SIGSEGV, &dfl, nullptr);
  kernel_mask(0);
  real_tgkill(sys_gettid(), SIGSEGV);
}

// Goes on in fn on g's stack: where the frame is, if that is g's already. `sig` says
// whether the alternate one is wanted.
void go_on(G* g, int sig, int wanted_by, siginfo_t* info, ucontext_t* uc, FrameFn fn) {
  if (!frame_on_kernel_stack(uc) || uc->uc_stack.ss_sp == g->altstack.sp) {
    fn(sig, info, uc);
    return;
  }
  auto sp = static_cast<uintptr_t>(uc->uc_mcontext.gregs[REG_RSP]);
  uintptr_t top = sp - kRedZone;
  const AltStack& alt = g->altstack;
  if (wanted_by != 0 && (action_of(wanted_by).flags & SA_ONSTACK) != 0 && alt.sp != nullptr &&
      (alt.flags & SS_DISABLE) == 0 && !on_alt_stack(g, sp)) {
    if (alt.bytes < frame_bytes(uc) + 512) die_of_stack();
    top = reinterpret_cast<uintptr_t>(alt.sp) + alt.bytes;
  }
  frame_move(sig, info, uc, top, fn);
}

}  // namespace

void signals_poked(int sig, siginfo_t* info, ucontext_t* uc) {
  G* g = t_g;
  if (g == nullptr || g->wired || g->m == nullptr) return;
  M* m = g->m;
  m->sent.fetch_and(sig == kSoft ? ~kSentUrg : ~kSentPoke, std::memory_order_seq_cst);
  Preempt why = m->preempt_due.exchange(Preempt::kNo, std::memory_order_relaxed);
  if (g->is_g0) return;
  if (why == Preempt::kGiveUp && end_plain_call(g, uc)) return;
  bool preempt = why != Preempt::kNo;
  if (preempt) g->preempt_why = static_cast<uint8_t>(why);
  if (preempt && (g->engine.load(std::memory_order_relaxed) != 0 || !preempt_safe(g, uc, why))) {
    sched.n_refused.fetch_add(1, std::memory_order_relaxed);
    // It yields at its next way out of the engine; sysmon asks again as well.
    g->attention.fetch_or(kAttPreempt, std::memory_order_relaxed);
    preempt = false;
  }
  if (g->engine.load(std::memory_order_relaxed) != 0) return;  // looks at its attention
  if (int due = next_due(g, g->sigmask); due != 0) {
    if (preempt) g->attention.fetch_or(kAttPreempt, std::memory_order_relaxed);
    go_on(g, sig, due, info, uc, run_queued);
    return;
  }
  if (g_state(g) == GState::kRunning && cancel_is_due(g)) {
    go_on(g, sig, 0, info, uc, run_cancel);
    return;
  }
  if (preempt) go_on(g, sig, 0, info, uc, preempt_here);
}

void signals_wrapper(int sig, siginfo_t* info, void* ucv) {
  auto* uc = static_cast<ucontext_t*>(ucv);
  G* g = t_g;
  if (is_poke(info)) {
    signals_poked(sig, info, uc);
    return;
  }
  carried(info);
  if (g == nullptr || g->wired) {
    if (sig == kHard && info->si_code == SI_TIMER && timer_arrived(info)) return;
    if (g == nullptr && sysmon_thread()) signal_defer(sig, info, uc);
    else run_in_place(sig, info, uc);
    return;
  }
  bool fault = is_fault(sig, info);
  if (fault && g->is_g0) {  // ours: let it happen again, with a core
    struct sigaction dfl;
    memset(&dfl, 0, sizeof dfl);
    real().sigaction(sig, &dfl, nullptr);
    return;
  }
  // Ours are never blocked in the kernel; g may block them all the same.
  bool blocked = is_ours(sig) && (g->sigmask & sig_bit(sig)) != 0;
  if (sig == kHard && info->si_code == SI_TIMER && timer_arrived(info)) return;
  if (is_ours(sig) && !blocked && !has_handler(sig)) {
    if (sig == kHard && action_of(sig).handler == SIG_DFL) action_default(sig);
    return;
  }
  if (!fault && (g->is_g0 || blocked || g->engine.load(std::memory_order_relaxed) != 0)) {
    signal_defer(sig, info, uc);
    if (!g->is_g0) g->attention.fetch_or(kAttSignal, std::memory_order_relaxed);
    return;
  }
  go_on(g, sig, sig, info, uc, run_direct);
}

bool mask_beside_handlers(const G* g, uint64_t* mask) {
  const Thread* t = thread_of(g);
  uint32_t seq = t->handler_seq.load(std::memory_order_acquire);
  *mask = __atomic_load_n(&g->sigmask, __ATOMIC_RELAXED) & ~t->by_handler.load(std::memory_order_relaxed);
  std::atomic_thread_fence(std::memory_order_acquire);
  return (seq & 1) == 0 && t->handler_seq.load(std::memory_order_relaxed) == seq;
}

void signals_boot(G* g1) {
  preempt_boot();
  if (g1 != nullptr) {
    sys_sigprocmask(SIG_SETMASK, nullptr, &g1->sigmask);
    pending_adopt(g1);
    stack_t ss;
    if (sys_call(SYS_sigaltstack, 0, sys_arg(&ss)) == 0) {
      g1->altstack.sp = (ss.ss_flags & SS_DISABLE) != 0 ? nullptr : ss.ss_sp;
      g1->altstack.flags = ss.ss_flags & ~SS_ONSTACK;
      g1->altstack.bytes = ss.ss_size;
    }
    note_own_altstack(g1);
    signal_stack_for_boot();
    kernel_mask(g1->sigmask);
  }
  actions_boot();
}

void signals_attention(G* g) {
  signals_route();
  g->no_preempt++;  // stay on this M until the poke has come back
  for (int tries = 0; tries < 4; tries++) {
    uint64_t due = pending_of(g) & ~g->sigmask;
    if (due == 0) break;
    int sig = __builtin_ctzll(due) + 1;
    if (has_handler(sig)) {
      poke_self(g);
      continue;
    }
    siginfo_t info;
    if (!pending_take(g, sig_bit(sig), &info)) continue;
    Action a = action_of(sig);
    if (a.handler == SIG_IGN || default_ignores(sig)) continue;
    real_tgkill(sys_gettid(), sig);  // default action: the kernel's
  }
  // Another sender has marked the M and is slow to send: what it sends finds the signal,
  // or our next way out of the engine does.
  if ((pending_of(g) & ~g->sigmask) != 0)
    g->attention.fetch_or(kAttSignal, std::memory_order_relaxed);
  g->no_preempt--;
}

bool signals_may_restart() {
  Thread* t = this_thread();
  return t == nullptr || !t->sig_no_restart;
}

void signals_wait_begins() {
  if (Thread* t = this_thread()) t->sig_no_restart = false;
}

}  // namespace weft

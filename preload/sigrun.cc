// sigrun.cc - the wrapper that every handler of the program starts from.
//
// Where it may find itself, and what it does (signals.h has the whole):
//   foreign or wired thread       the handler, as natively
//   g0, or a G inside the engine  defer to sysmon; a fault is never deferred
//   a G in a system call          gets a P first (exit_syscall), then the handler, and is
//                                 back in the call's bracket afterwards
//   a G that runs                 the handler
//   our SIGURG                    the slice is over: park the G inside this frame
//
// Around the handler g->sigmask is what the kernel's mask is, so that a handler that parks
// keeps its mask on whatever M goes on with it. At the end all signals are blocked until
// rt_sigreturn, so that nothing comes between g->sigmask and the kernel's mask agreeing
// again.
#include <link.h>
#include <string.h>
#include <sys/auxv.h>
#include <ucontext.h>

#include "preload/api.h"
#include "preload/signals.h"
#include "preload/thread.h"
#include "sched/sysmon.h"
#undef p_type  // <resolv.h>, by way of thread.h, renames it

namespace weft {
namespace {

// Code that must not be left half-way: libc and the loader (they hold locks we cannot see),
// the vdso (its loops are short), ourselves.
struct Range {
  uintptr_t lo, hi;
};
constexpr size_t kMaxRanges = 16;
Range no_preempt_in[kMaxRanges];
size_t n_ranges;

constexpr size_t kStackLeft = 12 << 10;  // a signal frame with AVX-512 state, and our own

int note_range(dl_phdr_info* info, size_t, void*) {
  const auto here = reinterpret_cast<uintptr_t>(&signals_wrapper);
  const auto libc = reinterpret_cast<uintptr_t>(real().sigaction.get());
  const uintptr_t vdso = getauxval(AT_SYSINFO_EHDR);
  const uintptr_t ldso = getauxval(AT_BASE);
  uintptr_t lo = ~uintptr_t{0}, hi = 0;
  for (int i = 0; i < info->dlpi_phnum; i++) {
    const auto& ph = info->dlpi_phdr[i];
    if (ph.p_type != PT_LOAD) continue;
    uintptr_t from = info->dlpi_addr + ph.p_vaddr, to = from + ph.p_memsz;
    if (from < lo) lo = from;
    if (to > hi) hi = to;
  }
  for (uintptr_t mark : {here, libc, vdso, ldso})
    if (mark >= lo && mark < hi && n_ranges < kMaxRanges) {
      no_preempt_in[n_ranges++] = {lo, hi};
      break;
    }
  return 0;
}

bool safe_to_preempt(G* g, const ucontext_t* uc) {
  if (g->engine.load(std::memory_order_relaxed) != 0 || g->no_preempt != 0 ||
      g_state(g) != GState::kRunning)
    return false;
  auto pc = static_cast<uintptr_t>(uc->uc_mcontext.gregs[REG_RIP]);
  auto sp = static_cast<uintptr_t>(uc->uc_mcontext.gregs[REG_RSP]);
  for (size_t i = 0; i < n_ranges; i++)
    if (pc >= no_preempt_in[i].lo && pc < no_preempt_in[i].hi) return false;
  // Its own stack only: a coroutine's or an alternate one may be anybody's. Main's stack
  // has no record; its bounds are the kernel's business.
  if (g->stack_lo == nullptr) return true;
  return sp >= reinterpret_cast<uintptr_t>(g->stack_lo) + kStackLeft &&
         sp <= reinterpret_cast<uintptr_t>(g->stack_hi);
}

// Parks the G inside this very frame. Its mask is the interrupted one (SIGURG's action
// blocks nothing), so another M can resume it.
void preempt_here(G* g, const ucontext_t* uc) {
  if (!safe_to_preempt(g, uc)) {
    sched.n_refused.fetch_add(1, std::memory_order_relaxed);
    return;
  }
  int saved = errno;
  engine_enter(g);
  if (g->m->p != nullptr) {
    sched.n_preempts.fetch_add(1, std::memory_order_relaxed);
    yield(true);
  }
  engine_exit(g);
  errno = saved;
}

// Faults the kernel raised for the instruction at hand: never deferred, never routed.
bool is_fault(int sig, const siginfo_t* info) {
  return info->si_code > 0 && info->si_code != SI_KERNEL
             ? sig == SIGSEGV || sig == SIGBUS || sig == SIGFPE || sig == SIGILL ||
                   sig == SIGTRAP || sig == SIGSYS
             : info->si_code == SI_KERNEL && (sig == SIGSEGV || sig == SIGBUS || sig == SIGTRAP);
}

void call_handler(int sig, siginfo_t* info, void* uc, const Action& a) {
  if ((a.flags & SA_RESETHAND) != 0) action_reset(sig);
  if ((a.flags & SA_SIGINFO) != 0)
    reinterpret_cast<void (*)(int, siginfo_t*, void*)>(reinterpret_cast<void*>(a.handler))(
        sig, info, uc);
  else
    a.handler(sig);
}

uint64_t mask_in(const ucontext_t* uc) {
  uint64_t m;
  memcpy(&m, &uc->uc_sigmask, sizeof m);
  return m;
}

void run_on_g(G* g, int sig, siginfo_t* info, ucontext_t* uc) {
  Action a = action_of(sig);
  if (a.handler == SIG_DFL || a.handler == SIG_IGN) return;  // changed meanwhile
  Thread* t = thread_of(g);
  int saved = errno;
  uint64_t during;  // from the kernel: under sigsuspend and ppoll it is not uc's mask plus ours
  g->no_preempt++;
  sys_sigprocmask(SIG_SETMASK, nullptr, &during);
  g->sigmask = during;
  g->m->kmask = during;
  g->no_preempt--;
  auto s = static_cast<uint32_t>(g->state.load(std::memory_order_relaxed));
  bool in_call = s == static_cast<uint32_t>(GState::kSyscall) || s == kSyscallLost;
  if (in_call) exit_syscall(g);
  if ((a.flags & SA_RESTART) == 0) t->sig_no_restart = true;
  if (this_m() != nullptr && this_m()->p != nullptr)
    this_m()->trace.add(Ev::kSignal, g->index, static_cast<uint64_t>(sig));
  errno = saved;
  t->sig_handled++;
  call_handler(sig, info, uc, a);
  saved = errno;
  // Back to the interrupted mask, in one piece with rt_sigreturn.
  uint64_t all = kAllSignals;
  sys_sigprocmask(SIG_SETMASK, &all, nullptr);
  if (in_call) enter_syscall(g);
  g->sigmask = mask_in(uc) & kAllSignals;
  g->m->kmask = g->sigmask;
  const stack_t& ss = uc->uc_stack;
  bool off = (ss.ss_flags & SS_DISABLE) != 0;
  g->altstack = AltStack{off ? nullptr : ss.ss_sp, ss.ss_flags & ~SS_ONSTACK, 0, ss.ss_size};
  g->m->kalt = g->altstack;
  // What the mask now lets in waits for rt_sigreturn, which delivers it.
  uint64_t due = pending_of(g) & ~g->sigmask;
  if (WEFT_UNLIKELY(due != 0)) {
    g->attention.fetch_or(kAttSignal, std::memory_order_relaxed);
    poke(g, __builtin_ctzll(due) + 1);
  }
  errno = saved;
}

}  // namespace

void signals_wrapper(int sig, siginfo_t* info, void* ucv) {
  auto* uc = static_cast<ucontext_t*>(ucv);
  G* g = t_g;
  bool poked = is_poke(info);
  if (sig == SIGURG && poked && poke_target(info) == nullptr) {
    if (g != nullptr && !g->is_g0 && !g->wired) preempt_here(g, uc);
    return;
  }
  if (g == nullptr || (g->wired && !poked)) {
    if (g == nullptr && sysmon_thread()) {
      signal_defer(sig, info);
      return;
    }
    if (poked) return;
    Action a = action_of(sig);
    if (a.handler != SIG_DFL && a.handler != SIG_IGN) call_handler(sig, info, uc, a);
    return;
  }
  if (poked) {
    if (poke_target(info) != g || g->engine.load(std::memory_order_relaxed) != 0) return;
    siginfo_t queued;
    if (pending_take(g, sig_bit(sig), &queued)) run_on_g(g, sig, &queued, uc);
    return;
  }
  if (is_fault(sig, info) && !g->is_g0) {
    run_on_g(g, sig, info, uc);
    return;
  }
  if (g->is_g0 || g->engine.load(std::memory_order_relaxed) != 0) {
    signal_defer(sig, info);
    return;
  }
  run_on_g(g, sig, info, uc);
}

void signals_boot(G* g1) {
  n_ranges = 0;
  dl_iterate_phdr(note_range, nullptr);
  if (g1 != nullptr) {
    sys_sigprocmask(SIG_SETMASK, nullptr, &g1->sigmask);
    stack_t ss;
    if (sys_call(SYS_sigaltstack, 0, sys_arg(&ss)) == 0) {
      g1->altstack.sp = (ss.ss_flags & SS_DISABLE) != 0 ? nullptr : ss.ss_sp;
      g1->altstack.flags = ss.ss_flags & ~SS_ONSTACK;
      g1->altstack.bytes = ss.ss_size;
    }
  }
  actions_boot();
}

void signals_attention(G* g) {
  g->no_preempt++;  // stay on this M until the poke has come back
  for (;;) {
    uint64_t due = pending_of(g) & ~g->sigmask;
    if (due == 0) break;
    int sig = __builtin_ctzll(due) + 1;
    if (has_handler(sig)) {
      poke(g, sig);
      if ((pending_of(g) & due & sig_bit(sig)) != 0 && has_handler(sig)) break;  // not taken: later
      continue;
    }
    siginfo_t info;
    if (!pending_take(g, sig_bit(sig), &info)) continue;
    Action a = action_of(sig);
    if (a.handler == SIG_IGN || default_ignores(sig)) continue;
    real_tgkill(g->m->tid.load(std::memory_order_relaxed), sig);  // default action: the kernel's
  }
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

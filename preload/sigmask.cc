// sigmask.cc - masks and alternate stacks of Gs.
//
// A running G's mask is also its M's in the kernel; host_sync_signals makes it so at each
// switch between Gs that differ. libc's own jumps restore masks behind our back
// (siglongjmp, setcontext), so they are interposed to tell g->sigmask.
#include <setjmp.h>
#include <string.h>
#include <ucontext.h>

#include "preload/api.h"
#include "preload/cancel.h"
#include "preload/signals.h"
#include "preload/stub.h"
#include "preload/tls_modules.h"
#include "preload/thread.h"
#include "preload/wire.h"
#include "sched/spinwait.h"

namespace weft {

namespace {

// What a fork child's kernel thread is to have. TLS: per G.
thread_local constinit AltStack t_own_altstack;

void kernel_altstack(const AltStack& s) {
  stack_t ss;
  memset(&ss, 0, sizeof ss);
  ss.ss_sp = s.sp;
  ss.ss_flags = s.flags;
  ss.ss_size = s.bytes;
  sys_call(SYS_sigaltstack, sys_arg(&ss), 0);
}

void kernel_mask(uint64_t mask) {
  mask = mask_for_kernel(mask);
  sys_sigprocmask(SIG_SETMASK, &mask, nullptr);
}

}  // namespace

void host_sync_signals(M* m, G* next) {
  kernel_mask(next->sigmask);
  m->kmask = next->sigmask;
}

void note_own_altstack(const G* g) { t_own_altstack = g->altstack; }

void signal_after_fork() {
  actions_after_fork();
  kernel_altstack(t_own_altstack);
}

void signals_wired(G* g) {
  kernel_altstack(g->altstack);
  uint64_t mask = g->sigmask & kMaskable;
  sys_sigprocmask(SIG_SETMASK, &mask, nullptr);
}

bool on_alt_stack(const G* g, uintptr_t sp) {
  auto lo = reinterpret_cast<uintptr_t>(g->altstack.sp);
  return (g->altstack.flags & SS_DISABLE) == 0 && sp > lo && sp - lo <= g->altstack.bytes;
}

void host_attention(G* g) {
  int saved = errno;  // the calls that come here on their way out do not expect it changed
  uint32_t bits = g->attention.exchange(0, std::memory_order_acquire);
  if ((bits & (kAttProbe | kAttResumed)) != 0) spin_called(g);
  if ((bits & kAttModules) != 0) tls_modules_refresh();
  if ((bits & kAttWire) != 0) wire_attention(g);
  if ((bits & kAttSignal) != 0) signals_attention(g);
  if ((bits & (kAttPreempt | kAttMakeWay)) != 0 && this_g() == g && g->no_preempt == 0) {
    engine_enter(g);
    Preempt why = preempt_why_taken(g);
    if ((bits & kAttPreempt) == 0) why = Preempt::kMakeWay;
    if (g->m->p != nullptr) yield_preempted(why);
    engine_exit(g);
  }
  errno = saved;
  if ((bits & kAttCancel) != 0) cancel_attention(g);
}

// The kernel's mask follows outside the engine, so that what it lets in runs here and now:
// what was pending is handled before sigprocmask returns, so sysmon must not be quicker and
// take it (keeps_open). A handler in between may take us to another M: it leaves kernel and
// kmask agreeing there; or jump out, to another call of this.
void set_masks(G* g, uint64_t mask) {
  Thread* t = thread_of(g);
  engine_enter(g);
  t->opening.store(g->sigmask & ~mask, std::memory_order_release);
  g->sigmask = mask;
  g->m->kmask = mask;
  compiler_barrier();
  g->engine.store(g->engine.load(std::memory_order_relaxed) - 1, std::memory_order_relaxed);
  compiler_barrier();
  kernel_mask(mask);
  t->opening.store(0, std::memory_order_release);
  engine_enter(g);
  engine_exit(g);  // attention
}

uint64_t mask_swap(G* g, uint64_t mask) {
  mask &= kMaskable;
  uint64_t old = g->sigmask;
  if (mask == old) return old;
  if ((pending_of(g) & ~old) != 0) signals_attention(g);  // before the door closes
  set_masks(g, mask);
  masks_note(mask & ~old, old & ~mask);
  // What we let in is handled before we return, also if another just routes it: first it is seen there,
  // then as both, then queued for us, or with the kernel again.
  for (;;) {
    uint64_t routed = deferred_pending() & ~mask;
    std::atomic_signal_fence(std::memory_order_seq_cst);
    if (routed != 0 || (pending_of(g) & ~mask) != 0) signals_attention(g);
    if (routed == 0) return old;
    sys_sched_yield();
  }
}

namespace {

// A wired G's mask is the kernel's; others read it in the G all the same.
int native_mask(int how, const sigset_t* set, sigset_t* old) {
  int r = real().pthread_sigmask(how, set, old);
  G* g = t_g;
  if (r == 0 && set != nullptr && g != nullptr && g->wired) {
    uint64_t was = g->sigmask;
    sys_sigprocmask(SIG_BLOCK, nullptr, &g->sigmask);
    masks_note(g->sigmask & ~was, was & ~g->sigmask);
  }
  return r;
}

int change_mask(G* g, int how, const sigset_t* set, sigset_t* old) {
  uint64_t bits = 0, was = g->sigmask;
  if (set != nullptr) {
    memcpy(&bits, set, sizeof bits);
    uint64_t mask;
    switch (how) {
      case SIG_BLOCK: mask = was | bits; break;
      case SIG_UNBLOCK: mask = was & ~bits; break;
      case SIG_SETMASK: mask = bits; break;
      default: return EINVAL;
    }
    mask_swap(g, mask);
  }
  if (old != nullptr) {
    memset(old, 0, sizeof *old);
    memcpy(old, &was, sizeof was);
  }
  return 0;
}

}  // namespace
}  // namespace weft

using namespace weft;

WEFT_EXPORT int pthread_sigmask(int how, const sigset_t* set, sigset_t* old) {
  G* g = this_g();
  if (g == nullptr) return native_mask(how, set, old);
  return change_mask(g, how, set, old);
}

WEFT_EXPORT int sigprocmask(int how, const sigset_t* set, sigset_t* old) {
  G* g = this_g();
  int r = g == nullptr ? native_mask(how, set, old) : change_mask(g, how, set, old);
  if (r == 0) return 0;
  errno = r;
  return -1;
}

WEFT_EXPORT int sighold(int sig) {
  sigset_t s;
  sigemptyset(&s);
  return sigaddset(&s, sig) != 0 ? -1 : sigprocmask(SIG_BLOCK, &s, nullptr);
}

WEFT_EXPORT int sigrelse(int sig) {
  sigset_t s;
  sigemptyset(&s);
  return sigaddset(&s, sig) != 0 ? -1 : sigprocmask(SIG_UNBLOCK, &s, nullptr);
}

WEFT_EXPORT int sigpending(sigset_t* set) {
  int r = real().sigpending(set);
  G* g = this_g();
  if (r != 0 || g == nullptr) return r;
  uint64_t bits;
  memcpy(&bits, set, sizeof bits);
  bits |= (pending_of(g) | deferred_pending()) & g->sigmask;
  memcpy(set, &bits, sizeof bits);
  return 0;
}

// No system call: the kernel knows the M's stack only (sigframe.h).
WEFT_EXPORT int sigaltstack(const stack_t* ss, stack_t* old) {
  G* g = this_g();
  if (g == nullptr) return real().sigaltstack(ss, old);
  AltStack& s = g->altstack;
  bool on = on_alt_stack(g, reinterpret_cast<uintptr_t>(__builtin_frame_address(0)));
  stack_t was;
  memset(&was, 0, sizeof was);
  was.ss_sp = s.sp;
  was.ss_size = s.bytes;
  was.ss_flags = s.sp == nullptr ? SS_DISABLE : s.flags | (on ? SS_ONSTACK : 0);
  int err = 0;
  if (ss != nullptr) {
    constexpr int kAutodisarm = static_cast<int>(1u << 31);
    int mode = ss->ss_flags & ~kAutodisarm;
    if (on) err = EPERM;
    else if (mode != 0 && mode != SS_ONSTACK && mode != SS_DISABLE) err = EINVAL;
    else if (mode != SS_DISABLE && ss->ss_size < 2048 /*the kernel's least*/) err = ENOMEM;
    else if (mode == SS_DISABLE) s = AltStack{};
    else s = AltStack{ss->ss_sp, 0, 0, ss->ss_size};
    if (err == 0) note_own_altstack(g);
  }
  if (err != 0) {
    errno = err;
    return -1;
  }
  if (old != nullptr) *old = was;
  return 0;
}

namespace {

// BSD's 32-bit masks; deprecated, yet called.
int old_mask(int how, int mask) {
  sigset_t s, old;
  memset(&s, 0, sizeof s);
  memcpy(&s, &mask, sizeof mask);
  sigprocmask(how, &s, &old);
  int was;
  memcpy(&was, &old, sizeof was);
  return was;
}

}  // namespace

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
WEFT_EXPORT int sigblock(int mask) { return old_mask(SIG_BLOCK, mask); }
WEFT_EXPORT int sigsetmask(int mask) { return old_mask(SIG_SETMASK, mask); }
WEFT_EXPORT int siggetmask(void) { return old_mask(SIG_BLOCK, 0); }
#pragma GCC diagnostic pop

namespace {

// What they blocked stays blocked.
void handlers_left(G* g) {
  if (thread_of(g)->by_handler.exchange(0, std::memory_order_relaxed) != 0) pending_pass_on(g);
}

// Called before libc restores a mask by itself.
void mask_will_be(const sigset_t* set) {
  G* g = this_g();
  if (g == nullptr) return;
  uint64_t mask;
  memcpy(&mask, set, sizeof mask);
  handlers_left(g);
  mask_swap(g, mask);
}

struct JumpBuf {  // the public part of jmp_buf
  __jmp_buf regs;
  int mask_was_saved;
  __sigset_t saved_mask;
};

void before_jump(void* env) {
  // Out of a handler, perhaps: of one that interrupted a wait of ours, or a fault of the
  // program's memory inside the engine.
  if (G* g = this_g()) {
    g->engine.store(0, std::memory_order_relaxed);
    g->no_preempt = 0;
    g->in_plain.store(false, std::memory_order_relaxed);
    Thread* t = thread_of(g);
    t->mask_saved = false;
    if (t->sigwait_set.load(std::memory_order_relaxed) != 0) {
      t->sigwait_set.store(0, std::memory_order_relaxed);
      pending_pass_on(g);
    }
    t->opening.store(0, std::memory_order_relaxed);
  }
  auto* b = static_cast<JumpBuf*>(env);
  if (b->mask_was_saved != 0) mask_will_be(reinterpret_cast<const sigset_t*>(&b->saved_mask));
  else if (G* g = this_g()) handlers_left(g);
}

}  // namespace

WEFT_EXPORT void siglongjmp(sigjmp_buf env, int value) {
  before_jump(env);
  real().siglongjmp(env, value);
  __builtin_unreachable();
}

WEFT_EXPORT void longjmp(jmp_buf env, int value) {
  before_jump(env);
  real().longjmp(env, value);
  __builtin_unreachable();
}

WEFT_EXPORT void _longjmp(jmp_buf env, int value) {
  before_jump(env);
  real()._longjmp(env, value);
  __builtin_unreachable();
}

extern "C" void __longjmp_chk(struct __jmp_buf_tag*, int) __attribute__((noreturn));
WEFT_EXPORT void __longjmp_chk(struct __jmp_buf_tag* env, int value) {
  before_jump(env);
  real().__longjmp_chk(env, value);
  __builtin_unreachable();
}

// It saves the old mask and sets the new one in the kernel; we only note the new one. No
// switch can come between: neither we nor libc are left half-way by preemption. What it saves
// may be gone back to more than once, long after it has returned: no frame of ours may be in it.
extern "C" __attribute__((used, visibility("hidden"))) void* weft_way_swapcontext(
    ucontext_t*, const ucontext_t* to) {
  if (G* g = this_g()) {
    uint64_t mask;
    memcpy(&mask, &to->uc_sigmask, sizeof mask);
    // Ours, blocked by a mask that the program made itself: until M's next switch.
    bool ours_too = (mask & kOurs) != 0;
    mask &= kMaskable;
    if (uint64_t was = g->sigmask; mask != was || ours_too) {
      engine_enter(g);
      g->sigmask = mask;
      g->m->kmask = ours_too ? kMaskUnknown : mask;
      // Not engine_exit: another M, if attention took us there, would have the new mask already, and
      // libc would save that.
      compiler_barrier();
      g->engine.store(g->engine.load(std::memory_order_relaxed) - 1, std::memory_order_relaxed);
      masks_note(mask & ~was, was & ~mask);
      if (((pending_of(g) | deferred_pending()) & ~mask) != 0)
        g->attention.fetch_or(kAttSignal, std::memory_order_relaxed);
    }
  }
  return reinterpret_cast<void*>(real().swapcontext.get());
}
WEFT_STUB(swapcontext);

WEFT_EXPORT int setcontext(const ucontext_t* uc) {
  mask_will_be(&uc->uc_sigmask);
  return real().setcontext(uc);
}

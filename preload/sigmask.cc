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
#include "preload/tcb.h"
#include "preload/thread.h"
#include "preload/wire.h"

namespace weft {

void host_sync_signals(M* m, G* next) {
  if (m->kmask != next->sigmask) {
    sys_sigprocmask(SIG_SETMASK, &next->sigmask, nullptr);
    m->kmask = next->sigmask;
  }
  if (m->kalt.sp != next->altstack.sp || m->kalt.flags != next->altstack.flags) {
    stack_t ss;
    memset(&ss, 0, sizeof ss);
    ss.ss_sp = next->altstack.sp;
    ss.ss_flags = next->altstack.flags;
    ss.ss_size = next->altstack.bytes;
    if (sys_call(SYS_sigaltstack, sys_arg(&ss), 0) == 0) m->kalt = next->altstack;
  }
}

void host_attention(G* g) {
  uint32_t bits = g->attention.exchange(0, std::memory_order_acquire);
  if ((bits & kAttModules) != 0) tcb_modules_refresh();
  if ((bits & kAttWire) != 0) wire_attention(g);
  if ((bits & kAttSignal) != 0) signals_attention(g);
  if ((bits & kAttPreempt) != 0 && this_g() == g) {
    engine_enter(g);
    if (g->m->p != nullptr) yield(true);
    engine_exit(g);
  }
  if ((bits & kAttCancel) != 0) cancel_attention(g);
}

uint64_t mask_swap(G* g, uint64_t mask) {
  mask &= kAllSignals & ~(sig_bit(SIGKILL) | sig_bit(SIGSTOP));
  engine_enter(g);
  uint64_t old = g->sigmask;
  if (mask != old) {
    g->sigmask = mask;
    sys_sigprocmask(SIG_SETMASK, &mask, nullptr);
    g->m->kmask = mask;
  }
  engine_exit(g);
  if (mask != old) {
    masks_note(mask & ~old, old & ~mask);
    if ((pending_of(g) & ~mask) != 0) signals_attention(g);
  }
  return old;
}

namespace {

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
  if (g == nullptr) return real().pthread_sigmask(how, set, old);
  return change_mask(g, how, set, old);
}

WEFT_EXPORT int sigprocmask(int how, const sigset_t* set, sigset_t* old) {
  G* g = this_g();
  if (g == nullptr) return real().sigprocmask(how, set, old);
  int r = change_mask(g, how, set, old);
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
  bits |= pending_of(g) & g->sigmask;
  memcpy(set, &bits, sizeof bits);
  return 0;
}

WEFT_EXPORT int sigaltstack(const stack_t* ss, stack_t* old) {
  G* g = this_g();
  if (g == nullptr) return real().sigaltstack(ss, old);
  engine_enter(g);
  int r = real().sigaltstack(ss, old);
  if (r == 0 && ss != nullptr) {
    g->altstack.sp = (ss->ss_flags & SS_DISABLE) != 0 ? nullptr : ss->ss_sp;
    g->altstack.flags = ss->ss_flags & ~SS_ONSTACK;
    g->altstack.bytes = ss->ss_size;
    g->m->kalt = g->altstack;
  }
  engine_exit(g);
  return r;
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

// Called before libc restores a mask by itself.
void mask_will_be(const sigset_t* set) {
  G* g = this_g();
  if (g == nullptr) return;
  uint64_t mask;
  memcpy(&mask, set, sizeof mask);
  mask_swap(g, mask);
}

struct JumpBuf {  // the public part of jmp_buf
  __jmp_buf regs;
  int mask_was_saved;
  __sigset_t saved_mask;
};

void before_jump(void* env) {
  auto* b = static_cast<JumpBuf*>(env);
  if (b->mask_was_saved != 0) mask_will_be(reinterpret_cast<const sigset_t*>(&b->saved_mask));
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
// switch can come between: neither we nor libc are left half-way by preemption.
WEFT_EXPORT int swapcontext(ucontext_t* from, const ucontext_t* to) {
  G* g = this_g();
  if (g != nullptr) {
    uint64_t mask;
    memcpy(&mask, &to->uc_sigmask, sizeof mask);
    mask &= kAllSignals;
    if (mask != g->sigmask) {
      masks_note(mask & ~g->sigmask, g->sigmask & ~mask);
      g->sigmask = mask;
      g->m->kmask = mask;
    }
  }
  return real().swapcontext(from, to);
}

WEFT_EXPORT int setcontext(const ucontext_t* uc) {
  mask_will_be(&uc->uc_sigmask);
  return real().setcontext(uc);
}

// cancel.cc - cancellation of Gs: libc's state machine in our own words.
//
// The target acts by libc's own pthread_exit(PTHREAD_CANCELED), whose unwinding runs cleanup
// handlers and C++ destructors and lands in host_g_main. libc's own cancellation bits in
// the target's TCB are set along (tcb_cancel_word): cancellation points inside libc that we
// do not interpose (fgetc, aio_suspend ...) then act by themselves, and land there, too.
//
// How a request reaches the target, wherever that is:
//   runs, deferred     it looks at its next cancellation point
//   about to park      park() sees kAttCancel, which stays up while a cancel is due; a wait that is
//                      no cancellation point (is_cancel_point) goes on
//   parked             an interruptible wait ends (park_interrupt) and its cancel_point acts;
//                      any wait at all if the target is asynchronous: then it acts on its
//                      way out of the engine (host_attention)
//   in a kernel call   signal 32 to its M: the handler acts at once if the target is inside
//                      in_cancel_syscall and the call has not gone through
//   in a call of libc's own  signal 32, too: libc marks the thread asynchronous around each
//   runs, asynchronous signal 32 likewise; the handler acts if the target is outside the
//                      engine, else its way out of the engine does
//
// Signal 32 is libc's own SIGCANCEL. Our action for it stands while weft is booted; what is
// not ours (libc's cancel of a native thread) is passed on to libc's handler.
//
// Disabling: a thread with cancellation disabled must not be woken by a request. The
// canceller announces itself (cancel_senders), then looks at cancel_disabled; the target sets
// that, then waits for announced ones and takes kAttCancel down. Both are seq_cst.
//
// libc may act by itself inside a call we make in the syscall protocol, too (its own locks and
// semaphores, or a request that came between our check and its). Its unwinding then passes
// weft_libc_call, a frame whose personality routine leaves the protocol (once.cc has such a
// frame, too).
#include <string.h>
#include <ucontext.h>

#include "preload/api.h"
#include "preload/cancel.h"
#include "preload/signals.h"
#include "preload/tcb.h"
#include "preload/thread.h"
#undef p_type  // <resolv.h>, by way of thread.h, renames it

extern "C" __attribute__((visibility("hidden"), used)) int weft_libc_call_personality(
    int version, int actions, uint64_t cls, void* exc, void* context);

__asm__(
    "        .text\n"
    "        .p2align 4\n"
    "        .globl  weft_libc_call\n"
    "        .hidden weft_libc_call\n"
    "        .type   weft_libc_call, @function\n"
    "weft_libc_call:\n"  // long (long (*fn)(void*), void* arg); no clobbers beyond fn's
    "        .cfi_startproc\n"
    "        .cfi_personality 0x1b, weft_libc_call_personality\n"  // pc-relative, 4 bytes
    "        endbr64\n"
    "        subq    $8, %rsp\n"
    "        .cfi_adjust_cfa_offset 8\n"
    "        movq    %rdi, %rax\n"
    "        movq    %rsi, %rdi\n"
    "        callq   *%rax\n"
    "        addq    $8, %rsp\n"
    "        .cfi_adjust_cfa_offset -8\n"
    "        ret\n"
    "        .cfi_endproc\n"
    "        .size   weft_libc_call, . - weft_libc_call\n");

namespace weft {
namespace {

constexpr int kCleanupPhase = 2;    // _UA_CLEANUP_PHASE
constexpr int kContinueUnwind = 8;  // _URC_CONTINUE_UNWIND
constexpr int kSigCancel = 32;
constexpr int kMark = -0x77656663;  // si_code of ours; none of the kernel's or libc's
constexpr int kPokes = 40;          // tries to catch an asynchronous target between two places

struct KernelAction {
  void* handler;
  unsigned long flags;
  void* restorer;
  uint64_t mask;
};
// libc's bits.
constexpr int kBitDisabled = 1, kBitAsync = 2, kBitCanceled = 8, kBitExiting = 16;

void libc_bits(const Thread* t, int set, int clear) {
  auto* word = tcb_cancel_word(t->g);
  if (word == nullptr) return;
  if (set != 0) word->fetch_or(set, std::memory_order_relaxed);
  if (clear != 0) word->fetch_and(~clear, std::memory_order_relaxed);
}

bool in_libc_call(const Thread* t) {
  auto* word = tcb_cancel_word(t->g);
  return word != nullptr && (word->load(std::memory_order_relaxed) & kBitAsync) != 0;
}

KernelAction libc_action;       // for SIGCANCEL, once libc has set one
std::atomic<bool> installed{false};
Lock install_lock;

[[noreturn]] void act(Thread* t) {
  t->exiting = true;
  t->in_cancel_call = false;
  t->sigwait_set.store(0, std::memory_order_relaxed);
  t->result = PTHREAD_CANCELED;
  real().pthread_exit(PTHREAD_CANCELED);
  __builtin_unreachable();
}

// The thread ends already, by libc's word: it has acted by itself, or is in pthread_exit.
bool libc_exits(const Thread* t) {
  auto* word = tcb_cancel_word(t->g);
  return word != nullptr && (word->load(std::memory_order_relaxed) & kBitExiting) != 0;
}

bool due(const Thread* t) {
  return t->cancel_requested.load(std::memory_order_acquire) != 0 &&
         !t->cancel_disabled.load(std::memory_order_relaxed) && !t->exiting && !libc_exits(t);
}

// The interrupted instruction is the one after `syscall` and the call has been answered by
// more than an interrupt: its effect is not to be lost.
bool call_went_through(const ucontext_t* uc) {
  const auto* pc = reinterpret_cast<const unsigned char*>(uc->uc_mcontext.gregs[REG_RIP]);
  return pc[-2] == 0x0f && pc[-1] == 0x05 && uc->uc_mcontext.gregs[REG_RAX] != -EINTR;
}

// Handler of signal 32, on the target's M.
void poked(int sig, siginfo_t* info, void* ucv) {
  Thread* t = this_thread();
  if (t == nullptr && gfutex_nudge()) return;
  if (info->si_code != kMark) {
    auto* f = reinterpret_cast<void (*)(int, siginfo_t*, void*)>(libc_action.handler);
    if (f != nullptr) f(sig, info, ucv);
    return;
  }
  if (t == nullptr || info->si_value.sival_ptr != t || !due(t)) return;
  G* g = t->g;
  if (g->wired && gfutex_nudge()) return;
  if (g->engine.load(std::memory_order_relaxed) != 0 || g->no_preempt != 0) return;
  auto s = static_cast<uint32_t>(g->state.load(std::memory_order_relaxed));
  bool in_call = s == static_cast<uint32_t>(GState::kSyscall) || s == kSyscallLost;
  if (!t->cancel_async) {
    if (!t->in_cancel_call && !in_libc_call(t)) return;
    if (call_went_through(static_cast<ucontext_t*>(ucv))) return;
  }
  int saved = errno;
  if (in_call) exit_syscall(g);
  errno = saved;
  act(t);
}

void install() {
  if (installed.load(std::memory_order_acquire)) return;
  Hold hold(install_lock);
  if (installed.load(std::memory_order_relaxed)) return;
  KernelAction now, old;
  sys_call(SYS_rt_sigaction, kSigCancel, 0, sys_arg(&old), 8);
  if (old.handler != reinterpret_cast<void*>(&poked)) libc_action = old;
  // No SA_ONSTACK: it unwinds the stack it interrupts. SA_RESTART: a poke that meets
  // another G than it was meant for leaves no trace. SA_NODEFER: the mask stays what it is.
  now.handler = reinterpret_cast<void*>(&poked);
  now.flags = SA_SIGINFO | SA_RESTART | SA_NODEFER | 0x04000000 /*SA_RESTORER*/;
  now.restorer = reinterpret_cast<void*>(signal_restorer());
  now.mask = 0;
  sys_call(SYS_rt_sigaction, kSigCancel, sys_arg(&now), 0, 8);
  installed.store(true, std::memory_order_release);
}

// `t` is null for a thread that is no G.
void poke(Thread* t, int tid) {
  if (tid == 0) return;
  siginfo_t info;
  memset(&info, 0, sizeof info);
  info.si_signo = kSigCancel;
  info.si_code = kMark;
  info.si_pid = sys_getpid();
  info.si_value.sival_ptr = t;
  sys_call(SYS_rt_tgsigqueueinfo, sys_getpid(), tid, kSigCancel, sys_arg(&info));
}

void poke(Thread* t) {
  M* m = t->g->m;
  if (m != nullptr) poke(t, m->tid.load(std::memory_order_relaxed));
}

// Whether g executes on an M just now: in user code, in the engine or in the kernel.
bool runs(const G* g) {
  auto s = static_cast<uint32_t>(g->state.load(std::memory_order_seq_cst));
  return s == static_cast<uint32_t>(GState::kRunning) ||
         s == static_cast<uint32_t>(GState::kSyscall) || s == kSyscallLost;
}

// Ends whatever an asynchronous target waits in. Its wait may begin or end while we look,
// hence the loop; once the target has seen kAttCancel it is on its way.
void reach_async(Thread* t) {
  G* g = t->g;
  for (int i = 0; i < kPokes && !t->exiting && due(t); i++) {
    if (park_break(g)) return;
    if (runs(g) && (i & 7) == 0) poke(t);
    else if (!runs(g) && g_state(g) != GState::kWaiting) return;  // on its way to a P, or over
    cpu_relax();
  }
}

}  // namespace

bool host_cancel_due(bool at_point) {
  if (Thread* t = this_thread()) return due(t) && (at_point || t->cancel_async);
  int bits = tcb_own_cancel_bits();
  return (bits & kBitCanceled) != 0 && (bits & (kBitDisabled | kBitExiting)) == 0 &&
         (at_point || (bits & kBitAsync) != 0);
}

bool cancel_pending() { return host_cancel_due(true); }

void host_cancel_at_once() {
  if (WEFT_LIKELY(!host_cancel_due(false))) return;
  Thread* t = this_thread();
  if (t == nullptr) real().pthread_testcancel();
  else act(t);
}

void cancel_point() {
  Thread* t = this_thread();
  if (t == nullptr) {
    if (sched.booted.load(std::memory_order_relaxed)) real().pthread_testcancel();
    return;
  }
  if (WEFT_UNLIKELY(t->cancel_requested.load(std::memory_order_acquire) != 0) && due(t)) act(t);
}

void cancel_point_at_start() {
  Thread* t = this_thread();
  if (WEFT_UNLIKELY(t->cancel_requested.load(std::memory_order_acquire) != 0) && t->cancel_async)
    cancel_point();
}

void cancel_before_call(Thread* t) {
  if (!due(t)) return;
  G* g = t->g;
  if (!g->wired) exit_syscall(g);
  act(t);
}

void cancel_attention(G* g) {
  Thread* t = this_thread();
  if (t == nullptr || !due(t)) return;
  auto s = static_cast<uint32_t>(g->state.load(std::memory_order_relaxed));
  if (t->cancel_async && s == static_cast<uint32_t>(GState::kRunning)) act(t);
  g->attention.fetch_or(kAttCancel, std::memory_order_relaxed);  // its next wait looks
}

void cancel_landed(Thread* t) {
  if (!t->exiting) t->result = PTHREAD_CANCELED;  // libc acted by itself
  t->exiting = true;
  auto s = static_cast<uint32_t>(t->g->state.load(std::memory_order_relaxed));
  bool in_call = s == static_cast<uint32_t>(GState::kSyscall) || s == kSyscallLost;
  if (in_call && this_g() != nullptr) exit_syscall(t->g);
}

// An unwinding leaves a call of libc's.
static void left_libc_call(Thread* t) {
  t->in_cancel_call = false;
  if (!t->exiting && libc_exits(t)) {  // libc acted by itself
    t->exiting = true;
    t->result = PTHREAD_CANCELED;
  }
  auto s = static_cast<uint32_t>(t->g->state.load(std::memory_order_relaxed));
  bool in_call = s == static_cast<uint32_t>(GState::kSyscall) || s == kSyscallLost;
  if (in_call && this_g() != nullptr) exit_syscall(t->g);
}

void cancel_after_fork() {
  install_lock.reset();
  for (G* g = all_gs_first(); g != nullptr; g = g->all_next)  // whoever was sending is not here
    if (g->thread != nullptr && !g->is_g0)
      thread_of(g)->cancel_senders.store(0, std::memory_order_relaxed);
}

}  // namespace weft

using namespace weft;

extern "C" int weft_libc_call_personality(int, int actions, uint64_t, void*, void*) {
  Thread* t = this_thread();
  if ((actions & kCleanupPhase) != 0 && t != nullptr) left_libc_call(t);
  return kContinueUnwind;
}

WEFT_EXPORT int pthread_cancel(pthread_t pt) {
  G* g = g_of(pt);
  if (g == nullptr) {
    int r = real().pthread_cancel(pt);  // its first call sets an action for signal 32
    installed.store(false, std::memory_order_release);
    if (!sched.booted.load(std::memory_order_relaxed)) return r;
    install();
    // libc sends it a signal only where it is in a call of libc's own: it may be in one of ours.
    if (r == 0) poke(nullptr, tcb_tid_of(pt));
    return r;
  }
  Thread* t = thread_of(g);
  if (!t->alive.load(std::memory_order_acquire))
    return t->join.load(std::memory_order_acquire) == kEnded ? 0 : ESRCH;
  if (t == this_thread()) {
    t->cancel_requested.store(1, std::memory_order_relaxed);
    libc_bits(t, kBitCanceled, 0);
    if (t->cancel_async && due(t)) act(t);
    if (due(t)) g->attention.fetch_or(kAttCancel, std::memory_order_relaxed);
    return 0;
  }
  install();
  Door in;
  t->cancel_senders.fetch_add(1, std::memory_order_seq_cst);
  t->cancel_requested.store(1, std::memory_order_seq_cst);
  libc_bits(t, kBitCanceled, 0);
  if (!t->cancel_disabled.load(std::memory_order_seq_cst)) {
    bool async = t->cancel_async;
    g->attention.fetch_or(async ? kAttCancel | kAttBreak : kAttCancel, std::memory_order_seq_cst);
    if (async) reach_async(t);
    else if (!park_interrupt(g, kAttCancel) && runs(g)) poke(t);
  }
  t->cancel_senders.fetch_sub(1, std::memory_order_seq_cst);
  return 0;
}

WEFT_EXPORT int pthread_setcancelstate(int state, int* old) {
  if (state != PTHREAD_CANCEL_ENABLE && state != PTHREAD_CANCEL_DISABLE) return EINVAL;
  Thread* t = this_thread();
  if (t == nullptr) return real().pthread_setcancelstate(state, old);
  bool was = t->cancel_disabled.load(std::memory_order_relaxed);
  bool disable = state == PTHREAD_CANCEL_DISABLE;
  if (old != nullptr) *old = was ? PTHREAD_CANCEL_DISABLE : PTHREAD_CANCEL_ENABLE;
  if (was == disable) return 0;
  t->cancel_disabled.store(disable, std::memory_order_seq_cst);
  libc_bits(t, disable ? kBitDisabled : 0, disable ? 0 : kBitDisabled);
  if (disable) {
    for (int i = 0; t->cancel_senders.load(std::memory_order_seq_cst) != 0; i++) {
      cpu_relax();
      if (i > 100) sys_sched_yield();
    }
    if (WEFT_UNLIKELY(t->cancel_requested.load(std::memory_order_relaxed) != 0))
      t->g->attention.fetch_and(~uint32_t{kAttCancel | kAttBreak}, std::memory_order_relaxed);
  } else if (WEFT_UNLIKELY(due(t))) {
    if (t->cancel_async) act(t);
    t->g->attention.fetch_or(kAttCancel, std::memory_order_relaxed);
  }
  return 0;
}

WEFT_EXPORT int pthread_setcanceltype(int type, int* old) {
  if (type != PTHREAD_CANCEL_DEFERRED && type != PTHREAD_CANCEL_ASYNCHRONOUS) return EINVAL;
  Thread* t = this_thread();
  if (t == nullptr) return real().pthread_setcanceltype(type, old);
  if (old != nullptr) *old = t->cancel_async ? PTHREAD_CANCEL_ASYNCHRONOUS : PTHREAD_CANCEL_DEFERRED;
  t->cancel_async = type == PTHREAD_CANCEL_ASYNCHRONOUS;
  libc_bits(t, t->cancel_async ? kBitAsync : 0, t->cancel_async ? 0 : kBitAsync);
  // Either we see the request here or its sender saw us asynchronous.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  if (t->cancel_async && due(t)) act(t);
  return 0;
}

WEFT_EXPORT void pthread_testcancel(void) {
  if (this_thread() == nullptr) {
    real().pthread_testcancel();
    return;
  }
  cancel_point();
}

// fork.cc - fork in a scheduled process: the child is an unscheduled one.
//
// The child has one thread, on the stack and TCB of the G that called fork, and no M, P or
// other G. It must forget them before anything of the program runs in it, the program's
// own atfork handlers included: one that unlocks a mutex would look into a waiter table
// whose lock a thread that is not there may hold. So the work is done in atfork handlers
// of ours, and __register_atfork is interposed to make them the first of all:
//
//   program's prepare handlers (last registered first)
//   ours: signals blocked, the P may be taken         \  nothing of the program's
//   libc: stdio and malloc locks, the system call      > runs in between
//   ours: child forgets the scheduler | parent goes on /
//   program's child | parent handlers
//
// That covers fork() itself and libc's own calls of it (daemon, forkpty), so fork needs no
// wrapper. _Fork runs no handlers and gets one; so do clone() and syscall().
//
// Signals are blocked for the window because a handler in the child must not meet the
// parent's scheduler. The child ends the window as an unbooted process: this_g() is null
// until its first pthread_create boots again.
#include "preload/fork.h"

#include <linux/rseq.h>

#include "preload/api.h"
#include "preload/foreign.h"
#include "preload/ids.h"
#include "preload/io_fd.h"
#include "preload/kcall.h"
#include "preload/tcb.h"
#include "preload/thread.h"
#include "preload/vfork.h"
#include "sched/stack.h"

extern "C" {
extern const ptrdiff_t __rseq_offset __attribute__((weak));  // since glibc 2.35
extern void* __dso_handle __attribute__((visibility("hidden")));
}

namespace weft {

thread_local constinit int t_fork_ktid = 0;
bool raw_fork_child = false;

// Other files' own child hooks: defined or not (see the head of each).
__attribute__((weak)) void sync_after_fork();
__attribute__((weak)) void io_after_fork();
__attribute__((weak)) void signal_after_fork();
void sigsend_after_fork();
__attribute__((weak)) void cancel_after_fork();
__attribute__((weak)) void tsd_after_fork();
void spawn_after_fork();
void wire_after_fork();

namespace {

struct Window {
  uint64_t mask = 0;       // the kernel's mask before
  bool open = false;
  bool in_syscall = false; // the P may be retaken meanwhile
};
thread_local constinit Window t_window;


// The child's kernel thread inherits the rseq registration of its M's own TCB, a piece of
// memory that libc now counts as a cached stack and may unmap.
void drop_rseq(const M* m) {
  if (m == nullptr || &__rseq_offset == nullptr || __rseq_offset == 0 || m->g0.fs == 0) return;
  long area = static_cast<long>(m->g0.fs) + __rseq_offset;
  sys_call(SYS_rseq, area, 32, RSEQ_FLAG_UNREGISTER, 0x53053053);  // EINVAL: it had none
}

void run_hook(void (*hook)()) {
  if (hook != nullptr) hook();
}

}  // namespace

void fork_begin() {
  if (!sched.booted.load(std::memory_order_acquire)) return;
  io_descriptors_shared();
  sys_sigprocmask(SIG_BLOCK, &kAllSignals, &t_window.mask);
  t_window.open = true;
  G* g = this_g();
  // In a handler that interrupted a system call the bracket is open already.
  t_window.in_syscall = g != nullptr && g_state(g) == GState::kRunning;
  if (t_window.in_syscall) enter_syscall(g);
}

void fork_in_parent() {
  if (!t_window.open) return;
  t_window.open = false;
  uint64_t mask = t_window.mask;  // this M's; exit_syscall may go on with another
  t_fork_ktid = sys_gettid();
  sys_sigprocmask(SIG_SETMASK, &mask, nullptr);
  if (t_window.in_syscall) exit_syscall(this_g());
}

void fork_in_child() {
  t_own_id = 0;
  if (!t_window.open) return;
  t_window.open = false;
  uint64_t mask = t_window.mask;
  // A vfork child that forks stands on the TCB of a G, too, with t_g null.
  G* g = t_g != nullptr ? t_g : g_at(__builtin_thread_pointer());
  t_vfork_depth = 0;
  t_fork_ktid = 0;
  drop_rseq(g == nullptr ? nullptr : g->m);
  if (g != nullptr) {
    if (g->cls != nullptr) tcb_after_fork_child(g);  // main's TCB is libc's own, and listed
    g->engine.store(0, std::memory_order_relaxed);
    g->attention.store(0, std::memory_order_relaxed);  // pending signals are the parent's
    g->wired = false;
    g->m = nullptr;
    if (Thread* t = thread_of(g)) {  // whoever joined it is not here
      t->joining.store(0, std::memory_order_relaxed);
      t->joins.store(nullptr, std::memory_order_relaxed);
      t->clear_tid_set = false;
    }
  }
  sched_after_fork(g);
  boot_after_fork();
  spawn_after_fork();
  wire_after_fork();
  kcall_after_fork();
  own_threads_after_fork();
  run_hook(sync_after_fork);
  run_hook(io_after_fork);
  run_hook(signal_after_fork);
  sigsend_after_fork();
  run_hook(cancel_after_fork);
  run_hook(tsd_after_fork);
  sys_sigprocmask(SIG_SETMASK, &mask, nullptr);
}

void fork_in_raw_child() {
  raw_fork_child = true;
  fork_in_child();
}

void fork_hooks_install() {
  static std::atomic<bool> done{false};
  if (done.exchange(true, std::memory_order_acq_rel)) return;
  real().__register_atfork(fork_begin, fork_in_parent, fork_in_child, &__dso_handle);
}

}  // namespace weft

using namespace weft;

// pthread_atfork's only way into libc: it is linked statically into each library.
WEFT_EXPORT int __register_atfork(void (*prepare)(void), void (*parent)(void),
                                  void (*child)(void), void* dso) {
  fork_hooks_install();
  return real().__register_atfork(prepare, parent, child, dso);
}

// Async-signal-safe by its definition: no handlers, no locks of libc's.
WEFT_EXPORT pid_t _Fork(void) {
  fork_begin();
  pid_t pid = real()._Fork();
  if (pid == 0) fork_in_child();
  else fork_in_parent();
  return pid;
}

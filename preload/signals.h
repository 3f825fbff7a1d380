// signals.h - signals belong to Gs: the parts and their contract (DESIGN section 7).
//
//   sigaction.cc   the program's actions; the kernel has our wrapper where there is a handler
//   sigrun.cc      the wrapper: where every handler starts, always in a kernel signal frame
//   sigsend.cc     pending sets, directed delivery, routing of process signals
//   sigmask.cc     masks, alternate stacks, and the jumps that restore masks
//   sigwait.cc     sigwait family, sigsuspend, pause
//
// How a handler comes to run in G's context. Every delivery ends in a frame that the kernel
// made on G's own stack (or its alternate one), so ucontext, masks and registers are real:
//  - a signal the kernel sends to the M that runs G: in place.
//  - a signal for G that weft holds (pthread_kill, a process signal that arrived on a
//    scheduler stack): queued on G; if G waits interruptibly its park ends; if it runs or
//    sits in a system call, its M is poked: the same signal number, sent to the M with
//    rt_tgsigqueueinfo and our mark, so that the kernel interrupts or restarts the call by
//    the program's own SA_RESTART. The wrapper sees the mark and takes the queued siginfo.
//    A poke that meets another G is dropped; kAttSignal keeps the delivery due: G looks at
//    it whenever it leaves the engine or a system call, and pokes itself.
//  - a signal that arrives inside the engine or on g0 goes to the process queue, which
//    sysmon routes to a G that accepts it.
//
// Why handlers may migrate: M's kernel mask and alternate stack always equal those of the G
// it runs (host_sync_signals), so the rt_sigreturn of a frame made on one M restores, on
// another, exactly what that one has. Preemption relies on it too: sigrun.cc parks the G
// inside the SIGURG frame. (DESIGN 7 wanted a trampoline instead, to keep sigaltstack from
// moving between Ms; with stacks synced per G the kernel's frame saves all that xsave
// would, and no register is touched by us.)
#pragma once

#include <signal.h>

#include "sched/g.h"

namespace weft {

struct Thread;

constexpr int kSignals = 65;
inline uint64_t sig_bit(int sig) { return uint64_t{1} << (sig - 1); }

// ---- sigaction.cc
struct Action {  // of the program, as it set it
  void (*handler)(int);
  uint64_t mask;
  uint64_t flags;
};
Action action_of(int sig);
bool has_handler(int sig);
// SA_RESETHAND: back to default as the handler starts.
void action_reset(int sig);
void actions_boot();
// The set of signals with a default action that does nothing.
bool default_ignores(int sig);

// ---- sigrun.cc
void signals_wrapper(int sig, siginfo_t* info, void* uc);
void signals_boot(G* g1);
// Runs what is pending and not blocked for the calling G; returns if nothing (more) is.
void signals_attention(G* g);
// True unless a handler without SA_RESTART has run on this G since signals_wait_begins().
bool signals_may_restart();
void signals_wait_begins();

// ---- sigsend.cc
// Queues for g and gets it there. 0 or -errno (EAGAIN: queue full).
int signal_g(G* g, int sig, const siginfo_t* info);
// A process signal that reached the engine: to a G that accepts it, else it stays pending.
void signal_process(int sig, const siginfo_t* info);
// From a signal handler in the engine or on g0: parks the siginfo for sysmon to route.
void signal_defer(int sig, const siginfo_t* info);
void signals_route();             // sysmon
// A thread's mask changed: what sysmon keeps open for the process may have to change, too.
// Returns when a signal that nobody accepts any more is closed there.
void masks_note(uint64_t now_blocked, uint64_t now_open);
long signals_tgkill(long tgid, long tid, long sig);  // tgid -1: tkill. -errno
long signals_tgqueue(long tgid, long tid, long sig, const siginfo_t* info);
uint64_t pending_of(const G* g);  // virtual: G's own and the process's
// Takes one pending signal of `set` from g or the process. False: none.
bool pending_take(G* g, uint64_t set, siginfo_t* out);
// A G's pending signals die with it.
void pending_drop(G* g);
void poke(G* g, int sig);
bool is_poke(const siginfo_t* info);
G* poke_target(const siginfo_t* info);
int real_tgkill(int tid, int sig);

// ---- sigmask.cc
// Sets the mask of the calling G and of its M; returns the old one. Then delivers what it
// let in.
uint64_t mask_swap(G* g, uint64_t mask);

}  // namespace weft

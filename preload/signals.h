// signals.h - signals belong to Gs: the parts and their contract (DESIGN section 7).
//
//   sigaction.cc   the program's actions; the kernel has our wrapper where there is a handler
//   sigframe.cc    the kernel's frames: every M has a signal stack of its own
//   sigrun.cc      the wrapper: where every handler starts, always in a kernel signal frame
//   sigpreempt.cc  the slice is over
//   sigsend.cc     directed delivery: pending sets and pokes
//   sigroute.cc    process signals that arrive where no handler can run
//   sigkill.cc     kill, pthread_kill, raise, sigqueue ...
//   sigmask.cc     masks, alternate stacks, and the jumps that restore masks
//   sigwait.cc     sigwait family, sigsuspend, pause
//   sigtimer.cc    timers that signal one thread
//
// How a handler comes to run in G's context. Every delivery ends in a frame that the kernel
// made, on G's own stack (or its alternate one), so ucontext, masks and registers are real:
//  - a signal the kernel sends to the M that runs G: in place.
//  - a signal for G that weft holds (pthread_kill, a process signal that arrived on a
//    scheduler stack): queued on G. If G waits interruptibly its park ends; if it runs or
//    sits in a system call, its M is poked: sent a signal with our mark (is_poke), whose
//    handler runs what is queued. A poke is SIGSTKFLT, whose action has no SA_RESTART, or
//    SIGURG, whose action has, by what the queued handler wants of the interrupted call.
//    Neither is ever blocked in the kernel while an M runs Gs; the program's own use of
//    them is virtual. kAttSignal keeps the delivery due: G looks at it whenever it leaves
//    the engine or a system call.
//  - a signal that arrives inside the engine or on g0 is put aside and routed to a G that
//    accepts it, by the G on its way out or by sysmon.
//
// A poke must not interrupt the system call of a G it was not meant for: sent_begin
// (sched/syscall.h). SIGSTKFLT because Linux never sends it; 32 is cancellation's.
//
// Why handlers may migrate: an M's kernel mask is that of the G it runs (host_sync_signals),
// an M's signal stack holds nothing while a handler runs, and rt_sigreturn leaves the
// alternate stack alone (frame_forget_stack). So a frame may return on any M. Preemption
// relies on it too (DESIGN 7 wanted a trampoline; the kernel's frame, moved to G's stack,
// saves all that xsave would, and no register is touched by us).
#pragma once

#include <signal.h>
#include <ucontext.h>

#include "sched/g.h"
#include "sched/sys.h"

namespace weft {

struct Thread;

constexpr int kSignals = 65;
inline uint64_t sig_bit(int sig) { return uint64_t{1} << (sig - 1); }

// What a G's mask may hold; and what of it the kernel gets: SIGURG is preemption's.
constexpr uint64_t kMaskable =
    kAllSignals & ~(uint64_t{1} << (SIGKILL - 1)) & ~(uint64_t{1} << (SIGSTOP - 1));
// The two we use ourselves, never blocked in the kernel while an M runs Gs.
constexpr int kSoft = SIGURG, kHard = SIGSTKFLT;
constexpr uint64_t kOurs = (uint64_t{1} << (kSoft - 1)) | (uint64_t{1} << (kHard - 1));
inline bool is_ours(int sig) { return sig == kSoft || sig == kHard; }
inline uint64_t mask_for_kernel(uint64_t m) { return m & kMaskable & ~kOurs; }

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
// One of our own signals, sent to us with its default action: carries it out.
void action_default(int sig);
void actions_boot();
void actions_after_fork();
// libc's rt_sigreturn trampoline, for actions set without libc (cancel.cc).
void (*signal_restorer())();
// The set of signals with a default action that does nothing.
bool default_ignores(int sig);

// ---- sigrun.cc
void signals_wrapper(int sig, siginfo_t* info, void* uc);
void signals_boot(G* g1);
// What g blocks, but for what its handlers block until they return. False: one begins or ends just now.
bool mask_beside_handlers(const G* g, uint64_t* mask);
// Runs what is pending and not blocked for the calling G; returns if nothing (more) is.
void signals_attention(G* g);
// True unless a handler without SA_RESTART has run on this G since signals_wait_begins().
bool signals_may_restart();
void signals_wait_begins();

// Ours arrived (is_poke).
void signals_poked(int sig, siginfo_t* info, ucontext_t* uc);

// ---- sigpreempt.cc
void preempt_boot();
bool preempt_safe(G* g, const ucontext_t* uc, Preempt why);
// Preempt::kGiveUp found g in a plain read or write (G::in_plain) that waits: it answers EAGAIN.
bool end_plain_call(G* g, ucontext_t* uc);
void preempt_here(int sig, siginfo_t* info, void* uc);

// ---- sigsend.cc
// Queues for g and gets it there. 0 or -errno (EAGAIN: queue full).
int signal_g(G* g, int sig, const siginfo_t* info);
// One that was sent to the process, for g to take. -ESRCH if g has ended meanwhile: it goes to
// somebody else then, as it does if g ends before it has taken it.
int signal_g_of_process(G* g, int sig, const siginfo_t* info);
uint64_t pending_of(const G* g);  // virtual: G's own and the process's
// Takes one pending signal of `set` from g or the process. False: none.
bool pending_take(G* g, uint64_t set, siginfo_t* out);
// Boot, on g1's kernel thread, g1's mask still the kernel's: g1 takes over what is pending for
// the kernel thread alone.
void pending_adopt(G* g1);
// A G's pending signals die with it; those of the process go to another thread.
void pending_drop(G* g);
// g has been wired: what is queued for it goes to its kernel thread. By g then, and by who has queued one.
void pending_wired(G* g);
// Signals of the process that are queued for g, which blocks them by now, go to another thread, or back
// to the kernel. By g after it has blocked some, and by who has queued one.
void pending_pass_on(G* g);
// The same as sig's handler begins. Not to the kernel: newer ones may be there already, and the handler
// ends soon. Nor those of sig itself: of many each thread would pass on all but one.
void pending_pass_on_handling(G* g, int sig);
// g, the caller, takes no more signals of the process; what it was given before is queued.
void pending_close(G* g);
// The action became "ignore": what is pending is dropped, everywhere.
void pending_discard(int sig);
bool pending_add_process(int sig, const siginfo_t* info);
// Gets a queued signal to g, in whatever state it is.
void notify(G* g, int sig);
// Interrupts g if it runs or sits in a system call. hard: calls end in EINTR.
void poke(G* g, bool hard);
void poke_self(G* g);
void send_poke(M* m, int sig);  // after sent_begin
bool is_poke(const siginfo_t* info);
// A siginfo as the kernel takes it from any of our threads; and what it was (sigsend.cc).
siginfo_t carry(const siginfo_t* info);
void carried(siginfo_t* info);
// To the process, for whichever thread takes it. 0 or -errno.
int give_to_kernel(int sig, const siginfo_t* info);
int real_tgkill(int tid, int sig);
void sigsend_after_fork();
void sigroute_after_fork();

// ---- sigroute.cc
// A process signal that reached the engine: to a G that accepts it, else it stays pending.
void signal_process(int sig, const siginfo_t* info);
// From a signal handler where nothing else can be done with it.
void signal_defer(int sig, const siginfo_t* info, ucontext_t* uc);
void signal_defer_to(G* g, int sig, const siginfo_t* info);
void signals_route();             // sysmon, and Gs on their way out of the engine
G* who_accepts(uint64_t bit);
// Who blocks it until its handlers return, and takes it then. For what nobody accepts just now: given to
// the kernel it would come back out of order.
G* who_handles(uint64_t bit);
// A thread's mask changed: what sysmon keeps open for the process may have to change, too.
// Returns when a signal that nobody accepts any more is closed there.
void masks_note(uint64_t now_blocked, uint64_t now_open);
// Nobody accepts these: returns when sysmon has closed them, and each M.
void masks_close(uint64_t bits);
// g, the caller, ends: a process signal that only it would take is handled before, or left to
// the process.
void signals_leave(G* g);
// Put aside for whoever accepts them, not routed yet.
uint64_t deferred_pending();

// ---- sigkill.cc
long signals_tgkill(long tgid, long tid, long sig);  // tgid -1: tkill. -errno
long signals_tgqueue(long tgid, long tid, long sig, const siginfo_t* info);
long signals_kill(long pid, long sig);               // -errno
long signals_queue(long pid, long sig, const siginfo_t* info);

// ---- sigtimer.cc
// kHard that is no poke: a timer's? False: not one of ours.
bool timer_arrived(const siginfo_t* info);
// A G takes a timer's signal (si_code SI_TIMER).
void timer_taken(siginfo_t* info);
void sigtimer_after_fork();

// ---- sigmask.cc
// Sets the mask of the calling G and of its M; returns the old one. Then delivers what it
// let in.
uint64_t mask_swap(G* g, uint64_t mask);
// A fork child's kernel thread gets back the alternate stack that its G had.
void note_own_altstack(const G* g);
// g, the caller, has just become 1:1: its kernel thread gets what was virtual.
void signals_wired(G* g);
// The masks of g and of the M it runs on, outside the engine.
void set_masks(G* g, uint64_t mask);
bool on_alt_stack(const G* g, uintptr_t sp);

// ---- sigwait.cc
// A kernel call that sets a mask for its own duration (ppoll, pselect, epoll_pwait), by g:
// masked_begin; then, for each try, masked_enter, the call with `open` as its mask,
// exit_syscall; at the end masked_end with what masked_begin returned. The first handler's
// return already restores the old mask, as natively.
uint64_t masked_begin(G* g, uint64_t open);
void masked_enter(G* g);
void masked_end(G* g, uint64_t old);

}  // namespace weft

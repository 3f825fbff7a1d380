// syscall.h - blocking calls and the P.
//
// enter_syscall / exit_syscall bracket a call that may block in the kernel. The P stays
// with the M; if the M sleeps there, or the call computes for long, sysmon retakes it (Go 1.26's form):
//
//   G                                   sysmon
//   1 state = [n+1 | kSyscall]          a  w = state; is kSyscall
//   2 the call                          b  p->m == m, g runs on m still (the state word
//   3 CAS state [n+1|kSyscall]             has a count: if c succeeds with the same w,
//        -> [n+1|kRunning]                 b held all the time from a to c)
//     won:  the P is still ours         c  CAS state w -> [n+1|kLost]; won: P is sysmon's
//     lost: exit_syscall_slow
//
// A G that comes back without a P takes its old one if idle, any idle one, or queues
// globally while its M sleeps.
//
// Hidden blocks (libc sleeps in its own futex, poll, flock ...: we are not told):
//
//   G entering the engine               sysmon, tick stands still, /proc says asleep
//   1 g->engine++                       a  m->retake = 1
//   2 (compiler barrier)                b  membarrier(PRIVATE_EXPEDITED)
//   3 if m->retake: wait for decision   c  g->engine == 0, running, g on m still:
//                                            p leaves m; m->retake = 2
//                                          else m->retake = 0
// A G that computes where it cannot be stopped loses its P the same way (fair.h).
// The membarrier makes 1-3 and a-c a store-load pair without a fence on the hot side.
//
// Inside the bracket the G is outside the engine: signal handlers run, and a program's
// handler may re-enter weft (kSyscall nests through sys_frame).
#pragma once

#include "sched/sched.h"

namespace weft {

// The state a retaken G is left in: [n | kLost]. Only exit_syscall sees it.
constexpr uint32_t kSyscallLost = 15;

void enter_syscall(G* g);
// As enter_syscall where our own signals are blocked or wanted: does not wait for them.
void enter_syscall_masked(G* g);
// As enter_syscall for a call that will sleep for sure: the P goes to others at once.
void enter_syscall_block(G* g);
void exit_syscall(G* g);

// Whether the calls of a G sleep is learnt (G::call_habit). While they do, the P goes to others
// at once: kept until sysmon takes it, each P would serve one call in 40 us, and a device that
// answers faster would wait for us (64 threads that read a disk past the page cache, 2 Ps:
// 20 to 25 k/s so, now 68 to 71, native 72). Two calls in a row that lost their P begin it, one
// short call ends it.
constexpr uint8_t kCallsSleep = 2;       // habit from which on they are taken to
constexpr uint64_t kShortCallTsc = 50'000;  // about what sysmon leaves a call its P for

// After a call that took `took` in a bracket that gave the P up at once; 0: in one that did not,
// before which the habit was `before`. exit_syscall counts one more where sysmon took the P.
inline void learn_call(G* g, uint8_t before, uint64_t took) {
  if (took != 0) g->call_habit = took < kShortCallTsc ? 0 : kCallsSleep;
  else if (g->call_habit == before) g->call_habit = 0;
}

// A call bracket that is a no-op on foreign threads, g0 and wired Gs.
//   long r = in_syscall([&] { return real().flock(fd, op); });
template <class F>
inline auto in_syscall(F f) {
  G* g = this_g();
  if (g == nullptr) return f();
  uint8_t before = g->call_habit;
  uint64_t since = 0, took = 0;
  if (WEFT_UNLIKELY(before >= kCallsSleep)) {
    enter_syscall_block(g);
    since = tsc();
  } else {
    enter_syscall(g);
  }
  auto r = f();
  if (WEFT_UNLIKELY(since != 0)) took = tsc() - since;
  exit_syscall(g);
  if (WEFT_UNLIKELY(g->call_habit != 0)) learn_call(g, before, took);
  return r;
}
template <class F>
inline auto in_syscall_block(F f) {
  G* g = this_g();
  if (g == nullptr) return f();
  enter_syscall_block(g);
  auto r = f();
  exit_syscall(g);
  return r;
}

// Before one of our signals (kSentUrg, kSentPoke) is sent to m, which runs g: marks it. True:
// g is there, and should it leave, nobody enters the kernel on m before the signal has
// landed; the caller sends, to m's thread. False: not there, or one is under way.
//
//   sender                        G on m
//   1 m->sent |= bit              a  state = kSyscall (or another G comes to m and does so)
//   2 membarrier                  b  m->sent? wait until the handler has cleared it
//   3 m runs g still? send.       c  the call
// `running_only`: a G that is in the kernel already is to be left alone.
bool sent_begin(M* m, G* g, uint32_t bit, bool running_only);

// g is m's, not merely the one m ran last. m->curg alone does not say so: after a switch to
// g0 it names the old G until schedule() clears it, and the M may lose its core in between,
// while another M runs that G, in a call of its own perhaps. g->m does: begin_run writes it
// before the state. So: after an (acquire) look at g's state or engine depth.
inline bool runs_on(G* g, const M* m) {
  return m->curg.load(std::memory_order_acquire) == g &&
         __atomic_load_n(&g->m, __ATOMIC_ACQUIRE) == m;
}

// sysmon's side. True if p was taken from its M; the caller owns it.
bool retake_syscall(P* p, M* m, G* g, uint64_t state);
bool retake_hidden(P* p, M* m, G* g);

}  // namespace weft

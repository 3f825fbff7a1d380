// stranded.cc - see stranded.h.
//
// An M is made by libc's pthread_create, under locks of libc's (the loader's, for its TLS; the
// allocator's), or not at all (RLIMIT_NPROC, a cgroup's pids.max, kMaxM). A G may stand ready
// with such a lock held: taken off its P in a callback of dl_iterate_phdr, say, for which
// another waits in dlopen with the lock held that each new thread needs. All Ms then sleep in libc
// for that G, and the spawner with them.
//
// The M that watches the netpoller, if one does, takes the P: it has nothing to give up. Else
// an M that sleeps in libc without a P is interrupted (Preempt::kGiveUp), and if it is found before
// a futex wait without a time limit, its G goes behind the others, to wait again when it comes
// round; its M takes who is next. For libc that is a signal whose handler took long: the kernel
// has ended the wait, and the call begins anew with its arguments (SA_RESTART), looks at
// the word again and sleeps only if nobody has let go in between. One with a time limit is left: the
// kernel keeps what is left of it with the kernel thread (restart_syscall). A read or write of ours
// that was not to wait (G::in_plain) ends with EAGAIN, as if it had been made with care.
//
//   sysmon                                  G, asleep in libc, its P gone (retake = 2)
//   1 work, an idle P, no idle M, 5 ms      a  woken: back in libc, enters the engine, takes the P
//   2 sent_begin: m runs g                  b  the signal lands
//   3 kGiveUp, the signal
// a before b: the signal finds the engine, or code: no futex wait, nothing happens but kAttPreempt
// (a yield at the next way out). b first: engine_reacquire takes the idle P, and yields.
#include "sched/stranded.h"

#include "sched/asleep.h"
#include "sched/host.h"
#include "sched/netpoll.h"
#include "sched/syscall.h"

namespace weft {
namespace {

constexpr uint64_t kStrandedNs = 5'000'000;  // an M's birth takes 0.1 ms, on a busy machine a few
constexpr uint64_t kNextNs = 200'000;        // whom it frees may have to wait for the same lock

uint64_t since_ns;                           // 0: nobody is stranded
uint32_t last_id;                            // of the M that was interrupted last

bool stranded() {
  if (sched.n_idle_p.load(std::memory_order_relaxed) == 0 ||
      sched.n_spinning.load(std::memory_order_relaxed) != 0 || !any_work())
    return false;
  Hold hold(sched.lock);
  return sched.idle_m == nullptr;
}

bool sleeps_without_a_p(M* m) {
  G* g = m->curg.load(std::memory_order_acquire);
  if (g == nullptr) return false;
  bool hidden = m->retake.load(std::memory_order_acquire) == 2 && g_state(g) == GState::kRunning;
  bool plain = static_cast<uint32_t>(g_state(g)) == kSyscallLost && g->in_plain.load(std::memory_order_relaxed);
  return (hidden || plain) && runs_on(g, m) &&
         asleep_in_kernel(m->id, m->tid.load(std::memory_order_relaxed)) != Asleep::kNo;
}

// In turn (the list is by falling id, nearly): whom it frees may be who comes to sleep next.
M* next_sleeper() {
  for (uint32_t below : {last_id, ~0u})
    for (M* m = sched.all_m.load(std::memory_order_acquire); m != nullptr; m = m->all_next)
      if (m->id < below && sleeps_without_a_p(m)) return m;
  return nullptr;
}

}  // namespace

bool stranded_check(uint64_t now) {
  if (!stranded()) {
    since_ns = 0;
    return false;
  }
  if (since_ns == 0) since_ns = now;
  if (now - since_ns < kStrandedNs) return true;
  since_ns = now - kStrandedNs + kNextNs;
  if (sched.last_poll_ns.load(std::memory_order_relaxed) == 0) {
    netpoll_break();  // who sleeps there has no G: it takes the P
  } else if (M* m = next_sleeper(); m != nullptr) {
    last_id = m->id;
    host_preempt(m, Preempt::kGiveUp);
  }
  return true;
}

}  // namespace weft

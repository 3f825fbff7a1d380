// sched.h - M, P and the scheduler: who runs what, where.
//
// M  a kernel thread. P  the right to run Gs, with a run queue; there are Sched::procs of
// them. An M needs a P to run a G, except a wired G's M, which never has one.
//
// P states        owner                         leaves by
//   kIdle         the idle list (sched.lock)    acquire_p
//   kRunning      the M in p->m                 release_p, hand_off_p, retake by sysmon
// A P whose G is in a system call stays kRunning with its M; sysmon may retake it.
//
// The three ways an M loses its P without asking (all by sysmon, syscall.h):
//   system call   CAS on the G's state word
//   hidden block  asleep in the kernel inside libc: m->retake handshake
// and it notices in exit_syscall() or engine_enter().
#pragma once

#include "sched/g.h"
#include "sched/host.h"
#include "sched/lock.h"
#include "sched/runq.h"
#include "sched/timer.h"
#include "sched/trace.h"

namespace weft {

constexpr uint32_t kRunqSize = 256;      // Go's
constexpr uint32_t kGlobalEvery = 61;    // Go's: a prime, so it does not beat with programs
constexpr uint32_t kMaxProcs = 1024;

struct GList {  // singly linked FIFO through G::link
  G* head = nullptr;
  G* tail = nullptr;
  uint32_t n = 0;
  void push(G* g) {
    g->link = nullptr;
    if (tail != nullptr) tail->link = g; else head = g;
    tail = g;
    n++;
  }
  void push_front(G* g) {
    g->link = head;
    head = g;
    if (tail == nullptr) tail = g;
    n++;
  }
  G* pop() {
    G* g = head;
    if (g != nullptr) {
      head = g->link;
      if (head == nullptr) tail = nullptr;
      n--;
    }
    return g;
  }
  void append(GList& o) {
    if (o.head == nullptr) return;
    if (tail != nullptr) tail->link = o.head; else head = o.head;
    tail = o.tail;
    n += o.n;
    o = GList{};
  }
};

enum class PStatus : uint32_t { kIdle, kRunning };

struct alignas(kCacheLine) P {
  RunQ<G, kRunqSize> runq;
  // --- owner M only
  uint32_t id = 0;
  bool inherit = false;                  // the next G came by runnext: it shares the slice
  bool fed = false;                      // a G here fed another lately (ready_in_turn),
  bool global_turns = false;             // and many wait in the global queue (sched.cc)
  GList free_gs;                         // dead slots of the default class (stack.cc)
  // --- read by sysmon and stealers
  std::atomic<uint32_t> tick{0};         // advances with each slice
  std::atomic<uint32_t> switches{0};     // advances with each switch
  std::atomic<M*> m{nullptr};
  std::atomic<PStatus> status{PStatus::kIdle};
  P* idle_link = nullptr;                // sched.lock
  TimerHeap timers;
  std::atomic<uint32_t> woken_until{0};  // the ring's place behind the last woken one (fair.h)
  std::atomic<uint32_t> seen_switches{0};  // sysmon's last look at switches
  std::atomic<bool> crowd{false};        // sysmon's: many wait, and none computes (fair.h)
  std::atomic<bool> look{false};         // look at the netpoller: sysmon's wish, or of one who never waits
  // --- sysmon only
  uint32_t seen_tick = 0;
  uint64_t moved_ns = 0;                 // the last look that found another G than the one before
  uint64_t slice_before_ns = 0;          // the tick before the slice was noticed
  uint64_t share_ns = 0;                 // what its G may use of it while woken ones wait (fair.h)
  uint64_t asked_ns = 0;                 // when its G was first asked to stop by a signal; 0: not yet
  uint32_t asks = 0;                     // signals that it had then
  G* way_g = nullptr;                    // asked to make way; and what it had used of its slice
  uint64_t way_used_ns = 0, way_park = 0;
  uint64_t seen_state = 0, seen_since_ns = 0, slice_since_ns = 0, hidden_since_ns = 0;
  uint64_t seen_cpu_ns = 0, seen_cpu_at_ns = 0;
  uint64_t computed_ns = 0;              // the last look that found its M's clock moving
  uint64_t on_core_ns = 0;               // the last that found it on a core nearly all the time before
  uint64_t call_cpu_ns = 0;              // what its M had used when it was long in a call; 0: is not
  uint64_t off_core_cpu_ns = 0;          // its M waited for a core, having used so much; 0: it did not
  uint64_t off_core_at_ns = 0;           // the last tick that found it so
  bool often = false;                    // it had switched many times at moved_ns
  // --- counters
  uint64_t n_steals = 0, n_handoffs = 0;
};

// kGiveUp: also a wait in libc (stranded.h).
enum class Preempt : uint8_t { kNo, kMakeWay, kSliceOver, kGiveUp };

constexpr uint32_t kSentUrg = 1, kSentPoke = 2;
constexpr uint64_t kMaskNoG = ~uint64_t{0};  // all blocked; no G's mask: 32 and 33 are never in one
constexpr uint64_t kMaskUnknown = uint64_t{1} << 31;  // nor is this

struct alignas(kCacheLine) M {
  G g0;                                  // the scheduler stack of this M
  std::atomic<G*> curg{nullptr};
  P* p = nullptr;                        // own M; and sysmon after a won retake
  P* old_p = nullptr;                    // where to look first on the way back
  P* next_p = nullptr;                   // given by start_m before the unpark
  G* pending = nullptr;                  // picked on a G's stack, to be run from g0
  bool spinning = false;
  bool dying_g_wired = false;
  bool gives_p = false;                  // its G, at the head of its P's queue, is to go on elsewhere
  uint32_t rng = 1;
  uint32_t id = 0;
  std::atomic<int> tid{0};
  std::atomic<uint32_t> park{0};         // 1 = woken
  // Handshake for hidden blocks: 0 none, 1 sysmon is deciding, 2 the P is gone.
  std::atomic<uint32_t> retake{0};
  // Signals of ours under way to this kernel thread (kSent*): who is about to enter the
  // kernel waits until they have landed, so that they interrupt no call (syscall.h).
  std::atomic<uint32_t> sent{0};
  // One of them says that the G has had its slice, or that it is to make way for a woken one.
  std::atomic<Preempt> preempt_due{Preempt::kNo};
  uint64_t kmask = kMaskNoG;             // the G mask that the kernel holds for this M; others look (masks_close)
  // --- processor time (cpuclock.h); own M
  G* cpu_g = nullptr;                    // whom it runs for
  bool cpu_known = false;
  uint64_t cpu_tsc = 0, cpu_last = 0, cpu_since = 0;
  uint8_t spins_in_vain = 0;             // in a row, wrapping (findwork.cc)
  // --- naps (preload/io_peers.h); own M
  uint64_t nap_tsc = 0;                  // the last look whether it is time
  long nap_nvcsw = 0;                    // how often it had slept then
  M* idle_link = nullptr;                // sched.lock
  M* all_next = nullptr;                 // append-only
  TraceRing trace;
};

struct Sched {
  Lock lock;                             // idle lists, global queue
  GList globq;                           // guarded by lock
  std::atomic<uint32_t> globq_n{0};      // globq.n for readers without the lock
  M* idle_m = nullptr;
  uint32_t n_idle_m = 0;
  P* idle_p = nullptr;
  std::atomic<uint32_t> n_idle_p{0};
  std::atomic<uint32_t> n_spinning{0};
  std::atomic<bool> need_spinning{false};
  std::atomic<M*> all_m{nullptr};
  std::atomic<uint32_t> n_m{0};
  std::atomic<uint32_t> want_m{0};       // kernel threads the spawner is to start
  std::atomic<uint64_t> coarse_ns{0};    // the time as of sysmon's last tick; for dumps
  std::atomic<uint32_t> n_away{0};       // Ms whose G runs or sleeps without a P
  std::atomic<uint32_t> spawn_word{0};   // futex of the spawner
  std::atomic<uint64_t> last_poll_ns{0}; // 0: somebody blocks in netpoll
  std::atomic<uint64_t> poll_until_ns{0};
  std::atomic<bool> looked{false};       // a P has, since sysmon's last tick;
  bool ps_look = false;                  // one had at that tick (sysmon only)
  std::atomic<bool> booted{false};
  uint32_t procs = 0;
  P* p = nullptr;                        // [procs]
  uint32_t spin_us = 0;
  bool fsgsbase = false;
  bool crowded = false;                  // more Ps than cores we may use
  bool membarrier = false;
  // Futex of sysmon: 0 awake or in a short sleep, 1 in a deep one (acquire_p ends it), 2 kicked.
  std::atomic<uint32_t> sysmon_word{0};
  uint32_t preempt_ms = 10;
  std::atomic<bool> count_cpu{false};    // cpuclock.h
  std::atomic<uint64_t> sysmon_until_ns{0};  // when it will wake by itself; 0: awake (fair.h)
  std::atomic<uint64_t> fair_since_ns{0};  // a woken G was last placed beside busy Ps (fair.h)
  std::atomic<bool> sysmon_slow{false};  // sysmon sleeps for longer than a share (fair.h)
  std::atomic<int> sysmon_tid{0};
  std::atomic<uint64_t> n_wakes{0}, n_retakes{0}, n_hidden{0}, n_preempts{0}, n_refused{0};  // counters only
};
extern Sched sched;

// ---- life (boot.cc)
struct BootConfig {
  uint32_t procs;
  uint32_t spin_us;
  uint32_t preempt_ms;     // 0: off
  bool fsgsbase;           // else FS moves by arch_prctl
  bool crowded;            // procs is more than the cores of this process
};
// Turns the calling thread into `g1` on M0 (its fs, vtid, sigmask, altstack are set), with
// `g0_slot`, a slot whose TCB is made, as M0's scheduler stack; starts sysmon and the
// spawner. g1 null: the caller is foreign and stays so. 0 or -errno (stay native then).
int sched_boot(const BootConfig& c, G* g1, G* g0_slot);
// The fork child: forgets every M, P and G; the caller is foreign from now on. `keep` is
// the G whose stack it stands on, or null.
void sched_after_fork(G* keep);

// ---- scheduling (sched.cc)
// Puts a G that is to run onto a queue and wakes a P where that pays. Any thread; a G
// must be inside the engine. The caller has claimed g (park.h) or just made it.
void ready(G* g);
// As ready(), but behind those who wait already: two that feed each other over a pipe would keep
// everybody else from the P for a slice.
void ready_in_turn(G* g);
void ready_list(GList& gs);              // netpoll: the whole batch, one wake each as needed
// Switches away from the calling G until somebody readies it. See park.h.
void switch_away();
// The same, to `next`, which the caller has claimed and not readied: it runs here at once, past
// runnext and ring, as if it had been readied just now. Unless others are due: then it is.
void switch_to(G* next);
// g, claimed for switch_to, if it was the last to queue up on the caller's P, and stands there yet; else
// null. In the engine.
G* claim_last(G* g);
// Lets others run; the G stays runnable (local tail, or the global queue).
void yield(bool to_global);
// g has done what sysmon's marks asked for, by whichever of them, or by a signal.
inline void gave_way(G* g) {
  constexpr uint32_t kAsked = kAttPreempt | kAttMakeWay;
  if (WEFT_UNLIKELY((g->attention.load(std::memory_order_relaxed) & kAsked) != 0))
    g->attention.fetch_and(~kAsked, std::memory_order_relaxed);
}
// The calling G, in the engine, goes on on another M: this one hands its P over, with g at the head of
// its queue. Without an idle M it may come back to this one.
void leave_m();
// Preempted: a G that only makes way goes on here, when those who were woken have run.
void yield_preempted(Preempt why);
// What a signal told g, the caller, and not a word more than once; kNo: sysmon marked it while
// it was in a call, as for the end of a slice.
inline Preempt preempt_why_taken(G* g) {
  auto why = static_cast<Preempt>(g->preempt_why);
  g->preempt_why = 0;
  return why;
}
// Ends the calling G, already marked dead. It is off its stack when `on_cpu` is 0. `next` as in
// switch_to, or null.
[[noreturn]] void g_exit(G* next = nullptr);
// State kDead; before a joiner is told or the slot is freed (g_free). Whom it readies from
// here on runs next on this P: no other M is woken for that.
void g_mark_dead(G* g);
// Waits until g is off the stack of the M that switched away from it: nanoseconds.
void wait_off_cpu(G* g);
// Makes g runnable for the first time (sp set by stack.cc). A G that has made many which
// nobody has taken up yet lets them run first, so it may park here.
void g_start(G* g);
// The first code of each M on g0; never returns.
[[noreturn]] void schedule();
// Gives the calling G an M of its own and no P (1:1). For preload; see g.h.
void wire_self(const char* why);
// A P looks at the netpoller: sysmon need not, for a while after its next tick.
inline void note_look() {
  if (!sched.looked.load(std::memory_order_relaxed)) sched.looked.store(true, std::memory_order_relaxed);
}
void wake_p();
// The spawner starts one more M, unless one is on order.
void request_m();
// Hands p, owned by the caller and detached from any M, to an M that will run it.
void hand_off_p(P* p);
void release_p(M* m);
// The P's half of release_p: p runs nowhere. By whoever owns p.
void detach_p(P* p);
void acquire_p(M* m, P* p);
P* idle_p_get_locked();
void idle_p_put_locked(P* p);
void globq_put_locked(G* g);
// A fair share of the global queue, at most max; one is returned, the others go to p's ring.
G* globq_get(P* p, uint32_t max);
bool p_has_work(const P* p);
// Something may happen that only an M in netpoll() sees: readiness, or a timer.
bool worth_watching();
// The same, and none is there or on its way: whoever holds a P goes there when out of work.
bool unwatched();
bool any_work();  // in any queue, idle Ps' and the global one included
void stop_m(M* m);
// Before m sleeps without a G: the mask it has is that of a G that may be gone.
void block_signals(M* m);
// The M of the calling G or g0; null on a foreign thread.
inline M* this_m() { return t_g == nullptr ? nullptr : t_g->m; }
// The calling G if the scheduler runs it; null on foreign threads, g0 and wired Gs.
inline G* this_g() {
  G* g = t_g;
  return g != nullptr && !off_ps(g) ? g : nullptr;
}

// ---- the engine's door. Between enter and exit a G is not preempted, runs no signal
// handler and may take engine locks. Nests. Another thread keeps its signal handlers out instead.
void engine_reacquire(G* g);
inline void engine_enter(G* g) {
  g->engine.store(g->engine.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
  // Pairs with sysmon's membarrier between its store of m->retake and its load of
  // g->engine (syscall.h): one of the two sees the other.
  compiler_barrier();
  if (WEFT_UNLIKELY(g->m->retake.load(std::memory_order_relaxed) != 0)) engine_reacquire(g);
}
inline void engine_exit(G* g) {
  compiler_barrier();
  uint32_t depth = g->engine.load(std::memory_order_relaxed) - 1;
  g->engine.store(depth, std::memory_order_relaxed);
  compiler_barrier();
  if (WEFT_UNLIKELY(depth == 0 && g->attention.load(std::memory_order_relaxed) != 0))
    host_attention(g);
}
uint64_t keep_handlers_out();
void let_handlers_in(uint64_t mask);

// The door around a body that does not park.
class Door {
 public:
  Door() : g_(this_g()) {
    if (WEFT_LIKELY(g_ != nullptr)) engine_enter(g_);
    else mask_ = keep_handlers_out();
  }
  ~Door() {
    if (WEFT_LIKELY(g_ != nullptr)) engine_exit(g_);
    else let_handlers_in(mask_);
  }
  Door(const Door&) = delete;
  Door& operator=(const Door&) = delete;

 private:
  G* g_;
  uint64_t mask_ = 0;  // where g_ is null
};

// ---- asm/switch.S
extern "C" {
// Saves the caller in *from, runs *to; returns when somebody switches back.
void weft_switch(G* from, G* to);
// As weft_switch where FSGSBASE is missing: FS moves by arch_prctl.
void weft_switch_prctl(G* from, G* to);
// First frame of a G: calls host_g_main / the function in its saved registers.
void weft_g_entry();
}

}  // namespace weft

// g.h - G: one thread of the program.
//
// A G lives at the top of its stack slot, behind its TCB, and is type-stable: slots are
// recycled, never unmapped, so a stale G* may always be read (its park word then says
// that the wait it remembers is over).
//
// Life:   kDead -> kRunnable -> kRunning <-> kSyscall
//                      ^           |
//                      +- kWaiting-+            ... -> kDead
// Owner:  kRunning, kSyscall: the M in g->m. kRunnable: the run queue it stands in.
//         kWaiting: whoever claims its park word. kDead: the free list or its joiner.
//
// on_cpu: a G may be made runnable while its M is still switching away from it. Whoever
// picks it waits until on_cpu is 0, which the switch stores after the registers are
// saved and FS has moved on (the kernel's p->on_cpu). The picker waits on g0, never on
// the stack of another G: two Ms each waiting for the other's G would wait forever.
#pragma once

#include "asm/offsets.h"
#include "sched/base.h"

namespace weft {

struct G;
struct M;
struct P;
struct StackClass;

enum class GState : uint32_t { kDead, kRunnable, kRunning, kSyscall, kWaiting };

// What a G waits for; shown by the dump, the trace and the deadlock report.
enum class Wait : uint8_t {
  kNone, kFutex, kMutex, kCond, kRwlock, kSem, kBarrier, kOnce, kJoin, kSleep,
  kRead, kWrite, kPoll, kAccept, kConnect, kSignal, kChan, kChild, kOther, kCount,
};
extern const char* const kWaitNames[];

// How a park ended. kWaiting means it has not.
enum class Reason : uint32_t { kNone = 0, kWaiting = 1, kWoken = 2, kTimeout = 3, kInterrupted = 4 };

// Where a woken waiter stands until the mutex is its, and whether its signals call it out (called_out.h).
enum class Stands : uint8_t { kNowhere, kChain, kQueue };
enum class Called : uint8_t { kNone, kAsking, kOut, kPassed, kAlone };

struct AltStack {  // the kernel's stack_t in our own words
  void* sp = nullptr;
  int flags = 2;  // SS_DISABLE
  int pad = 0;
  size_t bytes = 0;
};

struct alignas(kCacheLine) G {
  // Each switch, park and wake-up touches these two lines and no more: one thread of thousands finds
  // them in no cache.
  // --- the switch (asm/offsets.h)
  void* sp = nullptr;
  uintptr_t fs = 0;
  std::atomic<uint32_t> on_cpu{0};

  // --- scheduling
  std::atomic<uint32_t> engine{0};  // depth of calls into the engine; written by this G only,
                                    // read by sysmon (handshake in retake) and by signal handlers
  M* m = nullptr;                   // the M that runs it; stable while kRunning or kSyscall
  G* link = nullptr;                // run queue, free list or batch; guarded by that list
  // State and a count of system calls: [calls:32 | GState:32]. The count defeats ABA
  // when sysmon retakes a P (syscall.h).
  std::atomic<uint64_t> state{0};
  std::atomic<uint64_t> park{0};    // [sequence:61 | Reason:3], see park.h
  void* thread = nullptr;           // preload's Thread, placed behind struct pthread

  // Something waits for this G to leave the engine: bits of Attention.
  std::atomic<uint32_t> attention{0};
  std::atomic<uint8_t> ended_by{0};  // bits of Attention that may end the current park: kInterrupted
  bool is_g0 = false;
  bool wired = false;               // 1:1 for good: has a kernel thread, never a P
  // What it waits for, address or descriptor, and since when (coarse: sysmon's tick): for the dump,
  // and of now only while kWaiting.
  Wait wait = Wait::kNone;
  const void* wait_on = nullptr;
  uint64_t wait_since_ns = 0;
  uint64_t ready_tsc = 0;           // when this G last readied another one (sched.cc, wake habit)
  uint64_t sigmask = 0;             // virtualised by preload/ (kernel bit order), as altstack below
  uint32_t index = 0;               // in all_gs
  std::atomic<uint32_t> spin_marks{0};  // written by this G, read by sysmon (spinwait.h)
  uint8_t preempt_why = 0;          // a Preempt, for kAttPreempt; its own
  uint8_t wake_habit = 0;           // saturating: how often it parked right after a ready()
  uint8_t made = 0;                 // Gs it has made since it last gave way (g_start)
  uint8_t unwaited = 0;             // answers after which the next read found something at once
  bool answered = false;            // it has written since its last read
  bool ahead = false;               // serves many: its last descriptor listens, or is an epoll
  uint8_t call_habit = 0;           // saturating: how often its calls slept (syscall.h)
  bool fresh = true;                // the slot has no TLS yet
  uint16_t no_preempt = 0;          // depth; the G must stay on its M though outside the engine
  std::atomic<Stands> stands{Stands::kNowhere};  // these two: called_out.h
  std::atomic<Called> called{Called::kNone};
  uint32_t vtid = 0;                // what gettid() answers

  // sysmon's: how much of its slice it had used when it last made way for a woken G, and its
  // park word then; since a park the slice is a new one.
  uint64_t slice_used_ns = 0, slice_park = 0;

  // --- waiting by spinning (spinwait.h)
  std::atomic<uint64_t> probe_cpu_ns{0};  // sysmon's: its M's processor time as of kAttProbe
  std::atomic<uint64_t> resumed_cpu_ns{0};  // its own: the same as of kAttResumed
  uint64_t resumed_tsc = 0;
  uint64_t quiet_ns = 0;            // how long it had made no call when it was preempted; 0: it had

  std::atomic<bool> in_plain{false};  // in a read or write that was not to wait (io_rw.cc)
  AltStack altstack;

  // --- processor time (cpuclock.h)
  std::atomic<uint64_t> cpu_ns{0};  // charged to it
  std::atomic<uint64_t> cpu_shown{0};  // the most that anybody was told

  // --- memory
  StackClass* cls = nullptr;        // where the slot goes back to
  char* stack_lo = nullptr;         // lowest usable byte
  char* stack_hi = nullptr;         // where the first frame starts
  char* slot_lo = nullptr;          // guard included
  char* slot_stack_hi = nullptr;    // as stack_hi, also while a stack of the program's is used
  size_t guard_bytes = 0;
  G* all_next = nullptr;            // list of every G ever made; append-only
};
static_assert(offsetof(G, attention) == kCacheLine && offsetof(G, slice_used_ns) == 2 * kCacheLine);

enum Attention : uint32_t {
  kAttSignal = 1,   // deferred or directed signals to deliver
  kAttCancel = 2,   // asynchronous cancel requested
  kAttPreempt = 4,  // its slice is over
  kAttMakeWay = 256,  // its share is, and a woken one waits (fair.h)
  kAttModules = 8,  // it called dlopen or dlclose
  kAttBreak = 32,   // with kAttCancel: no wait at all is to begin
  kAttProbe = 64,   // has it made a call since? (spinwait.h); nothing waits for these two
  kAttResumed = 128,  // the same, since it was last resumed
  kAttWire = 16,    // another thread asked for native scheduling of it (preload/wire.h)

  kAttEndsWait = kAttSignal | kAttCancel | kAttModules | kAttWire,
};

// Whether a wait of that kind is a cancellation point. One that is none goes on while a cancel is
// pending, which may be for long: where it ends it, its caller only waits anew.
constexpr bool is_cancel_point(Wait why) {
  return why == Wait::kCond || why == Wait::kSem || why == Wait::kJoin || why == Wait::kSleep ||
         (why >= Wait::kRead && why <= Wait::kSignal);
}

// The G of the calling code; null on a thread that is no M (foreign), the M's g0 on a
// scheduler stack. One per TCB, hence per G, hence safe to cache across parks.
extern thread_local constinit G* t_g;

// A g0 or a wired G: no P's to run. Both at one look, as each park and wake-up asks it three times.
inline bool off_ps(const G* g) {
  static_assert(offsetof(G, wired) == offsetof(G, is_g0) + 1);
  uint16_t both;
  __builtin_memcpy(&both, &g->is_g0, sizeof both);
  return both != 0;
}

inline GState g_state(const G* g) {
  return static_cast<GState>(g->state.load(std::memory_order_acquire) & 0xffffffffu);
}

// Walks every G ever made, live or dead: `f(g)`.
G* all_gs_first();

}  // namespace weft

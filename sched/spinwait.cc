// spinwait.cc - see spinwait.h.
#include "sched/spinwait.h"

#include "sched/netpoll.h"
#include "sched/syscall.h"
#include "sched/sysmon.h"

namespace weft {
namespace {

constexpr uint32_t kMarksKnown = 400;  // from here on a G is taken for one that spins
// 1600 looks, 80 ms: one that waits for a kernel thread that has lost its core, on a busy
// machine, is not to be forgotten meanwhile.
constexpr uint32_t kMarksMost = 2000;
constexpr uint32_t kMarksSlice = 300;  // quiet for a slice, or beside a pause
constexpr uint32_t kMarksLook = 16;    // quiet for a short while: chance has a part in it
constexpr uint64_t kLongNs = 400'000;  // no short stretch
constexpr uint64_t kSoonNs = 100'000;  // a hundredth of a slice
constexpr uint64_t kGoingOnNs = 5'000'000;
constexpr uintptr_t kNearPc = 24;      // bytes before and after: a polling loop is short

std::atomic<uint64_t> last_ns{0};  // when spin_look last said yes
std::atomic<uint32_t> vain{0};     // preemptions of known Gs since one of them made a call

void add_marks(G* g, uint32_t n) {
  uint32_t sum = g->spin_marks.load(std::memory_order_relaxed) + n;
  g->spin_marks.store(sum < kMarksMost ? sum : kMarksMost, std::memory_order_relaxed);
}

bool known(const G* g) { return g->spin_marks.load(std::memory_order_relaxed) >= kMarksKnown; }

// Processor time of the calling kernel thread.
uint64_t cpu_now_ns() {
  struct timespec ts = {};
  sys_call(SYS_clock_gettime, CLOCK_THREAD_CPUTIME_ID, sys_arg(&ts));
  return static_cast<uint64_t>(ts.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(ts.tv_nsec);
}

constexpr uint32_t kQuietBits = kAttProbe | kAttResumed;

// The processor time of g's M since when g has made no call; kNever: not known.
uint64_t quiet_since(const G* g, uint32_t attention) {
  if ((attention & kAttResumed) != 0) return g->resumed_cpu_ns.load(std::memory_order_relaxed);
  return (attention & kAttProbe) != 0 ? g->probe_cpu_ns.load(std::memory_order_relaxed) : kNever;
}

// Code may be executable only (protection keys). The kernel reads the set before it finds
// `how` to be wrong.
bool readable(uintptr_t at) {
  return sys_call(SYS_rt_sigprocmask, -1, static_cast<long>(at), 0, 8) == -EINVAL;
}

// Within the page: a loop that crosses into another is not followed there.
bool pause_near(uintptr_t pc) {
  uintptr_t page = pc & ~(kPageBytes - 1);
  uintptr_t lo = pc - page < kNearPc ? page : pc - kNearPc;
  uintptr_t hi = page + kPageBytes - pc < kNearPc ? page + kPageBytes : pc + kNearPc;
  if (!readable(lo)) return false;
  auto* code = reinterpret_cast<const uint8_t*>(lo);
  for (size_t i = 0; i + 1 < hi - lo; i++)
    if (code[i] == 0xf3 && code[i + 1] == 0x90) return true;
  return false;
}

}  // namespace

bool spin_look(const M* m, G* g, uint64_t now) {
  int tid = m->tid.load(std::memory_order_relaxed);
  uint32_t bits = g->attention.load(std::memory_order_acquire);
  if ((bits & kQuietBits) == 0) {  // steps 1 to 4 (spinwait.h)
    g->probe_cpu_ns.store(kNever, std::memory_order_relaxed);
    g->attention.fetch_or(kAttProbe, std::memory_order_seq_cst);
    uint64_t cpu_ns = cpu_time_ns(tid);
    if (runs_on(g, m)) g->probe_cpu_ns.store(cpu_ns, std::memory_order_relaxed);
    return false;
  }
  if (!known(g)) return false;
  uint64_t since = quiet_since(g, bits);
  if (since == kNever || cpu_time_ns(tid) < since + kSpinLookNs / 2) return false;
  last_ns.store(now, std::memory_order_relaxed);
  return true;
}

bool spin_preempted(G* g, uintptr_t pc) {
  uint32_t marks = g->spin_marks.load(std::memory_order_relaxed);
  if (marks != 0) g->spin_marks.store(marks - 1, std::memory_order_relaxed);
  // Taken back: leaving the engine after the switch is no call.
  uint32_t bits = g->attention.fetch_and(~kQuietBits, std::memory_order_relaxed);
  uint64_t since = quiet_since(g, bits);
  g->quiet_ns = since == kNever ? 0 : cpu_now_ns() - since;
  // A lock's short spin before it sleeps (InnoDB's) has pauses, too.
  if (g->quiet_ns >= kLongNs && pause_near(pc)) add_marks(g, kMarksSlice);
  if (!known(g)) return false;
  uint32_t all = sched.procs + sched.globq_n.load(std::memory_order_relaxed);
  return vain.fetch_add(1, std::memory_order_relaxed) >= 2 * all;
}

void spin_refused(G* g) {
  uint32_t marks = g->spin_marks.load(std::memory_order_relaxed);
  g->spin_marks.store(marks > kMarksLook ? marks - kMarksLook : 0, std::memory_order_relaxed);
}

void spin_resumed(G* g) {
  g->resumed_tsc = tsc();
  g->resumed_cpu_ns.store(cpu_now_ns(), std::memory_order_relaxed);
  g->attention.fetch_or(kAttResumed, std::memory_order_release);
}

void spin_called(G* g) {
  uint64_t quiet = g->quiet_ns;
  if (quiet == 0) return;
  g->quiet_ns = 0;
  vain.store(0, std::memory_order_relaxed);
  // Since it was resumed, by its own note: sysmon may have probed it while it left the engine.
  uint64_t soon = (tsc() - g->resumed_tsc) * 2 / 5;  // about
  if (soon >= quiet / 8 || soon >= kSoonNs) return;
  add_marks(g, quiet >= kLongNs ? kMarksSlice : kMarksLook);
}

void spin_reset(G* g) {
  g->spin_marks.store(0, std::memory_order_relaxed);
  g->quiet_ns = 0;
}

bool spin_going_on(uint64_t now) {
  uint64_t last = last_ns.load(std::memory_order_relaxed);
  return last != 0 && now < last + kGoingOnNs;
}

uint64_t spin_delay(uint64_t now) { return spin_going_on(now) ? kSpinLookNs : kNever; }

}  // namespace weft

// spinwait.cc - see spinwait.h.
#include "sched/spinwait.h"

#include "sched/netpoll.h"

namespace weft {
namespace {

constexpr uint32_t kMarksKnown = 400;  // from here on a G is taken for one that spins
// 1600 looks, 80 ms: one that waits for a kernel thread that has lost its core, on a busy
// machine, is not to be forgotten meanwhile.
constexpr uint32_t kMarksMost = 2000;
constexpr uint32_t kMarksSlice = 300;  // quiet for a slice, or beside a pause
constexpr uint32_t kMarksLook = 16;    // quiet for a short while: chance has a part in it
constexpr uint64_t kLongTsc = 1'000'000;  // 0.4 ms at 2.5 GHz: no short stretch
constexpr uint64_t kSoonTsc = 250'000;    // 0.1 ms: a hundredth of a slice
constexpr uint64_t kGoingOnNs = 5'000'000;
constexpr uintptr_t kNearPc = 24;      // bytes before and after: a polling loop is short

std::atomic<uint64_t> last_ns{0};  // when spin_look last said yes
std::atomic<uint32_t> vain{0};     // preemptions of known Gs since one of them made a call

void add_marks(G* g, uint32_t n) {
  uint32_t sum = g->spin_marks.load(std::memory_order_relaxed) + n;
  g->spin_marks.store(sum < kMarksMost ? sum : kMarksMost, std::memory_order_relaxed);
}

bool known(const G* g) { return g->spin_marks.load(std::memory_order_relaxed) >= kMarksKnown; }

void probe(G* g) {
  g->probe_tsc.store(tsc(), std::memory_order_relaxed);
  g->attention.fetch_or(kAttProbe, std::memory_order_release);
}

bool probed(const G* g) {
  return (g->attention.load(std::memory_order_acquire) & kAttProbe) != 0;
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

bool spin_look(G* g, uint64_t now) {
  if (!probed(g)) {
    probe(g);
    return false;
  }
  if (!known(g)) return false;
  last_ns.store(now, std::memory_order_relaxed);
  return true;
}

bool spin_preempted(G* g, uintptr_t pc) {
  uint32_t marks = g->spin_marks.load(std::memory_order_relaxed);
  if (marks != 0) g->spin_marks.store(marks - 1, std::memory_order_relaxed);
  // Taken back: leaving the engine after the switch is no call.
  uint32_t bits = g->attention.fetch_and(~uint32_t{kAttProbe}, std::memory_order_relaxed);
  bool quiet = (bits & kAttProbe) != 0;
  g->quiet_tsc = quiet ? tsc() - g->probe_tsc.load(std::memory_order_relaxed) : 0;
  if (pause_near(pc)) add_marks(g, kMarksSlice);
  if (!known(g)) return false;
  uint32_t all = sched.procs + sched.globq_n.load(std::memory_order_relaxed);
  return vain.fetch_add(1, std::memory_order_relaxed) >= 2 * all;
}

void spin_resumed(G* g) { probe(g); }

void spin_called(G* g) {
  uint64_t quiet = g->quiet_tsc;
  if (quiet == 0) return;
  g->quiet_tsc = 0;
  vain.store(0, std::memory_order_relaxed);
  uint64_t soon = tsc() - g->probe_tsc.load(std::memory_order_relaxed);
  if (soon >= quiet / 8 || soon >= kSoonTsc) return;
  add_marks(g, quiet >= kLongTsc ? kMarksSlice : kMarksLook);
}

void spin_reset(G* g) {
  g->spin_marks.store(0, std::memory_order_relaxed);
  g->quiet_tsc = 0;
}

bool spin_going_on(uint64_t now) {
  uint64_t last = last_ns.load(std::memory_order_relaxed);
  return last != 0 && now < last + kGoingOnNs;
}

uint64_t spin_delay(uint64_t now) { return spin_going_on(now) ? kSpinLookNs : kNever; }

}  // namespace weft

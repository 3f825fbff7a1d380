// sigpreempt.cc - the slice is over: where a G may be stopped, and how.
//
// sysmon marks the M (preempt_due) and sends it our SIGURG (host_preempt). SIGURG because
// its default is to be ignored; it is never blocked in the kernel while an M runs Gs. The
// frame lands on the M's own stack, so a G on a small stack notices nothing unless it is
// found safe: then the frame is moved to the G's stack, below its red zone, and the G parks
// there (preempt_here). rt_sigreturn gives it every register back, on whatever M.
//
// Refused: in the engine, in a system call, in libc, the loader, the vdso or ourselves
// (locks we cannot see), in the library of the program's malloc, off the G's own stack,
// with too little room left on it. The G then yields when it next leaves the engine; sysmon
// asks again. The exception: a wait in libc that is to be given up (stranded.h).
//
// The allocator: see allocator.h.
#include <dlfcn.h>
#include <link.h>
#include <linux/futex.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/resource.h>

#include "preload/allocator.h"
#include "preload/api.h"
#include "preload/sigframe.h"
#include "preload/signals.h"
#include "preload/thread.h"
#include "sched/spinwait.h"
#undef p_type  // <resolv.h>, by way of thread.h, renames it

namespace weft {

uintptr_t allocator_lo, allocator_bytes;

namespace {

struct Range {
  uintptr_t lo = 0, hi = 0;
  bool ours = false;
};
constexpr size_t kMaxRanges = 8;
constinit Range no_preempt_in[kMaxRanges] = {};
size_t n_ranges;
constinit Range main_stack;

constexpr size_t kStackLeft = 8 << 10;  // beside the frame: switch_away and a nested frame's start

struct Boot {
  uintptr_t allocator;  // the program's malloc
  int n_seen = 0;
};

int note_range(dl_phdr_info* info, size_t, void* arg) {
  const auto here = reinterpret_cast<uintptr_t>(&signals_wrapper);
  const auto libc = reinterpret_cast<uintptr_t>(real().sigaction.get());
  const uintptr_t vdso = getauxval(AT_SYSINFO_EHDR);
  const uintptr_t ldso = getauxval(AT_BASE);
  // A program that brings its own in the executable (the first here) cannot be spared whole.
  auto* b = static_cast<Boot*>(arg);
  const uintptr_t allocator = b->n_seen++ == 0 ? 0 : b->allocator;
  uintptr_t lo = ~uintptr_t{0}, hi = 0;
  for (int i = 0; i < info->dlpi_phnum; i++) {
    const auto& ph = info->dlpi_phdr[i];
    if (ph.p_type != PT_LOAD) continue;
    uintptr_t from = info->dlpi_addr + ph.p_vaddr, to = from + ph.p_memsz;
    if (from < lo) lo = from;
    if (to > hi) hi = to;
  }
  if (allocator >= lo && allocator < hi && allocator != 0 && (libc < lo || libc >= hi)) {
    allocator_lo = lo;
    allocator_bytes = hi - lo;
  }
  for (uintptr_t mark : {here, libc, vdso, ldso, allocator})
    if (mark >= lo && mark < hi && n_ranges < kMaxRanges) {
      no_preempt_in[n_ranges++] = {lo, hi, here >= lo && here < hi};
      break;
    }
  return 0;
}

// Before a system call, or again: the kernel has set the registers back (SA_RESTART).
bool at_syscall(const ucontext_t* uc) {
  constexpr uint16_t kSyscallInsn = 0x050f;
  uint16_t insn;
  memcpy(&insn, reinterpret_cast<const void*>(uc->uc_mcontext.gregs[REG_RIP]), sizeof insn);
  return insn == kSyscallInsn;
}

// About to wait on a futex without a time limit.
bool before_futex_wait(const ucontext_t* uc) {
  const auto& r = uc->uc_mcontext.gregs;
  long op = r[REG_RSI] & FUTEX_CMD_MASK;
  return at_syscall(uc) && r[REG_RAX] == SYS_futex && (op == FUTEX_WAIT || op == FUTEX_WAIT_BITSET) &&
         r[REG_R10] == 0;
}

}  // namespace

void preempt_boot() {
  n_ranges = 0;
  allocator_bytes = 0;
  Boot b{reinterpret_cast<uintptr_t>(dlsym(RTLD_DEFAULT, "malloc"))};
  dl_iterate_phdr(note_range, &b);
  // The kernel puts the random bytes above main's first frame.
  constexpr uintptr_t kMost = 64 << 20;
  struct rlimit r = {};
  sys_call(SYS_prlimit64, 0, RLIMIT_STACK, 0, sys_arg(&r));
  main_stack.hi = getauxval(AT_RANDOM);
  main_stack.lo = main_stack.hi - (r.rlim_cur < kMost ? r.rlim_cur : kMost);
}

bool end_plain_call(G* g, ucontext_t* uc) {
  auto& r = uc->uc_mcontext.gregs;
  if (!g->in_plain.load(std::memory_order_relaxed) || !at_syscall(uc) ||
      (r[REG_RAX] != SYS_read && r[REG_RAX] != SYS_write))
    return false;
  r[REG_RIP] += 2;
  r[REG_RAX] = -EAGAIN;
  return true;
}

bool preempt_safe(G* g, const ucontext_t* uc, Preempt why) {
  if (g->no_preempt != 0 || g_state(g) != GState::kRunning) return false;
  auto pc = static_cast<uintptr_t>(uc->uc_mcontext.gregs[REG_RIP]);
  auto sp = static_cast<uintptr_t>(uc->uc_mcontext.gregs[REG_RSP]);
  for (size_t i = 0; i < n_ranges; i++) {
    if (pc < no_preempt_in[i].lo || pc >= no_preempt_in[i].hi) continue;
    if (why == Preempt::kGiveUp && !no_preempt_in[i].ours && before_futex_wait(uc)) break;
    if (!no_preempt_in[i].ours) spin_refused(g);  // redis's spinning threads take a mutex, too
    return false;
  }
  Range r = main_stack;
  if (g->stack_lo != nullptr)
    r = {reinterpret_cast<uintptr_t>(g->stack_lo), reinterpret_cast<uintptr_t>(g->stack_hi)};
  return sp <= r.hi && sp > r.lo && sp - r.lo > frame_bytes(uc) + kStackLeft;
}

// On g's stack, in the moved frame, with every signal blocked in the kernel.
void preempt_here(int, siginfo_t*, void* ucv) {
  G* g = t_g;
  auto* uc = static_cast<ucontext_t*>(ucv);
  int saved = errno;
  bool in_vain = spin_preempted(g, static_cast<uintptr_t>(uc->uc_mcontext.gregs[REG_RIP]));
  g->m->kmask = kMaskNoG;  // before anything that can switch
  engine_enter(g);
  if (g->m->p != nullptr) {
    sched.n_preempts.fetch_add(1, std::memory_order_relaxed);
    if (in_vain) sys_sched_yield();
    yield_preempted(preempt_why_taken(g));
  }
  if (g->m->kmask == kMaskNoG) host_sync_signals(g->m, g);
  frame_forget_stack(uc);
  engine_exit(g);
  spin_resumed(g);
  errno = saved;
}

void host_preempt(M* m, Preempt why) {
  G* g = m->curg.load(std::memory_order_acquire);
  if (g == nullptr || g->wired) return;
  m->preempt_due.store(why, std::memory_order_relaxed);  // before sent_begin's fetch_or
  if (!sent_begin(m, g, kSentUrg, why != Preempt::kGiveUp)) return;
  send_poke(m, kSoft);
}

}  // namespace weft

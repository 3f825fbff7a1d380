// dump.cc - stacks for the dump, and the signal that asks for one.
//
// host_print_stack works in the dump's copy of the process alone (sched/report_copy.cc):
// it may touch wild addresses (a fault ends that stack's listing, no more) and asks the
// loader for its lists. Where the registers come from:
//  - a G off its M: the frame that weft_switch left (asm/switch.S);
//  - a G whose M sleeps in the kernel: SP and PC by /proc/PID/task/TID/syscall. Nothing
//    disturbs that thread: stopping it would show as EINTR in some calls. RBP is unknown
//    then, so a listing may end early in code built without optimisation;
//  - a G that runs: the M is stopped by ptrace for the moment it takes to read its
//    registers; its stack is then copied over ours, which the fork left a little older.
#include "preload/dump.h"

#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>

#include "preload/api.h"
#include "preload/knobs.h"
#include "preload/say.h"
#include "preload/signals.h"
#include "preload/symbols.h"
#include "preload/thread.h"
#include "sched/report.h"
#include "sched/watch.h"

#if WEFT_HAVE_UNWIND
#include <libunwind.h>
#endif

namespace weft {
namespace {

constexpr int kMaxFrames = 64;

struct Regs {
  uint64_t ip = 0, sp = 0, bp = 0, bx = 0, r12 = 0, r13 = 0, r14 = 0, r15 = 0;
};

// The kernel's struct sigaction, for handlers that libc and its callers need not know.
struct KernelAction {
  void (*handler)(int);
  unsigned long flags;
  void (*restorer)();
  uint64_t mask;
};
constexpr unsigned long kSaRestorer = 0x04000000;

extern "C" __attribute__((visibility("hidden"))) void weft_dump_restorer();
__asm__(
    ".text\n.hidden weft_dump_restorer\n.type weft_dump_restorer, @function\n"
    "weft_dump_restorer:\n mov $15, %eax\n syscall\n ud2\n"
    ".size weft_dump_restorer, . - weft_dump_restorer\n");

void* fault_jump[5];
bool guarding;

void on_fault(int) {
  if (!guarding) sys_call(SYS_exit_group, 1);
  guarding = false;
  __builtin_longjmp(fault_jump, 1);
}

// Runs f(arg); false if it ended in a fault. Copy only.
__attribute__((noinline)) bool guarded(void (*f)(void*), void* arg) {
  if (__builtin_setjmp(fault_jump) != 0) return false;
  guarding = true;
  f(arg);
  guarding = false;
  return true;
}

void catch_faults() {
  static bool done;
  static char alt[32768];
  if (done) return;
  done = true;
  stack_t ss = {};
  ss.ss_sp = alt;
  ss.ss_size = sizeof alt;
  sys_call(SYS_sigaltstack, sys_arg(&ss), 0);
  KernelAction a = {on_fault, kSaRestorer | SA_ONSTACK | SA_NODEFER, weft_dump_restorer, 0};
  uint64_t set = uint64_t{1} << (SIGSEGV - 1) | uint64_t{1} << (SIGBUS - 1);
  sys_call(SYS_rt_sigaction, SIGSEGV, sys_arg(&a), 0, 8);
  sys_call(SYS_rt_sigaction, SIGBUS, sys_arg(&a), 0, 8);
  sys_sigprocmask(SIG_UNBLOCK, &set, nullptr);
}

// ---- registers

char* append(char* at, const char* s) {
  while (*s != 0) *at++ = *s++;
  return at;
}

char* append(char* at, int v) {
  char digits[12];
  int n = 0;
  do digits[n++] = static_cast<char>('0' + v % 10);
  while ((v /= 10) != 0);
  while (n > 0) *at++ = digits[--n];
  return at;
}

// The last two numbers of /proc/PID/task/TID/syscall, if that thread sleeps.
bool regs_asleep(int tid, Regs* r, long* call) {
  char path[64], buf[256];
  char* at = append(append(path, "/proc/"), report_copy_parent);
  *append(append(append(at, "/task/"), tid), "/syscall") = 0;
  long fd = sys_call(SYS_openat, AT_FDCWD, sys_arg(&path[0]), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return false;
  long n = sys_call(SYS_read, fd, sys_arg(&buf[0]), sizeof buf - 1);
  sys_call(SYS_close, fd);
  if (n <= 0 || buf[0] == 'r') return false;
  buf[n] = 0;
  char* pc = strrchr(buf, ' ');
  if (pc == nullptr) return false;
  *pc = 0;
  char* sp = strrchr(buf, ' ');
  if (sp == nullptr) return false;
  r->ip = strtoul(pc + 1, nullptr, 16);
  *call = strtol(buf, nullptr, 10);
  r->sp = strtoul(sp + 1, nullptr, 16);
  return r->ip != 0;
}

bool regs_by_ptrace(int tid, Regs* r) {
  long err = -1;
  for (int i = 0; i < 5 && err != 0; i++) {  // our parent is about to allow it (Yama)
    if (i > 0) sys_sleep_ns(2'000'000);
    err = sys_call(SYS_ptrace, PTRACE_SEIZE, tid, 0, 0);
  }
  if (err != 0) return false;
  bool ok = false;
  if (sys_call(SYS_ptrace, PTRACE_INTERRUPT, tid, 0, 0) == 0) {
    for (int i = 0; i < 200 && !ok; i++) {
      int status;
      ok = sys_call(SYS_wait4, tid, sys_arg(&status), __WALL | WNOHANG, 0) == tid;
      if (!ok) sys_sleep_ns(1'000'000);
    }
  }
  struct user_regs_struct u;
  ok = ok && sys_call(SYS_ptrace, PTRACE_GETREGS, tid, 0, sys_arg(&u)) == 0;
  if (ok) *r = {u.rip, u.rsp, u.rbp, u.rbx, u.r12, u.r13, u.r14, u.r15};
  return ok;  // detached after the stack has been copied
}

// Our copy of the stack is as old as the fork: bring it up to date, page by page.
void refresh_stack(const Regs& r) {
  for (uint64_t at = r.sp & ~uint64_t{4095}, i = 0; i < 64; i++, at += 4096) {
    struct iovec v = {reinterpret_cast<void*>(at), 4096};
    if (sys_call(SYS_process_vm_readv, report_copy_parent, sys_arg(&v), 1, sys_arg(&v), 1, 0) !=
        4096)
      break;
  }
}

enum class Source { kNone, kSwitched, kSelf, kAsleep, kStopped };

Source find_regs(G* g, Regs* r, long* call) {
  if (g == nullptr || g == t_g) return Source::kSelf;
  if (g->on_cpu.load(std::memory_order_acquire) == 0) {
    auto* f = static_cast<const uint64_t*>(g->sp);
    *r = {f[7], reinterpret_cast<uint64_t>(f + 8), f[6], f[5], f[4], f[3], f[2], f[1]};
    return Source::kSwitched;
  }
  M* m = g->m;
  int tid = m == nullptr ? 0 : m->tid.load(std::memory_order_relaxed);
  if (tid == 0) return Source::kNone;
  if (regs_asleep(tid, r, call)) {
    refresh_stack(*r);
    return Source::kAsleep;
  }
  if (!regs_by_ptrace(tid, r)) return Source::kNone;
  refresh_stack(*r);
  sys_call(SYS_ptrace, PTRACE_DETACH, tid, 0, 0);
  return Source::kStopped;
}

// ---- printing

void print_frame(Out& out, int n, uint64_t pc, bool call) {
  Symbol s = symbol_at(call ? pc - 1 : pc);
  out << "    #" << n << (n < 10 ? "  " : " ");
  out.hex(pc) << " ";
  if (s.name != nullptr) out << s.name;
  out << "+";
  out.hex(s.offset + (call ? 1 : 0)) << " (" << s.file << ")\n";
}

struct Walk {
  Regs regs;
  Source source;
  Out* out;
};

#if WEFT_HAVE_UNWIND
void walk(void* arg) {
  auto* w = static_cast<Walk*>(arg);
  unw_context_t context;
  unw_cursor_t c;
  unw_getcontext(&context);
  unw_init_local(&c, &context);
  if (w->source != Source::kSelf) {
    const Regs& r = w->regs;
    unw_set_reg(&c, UNW_X86_64_RBX, r.bx);
    unw_set_reg(&c, UNW_X86_64_RBP, r.bp);
    unw_set_reg(&c, UNW_X86_64_R12, r.r12);
    unw_set_reg(&c, UNW_X86_64_R13, r.r13);
    unw_set_reg(&c, UNW_X86_64_R14, r.r14);
    unw_set_reg(&c, UNW_X86_64_R15, r.r15);
    unw_set_reg(&c, UNW_REG_SP, r.sp);
    unw_set_reg(&c, UNW_REG_IP, r.ip);
  }
  for (int i = 0; i < kMaxFrames; i++) {
    unw_word_t pc = 0;
    if (unw_get_reg(&c, UNW_REG_IP, &pc) != 0 || pc == 0) break;
    print_frame(*w->out, i, pc, i > 0 && unw_is_signal_frame(&c) <= 0);
    if (unw_step(&c) <= 0) break;
  }
}
#else
void walk(void* arg) {
  auto* w = static_cast<Walk*>(arg);
  if (w->source != Source::kSelf) print_frame(*w->out, 0, w->regs.ip, false);
  *w->out << "    (built without libunwind)\n";
}
#endif

// Whom g waits for, where the object says so: a mutex's owner, a joined thread.
void print_owner(Out& out, const G* g) {
  uint32_t owner = 0;
  if (g->wait == Wait::kMutex) {
    owner = static_cast<uint32_t>(static_cast<const pthread_mutex_t*>(g->wait_on)->__data.__owner);
  } else if (g->wait == Wait::kJoin) {
    auto* at = static_cast<const char*>(g->wait_on) - offsetof(Thread, join);
    owner = reinterpret_cast<const Thread*>(at)->g->vtid;
  }
  if (owner == 0) return;
  out << "    " << (g->wait == Wait::kMutex ? "held by " : "joins ");
  for (const G* o = all_gs_first(); o != nullptr; o = o->all_next) {
    if (o->vtid != owner || g_state(o) == GState::kDead) continue;
    out << "G " << o->index << ", ";
    break;
  }
  out << "vtid " << owner << "\n";
}

void print_thread(void* arg) {
  auto* both = static_cast<void**>(arg);
  auto* g = static_cast<G*>(both[0]);
  Out& out = *static_cast<Out*>(both[1]);
  Thread* t = thread_of(g);
  if (t != nullptr && (t->name[0] != 0 || t->start != nullptr || t->start_c11 != nullptr)) {
    out << "    thread " << (t->name[0] != 0 ? t->name : "-");
    auto start = reinterpret_cast<uint64_t>(t->start);
    if (start == 0) start = reinterpret_cast<uint64_t>(t->start_c11);
    if (start != 0) {
      Symbol s = symbol_at(start);
      out << ", started in " << (s.name != nullptr ? s.name : s.file);
    }
    out << "\n";
  }
  if (g_state(g) == GState::kWaiting && g->wait_on != nullptr) print_owner(out, g);
}

}  // namespace

void host_print_stack(G* g) {
  if (report_copy_parent == 0) return;
  catch_faults();
  Out out;
  void* both[2] = {g, &out};
  if (g != nullptr && !guarded(print_thread, both)) out << "    (unreadable)\n";
  Walk w{{}, Source::kNone, &out};
  long call = -1;
  w.source = find_regs(g, &w.regs, &call);
  if (call >= 0) out << "    asleep in system call " << int64_t{call} << "\n";
  if (w.source == Source::kNone) {
    out << "    (running; its registers cannot be read)\n";
  } else if (!guarded(walk, &w)) {
    out << "    (the rest is unreadable)\n";
  }
}

namespace {

std::atomic<int> dump_signal{0};  // ours, by the kernel's action

void on_dump_signal(int) { watch_request_dump(); }

}  // namespace

void dump_boot() {
  const Knobs& k = knobs();
  watch_config({static_cast<uint32_t>(k.schedtrace_ms), k.scheddetail});
  dump_signal.store(k.dumpsig, std::memory_order_relaxed);
  if (k.dumpsig == 0) return;
  // A fork child has our own from its parent.
  if (has_handler(k.dumpsig) && action_of(k.dumpsig).handler != on_dump_signal) {
    dump_signal_taken(k.dumpsig);
    return;
  }
  KernelAction a = {on_dump_signal, kSaRestorer | SA_RESTART | SA_ONSTACK, weft_dump_restorer, 0};
  sys_call(SYS_rt_sigaction, k.dumpsig, sys_arg(&a), 0, 8);
}

uint64_t dump_signal_bit() {
  int sig = dump_signal.load(std::memory_order_relaxed);
  return sig == 0 ? 0 : sig_bit(sig);
}

void dump_signal_taken(int sig) {
  if (sig == 0 || !dump_signal.compare_exchange_strong(sig, 0, std::memory_order_relaxed)) return;
  say_line("weft: WEFT_DEBUG=dumpsig: this program has its own use for that signal: no dumps");
}

}  // namespace weft

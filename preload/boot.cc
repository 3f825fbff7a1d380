// boot.cc - from a plain process to a scheduled one, at the first pthread_create.
//
// Nothing happens before: a single-threaded program under weft has no extra thread, no
// signal handler, no descriptor. Boot probes libc (tcb_probe), parses the knobs, makes the
// caller G1 on M0 and starts sysmon and the spawner. Whatever is off leaves the process
// native for good, with one line on stderr.
//
// Boot also happens again in a fork child, from whatever thread called fork.
#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>

#include <new>

#include "preload/api.h"
#include "preload/dump.h"
#include "preload/filtered.h"
#include "preload/fork.h"
#include "preload/io_stdio.h"
#include "preload/io_uring.h"
#include "preload/knobs.h"
#include "preload/last.h"
#include "preload/mutex.h"
#include "preload/say.h"
#include "preload/signals.h"
#include "preload/tcb.h"
#include "preload/thread.h"
#include "preload/tls_modules.h"
#include "preload/watched.h"
#include "preload/wire.h"
#include "sched/netpoll.h"
#include "sched/stack.h"

extern char** environ;

namespace weft {

std::atomic<BootState> boot_state{kCold};

namespace {

constexpr unsigned long kHwcap2Fsgsbase = 2;  // AT_HWCAP2 bit 1

Lock boot_lock;
alignas(64) char g1_room[sizeof(G)];
alignas(64) char thread1_room[sizeof(Thread)];

uint32_t read_number(const char* path, int field) {
  char buf[128];
  long fd = sys_call(SYS_openat, AT_FDCWD, sys_arg(path), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return 0;
  long n = sys_call(SYS_read, fd, sys_arg(&buf[0]), sizeof buf - 1);
  sys_call(SYS_close, fd);
  if (n <= 0) return 0;
  buf[n] = 0;
  char* s = buf;
  for (; field > 0 && *s != 0; s++) field -= *s == ' ';
  return *s >= '0' && *s <= '9' ? static_cast<uint32_t>(strtoul(s, nullptr, 10)) : 0;
}

// The cgroup's cpu quota in whole cores, rounded up; 0: none. Both cgroup versions, at the
// process's own mount, which is where containers see theirs.
uint32_t quota_cores() {
  uint32_t quota = read_number("/sys/fs/cgroup/cpu.max", 0);
  uint32_t period = read_number("/sys/fs/cgroup/cpu.max", 1);
  if (quota == 0) {
    quota = read_number("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", 0);
    period = read_number("/sys/fs/cgroup/cpu/cpu.cfs_period_us", 0);
  }
  return quota == 0 || period == 0 ? 0 : (quota + period - 1) / period;
}

uint32_t default_procs() {
  cpu_set_t set[16];  // 16384 CPUs
  CPU_ZERO_S(sizeof set, set);
  long r = sys_call(SYS_sched_getaffinity, 0, sizeof set, sys_arg(&set[0]));
  uint32_t n = r > 0 ? static_cast<uint32_t>(CPU_COUNT_S(static_cast<size_t>(r), set)) : 1;
  uint32_t quota = quota_cores();
  if (quota != 0 && quota < n) n = quota;
  return n == 0 ? 1 : n > kMaxProcs ? kMaxProcs : n;
}

// The thread that boots as G1: main's G is static; in a fork child of a G, the slot's own.
G* make_g1() {
  uintptr_t fs = reinterpret_cast<uintptr_t>(__builtin_thread_pointer());
  G* g = g_at(reinterpret_cast<void*>(fs));
  Thread* t;
  auto* was = reinterpret_cast<G*>(g1_room);
  if (g == nullptr && was->fs == fs) g = was;  // in a fork child of main
  if (g != nullptr) {
    t = thread_of(g);  // kept: calls and handlers may be under way above the fork
  } else {
    // In a fork child of another thread main's are there already, in the list of all Gs.
    G* all_next = was->all_next;
    uint32_t index = was->index;
    g = new (g1_room) G;
    g->all_next = all_next;
    g->index = index;
    t = new (thread1_room) Thread;
    g->fs = fs;
    g->thread = t;
    g->fresh = false;
    t->g = g;
    if (index == 0) all_gs_add(g);
  }
  t_own_id = g->vtid = static_cast<uint32_t>(sys_gettid());
  g->engine.store(0, std::memory_order_relaxed);
  t->alive.store(true, std::memory_order_relaxed);
  t->join.store(kJoinable, std::memory_order_relaxed);
  t->tsd_used = true;  // it may have set values before anyone asked
  int state, type, ignored;
  real().pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &state);
  real().pthread_setcanceltype(PTHREAD_CANCEL_DEFERRED, &type);
  real().pthread_setcanceltype(type, &ignored);
  real().pthread_setcancelstate(state, &ignored);
  t->cancel_disabled = state == PTHREAD_CANCEL_DISABLE;
  t->cancel_async = type == PTHREAD_CANCEL_ASYNCHRONOUS;
  return g;
}

// M0's scheduler stack and TCB.
G* make_g0_slot() {
  G* g = g_alloc(64 << 10, kPageBytes);
  if (g == nullptr) return nullptr;
  prepare_thread(g);
  g->vtid = static_cast<uint32_t>(sys_gettid());
  if (!tcb_make(g)) return nullptr;
  g->fresh = false;
  return g;
}

G* g1 = nullptr;

bool stay_native(const char* why) {
  if (why != nullptr) say_line("weft: ", why, ": this program runs on native threads");
  boot_state.store(kNative, std::memory_order_release);
  return false;
}

bool boot() {
  knobs_parse(environ);
  const Knobs& k = knobs();
  if (k.native || getauxval(AT_SECURE) != 0) return stay_native(nullptr);
  real_resolve_all();
  if (const char* why = watched_by()) return stay_native(why);
  if (const char* why = filtered_by()) return stay_native(why);
  if (raw_fork_child) return stay_native("this process was made by clone(2)");
  if (const char* why = tcb_probe()) return stay_native(why);
  ids_begin();
  // A thread of libc's own (a timer's, say) may be the first to create one: main then
  // stays native, for its stack and TCB are not at hand.
  bool main_thread = sys_gettid() == sys_getpid();
  BootConfig c{};
  uint32_t cores = default_procs();
  c.procs = k.procs != 0 ? static_cast<uint32_t>(k.procs) : cores;
  c.crowded = c.procs > cores;
  c.spin_us = static_cast<uint32_t>(k.spin_us);
  c.preempt_ms = static_cast<uint32_t>(k.preempt_ms);
  c.fsgsbase = (getauxval(AT_HWCAP2) & kHwcap2Fsgsbase) != 0;
  G* slot = make_g0_slot();
  if (slot == nullptr) return stay_native("no memory for the scheduler");
  g1 = nullptr;
  if (main_thread) {
    tcb_unregister_rseq();
    g1 = make_g1();
    if (!land_first(g1)) {
      g1 = nullptr;
      return stay_native("no thread-specific key is left");
    }
  }
  signals_boot(g1);
  if (k.netpoll == Netpoll::kOff) netpoll_disable();
  else stdio_boot();
  last_boot();
  dump_boot();
  if (sched_boot(c, g1, slot) != 0) return stay_native("cannot start the scheduler's threads");
  boot_state.store(kUp, std::memory_order_release);
  if (g1 != nullptr) ring_boot();
  return true;
}

}  // namespace

bool weft_boot_first() {
  BootState s = boot_state.load(std::memory_order_acquire);
  if (s == kNative) return false;
  if (s == kBooting && boot_lock.held()) return false;  // boot's own calls come back here
  {
    Hold hold(boot_lock);
    s = boot_state.load(std::memory_order_acquire);
    if (s != kCold) return s == kUp;
    boot_state.store(kBooting, std::memory_order_relaxed);
    if (!boot()) return false;
  }
  if (kernel_lock_before_boot) wire_thread_for_lock("a robust, PI or process-shared mutex");
  return true;
}

G* first_thread() { return g1; }

void boot_after_fork() {
  if (boot_state.load(std::memory_order_relaxed) == kUp)
    boot_state.store(kCold, std::memory_order_relaxed);
  g1 = nullptr;
  boot_lock.reset();
  tls_modules_after_fork();
}

}  // namespace weft

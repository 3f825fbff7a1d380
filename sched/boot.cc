// boot.cc - the scheduler's birth, and its end in a fork child.
#include <linux/membarrier.h>
#include <sys/mman.h>

#include <new>

#include "sched/gfutex.h"
#include "sched/netpoll.h"
#include "sched/stack.h"
#include "sched/sysmon.h"

namespace weft {
namespace {

constexpr size_t kG0StackBytes = 64 << 10;

void g0_main(void* m) {
  t_g = &static_cast<M*>(m)->g0;  // the slot's TCB named the slot's own G
  schedule();
}

// The kernel thread that boots becomes M0. Its own TCB goes to G1, so its g0 lives in a
// slot, with a TCB of the host's making.
M* make_m0(G* slot) {
  void* mem = sys_mmap(nullptr, round_up(sizeof(M), kPageBytes), PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS);
  if (sys_failed(mem)) return nullptr;
  M* m = new (mem) M;
  m->g0.m = m;
  m->g0.is_g0 = true;
  m->g0.engine.store(1, std::memory_order_relaxed);
  m->g0.fs = slot->fs;
  g_prepare(&m->g0, slot->stack_hi, g0_main, m);
  m->tid.store(sys_gettid(), std::memory_order_relaxed);
  return m;
}

}  // namespace

int sched_boot(const BootConfig& c, G* g1, G* g0_slot) {
  M* m0 = make_m0(g0_slot);
  void* ps = sys_mmap(nullptr, round_up(sizeof(P) * c.procs, kPageBytes), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS);
  if (m0 == nullptr || sys_failed(ps)) return -12 /*ENOMEM*/;
  sched.p = static_cast<P*>(ps);
  sched.procs = c.procs;
  sched.spin_us = c.spin_us;
  sched.preempt_ms = c.preempt_ms;
  sched.fsgsbase = c.fsgsbase;
  sched.crowded = c.crowded;
  gfutex_boot();
  sched.membarrier =
      sys_call(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0) == 0;
  for (uint32_t i = 0; i < c.procs; i++) (new (&sched.p[i]) P)->id = i;
  sched.all_m.store(m0, std::memory_order_relaxed);
  sched.n_m.store(1, std::memory_order_relaxed);
  sched.last_poll_ns.store(host_now_ns(), std::memory_order_relaxed);
  for (uint32_t i = c.procs; i-- > 1;) idle_p_put_locked(&sched.p[i]);

  if (g1 != nullptr) {  // else a foreign thread boots: main stays native, M0 is not used
    g1->m = m0;
    g1->on_cpu.store(1, std::memory_order_relaxed);
    g1->state.store(static_cast<uint64_t>(GState::kRunning), std::memory_order_relaxed);
    m0->curg.store(g1, std::memory_order_relaxed);
    m0->kmask = g1->sigmask;
    t_g = g1;
    acquire_p(m0, &sched.p[0]);
  } else {
    idle_p_put_locked(&sched.p[0]);
  }
  int err = host_start_thread(sysmon_main, nullptr, "weft-sysmon");
  if (err == 0) err = host_start_thread(spawner_main, nullptr, "weft-spawn");
  if (err != 0) {  // no kernel thread to be had: stay native
    t_g = nullptr;
    return err;
  }
  sched.booted.store(true, std::memory_order_release);
  request_m();
  return 0;
}

void sched_after_fork(G* keep) {
  stack_after_fork(keep);
  gfutex_after_fork();
  netpoll_after_fork();
  new (&sched) Sched;
  t_g = nullptr;
}

}  // namespace weft

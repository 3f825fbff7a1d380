// m.cc - Ms and Ps: who holds which, how Ms sleep, wake and come to be.
//
// An M is started by the spawner, a thread of its own: making a kernel thread needs libc's
// pthread_create, hence malloc, hence perhaps a lock of the program's allocator, which no
// scheduler stack may wait for. Whoever lacks an M asks (request_m) and leaves the P on
// the idle list, with its queue: every stealer looks at all Ps, idle ones too.
//
// One spare idle M is kept, so that a hand-off costs a futex wake, not a thread's birth.
#include <signal.h>
#include <sys/mman.h>

#include <new>

#include "sched/netpoll.h"
#include "sched/sched.h"
#include "sched/sysmon.h"

namespace weft {
namespace {

constexpr uint32_t kSpareM = 2;
constexpr uint32_t kMaxM = 10000;  // Go's: more means that something blocks without end

void wake_m(M* m) {
  m->park.store(1, std::memory_order_release);  // pairs with stop_m's acquire: next_p
  sys_futex_wake(&m->park, 1);
}

// First code of a spawned M, on the stack libc gave it, which becomes g0's.
void m_main(void* arg) {
  M* m = static_cast<M*>(arg);
  t_g = &m->g0;
  m->g0.fs = reinterpret_cast<uintptr_t>(__builtin_thread_pointer());
  m->tid.store(sys_gettid(), std::memory_order_relaxed);
  {
    Hold hold(sched.lock);
    m->all_next = sched.all_m.load(std::memory_order_relaxed);
    sched.all_m.store(m, std::memory_order_release);
  }
  schedule();  // without a P: find_runnable stops us until one is handed over
}

void spawn_one() {
  if (sched.n_m.load(std::memory_order_relaxed) >= kMaxM) return;
  void* mem = sys_mmap(nullptr, round_up(sizeof(M), kPageBytes), PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS);
  if (sys_failed(mem)) return;
  M* m = new (mem) M;
  m->id = sched.n_m.fetch_add(1, std::memory_order_relaxed);
  m->rng = 0x9e3779b9u * (m->id + 1);
  m->g0.m = m;
  m->g0.is_g0 = true;
  m->g0.engine.store(1, std::memory_order_relaxed);
  if (host_start_thread(m_main, m, "weft-m") != 0) {
    sched.n_m.fetch_sub(1, std::memory_order_relaxed);
    sys_munmap(mem, round_up(sizeof(M), kPageBytes));
  }
}

// As many as there are Ps, one for each M that is away with its G, and spares. Without the
// bound each M between giving its P up and reaching the idle list would be missed, and
// another one started for good.
bool m_wanted() {
  return sched.n_m.load(std::memory_order_relaxed) <
         sched.procs + sched.n_away.load(std::memory_order_relaxed) + kSpareM;
}

}  // namespace

WEFT_COLD uint64_t keep_handlers_out() {
  uint64_t all = ~uint64_t{0}, mask = 0;  // libc's own, too
  sys_sigprocmask(SIG_BLOCK, &all, &mask);
  return mask;
}

WEFT_COLD void let_handlers_in(uint64_t mask) { sys_sigprocmask(SIG_SETMASK, &mask, nullptr); }

void block_signals(M* m) {
  if (m->kmask == kMaskNoG) return;
  uint64_t all = kAllSignals;
  sys_sigprocmask(SIG_SETMASK, &all, nullptr);
  m->kmask = kMaskNoG;
}

void spawner_main(void*) {
  for (;;) {
    while (sched.want_m.load(std::memory_order_acquire) == 0) sys_futex_wait(&sched.want_m, 0);
    // Before it is made: what is asked for from here on is another one. The M we make may be
    // away with a G before we come back, and want one itself.
    sched.want_m.store(0, std::memory_order_seq_cst);
    if (m_wanted()) spawn_one();
  }
}

void request_m() {
  if (!m_wanted()) return;
  if (sched.want_m.load(std::memory_order_relaxed) == 0 &&
      sched.want_m.exchange(1, std::memory_order_acq_rel) == 0)
    sys_futex_wake(&sched.want_m, 1);
}

bool p_has_work(const P* p) { return !p->runq.empty(); }

bool any_work() {
  for (uint32_t i = 0; i < sched.procs; i++)
    if (p_has_work(&sched.p[i])) return true;
  return sched.globq_n.load(std::memory_order_acquire) != 0;
}

P* idle_p_get_locked() {
  P* p = sched.idle_p;
  if (p == nullptr) return nullptr;
  // Prefer one with work: it has been waiting for an M.
  P** link = &sched.idle_p;
  for (P** l = &sched.idle_p; *l != nullptr; l = &(*l)->idle_link)
    if (p_has_work(*l)) {
      link = l;
      break;
    }
  p = *link;
  *link = p->idle_link;
  p->idle_link = nullptr;
  sched.n_idle_p.fetch_sub(1, std::memory_order_seq_cst);
  return p;
}

void idle_p_put_locked(P* p) {
  p->idle_link = sched.idle_p;
  sched.idle_p = p;
  sched.n_idle_p.fetch_add(1, std::memory_order_seq_cst);
}

void acquire_p(M* m, P* p) {
  CHECK(m->p == nullptr && p->m.load(std::memory_order_relaxed) == nullptr);
  m->p = p;
  p->status.store(PStatus::kRunning, std::memory_order_relaxed);
  p->m.store(m, std::memory_order_release);
  if (WEFT_UNLIKELY(sched.sysmon_word.load(std::memory_order_relaxed) == 1) &&
      sched.sysmon_word.exchange(0, std::memory_order_acq_rel) == 1)
    sys_futex_wake(&sched.sysmon_word, 1);
}

// The M keeps running its code; p is the caller's, detached.
void release_p(M* m) {
  P* p = m->p;
  CHECK(p != nullptr && p->m.load(std::memory_order_relaxed) == m);
  m->old_p = p;
  m->p = nullptr;
  detach_p(p);
}

void detach_p(P* p) {
  p->m.store(nullptr, std::memory_order_relaxed);
  p->status.store(PStatus::kIdle, std::memory_order_release);
}

namespace {

// Gives p to an idle M, or leaves both on order. `spinning`: the caller counted it.
void start_m(P* p, bool spinning) {
  M* m;
  bool spare_wanted = false;
  {
    Hold hold(sched.lock);
    m = sched.idle_m;
    if (m == nullptr) {
      idle_p_put_locked(p);
    } else {
      sched.idle_m = m->idle_link;
      sched.n_idle_m--;
      spare_wanted = sched.idle_m == nullptr;
    }
  }
  if (m == nullptr) {
    if (spinning) sched.n_spinning.fetch_sub(1, std::memory_order_seq_cst);
    request_m();
    if (sched.sysmon_word.load(std::memory_order_seq_cst) == 1) sysmon_kick();  // stranded.h
    return;
  }
  m->spinning = spinning;
  m->next_p = p;
  sched.n_wakes.fetch_add(1, std::memory_order_relaxed);
  if (M* self = this_m(); self != nullptr) self->trace.add(Ev::kStartM, m->id, p->id);
  wake_m(m);
  if (spare_wanted) request_m();
}

}  // namespace

void wake_p() {
  if (sched.n_spinning.load(std::memory_order_relaxed) != 0) return;
  uint32_t none = 0;
  if (!sched.n_spinning.compare_exchange_strong(none, 1, std::memory_order_seq_cst)) return;
  P* p = nullptr;
  {
    Hold hold(sched.lock);
    p = idle_p_get_locked();
    // Under the lock: an M about to give its P up looks for work under it, too, so either
    // it sees the work we are here for or we see its P.
    if (p == nullptr) sched.n_spinning.fetch_sub(1, std::memory_order_seq_cst);
  }
  if (p != nullptr) start_m(p, true);
}

bool worth_watching() {
  if (netpoll_waiters()) return true;
  for (uint32_t i = 0; i < sched.procs; i++)
    if (sched.p[i].timers.earliest() != kNever) return true;
  return false;
}

bool unwatched() {
  return sched.last_poll_ns.load(std::memory_order_relaxed) != 0 &&
         sched.n_idle_p.load(std::memory_order_relaxed) == sched.procs && worth_watching();
}

void hand_off_p(P* p) {
  p->n_handoffs++;
  if (p_has_work(p) || sched.globq_n.load(std::memory_order_acquire) != 0) {
    start_m(p, false);
    return;
  }
  {
    Hold hold(sched.lock);
    if (sched.globq.n == 0) {
      idle_p_put_locked(p);
      p = nullptr;
    }
  }
  if (p != nullptr) {
    start_m(p, false);
    return;
  }
  // Somebody sleeping in netpoll knows only the timers it saw; p's are still in its list.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  if (sched.globq_n.load(std::memory_order_acquire) != 0) wake_p();
  else if (unwatched()) wake_p();  // let one M go and sleep there
}

void stop_m(M* m) {
  CHECK(m->p == nullptr && !m->spinning);
  block_signals(m);
  m->trace.add(Ev::kStopM, 0);
  P* found = nullptr;
  {
    Hold hold(sched.lock);
    // start_m without an idle M left its P on the idle list; the work it was for may stand
    // in any queue, a busy P's too, or be the watch over descriptors and timers.
    if (any_work() || unwatched()) found = idle_p_get_locked();
    if (found == nullptr) {
      m->idle_link = sched.idle_m;
      sched.idle_m = m;
      sched.n_idle_m++;
    }
  }
  if (found == nullptr) {
    // next_p is written before park (wake_m's release), so it is there when park is 1.
    while (m->park.load(std::memory_order_acquire) == 0) sys_futex_wait(&m->park, 0);
    m->park.store(0, std::memory_order_relaxed);
    found = m->next_p;
    m->next_p = nullptr;
  }
  acquire_p(m, found);
}

}  // namespace weft

// sigsend.cc - signals on their way to a G: queues, pokes, routing.
//
// Queues: one per thread (in its Thread) and one for the process, each under its lock, taken
// in the engine only (a handler that interrupted a holder would wait for itself). Standard
// signals are kept once, real-time ones each, as the kernel does. Nodes come from a pool
// that grows by mmap and is bounded (EAGAIN).
//
// Deferral (signal_defer) runs in a signal handler inside the engine: a lock-free array of
// slots, emptied by sysmon. Slot word: 0 free, 1 being filled, 2 full.
#include <string.h>
#include <sys/mman.h>

#include "preload/api.h"
#include "preload/ids.h"
#include "preload/signals.h"
#include "preload/thread.h"
#include "sched/stack.h"
#include "sched/sysmon.h"

namespace weft {
namespace {

constexpr int kPokeCode = -0x77656674;  // no kernel or libc uses it as si_code
constexpr uint32_t kDeferSlots = 1024;
constexpr uint32_t kMaxNodes = 96000;   // about RLIMIT_SIGPENDING's default

struct Node {
  Node* next;
  siginfo_t info;
};

struct Deferred {
  std::atomic<uint32_t> word{0};
  siginfo_t info;
};

Deferred deferred[kDeferSlots];
std::atomic<uint32_t> n_deferred{0};
PendingSet process_pending;
Lock pool_lock;  // guards the two below
Node* pool;
uint32_t n_nodes;

class InEngine {
 public:
  InEngine() : g_(this_g()) {
    if (g_ != nullptr) engine_enter(g_);
  }
  ~InEngine() {
    if (g_ != nullptr) engine_exit(g_);
  }
  InEngine(const InEngine&) = delete;
  InEngine& operator=(const InEngine&) = delete;

 private:
  G* g_;
};

Node* node_get() {
  Hold hold(pool_lock);
  if (pool == nullptr) {
    constexpr size_t kBlock = 64 << 10;
    if (n_nodes >= kMaxNodes) return nullptr;
    void* p = sys_mmap(nullptr, kBlock, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
    if (sys_failed(p)) return nullptr;
    auto* n = static_cast<Node*>(p);
    for (size_t i = 0; i < kBlock / sizeof(Node); i++, n_nodes++) {
      n[i].next = pool;
      pool = &n[i];
    }
  }
  Node* n = pool;
  pool = n->next;
  return n;
}

void node_put(Node* n) {
  Hold hold(pool_lock);
  n->next = pool;
  pool = n;
}

int enqueue(PendingSet& set, int sig, const siginfo_t* info) {
  {
    Hold hold(set.lock);
    if (sig < SIGRTMIN && (set.bits.load(std::memory_order_relaxed) & sig_bit(sig)) != 0) return 0;
  }
  Node* n = node_get();
  if (n == nullptr) return -EAGAIN;
  n->info = *info;
  n->info.si_signo = sig;
  n->next = nullptr;
  Hold hold(set.lock);
  Node** at = reinterpret_cast<Node**>(&set.head);
  while (*at != nullptr) at = &(*at)->next;
  *at = n;
  set.bits.fetch_or(sig_bit(sig), std::memory_order_seq_cst);
  return 0;
}

// The lowest signal of `want`, the oldest of that number.
bool dequeue(PendingSet& set, uint64_t want, siginfo_t* out) {
  if ((set.bits.load(std::memory_order_acquire) & want) == 0) return false;
  Node* taken = nullptr;
  {
    Hold hold(set.lock);
    uint64_t have = set.bits.load(std::memory_order_relaxed) & want;
    if (have == 0) return false;
    int sig = __builtin_ctzll(have) + 1;
    bool more = false;
    for (Node** at = reinterpret_cast<Node**>(&set.head); *at != nullptr;) {
      Node* n = *at;
      if (n->info.si_signo == sig) {
        if (taken == nullptr) {
          taken = n;
          *at = n->next;
          continue;
        }
        more = true;
      }
      at = &n->next;
    }
    if (!more) set.bits.fetch_and(~sig_bit(sig), std::memory_order_relaxed);
  }
  if (taken == nullptr) return false;
  *out = taken->info;
  node_put(taken);
  return true;
}

bool accepts(const G* g, uint64_t bit) {
  GState s = g_state(g);
  if (s == GState::kDead || g->thread == nullptr || g->is_g0) return false;
  const Thread* t = thread_of(g);
  if (!t->alive.load(std::memory_order_relaxed)) return false;
  return (g->sigmask & bit) == 0 || (t->sigwait_set.load(std::memory_order_seq_cst) & bit) != 0;
}

// Main first, as the kernel does; else whoever takes it.
G* who_accepts(uint64_t bit) {
  G* first = first_thread();
  if (first != nullptr && accepts(first, bit)) return first;
  for (G* g = all_gs_first(); g != nullptr; g = g->all_next)
    if (accepts(g, bit)) return g;
  return nullptr;
}

// A default action is the whole process's and the kernel's business; whatever this M
// blocks just now is not to hold it up.
void default_action(int sig) {
  uint64_t bit = sig_bit(sig), old;
  sys_sigprocmask(SIG_UNBLOCK, &bit, &old);
  real_tgkill(sys_gettid(), sig);
  sys_sigprocmask(SIG_SETMASK, &old, nullptr);
}

// Gets a queued signal to g, in whatever state it is (signals.h).
void notify(G* g, int sig) {
  Thread* t = thread_of(g);
  bool waits_for_it = (t->sigwait_set.load(std::memory_order_seq_cst) & sig_bit(sig)) != 0;
  if ((g->sigmask & sig_bit(sig)) != 0 && !waits_for_it) return;  // its unblocking looks
  g->attention.fetch_or(kAttSignal, std::memory_order_seq_cst);
  if (park_interrupt(g)) return;
  GState s = g_state(g);
  if (s != GState::kWaiting && s != GState::kRunnable && s != GState::kDead) poke(g, sig);
}

}  // namespace

int real_tgkill(int tid, int sig) {
  return static_cast<int>(sys_call(SYS_tgkill, sys_getpid(), tid, sig));
}

bool is_poke(const siginfo_t* info) { return info->si_code == kPokeCode; }
G* poke_target(const siginfo_t* info) { return static_cast<G*>(info->si_value.sival_ptr); }

void poke(G* g, int sig) {
  M* m = g->m;
  if (m == nullptr) return;
  siginfo_t info;
  memset(&info, 0, sizeof info);
  info.si_signo = sig;
  info.si_code = kPokeCode;
  info.si_value.sival_ptr = g;
  sys_call(SYS_rt_tgsigqueueinfo, sys_getpid(), m->tid.load(std::memory_order_relaxed), sig,
           sys_arg(&info));
}

uint64_t pending_of(const G* g) {
  return thread_of(g)->pending.bits.load(std::memory_order_acquire) |
         process_pending.bits.load(std::memory_order_acquire);
}

bool pending_take(G* g, uint64_t set, siginfo_t* out) {
  InEngine in;
  return dequeue(thread_of(g)->pending, set, out) || dequeue(process_pending, set, out);
}

void pending_drop(G* g) {
  siginfo_t info;
  Thread* t = thread_of(g);
  while (t->pending.bits.load(std::memory_order_relaxed) != 0 &&
         dequeue(t->pending, ~uint64_t{0}, &info)) {
  }
}

int signal_g(G* g, int sig, const siginfo_t* info) {
  InEngine in;
  Thread* t = thread_of(g);
  bool blocked = (g->sigmask & sig_bit(sig)) != 0;
  if (!has_handler(sig) && !blocked) {
    Action a = action_of(sig);
    struct sigaction now;
    real().sigaction(sig, nullptr, &now);
    if (now.sa_handler == SIG_IGN || (sig == SIGURG && a.handler == SIG_DFL) ||
        (now.sa_handler == SIG_DFL && default_ignores(sig)))
      return 0;
    default_action(sig);
    return 0;
  }
  if (int err = enqueue(t->pending, sig, info)) return err;
  notify(g, sig);
  return 0;
}

void signal_process(int sig, const siginfo_t* info) {
  if (!has_handler(sig)) return;  // default and ignored ones are the kernel's
  G* g = who_accepts(sig_bit(sig));
  if (g == nullptr || enqueue(thread_of(g)->pending, sig, info) != 0) {
    enqueue(process_pending, sig, info);
    // It may have been unblocked between the look and the enqueue.
    if ((g = who_accepts(sig_bit(sig))) != nullptr) notify(g, sig);
    return;
  }
  notify(g, sig);
}

void signal_defer(int sig, const siginfo_t* info) {
  for (Deferred& d : deferred) {
    uint32_t free = 0;
    if (!d.word.compare_exchange_strong(free, 1, std::memory_order_acquire)) continue;
    d.info = *info;
    d.info.si_signo = sig;
    d.word.store(2, std::memory_order_release);
    n_deferred.fetch_add(1, std::memory_order_release);
    sysmon_kick();
    return;
  }
}

void host_preempt(M* m) {
  siginfo_t info;
  memset(&info, 0, sizeof info);
  info.si_signo = SIGURG;
  info.si_code = kPokeCode;  // target null: preemption
  sys_call(SYS_rt_tgsigqueueinfo, sys_getpid(), m->tid.load(std::memory_order_relaxed), SIGURG,
           sys_arg(&info));
}

void signals_route() {
  if (n_deferred.load(std::memory_order_acquire) == 0) return;
  for (Deferred& d : deferred) {
    if (d.word.load(std::memory_order_acquire) != 2) continue;
    siginfo_t info = d.info;
    d.word.store(0, std::memory_order_release);
    n_deferred.fetch_sub(1, std::memory_order_relaxed);
    signal_process(info.si_signo, &info);
  }
}

// ---------------------------------------------------------------- what sysmon keeps open

namespace {
std::atomic<bool> masks_dirty{true};
std::atomic<uint64_t> sysmon_open{0};
std::atomic<uint32_t> masks_seen{0}, masks_changed{0};
}  // namespace

void masks_note(uint64_t now_blocked, uint64_t now_open) {
  uint64_t open = sysmon_open.load(std::memory_order_acquire);
  if ((now_open & ~open) != 0) {
    masks_dirty.store(true, std::memory_order_release);
    sysmon_kick();
  }
  uint64_t closing = now_blocked & open;
  if (closing == 0) return;
  // If nobody is left who accepts one of them, it must stay pending in the kernel (signalfd,
  // sigtimedwait, default actions): sysmon has to close it before we return.
  uint64_t left = closing;
  G* first = first_thread();
  if (first != nullptr && first != t_g && accepts(first, closing & ~first->sigmask))
    left &= first->sigmask;
  for (G* g = all_gs_first(); g != nullptr && left != 0; g = g->all_next)
    if (g != t_g && accepts(g, left & ~g->sigmask)) left &= g->sigmask;
  if (left == 0) return;
  uint32_t want = masks_changed.fetch_add(1, std::memory_order_acq_rel) + 1;
  masks_dirty.store(true, std::memory_order_release);
  sysmon_kick();
  for (int i = 0; i < 200 && static_cast<int32_t>(masks_seen.load(std::memory_order_acquire) - want) < 0; i++) {
    struct timespec ts = {0, 20000};
    sys_call(SYS_nanosleep, sys_arg(&ts));
  }
}

void host_tick(uint64_t) {
  signals_route();
  if (!masks_dirty.exchange(false, std::memory_order_acq_rel)) return;
  uint32_t upto = masks_changed.load(std::memory_order_acquire);
  uint64_t open = 0;
  for (G* g = all_gs_first(); g != nullptr; g = g->all_next)
    if (g->thread != nullptr && !g->is_g0 && g_state(g) != GState::kDead &&
        thread_of(g)->alive.load(std::memory_order_relaxed))
      open |= ~g->sigmask;
  open &= kAllSignals;
  for (int sig : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS}) open &= ~sig_bit(sig);
  uint64_t mask = ~open & kAllSignals;
  sys_sigprocmask(SIG_SETMASK, &mask, nullptr);
  sysmon_open.store(open, std::memory_order_release);
  masks_seen.store(upto, std::memory_order_release);
}

void sigsend_after_fork() {
  for (Deferred& d : deferred) d.word.store(0, std::memory_order_relaxed);
  n_deferred.store(0, std::memory_order_relaxed);
  pool_lock.reset();
  process_pending.lock.reset();
  process_pending.head = nullptr;
  process_pending.bits.store(0, std::memory_order_relaxed);
  sysmon_open.store(0, std::memory_order_relaxed);
  masks_dirty.store(true, std::memory_order_relaxed);
}

}  // namespace weft

using namespace weft;

namespace {

siginfo_t info_from_self(int sig, int code) {
  siginfo_t info;
  memset(&info, 0, sizeof info);
  info.si_signo = sig;
  info.si_code = code;
  info.si_pid = sys_getpid();
  info.si_uid = static_cast<uid_t>(sys_call(SYS_getuid));
  return info;
}

int send(G* g, int sig, const siginfo_t* info) {
  Thread* t = thread_of(g);
  if (!t->alive.load(std::memory_order_acquire)) return sig < 0 || sig > 64 ? EINVAL : 0;
  if (sig < 0 || sig > 64) return EINVAL;
  if (sig == 0) return 0;
  if (g->wired && g->m != nullptr) {
    siginfo_t copy = *info;
    return static_cast<int>(-sys_call(SYS_rt_tgsigqueueinfo, sys_getpid(),
                                      g->m->tid.load(std::memory_order_relaxed), sig,
                                      sys_arg(&copy)));
  }
  return -signal_g(g, sig, info);
}

}  // namespace

// POSIX pthread_kill. To itself: the handler has run when it returns.
WEFT_EXPORT int pthread_kill(pthread_t pt, int sig) {
  G* g = g_of(pt);
  if (g == nullptr) return real().pthread_kill(pt, sig);
  if (sig == 32 || sig == 33) return EINVAL;
  siginfo_t info = info_from_self(sig, SI_TKILL);
  return send(g, sig, &info);
}

WEFT_EXPORT int pthread_sigqueue(pthread_t pt, int sig, const union sigval value) {
  G* g = g_of(pt);
  if (g == nullptr) return real().pthread_sigqueue(pt, sig, value);
  if (sig == 32 || sig == 33) return EINVAL;
  siginfo_t info = info_from_self(sig, SI_QUEUE);
  info.si_value = value;
  return send(g, sig, &info);
}

WEFT_EXPORT int raise(int sig) {
  G* g = this_g();
  if (g == nullptr) return real().raise(sig);
  if (sig == 32 || sig == 33) {
    errno = EINVAL;
    return -1;
  }
  siginfo_t info = info_from_self(sig, SI_TKILL);
  int err = send(g, sig, &info);
  if (err == 0) return 0;
  errno = err;
  return -1;
}

WEFT_EXPORT int gsignal(int sig) { return raise(sig); }

namespace weft {

long signals_tgkill(long tgid, long tid, long sig) {
  G* g = sched.booted.load(std::memory_order_relaxed) && (tgid == -1 || tgid == sys_getpid())
             ? g_of_vtid(static_cast<pid_t>(tid))
             : nullptr;
  if (g == nullptr)
    return tgid == -1 ? sys_call(SYS_tkill, tid, sig) : sys_call(SYS_tgkill, tgid, tid, sig);
  siginfo_t info = info_from_self(static_cast<int>(sig), SI_TKILL);
  return -send(g, static_cast<int>(sig), &info);
}

long signals_tgqueue(long tgid, long tid, long sig, const siginfo_t* info) {
  G* g = sched.booted.load(std::memory_order_relaxed) && tgid == sys_getpid()
             ? g_of_vtid(static_cast<pid_t>(tid))
             : nullptr;
  if (g == nullptr) return sys_call(SYS_rt_tgsigqueueinfo, tgid, tid, sig, sys_arg(info));
  return -send(g, static_cast<int>(sig), info);
}

}  // namespace weft

WEFT_EXPORT int tgkill(pid_t tgid, pid_t tid, int sig) {
  return static_cast<int>(errno_ret(signals_tgkill(tgid, tid, sig)));
}

// sigsend.cc - directed delivery: what is pending for a G, and how it gets to know.
//
// Queues: one per thread (in its Thread) and one for the process, each under its lock, taken
// in the engine only (a handler that interrupted a holder would wait for itself). Standard
// signals are kept once, real-time ones each, as the kernel does. Nodes come from a pool
// that grows by mmap and is bounded (EAGAIN). The process's queue holds SIGURG and SIGSTKFLT
// only: all others stay with the kernel until somebody takes them (sigroute.cc).
//
// PendingSet::head is the newest node of a ring; its next is the oldest.
//
// What the kernel or another process sent (si_code >= 0) cannot be sent on as it is: the
// kernel lets a thread queue such a siginfo for nobody but itself (EPERM). It travels with
// another si_code, everything else as it was, and is put right where it is looked at:
// carry, carried.
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "preload/api.h"
#include "preload/signals.h"
#include "preload/thread.h"
#include "sched/called_out.h"
#include "sched/park.h"
#include "sched/sysmon.h"

namespace weft {
namespace {

constexpr int kPokeCode = -0x77656674;  // no kernel or libc uses it as si_code
constexpr int kCarried = -0x70000000;   // and none uses kCarried - n: carried()
constexpr uint32_t kMaxNodes = 96000;   // about RLIMIT_SIGPENDING's default

struct Node {
  Node* next;
  bool process;  // sent to the process: another thread's if this one ends first
  siginfo_t info;
};

PendingSet process_pending;
std::atomic<uint64_t> signalfd_bits{0};  // in any signalfd ever made
Lock pool_lock;  // guards the two below
Node* pool;
uint32_t n_nodes;

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

Node*& last_of(PendingSet& set) { return reinterpret_cast<Node*&>(set.head); }

// `t` null: the process's. -ESRCH: the thread has ended, or takes no more of the process's.
int enqueue(PendingSet& set, const Thread* t, int sig, const siginfo_t* info, bool process) {
  Node* n = node_get();
  if (n == nullptr) return sig < SIGRTMIN && (set.bits.load() & sig_bit(sig)) != 0 ? 0 : -EAGAIN;
  n->info = *info;
  n->info.si_signo = sig;
  n->process = process;
  int err = 0;
  {
    Hold hold(set.lock);
    if (t != nullptr && (!t->alive.load(std::memory_order_acquire) ||
                         (process && t->closed.load(std::memory_order_relaxed)))) {
      err = -ESRCH;
    } else if (sig >= SIGRTMIN || (set.bits.load(std::memory_order_relaxed) & sig_bit(sig)) == 0) {
      Node*& last = last_of(set);
      n->next = last == nullptr ? n : last->next;
      if (last != nullptr) last->next = n;
      last = n;
      set.bits.fetch_or(sig_bit(sig), std::memory_order_seq_cst);
      return 0;
    }
  }
  node_put(n);
  return err;
}

// Unlinks, under the lock, the oldest that fits. Null: none.
template <class Fits>
Node* unlink_oldest(PendingSet& set, Fits fits) {
  Node*& last = last_of(set);
  if (last == nullptr) return nullptr;
  Node* before = last;
  while (!fits(before->next)) {
    before = before->next;
    if (before == last) return nullptr;
  }
  Node* taken = before->next;
  before->next = taken->next;
  if (taken == last) last = before == taken ? nullptr : before;
  int sig = taken->info.si_signo;
  bool more = false;
  if (last != nullptr && sig >= SIGRTMIN) {
    Node* n = before;
    do {
      n = n->next;
      more = n->info.si_signo == sig;
    } while (!more && n != before);
  }
  if (!more) set.bits.fetch_and(~sig_bit(sig), std::memory_order_relaxed);
  return taken;
}

// The lowest signal of `want`, the oldest of that number.
bool dequeue(PendingSet& set, uint64_t want, siginfo_t* out, bool* process = nullptr) {
  if ((set.bits.load(std::memory_order_acquire) & want) == 0) return false;
  Node* taken = nullptr;
  {
    Hold hold(set.lock);
    uint64_t have = set.bits.load(std::memory_order_relaxed) & want;
    if (have == 0) return false;
    int sig = __builtin_ctzll(have) + 1;
    taken = unlink_oldest(set, [&](const Node* n) { return n->info.si_signo == sig; });
    if (taken == nullptr) return false;
  }
  *out = taken->info;
  if (process != nullptr) *process = taken->process;
  node_put(taken);
  return true;
}

// The oldest of `want` that was sent to the process.
bool dequeue_of_process(PendingSet& set, uint64_t want, siginfo_t* out) {
  Node* taken = nullptr;
  {
    Hold hold(set.lock);
    taken = unlink_oldest(set, [&](const Node* n) { return n->process && (sig_bit(n->info.si_signo) & want) != 0; });
  }
  if (taken == nullptr) return false;
  *out = taken->info;
  node_put(taken);
  return true;
}

// A default action is the whole process's and the kernel's business; whatever this M
// blocks just now is not to hold it up.
void default_action(int sig) {
  if (is_ours(sig)) action_default(sig);
  uint64_t bit = sig_bit(sig), old;
  sys_sigprocmask(SIG_UNBLOCK, &bit, &old);
  real_tgkill(sys_gettid(), sig);
  sys_sigprocmask(SIG_SETMASK, &old, nullptr);
}

// In a fork child: nothing is pending, whatever a thread that is not here was doing to it.
void pending_reset(PendingSet& set) {
  set.lock.reset();
  set.head = nullptr;
  set.bits.store(0, std::memory_order_relaxed);
}

bool does_nothing(int sig) {
  struct sigaction now;
  real().sigaction(sig, nullptr, &now);
  void (*h)(int) = is_ours(sig) ? action_of(sig).handler : now.sa_handler;
  return h == SIG_IGN || (h == SIG_DFL && default_ignores(sig));
}

}  // namespace

// Gets a queued signal to g, in whatever state it is (signals.h).
void notify(G* g, int sig) {
  Thread* t = thread_of(g);
  uint64_t waits = t->sigwait_set.load(std::memory_order_seq_cst);
  if ((g->sigmask & sig_bit(sig) & ~waits) != 0) return;  // its unblocking looks
  g->attention.fetch_or(kAttSignal, std::memory_order_seq_cst);
  if (g == t_g || park_interrupt(g, kAttSignal) || call_out(g)) return;  // itself: on its way out of the engine
  bool hard = waits != 0 || t->mask_saved || (action_of(sig).flags & SA_RESTART) == 0;
  poke(g, hard);
}

int real_tgkill(int tid, int sig) {
  return static_cast<int>(sys_call(SYS_tgkill, sys_getpid(), tid, sig));
}

bool is_poke(const siginfo_t* info) { return info->si_code == kPokeCode; }

siginfo_t carry(const siginfo_t* info) {
  siginfo_t copy = *info;
  if (copy.si_code >= 0 || copy.si_code == SI_TKILL) copy.si_code = kCarried - copy.si_code;
  return copy;
}

void carried(siginfo_t* info) {
  if (info->si_code <= kCarried - SI_TKILL && info->si_code > kPokeCode)
    info->si_code = kCarried - info->si_code;
}

int give_to_kernel(int sig, const siginfo_t* info) {
  siginfo_t copy = carry(info);
  return static_cast<int>(sys_call(SYS_rt_sigqueueinfo, sys_getpid(), sig, sys_arg(&copy)));
}

void send_poke(M* m, int sig) {
  siginfo_t info;
  memset(&info, 0, sizeof info);
  info.si_signo = sig;
  info.si_code = kPokeCode;
  if (sys_call(SYS_rt_tgsigqueueinfo, sys_getpid(), m->tid.load(std::memory_order_relaxed), sig,
               sys_arg(&info)) < 0)
    m->sent.fetch_and(sig == kSoft ? ~kSentUrg : ~kSentPoke, std::memory_order_seq_cst);
}

void poke(G* g, bool hard) {
  GState s = g_state(g);
  M* m = g->m;
  if (m == nullptr || g->wired || s == GState::kWaiting || s == GState::kRunnable ||
      s == GState::kDead)
    return;
  if (sent_begin(m, g, hard ? kSentPoke : kSentUrg, false))
    send_poke(m, hard ? kHard : kSoft);
}

// Between the mark and the signal no handler may run: if it jumped out, the M would stay
// marked and never be sent anything again.
void poke_self(G* g) {
  uint64_t all = ~sig_bit(33), mask;
  sys_sigprocmask(SIG_SETMASK, &all, &mask);
  bool mine = sent_begin(g->m, g, kSentPoke, false);
  if (mine) send_poke(g->m, kHard);
  sys_sigprocmask(SIG_SETMASK, &mask, nullptr);  // here it lands
  if (!mine) sys_sched_yield();  // somebody else's is about to land
}

uint64_t pending_of(const G* g) {
  return thread_of(g)->pending.bits.load(std::memory_order_acquire) |
         process_pending.bits.load(std::memory_order_acquire);
}

bool pending_take(G* g, uint64_t set, siginfo_t* out) {
  Door in;
  if (!dequeue(thread_of(g)->pending, set, out) && !dequeue(process_pending, set, out)) return false;
  if (out->si_code == SI_TIMER) timer_taken(out);
  return true;
}

bool pending_add_process(int sig, const siginfo_t* info) {
  Door in;
  return enqueue(process_pending, nullptr, sig, info, true) == 0;
}

namespace {

// The private pending set of the calling kernel thread; 0 also where there is no /proc.
uint64_t private_pending() {
  char text[4096];
  long fd = sys_call(SYS_openat, AT_FDCWD, sys_arg("/proc/thread-self/status"), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return 0;
  long n = sys_call(SYS_read, fd, sys_arg(&text[0]), sizeof text - 1);
  sys_call(SYS_close, fd);
  if (n <= 0) return 0;
  text[n] = 0;
  constexpr char kName[] = "SigPnd:\t";
  const char* at = strstr(text, kName);
  return at == nullptr ? 0 : strtoull(at + sizeof kName - 1, nullptr, 16);
}

}  // namespace

// What raise() left in the kernel before there were threads is the thread's, not its M's:
// the next G there would see it pending, and take it. sigtimedwait takes private ones first;
// the set is read anew for real-time signals, which queue.
void pending_adopt(G* g1) {
  uint64_t any = 0;
  sys_call(SYS_rt_sigpending, sys_arg(&any), sizeof any);
  if (any == 0) return;
  while (uint64_t bits = private_pending() & kMaskable) {
    siginfo_t info;
    struct timespec now = {0, 0};
    long sig = sys_call(SYS_rt_sigtimedwait, sys_arg(&bits), sys_arg(&info), sys_arg(&now), sizeof bits);
    if (sig <= 0) return;
    Thread* t = thread_of(g1);
    if (enqueue(t->pending, t, static_cast<int>(sig), &info, false) != 0)
      give_to_kernel(static_cast<int>(sig), &info);
  }
}

void pending_drop(G* g) {
  siginfo_t info;
  bool process = false;
  Thread* t = thread_of(g);
  while (dequeue(t->pending, ~uint64_t{0}, &info, &process))
    if (process) signal_process(info.si_signo, &info);
}

namespace {

// Of `bits`, the process's that are queued for g and blocked by it.
uint64_t queued_blocked(const G* g, uint64_t bits) {
  const Thread* t = thread_of(g);
  std::atomic_thread_fence(std::memory_order_seq_cst);
  bits &= g->sigmask & ~t->sigwait_set.load(std::memory_order_relaxed);
  return bits & t->pending.bits.load(std::memory_order_acquire);
}

// What a handler of g blocks g takes when that returns: passed to the kernel meanwhile they would
// come back behind newer ones. One that just begins or ends looks itself at its end (masks_note).
uint64_t queued_for_others(const G* g) {
  uint64_t bits = queued_blocked(g, kMaskable), mask;
  return bits != 0 && mask_beside_handlers(g, &mask) ? bits & mask : 0;
}

}  // namespace

// Looks anew each time: g may have opened its mask, and be given them again.
void pending_pass_on(G* g) {
  if (queued_for_others(g) == 0) return;
  Door in;
  siginfo_t info;
  while (uint64_t bits = queued_for_others(g)) {
    if (!dequeue_of_process(thread_of(g)->pending, bits, &info)) return;  // its own are left
    signal_process(info.si_signo, &info);
  }
}

void pending_pass_on_handling(G* g, int sig) {
  uint64_t bits = queued_blocked(g, kMaskable & ~sig_bit(sig));
  for (uint64_t rest = bits; rest != 0; rest &= rest - 1)
    if (who_accepts(rest & -rest) == nullptr) bits &= ~(rest & -rest);
  if (bits == 0) return;
  Door in;
  siginfo_t info;
  while (dequeue_of_process(thread_of(g)->pending, bits, &info)) signal_process(info.si_signo, &info);
}

void pending_close(G* g) {
  Door in;
  Thread* t = thread_of(g);
  Hold hold(t->pending.lock);
  t->closed.store(true, std::memory_order_relaxed);
}

void pending_discard(int sig) {
  siginfo_t info;
  auto drop = [&](G* g) {
    if (g != nullptr && g->thread != nullptr && !g->is_g0)
      while (dequeue(thread_of(g)->pending, sig_bit(sig), &info)) {
      }
  };
  for (G* g = all_gs_first(); g != nullptr; g = g->all_next) drop(g);
  while (dequeue(process_pending, sig_bit(sig), &info)) {
  }
}

namespace {

bool is_wired(const G* g) { return __atomic_load_n(&g->wired, __ATOMIC_RELAXED); }

int send_to_wired(G* g, int sig, const siginfo_t* info) {
  int tid = g->m->tid.load(std::memory_order_relaxed);
  if (info->si_code == SI_TKILL) return real_tgkill(tid, sig);
  siginfo_t copy = carry(info);
  return static_cast<int>(sys_call(SYS_rt_tgsigqueueinfo, sys_getpid(), tid, sig, sys_arg(&copy)));
}

}  // namespace

// A wired thread's signals are the kernel's: it looks into no queue of ours.
//   g: 1 wired  2 fence  3 queued? to the kernel      sender: a not wired  b enqueue  c wired? as 3
// Either 3 sees b or c sees 1.
void pending_wired(G* g) {
  std::atomic_thread_fence(std::memory_order_seq_cst);
  if (thread_of(g)->pending.bits.load(std::memory_order_relaxed) == 0) return;
  Door in;
  siginfo_t info;
  bool process = false;
  while (dequeue(thread_of(g)->pending, ~uint64_t{0}, &info, &process)) {
    if (info.si_code == SI_TIMER) timer_taken(&info);
    if (process) signal_process(info.si_signo, &info);
    else if (send_to_wired(g, info.si_signo, &info) < 0) signal_defer_to(g, info.si_signo, &info);  // no room
  }
}

namespace {

int send_to(G* g, int sig, const siginfo_t* info, bool process) {
  if (is_wired(g)) return send_to_wired(g, sig, info);
  Door in;
  Thread* t = thread_of(g);
  bool blocked = (g->sigmask & sig_bit(sig)) != 0;
  if (!has_handler(sig) && !blocked) {
    if (!does_nothing(sig)) default_action(sig);
    return 0;
  }
  // A signalfd reads what the kernel has. One for a thread that blocks it is as good as one
  // for the process, if nobody else would take that.
  if (blocked && (signalfd_bits.load(std::memory_order_relaxed) & sig_bit(sig)) != 0 &&
      who_accepts(sig_bit(sig)) == nullptr)
    return give_to_kernel(sig, info);
  if (int err = enqueue(t->pending, t, sig, info, process)) return err;
  notify(g, sig);
  if (is_wired(g)) pending_wired(g);
  // g ends: 1 not alive  2 pending? passed on (pending_drop). We: a enqueue  b alive?
  // Either 2 sees a or b sees 1.
  // g blocks it: 1 its mask  2 pending? passed on (pending_pass_on). We: a enqueue  b its mask?
  if (!process) return 0;
  if (!t->alive.load(std::memory_order_seq_cst)) pending_drop(g);
  else pending_pass_on(g);
  return 0;
}

}  // namespace

int signal_g(G* g, int sig, const siginfo_t* info) {
  int err = send_to(g, sig, info, false);
  return err == -ESRCH ? 0 : err;
}

int signal_g_of_process(G* g, int sig, const siginfo_t* info) { return send_to(g, sig, info, true); }

void sigsend_after_fork() {
  pool_lock.reset();
  pending_reset(process_pending);
  for (G* g = all_gs_first(); g != nullptr; g = g->all_next)
    if (g->thread != nullptr && !g->is_g0) pending_reset(thread_of(g)->pending);
  sigroute_after_fork();
  sigtimer_after_fork();
}

}  // namespace weft

using namespace weft;

WEFT_EXPORT int signalfd(int fd, const sigset_t* set, int flags) noexcept {
  int r = real().signalfd(fd, set, flags);
  uint64_t bits;
  memcpy(&bits, set, sizeof bits);
  if (r >= 0) signalfd_bits.fetch_or(bits, std::memory_order_relaxed);
  return r;
}

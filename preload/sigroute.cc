// sigroute.cc - process signals that arrive where no handler can run, and what sysmon keeps
// open.
//
// The kernel gives a process signal to any thread that does not block it. An M that runs a G
// has that G's mask, idle Ms block all, so sysmon keeps open whatever some living G accepts:
// a signal that only a parked G accepts arrives there. It is put aside (signal_defer, in a
// signal handler: no locks) and routed to a G that accepts it. If none does any more, sysmon
// closes the signal and gives it back to the kernel, where sigpending, sigtimedwait and signalfd
// find it.
//
// What is put aside stands in a stack that any thread pushes on and one at a time, the router,
// takes whole and turns over: it is routed in the order in which it came. Nodes are claimed from
// chunks that are mapped as they are needed, by the handler if need be, and never go back.
//
// Node::state: 0 free, 1 claimed, 2 put aside, until it is queued for a G or the kernel's again.
#include <linux/membarrier.h>
#include <string.h>
#include <sys/mman.h>

#include <new>

#include "preload/api.h"
#include "preload/dump.h"
#include "preload/signals.h"
#include "preload/thread.h"
#include "sched/syscall.h"
#include "sched/sysmon.h"

namespace weft {
namespace {

constexpr uint32_t kChunkNodes = 256;
constexpr uint32_t kMaxChunks = 375;  // about RLIMIT_SIGPENDING's default, of which each was part

struct Node {
  std::atomic<uint32_t> state{0};
  Node* next = nullptr;
  G* to = nullptr;  // null: whoever accepts it
  siginfo_t info = {};
};
struct Chunk {
  std::atomic<Chunk*> next{nullptr};
  std::atomic<uint32_t> claimed{0};
  Node nodes[kChunkNodes];
};

constinit Chunk chunks{};
std::atomic<uint32_t> n_chunks{1};
std::atomic<Node*> aside{nullptr};       // the newest first
std::atomic<uint32_t> n_deferred{0};
std::atomic<bool> routing{false};

std::atomic<bool> masks_dirty{true};
std::atomic<uint64_t> sysmon_open{0};       // at least what it has open
std::atomic<bool> masks_computing{false};   // it is finding out what to open (masks_note)
std::atomic<uint32_t> masks_seen{0}, masks_changed{0};  // masks_seen: futex of masks_note
std::atomic<G*> last_acceptor{nullptr};     // where the last search for one ended

bool lives(const G* g) {
  return g->thread != nullptr && !g->is_g0 && g_state(g) != GState::kDead &&
         thread_of(g)->alive.load(std::memory_order_relaxed);
}

// A wired one's mask is open in the kernel, which gives it what is left to the process. If we did,
// it would be that thread's own, whatever becomes of it. Main has it all the same, as natively.
bool takes_from_us(const G* g) { return lives(g) && (!g->wired || g == first_thread()); }

bool accepts(const G* g, uint64_t bit) {  // several: all of them
  return takes_from_us(g) && !thread_of(g)->closed.load(std::memory_order_relaxed) &&
         ((g->sigmask & bit) == 0 ||
          (thread_of(g)->sigwait_set.load(std::memory_order_seq_cst) & bit) != 0);
}

// What sysmon may take for it: nothing, once it is on its way out; and what it is just letting
// in only after it has had a look itself.
uint64_t keeps_open(const G* g) {
  if (!lives(g)) return 0;
  const Thread* t = thread_of(g);
  uint64_t open = ~g->sigmask;  // before `opening`: set_masks
  std::atomic_signal_fence(std::memory_order_seq_cst);
  open &= ~t->opening.load(std::memory_order_acquire);
  return t->leaving.load(std::memory_order_seq_cst) ? 0 : open;
}

// Of `bits`, what only the caller accepts. One round from where the last search ended: many
// threads that end one after another find the same acceptor, or the next.
uint64_t only_mine(uint64_t bits) {
  if (G* first = first_thread(); first != nullptr && first != t_g) bits &= ~keeps_open(first);
  G* from = last_acceptor.load(std::memory_order_relaxed);
  if (from == nullptr) from = all_gs_first();
  for (G* g = from; bits != 0;) {
    if (g != t_g) bits &= ~keeps_open(g);
    if (bits == 0) last_acceptor.store(g, std::memory_order_relaxed);
    g = g->all_next != nullptr ? g->all_next : all_gs_first();
    if (g == from) break;
  }
  return bits;
}

Chunk* chunk_after(Chunk* c) {
  Chunk* next = c->next.load(std::memory_order_acquire);
  if (next != nullptr) return next;
  if (n_chunks.fetch_add(1, std::memory_order_relaxed) < kMaxChunks) {
    void* p = sys_mmap(nullptr, sizeof(Chunk), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
    if (!sys_failed(p)) {
      auto* made = new (p) Chunk;
      if (c->next.compare_exchange_strong(next, made, std::memory_order_acq_rel)) return made;
      sys_munmap(p, sizeof(Chunk));  // another's stands
    }
  }
  n_chunks.fetch_sub(1, std::memory_order_relaxed);
  return next;
}

// `claimed` first: a fork child looks at it to see where there are nodes to free.
Node* claim() {
  for (Chunk* c = &chunks; c != nullptr; c = chunk_after(c)) {
    if (c->claimed.fetch_add(1, std::memory_order_relaxed) >= kChunkNodes) {
      c->claimed.fetch_sub(1, std::memory_order_relaxed);
      continue;
    }
    for (;;)  // one of them is free for us
      for (Node& d : c->nodes) {
        uint32_t free = 0;
        if (d.state.load(std::memory_order_relaxed) == 0 &&
            d.state.compare_exchange_strong(free, 1, std::memory_order_acquire))
          return &d;
      }
  }
  return nullptr;
}

void unclaim(Node* d) {
  d->state.store(0, std::memory_order_release);
  Chunk* c = &chunks;
  while (d < c->nodes || d >= c->nodes + kChunkNodes) c = c->next.load(std::memory_order_relaxed);
  c->claimed.fetch_sub(1, std::memory_order_release);
}

bool put_aside(G* to, int sig, const siginfo_t* info) {
  Node* d = claim();
  if (d == nullptr) return false;
  d->info = *info;
  d->info.si_signo = sig;
  d->to = to;
  n_deferred.fetch_add(1, std::memory_order_relaxed);
  d->state.store(2, std::memory_order_release);
  d->next = aside.load(std::memory_order_relaxed);
  while (!aside.compare_exchange_weak(d->next, d, std::memory_order_acq_rel)) {
  }
  sysmon_kick();
  return true;
}

// The kernel refuses where RLIMIT_SIGPENDING is used up by now: a sender has been told that this
// one is sent, so it is tried again.
void give_back(int sig, const siginfo_t* info) {
  if (give_to_kernel(sig, info) < 0) put_aside(nullptr, sig, info);
}

// Takes all that is put aside, the oldest first.
Node* take_aside() {
  Node* oldest = nullptr;
  for (Node* d = aside.exchange(nullptr, std::memory_order_acq_rel); d != nullptr;) {
    Node* next = d->next;
    d->next = oldest;
    oldest = d;
    d = next;
  }
  return oldest;
}

}  // namespace

// Main first, as the kernel does; else whoever takes it.
G* who_accepts(uint64_t bit) {
  G* first = first_thread();
  if (first != nullptr && accepts(first, bit)) return first;
  for (G* g = all_gs_first(); g != nullptr; g = g->all_next)
    if (accepts(g, bit)) return g;
  return nullptr;
}

// One that begins or ends a handler just now passes on what it blocks when that has ended.
G* who_handles(uint64_t bit) {
  for (G* g = all_gs_first(); g != nullptr; g = g->all_next) {
    uint64_t mask;
    if (lives(g) && !g->wired && !thread_of(g)->closed.load(std::memory_order_relaxed) &&
        (!mask_beside_handlers(g, &mask) || (mask & bit) == 0))
      return g;
  }
  return nullptr;
}

void signal_defer(int sig, const siginfo_t* info, ucontext_t* uc) {
  if (put_aside(nullptr, sig, info)) return;
  // No room: back to the kernel, and closed here until this context's own mask comes again.
  uint64_t mask;
  memcpy(&mask, &uc->uc_sigmask, sizeof mask);
  mask |= sig_bit(sig);
  if (sysmon_thread()) memcpy(&uc->uc_sigmask, &mask, sizeof mask);
  masks_dirty.store(true, std::memory_order_release);
  give_back(sig, info);
}

void signal_defer_to(G* g, int sig, const siginfo_t* info) { put_aside(g, sig, info); }

void signal_process(int sig, const siginfo_t* info) {
  if (!has_handler(sig)) return;  // default and ignored ones are the kernel's
  for (int tries = 0; tries < 8; tries++) {
    G* g = who_accepts(sig_bit(sig));
    if (g == nullptr) g = who_handles(sig_bit(sig));
    if (g == nullptr) break;
    if (signal_g_of_process(g, sig, info) == 0) return;
  }
  if (is_ours(sig)) {  // open in every M: it cannot wait in the kernel
    pending_add_process(sig, info);
    if (G* g = who_accepts(sig_bit(sig))) notify(g, sig);
    return;
  }
  if (!sysmon_thread() && put_aside(nullptr, sig, info)) return;
  masks_dirty.store(true, std::memory_order_release);
  uint64_t bit = sig_bit(sig);
  if (sysmon_thread()) sys_sigprocmask(SIG_BLOCK, &bit, nullptr);
  give_back(sig, info);
}

void signals_route() {
  if (n_deferred.load(std::memory_order_acquire) == 0) return;
  // In the engine: a handler, or another G, that ran here while we have one in hand would keep
  // it from everybody.
  G* self = this_g();
  if (self != nullptr) engine_enter(self);
  // One round: what comes meanwhile has its own kick. Where another routes, so has what it leaves.
  if (!routing.exchange(true, std::memory_order_acquire)) {
    for (Node* d = take_aside(); d != nullptr;) {
      Node* next = d->next;
      siginfo_t info = d->info;
      G* to = d->to;
      if (to == nullptr) signal_process(info.si_signo, &info);
      else if (lives(to)) signal_g(to, info.si_signo, &info);
      // Only now: until it is queued, sigpending finds it here.
      n_deferred.fetch_sub(1, std::memory_order_relaxed);
      unclaim(d);
      d = next;
    }
    routing.store(false, std::memory_order_release);
  }
  if (self != nullptr) engine_exit(self);
}

// ---------------------------------------------------------------- what sysmon keeps open

void masks_note(uint64_t now_blocked, uint64_t now_open) {
  // The caller has stored its mask. If sysmon is reading masks meanwhile, it may have read the
  // old one:
  //   1 g->sigmask                    a  masks_computing
  //   2 fence                         b  fence
  //   3 masks_computing?              c  every g->sigmask
  // Either 3 sees a, and sysmon is told to begin anew, or c sees 1.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  uint64_t open = masks_computing.load(std::memory_order_acquire)
                      ? 0
                      : sysmon_open.load(std::memory_order_acquire);
  if ((now_open & kMaskable & ~open) != 0) {
    masks_dirty.store(true, std::memory_order_release);
    sysmon_kick();
  }
  if (masks_computing.load(std::memory_order_acquire)) open = kMaskable;
  else open = sysmon_open.load(std::memory_order_acquire);
  // One with a handler that arrives too late is given back; a default action cannot be.
  uint64_t left = now_blocked & open;
  for (uint64_t rest = left; rest != 0; rest &= rest - 1)
    if (has_handler(__builtin_ctzll(rest) + 1)) left &= ~(rest & -rest);
  if ((now_blocked & open) != 0) masks_dirty.store(true, std::memory_order_release);
  if (left != 0 && (left = only_mine(left)) != 0) masks_close(left);  // nobody is left
  pending_pass_on(t_g);
}

uint64_t deferred_pending() {
  uint64_t bits = 0;
  if (n_deferred.load(std::memory_order_acquire) == 0) return 0;
  for (Chunk* c = &chunks; c != nullptr; c = c->next.load(std::memory_order_acquire)) {
    if (c->claimed.load(std::memory_order_relaxed) == 0) continue;
    for (Node& d : c->nodes)
      if (d.state.load(std::memory_order_acquire) == 2 && d.to == nullptr) bits |= sig_bit(d.info.si_signo);
  }
  return bits;
}

namespace {

// m lets in one of `bits` that no G on it accepts: an M that looks for work has the mask of the G it
// ran, and closes it before it sleeps (block_signals, which notes kmask after the kernel's).
bool open_for_nobody(const M* m, uint64_t bits) {
  uint64_t mask = __atomic_load_n(&m->kmask, __ATOMIC_ACQUIRE);
  if ((~mask & bits) == 0 || mask == kMaskUnknown) return false;
  G* g = m->curg.load(std::memory_order_acquire);
  return g == nullptr || !(runs_on(g, m) && (g->wired || accepts(g, ~mask & bits)));
}

void close_in_ms(uint64_t bits, uint64_t give_up) {
  const M* own = this_g() == nullptr ? nullptr : this_g()->m;
  std::atomic<uint32_t> never{0};
  for (M* m = sched.all_m.load(std::memory_order_acquire); m != nullptr; m = m->all_next)
    while (m != own && open_for_nobody(m, bits) && host_now_ns() < give_up)
      sys_futex_wait(&never, 0, host_now_ns() + 20'000);
}

void close_in_sysmon(uint64_t bits, uint64_t give_up) {
  if (!masks_computing.load(std::memory_order_seq_cst) &&
      (sysmon_open.load(std::memory_order_acquire) & bits) == 0)
    return;
  uint32_t want = masks_changed.fetch_add(1, std::memory_order_acq_rel) + 1;
  masks_dirty.store(true, std::memory_order_release);
  sysmon_kick();
  for (;;) {
    uint32_t seen = masks_seen.load(std::memory_order_acquire);
    if (static_cast<int32_t>(seen - want) >= 0 || host_now_ns() > give_up) return;
    sys_futex_wait(&masks_seen, seen, host_now_ns() + 2'000'000);
  }
}

}  // namespace

void masks_close(uint64_t bits) {
  if (sysmon_thread()) return;
  uint64_t give_up = host_now_ns() + 1'000'000'000;  // sysmon may be stopped in a fork
  close_in_sysmon(bits, give_up);
  close_in_ms(bits, give_up);
}

namespace {

// Those who ended beside main's end without a mark, since it would take everything: until they
// are gone sysmon keeps open what they accept.
void wait_for_enders(G* self) {
  sys_call(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0);
  for (G* g = all_gs_first(); g != nullptr; g = g->all_next) {
    if (g == self || g->thread == nullptr || g->is_g0) continue;
    const Thread* t = thread_of(g);
    while (t->ending.load(std::memory_order_acquire) && !t->leaving.load(std::memory_order_acquire)) {
      engine_enter(self);
      yield(false);  // it may wait for our P
      engine_exit(self);
      sys_sched_yield();
    }
  }
}

uint64_t due(const G* g) {  // deferred first: on its way a signal is seen as both
  uint64_t bits = deferred_pending();
  std::atomic_signal_fence(std::memory_order_seq_cst);
  return (bits | pending_of(g)) & ~g->sigmask;
}

}  // namespace

// A signal that the kernel gave to sysmon while only g accepts it may not even be put aside
// yet; if g ended now, nobody would have it. Two that rely on each other:
//   g: 1 leaving  2 fence  3 others leaving?      h: the same
// One of them sees the other's mark; sysmon then closes what is left, and what it had in hand
// has been put aside. Whoever has it in hand may have chosen g before the last look at what is
// put aside, so g shuts its queue (closed) before it looks there for the last time.
// Main is asked first, without a mark; when it leaves, everything is closed:
//   g: 1 ending  2 main leaving?                  main: a leaving  b membarrier  c g ending?
// Either 2 sees a, and g marks itself, or main waits for its end.
void signals_leave(G* g) {
  Thread* t = thread_of(g);
  G* first = first_thread();
  uint64_t mine;
  for (;;) {
    t->ending.store(true, std::memory_order_relaxed);
    compiler_barrier();
    mine = ~g->sigmask & kMaskable;
    if (first != nullptr && first != g) mine &= ~keeps_open(first);
    if (mine != 0) break;
    // Whoever sent it saw this thread accept it: natively it would have been handled at once.
    if ((pending_of(g) & ~g->sigmask) == 0) return;
    t->ending.store(false, std::memory_order_relaxed);
    signals_attention(g);
  }
  t->leaving.store(true, std::memory_order_seq_cst);
  std::atomic_thread_fence(std::memory_order_seq_cst);
  if (g == first) wait_for_enders(g);
  uint64_t left = g == first ? mine : only_mine(mine);
  if (left != 0) masks_close(left);
  // Another thread may be about to hand one over.
  while (due(g) != 0) {
    signals_attention(g);
    if ((deferred_pending() & ~g->sigmask) != 0) sys_sched_yield();
  }
  pending_close(g);
  while ((pending_of(g) & ~g->sigmask) != 0) signals_attention(g);
  mask_swap(g, kMaskable);
}

void host_tick(uint64_t) {
  signals_route();
  if (!masks_dirty.exchange(false, std::memory_order_acq_rel)) return;
  uint32_t upto = masks_changed.load(std::memory_order_acquire);
  masks_computing.store(true, std::memory_order_seq_cst);  // masks_note, a
  std::atomic_thread_fence(std::memory_order_seq_cst);
  uint64_t open = 0;
  for (G* g = all_gs_first(); g != nullptr; g = g->all_next)
    if (!g->wired) open |= keeps_open(g);  // a wired one's own thread is open
  open &= kMaskable;
  for (int sig : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS}) open &= ~sig_bit(sig);
  // Timers aim at us with kHard; a dump is to come out when all block its signal.
  uint64_t mask = ~(open | sig_bit(kHard) | dump_signal_bit()) & kAllSignals;
  sysmon_open.fetch_or(open, std::memory_order_acq_rel);
  sys_sigprocmask(SIG_SETMASK, &mask, nullptr);
  sysmon_open.store(open, std::memory_order_release);
  masks_computing.store(false, std::memory_order_seq_cst);
  if (masks_seen.exchange(upto, std::memory_order_acq_rel) != upto)
    sys_futex_wake(&masks_seen, 1 << 30);
}

void sigroute_after_fork() {
  for (Chunk* c = &chunks; c != nullptr; c = c->next.load(std::memory_order_relaxed)) {
    if (c->claimed.exchange(0, std::memory_order_relaxed) == 0) continue;
    for (Node& d : c->nodes) d.state.store(0, std::memory_order_relaxed);
  }
  aside.store(nullptr, std::memory_order_relaxed);
  routing.store(false, std::memory_order_relaxed);
  n_deferred.store(0, std::memory_order_relaxed);
  last_acceptor.store(nullptr, std::memory_order_relaxed);  // in no list of ours any more
  sysmon_open.store(0, std::memory_order_relaxed);
  masks_computing.store(false, std::memory_order_relaxed);
  masks_dirty.store(true, std::memory_order_relaxed);
}

}  // namespace weft

// netsettle.cc - waits begun without a try, looked at later, many at once.
//
// A thread that serves a connection reads, answers and reads again; that last read finds
// nothing and costs a system call. Where it always went so (the I/O layer learns it per
// descriptor) the G parks untried. If the guess was wrong, data are there whose edge was
// used up by the read before, and no new edge comes. So each untried wait is noted with its
// P, and settled by one poll() over all of them:
//   - when the P has nothing else to run, before it spins or sleeps (find_runnable);
//   - every 64 switches;
//   - by sysmon where it looks at the netpoller itself, as no P does;
//   - by sysmon where its P has not switched for 10 ms (it computes, or lost its M).
// Most were answered by their edge before that and cost nothing. 30 ns a descriptor
// instead of 200 for a try.
//
// Who has an event coming is to be served in its turn. A descriptor whose bytes came within those
// 64 switches would be found ready here and go on at once, past all whose events wait in the
// kernel (5000 connections on one P: half of all answers within 3 ms, one in a hundred after
// 160). So a P settles only when it has just left no event in the kernel; and one found ready then
// may still have got its bytes since, so it is in doubt until the next such look: what that
// does not wake had them from the start. What has waited for 90 ms sysmon settles all the same.
//
// Lock: one per list, around its arrays only; taken before any PollDesc's.
#include <poll.h>
#include <sys/mman.h>

#include "sched/netpoll.h"
#include "sched/polldesc.h"

namespace weft {
namespace {

constexpr uint32_t kMost = 4096;          // as many as one P's share of a crowd
constexpr uint32_t kAtOnce = 64;
constexpr uint64_t kStillNs = 10'000'000;
constexpr uint64_t kOverdueNs = 90'000'000;

struct Untried {
  PollDesc* pd;
  uint32_t wait_no;
  uint32_t tag;
  uint64_t since_ns;                      // sysmon's tick before it
};

struct alignas(kCacheLine) SettleList {
  Lock lock;
  std::atomic<uint32_t> n{0};             // at[first] to at[n - 1], the oldest first
  uint32_t first = 0;
  std::atomic<uint32_t> rounds{0};        // times it was emptied
  std::atomic<uint32_t> n_doubtful{0};    // written under lock
  Untried doubtful[kAtOnce];
  // --- sysmon only
  uint32_t seen_rounds = 0;
  uint32_t seen_switches = 0;
  uint64_t seen_ns = 0;                   // since when neither has changed
  Untried at[kMost];
};
std::atomic<SettleList*> lists[kMaxProcs];  // made at the P's first such wait

SettleList* list_of(const P* p) { return lists[p->id].load(std::memory_order_acquire); }

SettleList* make_list(const P* p) {  // by the M that holds p
  void* mem = sys_mmap(nullptr, sizeof(SettleList), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
  if (sys_failed(mem)) return nullptr;
  auto* l = static_cast<SettleList*>(mem);  // zeros are an empty one
  lists[p->id].store(l, std::memory_order_release);
  return l;
}

void emptied(SettleList& l) {
  l.n.store(0, std::memory_order_relaxed);
  l.first = 0;
  l.rounds.fetch_add(1, std::memory_order_relaxed);
}

bool still_waits(const Untried& u) {
  return u.pd->wait_no[kPollIn].load(std::memory_order_relaxed) == u.wait_no &&
         u.pd->tag.load(std::memory_order_relaxed) == u.tag && u.pd->head[kPollIn] != nullptr;
}

// The oldest of the list, at most kAtOnce of them, begun before `before_ns`.
uint32_t take_some(SettleList& l, uint64_t before_ns, Untried* out) {
  uint32_t n = 0;
  Hold hold(l.lock);
  uint32_t end = l.n.load(std::memory_order_relaxed);
  for (; l.first < end && n < kAtOnce && l.at[l.first].since_ns < before_ns; l.first++)
    if (still_waits(l.at[l.first])) out[n++] = l.at[l.first];
  if (l.first == end) emptied(l);
  return n;
}

// Its bytes were there when it began to wait.
void fire(const Untried& u, GList& out) {
  PollDesc* pd = u.pd;
  Hold hold(pd->lock);
  if (!still_waits(u)) return;
  polldesc_fire(pd, 1u << kPollIn, false, out);
  // The next read tries, and unlearns if it finds something.
  if (pd->guess.load(std::memory_order_relaxed) > 1) pd->guess.store(2, std::memory_order_relaxed);
}

bool put_in_doubt(SettleList& l, const Untried& u) {
  Hold hold(l.lock);
  if (l.n_doubtful == kAtOnce) return false;
  l.doubtful[l.n_doubtful++] = u;
  return true;
}

// What a look since has not woken.
void fire_doubtful(SettleList& l, GList& out) {
  if (l.n_doubtful == 0) return;
  Hold hold(l.lock);
  for (uint32_t i = 0; i < l.n_doubtful; i++) fire(l.doubtful[i], out);
  l.n_doubtful = 0;
}

// Those that are ready: into `doubtful` while there is room, if given; else they are fired.
void settle(SettleList& l, uint64_t before_ns, bool doubt, GList& out) {
  Untried mine[kAtOnce];
  struct pollfd fds[kAtOnce];
  while (uint32_t n = take_some(l, before_ns, mine)) {
    for (uint32_t i = 0; i < n; i++) fds[i] = {mine[i].pd->fd, POLLIN | POLLRDHUP, 0};
    long ready = sys_call(SYS_poll, sys_arg(&fds[0]), n, 0);
    if (ready == 0) continue;
    for (uint32_t i = 0; i < n; i++) {
      if (ready > 0 && fds[i].revents == 0) continue;  // < 0 (RLIMIT_NOFILE below n): let them try
      if (!doubt || !put_in_doubt(l, mine[i])) fire(mine[i], out);
    }
  }
}

}  // namespace

bool netpoll_may_leave_untried(const P* p) {
  SettleList* l = list_of(p);
  if (l == nullptr && (l = make_list(p)) == nullptr) return false;
  if (l->n.load(std::memory_order_relaxed) < kMost) return true;
  Hold hold(l->lock);
  uint32_t end = l->n.load(std::memory_order_relaxed), kept = 0;
  for (uint32_t i = l->first; i < end; i++)
    if (still_waits(l->at[i])) l->at[kept++] = l->at[i];
  l->first = 0;
  l->n.store(kept, std::memory_order_relaxed);
  return kept < kMost;
}

void netpoll_note_untried(P* p, PollDesc* pd, uint32_t tag, uint32_t no) {
  SettleList* l = list_of(p);
  Hold hold(l->lock);
  uint32_t n = l->n.load(std::memory_order_relaxed);
  l->at[n] = {pd, no, tag, sched.coarse_ns.load(std::memory_order_relaxed)};
  l->n.store(n + 1, std::memory_order_relaxed);
}

bool netpoll_settle(P* p, GList& out) {
  SettleList* l = list_of(p);
  if (l == nullptr) return false;
  fire_doubtful(*l, out);
  if (l->n.load(std::memory_order_relaxed) != 0) settle(*l, kNever, true, out);
  return l->n_doubtful != 0;
}

void netpoll_settle_all(uint64_t now_ns) {
  bool doubt = false, more = false;
  GList out;
  for (uint32_t i = 0; i < sched.procs; i++) {
    SettleList* l = list_of(&sched.p[i]);
    if (l == nullptr) continue;
    fire_doubtful(*l, out);
    if (l->n.load(std::memory_order_relaxed) != 0) settle(*l, now_ns, true, out);
    doubt |= l->n_doubtful != 0;
  }
  if (doubt) {
    GList gs = netpoll(0, &more);
    out.append(gs);
  }
  for (uint32_t i = 0; doubt && !more && i < sched.procs; i++)
    if (SettleList* l = list_of(&sched.p[i])) fire_doubtful(*l, out);
  ready_list(out);
}

void netpoll_settle_old(uint64_t now_ns) {
  for (uint32_t i = 0; i < sched.procs; i++) {
    SettleList* l = list_of(&sched.p[i]);
    if (l == nullptr || (l->n.load(std::memory_order_relaxed) == 0 && l->n_doubtful == 0)) continue;
    uint32_t rounds = l->rounds.load(std::memory_order_relaxed);
    uint32_t switches = sched.p[i].switches.load(std::memory_order_relaxed);
    if (l->seen_rounds != rounds || l->seen_switches != switches) {
      l->seen_rounds = rounds;
      l->seen_switches = switches;
      l->seen_ns = now_ns;
    }
    bool still = now_ns - l->seen_ns > kStillNs;
    GList out;
    if (still) fire_doubtful(*l, out);
    settle(*l, still ? kNever : now_ns - kOverdueNs, false, out);
    ready_list(out);
  }
}

void netpoll_settle_after_fork() {
  for (uint32_t i = 0; i < sched.procs; i++) {
    SettleList* l = list_of(&sched.p[i]);
    if (l == nullptr) continue;
    l->lock.reset();
    emptied(*l);
    l->n_doubtful = 0;
  }
}

}  // namespace weft

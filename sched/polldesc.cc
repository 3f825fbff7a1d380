// polldesc.cc - see polldesc.h.
#include "sched/polldesc.h"

#include <errno.h>
#include <poll.h>
#include <sys/mman.h>

#include <new>

#include "sched/netpoll.h"

namespace weft {
namespace {

// A PollDesc is 192 bytes; a chunk of 4096 is cut when the first of its numbers is used.
constexpr int kChunkShift = 12;
constexpr int kChunkFds = 1 << kChunkShift;
constexpr int kChunks = 512;  // 2M descriptors: twice the usual fs.nr_open
constexpr size_t kChunkBytes = sizeof(PollDesc) * kChunkFds;

std::atomic<PollDesc*> chunks[kChunks];
std::atomic<int> max_fd{-1};

// Linked waiters of all PollDescs. Relaxed: an M that misses one just being linked is not
// the one that G runs on; that one looks again before it goes idle.
std::atomic<uint32_t> n_linked{0};

Lock orphan_lock;
PollDesc* orphan_list;                    // guarded by orphan_lock
std::atomic<uint32_t> n_orphans{0};       // its length, for those who only ask
uint32_t forks = 0;                       // above this process; changes in a child's one thread only

PollDesc* make_chunk(int i) {
  void* mem = sys_mmap(nullptr, kChunkBytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE);
  if (sys_failed(mem)) return nullptr;
  // A zero page is a valid PollDesc but for the three numbers below; fd is set when asked for.
  auto* c = static_cast<PollDesc*>(mem);
  PollDesc* none = nullptr;
  if (chunks[i].compare_exchange_strong(none, c, std::memory_order_acq_rel)) return c;
  sys_munmap(mem, kChunkBytes);
  return none;
}

void note_max(int fd) {
  int seen = max_fd.load(std::memory_order_relaxed);
  while (fd > seen &&
         !max_fd.compare_exchange_weak(seen, fd, std::memory_order_relaxed)) {
  }
}

void link_tail(PollDesc* pd, PollWaiter* w) {
  PollWaiter*& head = pd->head[w->dir];
  w->next = nullptr;
  if (head == nullptr) {
    w->prev = w;
    head = w;
  } else {
    w->prev = head->prev;
    head->prev->next = w;
    head->prev = w;
  }
  w->linked = true;
  n_linked.fetch_add(1, std::memory_order_relaxed);
}

void unlink(PollDesc* pd, PollWaiter* w) {
  PollWaiter*& head = pd->head[w->dir];
  if (w == head) {
    head = w->next;
    if (head != nullptr) head->prev = w->prev;
  } else {
    w->prev->next = w->next;
    if (w->next != nullptr) w->next->prev = w->prev;
    else head->prev = w->prev;
  }
  w->linked = false;
  n_linked.fetch_sub(1, std::memory_order_relaxed);
}

// close() may move a waiter to another PollDesc while we look for its lock.
PollDesc* lock_desc_of(PollWaiter* w) {
  auto* at = reinterpret_cast<std::atomic<PollDesc*>*>(&w->pd);
  for (;;) {
    PollDesc* pd = at->load(std::memory_order_acquire);
    pd->lock.lock();
    if (at->load(std::memory_order_relaxed) == pd) return pd;
    pd->lock.unlock();
  }
}

void fire_dir(PollDesc* pd, uint32_t dir, bool all, GList& out) {
  pd->seq[dir].store(pd->seq[dir].load(std::memory_order_relaxed) + 1,
                     std::memory_order_release);
  bool taker_woken = false;
  for (PollWaiter* w = pd->head[dir]; w != nullptr;) {
    PollWaiter* next = w->next;
    if (w->observer || all || !taker_woken) {
      bool taker = !w->observer;
      G* g = w->g;
      uint64_t token = w->token;
      unlink(pd, w);
      if (park_claim(g, token, Reason::kWoken)) {  // from here on w may be gone
        if (taker) {
          taker_woken = true;
          pd->in_flight[dir].store(pd->in_flight[dir].load(std::memory_order_relaxed) + 1,
                                   std::memory_order_relaxed);
        }
        g->ahead = pd->ahead.load(std::memory_order_relaxed);
        if (g->ahead) out.push_front(g);
        else out.push(g);
      }
    }
    w = next;
  }
}

bool ready_now(int fd, uint32_t dir) {
  struct pollfd p = {fd, static_cast<short>(dir == kPollIn ? POLLIN | POLLPRI : POLLOUT), 0};
  return sys_call(SYS_poll, sys_arg(&p), 1, 0) > 0;
}

}  // namespace

// ---------------------------------------------------------------- the table

PollDesc* polldesc_peek(int fd) {
  if (WEFT_UNLIKELY(static_cast<unsigned>(fd) >= unsigned{kChunks} << kChunkShift)) return nullptr;
  PollDesc* c = chunks[fd >> kChunkShift].load(std::memory_order_acquire);
  return c == nullptr ? nullptr : &c[fd & (kChunkFds - 1)];
}

PollDesc* polldesc_get(int fd) {
  PollDesc* pd = polldesc_peek(fd);
  if (WEFT_LIKELY(pd != nullptr && pd->fd == fd && fd != 0)) return pd;
  if (static_cast<unsigned>(fd) >= unsigned{kChunks} << kChunkShift) return nullptr;
  if (pd == nullptr) {
    PollDesc* c = make_chunk(fd >> kChunkShift);
    if (c == nullptr) return nullptr;
    pd = &c[fd & (kChunkFds - 1)];
  }
  pd->fd = fd;  // racers store the same value
  note_max(fd);
  return pd;
}

bool polldesc_any_waits() { return n_linked.load(std::memory_order_relaxed) != 0; }

int polldesc_max_fd() { return max_fd.load(std::memory_order_relaxed); }

// ---------------------------------------------------------------- takers

namespace {

// A taker whose number was closed while it was on its way back from a wait: its file lives
// on in a duplicate. True: t continues there.
bool follow_orphan(PollTurn& t) {
  Hold hold(orphan_lock);
  for (PollDesc* o = orphan_list; o != nullptr; o = o->orphan_next)
    if (o->was_fd == t.pd->fd && o->was_tag == t.tag) {
      t.pd = o;
      t.tag = o->tag.load(std::memory_order_relaxed);
      t.orphan = true;
      return true;
    }
  return false;
}

void orphan_put(PollDesc* pd) {
  {
    Hold hold(orphan_lock);
    if (--pd->orphans != 0) return;
    for (PollDesc** l = &orphan_list; *l != nullptr; l = &(*l)->orphan_next)
      if (*l == pd) {
        *l = pd->orphan_next;
        break;
      }
    n_orphans.fetch_sub(1, std::memory_order_relaxed);
  }
  {
    Hold hold(pd->lock);
    netpoll_disarm(pd);
    pd->tag.fetch_add(1, std::memory_order_release);
  }
  sys_call(SYS_close, pd->fd);
}

// Back from a wait: t.pd may have been exchanged for a duplicate (w.pd).
int finish_wait(PollTurn& t, PollWaiter& w, Reason r) {
  if (r != Reason::kWoken) {
    PollDesc* pd = lock_desc_of(&w);
    if (w.linked) unlink(pd, &w);
    pd->lock.unlock();
  }
  if (w.pd != t.pd) {  // moved by close while it was linked: it is counted in orphans
    t.pd = w.pd;
    t.tag = w.pd->tag.load(std::memory_order_relaxed);
    t.orphan = true;
  }
  if (r == Reason::kTimeout) return -ETIMEDOUT;
  if (r == Reason::kInterrupted) return -EINTR;
  t.woken = true;
  if (!t.orphan && t.pd->tag.load(std::memory_order_acquire) != t.tag && !follow_orphan(t)) {
    t.woken = false;  // closed, and no duplicate could be had
    return -EBADF;
  }
  return 0;
}

void add1(std::atomic<uint32_t>& n, uint32_t by) {  // under the lock; read without it
  n.store(n.load(std::memory_order_relaxed) + by, std::memory_order_relaxed);
}

// Locks the PollDesc that t's file has now: its own, or the duplicate it moved to. Null,
// nothing locked: the number was closed and no duplicate could be had.
PollDesc* lock_turn(PollTurn& t) {
  for (;;) {
    PollDesc* pd = t.pd;
    pd->lock.lock();
    if (pd->tag.load(std::memory_order_relaxed) == t.tag) return pd;
    pd->lock.unlock();
    if (t.orphan || !t.woken || !follow_orphan(t)) return nullptr;
  }
}

// In a fork child the records are empty, and a duplicate is closed: fd's new record stands for both.
void begin_again(PollTurn& t, int fd) {
  t.woken = t.orphan = false;
  t.forked = true;
  if (PollDesc* pd = polldesc_get(fd)) poll_turn_begin(t, pd, static_cast<PollDir>(t.dir));
}

}  // namespace

int poll_turn_wait(PollTurn& t, uint64_t deadline_ns, Wait why, bool untried) {
  G* g = t_g;
  engine_enter(g);
  PollWaiter w;
  w.g = g;
  w.dir = t.dir;
  // A G that was wired since its call began has no P to note it with.
  if (untried && (g->m->p == nullptr || !netpoll_may_leave_untried(g->m->p))) {  // then this is the try
    untried = false;
    if (ready_now(t.pd->fd, t.dir)) {
      engine_exit(g);
      return 0;
    }
  }
  int err = 0;
  bool again = false;
  uint32_t no = 0;
  PollDesc* pd = lock_turn(t);
  if (pd == nullptr) {
    t.woken = false;
    engine_exit(g);
    return -EBADF;
  }
  if (t.woken) add1(pd->in_flight[t.dir], ~0u);  // woken before, and found nothing
  t.woken = false;
  if (WEFT_UNLIKELY(g->wired)) err = -EPERM;  // since its call began: the kernel is to do it
  else if ((pd->armed & 1u << t.dir) == 0) err = netpoll_arm(pd, 1u << t.dir);
  if (err == 0) {
    again = pd->seq[t.dir].load(std::memory_order_relaxed) != t.seq;
    if (!again) {
      w.pd = pd;
      w.token = park_begin(g, why, pd, true);
      add1(pd->wait_no[t.dir], 1);
      link_tail(pd, &w);
      no = pd->wait_no[t.dir].load(std::memory_order_relaxed);
      if (untried) pd->untried_no = no;
    }
  }
  pd->lock.unlock();
  if (untried && err == 0 && !again) netpoll_note_untried(g->m->p, pd, t.tag, no);
  if (err == 0 && !again) err = finish_wait(t, w, park_until(g, w.token, deadline_ns));
  int fd = t.pd->fd;
  uint32_t forks_before = forks;
  engine_exit(g);  // here handlers run
  if (WEFT_UNLIKELY(forks != forks_before)) begin_again(t, fd);
  return err;
}

void poll_turn_finish(PollTurn& t) {
  G* g = t_g;
  engine_enter(g);
  if (t.woken) {
    bool more = false;
    PollDesc* pd = lock_turn(t);
    if (pd != nullptr) {
      add1(pd->in_flight[t.dir], ~0u);
      more = pd->head[t.dir] != nullptr;
      pd->lock.unlock();
    }
    if (more && ready_now(pd->fd, t.dir)) {
      GList out;
      pd->lock.lock();
      fire_dir(pd, t.dir, false, out);
      pd->lock.unlock();
      ready_list(out);
    }
    t.woken = false;
  }
  if (t.orphan) orphan_put(t.pd);
  t.orphan = false;
  engine_exit(g);
}

// ---------------------------------------------------------------- observers

namespace {

// Takes back w[0..n). After it no event touches them.
void unwatch(PollWatch* w, uint32_t n) {
  for (uint32_t i = 0; i < n; i++) {
    if (w[i].pd == nullptr) continue;
    w[i].pd->lock.lock();  // observers are never moved
    if (w[i].linked) unlink(w[i].pd, &w[i]);
    w[i].pd->lock.unlock();
  }
}

}  // namespace

int poll_watch_wait(PollWatch* w, uint32_t n, uint64_t deadline_ns, Wait why) {
  G* g = t_g;
  if (WEFT_UNLIKELY(g->wired)) return -EPERM;
  engine_enter(g);
  uint64_t token = park_begin(g, why, n == 1 ? w[0].pd : nullptr, true);
  int err = 0;
  bool again = false;
  uint32_t i = 0;
  for (; i < n && err == 0 && !again; i++) {
    PollDesc* pd = w[i].pd;
    if (pd == nullptr) continue;  // negative number: poll ignores it
    w[i].g = g;
    w[i].token = token;
    w[i].observer = true;
    pd->lock.lock();
    if ((pd->armed & 1u << w[i].dir) == 0) err = netpoll_arm(pd, 1u << w[i].dir);
    if (err == 0) {
      again = pd->seq[w[i].dir].load(std::memory_order_relaxed) != w[i].seq;
      if (!again) {
        add1(pd->wait_no[w[i].dir], 1);
        link_tail(pd, &w[i]);
      }
    }
    pd->lock.unlock();
  }
  Reason r = Reason::kWoken;
  // An event may have claimed us already: then its ready() has queued us, and we must
  // leave through that queue (park.h).
  if ((err == 0 && !again) || !park_claim(g, token, Reason::kNone))
    r = park_until(g, token, err == 0 && !again ? deadline_ns : kNever);
  else
    park_abandon(g);
  unwatch(w, i);
  engine_exit(g);
  if (err != 0) return err;
  if (again || r == Reason::kWoken) return 0;
  return r == Reason::kTimeout ? -ETIMEDOUT : -EINTR;
}

// ---------------------------------------------------------------- edges and lives

void polldesc_fire(PollDesc* pd, uint32_t dirs, bool all, GList& out) {
  for (uint32_t dir = 0; dir < 2; dir++)
    if ((dirs & 1u << dir) != 0) fire_dir(pd, dir, all, out);
}

// ---------------------------------------------------------------- pairs

PollDesc* polldesc_peer(const PollDesc* from) {
  uint64_t at = from->peer.load(std::memory_order_relaxed);
  if (at == 0) return nullptr;
  PollDesc* to = polldesc_peek(static_cast<int>(at & 0xffffffffu) - 1);
  bool same = to != nullptr && to->tag.load(std::memory_order_relaxed) == at >> 32;
  return same ? to : nullptr;
}

void polldesc_pair(PollDesc* from, PollDesc* to) {
  from->peer.store(uint64_t{to->tag.load(std::memory_order_relaxed)} << 32 |
                       static_cast<uint32_t>(to->fd + 1),
                   std::memory_order_relaxed);
  to->fed.store(true, std::memory_order_relaxed);
}

// The reader, and where it goes on waiting for the event:
//   1 tries: empty                                a  write
//   2 lock; seq as before? linked; unlock         b  lock; seq + 1, claim who is linked; unlock
// a before 1: it reads. Else, 2 before b: it is woken; b before 2: it sees the seq and tries
// again. Not armed yet: 2 arms, and epoll reports what is there already. The event that epoll
// has for bytes told of here mostly finds them read by the time it is asked, and is not reported.
void polldesc_fed_peer(PollDesc* from, long counted) {
  PollDesc* to = polldesc_peer(from);
  if (to == nullptr) return;
  if (counted != 0) to->level.fetch_add(static_cast<int32_t>(counted), std::memory_order_relaxed);
  if ((to->armed & 1u << kPollIn) == 0 || (counted != 0 && !polldesc_awaited(to))) return;
  G* g = t_g;
  engine_enter(g);
  GList out;
  to->lock.lock();
  if (polldesc_peer(from) == to) fire_dir(to, kPollIn, false, out);
  to->lock.unlock();
  while (G* woken = out.pop()) ready_in_turn(woken);
  engine_exit(g);
}

namespace {

// Under pd's lock: does a call still need the file that pd's number means now?
uint32_t takers_of(PollDesc* pd) {
  uint32_t n = 0;
  for (uint32_t dir = 0; dir < 2; dir++) {
    n += pd->in_flight[dir].load(std::memory_order_relaxed);
    for (PollWaiter* w = pd->head[dir]; w != nullptr; w = w->next) n += !w->observer;
  }
  return n;
}

// Moves takers, and the claims of those in flight, from pd to o. Both locks held.
void move_takers(PollDesc* pd, PollDesc* o, uint32_t n) {
  o->tag.fetch_add(1, std::memory_order_release);
  o->armed = 0;
  o->was_fd = pd->fd;
  o->was_tag = pd->tag.load(std::memory_order_relaxed);
  o->orphans = n;
  for (uint32_t dir = 0; dir < 2; dir++) {
    o->in_flight[dir].store(pd->in_flight[dir].load(std::memory_order_relaxed),
                            std::memory_order_relaxed);
    pd->in_flight[dir].store(0, std::memory_order_relaxed);
    for (PollWaiter* w = pd->head[dir]; w != nullptr;) {
      PollWaiter* next = w->next;
      if (!w->observer) {
        unlink(pd, w);
        reinterpret_cast<std::atomic<PollDesc*>*>(&w->pd)->store(o, std::memory_order_release);
        link_tail(o, w);
      }
      w = next;
    }
  }
}

void clear_notes(PollDesc* pd) {  // nobody counted in in_flight survives a change of tag
  pd->in_flight[0].store(0, std::memory_order_relaxed);
  pd->in_flight[1].store(0, std::memory_order_relaxed);
  pd->sticky.store(0, std::memory_order_relaxed);
  pd->ahead.store(false, std::memory_order_relaxed);
  pd->kind.store(0, std::memory_order_relaxed);
  pd->notes.store(0, std::memory_order_relaxed);
  pd->drained.store(0, std::memory_order_relaxed);
  pd->guess.store(0, std::memory_order_relaxed);
  pd->peer.store(0, std::memory_order_relaxed);
  pd->fed.store(false, std::memory_order_relaxed);
  pd->level.store(0, std::memory_order_relaxed);
  pd->careful.store(0, std::memory_order_relaxed);
  pd->taken_n.store(0, std::memory_order_relaxed);
  pd->widest.store(0, std::memory_order_relaxed);
  pd->room.store(0, std::memory_order_relaxed);
}

// The kernel's view of the moved takers: the duplicate, registered for what they wait for.
void arm_orphan(PollDesc* o) {
  uint32_t dirs = (o->head[kPollIn] != nullptr ? 1u << kPollIn : 0) |
                  (o->head[kPollOut] != nullptr ? 1u << kPollOut : 0);
  if (dirs != 0) netpoll_arm(o, dirs);  // its failure leaves them to their deadlines
}

}  // namespace

void polldesc_retire(PollDesc* pd) {
  Door in;
  GList out;
  pd->lock.lock();
  uint32_t n = takers_of(pd);
  int high = n == 0 ? -1 : netpoll_high_dup(pd->fd);
  PollDesc* o = high < 0 ? nullptr : polldesc_get(high);
  if (pd->armed != 0) netpoll_disarm(pd);
  if (o != nullptr) {
    // Two of this rank: `o` is ours alone, nobody else holds its lock for long.
    o->lock.lock();
    move_takers(pd, o, n);
    {
      Hold hold(orphan_lock);
      o->orphan_next = orphan_list;
      orphan_list = o;
      n_orphans.fetch_add(1, std::memory_order_relaxed);
    }
    arm_orphan(o);
    o->lock.unlock();
  }
  pd->tag.fetch_add(1, std::memory_order_release);
  polldesc_fire(pd, 3, true, out);  // observers; takers only if no duplicate could be had
  clear_notes(pd);
  pd->lock.unlock();
  ready_list(out);
}

void polldesc_renew(PollDesc* pd) {
  if (pd->armed == 0 && pd->head[0] == nullptr && pd->head[1] == nullptr) {
    clear_notes(pd);
    return;
  }
  // Closed where we could not see it. Waiters left over find their tag gone (-EBADF).
  Door in;
  GList out;
  pd->lock.lock();
  pd->armed = 0;
  pd->tag.fetch_add(1, std::memory_order_release);
  polldesc_fire(pd, 3, true, out);
  clear_notes(pd);
  pd->lock.unlock();
  ready_list(out);
}

int polldesc_next_orphan(int from) {
  int best = __INT_MAX__;
  if (WEFT_LIKELY(n_orphans.load(std::memory_order_relaxed) == 0)) return best;
  Door in;
  Hold hold(orphan_lock);
  for (PollDesc* o = orphan_list; o != nullptr; o = o->orphan_next)
    if (o->fd >= from && o->fd < best) best = o->fd;
  return best;
}

bool polldesc_is_orphan(int fd) { return polldesc_next_orphan(fd) == fd; }

void polldesc_after_fork() {
  forks++;
  netpoll_settle_after_fork();
  for (PollDesc* o = orphan_list; o != nullptr; o = o->orphan_next) sys_call(SYS_close, o->fd);
  orphan_list = nullptr;
  n_orphans.store(0, std::memory_order_relaxed);
  n_linked.store(0, std::memory_order_relaxed);
  orphan_lock.reset();
  for (auto& c : chunks)
    if (PollDesc* at = c.load(std::memory_order_relaxed); at != nullptr)
      sys_madvise(at, kChunkBytes, MADV_DONTNEED);
}

}  // namespace weft

// gfutex.cc - the table behind gfutex.h.
#include "sched/gfutex_line.h"

#include <errno.h>
#include <sys/mman.h>

#include "sched/called_out.h"
#include "sched/host.h"
#include "sched/syscall.h"

namespace weft {

namespace {
constexpr uint32_t kNudged = 3;
thread_local constinit std::atomic<uint32_t>* t_sleeps_on = nullptr;
}  // namespace

namespace gfutex_table {

alignas(kPageBytes) Bucket buckets[1u << kBucketBits];

WEFT_COLD void BucketLock::lock_slow() {
  for (int i = 0;; i++) {
    if (word_.load(std::memory_order_relaxed) == 0 &&
        word_.exchange(1, std::memory_order_acquire) == 0)
      return;
    if (i < 200) cpu_relax();
    else if (i < 300) sys_sched_yield();
    else sys_sleep_ns(50'000);
  }
}

void link_ranked(Bucket& b, Waiter* w, bool front) {
  Waiter* next = nullptr;
  if (front)
    for (next = b.head; next != nullptr && next->priority > w->priority;) next = next->next;
  else if (w->priority != 0)
    for (next = b.head; next != nullptr && next->priority >= w->priority;) next = next->next;
  link_before(b, w, next);
}

WEFT_COLD bool claim_other(Waiter* w) {
  if (w->g == nullptr) {
    uint32_t v = w->word.load(std::memory_order_relaxed);
    while (v == 0 || v == kNudged)
      if (w->word.compare_exchange_weak(v, 1, std::memory_order_acq_rel)) return true;
    return false;
  }
  uint64_t p = w->g->park.load(std::memory_order_relaxed);
  bool interrupted = (p & 7) == static_cast<uint64_t>(Reason::kInterrupted);
  if (!interrupted || w->on_signal != OnSignal::kGoOn) return false;
  // Its G runs already, on its way to this lock (stay_for_handlers): this wake is its.
  w->g = nullptr;
  w->word.store(1, std::memory_order_relaxed);
  return true;
}

WEFT_COLD uint8_t own_priority() {
  int priority = 0;
  sys_call(SYS_sched_getparam, 0, sys_arg(&priority));
  return static_cast<uint8_t>(priority);
}

}  // namespace gfutex_table

using namespace gfutex_table;

namespace {

bool empty_in_children = false;  // the kernel sees to it

class HoldBucket {
 public:
  explicit HoldBucket(Bucket& b) : b_(b) { b_.lock.lock(); }
  ~HoldBucket() { b_.lock.unlock(); }
  HoldBucket(const HoldBucket&) = delete;
  HoldBucket& operator=(const HoldBucket&) = delete;

 private:
  Bucket& b_;
};

// Two buckets in address order; the same one once.
class HoldTwo {
 public:
  HoldTwo(Bucket& a, Bucket& b) : lo_(&a < &b ? a : b), hi_(&a < &b ? b : a) {
    lo_.lock.lock();
    if (&lo_ != &hi_) hi_.lock.lock();
  }
  ~HoldTwo() {
    if (&lo_ != &hi_) hi_.lock.unlock();
    lo_.lock.unlock();
  }
  HoldTwo(const HoldTwo&) = delete;
  HoldTwo& operator=(const HoldTwo&) = delete;

 private:
  Bucket& lo_;
  Bucket& hi_;
};

void set_addr(Waiter* w, const void* addr) {
  reinterpret_cast<std::atomic<const void*>*>(&w->addr)->store(addr, std::memory_order_release);
}

// Locks the bucket w stands in now: a requeue may move it while we look.
Bucket& lock_bucket_of(Waiter* w) {
  for (;;) {
    auto* at = reinterpret_cast<std::atomic<const void*>*>(&w->addr);
    const void* addr = at->load(std::memory_order_acquire);
    Bucket& b = bucket_of(addr);
    b.lock.lock();
    if (at->load(std::memory_order_relaxed) == addr) return b;
    b.lock.unlock();
  }
}

// Claimed Gs to be readied after the unlock; foreign ones are woken at once.
struct WakeList {
  Waiter* head = nullptr;
  Waiter** tail = &head;
  void add(Waiter* w) {
    if (w->g == nullptr) {
      wake_foreign(w);
      return;
    }
    w->next = nullptr;
    *tail = w;
    tail = &w->next;
  }
};

void ready_all(Waiter* w) {
  while (w != nullptr) {
    Waiter* next = w->next;  // before ready: then w's frame may go
    ready(w->g);
    w = next;
  }
}

bool wants_stop(const Waiter* w) { return w->stop != nullptr && w->stop(); }

// A kGoOn waiter was interrupted. Runs the handlers while w keeps its place in the queue.
// kWaiting: w->token is that of a new park. kWoken: a wake came. kInterrupted: to stop. kNone: g has
// been wired, and w is a foreign waiter.
Reason stay_for_handlers(G* g, Waiter* w) {
  if (was_called_out(g)) {
    stay_in_line(g, w);
    return Reason::kWoken;
  }
  Bucket* b = &lock_bucket_of(w);
  if (w->g != nullptr && !wants_stop(w)) {
    w->g = nullptr;  // until we are back
    b->lock.unlock();
    engine_exit(g);
    engine_enter(g);
    b = &lock_bucket_of(w);
  }
  Reason r = Reason::kWaiting;
  if (w->word.load(std::memory_order_relaxed) == 1) {
    r = Reason::kWoken;
  } else if (wants_stop(w)) {
    if (w->linked) unlink(*b, w);
    r = Reason::kInterrupted;
  } else if (g->wired) {
    r = Reason::kNone;
  } else {
    w->g = g;
    w->token = park_begin(g, static_cast<Wait>(w->tag >> 24), w->addr, true);
  }
  b->lock.unlock();
  return r;
}

}  // namespace

int gfutex_table::sleep_foreign(Waiter* w, uint64_t deadline_ns) {
  int err = 0;
  // Others than these are no cancellation points: only who is to be cancelled at once leaves them.
  bool point = is_cancel_point(static_cast<Wait>(w->tag >> 24));
  bool look = host_cancel_due(point);  // one that came before it could nudge
  for (uint32_t v; (v = w->word.load(std::memory_order_acquire)) == 0 || v == kNudged;) {
    if (v == kNudged) {
      if (!w->word.compare_exchange_strong(v, 0, std::memory_order_acq_rel)) continue;
      look = host_cancel_due(point);
    }
    long r = look ? -EINTR : sys_futex_wait(&w->word, 0, deadline_ns);
    look = false;
    if (r == -ETIMEDOUT) err = -ETIMEDOUT;
    else if (r == -EINTR && w->on_signal == OnSignal::kEintr) err = -EINTR;
    else if (r == -EINTR && w->stop != nullptr && w->stop()) err = -EINTR;
    else continue;
    v = w->word.load(std::memory_order_relaxed);
    while (v != 1 && !w->word.compare_exchange_weak(v, 2, std::memory_order_acq_rel)) {
    }
    if (v != 1) break;
    err = 0;
  }
  {
    Door in;
    Bucket& b = lock_bucket_of(w);  // also: the waker is done with w
    if (w->linked) unlink(b, w);
    b.lock.unlock();
    t_sleeps_on = reinterpret_cast<std::atomic<uint32_t>*>(w->token);
  }
  if (w->on_signal != OnSignal::kGoOn) host_cancel_at_once();  // cond: has its mutex back first
  return err;
}

WEFT_COLD int gfutex_table::not_woken(G* g, Waiter* w, Reason r, uint64_t deadline_ns) {
  for (;;) {
    if (r == Reason::kInterrupted && w->on_signal == OnSignal::kGoOn) r = stay_for_handlers(g, w);
    if (r != Reason::kWaiting) break;
    r = park_until(g, w->token, deadline_ns);
  }
  if (r == Reason::kNone) {
    engine_exit(g);
    begin_foreign(w);
    return sleep_foreign(w, deadline_ns);
  }
  if (r != Reason::kWoken) {
    Bucket& b = lock_bucket_of(w);
    if (w->linked) unlink(b, w);
    b.lock.unlock();
  }
  engine_exit(g);
  return r == Reason::kWoken ? 0 : r == Reason::kTimeout ? -ETIMEDOUT : -EINTR;
}

bool gfutex_enqueue(Waiter* w, const void* addr, Wait why, bool interruptible,
                    bool (*still)(void*), void* arg) {
  return enqueue(w, addr, why, interruptible, [&] { return still == nullptr || still(arg); });
}

int gfutex_sleep(Waiter* w, uint64_t deadline_ns) { return gfutex_table::sleep(w, deadline_ns); }

bool gfutex_wake_one(const void* addr, bool (*decide)(Waiter*, bool, void*), void* arg) {
  return wake_one(addr, [&](Waiter* w, bool more) { return decide == nullptr || decide(w, more, arg); });
}

namespace {
struct Expect {
  const std::atomic<uint32_t>* word;
  uint32_t value;
};
bool still_equal(void* arg) {
  auto* e = static_cast<Expect*>(arg);
  return e->word->load(std::memory_order_seq_cst) == e->value;
}
}  // namespace

int gfutex_wait(const std::atomic<uint32_t>* addr, uint32_t expected, uint64_t deadline_ns,
                Wait why, bool interruptible, uint32_t bitset) {
  Waiter w;
  w.bitset = bitset;
  Expect e{addr, expected};
  if (!gfutex_enqueue(&w, addr, why, interruptible, still_equal, &e)) return -EAGAIN;
  return gfutex_sleep(&w, deadline_ns);
}

uint32_t gfutex_wake(const void* addr, uint32_t n, uint32_t bitset) {
  Door in;
  WakeList list;
  uint32_t woken = 0;
  Bucket& b = bucket_of(addr);
  {
    HoldBucket hold(b);
    for (Waiter* w = next_of(b.head, addr); w != nullptr && woken < n;) {
      Waiter* next = next_of(w->next, addr);
      if ((w->bitset & bitset) != 0 && take(b, w)) {
        list.add(w);
        woken++;
      }
      w = next;
    }
  }
  ready_all(list.head);
  return woken;
}

int gfutex_requeue(const void* from, uint32_t n_wake, const void* to, uint32_t n_requeue,
                   const std::atomic<uint32_t>* check, uint32_t expected, WakeResult* out) {
  Door in;
  WakeList list;
  WakeResult res;
  Bucket& bf = bucket_of(from);
  Bucket& bt = bucket_of(to);
  {
    HoldTwo hold(bf, bt);
    if (check != nullptr && check->load(std::memory_order_seq_cst) != expected) return -EAGAIN;
    for (Waiter* w = next_of(bf.head, from); w != nullptr;) {
      Waiter* next = next_of(w->next, from);
      if (res.woken < n_wake) {
        if (take(bf, w)) {
          list.add(w);
          res.woken++;
        }
      } else if (res.requeued < n_requeue) {
        if (from != to) {
          unlink(bf, w);
          set_addr(w, to);
          link_ranked(bt, w, false);
        }
        res.requeued++;
      } else {
        break;
      }
      w = next;
    }
  }
  ready_all(list.head);
  if (out != nullptr) *out = res;
  return 0;
}

void gfutex_ready(Waiter* w) {
  Door in;
  ready(w->g);
}

namespace {

// False: its signals are due, so w is the caller's to ready. The steps are those of called_out.h.
bool queue_one_claimed(Bucket& b, const void* addr, Waiter* w, uint64_t now) {
  G* g = w->g;
  bool chained = g->stands.load(std::memory_order_relaxed) == Stands::kChain;
  if (chained && !chain_leave(w)) return true;  // it runs
  w->addr = addr;
  w->claimed = true;
  w->since_tsc = now;
  g->wait = Wait::kMutex;
  __atomic_store_n(&g->wait_on, addr, __ATOMIC_RELAXED);
  g->stands.store(Stands::kQueue, std::memory_order_release);
  line_fence();
  if (WEFT_UNLIKELY((g->attention.load(std::memory_order_relaxed) & kAttSignal) != 0)) {
    g->stands.store(Stands::kNowhere, std::memory_order_relaxed);
    return false;
  }
  link_ranked(b, w, false);
  return true;
}

}  // namespace

void gfutex_queue_claimed(const void* addr, Waiter* list) {
  Door in;
  WakeList called;
  Bucket& b = bucket_of(addr);
  {
    HoldBucket hold(b);
    uint64_t now = tsc();
    while (list != nullptr) {
      Waiter* w = list;
      list = w->next;
      if (!queue_one_claimed(b, addr, w, now)) called.add(w);
    }
  }
  ready_all(called.head);
}

Waiter* WaitQueue::first() const { return next_of(static_cast<Bucket*>(bucket_)->head, addr_); }

Waiter* WaitQueue::next(const Waiter* w) const { return next_of(w->next, addr_); }

bool WaitQueue::wake(Waiter* w) { return take(w, &wakes_.tail); }

bool WaitQueue::take(Waiter* w, Waiter*** kept_tail) {
  if (!gfutex_table::take(*static_cast<Bucket*>(bucket_), w)) return false;
  if (w->g == nullptr) {
    wake_foreign(w);
    return true;
  }
  w->next = nullptr;
  **kept_tail = w;
  *kept_tail = &w->next;
  return true;
}

void gfutex_visit(const void* addr, void (*visit)(WaitQueue&, void*), void* arg) {
  Door in;
  WaitQueue q;
  Bucket& b = bucket_of(addr);
  q.bucket_ = &b;
  q.addr_ = addr;
  {
    HoldBucket hold(b);
    visit(q, arg);
  }
  ready_all(q.wakes_.head);
}

void gfutex_table::begin_foreign(Waiter* w) {
  w->token = reinterpret_cast<uint64_t>(t_sleeps_on);
  t_sleeps_on = &w->word;
}

bool gfutex_nudge() {
  std::atomic<uint32_t>* word = t_sleeps_on;
  if (word == nullptr) return false;
  uint32_t waiting = 0;
  word->compare_exchange_strong(waiting, kNudged, std::memory_order_acq_rel);
  return true;
}

void gfutex_boot() {
  empty_in_children = sys_madvise(buckets, sizeof buckets, MADV_WIPEONFORK) == 0;
}

void gfutex_after_fork() {
  call_out_after_fork();
  if (empty_in_children) return;  // nor is a page of the table copied or even looked at
  // A thread that is not here may have been between any two stores of a link or unlink: head
  // and tail need not agree. Only what is wrong is written: the table is mostly untouched.
  for (Bucket& b : buckets) {
    if (b.head != nullptr || b.tail != nullptr) b.head = b.tail = nullptr;
    if (b.lock.held()) b.lock.unlock();
  }
}

}  // namespace weft

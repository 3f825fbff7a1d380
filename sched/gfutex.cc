// gfutex.cc - the table behind gfutex.h.
//
// Bucket locks: held for tens of nanoseconds, taken and released several times in each
// park and wake-up, so the release must be a plain store. Hence a spin lock of its own
// instead of lock.h's: a waiter that sees the holder's M lose its core yields to it, then
// naps. Ordering: the exchange that takes it pairs with the release store that frees it.
#include "sched/gfutex.h"

#include <errno.h>
#include <signal.h>
#include <sys/mman.h>

#include "sched/syscall.h"

namespace weft {
namespace {

constexpr uint32_t kBuckets = 16384;  // 1 MiB of address space; touched as used

class BucketLock {
 public:
  void lock() {
    if (WEFT_LIKELY(word_.exchange(1, std::memory_order_acquire) == 0)) return;
    lock_slow();
  }
  void unlock() { word_.store(0, std::memory_order_release); }
  bool held() const { return word_.load(std::memory_order_relaxed) != 0; }

 private:
  void lock_slow() {
    for (int i = 0;; i++) {
      if (word_.load(std::memory_order_relaxed) == 0 &&
          word_.exchange(1, std::memory_order_acquire) == 0)
        return;
      if (i < 200) cpu_relax();
      else if (i < 300) sys_sched_yield();
      else sys_sleep_ns(50'000);
    }
  }
  std::atomic<uint32_t> word_{0};
};

struct alignas(kCacheLine) Bucket {
  BucketLock lock;
  Waiter* head = nullptr;
  Waiter* tail = nullptr;
};
alignas(kPageBytes) Bucket buckets[kBuckets];
bool empty_in_children = false;  // the kernel sees to it

Bucket& bucket_of(const void* addr) {
  uint64_t h = (reinterpret_cast<uint64_t>(addr) >> 2) * 0x9e3779b97f4a7c15u;
  return buckets[h >> 50];
}
static_assert(kBuckets == 1u << (64 - 50));

WEFT_INLINE void link_before(Bucket& b, Waiter* w, Waiter* next) {  // null: last
  w->next = next;
  w->prev = next != nullptr ? next->prev : b.tail;
  if (w->prev != nullptr) w->prev->next = w; else b.head = w;
  if (next != nullptr) next->prev = w; else b.tail = w;
  w->linked = true;
}

WEFT_INLINE void link_tail(Bucket& b, Waiter* w) {
  Waiter* next = nullptr;
  if (WEFT_UNLIKELY(w->priority != 0))
    for (next = b.head; next != nullptr && next->priority >= w->priority;) next = next->next;
  link_before(b, w, next);
}

void link_head(Bucket& b, Waiter* w) {
  Waiter* next = b.head;
  while (next != nullptr && next->priority > w->priority) next = next->next;
  link_before(b, w, next);
}

inline void drop_count(Waiter* w) {
  if (w->counter == nullptr) return;
  std::atomic<uint32_t>& c = *w->counter;
  w->counter = nullptr;
  c.store(c.load(std::memory_order_relaxed) - 1, std::memory_order_relaxed);
}

inline void unlink(Bucket& b, Waiter* w) {
  if (w->prev != nullptr) w->prev->next = w->next; else b.head = w->next;
  if (w->next != nullptr) w->next->prev = w->prev; else b.tail = w->prev;
  w->linked = false;
  drop_count(w);
}

Waiter* next_of(Waiter* w, const void* addr) {
  while (w != nullptr && w->addr != addr) w = w->next;
  return w;
}

// Claims a linked waiter and unlinks it; false if it gave up first: it unlinks itself, but
// what it counts in may go away now, so it is taken out of that.
WEFT_INLINE bool take(Bucket& b, Waiter* w) {
  if (!w->claimed) {
    uint32_t waiting = 0;
    if (w->g == nullptr) {
      if (!w->word.compare_exchange_strong(waiting, 1, std::memory_order_acq_rel)) {
        drop_count(w);
        return false;
      }
    } else if (!park_claim(w->g, w->token, Reason::kWoken)) {
      uint64_t p = w->g->park.load(std::memory_order_relaxed);
      bool interrupted = (p & 7) == static_cast<uint64_t>(Reason::kInterrupted);
      if (!interrupted || w->on_signal != OnSignal::kGoOn) {
        drop_count(w);
        return false;
      }
      // Its G runs already, on its way to this lock (stay_for_handlers): this wake is its.
      w->g = nullptr;
      w->word.store(1, std::memory_order_relaxed);
    }
  }
  unlink(b, w);
  return true;
}

// The engine's door around a body that does not park; other threads keep their signal
// handlers out instead.
class Door {
 public:
  Door() : g_(this_g()) {
    if (WEFT_LIKELY(g_ != nullptr)) {
      engine_enter(g_);
    } else {
      uint64_t all = ~uint64_t{0};
      sys_sigprocmask(SIG_BLOCK, &all, &mask_);
    }
  }
  ~Door() {
    if (WEFT_LIKELY(g_ != nullptr)) engine_exit(g_);
    else sys_sigprocmask(SIG_SETMASK, &mask_, nullptr);
  }
  Door(const Door&) = delete;
  Door& operator=(const Door&) = delete;

 private:
  G* g_;
  uint64_t mask_;  // set where g_ is null
};

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

// Wakes a taken waiter that is no G (any more). Under the bucket lock: once its word is 1
// its frame lives only as long as we hold the bucket.
void wake_foreign(Waiter* w) { sys_futex_wake(&w->word, 1); }

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

int sleep_foreign(Waiter* w, uint64_t deadline_ns) {
  int err = 0;
  while (w->word.load(std::memory_order_acquire) == 0) {
    long r = sys_futex_wait(&w->word, 0, deadline_ns);
    if (r == -ETIMEDOUT) err = -ETIMEDOUT;
    else if (r == -EINTR && w->on_signal == OnSignal::kEintr) err = -EINTR;
    else if (r == -EINTR && w->stop != nullptr && w->stop()) err = -EINTR;
    else continue;
    uint32_t waiting = 0;
    if (w->word.compare_exchange_strong(waiting, 2, std::memory_order_acq_rel)) break;
    err = 0;
  }
  Door in;
  Bucket& b = lock_bucket_of(w);  // also: the waker is done with w
  if (w->linked) unlink(b, w);
  b.lock.unlock();
  return err;
}

// The calling kernel thread's, 0 unless it is a real-time one.
uint8_t own_priority() {
  int priority = 0;
  sys_call(SYS_sched_getparam, 0, sys_arg(&priority));
  return static_cast<uint8_t>(priority);
}

bool wants_stop(const Waiter* w) { return w->stop != nullptr && w->stop(); }

// A kGoOn waiter was interrupted. Runs the handlers while w keeps its place in the queue.
// kWaiting: w->token is that of a new park. kWoken: a wake came. kInterrupted: to stop. kNone: g has
// been wired, and w is a foreign waiter.
Reason stay_for_handlers(G* g, Waiter* w) {
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

bool gfutex_enqueue(Waiter* w, const void* addr, Wait why, bool interruptible,
                    bool (*still)(void*), void* arg) {
  G* g = this_g();
  uint64_t mask = 0;
  if (WEFT_LIKELY(g != nullptr)) {
    engine_enter(g);
  } else {
    uint64_t all = ~uint64_t{0};
    sys_sigprocmask(SIG_BLOCK, &all, &mask);
  }
  w->g = g;
  w->priority = g != nullptr ? 0 : own_priority();
  w->addr = addr;
  w->tag = (w->tag & 0xffffff) | static_cast<uint32_t>(why) << 24;
  if (interruptible && w->on_signal == OnSignal::kDefer) w->on_signal = OnSignal::kEintr;
  Bucket& b = bucket_of(addr);
  b.lock.lock();
  bool wait = still == nullptr || still(arg);
  if (wait) {
    if (g != nullptr)
      w->token = park_begin(g, why, addr, w->on_signal != OnSignal::kDefer);
    if (w->front) link_head(b, w); else link_tail(b, w);
  }
  b.lock.unlock();
  if (g == nullptr) sys_sigprocmask(SIG_SETMASK, &mask, nullptr);
  else if (!wait) engine_exit(g);
  return wait;
}

int gfutex_sleep(Waiter* w, uint64_t deadline_ns) {
  G* g = w->g;
  if (g == nullptr) return sleep_foreign(w, deadline_ns);
  Reason r;
  do {
    r = park_until(g, w->token, deadline_ns);
    if (r == Reason::kInterrupted && w->on_signal == OnSignal::kGoOn) r = stay_for_handlers(g, w);
  } while (r == Reason::kWaiting);
  if (r == Reason::kNone) {
    engine_exit(g);
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
          link_tail(bt, w);
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

bool gfutex_wake_one(const void* addr, bool (*decide)(Waiter*, bool, void*), void* arg) {
  Door in;
  Bucket& b = bucket_of(addr);
  b.lock.lock();
  Waiter* w = next_of(b.head, addr);
  Waiter* next = nullptr;
  for (; w != nullptr; w = next) {
    next = w->next;
    if (take(b, w)) break;
    next = next_of(next, addr);
  }
  bool go = decide == nullptr || decide(w, w != nullptr && next_of(next, addr) != nullptr, arg);
  G* g = w == nullptr ? nullptr : w->g;
  if (w != nullptr && g == nullptr) wake_foreign(w);
  b.lock.unlock();
  if (g != nullptr && go) ready(g);
  return w != nullptr;
}

void gfutex_ready(Waiter* w) {
  G* g = this_g();
  if (g != nullptr) engine_enter(g);
  ready(w->g);
  if (g != nullptr) engine_exit(g);
}

void gfutex_queue_claimed(const void* addr, Waiter* list) {
  Door in;
  Bucket& b = bucket_of(addr);
  HoldBucket hold(b);
  uint64_t now = tsc();
  while (list != nullptr) {
    Waiter* w = list;
    list = w->next;
    w->addr = addr;
    w->claimed = true;
    w->since_tsc = now;
    link_tail(b, w);
  }
}

Waiter* WaitQueue::first() const { return next_of(static_cast<Bucket*>(bucket_)->head, addr_); }

Waiter* WaitQueue::next(const Waiter* w) const { return next_of(w->next, addr_); }

bool WaitQueue::wake(Waiter* w) { return take(w, &wakes_.tail); }

bool WaitQueue::take(Waiter* w, Waiter*** kept_tail) {
  if (!weft::take(*static_cast<Bucket*>(bucket_), w)) return false;
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

void gfutex_boot() {
  empty_in_children = sys_madvise(buckets, sizeof buckets, MADV_WIPEONFORK) == 0;
}

void gfutex_after_fork() {
  if (empty_in_children) return;  // nor is a page of the table copied or even looked at
  // A thread that is not here may have been between any two stores of a link or unlink: head
  // and tail need not agree. Only what is wrong is written: the table is mostly untouched.
  for (Bucket& b : buckets) {
    if (b.head != nullptr || b.tail != nullptr) b.head = b.tail = nullptr;
    if (b.lock.held()) b.lock.unlock();
  }
}

}  // namespace weft

// gfutex.cc - the table behind gfutex.h.
#include "sched/gfutex.h"

#include <errno.h>

#include "sched/syscall.h"

namespace weft {
namespace {

constexpr uint32_t kBuckets = 16384;  // 1 MiB of address space; touched as used

struct alignas(kCacheLine) Bucket {
  Lock lock;
  Waiter* head = nullptr;
  Waiter* tail = nullptr;
};
Bucket buckets[kBuckets];

Bucket& bucket_of(const void* addr) {
  uint64_t h = (reinterpret_cast<uint64_t>(addr) >> 2) * 0x9e3779b97f4a7c15u;
  return buckets[h >> 50];
}
static_assert(kBuckets == 1u << (64 - 50));

void link_tail(Bucket& b, Waiter* w) {
  w->next = nullptr;
  w->prev = b.tail;
  if (b.tail != nullptr) b.tail->next = w; else b.head = w;
  b.tail = w;
  w->linked = true;
}

void unlink(Bucket& b, Waiter* w) {
  if (w->prev != nullptr) w->prev->next = w->next; else b.head = w->next;
  if (w->next != nullptr) w->next->prev = w->prev; else b.tail = w->prev;
  w->linked = false;
  if (w->counter != nullptr) {
    w->counter->fetch_sub(1, std::memory_order_relaxed);  // guarded by the bucket lock
    w->counter = nullptr;
  }
}

Waiter* next_of(Waiter* w, const void* addr) {
  while (w != nullptr && w->addr != addr) w = w->next;
  return w;
}

// Claims an unlinked waiter; false if it gave up first.
bool claim(Waiter* w) {
  if (w->g != nullptr) return park_claim(w->g, w->token, Reason::kWoken);
  uint32_t waiting = 0;
  return w->word.compare_exchange_strong(waiting, 1, std::memory_order_acq_rel);
}

// Claimed waiters, to be woken after the unlock. A foreign one is woken at once, under the
// lock: once its word is 1 its frame lives only as long as we hold the bucket.
struct WakeList {
  Waiter* head = nullptr;
  Waiter** tail = &head;
  void add(Waiter* w) {
    if (w->g == nullptr) {
      sys_futex_wake(&w->word, 1);
      return;
    }
    w->next = nullptr;
    *tail = w;
    tail = &w->next;
  }
  void ready_all() {
    while (head != nullptr) {
      Waiter* w = head;
      head = w->next;  // before ready: then w's frame may go
      ready(w->g);
    }
  }
};

class Engine {  // the engine's door around a body that does not park
 public:
  Engine() : g_(this_g()) {
    if (g_ != nullptr) engine_enter(g_);
  }
  ~Engine() {
    if (g_ != nullptr) engine_exit(g_);
  }
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

 private:
  G* g_;
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

int sleep_foreign(Waiter* w, uint64_t deadline_ns, bool interruptible) {
  int err = 0;
  while (w->word.load(std::memory_order_acquire) == 0) {
    long r = sys_futex_wait(&w->word, 0, deadline_ns);
    if (r == -ETIMEDOUT) err = -ETIMEDOUT;
    else if (r == -EINTR && interruptible) err = -EINTR;
    else continue;
    uint32_t waiting = 0;
    if (w->word.compare_exchange_strong(waiting, 2, std::memory_order_acq_rel)) break;
    err = 0;
  }
  Bucket& b = lock_bucket_of(w);  // also: the waker is done with w
  if (w->linked) unlink(b, w);
  b.lock.unlock();
  return err;
}

}  // namespace

bool gfutex_enqueue(Waiter* w, const void* addr, Wait why, bool interruptible,
                    bool (*still)(void*), void* arg) {
  G* g = this_g();
  if (g != nullptr) engine_enter(g);
  w->g = g;
  w->addr = addr;
  w->tag |= interruptible ? 0x80000000u : 0;
  Bucket& b = bucket_of(addr);
  b.lock.lock();
  if (still != nullptr && !still(arg)) {
    b.lock.unlock();
    if (g != nullptr) engine_exit(g);
    return false;
  }
  if (g != nullptr) w->token = park_begin(g, why, addr, interruptible);
  if (w->counter != nullptr) w->counter->fetch_add(1, std::memory_order_relaxed);
  link_tail(b, w);
  b.lock.unlock();
  return true;
}

int gfutex_sleep(Waiter* w, uint64_t deadline_ns) {
  G* g = w->g;
  if (g == nullptr) return sleep_foreign(w, deadline_ns, (w->tag & 0x80000000u) != 0);
  Reason r = park_until(g, w->token, deadline_ns);
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
  Engine in;
  WakeList list;
  uint32_t woken = 0;
  Bucket& b = bucket_of(addr);
  {
    Hold hold(b.lock);
    for (Waiter* w = next_of(b.head, addr); w != nullptr && woken < n;) {
      Waiter* next = next_of(w->next, addr);
      if ((w->bitset & bitset) != 0) {
        unlink(b, w);
        if (claim(w)) {
          list.add(w);
          woken++;
        }
      }
      w = next;
    }
  }
  list.ready_all();
  return woken;
}

int gfutex_requeue(const void* from, uint32_t n_wake, const void* to, uint32_t n_requeue,
                   const std::atomic<uint32_t>* check, uint32_t expected, WakeResult* out) {
  Engine in;
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
        unlink(bf, w);
        if (claim(w)) {
          list.add(w);
          res.woken++;
        }
      } else if (res.requeued < n_requeue) {
        if (from != to) {
          unlink(bf, w);
          reinterpret_cast<std::atomic<const void*>*>(&w->addr)->store(to,
                                                                       std::memory_order_release);
          link_tail(bt, w);
        }
        res.requeued++;
      } else {
        break;
      }
      w = next;
    }
  }
  list.ready_all();
  if (out != nullptr) *out = res;
  return 0;
}

bool gfutex_wake_one(const void* addr, void (*decide)(Waiter*, bool, void*), void* arg) {
  Engine in;
  Bucket& b = bucket_of(addr);
  b.lock.lock();
  Waiter* w = next_of(b.head, addr);
  while (w != nullptr) {
    Waiter* next = next_of(w->next, addr);
    unlink(b, w);
    if (claim(w)) break;
    w = next;
  }
  if (decide != nullptr)
    decide(w, w != nullptr && next_of(b.head, addr) != nullptr, arg);
  G* g = w == nullptr ? nullptr : w->g;
  if (w != nullptr && g == nullptr) sys_futex_wake(&w->word, 1);
  b.lock.unlock();
  if (g != nullptr) ready(g);
  return w != nullptr;
}

uint32_t gfutex_wake_if(const void* addr, bool (*pick)(Waiter*, void*),
                        void (*decide)(Waiter*, bool, void*), void* arg) {
  Engine in;
  WakeList list;
  uint32_t woken = 0;
  Bucket& b = bucket_of(addr);
  {
    Hold hold(b.lock);
    for (Waiter* w = next_of(b.head, addr); w != nullptr;) {
      Waiter* next = next_of(w->next, addr);
      if (pick(w, arg)) {
        unlink(b, w);
        if (claim(w)) {
          list.add(w);
          woken++;
        }
      }
      w = next;
    }
    if (decide != nullptr) decide(nullptr, next_of(b.head, addr) != nullptr, arg);
  }
  list.ready_all();
  return woken;
}

void gfutex_after_fork() {
  for (Bucket& b : buckets) {
    if (b.head != nullptr) b.head = b.tail = nullptr;
    if (b.lock.held()) b.lock.reset();
  }
}

}  // namespace weft

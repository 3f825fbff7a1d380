// gfutex_line.h - the table of gfutex.h, and its steps in line.
//
// A semaphore's or a condition's wait and wake-up are the steps of gfutex_enqueue, gfutex_sleep
// and gfutex_wake_one with most questions answered beforehand: what kind of waiter it is, what
// `still` and `decide` do. In line the compiler answers them (tests/bench/README.md has the
// instructions of a round trip). All others call the functions of gfutex.h, which are these.
//
// Bucket locks: held for tens of nanoseconds, taken and released several times in each
// park and wake-up, so the release must be a plain store. Hence a spin lock of its own
// instead of lock.h's: a waiter that sees the holder's M lose its core yields to it, then
// naps. Ordering: the exchange that takes it pairs with the release store that frees it.
//
// Callers: gfutex.cc, and of the ABI files those on whose speed a program's switches hang.
#pragma once

#include "sched/gfutex.h"

namespace weft::gfutex_table {

class BucketLock {
 public:
  void lock() {
    if (WEFT_UNLIKELY(word_.exchange(1, std::memory_order_acquire) != 0)) lock_slow();
  }
  void unlock() { word_.store(0, std::memory_order_release); }
  bool held() const { return word_.load(std::memory_order_relaxed) != 0; }

 private:
  void lock_slow();
  std::atomic<uint32_t> word_{0};
};

struct alignas(kCacheLine) Bucket {
  BucketLock lock;
  Waiter* head = nullptr;
  Waiter* tail = nullptr;
};
constexpr uint32_t kBucketBits = 14;  // 1 MiB of address space; touched as used
extern Bucket buckets[1u << kBucketBits];

inline Bucket& bucket_of(const void* addr) {
  uint64_t h = (reinterpret_cast<uint64_t>(addr) >> 2) * 0x9e3779b97f4a7c15u;
  return buckets[h >> (64 - kBucketBits)];
}

WEFT_INLINE void link_before(Bucket& b, Waiter* w, Waiter* next) {  // null: last
  w->next = next;
  w->prev = next != nullptr ? next->prev : b.tail;
  if (w->prev != nullptr) w->prev->next = w; else b.head = w;
  if (next != nullptr) next->prev = w; else b.tail = w;
  w->linked = true;
}

// Behind those of its priority (a G has none: last), or before them.
void link_ranked(Bucket& b, Waiter* w, bool front);

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

inline Waiter* next_of(Waiter* w, const void* addr) {
  while (w != nullptr && w->addr != addr) w = w->next;
  return w;
}

// Claims a waiter that is foreign, or lost to an interrupt. False: it gave up first.
bool claim_other(Waiter* w);

// Claims a linked waiter and unlinks it; false if it gave up first: it unlinks itself, but
// what it counts in may go away now, so it is taken out of that.
WEFT_INLINE bool take(Bucket& b, Waiter* w) {
  if (w->claimed) w->g->stands.store(Stands::kNowhere, std::memory_order_relaxed);
  bool won = w->claimed || (w->g != nullptr && park_claim(w->g, w->token, Reason::kWoken));
  if (WEFT_UNLIKELY(!won) && !claim_other(w)) {
    drop_count(w);
    return false;
  }
  unlink(b, w);
  return true;
}

uint8_t own_priority();  // the calling kernel thread's, 0 unless it is a real-time one

// The calling foreign thread is in w's wait: until sleep_foreign ends. Nests: in a signal handler.
void begin_foreign(Waiter* w);

// gfutex_enqueue, by a thread that is no G.
template <class Still>
WEFT_COLD bool enqueue_foreign(Waiter* w, Still still) {
  uint64_t mask = keep_handlers_out();
  w->priority = own_priority();
  Bucket& b = bucket_of(w->addr);
  b.lock.lock();
  bool wait = still();
  if (wait) {
    link_ranked(b, w, w->front);
    begin_foreign(w);
  }
  b.lock.unlock();
  let_handlers_in(mask);
  return wait;
}

// gfutex_enqueue; `still()` is asked under the bucket lock. What w says is looked at before that:
// past a lock the compiler knows nothing of it any more.
template <class Still>
WEFT_INLINE bool enqueue(Waiter* w, const void* addr, Wait why, bool interruptible, Still still) {
  G* g = this_g();
  w->g = g;
  w->addr = addr;
  w->priority = 0;
  w->tag = (w->tag & 0xffffff) | static_cast<uint32_t>(why) << 24;
  if (interruptible && w->on_signal == OnSignal::kDefer) w->on_signal = OnSignal::kEintr;
  if (WEFT_UNLIKELY(g == nullptr)) return enqueue_foreign(w, still);
  bool ends_early = w->on_signal != OnSignal::kDefer, front = w->front;
  engine_enter(g);
  if (WEFT_UNLIKELY(g->wired)) {  // by a preemption just before that: it has no P to park on
    engine_exit(g);
    w->g = nullptr;
    return enqueue_foreign(w, still);
  }
  Bucket& b = bucket_of(addr);
  b.lock.lock();
  bool wait = still();
  if (wait) {
    w->token = park_begin(g, why, addr, ends_early);
    if (WEFT_UNLIKELY(front)) link_ranked(b, w, true);
    else link_before(b, w, nullptr);
  }
  b.lock.unlock();
  if (!wait) engine_exit(g);
  return wait;
}

int sleep_foreign(Waiter* w, uint64_t deadline_ns);
// g's park for w has ended with r, no wake: what gfutex_sleep returns in the end.
int not_woken(G* g, Waiter* w, Reason r, uint64_t deadline_ns);

// gfutex_sleep. `next` as park()'s.
WEFT_INLINE int sleep(Waiter* w, uint64_t deadline_ns, G* next = nullptr) {
  G* g = w->g;
  if (WEFT_UNLIKELY(next != nullptr && (g == nullptr || deadline_ns != kNever))) {
    ready(next);
    next = nullptr;
  }
  if (WEFT_UNLIKELY(g == nullptr)) return sleep_foreign(w, deadline_ns);
  Reason r = deadline_ns == kNever ? park(g, next) : park_timed(g, w->token, deadline_ns);
  if (WEFT_UNLIKELY(r != Reason::kWoken)) return not_woken(g, w, r, deadline_ns);
  engine_exit(g);
  return 0;
}

// Wakes a taken waiter that is no G (any more). Under the bucket lock: once its word is 1
// its frame lives only as long as we hold the bucket.
inline void wake_foreign(Waiter* w) { sys_futex_wake(&w->word, 1); }

// gfutex_wake_one; `decide(w, more)`.
template <class Decide>
WEFT_INLINE bool wake_one(const void* addr, Decide decide) {
  Door in;
  Bucket& b = bucket_of(addr);
  b.lock.lock();
  Waiter* w = next_of(b.head, addr);
  Waiter* next = nullptr;
  for (; w != nullptr; w = next) {
    next = w->next;
    if (WEFT_LIKELY(take(b, w))) break;
    next = next_of(next, addr);
  }
  bool go = decide(w, w != nullptr && next_of(next, addr) != nullptr);
  G* g = w == nullptr ? nullptr : w->g;
  if (w != nullptr && g == nullptr) wake_foreign(w);
  b.lock.unlock();
  if (g != nullptr && go) ready(g);
  return w != nullptr;
}

}  // namespace weft::gfutex_table

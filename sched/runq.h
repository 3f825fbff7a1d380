// runq.h - a P's run queue: a bounded ring plus runnext (Go's design).
//
// Invariant: head <= tail <= head + kSize (as wrapping u32); slots in [head, tail) are ours.
// Callers:   put, get, put_next, take_last: the owner P only. steal: any M that holds a P.
// Blocking:  never; no lock. Overflow is handed back to the caller as a batch.
// Ordering:  put's release store of tail pairs with steal's acquire load of tail: the
//            stealer sees the slots. A consumer's release CAS of head pairs with put's
//            acquire load of head: the owner reuses a slot only after it was read.
// take_last: lets the tail go down, which a thief may have read before. So a count above head in
//            the same word goes up after that: the thief's CAS of head fails, or it has read head
//            later, and then the lower tail.
// runnext:   what was readied last by the G that runs; it goes next and is stolen last.
//
// A template over the item so that tests/model runs this very text.
#pragma once

#include "sched/base.h"

namespace weft {

template <class T, uint32_t kSize, template <class> class Atomic = std::atomic>
class RunQ {
 public:
  static constexpr uint32_t kHalf = kSize / 2;

  // Appends at the tail. False when full: the caller moves half away (take_half) first.
  bool put(T* g) {
    uint32_t h = index(head_.load(std::memory_order_acquire));
    uint32_t t = tail_.load(std::memory_order_relaxed);  // owner writes it
    if (t - h >= kSize) return false;
    ring_[t % kSize].store(g, std::memory_order_relaxed);  // published by tail
    tail_.store(t + 1, std::memory_order_release);
    return true;
  }

  // Makes g the next to run; returns whom it displaced (put() him), or null.
  T* put_next(T* g) { return next_.exchange(g, std::memory_order_acq_rel); }

  // Anybody: makes g the next to run if nobody is.
  bool offer_next(T* g) {
    T* none = nullptr;
    return next_.compare_exchange_strong(none, g, std::memory_order_acq_rel,
                                         std::memory_order_relaxed);
  }

  // Takes runnext. A stealer may race, hence the CAS.
  T* get_next() {
    T* g = next_.load(std::memory_order_relaxed);
    if (g != nullptr && next_.compare_exchange_strong(g, nullptr, std::memory_order_acquire,
                                                      std::memory_order_relaxed))
      return g;
    return nullptr;
  }

  T* get() {
    for (;;) {
      uint64_t h = head_.load(std::memory_order_acquire);
      uint32_t t = tail_.load(std::memory_order_relaxed);
      if (t == index(h)) return nullptr;
      T* g = ring_[index(h) % kSize].load(std::memory_order_relaxed);
      if (head_.compare_exchange_weak(h, h + 1, std::memory_order_release,
                                      std::memory_order_relaxed))
        return g;
    }
  }

  // Takes g back if it is the last one put and still here.
  bool take_last(const T* g) {
    uint64_t h = head_.load(std::memory_order_acquire);
    uint32_t t = tail_.load(std::memory_order_relaxed);
    if (t == index(h) || ring_[(t - 1) % kSize].load(std::memory_order_relaxed) != g) return false;
    tail_.store(t - 1, std::memory_order_release);
    // Release: whoever reads the new count reads the new tail after it.
    while (!head_.compare_exchange_weak(h, h + kOneTaken, std::memory_order_acq_rel,
                                        std::memory_order_acquire))
      if (index(h) == t) {  // thieves took all
        tail_.store(t, std::memory_order_release);
        return false;
      }
    return true;
  }

  // Owner, when put() says full: takes kHalf items off the head into out[].
  // Returns 0 when a stealer made room meanwhile. The check is not put()'s over again:
  // since then thieves may have taken so many that half would reach past the tail.
  uint32_t take_half(T** out) {
    uint64_t h = head_.load(std::memory_order_acquire);
    if (tail_.load(std::memory_order_relaxed) - index(h) < kSize) return 0;
    for (uint32_t i = 0; i < kHalf; i++)
      out[i] = ring_[(index(h) + i) % kSize].load(std::memory_order_relaxed);
    if (!head_.compare_exchange_strong(h, h + kHalf, std::memory_order_release,
                                       std::memory_order_relaxed))
      return 0;
    return kHalf;
  }

  // Moves half of `victim` (rounded up) into this empty-enough queue and returns one of
  // them to run now. Caller owns *this. Null when there was nothing to take.
  T* steal(RunQ& victim, bool take_next) {
    for (;;) {
      uint64_t h = victim.head_.load(std::memory_order_acquire);
      uint32_t n = count(index(h), victim.tail_.load(std::memory_order_acquire));
      n -= n / 2;
      if (n == 0) return take_next ? victim.get_next() : nullptr;
      if (n > kHalf) continue;  // head and tail were read at different moments
      uint32_t mine = tail_.load(std::memory_order_relaxed);
      for (uint32_t i = 0; i < n; i++)
        ring_[(mine + i) % kSize].store(
            victim.ring_[(index(h) + i) % kSize].load(std::memory_order_relaxed),
            std::memory_order_relaxed);
      if (!victim.head_.compare_exchange_strong(h, h + n, std::memory_order_release,
                                                std::memory_order_relaxed))
        continue;
      n--;
      T* g = ring_[(mine + n) % kSize].load(std::memory_order_relaxed);
      if (n != 0) tail_.store(mine + n, std::memory_order_release);
      return g;
    }
  }

  bool empty() const {
    return ring_empty() && next_.load(std::memory_order_acquire) == nullptr;
  }
  bool ring_empty() const {
    return index(head_.load(std::memory_order_acquire)) == tail_.load(std::memory_order_acquire);
  }
  // Owner: the place behind the last one put. Anybody: whether one put before `place` is
  // still here (for some 2^31 puts).
  uint32_t place() const { return tail_.load(std::memory_order_relaxed); }
  bool holds_before(uint32_t place) const {
    uint32_t n = place - index(head_.load(std::memory_order_relaxed));
    return n - 1 < kSize;
  }
  bool has_next() const { return next_.load(std::memory_order_relaxed) != nullptr; }
  uint32_t size() const {
    return count(index(head_.load(std::memory_order_relaxed)), tail_.load(std::memory_order_relaxed));
  }

 private:
  static constexpr uint64_t kOneTaken = uint64_t{1} << 32;
  static uint32_t index(uint64_t head) { return static_cast<uint32_t>(head); }
  // The owner may be in take_last, with tail below head for a moment.
  static uint32_t count(uint32_t head, uint32_t tail) {
    uint32_t n = tail - head;
    return n + 1 == 0 ? 0 : n;
  }

  // The index in the lower half; above it what take_last counts (and what the index carries over).
  alignas(kCacheLine) Atomic<uint64_t> head_{0};
  Atomic<uint32_t> tail_{0};
  Atomic<T*> next_{nullptr};
  Atomic<T*> ring_[kSize]{};
};

}  // namespace weft

// sem.cc - unnamed private semaphores over gfutex; others are libc's.
//
// glibc's object: a 64-bit word [waiters:32 | value:32], then the futex flag that tells
// private (0) from process-shared and named ones. Post adds one; where the word shows
// waiters it gives the token to the first of them instead, in FIFO order, under the
// queue's lock, and takes it out of the count. A waiter registers in one step with finding
// no token, so either post sees the waiter or the waiter the token. The count of waiters changes
// under the queue's lock only: others exchange the whole word for one with the same count.
//
// sem_post may be called from a signal handler: it enters gfutex, which keeps handlers out
// (gfutex.h), and before that is one CAS.
#include "preload/api.h"
#include "preload/interrupt.h"
#include "sched/gfutex_line.h"

namespace weft {
namespace {

struct Sem {  // glibc's struct new_sem
  std::atomic<uint64_t> word;
  int shared;
  int pad;
};
static_assert(sizeof(Sem) <= sizeof(sem_t));

constexpr uint64_t kOneWaiter = uint64_t{1} << 32;

Sem* sem_of(sem_t* s) { return reinterpret_cast<Sem*>(s); }

bool take(Sem* s) {
  uint64_t w = s->word.load(std::memory_order_relaxed);
  while (static_cast<uint32_t>(w) != 0)
    if (s->word.compare_exchange_weak(w, w - 1, std::memory_order_acquire,
                                      std::memory_order_relaxed))
      return true;
  return false;
}

WEFT_INLINE bool wait_if_none(Sem* s) {
  uint64_t w = s->word.load(std::memory_order_relaxed);
  while (static_cast<uint32_t>(w) == 0)
    if (s->word.compare_exchange_weak(w, w + kOneWaiter, std::memory_order_acq_rel,
                                      std::memory_order_relaxed))
      return true;
  return false;
}

// 0 or an errno value. Sleeps inside a kGoOn-free wait: the value tells all, so a handler
// may even jump out.
WEFT_INLINE int wait(Sem* s, Thread* t, uint64_t deadline_ns) {
  Interrupt seen(t);
  for (;;) {
    Waiter w;
    w.counter = reinterpret_cast<std::atomic<uint32_t>*>(&s->word) + 1;
    if (gfutex_table::enqueue(&w, s, Wait::kSem, true, [&] { return wait_if_none(s); })) {
      int r = gfutex_table::sleep(&w, deadline_ns);
      if (r == 0) return 0;  // given a token
      if (r == -ETIMEDOUT) return take(s) ? 0 : ETIMEDOUT;
      if (r == -EINTR) {
        cancel_point();
        if (seen.ends_wait(deadline_ns != kNever)) return EINTR;
      }
    }
    if (take(s)) return 0;
  }
}

// One more, without a waiter: those that the word counts have given up just now.
WEFT_COLD int add_one(Sem* s) {
  uint64_t v = s->word.load(std::memory_order_relaxed);
  do {
    if (static_cast<uint32_t>(v) == SEM_VALUE_MAX) return EOVERFLOW;
  } while (!s->word.compare_exchange_weak(v, v + 1, std::memory_order_release,
                                          std::memory_order_relaxed));
  return 0;
}

int answer(int err) {
  if (WEFT_LIKELY(err == 0)) return 0;
  errno = err;
  return -1;
}

int wait_until(sem_t* ps, clockid_t clock, const struct timespec* abs) {
  Sem* s = sem_of(ps);
  Thread* t = this_thread();
  check_cancel(t);
  if (take(s)) return 0;
  if (abs->tv_sec < 0) return answer(ETIMEDOUT);
  return answer(wait(s, t, deadline_from(clock, abs)));
}

}  // namespace
}  // namespace weft

using namespace weft;

WEFT_EXPORT int sem_post(sem_t* ps) {
  Sem* s = sem_of(ps);
  if (WEFT_UNLIKELY(s->shared != 0)) return real().sem_post(ps);
  uint64_t w = s->word.load(std::memory_order_relaxed);
  while (w < kOneWaiter) {
    if (WEFT_UNLIKELY(static_cast<uint32_t>(w) == SEM_VALUE_MAX)) return answer(EOVERFLOW);
    if (s->word.compare_exchange_weak(w, w + 1, std::memory_order_release,
                                      std::memory_order_relaxed))
      return 0;
  }
  int err = 0;
  // With a waiter the token is its own (unlink has taken it out of the count).
  gfutex_table::wake_one(s, [&](Waiter* first, bool) {
    if (WEFT_UNLIKELY(first == nullptr)) err = add_one(s);
    return true;
  });
  return answer(err);
}

WEFT_EXPORT int sem_trywait(sem_t* ps) {
  Sem* s = sem_of(ps);
  if (WEFT_UNLIKELY(s->shared != 0)) return real().sem_trywait(ps);
  return answer(take(s) ? 0 : EAGAIN);
}

WEFT_EXPORT int sem_wait(sem_t* ps) {
  Sem* s = sem_of(ps);
  if (WEFT_UNLIKELY(s->shared != 0)) {
    cancel_point();
    return in_libc_cancel_point([&] { return real().sem_wait(ps); });
  }
  Thread* t = this_thread();
  check_cancel(t);
  if (take(s)) return 0;
  return answer(wait(s, t, kNever));
}

WEFT_EXPORT int sem_timedwait(sem_t* ps, const struct timespec* abs) {
  if (!timespec_ok(abs)) return answer(EINVAL);
  if (WEFT_UNLIKELY(sem_of(ps)->shared != 0)) {
    cancel_point();
    return in_libc_cancel_point([&] { return real().sem_timedwait(ps, abs); });
  }
  return wait_until(ps, CLOCK_REALTIME, abs);
}

WEFT_EXPORT int sem_clockwait(sem_t* ps, clockid_t clock, const struct timespec* abs) {
  if (clock != CLOCK_REALTIME && clock != CLOCK_MONOTONIC) return answer(EINVAL);
  if (!timespec_ok(abs)) return answer(EINVAL);
  if (WEFT_UNLIKELY(sem_of(ps)->shared != 0)) {
    cancel_point();
    return in_libc_cancel_point([&] { return real().sem_clockwait(ps, clock, abs); });
  }
  return wait_until(ps, clock, abs);
}

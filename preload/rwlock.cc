// rwlock.cc - private read-write locks over gfutex; process-shared ones are libc's, wired.
//
// Fields of glibc's object that we use: __readers holds the word below, __writers the
// number of queued writers (guarded by the queue's lock), __cur_writer, __shared, __flags.
//
//   word = [readers:29 | 0 | queued | writer]
// writer   held for writing
// queued   somebody may wait in gfutex; then the last holder to leave does not free the
//          lock: under the queue's lock it passes it on to those it chooses, all in one
//          step. Arrivals decide under the same lock whether to queue.
// Invariant: while anybody is queued (and has not given up), somebody holds the lock.
//
// Who goes first (glibc's behaviour, by __flags):
//   prefer reader (0)     after a writer: all queued readers, else a writer
//   prefer writer (1)     after a writer: a writer, else all readers
//   ... nonrecursive (2)  as 1, and readers queue behind a queued writer
// After the last reader it is a writer in any case: readers only wait behind writers.
// Nobody is a cancellation point. A signal handler runs and the wait goes on.
#include "preload/cancel.h"
#include "preload/mutex.h"
#include "preload/wire.h"

namespace weft {
namespace {

constexpr uint32_t kWriter = 1, kQueued = 2, kReader = 8;
constexpr uint32_t kReadersMax = 1u << 31;  // glibc's: the word from where rdlock gives EAGAIN
constexpr uint32_t kNonrecursive = PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP;
constexpr uint32_t kTagReader = 1, kTagWriter = 2;
constexpr uint32_t kTagMask = 0xff;

struct Rwlock {  // glibc's struct __pthread_rwlock_arch_t
  std::atomic<uint32_t> word;
  std::atomic<uint32_t> writers;
  uint32_t unused[4];
  std::atomic<uint32_t> cur_writer;
  int shared;
  uint64_t unused2[2];
  uint32_t flags;
};
static_assert(sizeof(Rwlock) <= sizeof(pthread_rwlock_t));
static_assert(offsetof(Rwlock, cur_writer) ==
                  offsetof(struct __pthread_rwlock_arch_t, __cur_writer) &&
              offsetof(Rwlock, shared) == offsetof(struct __pthread_rwlock_arch_t, __shared) &&
              offsetof(Rwlock, flags) == offsetof(struct __pthread_rwlock_arch_t, __flags));

Rwlock* lock_of(pthread_rwlock_t* l) { return reinterpret_cast<Rwlock*>(l); }

bool cas(Rwlock* l, uint32_t& from, uint32_t to) {
  return l->word.compare_exchange_weak(from, to, std::memory_order_acq_rel,
                                       std::memory_order_relaxed);
}

bool reader_must_wait(const Rwlock* l, uint32_t v) {
  if ((v & kWriter) != 0) return true;
  return l->flags == kNonrecursive && (v & kQueued) != 0 && v >= kReader &&
         l->writers.load(std::memory_order_relaxed) != 0;
}

// 0, EBUSY or EAGAIN (too many readers).
int try_read(Rwlock* l) {
  uint32_t v = l->word.load(std::memory_order_relaxed);
  do {
    if (reader_must_wait(l, v)) return EBUSY;
    if (v + kReader >= kReadersMax) return EAGAIN;
  } while (!cas(l, v, v + kReader));
  return 0;
}

bool try_write(Rwlock* l) {
  uint32_t v = l->word.load(std::memory_order_relaxed);
  while ((v & ~kQueued) == 0)
    if (cas(l, v, v | kWriter)) return true;
  return false;
}

// ---------------------------------------------------------------- queueing

struct Asker {
  Rwlock* lock;
  bool write;
  int result = EBUSY;
};

void add_writers(Rwlock* l, uint32_t n) {  // under the queue's lock
  l->writers.store(l->writers.load(std::memory_order_relaxed) + n, std::memory_order_relaxed);
}

// Under the queue's lock: takes the lock after all, or marks it and waits.
bool must_queue(void* arg) {
  auto* a = static_cast<Asker*>(arg);
  Rwlock* l = a->lock;
  if (a->write) add_writers(l, 1);  // before kQueued shows
  uint32_t v = l->word.load(std::memory_order_relaxed);
  for (;;) {
    bool busy = a->write ? (v & ~kQueued) != 0 : reader_must_wait(l, v);
    if (!busy && !a->write && v + kReader >= kReadersMax) {
      a->result = EAGAIN;
      return false;
    }
    if (busy ? cas(l, v, v | kQueued) : cas(l, v, a->write ? v | kWriter : v + kReader)) {
      if (busy) return true;
      if (a->write) add_writers(l, ~0u);
      a->result = 0;
      return false;
    }
  }
}

struct Grant {
  Rwlock* lock;
  bool after_writer;
};

bool any_of(const WaitQueue& q, uint32_t tag) {
  for (Waiter* w = q.first(); w != nullptr; w = q.next(w))
    if ((w->tag & kTagMask) == tag) return true;
  return false;
}

bool grant_writer(WaitQueue& q) {
  for (Waiter* w = q.first(); w != nullptr;) {
    Waiter* next = q.next(w);
    if ((w->tag & kTagMask) == kTagWriter && q.wake(w)) return true;
    w = next;
  }
  return false;
}

uint32_t grant_readers(WaitQueue& q) {
  uint32_t n = 0;
  for (Waiter* w = q.first(); w != nullptr;) {
    Waiter* next = q.next(w);
    if ((w->tag & kTagMask) == kTagReader && q.wake(w)) n++;
    w = next;
  }
  return n;
}

// A holder leaves and saw kQueued. While it chooses, the word says "writer": arrivals queue,
// and for that they need the lock we hold. So the final word is a plain store.
void pass_on(WaitQueue& q, void* arg) {
  auto* a = static_cast<Grant*>(arg);
  Rwlock* l = a->lock;
  if (!a->after_writer) {
    uint32_t v = l->word.load(std::memory_order_relaxed);
    for (;;) {
      bool last = v - kReader < kReader;  // another may have joined since leave() looked
      if (cas(l, v, last ? kWriter | kQueued : v - kReader)) {
        if (!last) return;
        break;
      }
    }
  }
  uint32_t next = 0;
  if (a->after_writer && l->flags == PTHREAD_RWLOCK_PREFER_READER_NP && any_of(q, kTagReader))
    next = grant_readers(q) * kReader;
  if (next == 0 && grant_writer(q)) next = kWriter;
  if (next == 0) next = grant_readers(q) * kReader;
  if (q.first() != nullptr) next |= kQueued;
  l->word.store(next, std::memory_order_release);
}

// A waiting writer has given up: readers that queued behind it may go.
void regrant(WaitQueue& q, void* arg) {
  auto* l = static_cast<Rwlock*>(arg);
  uint32_t v = l->word.load(std::memory_order_relaxed);
  if ((v & kWriter) != 0 || v < kReader || any_of(q, kTagWriter)) return;
  // kQueued is set, so the last reader cannot leave while we hold the queue's lock.
  uint32_t n = grant_readers(q);
  if (n != 0) l->word.fetch_add(n * kReader, std::memory_order_acq_rel);
}

int wait(Rwlock* l, bool write, uint64_t deadline_ns) {
  for (;;) {
    Asker a{l, write};
    Waiter w;
    w.tag = write ? kTagWriter : kTagReader;
    if (write) w.counter = &l->writers;
    if (!gfutex_enqueue(&w, l, Wait::kRwlock, true, must_queue, &a)) return a.result;
    int r = gfutex_sleep(&w, deadline_ns);
    if (r == 0) return 0;  // granted
    if (write) gfutex_visit(l, regrant, l);
    if (r == -ETIMEDOUT) return ETIMEDOUT;
  }
}

// ---------------------------------------------------------------- the four operations

struct Until {
  clockid_t clock = CLOCK_REALTIME;
  const struct timespec* abs = nullptr;
};

bool bad(const Until& u) {
  return u.abs != nullptr &&
         ((u.clock != CLOCK_REALTIME && u.clock != CLOCK_MONOTONIC) || !timespec_ok(u.abs));
}

uint64_t deadline_of(const Until& u) {
  return u.abs == nullptr ? kNever : deadline_from(u.clock, u.abs);
}

bool i_write(const Rwlock* l) {
  return l->cur_writer.load(std::memory_order_relaxed) == self_id();
}

int read_lock(Rwlock* l, Until u) {
  if (bad(u)) return EINVAL;
  if (i_write(l)) return EDEADLK;
  int r = try_read(l);
  return r == EBUSY ? wait(l, false, deadline_of(u)) : r;
}

int write_lock(Rwlock* l, Until u) {
  if (bad(u)) return EINVAL;
  if (i_write(l)) return EDEADLK;
  if (!try_write(l))
    if (int err = wait(l, true, deadline_of(u))) return err;
  l->cur_writer.store(self_id(), std::memory_order_relaxed);
  return 0;
}

void leave(Rwlock* l, bool writer) {
  uint32_t v = l->word.load(std::memory_order_relaxed);
  uint32_t hold = writer ? kWriter : kReader;
  for (;;) {
    if (!writer && v < kReader) return;  // was not locked
    bool last = writer || v - kReader < kReader;
    if (last && (v & kQueued) != 0) {
      Grant a{l, writer};
      gfutex_visit(l, pass_on, &a);
      return;
    }
    if (cas(l, v, v - hold)) return;
  }
}

}  // namespace
}  // namespace weft

using namespace weft;

// A process-shared lock tells its writer by a thread id that must be unique in all processes:
// the kernel's, hence wired.
#define REAL_IF_SHARED(l, call)                          \
  if (WEFT_UNLIKELY(lock_of(l)->shared != 0)) {          \
    wire_owner("a process-shared rwlock");               \
    return in_syscall([&] { return real().call; });      \
  }                                                      \
  static_assert(true)

WEFT_EXPORT int pthread_rwlock_rdlock(pthread_rwlock_t* l) {
  REAL_IF_SHARED(l, pthread_rwlock_rdlock(l));
  return read_lock(lock_of(l), {});
}

WEFT_EXPORT int pthread_rwlock_timedrdlock(pthread_rwlock_t* l, const struct timespec* abs) {
  REAL_IF_SHARED(l, pthread_rwlock_timedrdlock(l, abs));
  return read_lock(lock_of(l), {CLOCK_REALTIME, abs});
}

WEFT_EXPORT int pthread_rwlock_clockrdlock(pthread_rwlock_t* l, clockid_t clock,
                                           const struct timespec* abs) {
  REAL_IF_SHARED(l, pthread_rwlock_clockrdlock(l, clock, abs));
  return read_lock(lock_of(l), {clock, abs});
}

WEFT_EXPORT int pthread_rwlock_wrlock(pthread_rwlock_t* l) {
  REAL_IF_SHARED(l, pthread_rwlock_wrlock(l));
  return write_lock(lock_of(l), {});
}

WEFT_EXPORT int pthread_rwlock_timedwrlock(pthread_rwlock_t* l, const struct timespec* abs) {
  REAL_IF_SHARED(l, pthread_rwlock_timedwrlock(l, abs));
  return write_lock(lock_of(l), {CLOCK_REALTIME, abs});
}

WEFT_EXPORT int pthread_rwlock_clockwrlock(pthread_rwlock_t* l, clockid_t clock,
                                           const struct timespec* abs) {
  REAL_IF_SHARED(l, pthread_rwlock_clockwrlock(l, clock, abs));
  return write_lock(lock_of(l), {clock, abs});
}

WEFT_EXPORT int pthread_rwlock_tryrdlock(pthread_rwlock_t* l) {
  REAL_IF_SHARED(l, pthread_rwlock_tryrdlock(l));
  return try_read(lock_of(l));
}

WEFT_EXPORT int pthread_rwlock_trywrlock(pthread_rwlock_t* l) {
  REAL_IF_SHARED(l, pthread_rwlock_trywrlock(l));
  if (!try_write(lock_of(l))) return EBUSY;
  lock_of(l)->cur_writer.store(self_id(), std::memory_order_relaxed);
  return 0;
}

WEFT_EXPORT int pthread_rwlock_unlock(pthread_rwlock_t* pl) {
  if (WEFT_UNLIKELY(lock_of(pl)->shared != 0)) return real().pthread_rwlock_unlock(pl);
  Rwlock* l = lock_of(pl);
  bool writer = (l->word.load(std::memory_order_relaxed) & kWriter) != 0;  // also after a fork
  if (writer) l->cur_writer.store(0, std::memory_order_relaxed);
  leave(l, writer);
  return 0;
}

// Old names, which programs linked before glibc 2.34 may still ask for.
WEFT_EXPORT int __pthread_rwlock_rdlock(pthread_rwlock_t*)
    __attribute__((alias("pthread_rwlock_rdlock"), copy(pthread_rwlock_rdlock)));
WEFT_EXPORT int __pthread_rwlock_tryrdlock(pthread_rwlock_t*)
    __attribute__((alias("pthread_rwlock_tryrdlock"), copy(pthread_rwlock_tryrdlock)));
WEFT_EXPORT int __pthread_rwlock_wrlock(pthread_rwlock_t*)
    __attribute__((alias("pthread_rwlock_wrlock"), copy(pthread_rwlock_wrlock)));
WEFT_EXPORT int __pthread_rwlock_trywrlock(pthread_rwlock_t*)
    __attribute__((alias("pthread_rwlock_trywrlock"), copy(pthread_rwlock_trywrlock)));
WEFT_EXPORT int __pthread_rwlock_unlock(pthread_rwlock_t*)
    __attribute__((alias("pthread_rwlock_unlock"), copy(pthread_rwlock_unlock)));

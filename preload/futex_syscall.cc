// futex_syscall.cc - futex(2) for Gs: Rust, C++20 atomic waits, userspace RCU and the like.
//
// Private operations go to gfutex, where foreign threads wait too. A word may at the same
// time be waited for in the kernel, by code that has its syscall instruction inline or by
// futex_waitv: a wake that found fewer than it wanted asks the kernel for the rest, which
// costs what it costs natively. (The other way round, an inline wake of a word that somebody
// waits for through syscall(), would be lost; no such program is known.)
//
// Operations without the private flag may mean another process; the kernel serves both
// cases, inside the syscall protocol. The words of private PI locks hold what gettid answers,
// so the kernel cannot look after them: we do, handing over in FIFO order (Gs have no
// priorities to inherit). Other PI operations go to the kernel, wired.
//
// Checked as the kernel does: alignment, bitset 0, timespec, counts. An address that cannot
// be one gives EFAULT; a wait on any other unmapped address faults instead.
#include "preload/futex_syscall.h"

#include <limits.h>
#include <linux/futex.h>

#include "preload/interrupt.h"
#include "preload/wire.h"

namespace weft {
namespace {

using Word = std::atomic<uint32_t>;

constexpr uintptr_t kUserEnd = uintptr_t{1} << 47;
constexpr int kFlags = FUTEX_PRIVATE_FLAG | FUTEX_CLOCK_REALTIME;

struct Call {
  explicit Call(const long x[6])
      : a(x), word(reinterpret_cast<Word*>(x[0])), cmd(static_cast<int>(x[1]) & ~kFlags),
        realtime((x[1] & FUTEX_CLOCK_REALTIME) != 0), val(static_cast<uint32_t>(x[2])),
        ts(reinterpret_cast<const struct timespec*>(x[3])),
        word2(reinterpret_cast<Word*>(x[4])), val3(static_cast<uint32_t>(x[5])) {}
  const long* a;
  Word* word;
  int cmd;
  bool realtime;
  uint32_t val;
  const struct timespec* ts;
  Word* word2;
  uint32_t val3;
};

long bad_address(const void* p) {
  auto v = reinterpret_cast<uintptr_t>(p);
  if ((v & 3) != 0) return -EINVAL;
  return v < kPageBytes || v >= kUserEnd ? -EFAULT : 0;
}

long kernel(const long a[6]) { return sys_call(SYS_futex, a[0], a[1], a[2], a[3], a[4], a[5]); }

uint32_t kernel_wake(Word* word, uint32_t n, uint32_t bitset) {
  long r = sys_call(SYS_futex, sys_arg(word), FUTEX_WAKE_BITSET | FUTEX_PRIVATE_FLAG,
                    static_cast<long>(n > INT_MAX ? INT_MAX : n), 0, 0,
                    static_cast<long>(bitset));
  return r < 0 ? 0 : static_cast<uint32_t>(r);
}

long wait(const Call& c, uint32_t bitset) {
  if (bitset == 0) return -EINVAL;
  uint64_t deadline = kNever;
  if (c.ts != nullptr) {
    if (long err = bad_address(c.ts)) return err == -EINVAL ? -EFAULT : err;
    if (c.ts->tv_sec < 0 || !timespec_ok(c.ts)) return -EINVAL;
    deadline = c.cmd == FUTEX_WAIT ? deadline_in(c.ts)
                                   : deadline_from(c.realtime ? CLOCK_REALTIME : CLOCK_MONOTONIC,
                                                   c.ts);
  }
  if (c.word->load(std::memory_order_seq_cst) != c.val) return -EAGAIN;
  Interrupt seen(this_thread());
  for (;;) {
    long r = gfutex_wait(c.word, c.val, deadline, Wait::kFutex, true, bitset);
    // A handler with SA_RESTART restarts an untimed wait: then EAGAIN tells of a change.
    if (r != -EINTR || seen.ends_wait(deadline != kNever)) return r;
  }
}

long wake(const Call& c, uint32_t bitset) {
  if (bitset == 0) return -EINVAL;
  auto n = static_cast<int>(c.val) <= 0 ? 1 : c.val;  // the kernel wakes one for 0 too
  uint32_t woken = gfutex_wake(c.word, n, bitset);
  if (woken < n) woken += kernel_wake(c.word, n - woken, bitset);
  return woken;
}

long requeue(const Call& c, bool compare) {
  if (long err = bad_address(c.word2)) return err;
  auto n_move = static_cast<int>(c.a[3]);
  if (static_cast<int>(c.val) < 0 || n_move < 0) return -EINVAL;
  WakeResult r;
  if (gfutex_requeue(c.word, c.val, c.word2, static_cast<uint32_t>(n_move),
                     compare ? c.word : nullptr, c.val3, &r) != 0)
    return -EAGAIN;
  // Kernel waiters are woken rather than moved: they look again.
  uint32_t left = c.val + static_cast<uint32_t>(n_move) - r.woken - r.requeued;
  return r.woken + r.requeued + (left != 0 ? kernel_wake(c.word, left, ~0u) : 0);
}

// FUTEX_WAKE_OP's operation on *word2: its old value.
uint32_t apply(Word* word, uint32_t op, bool* ok) {
  uint32_t kind = op >> 28 & 7;
  auto arg = static_cast<uint32_t>(static_cast<int32_t>(op << 8) >> 20);
  if ((op >> 28 & FUTEX_OP_OPARG_SHIFT) != 0) arg = 1u << (arg & 31);
  *ok = kind <= FUTEX_OP_XOR;
  if (!*ok) return 0;
  uint32_t old = word->load(std::memory_order_relaxed), next;
  do {
    switch (kind) {
      case FUTEX_OP_SET: next = arg; break;
      case FUTEX_OP_ADD: next = old + arg; break;
      case FUTEX_OP_OR: next = old | arg; break;
      case FUTEX_OP_ANDN: next = old & ~arg; break;
      default: next = old ^ arg; break;
    }
  } while (!word->compare_exchange_weak(old, next, std::memory_order_seq_cst));
  return old;
}

bool compares(uint32_t old, uint32_t op, bool* ok) {
  auto a = static_cast<int32_t>(old);
  int32_t b = static_cast<int32_t>(op << 20) >> 20;
  *ok = true;
  switch (op >> 24 & 15) {
    case FUTEX_OP_CMP_EQ: return a == b;
    case FUTEX_OP_CMP_NE: return a != b;
    case FUTEX_OP_CMP_LT: return a < b;
    case FUTEX_OP_CMP_GE: return a >= b;
    case FUTEX_OP_CMP_LE: return a <= b;
    case FUTEX_OP_CMP_GT: return a > b;
    default: *ok = false; return false;
  }
}

long wake_op(const Call& c) {
  if (long err = bad_address(c.word2)) return err;
  bool ok;
  uint32_t old = apply(c.word2, c.val3, &ok);
  if (!ok) return -ENOSYS;
  bool second = compares(old, c.val3, &ok);
  if (!ok) return -ENOSYS;
  long woken = wake(c, ~0u);
  if (second) {
    auto n = static_cast<uint32_t>(c.a[3]);
    uint32_t more = gfutex_wake(c.word2, n);
    if (more < n) more += kernel_wake(c.word2, n - more, ~0u);
    woken += more;
  }
  return woken;
}

// ---------------------------------------------------------------- private PI locks

uint32_t my_tid() {
  G* g = t_g;
  return g != nullptr && !g->is_g0 ? g->vtid : static_cast<uint32_t>(sys_gettid());
}

bool still_waiting(void* word) {
  uint32_t v = static_cast<Word*>(word)->load(std::memory_order_seq_cst);
  return (v & FUTEX_WAITERS) != 0 && (v & FUTEX_TID_MASK) != 0;
}

long lock_pi(const Call& c, bool wait_for_it) {
  uint32_t me = my_tid();
  uint64_t deadline = kNever;
  if (wait_for_it && c.ts != nullptr) {
    if (c.ts->tv_sec < 0 || !timespec_ok(c.ts)) return -EINVAL;
    deadline = deadline_from(c.cmd == FUTEX_LOCK_PI ? CLOCK_REALTIME : CLOCK_MONOTONIC, c.ts);
  }
  for (;;) {
    uint32_t v = c.word->load(std::memory_order_acquire);
    if ((v & FUTEX_TID_MASK) == me) return -EDEADLK;
    if ((v & FUTEX_TID_MASK) == 0) {
      if (c.word->compare_exchange_strong(v, v | me, std::memory_order_acq_rel)) return 0;
      continue;
    }
    if (!wait_for_it) return -EAGAIN;
    if ((v & FUTEX_WAITERS) == 0 &&
        !c.word->compare_exchange_strong(v, v | FUTEX_WAITERS, std::memory_order_acq_rel))
      continue;
    Waiter w;
    w.arg = reinterpret_cast<void*>(uintptr_t{me});
    if (!gfutex_enqueue(&w, c.word, Wait::kFutex, true, still_waiting, c.word)) continue;
    long r = gfutex_sleep(&w, deadline);
    if (r != -EINTR) return r;  // 0: the word holds our tid
  }
}

bool give_to(Waiter* w, bool more, void* arg) {
  uint32_t v = w == nullptr ? 0 : static_cast<uint32_t>(reinterpret_cast<uintptr_t>(w->arg));
  static_cast<Word*>(arg)->store(v | (more ? FUTEX_WAITERS : 0), std::memory_order_release);
  return true;
}

long unlock_pi(const Call& c) {
  if ((c.word->load(std::memory_order_relaxed) & FUTEX_TID_MASK) != my_tid()) return -EPERM;
  gfutex_wake_one(c.word, give_to, c.word);
  return 0;
}

// Not ours to decide: shared words, PI, unknown operations.
long in_kernel(const Call& c) {
  switch (c.cmd) {
    case FUTEX_WAIT:
    case FUTEX_WAIT_BITSET:
      return in_syscall_block([&] { return kernel(c.a); });
    case FUTEX_LOCK_PI:
    case FUTEX_LOCK_PI2:
    case FUTEX_TRYLOCK_PI:
    case FUTEX_UNLOCK_PI:
    case FUTEX_WAIT_REQUEUE_PI:
    case FUTEX_CMP_REQUEUE_PI:
      wire_thread("a priority-inheriting futex");
      return kernel(c.a);
    default:
      return kernel(c.a);
  }
}

}  // namespace

long weft_futex_syscall(const long a[6]) {
  Call c(a);
  bool ours = (a[1] & FUTEX_PRIVATE_FLAG) != 0;
  if (c.realtime && c.cmd != FUTEX_WAIT_BITSET) ours = false;  // the kernel says what it means
  if (!ours) return in_kernel(c);
  switch (c.cmd) {
    case FUTEX_WAIT:
    case FUTEX_WAIT_BITSET:
      if (long err = bad_address(c.word)) return err;
      return wait(c, c.cmd == FUTEX_WAIT ? ~0u : c.val3);
    case FUTEX_WAKE:
    case FUTEX_WAKE_BITSET:
      if ((a[0] & 3) != 0) return -EINVAL;
      return wake(c, c.cmd == FUTEX_WAKE ? ~0u : c.val3);
    case FUTEX_REQUEUE:
    case FUTEX_CMP_REQUEUE:
      if (long err = bad_address(c.word)) return err;
      return requeue(c, c.cmd == FUTEX_CMP_REQUEUE);
    case FUTEX_WAKE_OP:
      if ((a[0] & 3) != 0) return -EINVAL;
      return wake_op(c);
    case FUTEX_LOCK_PI:
    case FUTEX_LOCK_PI2:
    case FUTEX_TRYLOCK_PI:
    case FUTEX_UNLOCK_PI:
      if (long err = bad_address(c.word)) return err;
      return c.cmd == FUTEX_UNLOCK_PI ? unlock_pi(c) : lock_pi(c, c.cmd != FUTEX_TRYLOCK_PI);
    default:
      return in_kernel(c);
  }
}

}  // namespace weft

// attr.cc - pthread_attr_t: read for new threads, written for pthread_getattr_np.
//
// The attribute functions themselves stay libc's; they only write the object. Read here
// through them, so its layout stays libc's business. A stack's size is told in whole pages,
// where libc rounds down to what static TLS is aligned to.
#include <limits.h>
#include <string.h>

#include "preload/api.h"
#include "preload/knobs.h"
#include "preload/spawn_attr.h"
#include "preload/thread.h"
#include "preload/wire.h"

namespace weft {
namespace {

std::atomic<size_t> default_stack{0};
std::atomic<size_t> default_guard{4096};
std::atomic<bool> default_native{false};  // the defaults are a kernel thread's
std::atomic<bool> default_detached{false}, default_has_mask{false};
std::atomic<uint64_t> default_mask{0};

bool is_explicit(const pthread_attr_t* attr) {
  int inherit = PTHREAD_INHERIT_SCHED;
  pthread_attr_getinheritsched(attr, &inherit);
  return inherit == PTHREAD_EXPLICIT_SCHED;
}

bool wants_kernel_thread(const pthread_attr_t* attr) {
  int policy = SCHED_OTHER;
  struct sched_param p = {};
  pthread_attr_getschedpolicy(attr, &policy);
  pthread_attr_getschedparam(attr, &p);
  // A priority that SCHED_OTHER does not have: EINVAL, by libc.
  if (is_explicit(attr) && (policy != SCHED_OTHER || p.sched_priority != 0)) return true;
  // Without an affinity of its own the object answers with every bit set, of as many as are
  // asked for; with one that reaches beyond them it answers EINVAL.
  cpu_set_t set;
  if (pthread_attr_getaffinity_np(attr, sizeof set, &set) != 0) return true;
  uint64_t words[sizeof set / 8], all = ~uint64_t{0};
  memcpy(words, &set, sizeof set);
  for (uint64_t w : words) all &= w;
  if (all == ~uint64_t{0}) return false;
  // As pthread_getattr_np tells it: what the thread would have anyway.
  cpu_set_t now = {};
  return sys_call(SYS_sched_getaffinity, 0, sizeof now, sys_arg(&now)) < 0 || !CPU_EQUAL(&set, &now);
}

bool is_detached(const pthread_attr_t* attr) {
  int detach = PTHREAD_CREATE_JOINABLE;
  pthread_attr_getdetachstate(attr, &detach);
  return detach == PTHREAD_CREATE_DETACHED;
}

// False: it has none.
bool mask_of(const pthread_attr_t* attr, uint64_t* mask) {
  sigset_t set;
  if (pthread_attr_getsigmask_np(attr, &set) != 0) return false;
  memcpy(mask, &set, sizeof *mask);
  return true;
}

void read_default() {
  pthread_attr_t d;
  size_t stack = size_t{8} << 20, guard = 4096;
  bool native = false, detached = false, has_mask = false;
  uint64_t mask = 0;
  if (real().pthread_getattr_default_np(&d) == 0) {
    pthread_attr_getstacksize(&d, &stack);
    pthread_attr_getguardsize(&d, &guard);
    native = wants_kernel_thread(&d);
    detached = is_detached(&d);
    has_mask = mask_of(&d, &mask);
    pthread_attr_destroy(&d);
  }
  if (knobs().stack_bytes != 0) stack = knobs().stack_bytes;
  default_guard.store(guard, std::memory_order_relaxed);
  default_native.store(native, std::memory_order_relaxed);
  default_detached.store(detached, std::memory_order_relaxed);
  default_mask.store(mask, std::memory_order_relaxed);
  default_has_mask.store(has_mask, std::memory_order_relaxed);
  default_stack.store(stack, std::memory_order_release);
}

// Attributes seen before: reading an object by libc's functions takes 240 instructions, of the 1350
// of a detached thread's whole life. Known are only those that equal, byte for byte, an object made
// here with a state, a size and a guard of that kind: they hold no pointer to anything more (an
// affinity, a mask), so what they say cannot change behind the bytes.
struct Known {
  unsigned char image[sizeof(pthread_attr_t)];
  size_t guard_bytes, stack_bytes;  // stack 0: the default
  bool detached;
};
constexpr uint32_t kMostKnown = 4;
Known known_attr[kMostKnown];
std::atomic<uint32_t> n_known{0};     // filled in for good: readers take no lock
std::atomic<bool> learning{false};

const Known* known(const pthread_attr_t* attr) {
  uint32_t n = n_known.load(std::memory_order_acquire);
  for (uint32_t i = 0; i < n; i++)
    if (memcmp(known_attr[i].image, attr, sizeof *attr) == 0) return &known_attr[i];
  return nullptr;
}

void learn(const pthread_attr_t* attr, Known k) {
  uint32_t n = n_known.load(std::memory_order_relaxed);
  if (n == kMostKnown) return;
  pthread_attr_t same;
  if (pthread_attr_init(&same) != 0) return;
  pthread_attr_setdetachstate(&same, k.detached ? PTHREAD_CREATE_DETACHED : PTHREAD_CREATE_JOINABLE);
  pthread_attr_setguardsize(&same, k.guard_bytes);
  if (k.stack_bytes != 0) pthread_attr_setstacksize(&same, k.stack_bytes);
  memcpy(k.image, &same, sizeof same);
  bool equal = memcmp(&same, attr, sizeof same) == 0;
  pthread_attr_destroy(&same);
  if (!equal || learning.exchange(true, std::memory_order_acquire)) return;
  n = n_known.load(std::memory_order_relaxed);
  if (n < kMostKnown && known(attr) == nullptr) {
    known_attr[n] = k;
    n_known.store(n + 1, std::memory_order_release);
  }
  learning.store(false, std::memory_order_release);
}

// The mask of CPUs, in as few bytes as the kernel takes: 0 or an error number.
int tell_affinity(pthread_t pt, pthread_attr_t* attr) {
  unsigned char bits[kMaskBytes];
  auto* set = reinterpret_cast<cpu_set_t*>(bits);
  size_t bytes = 32;
  int err = pthread_getaffinity_np(pt, bytes, set);
  while (err == EINVAL && bytes < sizeof bits) err = pthread_getaffinity_np(pt, bytes *= 2, set);
  return err != 0 ? err : pthread_attr_setaffinity_np(attr, bytes, set);
}

// A wired thread's real-time policy; of others there is nothing to tell.
void tell_policy(pthread_t pt, pthread_attr_t* attr) {
  struct sched_param p = {};
  int policy = SCHED_OTHER;
  if (pthread_getschedparam(pt, &policy, &p) != 0 || policy == SCHED_OTHER) return;
  pthread_attr_setschedpolicy(attr, policy);
  pthread_attr_setschedparam(attr, &p);
}

}  // namespace

void spawn_attr_forget_default() { default_stack.store(0, std::memory_order_relaxed); }

bool spawn_attr(const pthread_attr_t* attr, SpawnAttr* out) {
  if (default_stack.load(std::memory_order_acquire) == 0) read_default();
  out->stack_bytes = default_stack.load(std::memory_order_relaxed);
  out->guard_bytes = default_guard.load(std::memory_order_relaxed);
  if (attr == nullptr) {
    out->detached = default_detached.load(std::memory_order_relaxed);
    out->has_sigmask = default_has_mask.load(std::memory_order_relaxed);
    out->sigmask = default_mask.load(std::memory_order_relaxed);
    return !default_native.load(std::memory_order_relaxed);
  }
  if (const Known* k = known(attr)) {
    out->detached = k->detached;
    out->guard_bytes = k->guard_bytes;
    if (k->stack_bytes != 0) out->stack_bytes = k->stack_bytes;
    return true;
  }
  if (wants_kernel_thread(attr)) return false;
  out->detached = is_detached(attr);
  out->explicit_sched = is_explicit(attr);
  pthread_attr_getguardsize(attr, &out->guard_bytes);
  void* base = nullptr;
  size_t bytes = 0;
  pthread_attr_getstack(attr, &base, &bytes);
  // An object without a stack of the program's answers with 0 as the stack's upper end.
  if (reinterpret_cast<uintptr_t>(base) + bytes != 0) {
    out->user_stack = base;
    out->stack_bytes = bytes;
    out->guard_bytes = 0;
  } else if (bytes != 0) {
    out->stack_bytes = bytes;
  }
  out->has_sigmask = mask_of(attr, &out->sigmask);
  if (out->user_stack == nullptr && !out->explicit_sched && !out->has_sigmask)
    learn(attr, Known{{}, out->guard_bytes, bytes, out->detached});
  return true;
}

}  // namespace weft

using namespace weft;

// For garbage collectors above all: the stack reported contains every frame of the thread
// and begins where the guard ends (handlers of overflows compare the fault with it).
WEFT_EXPORT int pthread_getattr_np(pthread_t pt, pthread_attr_t* attr) {
  G* g = g_of(pt);
  if (g == nullptr || g->cls == nullptr) return real().pthread_getattr_np(pt, attr);
  Thread* t = thread_of(g);
  int err = pthread_attr_init(attr);
  if (err != 0) return err;
  pthread_attr_setstack(attr, g->stack_lo, t->stack_bytes);
  pthread_attr_setguardsize(attr, t->guard_bytes);
  bool detached = t->join.load(std::memory_order_relaxed) == kDetached;
  pthread_attr_setdetachstate(attr, detached ? PTHREAD_CREATE_DETACHED : PTHREAD_CREATE_JOINABLE);
  if (t->explicit_sched) pthread_attr_setinheritsched(attr, PTHREAD_EXPLICIT_SCHED);
  if (g->wired) tell_policy(pt, attr);
  err = tell_affinity(pt, attr);
  if (err != 0) pthread_attr_destroy(attr);
  return err;
}

WEFT_EXPORT int pthread_setattr_default_np(const pthread_attr_t* attr) {
  int r = real().pthread_setattr_default_np(attr);
  if (r == 0) spawn_attr_forget_default();
  return r;
}

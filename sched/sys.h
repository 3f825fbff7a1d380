// sys.h - raw system calls: `sys_name` returns the kernel's answer, -errno on failure.
//
// The third of the three names: `read` is what the program calls, real().read is
// libc's, sys_read is this. Nothing here touches errno, cancels or allocates, so
// any stack and any thread may call it.
#pragma once

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>

#include "sched/base.h"

namespace weft {

// Defined inline: the one place in C++ that issues a syscall instruction.
inline long sys_call(long nr, long a = 0, long b = 0, long c = 0, long d = 0, long e = 0,
                     long f = 0) {
  register long r10 __asm__("r10") = d;
  register long r8 __asm__("r8") = e;
  register long r9 __asm__("r9") = f;
  long ret;
  __asm__ volatile("syscall"
                   : "=a"(ret)
                   : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                   : "rcx", "r11", "memory");
  return ret;
}

template <class T>
inline long sys_arg(T v) {
  if constexpr (sizeof(T) == 8) {
    return __builtin_bit_cast(long, v);
  } else {
    return static_cast<long>(v);
  }
}

// Waits until *word != expected. `abs_deadline_ns` is CLOCK_MONOTONIC; kNever waits on.
inline long sys_futex_wait(std::atomic<uint32_t>* word, uint32_t expected,
                           uint64_t abs_deadline_ns = kNever) {
  struct timespec ts;
  struct timespec* tp = nullptr;
  if (abs_deadline_ns != kNever) {
    ts.tv_sec = static_cast<time_t>(abs_deadline_ns / 1000000000u);
    ts.tv_nsec = static_cast<long>(abs_deadline_ns % 1000000000u);
    tp = &ts;
  }
  return sys_call(SYS_futex, sys_arg(word), FUTEX_WAIT_BITSET | FUTEX_PRIVATE_FLAG,
                  static_cast<long>(expected), sys_arg(tp), 0,
                  static_cast<long>(FUTEX_BITSET_MATCH_ANY));
}
inline long sys_futex_wake(std::atomic<uint32_t>* word, int n) {
  return sys_call(SYS_futex, sys_arg(word), FUTEX_WAKE | FUTEX_PRIVATE_FLAG, n);
}
inline void sys_sched_yield() { sys_call(SYS_sched_yield); }
inline int sys_gettid() { return static_cast<int>(sys_call(SYS_gettid)); }
inline int sys_getpid() { return static_cast<int>(sys_call(SYS_getpid)); }
inline void sys_sleep_ns(uint64_t ns) {
  struct timespec ts = {static_cast<time_t>(ns / 1000000000u),
                        static_cast<long>(ns % 1000000000u)};
  sys_call(SYS_nanosleep, sys_arg(&ts));
}
inline void* sys_mmap(void* at, size_t n, int prot, int flags) {
  return reinterpret_cast<void*>(
      sys_call(SYS_mmap, sys_arg(at), sys_arg(n), prot, flags, -1, 0));
}
inline bool sys_failed(const void* p) { return reinterpret_cast<uintptr_t>(p) > ~uintptr_t{4095}; }
inline long sys_munmap(void* at, size_t n) { return sys_call(SYS_munmap, sys_arg(at), sys_arg(n)); }
inline long sys_madvise(void* at, size_t n, int advice) {
  return sys_call(SYS_madvise, sys_arg(at), sys_arg(n), advice);
}
// Kernel signal sets are 64 bits: bit s-1 is signal s. 32 and 33 are libc's own and never
// blocked: setuid's broadcast (33) waits for every thread.
constexpr uint64_t kAllSignals = ~(uint64_t{3} << 31);
inline long sys_sigprocmask(int how, const uint64_t* set, uint64_t* old) {
  return sys_call(SYS_rt_sigprocmask, how, sys_arg(set), sys_arg(old), 8);
}

}  // namespace weft

// base.h - the few words every engine file needs: checks, atomics, small types.
//
// The engine is freestanding: no libc call, no malloc, no errno, no exception.
// A CHECK stays on in release builds: a broken invariant is fatal at once, because
// a scheduler that goes on after one corrupts somebody else's stack.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace weft {

// Writes `what`, the event rings and the state of every G, M and P, then aborts.
[[noreturn]] void fatal(const char* what);

#define WEFT_STR2(x) #x
#define WEFT_STR(x) WEFT_STR2(x)
#define CHECK(cond)                                                             \
  do {                                                                          \
    if (__builtin_expect(!(cond), 0))                                           \
      ::weft::fatal(__FILE__ ":" WEFT_STR(__LINE__) ": CHECK(" #cond ") failed"); \
  } while (0)
#ifdef WEFT_DEBUG_CHECKS
#define DCHECK(cond) CHECK(cond)
#else
#define DCHECK(cond) ((void)0)
#endif

#define WEFT_LIKELY(x) __builtin_expect(!!(x), 1)
#define WEFT_UNLIKELY(x) __builtin_expect(!!(x), 0)

// In line whatever the compiler thinks: no frame is to stand above a switch that need not.
#define WEFT_INLINE inline __attribute__((always_inline))
#define WEFT_COLD __attribute__((noinline, cold))

constexpr size_t kCacheLine = 64;
constexpr size_t kPageBytes = 4096;
constexpr uint64_t kNever = ~uint64_t{0};  // a deadline that does not come

inline void cpu_relax() { __builtin_ia32_pause(); }
inline uint64_t tsc() { return __builtin_ia32_rdtsc(); }
inline void compiler_barrier() { std::atomic_signal_fence(std::memory_order_seq_cst); }

constexpr size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

// A small generator for steal order and chaos; never for secrets.
inline uint32_t next_random(uint32_t& s) {
  s ^= s << 13;
  s ^= s >> 17;
  s ^= s << 5;
  return s;
}

}  // namespace weft

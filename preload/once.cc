// once.cc - pthread_once over gfutex, in glibc's encoding of the word.
//
//   0 not yet; bit 1 done; bit 0 being initialised, by a thread of the fork generation in
//   the bits above. One of another generation is not here (it was cut off by fork): the
//   initialisation starts anew.
//
// The routine may be left by a cancel, by pthread_exit or by a C++ exception: then the word
// goes back to 0 and waiters try their luck. The unwinder tells us through a personality
// routine: weft_once_call is a frame whose personality does the reset in the clean-up
// phase and has nothing else to say. (A compiled clean-up would want libstdc++'s.)
#include "preload/mutex.h"

extern "C" {
// Calls fn. In assembly for its .cfi_personality; no clobbers beyond the call's own.
__attribute__((visibility("hidden"))) void weft_once_call(void (*fn)(void));
__attribute__((visibility("hidden"), used)) int weft_once_personality(int version, int actions,
                                                                      uint64_t cls, void* exc,
                                                                      void* context);
}

__asm__(
    "        .text\n"
    "        .p2align 4\n"
    "        .globl  weft_once_call\n"
    "        .hidden weft_once_call\n"
    "        .type   weft_once_call, @function\n"
    "weft_once_call:\n"
    "        .cfi_startproc\n"
    "        .cfi_personality 0x1b, weft_once_personality\n"  // pc-relative, 4 bytes
    "        endbr64\n"
    "        subq    $8, %rsp\n"
    "        .cfi_adjust_cfa_offset 8\n"
    "        callq   *%rdi\n"
    "        addq    $8, %rsp\n"
    "        .cfi_adjust_cfa_offset -8\n"
    "        ret\n"
    "        .cfi_endproc\n"
    "        .size   weft_once_call, . - weft_once_call\n");

namespace weft {
namespace {

constexpr uint32_t kInProgress = 1, kDone = 2, kGeneration = 4;
constexpr int kCleanupPhase = 2;     // _UA_CLEANUP_PHASE
constexpr int kContinueUnwind = 8;   // _URC_CONTINUE_UNWIND

using Word = std::atomic<uint32_t>;

// The initialisations that the calling thread is in, innermost first.
struct Running {
  Word* word;
  Running* outer;
};
thread_local constinit Running* t_running = nullptr;

void finish(Word* word, uint32_t value) {
  word->store(value, std::memory_order_release);
  gfutex_wake(word, ~0u);
}

__attribute__((noinline)) void once_slow(Word* word, void (*fn)(void)) {
  for (;;) {
    uint32_t v = word->load(std::memory_order_acquire);
    if ((v & kDone) != 0) return;
    uint32_t mine = fork_generation * kGeneration | kInProgress;
    if (v == mine) {
      gfutex_wait(word, mine, kNever, Wait::kOnce, true);
      continue;
    }
    if (!word->compare_exchange_strong(v, mine, std::memory_order_acq_rel,
                                       std::memory_order_relaxed))
      continue;
    Running r{word, t_running};
    t_running = &r;
    weft_once_call(fn);
    t_running = r.outer;
    finish(word, kDone);
    return;
  }
}

}  // namespace
}  // namespace weft

using namespace weft;

extern "C" int weft_once_personality(int, int actions, uint64_t, void*, void*) {
  if ((actions & kCleanupPhase) != 0 && t_running != nullptr) {
    Word* word = t_running->word;
    t_running = t_running->outer;
    finish(word, 0);
  }
  return kContinueUnwind;
}

WEFT_EXPORT int pthread_once(pthread_once_t* once, void (*fn)(void)) {
  auto* word = reinterpret_cast<Word*>(once);
  // Pairs with finish's release store.
  if (WEFT_LIKELY((word->load(std::memory_order_acquire) & kDone) != 0)) return 0;
  once_slow(word, fn);
  return 0;
}

// Old name, which programs linked before glibc 2.34 may still ask for.
WEFT_EXPORT int __pthread_once(pthread_once_t*, void (*)(void))
    __attribute__((alias("pthread_once"), copy(pthread_once)));

// watched.cc - see watched.h.
//
// valgrind runs one thread at a time on a processor of its own and follows stacks by the
// threads it saw made; the sanitizers' runtimes do the latter. Under them a program runs on
// native threads. The launcher finds sanitizers before the program starts (and leaves the
// library out); this is for what other programs start.
//
// valgrind: the instruction sequence its manual gives for client requests. It does nothing
// anywhere else.
#include "preload/watched.h"

#include <dlfcn.h>
#include <stdint.h>

namespace weft {
namespace {

constexpr uint64_t kRunningOnValgrind = 0x1001;

bool on_valgrind() {
  volatile uint64_t request[6] = {kRunningOnValgrind, 0, 0, 0, 0, 0};
  uint64_t answer = 0;
  __asm__ volatile(
      "rolq $3, %%rdi\n\trolq $13, %%rdi\n\trolq $61, %%rdi\n\trolq $51, %%rdi\n\t"
      "xchgq %%rbx, %%rbx"
      : "+d"(answer)
      : "a"(&request[0])
      : "cc", "memory");
  return answer != 0;
}

}  // namespace

const char* watched_by() {
  if (on_valgrind()) return "valgrind watches it";
  static constexpr const char* kRuntimes[][2] = {
      {"__asan_init", "it is built with AddressSanitizer"},
      {"__hwasan_init", "it is built with HWAddressSanitizer"},
      {"__tsan_init", "it is built with ThreadSanitizer"},
      {"__msan_init", "it is built with MemorySanitizer"},
      {"__lsan_init", "it is built with LeakSanitizer"},
  };
  for (auto& r : kRuntimes)
    if (dlsym(RTLD_DEFAULT, r[0]) != nullptr) return r[1];
  return nullptr;
}

}  // namespace weft

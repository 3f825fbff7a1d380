// watched.cc - see watched.h.
//
// valgrind runs one thread at a time on a processor of its own and follows stacks by the
// threads it saw made; the sanitizers' runtimes do the latter. Under them a program runs on
// native threads. The launcher finds sanitizers before the program starts (and leaves the
// library out); this is for what other programs start.
//
// Go's runtime (a program that uses cgo, or a library made from Go) has its threads made by
// pthread_create and then speaks to the kernel past libc: each thread sets its alternate signal
// stack by a bare sigaltstack, on whatever M it is on just then, and Go aborts when a handler
// is not found there. The linker leaves a note in the file, which is loaded with it.
//
// valgrind: the instruction sequence its manual gives for client requests. It does nothing
// anywhere else.
#include "preload/watched.h"

#include <dlfcn.h>
#include <link.h>
#include <stdint.h>
#include <string.h>

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

constexpr char kGoName[] = "Go\0";  // padded as notes are
constexpr uint32_t kGoBuildId = 4;

bool note_of_go(const char* at, size_t bytes) {
  for (const char* end = at + bytes; at + sizeof(ElfW(Nhdr)) <= end;) {
    ElfW(Nhdr) n;
    memcpy(&n, at, sizeof n);
    const char* name = at + sizeof n;
    if (n.n_type == kGoBuildId && n.n_namesz == sizeof kGoName && name + sizeof kGoName <= end &&
        memcmp(name, kGoName, sizeof kGoName) == 0)
      return true;
    at = name + ((n.n_namesz + 3) & ~3u) + ((n.n_descsz + 3) & ~3u);
  }
  return false;
}

int has_go(dl_phdr_info* module, size_t, void*) {
  for (int i = 0; i < module->dlpi_phnum; i++) {
    const auto& ph = module->dlpi_phdr[i];
    if (ph.p_type == PT_NOTE && note_of_go(reinterpret_cast<const char*>(module->dlpi_addr + ph.p_vaddr), ph.p_memsz))
      return 1;
  }
  return 0;
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
  if (dl_iterate_phdr(has_go, nullptr) != 0) return "Go's runtime is in it";
  return nullptr;
}

}  // namespace weft

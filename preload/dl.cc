// dl.cc - dlopen and dlclose: libc cannot initialise TLS in Gs, which are on no list of its.
//
// Dynamic TLS needs nothing (made on demand). Initial-exec TLS of a library loaded now lies
// in every thread's static block and must be set from its image in each G that exists.
//
// dlopen looks at its return address to find the caller's RUNPATH and namespace, so we must
// not stand between the two: the stubs below note the call and jump on. What changed is
// looked at afterwards, before the next thread starts or ends and at the caller's next
// visit to the engine (kAttModules). Known limit: the library's own constructors, and other
// Gs until then, see zeros where an initial-exec variable has a nonzero first value.
#include <dlfcn.h>

#include "preload/api.h"
#include "preload/tcb.h"

using namespace weft;

namespace {

template <class F>
void* note(F& real_fn) {
  if (sched.booted.load(std::memory_order_relaxed)) tcb_modules_stale();
  if (G* g = this_g()) g->attention.fetch_or(kAttModules, std::memory_order_relaxed);
  return reinterpret_cast<void*>(real_fn.get());
}

}  // namespace

extern "C" {
__attribute__((used, visibility("hidden"))) void* weft_note_dlopen() { return note(real().dlopen); }
__attribute__((used, visibility("hidden"))) void* weft_note_dlmopen() { return note(real().dlmopen); }
__attribute__((used, visibility("hidden"))) void* weft_note_dlclose() { return note(real().dlclose); }
}

// Arguments (at most three) are kept over the note; then the real function sees our caller.
#define WEFT_PASS_ON(name)                    \
  __asm__(".text\n"                           \
          ".globl " #name "\n"                \
          ".type " #name ", @function\n"      \
          ".p2align 4\n" #name ":\n"          \
          ".cfi_startproc\n"                  \
          "endbr64\n"                         \
          "push %rdi\n"                       \
          ".cfi_adjust_cfa_offset 8\n"        \
          "push %rsi\n"                       \
          ".cfi_adjust_cfa_offset 8\n"        \
          "push %rdx\n"                       \
          ".cfi_adjust_cfa_offset 8\n"        \
          "call weft_note_" #name "\n"        \
          "pop %rdx\n"                        \
          ".cfi_adjust_cfa_offset -8\n"       \
          "pop %rsi\n"                        \
          ".cfi_adjust_cfa_offset -8\n"       \
          "pop %rdi\n"                        \
          ".cfi_adjust_cfa_offset -8\n"       \
          "jmp *%rax\n"                       \
          ".cfi_endproc\n"                    \
          ".size " #name ", . - " #name "\n")

WEFT_PASS_ON(dlopen);
WEFT_PASS_ON(dlmopen);
WEFT_PASS_ON(dlclose);

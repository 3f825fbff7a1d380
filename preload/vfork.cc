// vfork.cc - vfork: the child borrows our memory until it execs; nothing may switch.
//
// The stub keeps the return address in a register over the system call, as libc's does:
// the child runs on, calls functions, and overwrites the place on the stack where it was.
//
//   weft_vfork_begin    parent, before: opens the system call bracket, so that others get
//                       the P while this kernel thread is suspended
//   weft_vfork_child    child: t_g = null, the depth goes up: all wrappers are native now
//   weft_vfork_parent   parent, after exec or exit of the child: both put back
//
// What the parent needs afterwards travels in rdx, for the child shares every other place:
// the G's address (64-byte aligned) with the bracket flag and the depth in its low bits.
// A signal for the parent waits in the kernel meanwhile; its handler may then run before
// weft_vfork_parent, as on a foreign thread.
#include "preload/vfork.h"

#include "preload/api.h"
#include "preload/fork.h"
#include "preload/io_fd.h"

namespace weft {

thread_local constinit uint32_t t_vfork_depth = 0;

namespace {

constexpr uint64_t kBracket = 32;
constexpr uint64_t kDepthMask = 31;
static_assert(alignof(G) > (kBracket | kDepthMask));

}  // namespace
}  // namespace weft

using namespace weft;

extern "C" {

__attribute__((used, visibility("hidden"))) uint64_t weft_vfork_begin() {
  uint32_t depth = t_vfork_depth;
  CHECK(depth < kDepthMask);
  uint64_t token = reinterpret_cast<uint64_t>(t_g) | depth;
  if (depth == 0) io_descriptors_shared();
  G* g = this_g();
  if (depth == 0 && g != nullptr && g_state(g) == GState::kRunning) {
    enter_syscall(g);
    token |= kBracket;
  }
  return token;
}

__attribute__((used, visibility("hidden"))) void weft_vfork_child() {
  t_g = nullptr;
  t_vfork_depth = t_vfork_depth + 1;
}

__attribute__((used, visibility("hidden"))) long weft_vfork_parent(long pid, uint64_t token) {
  t_vfork_depth = static_cast<uint32_t>(token & kDepthMask);
  t_g = reinterpret_cast<G*>(token & ~(kBracket | kDepthMask));
  if (t_g != nullptr) t_fork_ktid = sys_gettid();
  if ((token & kBracket) != 0) exit_syscall(t_g);
  return errno_ret(pid);
}

// pid_t vfork(void). On entry the return address is on top; rdx and rdi live through the
// system call. CFI: the return address is in rdi between the pop and the push.
__asm__(".text\n"
        ".globl vfork\n"
        ".type vfork, @function\n"
        ".globl __vfork\n"
        ".type __vfork, @function\n"
        ".p2align 4\n"
        "vfork:\n"
        "__vfork:\n"
        ".cfi_startproc\n"
        "endbr64\n"
        "subq $8, %rsp\n"
        ".cfi_adjust_cfa_offset 8\n"
        "call weft_vfork_begin\n"
        "addq $8, %rsp\n"
        ".cfi_adjust_cfa_offset -8\n"
        "movq %rax, %rdx\n"
        "popq %rdi\n"
        ".cfi_adjust_cfa_offset -8\n"
        ".cfi_register %rip, %rdi\n"
        "movl $58, %eax\n"  // SYS_vfork
        "syscall\n"
        "pushq %rdi\n"
        ".cfi_adjust_cfa_offset 8\n"
        ".cfi_offset %rip, -8\n"
        "subq $8, %rsp\n"
        ".cfi_adjust_cfa_offset 8\n"
        "testq %rax, %rax\n"
        "jnz 1f\n"
        "call weft_vfork_child\n"
        "xorl %eax, %eax\n"
        "jmp 2f\n"
        "1: movq %rax, %rdi\n"
        "movq %rdx, %rsi\n"
        "call weft_vfork_parent\n"
        "2: addq $8, %rsp\n"
        ".cfi_adjust_cfa_offset -8\n"
        "ret\n"
        ".cfi_endproc\n"
        ".size vfork, . - vfork\n"
        ".size __vfork, . - __vfork\n");
}
static_assert(SYS_vfork == 58);

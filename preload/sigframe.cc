// sigframe.cc - see sigframe.h.
//
// A frame (x86-64): return address | ucontext | siginfo | ... | xstate, which is aligned to
// 64 bytes and found by uc_mcontext.fpregs. Its size is in its own software-reserved bytes
// (magic1, extended_size) behind the legacy area. Nothing else in the frame is an address
// of the frame, so a copy at a distance that is a multiple of 64 is as good as the original.
#include "preload/sigframe.h"

#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>

#include "sched/sys.h"

namespace weft {

extern "C" [[noreturn]] void weft_frame_jump(void* frame, FrameFn fn, int sig, siginfo_t* info,
                                             void* uc);

namespace {

constexpr size_t kLegacyBytes = 512;
constexpr size_t kSoftwareAt = 464;              // of struct _fpx_sw_bytes in the legacy area
constexpr uint32_t kMagic1 = 0x46505853;         // FP_XSTATE_MAGIC1
constexpr size_t kWrapperBytes = 24 << 10;       // what the wrapper needs below the frame
constexpr int kNoSuchFlags = 0x7ffffff8;         // no valid ss_flags: EINVAL, stack unchanged
#ifndef AT_MINSIGSTKSZ
#define AT_MINSIGSTKSZ 51
#endif

struct Software {
  uint32_t magic1, extended_bytes;
};

size_t stack_bytes() { return round_up(getauxval(AT_MINSIGSTKSZ) + kWrapperBytes, kPageBytes); }

void install(void* mem, size_t n) {
  stack_t ss;
  memset(&ss, 0, sizeof ss);
  ss.ss_sp = mem;
  ss.ss_size = n;
  sys_call(SYS_sigaltstack, sys_arg(&ss), 0);
}

uintptr_t frame_of(const ucontext_t* uc) { return reinterpret_cast<uintptr_t>(uc) - sizeof(void*); }

}  // namespace

bool frame_on_kernel_stack(const ucontext_t* uc) {
  uintptr_t at = frame_of(uc), lo = reinterpret_cast<uintptr_t>(uc->uc_stack.ss_sp);
  return at >= lo && at - lo < uc->uc_stack.ss_size;
}

size_t frame_bytes(const ucontext_t* uc) {
  auto fp = reinterpret_cast<uintptr_t>(uc->uc_mcontext.fpregs);
  if (fp == 0) return sizeof(void*) + sizeof *uc + sizeof(siginfo_t);
  Software s;
  memcpy(&s, reinterpret_cast<void*>(fp + kSoftwareAt), sizeof s);
  size_t n = s.magic1 == kMagic1 ? s.extended_bytes : kLegacyBytes;
  return fp + n - frame_of(uc);
}

void frame_move(int sig, siginfo_t* info, ucontext_t* uc, uintptr_t top, FrameFn fn) {
  uintptr_t from = frame_of(uc), n = frame_bytes(uc), phase = from & 63;
  uintptr_t to = ((top - n - phase) & ~uintptr_t{63}) + phase;
  memcpy(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), n);
  uintptr_t by = to - from;
  auto* moved = reinterpret_cast<ucontext_t*>(reinterpret_cast<uintptr_t>(uc) + by);
  if (moved->uc_mcontext.fpregs != nullptr)
    moved->uc_mcontext.fpregs = reinterpret_cast<fpregset_t>(
        reinterpret_cast<uintptr_t>(moved->uc_mcontext.fpregs) + by);
  weft_frame_jump(reinterpret_cast<void*>(to), fn, sig,
                  reinterpret_cast<siginfo_t*>(reinterpret_cast<uintptr_t>(info) + by), moved);
}

void frame_forget_stack(ucontext_t* uc) { uc->uc_stack.ss_flags = kNoSuchFlags; }

void frame_show_stack(ucontext_t* uc, const AltStack& own) {
  uc->uc_stack.ss_sp = own.sp;
  uc->uc_stack.ss_size = own.bytes;
  uc->uc_stack.ss_flags = own.flags;
}

void signal_stack_for_thread() {
  size_t n = stack_bytes();
  void* mem = sys_mmap(nullptr, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
  if (!sys_failed(mem)) install(mem, n);
}

void signal_stack_for_boot() {
  static void* mem;  // a fork child's boot uses it again
  size_t n = stack_bytes();
  if (mem == nullptr) {
    mem = sys_mmap(nullptr, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
    if (sys_failed(mem)) mem = nullptr;
  }
  if (mem != nullptr) install(mem, n);
}

}  // namespace weft

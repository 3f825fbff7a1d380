// stub.h - interposers that must not stand between the program and libc.
//
// For functions of libc's that look at their return address (dlopen) or keep it and the
// stack for later (swapcontext): a frame of ours would be what they see. The exported name asks
// weft_way_NAME which way to go, and goes there with stack and arguments as they came.
// weft_way_NAME takes the function's arguments, at most three, and the caller's address as the
// fourth; it is to be `used` and hidden.
#pragma once

#define WEFT_STUB(name)                       \
  __asm__(".text\n"                           \
          ".globl " #name "\n"                \
          ".type " #name ", @function\n"      \
          ".p2align 4\n" #name ":\n"          \
          ".cfi_startproc\n"                  \
          "endbr64\n"                         \
          "mov (%rsp), %rcx\n"                \
          "push %rdi\n"                       \
          ".cfi_adjust_cfa_offset 8\n"        \
          "push %rsi\n"                       \
          ".cfi_adjust_cfa_offset 8\n"        \
          "push %rdx\n"                       \
          ".cfi_adjust_cfa_offset 8\n"        \
          "call weft_way_" #name "\n"         \
          "pop %rdx\n"                        \
          ".cfi_adjust_cfa_offset -8\n"       \
          "pop %rsi\n"                        \
          ".cfi_adjust_cfa_offset -8\n"       \
          "pop %rdi\n"                        \
          ".cfi_adjust_cfa_offset -8\n"       \
          "jmp *%rax\n"                       \
          ".cfi_endproc\n"                    \
          ".size " #name ", . - " #name "\n")

// switch.S - moves a kernel thread from one G to another. Registers only, no decisions.
//
//   void weft_switch(G* from, G* to)          rdi = from, rsi = to
//   void weft_switch_prctl(G* from, G* to)    the same without FSGSBASE
//
// Saves what the psABI calls callee-saved, control words included, on from's stack:
//
//        from->sp -> | mxcsr (4) | x87 cw (4) |   +0
//                    | r15                    |   +8
//                    | r14                    |  +16
//                    | r13                    |  +24
//                    | r12                    |  +32
//                    | rbx                    |  +40
//                    | rbp                    |  +48
//                    | return address         |  +56
//
// Order matters: FS moves before from->on_cpu is cleared, and on_cpu is cleared after the
// stack pointer is saved and ours has moved: from then on another M may run `from`.
// (x86 stores are not reordered with older stores: the plain movl is a release.)
// The control words are stored after FS has moved: wrfsbase waits for all before it, so it would
// wait for these two microcoded stores as well (a yield 34 ns with them before, 31 after).
// Clobbers: rax, rcx, rdx, rsi, rdi, r8-r11, flags.
#include "asm/offsets.h"

        .text

        .macro SAVE
        .cfi_startproc
        endbr64
        pushq   %rbp
        .cfi_adjust_cfa_offset 8
        .cfi_rel_offset %rbp, 0
        pushq   %rbx
        .cfi_adjust_cfa_offset 8
        .cfi_rel_offset %rbx, 0
        pushq   %r12
        .cfi_adjust_cfa_offset 8
        .cfi_rel_offset %r12, 0
        pushq   %r13
        .cfi_adjust_cfa_offset 8
        .cfi_rel_offset %r13, 0
        pushq   %r14
        .cfi_adjust_cfa_offset 8
        .cfi_rel_offset %r14, 0
        pushq   %r15
        .cfi_adjust_cfa_offset 8
        .cfi_rel_offset %r15, 0
        subq    $8, %rsp
        .cfi_adjust_cfa_offset 8
        movq    %rsp, %r10
        movq    %rsp, G_SP(%rdi)
        movq    G_SP(%rsi), %rsp
        .endm

        .macro RESTORE
        stmxcsr (%r10)
        fnstcw  4(%r10)
        movl    (%r10), %r8d            // to spare the loads below where they agree
        movzwl  4(%r10), %r9d
        movl    $0, G_ON_CPU(%rdi)
        cmpl    (%rsp), %r8d
        je      1f
        ldmxcsr (%rsp)
1:      cmpw    4(%rsp), %r9w
        je      2f
        fldcw   4(%rsp)
2:      addq    $8, %rsp
        .cfi_adjust_cfa_offset -8
        popq    %r15
        .cfi_adjust_cfa_offset -8
        .cfi_restore %r15
        popq    %r14
        .cfi_adjust_cfa_offset -8
        .cfi_restore %r14
        popq    %r13
        .cfi_adjust_cfa_offset -8
        .cfi_restore %r13
        popq    %r12
        .cfi_adjust_cfa_offset -8
        .cfi_restore %r12
        popq    %rbx
        .cfi_adjust_cfa_offset -8
        .cfi_restore %rbx
        popq    %rbp
        .cfi_adjust_cfa_offset -8
        .cfi_restore %rbp
        ret
        .cfi_endproc
        .endm

        .globl  weft_switch
        .hidden weft_switch
        .type   weft_switch, @function
        .p2align 5
weft_switch:
        SAVE
        movq    G_FS(%rsi), %rax
        wrfsbase %rax
        RESTORE
        .size   weft_switch, . - weft_switch

        .globl  weft_switch_prctl
        .hidden weft_switch_prctl
        .type   weft_switch_prctl, @function
        .p2align 5
weft_switch_prctl:
        SAVE
        movq    %rdi, %rdx              // the call clobbers rcx, r11, rax only (r10 stays)
        movl    $158, %eax              // SYS_arch_prctl
        movq    G_FS(%rsi), %rsi
        movl    $0x1002, %edi           // ARCH_SET_FS
        syscall
        movq    %rdx, %rdi
        RESTORE
        .size   weft_switch_prctl, . - weft_switch_prctl

// First frame of a G. stack.cc leaves a switch frame whose rbx is the function and r12 its
// argument. Unwinders and gdb stop here: rip is undefined and rbp is zero.
        .globl  weft_g_entry
        .hidden weft_g_entry
        .type   weft_g_entry, @function
        .p2align 4
weft_g_entry:
        .cfi_startproc
        .cfi_undefined %rip
        endbr64
        xorl    %ebp, %ebp
        movq    %r12, %rdi
        callq   *%rbx
        ud2
        .cfi_endproc
        .size   weft_g_entry, . - weft_g_entry

        .section .note.GNU-stack, "", @progbits

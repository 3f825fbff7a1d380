// sigframe.S - goes on in a signal frame that was moved to another stack.
//
//   void weft_frame_jump(void* frame, void (*fn)(int, siginfo_t*, void*),
//                        int sig, siginfo_t* info, void* uc)
//
// rdi = frame, rsi = fn, edx = sig, rcx = info, r8 = uc. Leaves the caller's stack for good:
//
//        frame -> | return address: libc's restorer |  as the kernel put it
//                 | ucontext | siginfo | ... xstate  |
//
// fn runs as if the kernel had called it there; its return is rt_sigreturn of that frame.
// The CFA stays rsp + 8 throughout. Clobbers: everything fn may.
        .text
        .globl  weft_frame_jump
        .hidden weft_frame_jump
        .type   weft_frame_jump, @function
        .p2align 4
weft_frame_jump:
        .cfi_startproc
        endbr64
        movq    %rdi, %rsp
        movq    %rsi, %rax
        movl    %edx, %edi
        movq    %rcx, %rsi
        movq    %r8, %rdx
        jmp     *%rax
        .cfi_endproc
        .size   weft_frame_jump, . - weft_frame_jump

        .section .note.GNU-stack, "", @progbits

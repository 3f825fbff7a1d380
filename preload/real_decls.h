// real_decls.h - the declarations real.h takes its types from: the headers, and what they hide.
#pragma once

#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <setjmp.h>
#include <signal.h>
#include <threads.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>
#include <dlfcn.h>

extern "C" void __longjmp_chk(struct __jmp_buf_tag*, int) __attribute__((noreturn));
extern "C" int __libc_start_main(int (*)(int, char**, char**), int, char**, void (*)(void),
                                 void (*)(void), void (*)(void), void*);

#include "preload/real_decls_io.h"

// process
#include <grp.h>
#include <spawn.h>
#include <sys/ptrace.h>
#include <sys/signalfd.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/wait.h>
extern "C" int __register_atfork(void (*)(void), void (*)(void), void (*)(void), void*);

// fault_test.c - SIGSEGV, SIGBUS, SIGFPE, SIGILL and SIGTRAP raised by a thread's own
// instruction reach the program's handler with its address and a context it may change,
// and the thread's stack overflow is a fault like any other.
//
// Invariant: a handler here either repairs and returns, jumps out, or lets the process
//            die in a forked child; the default runner's handlers are put back.
// Callers:   run natively and under LD_PRELOAD; uses io.h only.
#include "io.h"
#include <sys/mman.h>
#include <ucontext.h>

static __thread sigjmp_buf env;
static __thread siginfo_t info;
static __thread int handler_on_alt, tls_mark;
static __thread char *alt_low;
static atomic_int repaired, wrong;

struct saved {
    struct sigaction sa[5];
};
static const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP};

static struct saved catch_faults(void (*h)(int, siginfo_t *, void *), int flags)
{
    struct saved s;
    for (int i = 0; i < 5; i++) s.sa[i] = set_action(faults[i], h, flags);
    return s;
}

static void restore_faults(struct saved *s)
{
    for (int i = 0; i < 5; i++) sigaction(faults[i], &s->sa[i], NULL);
}

static char *map(size_t n, int prot)
{
    char *p = mmap(NULL, n, prot, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MUST(p != MAP_FAILED);
    return p;
}

// The garbage collector's barrier: the handler opens the page and returns.
static void open_the_page(int sig, siginfo_t *si, void *uc)
{
    ucontext_t *u = uc;
    char *page = (char *)((uintptr_t)si->si_addr & ~4095ul);
    if (sig != SIGSEGV || si->si_code != SEGV_ACCERR || tls_mark != 0xfa17) atomic_fetch_add(&wrong, 1);
    if (u->uc_mcontext.gregs[REG_RIP] == 0 || u->uc_mcontext.gregs[REG_CR2] != (greg_t)si->si_addr)
        atomic_fetch_add(&wrong, 1);
    if (mprotect(page, 4096, PROT_READ | PROT_WRITE)) _exit(9);
    atomic_fetch_add(&repaired, 1);
}

static void *barrier_thread(void *arg)
{
    enum { PAGES = 40 };
    char *p = map(PAGES * 4096, PROT_NONE);
    tls_mark = 0xfa17;
    for (int i = 0; i < PAGES; i++) {
        p[i * 4096 + 17] = (char)i;  // faults, is repaired, happens
        CHECK_EQ(p[i * 4096 + 17], i);
        if (i % 8 == 0) sched_yield();
    }
    munmap(p, PAGES * 4096);
    return arg;
}

static void handler_repairs_and_returns(void)
{
    struct saved s = catch_faults(open_the_page, SA_RESTART);
    pthread_t t[8];
    repaired = wrong = 0;
    for (int i = 0; i < 8; i++) t[i] = spawn(barrier_thread, NULL);
    barrier_thread(NULL);
    for (int i = 0; i < 8; i++) join(t[i]);
    CHECK_EQ(repaired, 9 * 40);
    CHECK_EQ(wrong, 0);
    restore_faults(&s);
}

static void note_and_jump(int sig, siginfo_t *si, void *uc)
{
    char here;
    (void)uc;
    info = *si;
    handler_on_alt = alt_low && &here >= alt_low && &here < alt_low + 65536;
    siglongjmp(env, sig);
}

static volatile int zero;
static char *const nowhere = (char *)0x2010;  // below mmap_min_addr: nothing is ever there
static char *volatile address;

static int provoke(int which)
{
    int r = 1;
    switch (which) {
    case 0: r = *(volatile char *)address; break;                // SEGV_MAPERR
    case 1: *(volatile char *)address = 1; break;
    case 2: __asm__ volatile("cltd\n\tidivl %1" : "+a"(r) : "m"(zero) : "rdx"); break;
    case 3: __asm__ volatile("ud2"); break;                      // SIGILL
    case 4: __asm__ volatile("int3"); break;                     // SIGTRAP
    case 5: ((void (*)(void))(uintptr_t)(address))(); break;     // a jump to nowhere
    default: r = *(volatile char *)(uintptr_t)0x8000000000000000u; break;  // not canonical
    }
    return r;
}

static void *jump_thread(void *arg)
{
    static const int want_sig[] = {SIGSEGV, SIGSEGV, SIGFPE, SIGILL, SIGTRAP, SIGSEGV, SIGSEGV};
    static const int want_code[] = {SEGV_MAPERR, SEGV_MAPERR, FPE_INTDIV, ILL_ILLOPN, SI_KERNEL,
                                    SEGV_MAPERR, SI_KERNEL};
    for (volatile int round = 0; round < 5; round++)
        for (volatile int w = 0; w < 7; w++) {
            volatile int e = errno = 1234;
            int sig = sigsetjmp(env, 1);
            if (sig == 0) {
                provoke(w);
                CHECK(!"no fault");
            }
            CHECK_EQ(sig, want_sig[w]);
            CHECK_EQ(info.si_code, want_code[w]);
            if (w < 2 || w == 5) CHECK(info.si_addr == address);
            if (w == 2 || w == 3) CHECK(info.si_addr != NULL);
            CHECK_EQ(errno, e);
            sigset_t now;
            pthread_sigmask(SIG_SETMASK, NULL, &now);
            CHECK_EQ(sigismember(&now, want_sig[w]), 0);
            if (w % 3 == 0) sched_yield();
        }
    return arg;
}

static void handler_jumps_out(void)
{
    struct saved s = catch_faults(note_and_jump, 0);
    pthread_t t[6];
    address = nowhere;
    jump_thread(NULL);
    for (int i = 0; i < 6; i++) t[i] = spawn(jump_thread, NULL);
    jump_thread(NULL);
    for (int i = 0; i < 6; i++) join(t[i]);
    restore_faults(&s);
}

static void *bus_thread(void *arg)
{
    int fd = temp_file();
    MUST(ftruncate(fd, 4096) == 0);
    char *p = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    MUST(p != MAP_FAILED);
    p[100] = 1;
    int sig = sigsetjmp(env, 1);
    if (sig == 0) {
        *(volatile char *)(p + 5000) = 1;  // beyond the end of the file
        CHECK(!"no fault");
    }
    CHECK_EQ(sig, SIGBUS);
    CHECK_EQ(info.si_code, BUS_ADRERR);
    CHECK(info.si_addr == p + 5000);
    munmap(p, 8192);
    close(fd);
    return arg;
}

static void bus_error_beyond_the_file(void)
{
    struct saved s = catch_faults(note_and_jump, 0);
    bus_thread(NULL);
    join(spawn(bus_thread, NULL));
    restore_faults(&s);
}

static void skip_ud2(int sig, siginfo_t *si, void *uc)
{
    ucontext_t *u = uc;
    (void)sig;
    (void)si;
    u->uc_mcontext.gregs[REG_RIP] += 2;
    u->uc_mcontext.gregs[REG_RAX] = 4242;
    atomic_fetch_add(&repaired, 1);
}

static void *emulated(void *arg)
{
    for (int i = 0; i < 200; i++) {
        long a = i;
        __asm__ volatile("ud2" : "+a"(a) : : "memory");
        CHECK_EQ(a, 4242);
    }
    return arg;
}

// The emulator's way: the handler changes registers and the program counter.
static void handler_edits_the_context(void)
{
    struct saved s = catch_faults(skip_ud2, SA_RESTART);
    pthread_t t[5];
    repaired = 0;
    for (int i = 0; i < 5; i++) t[i] = spawn(emulated, NULL);
    for (int i = 0; i < 5; i++) join(t[i]);
    CHECK_EQ(repaired, 1000);
    restore_faults(&s);
}

static __thread volatile int depth_sink;

static __attribute__((noinline)) int overflow(int n)
{
    volatile char frame[2000];
    frame[0] = (char)n;
    depth_sink = n;
    if (n < 0) return 0;  // never: for the compiler's peace of mind
    return overflow(n + 1) + frame[0];
}

static void *overflow_thread(void *arg)
{
    stack_t ss = {.ss_sp = malloc(65536), .ss_size = 65536}, off = {.ss_flags = SS_DISABLE};
    alt_low = ss.ss_sp;
    MUST(sigaltstack(&ss, NULL) == 0);
    pthread_attr_t at;
    void *stack;
    size_t size, guard;
    MUST(pthread_getattr_np(pthread_self(), &at) == 0);
    MUST(pthread_attr_getstack(&at, &stack, &size) == 0);
    MUST(pthread_attr_getguardsize(&at, &guard) == 0);
    pthread_attr_destroy(&at);
    for (volatile int i = 0; i < 3; i++) {
        int sig = sigsetjmp(env, 1);
        if (sig == 0) overflow(0);
        CHECK_EQ(sig, SIGSEGV);
        CHECK_EQ(handler_on_alt, 1);
        char *a = info.si_addr;  // in or next to the guard of this thread's stack
        CHECK(a >= (char *)stack - guard - 8192 && a < (char *)stack + 8192);
        CHECK(depth_sink > 20);
        sched_yield();
    }
    MUST(sigaltstack(&off, NULL) == 0);
    free(ss.ss_sp);
    alt_low = NULL;
    return arg;
}

static void stack_overflow_is_caught_on_the_alternate_stack(void)
{
    struct saved s = catch_faults(note_and_jump, SA_ONSTACK);
    pthread_attr_t at;
    pthread_t t[4];
    pthread_attr_init(&at);
    pthread_attr_setstacksize(&at, 256 * 1024);
    for (int i = 0; i < 4; i++) MUST(pthread_create(&t[i], &at, overflow_thread, NULL) == 0);
    for (int i = 0; i < 4; i++) join(t[i]);
    join(spawn(overflow_thread, NULL));  // and a stack of the default size
    restore_faults(&s);
}

static void defaults(void)
{
    for (int i = 0; i < 5; i++) signal(faults[i], SIG_DFL);
}

static void *overflow_to_death(void *arg)
{
    overflow(0);
    return arg;
}

static void overflow_dies_body(void)
{
    defaults();
    join(spawn(overflow_to_death, NULL));
}

static int death;

static void *fault_to_death(void *arg)
{
    provoke(death);
    return arg;
}

static void fault_dies_body(void)
{
    defaults();
    join(spawn(fault_to_death, NULL));
}

static void blocked_fault_body(void)
{
    defaults();
    struct saved s = catch_faults(note_and_jump, 0);
    (void)s;
    mask_signal(SIG_BLOCK, SIGSEGV);  // a blocked fault kills, handler or not
    join(spawn(fault_to_death, NULL));
}

static void without_a_handler_the_process_dies(void)
{
    static const int want[] = {SIGSEGV, SIGSEGV, SIGFPE, SIGILL, SIGTRAP};
    int st = in_child(overflow_dies_body);
    CHECK_EQ(WIFSIGNALED(st) ? WTERMSIG(st) : 0, SIGSEGV);
    address = nowhere;
    for (death = 0; death < 5; death++) {
        st = in_child(fault_dies_body);
        CHECK_EQ(WIFSIGNALED(st) ? WTERMSIG(st) : 0, want[death]);
    }
    death = 0;
    st = in_child(blocked_fault_body);
    CHECK_EQ(WIFSIGNALED(st) ? WTERMSIG(st) : 0, SIGSEGV);
}

static void *computes(void *arg)
{
    atomic_int *stop = arg;
    uint64_t x = 1, n = 0;
    do {  // at least once: it may get its first turn when all is over
        x = x * 6364136223846793005u + 1;
        n++;
    } while (!*stop);
    return (void *)(intptr_t)(n > 0 && x != 0);
}

// Faults handled in some threads while others compute and others block.
static void faults_while_others_work(void)
{
    struct saved s = catch_faults(note_and_jump, 0);
    atomic_int stop = 0;
    address = nowhere;
    pthread_t c[3], f[3];
    for (int i = 0; i < 3; i++) c[i] = spawn(computes, &stop);
    for (int i = 0; i < 3; i++) f[i] = spawn(jump_thread, NULL);
    progress_rounds(10);
    for (int i = 0; i < 3; i++) join(f[i]);
    stop = 1;
    for (int i = 0; i < 3; i++) CHECK(join(c[i]) != NULL);
    restore_faults(&s);
}

static const struct CMUnitTest tests[] = {
    T(handler_repairs_and_returns),
    T(handler_jumps_out),
    T(bus_error_beyond_the_file),
    T(handler_edits_the_context),
    T(stack_overflow_is_caught_on_the_alternate_stack),
    T(without_a_handler_the_process_dies),
    T(faults_while_others_work),
};
IO_MAIN(tests)

// signal_basic_test.c - sigaction with all its flags, masks, pending sets,
// alternate stacks, raise and kill on oneself.
//
// Invariant: every test leaves masks and handlers as it found them; the same bodies
//            run in the main thread and in threads of their own.
// Callers:   run natively and under LD_PRELOAD; uses io.h only.
#include "io.h"
#include <threads.h>

static void *gate_holder(void *arg)
{
    gate_wait(arg, 1);
    return NULL;
}

// The body runs first where nothing was ever started, then in a thread, then in main
// again while another thread exists.
static void everywhere(void *(*body)(void *))
{
    body(NULL);
    join(spawn(body, NULL));
    struct gate g = GATE_INIT;
    pthread_t t = spawn(gate_holder, &g);
    body(NULL);
    gate_post(&g);
    join(t);
}

static __thread volatile sig_atomic_t handled;
static __thread volatile sig_atomic_t last_sig, depth, deepest;

static void on_signal(int sig)
{
    handled++;
    last_sig = sig;
}

static void *signal_and_old_action_body(void *unused)
{
    struct sigaction old, sa;
    handled = 0;
    CHECK(signal(SIGUSR1, on_signal) == SIG_DFL);
    raise(SIGUSR1);
    CHECK_EQ(handled, 1);
    CHECK_EQ(last_sig, SIGUSR1);
    MUST(sigaction(SIGUSR1, NULL, &old) == 0);
    CHECK(old.sa_handler == on_signal);
    CHECK_EQ(old.sa_flags & SA_RESTART, SA_RESTART);  // BSD semantics of signal()
    CHECK(signal(SIGUSR1, SIG_IGN) == on_signal);
    raise(SIGUSR1);
    CHECK_EQ(handled, 1);
    CHECK(signal(SIGUSR1, SIG_DFL) == SIG_IGN);
    memset(&sa, 0, sizeof sa);
    sa.sa_handler = on_signal;
    sa.sa_flags = SA_NODEFER | SA_ONSTACK | SA_NOCLDSTOP | SA_NOCLDWAIT;
    sigaddset(&sa.sa_mask, SIGUSR2);
    MUST(sigaction(SIGCHLD, &sa, &old) == 0);
    struct sigaction back;
    MUST(sigaction(SIGCHLD, &old, &back) == 0);
    CHECK_EQ(back.sa_flags & ~0x04000000, sa.sa_flags);  // SA_RESTORER shows
    CHECK(back.sa_handler == on_signal);
    CHECK_EQ(sigismember(&back.sa_mask, SIGUSR2), 1);
    CHECK_EQ(sigismember(&back.sa_mask, SIGUSR1), 0);
    CHECK_FAILS(sigaction(SIGKILL, &sa, NULL), EINVAL);
    CHECK_FAILS(sigaction(SIGSTOP, &sa, NULL), EINVAL);
    CHECK_FAILS(sigaction(0, &sa, NULL), EINVAL);
    CHECK_FAILS(sigaction(65, &sa, NULL), EINVAL);
    CHECK(signal(SIGKILL, SIG_IGN) == SIG_ERR);
    CHECK_FAILS(kill(getpid(), 65), EINVAL);
    CHECK_FAILS(raise(-1), EINVAL);
    CHECK_EQ(kill(getpid(), 0), 0);
    return unused;
}

static void signal_and_old_action(void)
{
    everywhere(signal_and_old_action_body);
}

static __thread siginfo_t info;
static __thread void *volatile info_context;

static void on_info(int sig, siginfo_t *si, void *uc)
{
    handled++;
    last_sig = sig;
    info = *si;
    info_context = uc;
}

static void *siginfo_body(void *unused)
{
    struct sigaction o1 = set_action(SIGUSR1, on_info, 0), o2 = set_action(SIGRTMIN + 3, on_info, 0);
    handled = 0;
    raise(SIGUSR1);
    CHECK_EQ(info.si_signo, SIGUSR1);
    CHECK_EQ(info.si_code, SI_TKILL);
    CHECK_EQ(info.si_pid, getpid());
    CHECK_EQ(info.si_uid, getuid());
    CHECK(info_context != NULL);
    union sigval v = {.sival_int = 4711};
    MUST(pthread_sigqueue(pthread_self(), SIGRTMIN + 3, v) == 0);
    CHECK_EQ(handled, 2);
    CHECK_EQ(info.si_signo, SIGRTMIN + 3);
    CHECK_EQ(info.si_code, SI_QUEUE);
    CHECK_EQ(info.si_value.sival_int, 4711);
    CHECK_EQ(info.si_pid, getpid());
    MUST(pthread_kill(pthread_self(), SIGUSR1) == 0);
    CHECK_EQ(handled, 3);
    CHECK_EQ(info.si_code, SI_TKILL);
    // One's own directed signal is handled before the call returns.
    MUST(syscall(SYS_tgkill, getpid(), gettid(), SIGUSR1) == 0);
    CHECK_EQ(handled, 4);
    MUST(tgkill(getpid(), gettid(), SIGUSR1) == 0);
    CHECK_EQ(handled, 5);
    sigaction(SIGUSR1, &o1, NULL);
    sigaction(SIGRTMIN + 3, &o2, NULL);
    return unused;
}

static void siginfo_values(void)
{
    everywhere(siginfo_body);
}

static int nested_sig;

static void on_nested(int sig)
{
    (void)sig;
    depth++;
    if (depth > deepest) deepest = depth;
    if (handled++ < 2) {
        sigset_t now;
        pthread_sigmask(SIG_SETMASK, NULL, &now);
        CHECK_EQ(sigismember(&now, SIGUSR2), 1);  // from sa_mask
        CHECK_EQ(sigismember(&now, SIGHUP), 0);
        raise(nested_sig);
    }
    depth--;
}

static void *nodefer_body(void *unused)
{
    for (int nodefer = 0; nodefer < 2; nodefer++) {
        struct sigaction sa, old;
        memset(&sa, 0, sizeof sa);
        sa.sa_handler = on_nested;
        sa.sa_flags = nodefer ? SA_NODEFER : 0;
        sigaddset(&sa.sa_mask, SIGUSR2);
        MUST(sigaction(SIGUSR1, &sa, &old) == 0);
        handled = depth = deepest = 0;
        nested_sig = SIGUSR1;
        raise(SIGUSR1);
        CHECK_EQ(handled, 3);
        CHECK_EQ(deepest, nodefer ? 3 : 1);  // one inside the other, or one by one
        CHECK_EQ(depth, 0);
        sigset_t now;
        pthread_sigmask(SIG_SETMASK, NULL, &now);
        CHECK_EQ(sigismember(&now, SIGUSR1), 0);
        CHECK_EQ(sigismember(&now, SIGUSR2), 0);
        sigaction(SIGUSR1, &old, NULL);
    }
    return unused;
}

static void nodefer_and_sa_mask(void)
{
    everywhere(nodefer_body);
}

static void *resethand_body(void *unused)
{
    struct sigaction old = set_handler(SIGURG, on_signal, (int)SA_RESETHAND), now;
    handled = 0;
    raise(SIGURG);
    raise(SIGURG);  // default by now: ignored
    CHECK_EQ(handled, 1);
    sigaction(SIGURG, NULL, &now);
    CHECK(now.sa_handler == SIG_DFL);
    sigaction(SIGURG, &old, NULL);
    return unused;
}

static void resethand_is_once(void)
{
    everywhere(resethand_body);
}

static __thread char *stack_low;
static __thread int on_alt;

static void on_alt_stack(int sig)
{
    char here;
    stack_t ss;
    (void)sig;
    handled++;
    on_alt = &here >= stack_low && &here < stack_low + 65536;
    MUST(sigaltstack(NULL, &ss) == 0);
    CHECK_EQ(ss.ss_flags & SS_ONSTACK, on_alt ? SS_ONSTACK : 0);
    stack_t off = {.ss_flags = SS_DISABLE};
    if (on_alt) CHECK_FAILS(sigaltstack(&off, NULL), EPERM);
}

// Each thread's own alternate stack, kept over blocking and yielding; a thread
// without one handles the signal on its normal stack.
static void *altstack_body(void *arg)
{
    int p[2], with = arg != NULL;
    char c;
    stack_t ss = {.ss_sp = malloc(65536), .ss_size = 65536}, old, now;
    stack_low = ss.ss_sp;
    MUST(sigaltstack(NULL, &old) == 0);
    CHECK_EQ(old.ss_flags, SS_DISABLE);  // not inherited from the creator
    if (with) MUST(sigaltstack(&ss, NULL) == 0);
    make_pipe(p);
    for (int i = 0; i < 30; i++) {
        handled = on_alt = 0;
        raise(SIGUSR1);
        CHECK_EQ(handled, 1);
        CHECK_EQ(on_alt, with);
        if (i % 3 == 0) sched_yield();
        if (i % 3 == 1) nap(20000);
        if (i % 3 == 2) MUST(write(p[1], "x", 1) == 1 && read(p[0], &c, 1) == 1);
        MUST(sigaltstack(NULL, &now) == 0);
        CHECK(with ? now.ss_sp == ss.ss_sp && now.ss_size == 65536 : now.ss_flags == SS_DISABLE);
    }
    ss.ss_size = 100;
    CHECK_FAILS(sigaltstack(&ss, NULL), ENOMEM);
    ss.ss_flags = 0x55;
    ss.ss_size = 65536;
    CHECK_FAILS(sigaltstack(&ss, NULL), EINVAL);
    stack_t off = {.ss_flags = SS_DISABLE};
    MUST(sigaltstack(&off, NULL) == 0);
    free(ss.ss_sp);
    close2(p);
    return NULL;
}

static void altstack_per_thread(void)
{
    struct sigaction old = set_handler(SIGUSR1, on_alt_stack, SA_ONSTACK);
    pthread_t t[10];
    altstack_body("");
    for (int i = 0; i < 10; i++) t[i] = spawn(altstack_body, i % 3 ? "with" : NULL);
    altstack_body("");
    for (int i = 0; i < 10; i++) join(t[i]);
    sigaction(SIGUSR1, &old, NULL);
}

static int mask_is(int sig)
{
    sigset_t now;
    MUST(pthread_sigmask(SIG_SETMASK, NULL, &now) == 0);
    return sigismember(&now, sig);
}

static void *mask_child(void *arg)
{
    int mine = (int)(intptr_t)arg;
    char c;
    int p[2];
    CHECK_EQ(mask_is(SIGUSR2), 1);  // inherited
    CHECK_EQ(mask_is(SIGHUP), 0);
    mask_signal(SIG_BLOCK, mine);
    mask_signal(SIG_UNBLOCK, SIGUSR2);
    make_pair(p);
    for (int i = 0; i < 40; i++) {
        if (i % 4 == 0) sched_yield();
        if (i % 4 == 1) nap(10000);
        if (i % 4 == 2) MUST(write(p[1], "x", 1) == 1 && read(p[0], &c, 1) == 1);
        if (i % 4 == 3) thrd_yield();
        for (int s = SIGRTMIN; s < SIGRTMIN + 12; s++) CHECK_EQ(mask_is(s), s == mine);
        CHECK_EQ(mask_is(SIGUSR2), 0);
    }
    close2(p);
    return NULL;
}

// Masks belong to threads: inherited at creation, then their own over every switch.
static void masks_per_thread_and_inherited(void)
{
    pthread_t t[12];
    mask_signal(SIG_BLOCK, SIGUSR2);
    for (int i = 0; i < 12; i++) t[i] = spawn(mask_child, (void *)(intptr_t)(SIGRTMIN + i));
    for (int i = 0; i < 12; i++) join(t[i]);
    CHECK_EQ(mask_is(SIGUSR2), 1);
    for (int i = 0; i < 12; i++) CHECK_EQ(mask_is(SIGRTMIN + i), 0);
    mask_signal(SIG_UNBLOCK, SIGUSR2);
}

static void *mask_calls_body(void *unused)
{
    sigset_t s = one_signal(SIGUSR1), old, all;
    CHECK_EQ(pthread_sigmask(77, &s, NULL), EINVAL);
    CHECK_FAILS(sigprocmask(77, &s, NULL), EINVAL);
    CHECK_EQ(pthread_sigmask(77, NULL, &old), 0);  // how is not looked at without a set
    MUST(sigprocmask(SIG_BLOCK, &s, &old) == 0);
    CHECK_EQ(sigismember(&old, SIGUSR1), 0);
    CHECK_EQ(mask_is(SIGUSR1), 1);
    sigfillset(&all);
    MUST(pthread_sigmask(SIG_SETMASK, &all, NULL) == 0);
    CHECK_EQ(mask_is(SIGKILL), 0);  // cannot be blocked, silently
    CHECK_EQ(mask_is(SIGSTOP), 0);
    CHECK_EQ(mask_is(SIGTERM), 1);
    CHECK_EQ(mask_is(SIGURG), 1);
    MUST(pthread_sigmask(SIG_SETMASK, &old, NULL) == 0);
    CHECK_EQ(mask_is(SIGUSR1), 0);
    CHECK_FAILS(sigaddset(&s, 0), EINVAL);
    return unused;
}

static void mask_calls(void)
{
    everywhere(mask_calls_body);
}

static void *pending_body(void *unused)
{
    struct sigaction old = set_handler(SIGUSR1, on_signal, 0);
    sigset_t p;
    mask_signal(SIG_BLOCK, SIGUSR1);
    handled = 0;
    for (int i = 0; i < 3; i++) raise(SIGUSR1);
    CHECK_EQ(handled, 0);
    MUST(sigpending(&p) == 0);
    CHECK_EQ(sigismember(&p, SIGUSR1), 1);
    CHECK_EQ(sigismember(&p, SIGUSR2), 0);
    mask_signal(SIG_UNBLOCK, SIGUSR1);
    CHECK_EQ(handled, 1);  // delivered before the unblocking returns, and once
    MUST(sigpending(&p) == 0);
    CHECK_EQ(sigismember(&p, SIGUSR1), 0);
    mask_signal(SIG_BLOCK, SIGUSR1);
    raise(SIGUSR1);
    signal(SIGUSR1, SIG_IGN);  // ignoring discards what is pending
    signal(SIGUSR1, on_signal);
    mask_signal(SIG_UNBLOCK, SIGUSR1);
    CHECK_EQ(handled, 1);
    sigaction(SIGUSR1, &old, NULL);
    return unused;
}

static void pending_signals(void)
{
    everywhere(pending_body);
}

static void *pending_here(void *out)
{
    MUST(sigpending(out) == 0);
    return NULL;
}

// Was seen by every thread: weft has no part in a program without threads, so raise() left it
// in the kernel, with the kernel thread on which the others then ran.
static void pending_from_before_the_first_thread(void)
{
    pid_t child = fork();
    MUST(child >= 0);
    if (child == 0) {
        sigset_t mine, theirs;
        union sigval v = {.sival_int = 5};
        siginfo_t got;
        set_handler(SIGUSR1, on_signal, 0);
        mask_signal(SIG_BLOCK, SIGUSR1);
        mask_signal(SIG_BLOCK, SIGUSR2);
        mask_signal(SIG_BLOCK, SIGRTMIN);
        raise(SIGUSR1);
        raise(SIGUSR2);
        MUST(pthread_sigqueue(pthread_self(), SIGRTMIN, v) == 0);
        v.sival_int = 6;
        MUST(pthread_sigqueue(pthread_self(), SIGRTMIN, v) == 0);
        MUST(kill(getpid(), SIGUSR2) == 0);  // for all to see
        join(spawn(pending_here, &theirs));
        MUST(sigpending(&mine) == 0);
        if (sigismember(&theirs, SIGUSR1) || sigismember(&theirs, SIGRTMIN)) _exit(1);
        if (!sigismember(&theirs, SIGUSR2)) _exit(2);
        if (!sigismember(&mine, SIGUSR1) || !sigismember(&mine, SIGUSR2)) _exit(3);
        for (int i = 5; i <= 6; i++) {
            sigemptyset(&mine);
            sigaddset(&mine, SIGRTMIN);
            if (sigwaitinfo(&mine, &got) != SIGRTMIN || got.si_value.sival_int != i) _exit(4);
        }
        handled = 0;
        mask_signal(SIG_UNBLOCK, SIGUSR1);
        _exit(handled == 1 ? 0 : 5);
    }
    int status;
    MUST(waitpid(child, &status, 0) == child);
    CHECK_EQ(status, 0);
}

// A fork child looks for who else accepts a signal among its own threads. The search went on
// from where the parent's had ended, a thread that the child has not, and came round to it never.
static void *lets_it_in(void *arg)
{
    mask_signal(SIG_UNBLOCK, SIGTERM);
    if (arg) gate_wait(arg, 1);
    return NULL;
}

static void a_fork_childs_threads_end(void)
{
    struct sigaction old = set_handler(SIGTERM, on_signal, 0);
    mask_signal(SIG_BLOCK, SIGTERM);
    struct gate stay = GATE_INIT;
    pthread_t acceptor = spawn(lets_it_in, &stay);
    for (int i = 0; i < 20; i++) join(spawn(lets_it_in, NULL));
    gate_post(&stay);
    join(acceptor);
    pid_t child = fork();
    if (child == 0) {
        alarm(20);
        join(spawn(lets_it_in, NULL));
        _exit(7);
    }
    int status = 0;
    MUST(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 7);
    mask_signal(SIG_UNBLOCK, SIGTERM);
    sigaction(SIGTERM, &old, NULL);
}

static const struct CMUnitTest tests[] = {
    T(signal_and_old_action),
    T(siginfo_values),
    T(nodefer_and_sa_mask),
    T(resethand_is_once),
    T(altstack_per_thread),
    T(masks_per_thread_and_inherited),
    T(mask_calls),
    T(pending_signals),
    T(pending_from_before_the_first_thread),
    T(a_fork_childs_threads_end),
};
IO_MAIN(tests)

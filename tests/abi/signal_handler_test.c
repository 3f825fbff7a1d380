// signal_handler_test.c - what handlers may do: jump out, post semaphores, write to
// pipes, fork, raise, and leave errno alone; abort and default actions.
//
// Invariant: a signal meant to reach a spinning or blocked thread is sent until the
//            thread says it came; nothing depends on who was first.
// Callers:   run natively and under LD_PRELOAD; uses io.h only.
#include "io.h"
#include <semaphore.h>

static __thread sigjmp_buf env;
static __thread volatile int jumps;
static atomic_int handled;

static void jump_out(int sig)
{
    jumps++;
    siglongjmp(env, sig);
}

static int blocked_now(int sig)
{
    sigset_t s;
    pthread_sigmask(SIG_SETMASK, NULL, &s);
    return sigismember(&s, sig);
}

// Synchronous: the signal is one's own.
static void *sync_jump_body(void *unused)
{
    volatile int rounds = 0;
    jumps = 0;
    for (volatile int i = 0; i < 200; i++) {
        if (sigsetjmp(env, 1) == 0) {
            raise(SIGUSR1);
            CHECK(!"not reached");
        }
        rounds++;
        CHECK_EQ(blocked_now(SIGUSR1), 0);  // the mask came back with the jump
        if (i % 20 == 0) sched_yield();
    }
    CHECK_EQ(jumps, 200);
    CHECK_EQ(rounds, 200);
    if (sigsetjmp(env, 0) == 0) raise(SIGUSR1);
    CHECK_EQ(blocked_now(SIGUSR1), 1);  // without the saved mask it stays
    mask_signal(SIG_UNBLOCK, SIGUSR1);
    return unused;
}

static void siglongjmp_out_of_a_handler(void)
{
    struct sigaction old = set_handler(SIGUSR1, jump_out, 0);
    sync_jump_body(NULL);
    pthread_t t[6];
    for (int i = 0; i < 6; i++) t[i] = spawn(sync_jump_body, NULL);
    sync_jump_body(NULL);
    for (int i = 0; i < 6; i++) join(t[i]);
    sigaction(SIGUSR1, &old, NULL);
}

static void count_only(int sig)
{
    (void)sig;
    handled++;
}

static void *raises_and_jumps(void *arg)
{
    atomic_int *done = arg;
    jumps = 0;
    for (volatile int i = 0; i < 4000; i++) {
        if (sigsetjmp(env, 1) == 0) {
            raise(SIGUSR1);
            MUST(!"raise returned");
        }
    }
    CHECK_EQ(jumps, 4000);
    *done = 1;
    return NULL;
}

// A thread raises and jumps out of the handler while another one sends it something else.
// The second signal could bring the first with it before raise had sent its own, which then
// never was: the jump left the thread marked as having one under way, and from there on
// raise returned without a handler having run.
static void raise_and_jump_beside_a_sender(void)
{
    struct sigaction old1 = set_handler(SIGUSR1, jump_out, 0);
    struct sigaction old2 = set_handler(SIGUSR2, count_only, SA_RESTART);
    atomic_int done = 0;
    handled = 0;
    pthread_t t = spawn(raises_and_jumps, &done);
    for (int i = 0; !done; i++) {
        pthread_kill(t, SIGUSR2);
        if (i % 8 == 0) sched_yield();
    }
    join(t);
    CHECK(handled > 0);
    sigaction(SIGUSR1, &old1, NULL);
    sigaction(SIGUSR2, &old2, NULL);
}

struct target {
    int how;
    int fd;
    atomic_int ready, got, stop;  // no lock: the jump may come at any instruction
    volatile long spin;
};

// Asynchronous: another thread interrupts a loop or a blocked call, and the handler
// leaves by a jump each time.
static void *jumped_main(void *arg)
{
    struct target *g = arg;
    char c;
    while (!g->stop) {
        if (sigsetjmp(env, 1) != 0) {
            atomic_fetch_add(&g->got, 1);
            continue;
        }
        mask_signal(SIG_UNBLOCK, SIGUSR1);
        atomic_fetch_add(&g->ready, 1);
        switch (g->how) {
        case 0:
            for (;;) g->spin++;
        case 1: nap(1000 * SEC); break;
        case 2: MUST(read(g->fd, &c, 1) == 0); break;
        default: poll(NULL, 0, -1); break;
        }
    }
    return NULL;
}

static void jump_back_if_asked(int sig)
{
    (void)sig;
    siglongjmp(env, 1);
}

static void siglongjmp_out_of_loops_and_blocked_calls(void)
{
    struct sigaction old = set_handler(SIGUSR1, jump_back_if_asked, 0);
    int p[2];
    make_pipe(p);
    mask_signal(SIG_BLOCK, SIGUSR1);  // open in the target only while it is ready
    for (int how = 0; how < 4; how++) {
        struct target g = {.how = how, .fd = p[0]};
        pthread_t t = spawn(jumped_main, &g);
        for (int i = 0; i < 10; i++) {
            WAIT_UNTIL(g.ready > i);
            if (i == 9) g.stop = 1;
            pthread_kill(t, SIGUSR1);
            WAIT_UNTIL(g.got >= i + 1);
        }
        join(t);
        CHECK_EQ(g.got, 10);
    }
    mask_signal(SIG_UNBLOCK, SIGUSR1);
    sigaction(SIGUSR1, &old, NULL);
    close2(p);
}

static sem_t sem;

static void post_sem(int sig)
{
    (void)sig;
    sem_post(&sem);
    atomic_fetch_add(&handled, 1);
}

static void *sem_waiter(void *arg)
{
    for (int i = 0; i < (int)(intptr_t)arg; i++)
        while (sem_wait(&sem) == -1) MUST(errno == EINTR);
    return NULL;
}

// The one call POSIX lets a handler wake another thread with: to oneself blocked in
// sem_wait on that very semaphore, and to others.
static void handler_posts_a_semaphore(void)
{
    MUST(sem_init(&sem, 0, 0) == 0);
    for (int restart = 0; restart < 2; restart++) {
        struct sigaction old = set_handler(SIGUSR1, post_sem, restart ? SA_RESTART : 0);
        handled = 0;
        pthread_t t = spawn(sem_waiter, (void *)(intptr_t)50);
        for (int i = 1; i <= 50; i++) {
            MUST(pthread_kill(t, SIGUSR1) == 0);  // its own post ends its wait
            WAIT_UNTIL(handled >= i);
        }
        join(t);
        t = spawn(sem_waiter, (void *)(intptr_t)50);
        for (int i = 0; i < 50; i++) raise(SIGUSR1);
        join(t);
        int v = -1;
        sem_getvalue(&sem, &v);
        CHECK_EQ(v, 0);
        sigaction(SIGUSR1, &old, NULL);
    }
    sem_destroy(&sem);
}

static void clobber_errno(int sig)
{
    (void)sig;
    int e = errno;
    close(-1);
    atomic_fetch_add(&handled, 1);
    errno = e;
}

struct errno_loop {
    int id;
    atomic_int stop;
    struct gate started;
};

static void *errno_main(void *arg)
{
    struct errno_loop *l = arg;
    gate_post(&l->started);
    while (!l->stop) {
        errno = l->id;
        for (volatile int i = 0; i < 1000; i++)
            ;
        CHECK_EQ(errno, l->id);
        sched_yield();
        CHECK_EQ(errno, l->id);
    }
    return NULL;
}

static void errno_survives_handlers_and_switches(void)
{
    struct sigaction old = set_handler(SIGUSR1, clobber_errno, SA_RESTART);
    struct errno_loop l[4];
    pthread_t t[4];
    handled = 0;
    for (int i = 0; i < 4; i++) {
        l[i] = (struct errno_loop){.id = 1000 + i, .started = GATE_INIT};
        t[i] = spawn(errno_main, &l[i]);
        gate_wait(&l[i].started, 1);
    }
    for (int i = 1; i <= 100; i++) {
        pthread_kill(t[i % 4], SIGUSR1);
        WAIT_UNTIL(handled >= i);
    }
    for (int i = 0; i < 4; i++) l[i].stop = 1;
    for (int i = 0; i < 4; i++) join(t[i]);
    CHECK_EQ(handled, 100);
    sigaction(SIGUSR1, &old, NULL);
}

static volatile pid_t forked;

static void fork_in_handler(int sig)
{
    (void)sig;
    pid_t pid = fork();
    if (pid == 0) {
        // The child is one thread, inside a handler: it can still do simple things.
        char c = 'c';
        int p[2];
        if (pipe(p) || write(p[1], &c, 1) != 1 || read(p[0], &c, 1) != 1) _exit(2);
        _exit(raise(0) == 0 ? 33 : 3);
    }
    forked = pid;
}

static void *fork_body(void *unused)
{
    for (int i = 0; i < 3; i++) {
        forked = -1;
        raise(SIGUSR1);
        MUST(forked > 0);
        int st = reap(forked);
        CHECK(WIFEXITED(st));
        CHECK_EQ(WEXITSTATUS(st), 33);
    }
    return unused;
}

static void fork_from_a_handler(void)
{
    struct sigaction old = set_handler(SIGUSR1, fork_in_handler, SA_RESTART);
    fork_body(NULL);
    pthread_t a = spawn(fork_body, NULL);
    join(a);
    sigaction(SIGUSR1, &old, NULL);
}

static void *abort_thread(void *unused)
{
    abort();
    return unused;
}

static void abort_body(void)
{
    signal(SIGABRT, SIG_DFL);
    mask_signal(SIG_BLOCK, SIGABRT);  // abort unblocks it
    join(spawn(abort_thread, NULL));
}

static void abort_ignored_body(void)
{
    signal(SIGABRT, SIG_IGN);
    join(spawn(abort_thread, NULL));
}

static void *killer_thread(void *arg)
{
    kill(getpid(), (int)(intptr_t)arg);
    for (;;) pause();
    return NULL;
}

static int fatal_sig;

static void default_action_body(void)
{
    signal(fatal_sig, SIG_DFL);
    join(spawn(killer_thread, (void *)(intptr_t)fatal_sig));
}

// A fatal default action takes the whole process, whichever thread it meets.
static void abort_and_default_actions_kill_the_process(void)
{
    static const int fatal[] = {SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGALRM, SIGKILL, SIGPIPE};
    int st = in_child(abort_body);
    CHECK(WIFSIGNALED(st) && WTERMSIG(st) == SIGABRT);
    st = in_child(abort_ignored_body);
    CHECK(WIFSIGNALED(st) && WTERMSIG(st) == SIGABRT);
    for (size_t i = 0; i < COUNT(fatal); i++) {
        fatal_sig = fatal[i];
        st = in_child(default_action_body);
        CHECK(WIFSIGNALED(st));
        CHECK_EQ(WIFSIGNALED(st) ? WTERMSIG(st) : 0, fatal[i]);
    }
}

static void stop_body(void)
{
    struct gate g = GATE_INIT;
    pthread_t t = spawn(killer_thread, (void *)(intptr_t)SIGSTOP);
    (void)t;
    gate_wait(&g, 1);  // until the parent kills this process
}

// Job control: all threads stop and go on together.
static void stop_and_continue(void)
{
    int st;
    fflush(NULL);
    pid_t pid = fork();
    MUST(pid >= 0);
    if (pid == 0) {
        stop_body();
        _exit(0);
    }
    MUST(waitpid(pid, &st, WUNTRACED) == pid);
    CHECK(WIFSTOPPED(st));
    CHECK_EQ(WIFSTOPPED(st) ? WSTOPSIG(st) : 0, SIGSTOP);
    MUST(kill(pid, SIGCONT) == 0);
    MUST(waitpid(pid, &st, WCONTINUED) == pid);
    CHECK(WIFCONTINUED(st));
    MUST(kill(pid, SIGKILL) == 0);
    MUST(waitpid(pid, &st, 0) == pid);
    CHECK(WIFSIGNALED(st));
}

static atomic_int children_seen;

static void on_chld(int sig)
{
    int e = errno, st;
    (void)sig;
    while (waitpid(-1, &st, WNOHANG) > 0) {
        if (WIFEXITED(st) && WEXITSTATUS(st) == 9) atomic_fetch_add(&children_seen, 1);
    }
    errno = e;
}

static void *child_maker(void *unused)
{
    for (int i = 0; i < 5; i++) {
        pid_t pid = fork();
        MUST(pid >= 0);
        if (pid == 0) _exit(9);
    }
    return unused;
}

// SIGCHLD handlers collect all children, whoever made them.
static void sigchld_collects_every_child(void)
{
    struct sigaction old = set_handler(SIGCHLD, on_chld, SA_RESTART | SA_NOCLDSTOP);
    pthread_t t[4];
    children_seen = 0;
    for (int i = 0; i < 4; i++) t[i] = spawn(child_maker, NULL);
    for (int i = 0; i < 4; i++) join(t[i]);
    WAIT_UNTIL(children_seen == 20);
    sigaction(SIGCHLD, &old, NULL);
}

static const struct CMUnitTest tests[] = {
    T(siglongjmp_out_of_a_handler),
    T(raise_and_jump_beside_a_sender),
    T(siglongjmp_out_of_loops_and_blocked_calls),
    T(handler_posts_a_semaphore),
    T(errno_survives_handlers_and_switches),
    T(fork_from_a_handler),
    T(abort_and_default_actions_kill_the_process),
    T(stop_and_continue),
    T(sigchld_collects_every_child),
};
IO_MAIN(tests)

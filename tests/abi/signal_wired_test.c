// signal_wired_test.c - signals to and from threads that have a kernel thread of their own.
//
// A thread that binds itself to a processor is 1:1 under weft from then on, and signals
// still have to reach it, with the sender's code, value and process id. They did not: the
// kernel lets no thread queue a siginfo with SI_USER or SI_TKILL for another one, so that
// pthread_kill failed with EPERM, and a process signal that arrived on another thread was
// lost (haproxy, whose threads are all 1:1, sometimes did not end on SIGUSR1).
// Callers:   run natively and under LD_PRELOAD; uses io.h only.
#include "io.h"

static atomic_int hits, wrong;
static siginfo_t last;
static __thread int is_target;

static void on_signal(int sig, siginfo_t *si, void *uc)
{
    (void)uc;
    if (!is_target || si->si_signo != sig) atomic_fetch_add(&wrong, 1);
    last = *si;
    atomic_fetch_add(&hits, 1);
}

static void bind_to_this_processor(void)
{
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(sched_getcpu(), &one);
    MUST(sched_setaffinity(0, sizeof one, &one) == 0);
}

struct target {
    struct gate up;
    pid_t tid;
    int p[2], bound;
    atomic_int stop;
};

static void *computes(void *arg)
{
    struct target *t = arg;
    is_target = 1;
    bind_to_this_processor();
    t->tid = gettid();
    gate_post(&t->up);
    while (!t->stop)
        ;
    return NULL;
}

static void *reads(void *arg)
{
    struct target *t = arg;
    char c;
    is_target = 1;
    bind_to_this_processor();
    t->tid = gettid();
    gate_post(&t->up);
    while (read(t->p[0], &c, 1) != 1) MUST(errno == EINTR);
    return NULL;
}

static void directed_to(void *(*body)(void *), int sig)
{
    struct target t = {.up = GATE_INIT};
    struct sigaction old = set_action(sig, on_signal, 0);
    make_pipe(t.p);
    pthread_t pt = spawn(body, &t);
    gate_wait(&t.up, 1);
    hits = wrong = 0;
    CHECK_EQ(pthread_kill(pt, sig), 0);
    WAIT_UNTIL(hits == 1);
    CHECK_EQ(last.si_code, SI_TKILL);
    CHECK_EQ(last.si_pid, getpid());
    CHECK_EQ(tgkill(getpid(), t.tid, sig), 0);
    WAIT_UNTIL(hits == 2);
    CHECK_EQ(last.si_code, SI_TKILL);
    CHECK_EQ(pthread_sigqueue(pt, sig, (union sigval){.sival_int = 77}), 0);
    WAIT_UNTIL(hits == 3);
    CHECK_EQ(last.si_code, SI_QUEUE);
    CHECK_EQ(last.si_value.sival_int, 77);
    CHECK_EQ(last.si_pid, getpid());
    t.stop = 1;
    MUST(write(t.p[1], "x", 1) == 1);
    join(pt);
    CHECK_EQ(hits, 3);
    CHECK_EQ(wrong, 0);
    close2(t.p);
    sigaction(sig, &old, NULL);
}

static void directed_while_it_computes(void)
{
    directed_to(computes, SIGUSR1);
}

static void directed_while_it_reads(void)
{
    directed_to(reads, SIGUSR1);
}

// Weft's own two signals are the program's as well.
static void directed_sigurg_and_stkflt(void)
{
    directed_to(computes, SIGURG);
    directed_to(reads, SIGSTKFLT);
}

static void *to_itself(void *arg)
{
    (void)arg;
    is_target = 1;
    bind_to_this_processor();
    for (int i = 1; i <= 20; i++) {
        CHECK_EQ(raise(SIGUSR1), 0);
        CHECK_EQ(hits, 2 * i - 1);
        CHECK_EQ(pthread_kill(pthread_self(), SIGUSR1), 0);
        CHECK_EQ(hits, 2 * i);
    }
    return NULL;
}

static void raised_by_itself(void)
{
    struct sigaction old = set_action(SIGUSR1, on_signal, 0);
    hits = wrong = 0;
    join(spawn(to_itself, NULL));
    CHECK_EQ(hits, 40);
    CHECK_EQ(wrong, 0);
    sigaction(SIGUSR1, &old, NULL);
}

static void *waits_for_it(void *arg)
{
    struct target *t = arg;
    siginfo_t si;
    sigset_t set;
    bind_to_this_processor();
    t->tid = gettid();
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    gate_post(&t->up);
    for (int i = 0; i < 3; i++) {
        CHECK_EQ(sigwaitinfo(&set, &si), SIGUSR1);
        CHECK_EQ(si.si_code, i < 2 ? SI_USER : SI_QUEUE);  // libc shows SI_TKILL as SI_USER
        CHECK_EQ(si.si_pid, getpid());
        if (i == 2) CHECK_EQ(si.si_value.sival_int, 5);
        gate_post(&t->up);
    }
    return NULL;
}

static void waited_for(void)
{
    struct target t = {.up = GATE_INIT};
    struct sigaction old = set_action(SIGUSR1, on_signal, 0);
    mask_signal(SIG_BLOCK, SIGUSR1);
    hits = 0;
    pthread_t pt = spawn(waits_for_it, &t);
    gate_wait(&t.up, 1);
    CHECK_EQ(pthread_kill(pt, SIGUSR1), 0);
    gate_wait(&t.up, 2);
    CHECK_EQ(tgkill(getpid(), t.tid, SIGUSR1), 0);
    gate_wait(&t.up, 3);
    CHECK_EQ(pthread_sigqueue(pt, SIGUSR1, (union sigval){.sival_int = 5}), 0);
    join(pt);
    CHECK_EQ(hits, 0);
    mask_signal(SIG_UNBLOCK, SIGUSR1);
    sigaction(SIGUSR1, &old, NULL);
}

// A process that does nothing but signal its parent once; its pid.
static pid_t signal_from_outside(int sig)
{
    pid_t parent = getpid(), pid = fork();
    MUST(pid >= 0);
    if (pid == 0) {
        kill(parent, sig);
        _exit(0);
    }
    return pid;
}

static void *blocks_all(void *arg)
{
    struct target *t = arg;
    char c;
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, NULL);
    if (t->bound) bind_to_this_processor();
    gate_post(&t->up);
    while (read(t->p[0], &c, 1) != 1) MUST(errno == EINTR);
    return NULL;
}

static void *takes_process_signals(void *arg)
{
    struct target *t = arg;
    is_target = 1;
    mask_signal(SIG_UNBLOCK, SIGUSR1);
    bind_to_this_processor();
    gate_post(&t->up);
    while (!t->stop) nap(MS);
    return NULL;
}

// What servers do: one thread takes the signals, here a bound one, the others block all.
static void process_signals_reach_it(void)
{
    enum { N = 6, ROUNDS = 40 };
    struct target t[N + 1];
    pthread_t pt[N + 1];
    struct sigaction old = set_action(SIGUSR1, on_signal, 0);
    mask_signal(SIG_BLOCK, SIGUSR1);
    for (int i = 0; i <= N; i++) {
        t[i] = (struct target){.up = GATE_INIT, .bound = i % 2};
        make_pipe(t[i].p);
        pt[i] = spawn(i < N ? blocks_all : takes_process_signals, &t[i]);
        gate_wait(&t[i].up, 1);
    }
    hits = wrong = 0;
    for (int i = 1; i <= ROUNDS; i++) {
        pid_t child = signal_from_outside(SIGUSR1);
        WAIT_UNTIL(hits == i);
        CHECK_EQ(last.si_code, SI_USER);
        CHECK_EQ(last.si_pid, child);
        MUST(waitpid(child, NULL, 0) == child);
    }
    for (int i = 0; i <= N; i++) {
        t[i].stop = 1;
        MUST(write(t[i].p[1], "x", 1) == 1);
        join(pt[i]);
        close2(t[i].p);
    }
    CHECK_EQ(hits, ROUNDS);
    CHECK_EQ(wrong, 0);
    mask_signal(SIG_UNBLOCK, SIGUSR1);
    sigaction(SIGUSR1, &old, NULL);
}

static void *opens_and_closes(void *arg)
{
    struct target *t = arg;
    gate_post(&t->up);
    while (!t->stop) {
        mask_signal(SIG_UNBLOCK, SIGUSR1);
        mask_signal(SIG_BLOCK, SIGUSR1);
        sched_yield();
    }
    return NULL;
}

static void from_outside_only(int sig, siginfo_t *si, void *uc)
{
    (void)sig;
    (void)uc;
    if (si->si_code != SI_USER || si->si_pid == getpid()) atomic_fetch_add(&wrong, 1);
    atomic_fetch_add(&hits, 1);
}

// Threads open and close the door all the time: a signal that was on its way to one that has
// closed it meanwhile waits for the next, and says still who sent it.
static void none_lost_at_a_closing_door(void)
{
    enum { N = 3, ROUNDS = 40 };
    struct target t[N];
    pthread_t pt[N];
    struct sigaction old = set_action(SIGUSR1, from_outside_only, SA_RESTART);
    mask_signal(SIG_BLOCK, SIGUSR1);
    hits = wrong = 0;
    for (int i = 0; i < N; i++) {
        t[i] = (struct target){.up = GATE_INIT};
        pt[i] = spawn(opens_and_closes, &t[i]);
        gate_wait(&t[i].up, 1);
    }
    for (int i = 1; i <= ROUNDS; i++) {
        pid_t child = signal_from_outside(SIGUSR1);
        WAIT_UNTIL(hits == i);
        MUST(waitpid(child, NULL, 0) == child);
    }
    for (int i = 0; i < N; i++) {
        t[i].stop = 1;
        join(pt[i]);
    }
    CHECK_EQ(hits, ROUNDS);
    CHECK_EQ(wrong, 0);
    mask_signal(SIG_UNBLOCK, SIGUSR1);
    sigaction(SIGUSR1, &old, NULL);
}

// A bound thread is in a handler that blocks SIGUSR1 when that is sent to the process. It was made
// the thread's own: nobody else had it meanwhile, and it was gone if the thread ended there.
static atomic_int in_handler, leave_handler, exits;

static void stays_in_handler(int sig, siginfo_t *si, void *uc)
{
    (void)sig;
    (void)si;
    (void)uc;
    in_handler = 1;
    while (!leave_handler) nap(MS);
    if (exits) pthread_exit(NULL);
}

static void counts(int sig, siginfo_t *si, void *uc)
{
    (void)sig;
    (void)si;
    (void)uc;
    atomic_fetch_add(&hits, 1);
}

static void *accepts(void *arg)
{
    struct target *t = arg;
    if (t->bound) bind_to_this_processor();
    mask_signal(SIG_UNBLOCK, SIGUSR1);
    gate_post(&t->up);
    while (!t->stop) nap(MS);
    return NULL;
}

static void set_both(struct sigaction old[2])
{
    struct sigaction sa = {.sa_sigaction = stays_in_handler, .sa_flags = SA_SIGINFO};
    sigaddset(&sa.sa_mask, SIGUSR1);
    old[0] = set_action(SIGUSR1, counts, SA_RESTART);
    MUST(sigaction(SIGUSR2, &sa, &old[1]) == 0);
    mask_signal(SIG_BLOCK, SIGUSR1);
    hits = in_handler = leave_handler = exits = 0;
}

static void set_back(struct sigaction old[2])
{
    mask_signal(SIG_UNBLOCK, SIGUSR1);
    sigaction(SIGUSR1, &old[0], NULL);
    sigaction(SIGUSR2, &old[1], NULL);
}

static void another_takes_it_meanwhile(void)
{
    for (int bound_first = 0; bound_first < 2; bound_first++) {
        struct target t[2];
        struct sigaction old[2];
        pthread_t pt[2];
        set_both(old);
        for (int i = 0; i < 2; i++) {
            t[i] = (struct target){.up = GATE_INIT, .bound = i != bound_first};
            pt[i] = spawn(accepts, &t[i]);
            gate_wait(&t[i].up, 1);
        }
        MUST(pthread_kill(pt[!bound_first], SIGUSR2) == 0);
        WAIT_UNTIL(in_handler);
        MUST(kill(getpid(), SIGUSR1) == 0);
        WAIT_UNTIL(hits == 1);
        leave_handler = t[0].stop = t[1].stop = 1;
        for (int i = 0; i < 2; i++) join(pt[i]);
        CHECK_EQ(hits, 1);
        set_back(old);
    }
}

static void it_stays_with_the_process(void)
{
    struct target t = {.up = GATE_INIT, .bound = 1};
    struct sigaction old[2];
    sigset_t set = one_signal(SIGUSR1);
    struct timespec limit = {20, 0};
    siginfo_t si;
    set_both(old);
    pthread_t pt = spawn(accepts, &t);
    gate_wait(&t.up, 1);
    MUST(pthread_kill(pt, SIGUSR2) == 0);
    WAIT_UNTIL(in_handler);
    MUST(kill(getpid(), SIGUSR1) == 0);
    exits = leave_handler = 1;
    join(pt);
    CHECK_EQ(sigtimedwait(&set, &si, &limit), SIGUSR1);
    CHECK_EQ(si.si_code, SI_USER);
    CHECK_EQ(si.si_pid, getpid());
    CHECK_EQ(hits, 0);
    set_back(old);
}

static const struct CMUnitTest tests[] = {
    T(directed_while_it_computes), T(directed_while_it_reads), T(directed_sigurg_and_stkflt),
    T(raised_by_itself),           T(waited_for),              T(process_signals_reach_it),
    T(none_lost_at_a_closing_door), T(another_takes_it_meanwhile), T(it_stays_with_the_process),
};
IO_MAIN(tests)

// signal_wait_test.c - signals taken without handlers: sigwait, sigwaitinfo,
// sigtimedwait, signalfd, and sigsuspend, sigpause and pause, with exact queue counts.
//
// Invariant: the waited signals are blocked in every thread before the first is sent.
// Callers:   run natively and under LD_PRELOAD; uses io.h only.
#include "io.h"
#include <sys/epoll.h>
#include <sys/signalfd.h>

#define RT (SIGRTMIN + 2)

static union sigval value(int v)
{
    return (union sigval){.sival_int = v};
}

static void *sigwait_main(void *arg)
{
    sigset_t s = one_signal(SIGUSR1);
    sigaddset(&s, SIGUSR2);
    int counts[2] = {0, 0}, sig;
    struct gate *g = arg;
    do {
        MUST(sigwait(&s, &sig) == 0);
        counts[sig == SIGUSR2]++;
        gate_post(g);
    } while (sig != SIGUSR2);
    return (void *)(intptr_t)counts[0];
}

// The dedicated signal thread: all others block, it waits.
static void sigwait_in_a_dedicated_thread(void)
{
    struct gate g = GATE_INIT;
    mask_signal(SIG_BLOCK, SIGUSR1);
    mask_signal(SIG_BLOCK, SIGUSR2);
    pthread_t t = spawn(sigwait_main, &g);
    for (int i = 1; i <= 20; i++) {
        if (i == 3) settle();
        if (i == 4) others_progress();
        MUST((i % 2 ? kill(getpid(), SIGUSR1) : pthread_kill(t, SIGUSR1)) == 0);
        gate_wait(&g, i);
    }
    pid_t pid = fork();
    if (pid == 0) _exit(kill(getppid(), SIGUSR2) != 0);
    CHECK_CHILD_OK(reap(pid));
    CHECK_EQ((intptr_t)join(t), 20);
    mask_signal(SIG_UNBLOCK, SIGUSR1);
    mask_signal(SIG_UNBLOCK, SIGUSR2);
}

struct taker {
    atomic_int taken;
    atomic_int seen[1001];
    int ordered;
};

static void *take_queue(void *arg)
{
    struct taker *k = arg;
    sigset_t s = one_signal(RT);
    siginfo_t si;
    int last = 0;
    for (;;) {
        int sig = sigwaitinfo(&s, &si);
        if (sig == -1 && errno == EINTR) continue;  // Linux wakes two waiters for one
        MUST(sig == RT);
        CHECK_EQ(si.si_code, SI_QUEUE);
        CHECK_EQ(si.si_pid, getpid());
        int v = si.si_value.sival_int;
        if (v == 0) return NULL;
        if (k->ordered) CHECK_EQ(v, last + 1);
        last = v;
        atomic_fetch_add(&k->seen[v], 1);
        atomic_fetch_add(&k->taken, 1);
    }
}

// Real-time signals queue: a thousand sent to the process, a thousand taken, each once,
// in order where one thread takes them.
static void realtime_queue_is_counted_exactly(void)
{
    mask_signal(SIG_BLOCK, RT);
    for (int threads = 1; threads <= 4; threads += 3) {
        static struct taker k;
        pthread_t t[4];
        memset(&k, 0, sizeof k);
        k.ordered = threads == 1;
        for (int v = 1; v <= 100; v++) MUST(sigqueue(getpid(), RT, value(v)) == 0);
        for (int i = 0; i < threads; i++) t[i] = spawn(take_queue, &k);
        for (int v = 101; v <= 1000; v++) MUST(sigqueue(getpid(), RT, value(v)) == 0);
        WAIT_UNTIL(k.taken >= 1000);
        for (int i = 0; i < threads; i++) MUST(sigqueue(getpid(), RT, value(0)) == 0);
        for (int i = 0; i < threads; i++) join(t[i]);
        for (int v = 1; v <= 1000; v++) CHECK_EQ(k.seen[v], 1);
        CHECK_EQ(k.taken, 1000);
    }
    mask_signal(SIG_UNBLOCK, RT);
}

static __thread int rt_count, rt_last, rt_disorder;

static void on_rt(int sig, siginfo_t *si, void *uc)
{
    (void)sig;
    (void)uc;
    rt_count++;
    if (si->si_value.sival_int != rt_last + 1) rt_disorder++;
    rt_last = si->si_value.sival_int;
}

static void *rt_target(void *arg)
{
    struct gate *g = arg;
    sigset_t p;
    mask_signal(SIG_BLOCK, RT);
    gate_post(g);
    gate_wait(g, 2);
    sigpending(&p);
    CHECK_EQ(sigismember(&p, RT), 1);
    CHECK_EQ(rt_count, 0);
    mask_signal(SIG_UNBLOCK, RT);  // all hundred, in order, before this returns
    CHECK_EQ(rt_count, 100);
    CHECK_EQ(rt_disorder, 0);
    sigpending(&p);
    CHECK_EQ(sigismember(&p, RT), 0);
    return NULL;
}

static void directed_realtime_signals_queue_on_the_thread(void)
{
    struct sigaction old = set_action(RT, on_rt, 0);
    struct gate g[3] = {GATE_INIT, GATE_INIT, GATE_INIT};
    pthread_t t[3];
    sigset_t p;
    for (int i = 0; i < 3; i++) {
        t[i] = spawn(rt_target, &g[i]);
        gate_wait(&g[i], 1);
    }
    for (int v = 1; v <= 100; v++)
        for (int i = 0; i < 3; i++) MUST(pthread_sigqueue(t[i], RT, value(v)) == 0);
    sigpending(&p);
    CHECK_EQ(sigismember(&p, RT), 0);  // pending there, not here
    for (int i = 0; i < 3; i++) gate_post(&g[i]);
    for (int i = 0; i < 3; i++) join(t[i]);
    CHECK_EQ(rt_count, 0);
    sigaction(RT, &old, NULL);
}

static void *timedwait_body(void *unused)
{
    sigset_t s = one_signal(SIGUSR2);
    siginfo_t si;
    struct timespec zero = {0, 0}, soon = {0, 20 * MS}, bad = {0, 1000000000};
    mask_signal(SIG_BLOCK, SIGUSR2);
    CHECK_FAILS(sigtimedwait(&s, &si, &zero), EAGAIN);
    long long from = now_ns();
    CHECK_FAILS(sigtimedwait(&s, &si, &soon), EAGAIN);
    CHECK(now_ns() - from >= 20 * MS && now_ns() - from < 3 * SEC);
    CHECK_FAILS(sigtimedwait(&s, &si, &bad), EINVAL);
    raise(SIGUSR2);
    CHECK_EQ(sigtimedwait(&s, &si, &zero), SIGUSR2);
    CHECK_EQ(si.si_signo, SIGUSR2);
    CHECK_EQ(si.si_code, SI_USER);  // glibc says so for the waited-for SI_TKILL
    raise(SIGUSR2);
    CHECK_EQ(sigwaitinfo(&s, NULL), SIGUSR2);
    CHECK_FAILS(sigtimedwait(&s, &si, &zero), EAGAIN);
    mask_signal(SIG_UNBLOCK, SIGUSR2);
    return unused;
}

static void sigtimedwait_times_out(void)
{
    pthread_t t[4];
    timedwait_body(NULL);
    for (int i = 0; i < 4; i++) t[i] = spawn(timedwait_body, NULL);
    others_progress();
    for (int i = 0; i < 4; i++) join(t[i]);
}

static atomic_int handled;

static void on_signal(int sig)
{
    (void)sig;
    atomic_fetch_add(&handled, 1);
}

struct other {
    int err, rc, how;
    atomic_int done;
    struct gate started;
};

static void *wait_other(void *arg)
{
    struct other *o = arg;
    sigset_t s = one_signal(SIGUSR2);
    struct timespec t = {1000, 0};
    gate_post(&o->started);
    errno = 0;
    o->rc = o->how ? sigwaitinfo(&s, NULL) : sigtimedwait(&s, NULL, &t);
    o->err = errno;
    o->done = 1;
    return NULL;
}

// A handler of another signal ends the wait with EINTR, SA_RESTART or not.
static void another_signals_handler_is_eintr(void)
{
    mask_signal(SIG_BLOCK, SIGUSR2);
    for (int k = 0; k < 4; k++) {
        struct sigaction old = set_handler(SIGUSR1, on_signal, k & 1 ? SA_RESTART : 0);
        struct other o = {.how = k >> 1, .started = GATE_INIT};
        pthread_t t = spawn(wait_other, &o);
        gate_wait(&o.started, 1);
        while (!o.done) {
            pthread_kill(t, SIGUSR1);
            nap(200000);
        }
        join(t);
        CHECK_EQ(o.rc, -1);
        CHECK_EQ(o.err, EINTR);
        sigaction(SIGUSR1, &old, NULL);
    }
    mask_signal(SIG_UNBLOCK, SIGUSR2);
}

struct pong {
    pthread_t peer;
    atomic_int hits;
    int rounds, serve;
    int (*wait)(const sigset_t *open);
    struct gate ready;
};

static __thread struct pong *self;

static void on_pong(int sig)
{
    (void)sig;
    atomic_fetch_add(&self->hits, 1);
}

static void *suspend_main(void *arg)
{
    struct pong *p = arg;
    sigset_t open;
    self = p;
    pthread_sigmask(SIG_SETMASK, NULL, &open);
    sigdelset(&open, SIGUSR1);
    gate_post(&p->ready);
    gate_wait(&p->ready, 2);
    for (int i = 1; i <= p->rounds; i++) {
        if (p->serve) MUST(pthread_kill(p->peer, SIGUSR1) == 0);
        while (p->hits < i) {  // blocked between the test and the wait: no race
            CHECK_FAILS(p->wait(&open), EINTR);
        }
        sigset_t now;
        pthread_sigmask(SIG_SETMASK, NULL, &now);
        CHECK_EQ(sigismember(&now, SIGUSR1), 1);
        if (!p->serve) MUST(pthread_kill(p->peer, SIGUSR1) == 0);
    }
    gate_post(&p->ready);
    gate_wait(&p->ready, 4);
    return NULL;
}

// Two threads play ball with pthread_kill: one lost signal hangs it.
static void ping_pong(int (*wait)(const sigset_t *open))
{
    struct sigaction old = set_handler(SIGUSR1, on_pong, 0);
    mask_signal(SIG_BLOCK, SIGUSR1);
    struct pong p[2] = {{.rounds = 500, .serve = 1, .wait = wait, .ready = GATE_INIT},
                        {.rounds = 500, .wait = wait, .ready = GATE_INIT}};
    pthread_t t[2];
    for (int i = 0; i < 2; i++) {
        t[i] = spawn(suspend_main, &p[i]);
        gate_wait(&p[i].ready, 1);
    }
    for (int i = 0; i < 2; i++) p[i].peer = t[1 - i];
    for (int i = 0; i < 2; i++) gate_post(&p[i].ready);
    for (int i = 0; i < 2; i++) gate_wait(&p[i].ready, 3);
    for (int i = 0; i < 2; i++) gate_post(&p[i].ready);
    for (int i = 0; i < 2; i++) {
        join(t[i]);
        CHECK_EQ(p[i].hits, 500);
    }
    mask_signal(SIG_UNBLOCK, SIGUSR1);
    sigaction(SIGUSR1, &old, NULL);
}

static void sigsuspend_ping_pong(void)
{
    ping_pong(sigsuspend);
}

int bsd_sigpause(int mask) __asm__("sigpause");
int xpg_sigpause(int sig) __asm__("__xpg_sigpause");

static int by_signal(const sigset_t *open)
{
    (void)open;  // what it blocks, but for the one
    return xpg_sigpause(SIGUSR1);
}

static int by_mask(const sigset_t *open)
{
    int mask;
    memcpy(&mask, open, sizeof mask);
    return bsd_sigpause(mask);
}

// They were libc's own, which change the mask of the kernel thread only: the first hung, and
// the signal stayed in the thread's mask.
static void sigpause_ping_pong(void)
{
    ping_pong(by_signal);
    ping_pong(by_mask);
    CHECK_FAILS(xpg_sigpause(0), EINVAL);
    CHECK_FAILS(xpg_sigpause(65), EINVAL);
}

static void *pause_main(void *arg)
{
    struct other *o = arg;
    gate_post(&o->started);
    errno = 0;
    o->rc = pause();
    o->err = errno;
    o->done = 1;
    return NULL;
}

static void pause_ends_with_eintr(void)
{
    for (int restart = 0; restart < 2; restart++) {
        struct sigaction old = set_handler(SIGUSR1, on_signal, restart ? SA_RESTART : 0);
        struct other o = {.started = GATE_INIT};
        handled = 0;
        pthread_t t = spawn(pause_main, &o);
        gate_wait(&o.started, 1);
        others_progress();
        while (!o.done) {
            pthread_kill(t, SIGUSR1);
            nap(200000);
        }
        join(t);
        CHECK_EQ(o.rc, -1);
        CHECK_EQ(o.err, EINTR);
        CHECK(handled > 0);
        sigaction(SIGUSR1, &old, NULL);
    }
}

struct sfd {
    int fd, ep;
    struct signalfd_siginfo si[4];
    ssize_t got;
    struct gate started;
};

static void *sfd_self(void *arg)
{
    struct sfd *s = arg;
    struct pollfd pf = {.fd = s->fd, .events = POLLIN};
    CHECK_EQ(poll(&pf, 1, 0), 0);
    for (int v = 1; v <= 3; v++) MUST(pthread_sigqueue(pthread_self(), RT, value(v)) == 0);
    CHECK_EQ(poll(&pf, 1, 5000), 1);  // what pends on this thread makes it readable here
    CHECK_EQ(read(s->fd, s->si, sizeof s->si), 3 * sizeof s->si[0]);
    for (int v = 1; v <= 3; v++) CHECK_EQ(s->si[v - 1].ssi_int, v);
    CHECK_EQ(poll(&pf, 1, 0), 0);
    return NULL;
}

static void *sfd_reader(void *arg)
{
    struct sfd *s = arg;
    gate_post(&s->started);
    s->got = read(s->fd, s->si, sizeof s->si[0]);
    return NULL;
}

// signalfd gives the reading thread the process's signals and its own, no one else's.
static void signalfd_and_directed_signals(void)
{
    mask_signal(SIG_BLOCK, RT);
    sigset_t set = one_signal(RT);
    struct sfd s = {.fd = signalfd(-1, &set, SFD_CLOEXEC), .started = GATE_INIT};
    pthread_t t[3];
    for (int i = 0; i < 3; i++) join(spawn(sfd_self, &s));
    struct sfd r = {.fd = s.fd, .started = GATE_INIT};
    pthread_t rt = spawn(sfd_reader, &r);
    gate_wait(&r.started, 1);
    settle();
    MUST(pthread_sigqueue(rt, RT, value(55)) == 0);  // while it is blocked in read
    join(rt);
    CHECK_EQ(r.got, sizeof r.si[0]);
    CHECK_EQ(r.si[0].ssi_int, 55);
    CHECK_EQ(r.si[0].ssi_code, SI_QUEUE);
    struct sfd many[3];
    for (int i = 0; i < 3; i++) {
        many[i] = (struct sfd){.fd = s.fd, .started = GATE_INIT};
        t[i] = spawn(sfd_reader, &many[i]);
        gate_wait(&many[i].started, 1);
    }
    for (int v = 1; v <= 3; v++) MUST(sigqueue(getpid(), RT, value(v)) == 0);
    int sum = 0;
    for (int i = 0; i < 3; i++) {
        join(t[i]);
        sum += many[i].si[0].ssi_int;
    }
    CHECK_EQ(sum, 6);
    close(s.fd);
    mask_signal(SIG_UNBLOCK, RT);
}

static const struct CMUnitTest tests[] = {
    T(sigwait_in_a_dedicated_thread),
    T(realtime_queue_is_counted_exactly),
    T(directed_realtime_signals_queue_on_the_thread),
    T(sigtimedwait_times_out),
    T(another_signals_handler_is_eintr),
    T(sigsuspend_ping_pong),
    T(sigpause_ping_pong),
    T(pause_ends_with_eintr),
    T(signalfd_and_directed_signals),
};
IO_MAIN(tests)

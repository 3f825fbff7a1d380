// signal_timer_test.c - signals from clocks: alarm, setitimer of all three kinds,
// timer_create with SIGEV_SIGNAL, SIGEV_THREAD_ID, SIGEV_THREAD and SIGEV_NONE.
//
// Invariant: no timer is early; counts include overruns; upper bounds are loose.
// Callers:   run natively and under LD_PRELOAD; uses io.h only.
#include "io.h"
#include <semaphore.h>

#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

static atomic_int handled, wrong_thread;
static pthread_t wanted;

static void on_signal(int sig)
{
    (void)sig;
    if (!pthread_equal(pthread_self(), wanted)) atomic_fetch_add(&wrong_thread, 1);
    atomic_fetch_add(&handled, 1);
}

struct spin {
    atomic_int stop;
    struct gate started;
};

static void *spinner(void *arg)
{
    struct spin *s = arg;
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, NULL);
    gate_post(&s->started);
    while (!s->stop)
        ;
    return NULL;
}

// A ticking SIGALRM reaches main while main waits in join and a worker that blocks
// everything computes.
static void itimer_real_reaches_the_waiting_main(void)
{
    struct sigaction old = set_handler(SIGALRM, on_signal, SA_RESTART);
    struct spin s = {.started = GATE_INIT};
    struct itimerval it = {{0, 5000}, {0, 5000}}, off = {{0, 0}, {0, 0}}, was;
    handled = wrong_thread = 0;
    wanted = pthread_self();
    pthread_t t = spawn(spinner, &s);
    gate_wait(&s.started, 1);
    long long from = now_ns();
    MUST(setitimer(ITIMER_REAL, &it, NULL) == 0);
    while (handled < 10) pause();
    CHECK(now_ns() - from >= 50 * MS);
    MUST(setitimer(ITIMER_REAL, &off, &was) == 0);
    CHECK_EQ(was.it_interval.tv_usec, 5000);
    CHECK_EQ(wrong_thread, 0);
    s.stop = 1;
    join(t);
    sigaction(SIGALRM, &old, NULL);
}

static atomic_int slow;

static void handle_slowly_once(int sig)
{
    (void)sig;
    long long until = now_ns() + (atomic_exchange(&slow, 0) ? 12 * MS : 0);
    while (now_ns() < until)
        ;
    atomic_fetch_add(&handled, 1);
}

// Ticks come while the only thread that accepts them is in the handler, which blocks them, and
// go on coming. (The scheduler's own thread closed the signal then and was not told to open
// it again: once main had nothing pending and slept, no further tick reached it.)
static void ticks_go_on_after_one_came_during_the_handler(void)
{
    struct sigaction old = set_handler(SIGALRM, handle_slowly_once, SA_RESTART);
    struct spin s = {.started = GATE_INIT};
    struct itimerval it = {{0, 5000}, {0, 5000}}, off = {{0, 0}, {0, 0}};
    handled = 0;
    pthread_t t = spawn(spinner, &s);
    gate_wait(&s.started, 1);
    for (int round = 0; round < 4; round++) {
        MUST(setitimer(ITIMER_REAL, &it, NULL) == 0);
        int until = handled + 4;
        slow = 1;
        while (handled < until) pause();
        MUST(setitimer(ITIMER_REAL, &off, NULL) == 0);
    }
    s.stop = 1;
    join(t);
    sigaction(SIGALRM, &old, NULL);
}

static atomic_int prof_hits;

static void on_prof(int sig, siginfo_t *si, void *uc)
{
    (void)sig;
    (void)si;
    (void)uc;
    atomic_fetch_add(&prof_hits, 1);
}

static void *burner(void *arg)
{
    long long until = (long long)(intptr_t)arg;
    volatile double x = 1;
    while (prof_hits < until)
        for (int i = 0; i < 10000; i++) x = x * 1.0000001;
    return NULL;
}

// The profiler's shape: SIGPROF by CPU time, while threads compute.
static void itimer_prof_and_virtual_tick_while_computing(void)
{
    static const struct { int which, sig; } kinds[] = {{ITIMER_PROF, SIGPROF},
                                                       {ITIMER_VIRTUAL, SIGVTALRM}};
    for (int k = 0; k < 2; k++) {
        struct sigaction old = set_action(kinds[k].sig, on_prof, SA_RESTART);
        struct itimerval it = {{0, 2000}, {0, 2000}}, off = {{0, 0}, {0, 0}};
        prof_hits = 0;
        struct timespec c0, c1;
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &c0);
        MUST(setitimer(kinds[k].which, &it, NULL) == 0);
        pthread_t a = spawn(burner, (void *)(intptr_t)10), b = spawn(burner, (void *)(intptr_t)10);
        join(a);
        join(b);
        MUST(setitimer(kinds[k].which, &off, NULL) == 0);
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &c1);
        CHECK(ns_of(c1) - ns_of(c0) >= 10 * MS);  // ten ticks need CPU time
        sigaction(kinds[k].sig, &old, NULL);
    }
}

static void *alarm_thread(void *unused)
{
    alarm(1);
    return unused;
}

// alarm belongs to the process: set by a thread that has ended, it still comes.
static void alarm_set_by_a_finished_thread(void)
{
    struct sigaction old = set_handler(SIGALRM, on_signal, 0);
    handled = wrong_thread = 0;
    wanted = pthread_self();
    join(spawn(alarm_thread, NULL));
    struct itimerval it;
    MUST(getitimer(ITIMER_REAL, &it) == 0);
    CHECK(it.it_value.tv_sec == 1 || it.it_value.tv_usec > 0);
    it.it_value = (struct timeval){0, 3000};  // no need to wait the second out
    MUST(setitimer(ITIMER_REAL, &it, NULL) == 0);
    WAIT_UNTIL(handled == 1);
    CHECK_EQ(wrong_thread, 0);
    CHECK_EQ(alarm(0), 0);
    sigaction(SIGALRM, &old, NULL);
}

#define RT (SIGRTMIN + 4)

static void timer_signal_is_taken_by_sigwaitinfo(void)
{
    timer_t tm;
    siginfo_t si;
    sigset_t set = one_signal(RT);
    struct sigevent ev = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = RT,
                          .sigev_value.sival_int = 991};
    struct itimerspec its = {{0, 2 * MS}, {0, 2 * MS}}, now;
    mask_signal(SIG_BLOCK, RT);
    MUST(timer_create(CLOCK_MONOTONIC, &ev, &tm) == 0);
    long long from = now_ns();
    MUST(timer_settime(tm, 0, &its, NULL) == 0);
    long ticks = 0;
    while (ticks < 10) {
        int sig = sigwaitinfo(&set, &si);
        if (sig == -1) MUST(errno == EINTR);
        if (sig != RT) continue;
        CHECK_EQ(si.si_code, SI_TIMER);
        CHECK_EQ(si.si_value.sival_int, 991);
        ticks += 1 + si.si_overrun;
    }
    CHECK(now_ns() - from >= ticks * 2 * MS);
    MUST(timer_gettime(tm, &now) == 0);
    CHECK_EQ(now.it_interval.tv_nsec, 2 * MS);
    CHECK(timer_getoverrun(tm) >= 0);
    MUST(timer_delete(tm) == 0);
    struct timespec zero = {0, 0};
    while (sigtimedwait(&set, NULL, &zero) == RT)
        ;
    mask_signal(SIG_UNBLOCK, RT);
}

struct ticked {
    int n;
    atomic_int hits, wrong;
    pthread_t self;
    struct gate started;
};

static __thread struct ticked *me;

static void on_tick(int sig, siginfo_t *si, void *uc)
{
    (void)sig;
    (void)uc;
    struct ticked *t = me;
    if (!t) _exit(5);
    if (!pthread_equal(t->self, pthread_self()) || si->si_code != SI_TIMER ||
        si->si_value.sival_int != t->n)
        atomic_fetch_add(&t->wrong, 1);
    atomic_fetch_add(&t->hits, 1);
}

static void *ticked_main(void *arg)
{
    struct ticked *t = arg;
    timer_t tm;
    struct sigevent ev = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = RT,
                          .sigev_value.sival_int = t->n};
    struct itimerspec its = {{0, 3 * MS}, {0, 3 * MS}};
    ev.sigev_notify_thread_id = gettid();
    t->self = pthread_self();
    me = t;
    mask_signal(SIG_UNBLOCK, RT);
    MUST(timer_create(CLOCK_MONOTONIC, &ev, &tm) == 0);
    MUST(timer_settime(tm, 0, &its, NULL) == 0);
    while (t->hits < 5) {
        if (t->n % 2) nanosleep(&(struct timespec){0, 500000}, NULL);
        else sched_yield();
    }
    MUST(timer_delete(tm) == 0);
    mask_signal(SIG_BLOCK, RT);
    return NULL;
}

// SIGEV_THREAD_ID: each thread's timer signals that thread and no other.
static void timer_to_a_thread(void)
{
    struct sigaction old = set_action(RT, on_tick, SA_RESTART);
    struct ticked k[5];
    pthread_t t[5];
    mask_signal(SIG_BLOCK, RT);
    for (int i = 0; i < 5; i++) {
        k[i] = (struct ticked){.n = 100 + i, .started = GATE_INIT};
        t[i] = spawn(ticked_main, &k[i]);
    }
    for (int i = 0; i < 5; i++) {
        join(t[i]);
        CHECK(k[i].hits >= 5);
        CHECK_EQ(k[i].wrong, 0);
    }
    struct timespec zero = {0, 0};
    sigset_t set = one_signal(RT);
    CHECK_FAILS(sigtimedwait(&set, NULL, &zero), EAGAIN);
    mask_signal(SIG_UNBLOCK, RT);
    sigaction(RT, &old, NULL);
    timer_t tm;
    struct sigevent ev = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = RT};
    ev.sigev_notify_thread_id = 0x3ffffff;
    CHECK_FAILS(timer_create(CLOCK_MONOTONIC, &ev, &tm), EINVAL);
}

struct notified {
    pthread_mutex_t m;
    pthread_cond_t c;
    sem_t sem;
    int calls, p[2];
};

// Runs in a thread that libc made by itself: it may use every primitive with the
// program's own threads.
static void notify(union sigval v)
{
    struct notified *n = v.sival_ptr;
    pthread_mutex_lock(&n->m);
    n->calls++;
    pthread_cond_broadcast(&n->c);
    pthread_mutex_unlock(&n->m);
    sem_post(&n->sem);
    MUST(write(n->p[1], "n", 1) == 1);
}

static void *waits_for_notify(void *arg)
{
    struct notified *n = arg;
    pthread_mutex_lock(&n->m);
    while (n->calls < 5) pthread_cond_wait(&n->c, &n->m);
    pthread_mutex_unlock(&n->m);
    return NULL;
}

static void *waits_on_sem_and_pipe(void *arg)
{
    struct notified *n = arg;
    char c;
    for (int i = 0; i < 5; i++) {
        while (sem_wait(&n->sem)) MUST(errno == EINTR);
        MUST(read(n->p[0], &c, 1) == 1);
    }
    return NULL;
}

static void timer_with_a_notify_thread(void)
{
    static struct notified n = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, {{0}}, 0, {0, 0}};
    timer_t tm;
    struct sigevent ev = {.sigev_notify = SIGEV_THREAD, .sigev_notify_function = notify,
                          .sigev_value.sival_ptr = &n};
    struct itimerspec its = {{0, 3 * MS}, {0, 3 * MS}};
    sem_init(&n.sem, 0, 0);
    make_pipe(n.p);
    pthread_t a = spawn(waits_for_notify, &n), b = spawn(waits_on_sem_and_pipe, &n);
    MUST(timer_create(CLOCK_MONOTONIC, &ev, &tm) == 0);
    MUST(timer_settime(tm, 0, &its, NULL) == 0);
    waits_for_notify(&n);
    join(a);
    join(b);
    MUST(timer_delete(tm) == 0);
    // The pipe and the counters stay: a last notification may still be on its way.
}

static void timer_without_notification(void)
{
    timer_t tm;
    struct sigevent ev = {.sigev_notify = SIGEV_NONE};
    struct itimerspec its = {{0, 0}, {100, 0}}, now;
    MUST(timer_create(CLOCK_REALTIME, &ev, &tm) == 0);
    MUST(timer_settime(tm, 0, &its, NULL) == 0);
    MUST(timer_gettime(tm, &now) == 0);
    CHECK(now.it_value.tv_sec >= 90 && now.it_value.tv_sec <= 100);
    MUST(timer_delete(tm) == 0);
    CHECK_FAILS(timer_create(777, &ev, &tm), EINVAL);
}

static const struct CMUnitTest tests[] = {
    T(itimer_real_reaches_the_waiting_main),
    T(ticks_go_on_after_one_came_during_the_handler),
    T(itimer_prof_and_virtual_tick_while_computing),
    T(alarm_set_by_a_finished_thread),
    T(timer_signal_is_taken_by_sigwaitinfo),
    T(timer_to_a_thread),
    T(timer_with_a_notify_thread),
    T(timer_without_notification),
};
IO_MAIN(tests)

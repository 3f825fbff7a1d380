// signal_thread_test.c - signals directed at one thread in every state, and process
// signals that find the one thread that accepts them.
//
// Invariant: each signal is waited for before the next is sent, so counts are exact:
//            once each, in the context (identity and TLS) of the thread it was for.
// Callers:   run natively and under LD_PRELOAD; uses io.h only.
#include "io.h"
#include <semaphore.h>

enum state { LOOP, COND, SEM, READ, POLL, NANOSLEEP, JOIN, MUTEX, RWLOCK, BARRIER, ACCEPT,
             YIELD, COND_TIMED, STATES };
static const char *const state_name[] = {"loop", "cond", "sem", "read", "poll", "nanosleep",
                                         "join", "mutex", "rwlock", "barrier", "accept", "yield",
                                         "cond_timed"};

struct victim {
    enum state state;
    pthread_t self;
    pid_t tid;
    atomic_int hits, wrong, stop;
    struct gate started;
    int p[2], listener, port;
    pthread_mutex_t m;
    pthread_cond_t c;
    pthread_rwlock_t rw;
    pthread_barrier_t bar;
    sem_t sem;
    pthread_t sub;
};

static __thread struct victim *mine;
static __thread int tls_mark;
static atomic_int strays;

static void on_directed(int sig)
{
    int e = errno;
    (void)sig;
    struct victim *v = mine;
    if (!v) {
        atomic_fetch_add(&strays, 1);
        return;
    }
    if (!pthread_equal(pthread_self(), v->self) || tls_mark != 0x5157 || gettid() != v->tid)
        atomic_fetch_add(&v->wrong, 1);
    atomic_fetch_add(&v->hits, 1);
    errno = e;
}

static void *wait_stop(void *arg)
{
    struct victim *v = arg;
    gate_wait(&v->started, 2);
    return NULL;
}

static void victim_block(struct victim *v)
{
    struct pollfd pf = {.fd = v->p[0], .events = POLLIN};
    struct timespec far = {now_ns() / SEC + 100000, 0};
    char c;
    int fd;
    switch (v->state) {
    case LOOP:
        while (!v->stop)
            ;
        break;
    case YIELD:
        while (!v->stop) sched_yield();
        break;
    case COND:
    case COND_TIMED:
        pthread_mutex_lock(&v->m);
        while (!v->stop) {
            if (v->state == COND) MUST(pthread_cond_wait(&v->c, &v->m) == 0);
            else MUST(pthread_cond_clockwait(&v->c, &v->m, CLOCK_MONOTONIC, &far) == 0);
        }
        pthread_mutex_unlock(&v->m);
        break;
    case SEM:
        while (sem_wait(&v->sem)) MUST(errno == EINTR);
        break;
    case READ:
        while (read(v->p[0], &c, 1) != 1) MUST(errno == EINTR);
        break;
    case POLL:
        while (poll(&pf, 1, -1) != 1) MUST(errno == EINTR);
        break;
    case NANOSLEEP:
        while (!v->stop) nanosleep(&(struct timespec){0, 30 * MS}, NULL);
        break;
    case JOIN: join(v->sub); break;
    case MUTEX:
        MUST(pthread_mutex_lock(&v->m) == 0);
        pthread_mutex_unlock(&v->m);
        break;
    case RWLOCK:
        MUST(pthread_rwlock_rdlock(&v->rw) == 0);
        pthread_rwlock_unlock(&v->rw);
        break;
    case BARRIER: pthread_barrier_wait(&v->bar); break;
    default:
        while ((fd = accept(v->listener, NULL, NULL)) < 0) MUST(errno == EINTR);
        close(fd);
        break;
    }
}

static void *victim_main(void *arg)
{
    struct victim *v = arg;
    v->self = pthread_self();
    v->tid = gettid();
    tls_mark = 0x5157;
    mine = v;
    gate_post(&v->started);
    victim_block(v);
    CHECK_EQ(tls_mark, 0x5157);
    return v;
}

static pthread_t victim_start(struct victim *v, enum state s)
{
    memset(v, 0, sizeof *v);
    v->state = s;
    v->started = (struct gate)GATE_INIT;
    make_pipe(v->p);
    v->listener = tcp_listen(&v->port, 4);
    pthread_mutex_init(&v->m, NULL);
    pthread_condattr_t ca;
    pthread_condattr_init(&ca);
    pthread_cond_init(&v->c, &ca);
    pthread_rwlock_init(&v->rw, NULL);
    pthread_barrier_init(&v->bar, NULL, 2);
    sem_init(&v->sem, 0, 0);
    if (s == MUTEX) pthread_mutex_lock(&v->m);
    if (s == RWLOCK) pthread_rwlock_wrlock(&v->rw);
    if (s == JOIN) v->sub = spawn(wait_stop, v);
    pthread_t t = spawn(victim_main, v);
    gate_wait(&v->started, 1);
    return t;
}

static void victim_end(struct victim *v, pthread_t t)
{
    v->stop = 1;
    gate_post(&v->started);  // lets the JOIN victim's partner end
    if (v->state == COND || v->state == COND_TIMED) {
        pthread_mutex_lock(&v->m);
        pthread_cond_signal(&v->c);
        pthread_mutex_unlock(&v->m);
    }
    if (v->state == SEM) sem_post(&v->sem);
    if (v->state == READ || v->state == POLL) MUST(write(v->p[1], "x", 1) == 1);
    if (v->state == MUTEX) pthread_mutex_unlock(&v->m);
    if (v->state == RWLOCK) pthread_rwlock_unlock(&v->rw);
    if (v->state == BARRIER) pthread_barrier_wait(&v->bar);
    int c = v->state == ACCEPT ? tcp_connect(v->port) : -1;
    CHECK(join(t) == v);
    if (c >= 0) close(c);
    close2(v->p);
    close(v->listener);
    pthread_cond_destroy(&v->c);
    pthread_mutex_destroy(&v->m);
}

static int send_as(int how, struct victim *v, pthread_t t)
{
    union sigval val = {.sival_int = 1};
    switch (how % 4) {
    case 0: return pthread_kill(t, SIGUSR1);
    case 1: return pthread_sigqueue(t, SIGUSR1, val);
    case 2: return tgkill(getpid(), v->tid, SIGUSR1);
    default: return (int)syscall(SYS_tgkill, getpid(), v->tid, SIGUSR1);
    }
}

static void directed_to_all_states(int restart)
{
    static struct victim v[STATES];
    pthread_t t[STATES];
    struct sigaction old = set_handler(SIGUSR1, on_directed, restart ? SA_RESTART : 0);
    strays = 0;
    for (int s = 0; s < STATES; s++) t[s] = victim_start(&v[s], (enum state)s);
    settle();
    for (int i = 1; i <= 8; i++)
        for (int s = 0; s < STATES; s++) {
            io_note(state_name[s], i);
            MUST(send_as(i, &v[s], t[s]) == 0);
            WAIT_UNTIL(v[s].hits >= i);
        }
    settle();
    for (int s = 0; s < STATES; s++) {
        victim_end(&v[s], t[s]);
        if (v[s].hits != 8 || v[s].wrong) print_message("state %s\n", state_name[s]);
        CHECK_EQ(v[s].hits, 8);
        CHECK_EQ(v[s].wrong, 0);
    }
    CHECK_EQ(strays, 0);
    sigaction(SIGUSR1, &old, NULL);
}

static void directed_to_all_states_plain(void)
{
    directed_to_all_states(0);
}

static void directed_to_all_states_with_restart(void)
{
    directed_to_all_states(1);
}

static void *just_return(void *arg)
{
    gate_post(arg);
    return arg;
}

// A thread that has ended but was not joined still has a valid id.
static void to_a_finished_thread(void)
{
    struct gate g = GATE_INIT;
    struct sigaction old = set_handler(SIGUSR1, on_directed, 0);
    strays = 0;
    pthread_t t = spawn(just_return, &g);
    gate_wait(&g, 1);
    CHECK_EQ(pthread_kill(t, 0) == 0 || pthread_kill(t, 0) == ESRCH, 1);
    join(spawn(just_return, &g));
    settle();
    CHECK_EQ(pthread_kill(t, 0) == 0 || pthread_kill(t, 0) == ESRCH, 1);
    join(t);
    CHECK_EQ(pthread_kill(pthread_self(), 65), EINVAL);
    CHECK_EQ(pthread_kill(pthread_self(), -1), EINVAL);
    CHECK_FAILS(tgkill(getpid(), 0x3fffffff, 0), ESRCH);
    CHECK_FAILS(tgkill(getpid(), -1, 0), EINVAL);
    CHECK_EQ(strays, 0);
    sigaction(SIGUSR1, &old, NULL);
}

// To itself, and to one another in a ring: the handler has run when a signal to
// oneself returns.
struct ring {
    struct victim v;
    pthread_t to;
    atomic_int sent;
};

static void *ring_main(void *arg)
{
    struct ring *r = arg;
    r->v.self = pthread_self();
    r->v.tid = gettid();
    tls_mark = 0x5157;
    mine = &r->v;
    gate_post(&r->v.started);
    gate_wait(&r->v.started, 2);
    for (int i = 1; i <= 50; i++) {
        int before = r->v.hits;
        MUST(pthread_kill(pthread_self(), SIGUSR1) == 0);
        CHECK(r->v.hits > before);
        MUST(pthread_kill(r->to, SIGUSR2) == 0);
        if (i % 5 == 0) sched_yield();
    }
    r->sent = 1;
    gate_wait(&r->v.started, 3);  // stay until all have sent: the id must be valid
    return NULL;
}

static void to_oneself_and_round_a_ring(void)
{
    enum { N = 8 };
    static struct ring r[N];
    pthread_t t[N];
    struct sigaction o1 = set_handler(SIGUSR1, on_directed, SA_RESTART);
    struct sigaction o2 = set_handler(SIGUSR2, on_directed, SA_RESTART);
    for (int i = 0; i < N; i++) {
        memset(&r[i], 0, sizeof r[i]);
        r[i].v.started = (struct gate)GATE_INIT;
        t[i] = spawn(ring_main, &r[i]);
        gate_wait(&r[i].v.started, 1);
    }
    for (int i = 0; i < N; i++) r[i].to = t[(i + 1) % N];
    for (int i = 0; i < N; i++) gate_post(&r[i].v.started);
    for (int i = 0; i < N; i++) WAIT_UNTIL(r[i].sent && r[i].v.hits > 50);  // 50 own, 1..50 merged
    for (int i = 0; i < N; i++) gate_post(&r[i].v.started);
    for (int i = 0; i < N; i++) {
        join(t[i]);
        CHECK(r[i].v.hits <= 100);
        CHECK_EQ(r[i].v.wrong, 0);
    }
    sigaction(SIGUSR1, &o1, NULL);
    sigaction(SIGUSR2, &o2, NULL);
}

static atomic_int process_hits, process_wrong;
static pthread_t acceptor;

static void on_process(int sig)
{
    (void)sig;
    if (!pthread_equal(pthread_self(), acceptor)) atomic_fetch_add(&process_wrong, 1);
    atomic_fetch_add(&process_hits, 1);
}

struct worker {
    int p[2];
    int sends;
    pid_t from_child;
    atomic_int *stop;
};

static void *deaf_worker(void *arg)
{
    struct worker *w = arg;
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, NULL);
    char c;
    if (w->sends) {
        for (int i = 1; i <= w->sends; i++) {
            if (i % 4 == 0) {  // from outside the process
                pid_t pid = fork();
                if (pid == 0) _exit(kill(getppid(), SIGTERM) != 0);
                CHECK_CHILD_OK(reap(pid));
            } else {
                MUST(kill(getpid(), SIGTERM) == 0);
            }
            WAIT_UNTIL(process_hits >= i);
        }
        return NULL;
    }
    if (w->p[0] >= 0) MUST(read(w->p[0], &c, 1) == 0);
    else
        while (!*w->stop)
            ;
    return NULL;
}

// The server's shape: main waits in join, every worker blocks everything. The signal
// must reach main although main does not run.
static void process_signal_finds_main_in_join(void)
{
    struct sigaction old = set_handler(SIGTERM, on_process, 0);
    atomic_int stop = 0;
    int p[2];
    process_hits = process_wrong = 0;
    acceptor = pthread_self();
    make_pipe(p);
    struct worker blocked = {{p[0], p[1]}, 0, 0, &stop}, busy = {{-1, -1}, 0, 0, &stop};
    struct worker sender = {{-1, -1}, 8, 0, &stop};
    mask_signal(SIG_BLOCK, SIGTERM);  // no worker may accept it for a moment
    pthread_t t[3] = {spawn(deaf_worker, &blocked), spawn(deaf_worker, &blocked),
                      spawn(deaf_worker, &busy)};
    pthread_t s = spawn(deaf_worker, &sender);
    mask_signal(SIG_UNBLOCK, SIGTERM);
    join(s);  // this is where they arrive
    CHECK_EQ(process_hits, 8);
    CHECK_EQ(process_wrong, 0);
    stop = 1;
    close(p[1]);
    for (int i = 0; i < 3; i++) join(t[i]);
    close(p[0]);
    sigaction(SIGTERM, &old, NULL);
}

struct listener {
    int p[2], eintr;
    struct gate started;
};

static void *only_acceptor(void *arg)
{
    struct listener *l = arg;
    char c;
    acceptor = pthread_self();
    mask_signal(SIG_UNBLOCK, SIGTERM);
    gate_post(&l->started);
    for (;;) {
        ssize_t r = read(l->p[0], &c, 1);
        if (r == 0) return NULL;
        if (r == -1 && errno == EINTR) l->eintr++;
        else MUST(r == 1);
    }
}

// Main blocks the signal; one thread, blocked in read, is the only one to take it.
static void process_signal_finds_the_only_acceptor(void)
{
    struct sigaction old = set_handler(SIGTERM, on_process, 0);
    struct listener l = {.started = GATE_INIT};
    process_hits = process_wrong = 0;
    make_pipe(l.p);
    mask_signal(SIG_BLOCK, SIGTERM);
    pthread_t t = spawn(only_acceptor, &l);
    gate_wait(&l.started, 1);
    settle();
    for (int i = 1; i <= 10; i++) {
        MUST(kill(getpid(), SIGTERM) == 0);
        WAIT_UNTIL(process_hits >= i);
    }
    close(l.p[1]);
    join(t);
    CHECK_EQ(process_hits, 10);
    CHECK_EQ(process_wrong, 0);
    CHECK(l.eintr >= 1 && l.eintr <= 10);
    mask_signal(SIG_UNBLOCK, SIGTERM);
    close(l.p[0]);
    sigaction(SIGTERM, &old, NULL);
}

static sem_t handled;
static atomic_int sending, lost;

static struct timespec real_in(long long ns)
{
    struct timespec t;
    MUST(clock_gettime(CLOCK_REALTIME, &t) == 0);
    return ts_of(t.tv_sec * SEC + t.tv_nsec + ns);
}

static void on_handled(int sig)
{
    (void)sig;
    sem_post(&handled);
}

static void *short_waits(void *arg)
{
    pthread_mutex_t m = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t c = PTHREAD_COND_INITIALIZER;
    mask_signal(SIG_UNBLOCK, SIGTERM);
    pthread_mutex_lock(&m);
    while (sending) {
        struct timespec t = real_in(1000);
        pthread_cond_timedwait(&c, &m, &t);
    }
    pthread_mutex_unlock(&m);
    return arg;
}

static void *sender(void *arg)
{
    while (sending) {  // what was sent before this is 0 was sent to a thread that takes it
        struct timespec t = real_in(5 * SEC);
        if (sem_timedwait(&handled, &t) != 0) {
            lost++;
            return arg;
        }
        MUST(kill(getpid(), SIGTERM) == 0);
    }
    return arg;
}

// The only thread that takes it ends just then: it was sent while that thread accepted it, so
// its handler runs first. It was dropped with the thread, or came when that had gone
// (LTP's pthread_cond_timedwait 4-3 hung in its sender's sem_wait).
static void process_signal_is_handled_before_its_taker_ends(void)
{
    struct sigaction old = set_handler(SIGTERM, on_handled, 0);
    mask_signal(SIG_BLOCK, SIGTERM);
    for (int i = 0; i < 300 && lost == 0; i++) {
        MUST(sem_init(&handled, 0, 1) == 0);
        sending = 1;
        pthread_t taker = spawn(short_waits, NULL), s = spawn(sender, NULL);
        usleep(100 + (useconds_t)i * 7 % 400);
        sending = 0;
        join(s);
        join(taker);
        // The last one may have been sent to nobody.
        sigset_t set;
        sigemptyset(&set);
        sigaddset(&set, SIGTERM);
        sigtimedwait(&set, NULL, &(struct timespec){0, 0});
    }
    CHECK_EQ(lost, 0);
    mask_signal(SIG_UNBLOCK, SIGTERM);
    sigaction(SIGTERM, &old, NULL);
}

// Nobody accepts it: it stays pending for the process, visible to every thread, until
// some thread unblocks it.
static void *sees_it_pending(void *arg)
{
    sigset_t p;
    sigpending(&p);
    CHECK_EQ(sigismember(&p, SIGTERM), 1);
    if (arg) {
        acceptor = pthread_self();
        mask_signal(SIG_UNBLOCK, SIGTERM);
        CHECK_EQ(process_hits, 1);
    }
    return NULL;
}

static void process_signal_waits_for_an_acceptor(void)
{
    struct sigaction old = set_handler(SIGTERM, on_process, 0);
    process_hits = process_wrong = 0;
    mask_signal(SIG_BLOCK, SIGTERM);
    for (int i = 0; i < 3; i++) MUST(kill(getpid(), SIGTERM) == 0);  // merge into one
    join(spawn(sees_it_pending, NULL));
    CHECK_EQ(process_hits, 0);
    join(spawn(sees_it_pending, "take it"));
    mask_signal(SIG_UNBLOCK, SIGTERM);
    CHECK_EQ(process_hits, 1);
    CHECK_EQ(process_wrong, 0);
    sigaction(SIGTERM, &old, NULL);
}

static const struct CMUnitTest tests[] = {
    T(directed_to_all_states_plain),
    T(directed_to_all_states_with_restart),
    T(to_a_finished_thread),
    T(to_oneself_and_round_a_ring),
    T(process_signal_finds_main_in_join),
    T(process_signal_finds_the_only_acceptor),
    T(process_signal_is_handled_before_its_taker_ends),
    T(process_signal_waits_for_an_acceptor),
};
IO_MAIN(tests)

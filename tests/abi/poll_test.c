// poll_test.c - poll, ppoll, select and pselect by threads: timeouts, wake-ups,
// masks, odd descriptors and results.
//
// Invariant: a finite timeout is never early; upper bounds are loose.
// Callers:   run natively and under LD_PRELOAD; uses io.h only.
#include "io.h"
#include <sys/select.h>

enum call { POLL, PPOLL, SELECT, PSELECT, CALLS };
static const char *const call_name[] = {"poll", "ppoll", "select", "pselect"};

// One shape for the four: wait for input on fd (or on nothing, fd < 0).
static int wait_in(enum call c, int fd, long long ns, const sigset_t *mask)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    struct timespec ts = ts_of(ns), *tsp = ns < 0 ? NULL : &ts;
    struct timeval tv = tv_of(ns), *tvp = ns < 0 ? NULL : &tv;
    fd_set s;
    FD_ZERO(&s);
    if (fd >= 0) FD_SET(fd, &s);
    int r;
    switch (c) {
    case POLL: r = poll(&p, fd >= 0, ns < 0 ? -1 : (int)(ns / MS)); break;
    case PPOLL: r = ppoll(&p, fd >= 0, tsp, mask); break;
    case SELECT: r = select(fd + 1, fd >= 0 ? &s : NULL, NULL, NULL, tvp); break;
    default: r = pselect(fd + 1, fd >= 0 ? &s : NULL, NULL, NULL, tsp, mask); break;
    }
    if (r == 1) CHECK(c <= PPOLL ? p.revents == POLLIN : FD_ISSET(fd, &s));
    if (r == 0) CHECK(c <= PPOLL ? p.revents == 0 : fd < 0 || !FD_ISSET(fd, &s));
    return r;
}

struct waiter {
    enum call call;
    int fd, got, err;
    long long ns, took;
    const sigset_t *mask;
    struct gate started;
    atomic_int done;
};

static void *waiter_main(void *arg)
{
    struct waiter *w = arg;
    gate_post(&w->started);
    long long from = now_ns();
    errno = 0;
    w->got = wait_in(w->call, w->fd, w->ns, w->mask);
    w->err = errno;
    w->took = now_ns() - from;
    w->done = 1;
    return NULL;
}

static pthread_t start(struct waiter *w, enum call c, int fd, long long ns)
{
    *w = (struct waiter){.call = c, .fd = fd, .ns = ns, .started = GATE_INIT};
    return spawn(waiter_main, w);
}

static void timeout_zero_and_finite(void)
{
    int p[2];
    make_pipe(p);
    struct waiter w[CALLS * 2];
    pthread_t t[CALLS * 2];
    for (int i = 0; i < CALLS * 2; i++)  // with a silent descriptor, or as a plain sleep
        t[i] = start(&w[i], (enum call)(i % CALLS), i < CALLS ? p[0] : -1, (20 + i) * MS);
    others_progress();
    for (int i = 0; i < CALLS * 2; i++) {
        join(t[i]);
        CHECK_EQ(w[i].got, 0);
        CHECK(w[i].took >= w[i].ns);
        CHECK(w[i].took < w[i].ns + 2 * SEC);
    }
    for (int c = 0; c < CALLS; c++) {
        CHECK_EQ(wait_in((enum call)c, p[0], 0, NULL), 0);
        MUST(write(p[1], "x", 1) == 1);
        CHECK_EQ(wait_in((enum call)c, p[0], 0, NULL), 1);
        CHECK_EQ(wait_in((enum call)c, p[0], -1, NULL), 1);
        char b;
        MUST(read(p[0], &b, 1) == 1);
    }
    close2(p);
}

static void woken_by_another_thread(void)
{
    for (int c = 0; c < CALLS; c++)
        for (int k = 0; k < 2; k++) {
            int p[2];
            struct waiter w;
            if (k) make_pair(p); else make_pipe(p);
            pthread_t t = start(&w, (enum call)c, p[0], k ? 30 * SEC : -1);
            gate_wait(&w.started, 1);
            settle();
            others_progress();
            CHECK(!w.done);
            MUST(write(p[1], "x", 1) == 1);
            join(t);
            if (w.got != 1) print_message("%s\n", call_name[c]);
            CHECK_EQ(w.got, 1);
            close2(p);
        }
}

// Many pollers of one descriptor: all of them see it, as nobody consumes.
static void every_poller_of_one_descriptor_wakes(void)
{
    enum { N = 40 };
    static struct waiter w[N];
    pthread_t t[N];
    int p[2];
    make_pair(p);
    for (int i = 0; i < N; i++) t[i] = start(&w[i], (enum call)(i % CALLS), p[0], -1);
    for (int i = 0; i < N; i++) gate_wait(&w[i].started, 1);
    settle();
    MUST(write(p[1], "x", 1) == 1);
    for (int i = 0; i < N; i++) {
        join(t[i]);
        CHECK_EQ(w[i].got, 1);
    }
    close2(p);
}

static void odd_descriptors(void)
{
    int p[2], gone[2], file = temp_file();
    make_pipe(p);
    make_pipe(gone);
    close2(gone);
    struct pollfd f[5] = {{.fd = -1, .events = POLLIN, .revents = 99},
                          {.fd = gone[0], .events = POLLIN},
                          {.fd = p[0], .events = POLLIN},
                          {.fd = file, .events = POLLIN | POLLOUT},
                          {.fd = p[1], .events = 0}};
    CHECK_EQ(poll(f, 5, 1000), 2);
    CHECK_EQ(f[0].revents, 0);
    CHECK_EQ(f[1].revents, POLLNVAL);
    CHECK_EQ(f[2].revents, 0);
    CHECK_EQ(f[3].revents, POLLIN | POLLOUT);
    CHECK_EQ(f[4].revents, 0);
    f[0].fd = -1;
    CHECK_EQ(poll(f, 1, 5), 0);
    f[2].events = f[4].events = 0;
    f[2].fd = p[1];
    close(p[0]);
    CHECK_EQ(poll(f + 2, 1, -1), 1);  // no events asked for: errors come all the same
    CHECK_EQ(f[2].revents, POLLERR);
    fd_set s;
    FD_ZERO(&s);
    FD_SET(gone[0], &s);
    CHECK_FAILS(select(gone[0] + 1, &s, NULL, NULL, NULL), EBADF);
    CHECK_FAILS(select(-1, NULL, NULL, NULL, NULL), EINVAL);
    struct timeval bad = {-1, 0};
    CHECK_FAILS(select(0, NULL, NULL, NULL, &bad), EINVAL);
    struct timespec bad2 = {0, 2000000000}, bad3 = {-1, 0};
    CHECK_FAILS(ppoll(NULL, 0, &bad2, NULL), EINVAL);
    CHECK_FAILS(ppoll(NULL, 0, &bad3, NULL), EINVAL);
    CHECK_FAILS(pselect(0, NULL, NULL, NULL, &bad2, NULL), EINVAL);
    close(p[1]);
    close(file);
}

static void *odd_thread(void *arg)
{
    odd_descriptors();
    return arg;
}

static void odd_descriptors_in_a_thread(void)
{
    odd_descriptors();
    join(spawn(odd_thread, NULL));
}

struct hup {
    int fd, got;
    short events, revents;
    struct gate started;
};

static void *hup_main(void *arg)
{
    struct hup *h = arg;
    struct pollfd p = {.fd = h->fd, .events = h->events};
    gate_post(&h->started);
    h->got = poll(&p, 1, -1);
    h->revents = p.revents;
    return NULL;
}

static short hup_of(int fd, int closing, short events, int how)
{
    struct hup h = {.fd = fd, .events = events, .started = GATE_INIT};
    pthread_t t = spawn(hup_main, &h);
    gate_wait(&h.started, 1);
    settle();
    if (how < 0) close(closing); else shutdown(closing, how);
    join(t);
    CHECK_EQ(h.got, 1);
    return h.revents;
}

static void hangup_and_error_wake_pollers(void)
{
    int p[2];
    make_pipe(p);
    CHECK_EQ(hup_of(p[0], p[1], POLLIN, -1), POLLHUP);
    close(p[0]);
    make_pipe(p);
    fill_up(p[1]);
    CHECK_EQ(hup_of(p[1], p[0], POLLOUT, -1) & POLLERR, POLLERR);
    close(p[1]);
    make_pair(p);
    CHECK_EQ(hup_of(p[0], p[1], 0, -1), POLLHUP);
    close(p[0]);
    tcp_pair(p);
    CHECK_EQ(hup_of(p[0], p[1], POLLIN | POLLRDHUP, SHUT_WR), POLLIN | POLLRDHUP);
    close2(p);
    tcp_pair(p);
    struct linger lg = {1, 0};
    setsockopt(p[1], SOL_SOCKET, SO_LINGER, &lg, sizeof lg);
    short ev = hup_of(p[0], p[1], POLLIN, -1);
    CHECK((ev & (POLLERR | POLLHUP)) == (POLLERR | POLLHUP));
    close(p[0]);
}

// select: three sets at once, time left written back, descriptors up to 1023.
static void select_three_sets_and_time_left(void)
{
    int p[2], q[2];
    fd_set in, out, ex;
    make_pipe(p);
    make_pair(q);
    int high = fcntl(p[0], F_DUPFD, 1000);
    MUST(high >= 1000 && high < FD_SETSIZE);
    FD_ZERO(&in);
    FD_ZERO(&out);
    FD_ZERO(&ex);
    FD_SET(high, &in);
    FD_SET(q[0], &in);
    FD_SET(q[0], &out);
    FD_SET(q[0], &ex);
    MUST(write(p[1], "x", 1) == 1);
    struct timeval tv = {100, 0};
    CHECK_EQ(select(high + 1, &in, &out, &ex, &tv), 2);
    CHECK(FD_ISSET(high, &in) && !FD_ISSET(q[0], &in));
    CHECK(FD_ISSET(q[0], &out) && !FD_ISSET(q[0], &ex));
    CHECK(tv.tv_sec >= 90 && tv.tv_sec <= 100);
    FD_ZERO(&in);
    FD_SET(q[0], &in);
    tv = (struct timeval){0, 15000};
    CHECK_EQ(select(q[0] + 1, &in, NULL, NULL, &tv), 0);
    CHECK(tv.tv_sec == 0 && tv.tv_usec == 0);
    const struct timespec ts = {0, 15 * MS};
    FD_SET(q[0], &in);
    CHECK_EQ(pselect(q[0] + 1, &in, NULL, NULL, &ts, NULL), 0);
    CHECK_EQ(ts.tv_nsec, 15 * MS);
    close(high);
    close2(p);
    close2(q);
}

// One thread waits on a hundred descriptors; each in turn is the one that wakes it.
static void *poll_hundred(void *arg)
{
    int(*p)[2] = arg;
    struct pollfd f[100];
    char c;
    for (int k = 0; k < 100; k++) {
        for (int i = 0; i < 100; i++) f[i] = (struct pollfd){.fd = p[i][0], .events = POLLIN};
        MUST(poll(f, 100, -1) == 1);
        for (int i = 0; i < 100; i++) {
            if (!f[i].revents) continue;
            MUST(read(p[i][0], &c, 1) == 1);
            int next = (i * 37 + 11) % 100;
            if (k < 99) MUST(write(p[next][1], "n", 1) == 1);
        }
    }
    return NULL;
}

static void polls_over_a_hundred(void)
{
    static int p[3][100][2];
    pthread_t t[3];
    for (int k = 0; k < 3; k++) {
        for (int i = 0; i < 100; i++) make_pipe(p[k][i]);
        t[k] = spawn(poll_hundred, p[k]);
    }
    settle();
    for (int k = 0; k < 3; k++) MUST(write(p[k][5][1], "n", 1) == 1);
    for (int k = 0; k < 3; k++) {
        join(t[k]);
        for (int i = 0; i < 100; i++) close2(p[k][i]);
    }
}

static atomic_int handled;

static void on_signal(int sig)
{
    (void)sig;
    atomic_fetch_add(&handled, 1);
}

// EINTR always, SA_RESTART or not.
static void interrupted_even_with_restart(void)
{
    for (int restart = 0; restart < 2; restart++) {
        struct sigaction old = set_handler(SIGUSR1, on_signal, restart ? SA_RESTART : 0);
        for (int c = 0; c < CALLS; c++)
            for (int none = 0; none < 2; none++) {
                int p[2];
                struct waiter w;
                make_pipe(p);
                handled = 0;
                pthread_t t = start(&w, (enum call)c, none ? -1 : p[0], none ? 100 * SEC : -1);
                gate_wait(&w.started, 1);
                long long end = now_ns() + IO_LIMIT_NS;
                while (!w.done) {
                    MUST(now_ns() < end);
                    pthread_kill(t, SIGUSR1);
                    nap(200000);
                }
                join(t);
                CHECK_EQ(w.got, -1);
                CHECK_EQ(w.err, EINTR);
                CHECK(handled > 0);
                close2(p);
            }
        sigaction(SIGUSR1, &old, NULL);
    }
}

struct masked {
    enum call call;
    int fd, got, err, seen_in_call, seen_before;
    sigset_t after;
    struct gate ready;
};

static void *masked_main(void *arg)
{
    struct masked *m = arg;
    sigset_t open;
    mask_signal(SIG_BLOCK, SIGUSR1);
    gate_post(&m->ready);
    gate_wait(&m->ready, 2);  // the signal is pending on this thread now
    m->seen_before = handled;
    pthread_sigmask(SIG_SETMASK, NULL, &open);
    sigdelset(&open, SIGUSR1);
    errno = 0;
    m->got = wait_in(m->call, m->fd, 20 * SEC, &open);
    m->err = errno;
    m->seen_in_call = handled;
    pthread_sigmask(SIG_SETMASK, NULL, &m->after);
    return NULL;
}

// The mask given to ppoll and pselect is in force during the call only: a pending
// signal comes at once, and after the call it is blocked again.
static void mask_lets_a_pending_signal_in(void)
{
    struct sigaction old = set_handler(SIGUSR1, on_signal, 0);
    static const enum call with_mask[] = {PPOLL, PSELECT};
    for (int i = 0; i < 2; i++) {
        int p[2];
        make_pipe(p);
        struct masked m = {.call = with_mask[i], .fd = p[0], .ready = GATE_INIT};
        handled = 0;
        pthread_t t = spawn(masked_main, &m);
        gate_wait(&m.ready, 1);
        MUST(pthread_kill(t, SIGUSR1) == 0);
        gate_post(&m.ready);
        join(t);
        CHECK_EQ(m.seen_before, 0);
        CHECK_EQ(m.got, -1);
        CHECK_EQ(m.err, EINTR);
        CHECK_EQ(m.seen_in_call, 1);
        CHECK_EQ(sigismember(&m.after, SIGUSR1), 1);
        close2(p);
    }
    sigaction(SIGUSR1, &old, NULL);
}

static const struct CMUnitTest tests[] = {
    T(timeout_zero_and_finite),
    T(woken_by_another_thread),
    T(every_poller_of_one_descriptor_wakes),
    T(odd_descriptors_in_a_thread),
    T(hangup_and_error_wake_pollers),
    T(select_three_sets_and_time_left),
    T(polls_over_a_hundred),
    T(interrupted_even_with_restart),
    T(mask_lets_a_pending_signal_in),
};
IO_MAIN(tests)

// epoll_test.c - the program's own epoll: epoll_wait, epoll_pwait, epoll_pwait2 by
// threads, edge-triggered, one-shot and exclusive, nested, changed while waited on.
//
// Invariant: every expectation here holds for plain kernel threads.
// Callers:   run natively and under LD_PRELOAD; uses io.h only.
#include "io.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>

enum call { WAIT, PWAIT, PWAIT2, CALLS };

static int ep_wait(enum call c, int ep, struct epoll_event *ev, int n, long long ns,
                   const sigset_t *mask)
{
    struct timespec ts = ts_of(ns);
    int ms = ns < 0 ? -1 : (int)(ns / MS);
    switch (c) {
    case WAIT: return epoll_wait(ep, ev, n, ms);
    case PWAIT: return epoll_pwait(ep, ev, n, ms, mask);
    default: return epoll_pwait2(ep, ev, n, ns < 0 ? NULL : &ts, mask);
    }
}

static void ep_add(int ep, int fd, uint32_t events)
{
    struct epoll_event e = {.events = events, .data.fd = fd};
    MUST(epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e) == 0);
}

struct waiter {
    enum call call;
    int ep, got, err, fd;
    long long ns, took;
    const sigset_t *mask;
    struct gate started;
    atomic_int done;
};

static void *waiter_main(void *arg)
{
    struct waiter *w = arg;
    struct epoll_event ev[4];
    gate_post(&w->started);
    long long from = now_ns();
    errno = 0;
    w->got = ep_wait(w->call, w->ep, ev, 4, w->ns, w->mask);
    w->err = errno;
    w->took = now_ns() - from;
    w->fd = w->got > 0 ? ev[0].data.fd : -1;
    w->done = 1;
    return NULL;
}

static pthread_t start(struct waiter *w, enum call c, int ep, long long ns)
{
    *w = (struct waiter){.call = c, .ep = ep, .ns = ns, .started = GATE_INIT};
    pthread_t t = spawn(waiter_main, w);
    gate_wait(&w->started, 1);
    return t;
}

static void timeouts_and_wakeups(void)
{
    int ep = epoll_create1(EPOLL_CLOEXEC), p[2];
    struct epoll_event ev;
    make_pipe(p);
    ep_add(ep, p[0], EPOLLIN);
    for (int c = 0; c < CALLS; c++) {
        struct waiter w;
        CHECK_EQ(ep_wait((enum call)c, ep, &ev, 1, 0, NULL), 0);
        long long ns = c == PWAIT2 ? 20 * MS + 345678 : 20 * MS;
        join(start(&w, (enum call)c, ep, ns));
        CHECK_EQ(w.got, 0);
        CHECK(w.took >= ns && w.took < ns + 2 * SEC);
        pthread_t t = start(&w, (enum call)c, ep, c == WAIT ? 100 * SEC : -1);
        settle();
        others_progress();
        CHECK(!w.done);
        MUST(write(p[1], "x", 1) == 1);
        join(t);
        CHECK_EQ(w.got, 1);
        CHECK_EQ(w.fd, p[0]);
        char b;
        MUST(read(p[0], &b, 1) == 1);
    }
    CHECK_FAILS(epoll_wait(ep, &ev, 0, 0), EINVAL);
    CHECK_FAILS(epoll_wait(p[0], &ev, 1, 0), EINVAL);
    CHECK_FAILS(epoll_wait(9999, &ev, 1, -1), EBADF);
    struct epoll_event e = {.events = EPOLLIN};
    CHECK_FAILS(epoll_ctl(ep, EPOLL_CTL_ADD, p[0], &e), EEXIST);
    CHECK_FAILS(epoll_ctl(ep, EPOLL_CTL_DEL, p[1], &e), ENOENT);
    CHECK_FAILS(epoll_ctl(ep, EPOLL_CTL_ADD, ep, &e), EINVAL);
    close(ep);
    close2(p);
}

// Another thread adds, changes and closes descriptors while one waits on the set.
static void the_set_changes_under_the_waiter(void)
{
    int ep = epoll_create1(0), p[2], q[2];
    struct waiter w;
    make_pipe(p);
    make_pair(q);
    pthread_t t = start(&w, WAIT, ep, -1);  // an empty set
    settle();
    MUST(write(p[1], "x", 1) == 1);
    ep_add(ep, p[0], EPOLLIN);
    join(t);
    CHECK_EQ(w.fd, p[0]);
    MUST(epoll_ctl(ep, EPOLL_CTL_DEL, p[0], NULL) == 0);
    ep_add(ep, q[0], EPOLLIN);
    t = start(&w, PWAIT, ep, -1);
    settle();
    struct epoll_event e = {.events = EPOLLOUT, .data.fd = 77};
    MUST(epoll_ctl(ep, EPOLL_CTL_MOD, q[0], &e) == 0);
    join(t);
    CHECK_EQ(w.fd, 77);
    close(q[0]);  // the last reference: leaves the set by itself
    t = start(&w, WAIT, ep, 20 * MS);
    join(t);
    CHECK_EQ(w.got, 0);
    close(ep);
    close(q[1]);
    close2(p);
}

struct et {
    int ep, stop;
    atomic_int *wakes, *bytes;
};

static void *et_main(void *arg)
{
    struct et *s = arg;
    for (;;) {
        struct epoll_event ev;
        MUST(epoll_wait(s->ep, &ev, 1, -1) == 1);
        if (ev.data.fd == s->stop) return NULL;  // the stop event, level-triggered
        atomic_fetch_add(s->wakes, 1);
        char b[100];
        ssize_t r;
        while ((r = read(ev.data.fd, b, sizeof b)) > 0) atomic_fetch_add(s->bytes, (int)r);
        MUST(errno == EAGAIN);
    }
}

// Edge-triggered: one wake for one edge however many threads wait; none is lost.
static void edge_triggered_wakes_one(void)
{
    int ep = epoll_create1(0), p[2], stop = eventfd(0, 0);
    atomic_int wakes = 0, bytes = 0;
    MUST(pipe2(p, O_NONBLOCK) == 0);
    ep_add(ep, p[0], EPOLLIN | EPOLLET);
    ep_add(ep, stop, EPOLLIN);
    struct et s = {ep, stop, &wakes, &bytes};
    pthread_t t[6];
    for (int i = 0; i < 6; i++) t[i] = spawn(et_main, &s);
    enum { EDGES = 200 };
    for (int i = 1; i <= EDGES; i++) {
        MUST(write(p[1], "abc", 3) == 3);
        if (i % 4 == 0) WAIT_UNTIL(bytes == 3 * i);  // the others come in bursts
    }
    WAIT_UNTIL(bytes == 3 * EDGES);
    MUST(eventfd_write(stop, 1) == 0);
    for (int i = 0; i < 6; i++) join(t[i]);
    CHECK(wakes >= 1 && wakes <= EDGES);  // never two for one edge
    close(ep);
    close(stop);
    close2(p);
}

#define CONNS 40
struct oneshot {
    int ep, stop;
    int (*p)[2];
    atomic_int *inside, *echoed;
};

static void *oneshot_main(void *arg)
{
    struct oneshot *s = arg;
    for (;;) {
        struct epoll_event ev;
        MUST(epoll_wait(s->ep, &ev, 1, -1) == 1);
        int i = ev.data.fd;
        if (i == s->stop) return NULL;
        CHECK_EQ(atomic_fetch_add(&s->inside[i], 1), 0);  // nobody else has this one
        char b[64];
        ssize_t r = read(s->p[i][0], b, sizeof b);
        MUST(r > 0);
        atomic_fetch_add(s->echoed, (int)r);
        MUST(write(s->p[i][0], b, (size_t)r) == r);
        CHECK_EQ(atomic_fetch_sub(&s->inside[i], 1), 1);
        struct epoll_event e = {.events = EPOLLIN | EPOLLONESHOT, .data.fd = i};
        MUST(epoll_ctl(s->ep, EPOLL_CTL_MOD, s->p[i][0], &e) == 0);
    }
}

static void *oneshot_client(void *arg)
{
    int fd = *(int *)arg;
    for (int k = 0; k < 30; k++) {
        int v = fd * 1000 + k, w = 0;
        MUST(write(fd, &v, sizeof v) == sizeof v);
        read_full(fd, &w, sizeof w);
        CHECK_EQ(v, w);
    }
    return NULL;
}

// A one-shot server of four threads on one epoll, forty blocking clients.
static void oneshot_server(void)
{
    static int p[CONNS][2];
    static atomic_int inside[CONNS];
    atomic_int echoed = 0;
    int ep = epoll_create1(0), stop = eventfd(0, 0);
    struct oneshot s = {ep, -2, p, inside, &echoed};
    struct epoll_event e = {.events = EPOLLIN, .data.fd = -2};
    MUST(epoll_ctl(ep, EPOLL_CTL_ADD, stop, &e) == 0);
    pthread_t t[4], c[CONNS];
    for (int i = 0; i < 4; i++) t[i] = spawn(oneshot_main, &s);
    for (int i = 0; i < CONNS; i++) {
        make_pair(p[i]);
        e = (struct epoll_event){.events = EPOLLIN | EPOLLONESHOT, .data.fd = i};
        MUST(epoll_ctl(ep, EPOLL_CTL_ADD, p[i][0], &e) == 0);
        c[i] = spawn(oneshot_client, &p[i][1]);
    }
    for (int i = 0; i < CONNS; i++) join(c[i]);
    CHECK_EQ(echoed, CONNS * 30 * 4);
    MUST(eventfd_write(stop, 1) == 0);
    for (int i = 0; i < 4; i++) join(t[i]);
    for (int i = 0; i < CONNS; i++) close2(p[i]);
    close(stop);
    close(ep);
}

struct excl {
    int l, ep, served;
    atomic_int *total;
    int stop;
};

static void *excl_main(void *arg)
{
    struct excl *s = arg;
    for (;;) {
        struct epoll_event ev;
        MUST(epoll_wait(s->ep, &ev, 1, -1) == 1);
        if (ev.data.fd == s->stop) return NULL;
        int fd = accept4(s->l, NULL, NULL, 0);
        if (fd < 0) {
            MUST(errno == EAGAIN);  // another one was faster
            continue;
        }
        s->served++;
        atomic_fetch_add(s->total, 1);
        MUST(write(fd, "ok", 2) == 2);
        close(fd);
    }
}

// The nginx shape: an epoll per thread, one shared listener added EPOLLEXCLUSIVE.
static void exclusive_accept(void)
{
    enum { N = 5, CONN = 100 };
    atomic_int total = 0;
    int port, l = tcp_listen(&port, 128), stop = eventfd(0, 0), sum = 0;
    fcntl(l, F_SETFL, O_NONBLOCK);
    struct excl s[N];
    pthread_t t[N];
    for (int i = 0; i < N; i++) {
        s[i] = (struct excl){l, epoll_create1(0), 0, &total, stop};
        ep_add(s[i].ep, l, EPOLLIN | EPOLLEXCLUSIVE);
        ep_add(s[i].ep, stop, EPOLLIN);
        t[i] = spawn(excl_main, &s[i]);
    }
    for (int i = 0; i < CONN; i++) {
        char b[2];
        int fd = tcp_connect(port);
        read_full(fd, b, 2);
        close(fd);
    }
    CHECK_EQ(total, CONN);
    MUST(eventfd_write(stop, 1) == 0);
    for (int i = 0; i < N; i++) {
        join(t[i]);
        sum += s[i].served;
        close(s[i].ep);
    }
    CHECK_EQ(sum, CONN);
    close(l);
    close(stop);
}

// An epoll in an epoll, and an epoll in poll.
static void nested_epolls(void)
{
    int inner = epoll_create1(0), outer = epoll_create1(0), p[2];
    struct waiter w;
    make_pipe(p);
    ep_add(inner, p[0], EPOLLIN);
    ep_add(outer, inner, EPOLLIN);
    pthread_t t = start(&w, WAIT, outer, -1);
    settle();
    others_progress();
    MUST(write(p[1], "x", 1) == 1);
    join(t);
    CHECK_EQ(w.fd, inner);
    struct pollfd pf = {.fd = outer, .events = POLLIN};
    CHECK_EQ(poll(&pf, 1, -1), 1);
    char b;
    MUST(read(p[0], &b, 1) == 1);
    CHECK_EQ(poll(&pf, 1, 0), 0);
    close(inner);
    close(outer);
    close2(p);
}

static void timerfd_and_eventfd_events(void)
{
    int ep = epoll_create1(0), tfd = timerfd_create(CLOCK_MONOTONIC, 0), ev = eventfd(0, 0);
    struct waiter w;
    struct itimerspec its = {.it_value = {0, 10 * MS}};
    ep_add(ep, tfd, EPOLLIN | EPOLLET);
    ep_add(ep, ev, EPOLLIN | EPOLLET);
    pthread_t t = start(&w, WAIT, ep, -1);
    timerfd_settime(tfd, 0, &its, NULL);
    join(t);
    CHECK_EQ(w.fd, tfd);
    for (int i = 0; i < 20; i++) {  // unread, every write is an edge all the same
        t = start(&w, (enum call)(i % CALLS), ep, -1);
        MUST(eventfd_write(ev, 1) == 0);
        join(t);
        CHECK_EQ(w.fd, ev);
    }
    close(ep);
    close(tfd);
    close(ev);
}

static atomic_int handled;

static void on_signal(int sig)
{
    (void)sig;
    atomic_fetch_add(&handled, 1);
}

static void *pwait_masked(void *arg)
{
    struct waiter *w = arg;
    sigset_t open, after;
    mask_signal(SIG_BLOCK, SIGUSR1);
    pthread_sigmask(SIG_SETMASK, NULL, &open);
    sigdelset(&open, SIGUSR1);
    w->mask = &open;
    raise(SIGUSR1);  // pending here
    CHECK_EQ(handled, 0);
    waiter_main(w);
    CHECK_EQ(handled, 1);
    pthread_sigmask(SIG_SETMASK, NULL, &after);
    CHECK_EQ(sigismember(&after, SIGUSR1), 1);
    return NULL;
}

static void signals_and_masks(void)
{
    int ep = epoll_create1(0);
    struct sigaction old = set_handler(SIGUSR1, on_signal, SA_RESTART);
    for (int c = 0; c < CALLS; c++) {
        struct waiter w;
        handled = 0;
        pthread_t t = start(&w, (enum call)c, ep, -1);
        long long end = now_ns() + IO_LIMIT_NS;
        while (!w.done) {
            MUST(now_ns() < end);
            pthread_kill(t, SIGUSR1);
            nap(200000);
        }
        join(t);
        CHECK_EQ(w.got, -1);
        CHECK_EQ(w.err, EINTR);
        if (c == WAIT) continue;
        handled = 0;
        w = (struct waiter){.call = (enum call)c, .ep = ep, .ns = 20 * SEC, .started = GATE_INIT};
        join(spawn(pwait_masked, &w));
        CHECK_EQ(w.err, EINTR);
    }
    sigaction(SIGUSR1, &old, NULL);
    close(ep);
}

static const struct CMUnitTest tests[] = {
    T(timeouts_and_wakeups),
    T(the_set_changes_under_the_waiter),
    T(edge_triggered_wakes_one),
    T(oneshot_server),
    T(exclusive_accept),
    T(nested_epolls),
    T(timerfd_and_eventfd_events),
    T(signals_and_masks),
};
IO_MAIN(tests)

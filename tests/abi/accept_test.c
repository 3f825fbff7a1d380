// accept_test.c - servers of plain threads: many accepting on one listener with an
// exact count, a thread per connection, SO_REUSEPORT, sockets inherited over fork.
//
// Invariant: every expectation here holds for plain kernel threads.
// Callers:   run natively and under LD_PRELOAD; uses io.h only.
#include "io.h"

struct acceptor {
    int l, four;
    atomic_int *served;
    int mine;
};

static void *acceptor_main(void *arg)
{
    struct acceptor *a = arg;
    for (;;) {
        struct sockaddr_in peer;
        socklen_t n = sizeof peer;
        int fd = a->four ? accept4(a->l, (struct sockaddr *)&peer, &n, SOCK_CLOEXEC)
                         : accept(a->l, (struct sockaddr *)&peer, &n);
        if (fd < 0 && errno == EINVAL) return NULL;  // the listener was shut down
        MUST(fd >= 0);
        CHECK_EQ(n, sizeof peer);
        CHECK_EQ(ntohl(peer.sin_addr.s_addr), INADDR_LOOPBACK);
        CHECK_EQ(fcntl(fd, F_GETFD), a->four ? FD_CLOEXEC : 0);
        CHECK_EQ(fcntl(fd, F_GETFL) & O_NONBLOCK, 0);
        char c;
        MUST(read(fd, &c, 1) == 1);
        if (c != 'q') {
            a->mine++;
            atomic_fetch_add(a->served, 1);
        }
        MUST(write(fd, &c, 1) == 1);
        close(fd);
        if (c == 'q') return NULL;
    }
}

static void ask(int port, char c)
{
    char r;
    int fd = tcp_connect(port);
    MUST(write(fd, &c, 1) == 1);
    MUST(read(fd, &r, 1) == 1);
    CHECK_EQ(r, c);
    CHECK_EQ(read(fd, &r, 1), 0);
    close(fd);
}

struct asker {
    int port, n;
};

static void *asker_main(void *arg)
{
    struct asker *a = arg;
    for (int i = 0; i < a->n; i++) ask(a->port, 'a');
    return NULL;
}

// Eight threads blocked in accept on one listener, six clients: each connection is
// served once, and the listener's flags stay as they were.
static void many_threads_accept_on_one_listener(void)
{
    enum { A = 8, C = 6, EACH = 50 };
    int port, l = tcp_listen(&port, 128), fl = fcntl(l, F_GETFL);
    atomic_int served = 0;
    struct acceptor a[A];
    pthread_t at[A], ct[C];
    struct asker k = {port, EACH};
    for (int i = 0; i < A; i++) {
        a[i] = (struct acceptor){l, i % 2, &served, 0};
        at[i] = spawn(acceptor_main, &a[i]);
    }
    settle();
    CHECK_EQ(fcntl(l, F_GETFL), fl);
    others_progress();
    for (int i = 0; i < C; i++) ct[i] = spawn(asker_main, &k);
    for (int i = 0; i < C; i++) join(ct[i]);
    for (int i = 0; i < A; i++) ask(port, 'q');  // each ends one acceptor
    int sum = 0;
    for (int i = 0; i < A; i++) {
        join(at[i]);
        sum += a[i].mine;
    }
    CHECK_EQ(served, C * EACH);
    CHECK_EQ(sum, C * EACH);
    CHECK_EQ(fcntl(l, F_GETFL), fl);
    close(l);
}

static void nonblocking_accept(void)
{
    int port, l = tcp_listen(&port, 8), one = 1;
    MUST(ioctl(l, FIONBIO, &one) == 0);
    CHECK_FAILS(accept(l, NULL, NULL), EAGAIN);
    CHECK_FAILS(accept4(l, NULL, NULL, 0), EAGAIN);
    CHECK_FAILS(accept4(l, NULL, NULL, 0x1234567), EINVAL);
    int c = tcp_connect(port), s = -1;
    WAIT_UNTIL((s = accept4(l, NULL, NULL, SOCK_NONBLOCK)) >= 0);
    CHECK_EQ(fcntl(s, F_GETFL) & O_NONBLOCK, O_NONBLOCK);
    char b;
    CHECK_FAILS(read(s, &b, 1), EAGAIN);
    close(s);
    close(c);
    c = tcp_connect(port);
    WAIT_UNTIL((s = accept(l, NULL, NULL)) >= 0);
    CHECK_EQ(fcntl(s, F_GETFL) & O_NONBLOCK, 0);  // not inherited on Linux
    close(s);
    close(c);
    close(l);
}

struct accepting {
    int l, got, err;
    struct gate started;
};

static void *accept_once(void *arg)
{
    struct accepting *a = arg;
    gate_post(&a->started);
    errno = 0;
    a->got = accept(a->l, NULL, NULL);
    a->err = errno;
    return NULL;
}

// shutdown on the listener ends a blocked accept with EINVAL.
static void shutdown_ends_a_blocked_accept(void)
{
    int port;
    struct accepting a = {.l = tcp_listen(&port, 8), .started = GATE_INIT};
    pthread_t t = spawn(accept_once, &a);
    gate_wait(&a.started, 1);
    settle();
    MUST(shutdown(a.l, SHUT_RDWR) == 0);
    join(t);
    CHECK_EQ(a.got, -1);
    CHECK_EQ(a.err, EINVAL);
    close(a.l);
}

#define ECHO_SIZE 64
#define ECHO_ROUNDS 20

static void *echo_session(void *arg)
{
    int fd = (int)(intptr_t)arg;
    char b[ECHO_SIZE];
    ssize_t r;
    while ((r = read(fd, b, sizeof b)) > 0) MUST(write(fd, b, (size_t)r) == r);
    CHECK_EQ(r, 0);
    close(fd);
    return NULL;
}

struct echo_server {
    int l, n;
};

static void *echo_server_main(void *arg)
{
    struct echo_server *e = arg;
    static pthread_t t[1024];
    for (int i = 0; i < e->n; i++) {
        int fd = accept(e->l, NULL, NULL);
        MUST(fd >= 0);
        t[i] = spawn(echo_session, (void *)(intptr_t)fd);
    }
    for (int i = 0; i < e->n; i++) join(t[i]);
    return NULL;
}

struct echo_client {
    int port, id;
    struct gate *all_connected;
    int n;
};

static void *echo_client_main(void *arg)
{
    struct echo_client *c = arg;
    char out[ECHO_SIZE], in[ECHO_SIZE];
    int fd = tcp_connect(c->port);
    gate_post(c->all_connected);
    gate_wait(c->all_connected, c->n);
    for (int i = 0; i < ECHO_ROUNDS; i++) {
        pattern_fill((unsigned char *)out, sizeof out, (uint64_t)c->id, (uint64_t)i * ECHO_SIZE);
        MUST(write(fd, out, sizeof out) == sizeof out);
        read_full(fd, in, sizeof in);
        CHECK(memcmp(in, out, sizeof in) == 0);
    }
    close(fd);
    return NULL;
}

static void echo_with(int n)
{
    static struct echo_client c[256];
    static pthread_t t[256];
    struct gate all = GATE_INIT;
    int port, l = tcp_listen(&port, 512);
    struct echo_server e = {l, n};
    pthread_t s = spawn(echo_server_main, &e);
    for (int i = 0; i < n; i++) {
        c[i] = (struct echo_client){port, i, &all, n};
        t[i] = spawn(echo_client_main, &c[i]);
    }
    for (int i = 0; i < n; i++) join(t[i]);
    join(s);
    close(l);
}

// 200 sessions alive at once, one thread each on both sides; descriptors return.
static void thread_per_connection_echo(void)
{
    int before = open_fds();
    echo_with(200);
    CHECK_EQ(open_fds(), before);
}

static void child_serves_then_exits(int l, int n)
{
    struct echo_server e = {l, n};
    join(spawn(echo_server_main, &e));
    _exit(atomic_load(&io_failures) != 0);
}

// A listener made here and blocked on here is accepted on by a child with threads
// of its own, while this process's threads are its clients.
static void inherited_listener_in_a_child(void)
{
    enum { N = 30 };
    static struct echo_client c[N];
    pthread_t t[N];
    struct gate all = GATE_INIT;
    int port, l = tcp_listen(&port, 64);
    struct accepting a = {.l = l, .started = GATE_INIT};
    pthread_t own = spawn(accept_once, &a);  // known to this process's poller
    gate_wait(&a.started, 1);
    settle();
    int one = tcp_connect(port);
    join(own);
    MUST(a.got >= 0);
    close(a.got);
    close(one);
    pid_t pid = fork();
    MUST(pid >= 0);
    if (pid == 0) child_serves_then_exits(l, N);
    for (int i = 0; i < N; i++) {
        c[i] = (struct echo_client){port, i, &all, N};
        t[i] = spawn(echo_client_main, &c[i]);
    }
    for (int i = 0; i < N; i++) join(t[i]);
    CHECK_CHILD_OK(reap(pid));
    close(l);
}

// Both processes read the one connected socket: every byte goes to one of them.
static void inherited_connection_read_by_both(void)
{
    int p[2], back[2];
    char b[4];
    make_pair(p);
    make_pipe(back);
    pid_t pid = fork();
    MUST(pid >= 0);
    if (pid == 0) {
        char x;
        int n = 0;
        close(p[1]);
        struct asker none = {0, 0};
        join(spawn(asker_main, &none));  // threads here too
        while (read(p[0], &x, 1) == 1) n++;
        if (write(back[1], &n, sizeof n) != sizeof n) _exit(2);
        _exit(0);
    }
    int mine = 0;
    struct asker none = {0, 0};
    pthread_t t = spawn(asker_main, &none);
    for (int i = 0; i < 400; i++) {
        MUST(write(p[1], "z", 1) == 1);
        if (i % 2) mine += (int)recv(p[0], b, 1, MSG_DONTWAIT) == 1;
    }
    close(p[1]);
    while (read(p[0], b, 1) == 1) mine++;
    join(t);
    int theirs = -1;
    CHECK_CHILD_OK(reap(pid));
    MUST(read(back[0], &theirs, sizeof theirs) == sizeof theirs);
    CHECK_EQ(mine + theirs, 400);
    close(p[0]);
    close2(back);
}

// Four listeners on one port, each with its own thread: nothing is lost.
static void reuseport_listeners(void)
{
    enum { N = 4 };
    int l[N], one = 1, port = 0;
    atomic_int served = 0;
    struct acceptor a[N];
    pthread_t t[N];
    for (int i = 0; i < N; i++) {
        struct sockaddr_in sa = loopback(port);
        socklen_t n = sizeof sa;
        l[i] = socket(AF_INET, SOCK_STREAM, 0);
        MUST(setsockopt(l[i], SOL_SOCKET, SO_REUSEPORT, &one, sizeof one) == 0);
        MUST(bind(l[i], (struct sockaddr *)&sa, sizeof sa) == 0 && listen(l[i], 64) == 0);
        MUST(getsockname(l[i], (struct sockaddr *)&sa, &n) == 0);
        port = ntohs(sa.sin_port);
        a[i] = (struct acceptor){l[i], 0, &served, 0};
    }
    for (int i = 0; i < N; i++) t[i] = spawn(acceptor_main, &a[i]);
    struct asker k = {port, 60};
    pthread_t c[3];
    for (int i = 0; i < 3; i++) c[i] = spawn(asker_main, &k);
    for (int i = 0; i < 3; i++) join(c[i]);
    CHECK_EQ(served, 180);
    for (int i = 0; i < N; i++) shutdown(l[i], SHUT_RDWR);
    for (int i = 0; i < N; i++) {
        join(t[i]);
        close(l[i]);
    }
}

static const struct CMUnitTest tests[] = {
    T(many_threads_accept_on_one_listener),
    T(nonblocking_accept),
    T(shutdown_ends_a_blocked_accept),
    T(thread_per_connection_echo),
    T(inherited_listener_in_a_child),
    T(inherited_connection_read_by_both),
    T(reuseport_listeners),
};
IO_MAIN(tests)

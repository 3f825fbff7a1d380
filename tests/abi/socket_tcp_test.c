// socket_tcp_test.c - TCP over loopback: connect, half close, reset, urgent data,
// flags of recv and send, large checksummed transfers.
//
// Invariant: every expectation here holds for plain kernel threads.
// Callers:   run natively and under LD_PRELOAD; uses io.h only.
#include "io.h"

struct io {
    int fd, flags;
    size_t n;
    ssize_t got;
    int err;
    char *buf;
    struct gate started;
    atomic_int done;
};

static void *recv_main(void *arg)
{
    struct io *io = arg;
    gate_post(&io->started);
    errno = 0;
    io->got = recv(io->fd, io->buf, io->n, io->flags);
    io->err = errno;
    io->done = 1;
    return NULL;
}

static void *send_main(void *arg)
{
    struct io *io = arg;
    gate_post(&io->started);
    errno = 0;
    io->got = send(io->fd, io->buf, io->n, io->flags);
    io->err = errno;
    io->done = 1;
    return NULL;
}

static pthread_t start(struct io *io, void *(*fn)(void *), int fd, size_t n, int flags)
{
    *io = (struct io){.fd = fd, .n = n, .flags = flags, .started = GATE_INIT};
    io->buf = calloc(1, n + 1);
    pthread_t t = spawn(fn, io);
    gate_wait(&io->started, 1);
    settle();
    return t;
}

static void *connect_main(void *arg)
{
    struct sockaddr_in a = loopback(*(int *)arg);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    MUST(fd >= 0);
    int r = connect(fd, (struct sockaddr *)&a, sizeof a);
    int e = errno;
    close(fd);
    return (void *)(intptr_t)(r == 0 ? 0 : e);
}

static void connect_ok_refused_and_twice(void)
{
    int port, l = tcp_listen(&port, 8), dead, d = tcp_listen(&dead, 1);
    close(d);  // nobody listens there now
    pthread_t ok = spawn(connect_main, &port), refused = spawn(connect_main, &dead);
    CHECK_EQ((intptr_t)join(ok), 0);
    CHECK_EQ((intptr_t)join(refused), ECONNREFUSED);
    int fd = tcp_connect(port);
    struct sockaddr_in a = loopback(port);
    CHECK_FAILS(connect(fd, (struct sockaddr *)&a, sizeof a), EISCONN);
    int fresh = socket(AF_INET, SOCK_STREAM, 0);
    CHECK_FAILS(connect(fresh, (struct sockaddr *)&a, 1), EINVAL);
    close(fresh);
    CHECK_FAILS(connect(0x7fff, (struct sockaddr *)&a, sizeof a), EBADF);
    int file = temp_file();
    CHECK_FAILS(connect(file, (struct sockaddr *)&a, sizeof a), ENOTSOCK);
    CHECK_FAILS(accept(file, NULL, NULL), ENOTSOCK);
    CHECK_FAILS(recv(file, &a, 1, 0), ENOTSOCK);
    CHECK_FAILS(accept(fd, NULL, NULL), EINVAL);  // connected, does not listen
    close(file);
    close(fd);
    close(l);
}

static void nonblocking_connect_and_its_error(void)
{
    int port, l = tcp_listen(&port, 8), dead, d = tcp_listen(&dead, 1);
    close(d);
    for (int bad = 0; bad < 2; bad++) {
        struct sockaddr_in a = loopback(bad ? dead : port);
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), err = -1;
        socklen_t n = sizeof err;
        int r = connect(fd, (struct sockaddr *)&a, sizeof a);
        if (r == -1) CHECK(errno == EINPROGRESS || (bad && errno == ECONNREFUSED));
        if (r == -1 && errno == EINPROGRESS) {
            struct pollfd p = {.fd = fd, .events = POLLOUT};
            CHECK_EQ(poll(&p, 1, 5000), 1);
            MUST(getsockopt(fd, SOL_SOCKET, SO_ERROR, &err, &n) == 0);
            CHECK_EQ(err, bad ? ECONNREFUSED : 0);
        }
        close(fd);
    }
    close(l);
}

struct unix_connect {
    struct sockaddr_un to;
    int fd, result;
    struct gate started;
    atomic_int done;
};

static void *unix_connect_main(void *arg)
{
    struct unix_connect *u = arg;
    gate_post(&u->started);
    u->result = connect(u->fd, (struct sockaddr *)&u->to, sizeof u->to);
    u->done = 1;
    return NULL;
}

// The listener's queue is full, so connect itself blocks until accept makes room.
static void blocked_connect_lets_others_run(void)
{
    struct unix_connect u = {.to = {.sun_family = AF_UNIX}, .started = GATE_INIT};
    struct sockaddr *to = (struct sockaddr *)&u.to;
    snprintf(u.to.sun_path + 1, sizeof u.to.sun_path - 1, "weft-connect-%d", getpid());
    int l = socket(AF_UNIX, SOCK_STREAM, 0), s[2];
    MUST(bind(l, to, sizeof u.to) == 0);
    MUST(listen(l, 0) == 0);
    int first = socket(AF_UNIX, SOCK_STREAM, 0);
    MUST(connect(first, to, sizeof u.to) == 0);  // the queue is full now
    int second = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
    CHECK_FAILS(connect(second, to, sizeof u.to), EAGAIN);
    u.fd = socket(AF_UNIX, SOCK_STREAM, 0);
    pthread_t t = spawn(unix_connect_main, &u);
    gate_wait(&u.started, 1);
    settle();
    CHECK(!u.done);
    others_progress();
    for (int i = 0; i < 2; i++) MUST((s[i] = accept(l, NULL, NULL)) >= 0);
    join(t);
    CHECK_EQ(u.result, 0);
    close2(s);
    close(first);
    close(second);
    close(u.fd);
    close(l);
}

static void half_close_is_eof_one_way(void)
{
    int p[2];
    char b[8];
    struct io io;
    tcp_pair(p);
    pthread_t t = start(&io, recv_main, p[0], 8, 0);
    MUST(shutdown(p[1], SHUT_WR) == 0);
    join(t);
    CHECK_EQ(io.got, 0);
    free(io.buf);
    MUST(write(p[0], "back", 4) == 4);  // the other way still works
    CHECK_EQ(recv(p[1], b, 8, 0), 4);
    CHECK_EQ(recv(p[0], b, 8, 0), 0);  // and end of file stays
    close2(p);
}

static void own_shutdown_wakes_the_blocked_reader(void)
{
    for (int how = SHUT_RD; how <= SHUT_RDWR; how += 2)
        for (int tcp = 0; tcp < 2; tcp++) {
            int p[2];
            struct io io;
            if (tcp) tcp_pair(p); else make_pair(p);
            pthread_t t = start(&io, recv_main, p[0], 8, 0);
            MUST(shutdown(p[0], how) == 0);
            join(t);
            CHECK_EQ(io.got, 0);
            free(io.buf);
            close2(p);
        }
}

static void shutdown_wakes_the_blocked_writer(void)
{
    int p[2];
    struct io io;
    signal(SIGPIPE, SIG_IGN);
    make_pair(p);
    fill_up(p[0]);
    pthread_t t = start(&io, send_main, p[0], 100000, 0);
    CHECK(!io.done);
    MUST(shutdown(p[0], SHUT_WR) == 0);
    join(t);
    CHECK_EQ(io.got, -1);
    CHECK_EQ(io.err, EPIPE);
    free(io.buf);
    signal(SIGPIPE, SIG_DFL);
    close2(p);
}

static void reset_reaches_the_blocked_reader(void)
{
    int p[2];
    struct io io;
    struct linger lg = {1, 0};
    tcp_pair(p);
    MUST(setsockopt(p[1], SOL_SOCKET, SO_LINGER, &lg, sizeof lg) == 0);
    pthread_t t = start(&io, recv_main, p[0], 8, 0);
    close(p[1]);  // linger 0: RST
    join(t);
    CHECK_EQ(io.got, -1);
    CHECK_EQ(io.err, ECONNRESET);
    char c;
    CHECK_EQ(recv(p[0], &c, 1, 0), 0);  // reported once
    signal(SIGPIPE, SIG_IGN);
    CHECK_FAILS(send(p[0], "x", 1, 0), EPIPE);
    signal(SIGPIPE, SIG_DFL);
    free(io.buf);
    close(p[0]);
}

static atomic_int pipes;

static void on_sigpipe(int sig)
{
    (void)sig;
    atomic_fetch_add(&pipes, 1);
}

static void nosignal_means_no_signal(void)
{
    int p[2];
    struct sigaction old = set_handler(SIGPIPE, on_sigpipe, 0);
    pipes = 0;
    make_pair(p);
    close(p[0]);
    CHECK_FAILS(send(p[1], "x", 1, MSG_NOSIGNAL), EPIPE);
    CHECK_EQ(pipes, 0);
    CHECK_FAILS(send(p[1], "x", 1, 0), EPIPE);
    CHECK_EQ(pipes, 1);
    CHECK_FAILS(write(p[1], "x", 1), EPIPE);
    CHECK_EQ(pipes, 2);
    struct iovec v = {"x", 1};
    struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1};
    CHECK_FAILS(sendmsg(p[1], &m, MSG_NOSIGNAL), EPIPE);
    CHECK_EQ(pipes, 2);
    close(p[1]);
    sigaction(SIGPIPE, &old, NULL);
}

// MSG_PEEK blocks as recv does, leaves the data, and MSG_WAITALL waits for all.
static void peek_waitall_dontwait_trunc(void)
{
    int p[2];
    struct io io;
    char b[16] = "";
    tcp_pair(p);
    CHECK_FAILS(recv(p[0], b, 4, MSG_DONTWAIT), EAGAIN);
    CHECK_FAILS(recv(p[0], b, 4, MSG_DONTWAIT | MSG_PEEK), EAGAIN);
    pthread_t t = start(&io, recv_main, p[0], 16, MSG_PEEK);
    MUST(write(p[1], "abcd", 4) == 4);
    join(t);
    CHECK_EQ(io.got, 4);
    CHECK(memcmp(io.buf, "abcd", 4) == 0);
    free(io.buf);
    t = start(&io, recv_main, p[0], 12, MSG_WAITALL);  // 4 there, 8 to come
    CHECK(!io.done);
    MUST(write(p[1], "efgh", 4) == 4);
    settle();
    CHECK(!io.done);
    others_progress();
    MUST(write(p[1], "ijklmn", 6) == 6);
    join(t);
    CHECK_EQ(io.got, 12);
    CHECK(memcmp(io.buf, "abcdefghijkl", 12) == 0);
    free(io.buf);
    t = start(&io, recv_main, p[0], 16, MSG_WAITALL);  // 2 left, then end of file
    close(p[1]);
    join(t);
    CHECK_EQ(io.got, 2);
    free(io.buf);
    close(p[0]);
}

static void lowat_holds_the_reader_back(void)
{
    int p[2], low = 10;
    struct io io;
    tcp_pair(p);
    MUST(setsockopt(p[0], SOL_SOCKET, SO_RCVLOWAT, &low, sizeof low) == 0);
    pthread_t t = start(&io, recv_main, p[0], 32, 0);
    MUST(write(p[1], "12345", 5) == 5);
    settle();
    CHECK(!io.done);
    MUST(write(p[1], "6789abcdef", 10) == 10);
    join(t);
    CHECK_EQ(io.got, 15);
    free(io.buf);
    close2(p);
}

static atomic_int urged;

static void on_urg(int sig)
{
    (void)sig;
    atomic_fetch_add(&urged, 1);
}

// Urgent data: SIGURG to the owner (the program's own, although a library may use
// that signal itself), POLLPRI, MSG_OOB, and a blocked normal read stops at the mark.
static void urgent_data(void)
{
    int p[2], at = -1;
    char b[8];
    struct sigaction old = set_handler(SIGURG, on_urg, SA_RESTART);
    urged = 0;
    tcp_pair(p);
    MUST(fcntl(p[0], F_SETOWN, getpid()) == 0);
    CHECK_FAILS(recv(p[0], b, 1, MSG_OOB), EINVAL);
    MUST(send(p[1], "ab", 2, 0) == 2);
    MUST(send(p[1], "!", 1, MSG_OOB) == 1);
    MUST(send(p[1], "cd", 2, 0) == 2);
    struct pollfd pf = {.fd = p[0], .events = POLLPRI};
    CHECK_EQ(poll(&pf, 1, 5000), 1);
    CHECK_EQ(pf.revents, POLLPRI);
    WAIT_UNTIL(urged >= 1);
    CHECK_EQ(urged, 1);
    CHECK_EQ(recv(p[0], b, 1, MSG_OOB), 1);
    CHECK_EQ(b[0], '!');
    CHECK_EQ(recv(p[0], b, 8, 0), 2);  // stops at the mark
    MUST(ioctl(p[0], SIOCATMARK, &at) == 0);
    CHECK_EQ(at, 1);
    CHECK_EQ(recv(p[0], b, 8, 0), 2);
    CHECK_EQ(b[0], 'c');
    close2(p);
    sigaction(SIGURG, &old, NULL);
}

struct xfer {
    int fd;
    size_t n;
    uint64_t key;
};

static void *xfer_send(void *arg)
{
    struct xfer *x = arg;
    unsigned char *buf = malloc(x->n);
    pattern_fill(buf, x->n, x->key, 0);
    CHECK_EQ(send(x->fd, buf, x->n, 0), x->n);  // one call, whole
    shutdown(x->fd, SHUT_WR);
    free(buf);
    return NULL;
}

static void *xfer_recv(void *arg)
{
    struct xfer *x = arg;
    unsigned char buf[20000];
    uint64_t seed = x->key;
    size_t off = 0;
    for (;;) {
        ssize_t r = recv(x->fd, buf, 1 + rnd(&seed) % sizeof buf, 0);
        MUST(r >= 0);
        if (r == 0) break;
        CHECK(pattern_ok(buf, (size_t)r, x->key, off));
        off += (size_t)r;
    }
    CHECK_EQ(off, x->n);
    return NULL;
}

static void large_transfers_both_ways(void)
{
    enum { PAIRS = 4 };
    struct xfer x[PAIRS][4];
    pthread_t t[PAIRS][4];
    int p[PAIRS][2];
    for (int i = 0; i < PAIRS; i++) {
        tcp_pair(p[i]);
        uint64_t k = (uint64_t)i * 10;
        x[i][0] = (struct xfer){p[i][0], 3 << 20, k + 1};
        x[i][1] = (struct xfer){p[i][1], 3 << 20, k + 1};
        x[i][2] = (struct xfer){p[i][1], 1 << 20, k + 2};
        x[i][3] = (struct xfer){p[i][0], 1 << 20, k + 2};
        for (int j = 0; j < 4; j++) t[i][j] = spawn(j % 2 ? xfer_recv : xfer_send, &x[i][j]);
    }
    for (int i = 0; i < PAIRS; i++) {
        for (int j = 0; j < 4; j++) join(t[i][j]);
        close2(p[i]);
    }
}

static const struct CMUnitTest tests[] = {
    T(connect_ok_refused_and_twice),
    T(nonblocking_connect_and_its_error),
    T(blocked_connect_lets_others_run),
    T(half_close_is_eof_one_way),
    T(own_shutdown_wakes_the_blocked_reader),
    T(shutdown_wakes_the_blocked_writer),
    T(reset_reaches_the_blocked_reader),
    T(nosignal_means_no_signal),
    T(peek_waitall_dontwait_trunc),
    T(lowat_holds_the_reader_back),
    T(urgent_data),
    T(large_transfers_both_ways),
};
IO_MAIN(tests)

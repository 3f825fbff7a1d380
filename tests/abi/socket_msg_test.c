// socket_msg_test.c - datagrams and Unix sockets: recvfrom, recvmsg, recvmmsg and
// their send twins, message borders, addresses, descriptors passed and then blocked on.
//
// Invariant: every expectation here holds for plain kernel threads.
// Callers:   run natively and under LD_PRELOAD; uses io.h only.
#include "io.h"

static int udp_socket(struct sockaddr_in *self)
{
    socklen_t n = sizeof *self;
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    *self = loopback(0);
    MUST(fd >= 0 && bind(fd, (struct sockaddr *)self, n) == 0);
    MUST(getsockname(fd, (struct sockaddr *)self, &n) == 0);
    return fd;
}

enum how { RECV, RECVFROM, RECVMSG, RECVMMSG, READ, READV, HOWS };
static const char *const how_name[] = {"recv", "recvfrom", "recvmsg", "recvmmsg", "read", "readv"};

struct rx {
    enum how how;
    int fd, flags, msg_flags;
    size_t n;
    ssize_t got;
    int err;
    char buf[64];
    struct sockaddr_storage from;
    socklen_t from_len;
    struct gate started;
    atomic_int done;
};

static void *rx_main(void *arg)
{
    struct rx *r = arg;
    struct iovec v[2] = {{r->buf, 1}, {r->buf + 1, r->n - 1}};
    struct mmsghdr mm = {.msg_hdr = {.msg_iov = v, .msg_iovlen = 2, .msg_name = &r->from,
                                     .msg_namelen = sizeof r->from}};
    r->from_len = sizeof r->from;
    gate_post(&r->started);
    errno = 0;
    switch (r->how) {
    case RECV: r->got = recv(r->fd, r->buf, r->n, r->flags); break;
    case RECVFROM:
        r->got = recvfrom(r->fd, r->buf, r->n, r->flags, (struct sockaddr *)&r->from, &r->from_len);
        break;
    case RECVMSG: r->got = recvmsg(r->fd, &mm.msg_hdr, r->flags); break;
    case RECVMMSG:
        r->got = recvmmsg(r->fd, &mm, 1, r->flags, NULL);
        if (r->got == 1) r->got = mm.msg_len;
        break;
    case READ: r->got = read(r->fd, r->buf, r->n); break;
    default: r->got = readv(r->fd, v, 2); break;
    }
    r->err = errno;
    if (r->how == RECVMSG || r->how == RECVMMSG) r->from_len = mm.msg_hdr.msg_namelen;
    r->msg_flags = mm.msg_hdr.msg_flags;
    r->done = 1;
    return NULL;
}

static pthread_t start(struct rx *r, enum how how, int fd, size_t n, int flags)
{
    *r = (struct rx){.how = how, .fd = fd, .n = n, .flags = flags, .started = GATE_INIT};
    pthread_t t = spawn(rx_main, r);
    gate_wait(&r->started, 1);
    settle();
    return t;
}

// Each way to receive blocks alone, gets one datagram whole, its sender's address
// where it asks for one, and MSG_TRUNC when it was cut.
static void udp_every_receive(void)
{
    struct sockaddr_in a, b;
    int rx = udp_socket(&a), tx = udp_socket(&b);
    for (int h = 0; h < HOWS; h++)
        for (size_t n = 4; n <= 32; n += 28) {
            struct rx r;
            pthread_t t = start(&r, (enum how)h, rx, n, 0);
            others_progress();
            CHECK(!r.done);
            MUST(sendto(tx, "datagram", 8, 0, (struct sockaddr *)&a, sizeof a) == 8);
            join(t);
            if (r.got != (n < 8 ? 4 : 8)) print_message("%s\n", how_name[h]);
            CHECK_EQ(r.got, n < 8 ? 4 : 8);
            CHECK(memcmp(r.buf, "datagram", (size_t)r.got) == 0);
            if (h == RECVFROM || h == RECVMSG || h == RECVMMSG) {
                CHECK_EQ(r.from_len, sizeof b);
                CHECK_EQ(((struct sockaddr_in *)&r.from)->sin_port, b.sin_port);
            }
            if (h == RECVMSG || h == RECVMMSG) CHECK_EQ(r.msg_flags & MSG_TRUNC, n < 8 ? MSG_TRUNC : 0);
        }
    char c[4];
    MUST(sendto(tx, "datagram", 8, 0, (struct sockaddr *)&a, sizeof a) == 8);
    CHECK_EQ(recv(rx, c, 4, MSG_TRUNC | MSG_PEEK), 8);  // the real length
    CHECK_EQ(recv(rx, c, 0, 0), 0);                     // eats it
    CHECK_FAILS(recv(rx, c, 4, MSG_DONTWAIT), EAGAIN);
    MUST(sendto(tx, "", 0, 0, (struct sockaddr *)&a, sizeof a) == 0);
    CHECK_EQ(recv(rx, c, 4, 0), 0);  // an empty datagram is no end of file
    close(rx);
    close(tx);
}

static void mmsg_fill(struct mmsghdr *mm, struct iovec *v, char (*b)[16], unsigned n, void *to)
{
    memset(mm, 0, sizeof *mm * n);
    for (unsigned i = 0; i < n; i++) {
        v[i] = (struct iovec){b[i], 16};
        mm[i].msg_hdr = (struct msghdr){.msg_iov = &v[i], .msg_iovlen = 1, .msg_name = to,
                                        .msg_namelen = to ? sizeof(struct sockaddr_in) : 0};
    }
}

struct mm_rx {
    int fd, got, flags;
    unsigned want;
    char b[8][16];
    struct gate started;
    atomic_int done;
};

static void *mm_main(void *arg)
{
    struct mm_rx *m = arg;
    struct mmsghdr mm[8];
    struct iovec v[8];
    mmsg_fill(mm, v, m->b, m->want, NULL);
    gate_post(&m->started);
    m->got = recvmmsg(m->fd, mm, m->want, m->flags, NULL);
    m->done = 1;
    return NULL;
}

// Without MSG_WAITFORONE recvmmsg blocks until all messages are there.
static void recvmmsg_waits_for_all_or_one(void)
{
    struct sockaddr_in a, b;
    int rx = udp_socket(&a), tx = udp_socket(&b);
    struct mmsghdr mm[5];
    struct iovec v[5];
    char data[5][16] = {"m0", "m1", "m2", "m3", "m4"};
    struct mm_rx m = {.fd = rx, .want = 5, .started = GATE_INIT};
    pthread_t t = spawn(mm_main, &m);
    gate_wait(&m.started, 1);
    mmsg_fill(mm, v, data, 5, &a);
    CHECK_EQ(sendmmsg(tx, mm, 3, 0), 3);
    CHECK_EQ(mm[2].msg_len, 16);
    settle();
    CHECK(!m.done);
    others_progress();
    CHECK_EQ(sendmmsg(tx, mm + 3, 2, 0), 2);
    join(t);
    CHECK_EQ(m.got, 5);
    for (int i = 0; i < 5; i++) CHECK_EQ(m.b[i][1], '0' + i);
    m = (struct mm_rx){.fd = rx, .want = 5, .flags = MSG_WAITFORONE, .started = GATE_INIT};
    MUST(sendmmsg(tx, mm, 2, 0) == 2);
    mm_main(&m);
    CHECK_EQ(m.got, 2);
    struct timespec zero = {0, 0};
    mmsg_fill(mm, v, data, 5, NULL);
    CHECK_FAILS(recvmmsg(rx, mm, 5, MSG_DONTWAIT, &zero), EAGAIN);
    close(rx);
    close(tx);
}

static void seqpacket_and_dgram_keep_borders(void)
{
    static const int types[] = {SOCK_SEQPACKET, SOCK_DGRAM};
    for (int k = 0; k < 2; k++)
        for (int h = 0; h < HOWS; h++) {
            int p[2];
            struct rx r;
            MUST(socketpair(AF_UNIX, types[k], 0, p) == 0);
            pthread_t t = start(&r, (enum how)h, p[0], 32, 0);
            others_progress();
            MUST(send(p[1], "first", 5, 0) == 5);
            MUST(send(p[1], "second", 6, 0) == 6);
            join(t);
            CHECK_EQ(r.got, 5);
            t = start(&r, (enum how)h, p[0], 32, 0);
            join(t);
            CHECK_EQ(r.got, 6);
            t = start(&r, (enum how)h, p[0], 32, 0);
            if (types[k] == SOCK_SEQPACKET) {
                close(p[1]);
                join(t);
                CHECK_EQ(r.got, 0);
            } else {
                MUST(send(p[1], "x", 1, 0) == 1);
                join(t);
                CHECK_EQ(r.got, 1);
                close(p[1]);
            }
            close(p[0]);
        }
}

struct tx {
    int fd;
    int how;
    long sent;
    struct gate started;
};

static void *tx_main(void *arg)
{
    struct tx *x = arg;
    char b[600];
    gate_post(&x->started);
    for (int i = 0; i < 500; i++) {
        struct iovec v[2] = {{b, 10}, {b + 10, 590}};
        struct mmsghdr mm = {.msg_hdr = {.msg_iov = v, .msg_iovlen = 2}};
        memset(b, i & 127, sizeof b);
        ssize_t r = x->how == 0   ? send(x->fd, b, sizeof b, 0)
                    : x->how == 1 ? sendto(x->fd, b, sizeof b, 0, NULL, 0)
                    : x->how == 2 ? sendmsg(x->fd, &mm.msg_hdr, 0)
                    : x->how == 3 ? (sendmmsg(x->fd, &mm, 1, 0) == 1 ? (ssize_t)mm.msg_len : -1)
                    : x->how == 4 ? write(x->fd, b, sizeof b)
                                  : writev(x->fd, v, 2);
        MUST(r == (ssize_t)sizeof b);
        x->sent++;
    }
    return NULL;
}

// A full queue blocks each way to send; order and borders survive it.
static void unix_dgram_every_send_blocks_when_full(void)
{
    for (int how = 0; how < 6; how++) {
        int p[2];
        char b[1000];
        MUST(socketpair(AF_UNIX, how % 2 ? SOCK_SEQPACKET : SOCK_DGRAM, 0, p) == 0);
        struct tx x = {.fd = p[1], .how = how, .started = GATE_INIT};
        pthread_t t = spawn(tx_main, &x);
        gate_wait(&x.started, 1);
        settle();
        others_progress();
        for (int i = 0; i < 500; i++) {
            CHECK_EQ(recv(p[0], b, sizeof b, 0), 600);
            CHECK_EQ(b[599], i & 127);
        }
        join(t);
        close2(p);
    }
}

static void send_fd(int sock, int fd)
{
    union { struct cmsghdr h; char b[CMSG_SPACE(sizeof(int))]; } u = {0};
    struct iovec v = {"f", 1};
    struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = u.b,
                       .msg_controllen = sizeof u.b};
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(c), &fd, sizeof fd);
    MUST(sendmsg(sock, &m, 0) == 1);
}

static int recv_fd(int sock)
{
    union { struct cmsghdr h; char b[CMSG_SPACE(sizeof(int))]; } u;
    char c;
    struct iovec v = {&c, 1};
    struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = u.b,
                       .msg_controllen = sizeof u.b};
    int fd = -1;
    MUST(recvmsg(sock, &m, MSG_CMSG_CLOEXEC) == 1);
    struct cmsghdr *h = CMSG_FIRSTHDR(&m);
    MUST(h && h->cmsg_type == SCM_RIGHTS);
    memcpy(&fd, CMSG_DATA(h), sizeof fd);
    return fd;
}

static void *fd_receiver(void *arg)
{
    int fd = recv_fd(*(int *)arg);
    char b[8];
    CHECK_EQ(fcntl(fd, F_GETFD), FD_CLOEXEC);
    ssize_t r = read(fd, b, sizeof b);  // blocks on a descriptor nobody here opened
    CHECK_EQ(r, 4);
    CHECK_EQ(read(fd, b, sizeof b), 0);
    close(fd);
    return NULL;
}

static void passed_descriptor_can_be_blocked_on(void)
{
    for (int round = 0; round < 5; round++) {
        int s[2], p[2];
        make_pair(s);
        pthread_t t = spawn(fd_receiver, &s[1]);
        if (round % 2) make_pipe(p); else make_pair(p);
        send_fd(s[0], p[0]);
        close(p[0]);  // the receiver's copy is the only one now
        settle();
        MUST(write(p[1], "past", 4) == 4);
        close(p[1]);
        join(t);
        close2(s);
    }
}

static void *name_rx(void *arg)
{
    int fd = *(int *)arg;
    char b[8];
    for (int i = 0; i < 200; i++) {
        struct sockaddr_un from;
        socklen_t n = sizeof from;
        ssize_t r = recvfrom(fd, b, sizeof b, 0, (struct sockaddr *)&from, &n);
        MUST(r > 0);
        MUST(sendto(fd, b, (size_t)r, 0, (struct sockaddr *)&from, n) == r);
    }
    return NULL;
}

// Ten clients, ten server threads on one named datagram socket: every request is
// answered to the one who asked.
static void *name_client(void *arg)
{
    struct sockaddr_un srv = *(struct sockaddr_un *)arg, me = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_DGRAM, 0);
    MUST(bind(fd, (struct sockaddr *)&me, sizeof(sa_family_t)) == 0);  // autobind
    for (int i = 0; i < 200; i++) {
        int v = i * 7 + fd, w = 0;
        MUST(sendto(fd, &v, 4, 0, (struct sockaddr *)&srv, sizeof srv) == 4);
        MUST(recv(fd, &w, 4, 0) == 4);
        CHECK_EQ(v, w);
    }
    close(fd);
    return NULL;
}

static void many_threads_on_one_datagram_socket(void)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_DGRAM, 0);
    pthread_t s[10], c[10];
    snprintf(a.sun_path + 1, sizeof a.sun_path - 1, "weft-dgram-%d", getpid());
    MUST(bind(fd, (struct sockaddr *)&a, sizeof a) == 0);
    for (int i = 0; i < 10; i++) s[i] = spawn(name_rx, &fd);
    for (int i = 0; i < 10; i++) c[i] = spawn(name_client, &a);
    for (int i = 0; i < 10; i++) join(c[i]);
    for (int i = 0; i < 10; i++) join(s[i]);
    close(fd);
}

static void connected_udp_reports_the_refusal(void)
{
    struct sockaddr_in a, b;
    int gone = udp_socket(&a), fd = udp_socket(&b);
    struct rx r;
    close(gone);
    MUST(connect(fd, (struct sockaddr *)&a, sizeof a) == 0);
    pthread_t t = start(&r, RECV, fd, 8, 0);
    MUST(send(fd, "x", 1, 0) == 1);  // answered by ICMP port unreachable
    join(t);
    CHECK_EQ(r.got, -1);
    CHECK_EQ(r.err, ECONNREFUSED);
    close(fd);
}

static const struct CMUnitTest tests[] = {
    T(udp_every_receive),
    T(recvmmsg_waits_for_all_or_one),
    T(seqpacket_and_dgram_keep_borders),
    T(unix_dgram_every_send_blocks_when_full),
    T(passed_descriptor_can_be_blocked_on),
    T(many_threads_on_one_datagram_socket),
    T(connected_udp_reports_the_refusal),
};
IO_MAIN(tests)

// sock_timeo_test.c - SO_RCVTIMEO and SO_SNDTIMEO on every call they govern, and
// what signals do to such calls.
//
// Invariant: a timeout is never early (but for the kernel's tick) and ends in
//            EAGAIN; upper bounds are loose, for a loaded machine.
// Callers:   run natively and under LD_PRELOAD; uses io.h only.
#include "io.h"

#define TIMEOUT (40 * MS)
#define TICK (11 * MS)  // the kernel counts these in jiffies (up to 10 ms)

static void set_timeout(int fd, int which, long long ns)
{
    struct timeval tv = tv_of(ns), back;
    socklen_t n = sizeof back;
    MUST(setsockopt(fd, SOL_SOCKET, which, &tv, sizeof tv) == 0);
    MUST(getsockopt(fd, SOL_SOCKET, which, &back, &n) == 0);
    CHECK_EQ(back.tv_sec, tv.tv_sec);
}

enum call { C_READ, C_READV, C_RECV, C_RECVFROM, C_RECVMSG, C_RECVMMSG, C_PEEK, C_WAITALL, C_IN };

static ssize_t call_in(enum call c, int fd)
{
    char b[8];
    struct iovec v = {b, sizeof b};
    struct mmsghdr m = {.msg_hdr = {.msg_iov = &v, .msg_iovlen = 1}};
    switch (c) {
    case C_READ: return read(fd, b, sizeof b);
    case C_READV: return readv(fd, &v, 1);
    case C_RECV: return recv(fd, b, sizeof b, 0);
    case C_RECVFROM: return recvfrom(fd, b, sizeof b, 0, NULL, NULL);
    case C_RECVMSG: return recvmsg(fd, &m.msg_hdr, 0);
    case C_RECVMMSG: return recvmmsg(fd, &m, 1, 0, NULL);
    case C_PEEK: return recv(fd, b, sizeof b, MSG_PEEK);
    default: return recv(fd, b, sizeof b, MSG_WAITALL);
    }
}

struct job {
    int fd;
    enum call call;
    ssize_t got;
    int err;
    long long took;
    atomic_int done;
    struct gate started;
};

static void *job_main(void *arg)
{
    struct job *j = arg;
    gate_post(&j->started);
    long long from = now_ns();
    errno = 0;
    j->got = call_in(j->call, j->fd);
    j->err = errno;
    j->took = now_ns() - from;
    j->done = 1;
    return NULL;
}

static void timeout_took(long long took, long long want)
{
    CHECK(took >= want - TICK);
    CHECK(took < want + 2 * SEC);
}

// All kinds at once, one thread each: every one ends in EAGAIN on its own clock.
static void receive_timeouts(void)
{
    for (int tcp = 0; tcp < 2; tcp++) {
        struct job j[C_IN];
        pthread_t t[C_IN];
        int p[C_IN][2];
        for (int c = 0; c < C_IN; c++) {
            if (tcp) tcp_pair(p[c]); else make_pair(p[c]);
            set_timeout(p[c][0], SO_RCVTIMEO, TIMEOUT + c * 2 * MS);
            j[c] = (struct job){.fd = p[c][0], .call = (enum call)c, .started = GATE_INIT};
            t[c] = spawn(job_main, &j[c]);
        }
        others_progress();
        for (int c = 0; c < C_IN; c++) {
            join(t[c]);
            CHECK_EQ(j[c].got, -1);
            CHECK_EQ(j[c].err, EAGAIN);
            timeout_took(j[c].took, TIMEOUT + c * 2 * MS);
            close2(p[c]);
        }
    }
}

static void data_beat_the_timeout(void)
{
    int p[2];
    make_pair(p);
    set_timeout(p[0], SO_RCVTIMEO, 10 * SEC);
    struct job j = {.fd = p[0], .call = C_RECV, .started = GATE_INIT};
    pthread_t t = spawn(job_main, &j);
    gate_wait(&j.started, 1);
    settle();
    MUST(write(p[1], "abc", 3) == 3);
    join(t);
    CHECK_EQ(j.got, 3);
    CHECK(j.took < 5 * SEC);
    set_timeout(p[0], SO_RCVTIMEO, TIMEOUT);
    MUST(write(p[1], "abc", 3) == 3);
    j.call = C_WAITALL;  // three of eight, then the timeout: the three are the result
    job_main(&j);
    CHECK_EQ(j.got, 3);
    timeout_took(j.took, TIMEOUT);
    set_timeout(p[0], SO_RCVTIMEO, 0);  // zero: no timeout again
    j = (struct job){.fd = p[0], .call = C_READ, .started = GATE_INIT};
    t = spawn(job_main, &j);
    gate_wait(&j.started, 1);
    nap(TIMEOUT + 20 * MS);
    CHECK(!j.done);
    close(p[1]);
    join(t);
    CHECK_EQ(j.got, 0);
    close(p[0]);
}

// Timeouts are looked at when a call starts. The duplicate shares them.
static void timeout_set_through_a_duplicate(void)
{
    int p[2];
    make_pair(p);
    int d = dup(p[0]);
    set_timeout(d, SO_RCVTIMEO, TIMEOUT);
    struct job j = {.fd = p[0], .call = C_READ, .started = GATE_INIT};
    join(spawn(job_main, &j));
    CHECK_EQ(j.err, EAGAIN);
    timeout_took(j.took, TIMEOUT);
    close(d);
    close2(p);
}

static void timeout_set_by_a_child(void)
{
    int p[2];
    make_pair(p);
    struct job j = {.fd = p[0], .call = C_READ, .started = GATE_INIT};
    pthread_t t = spawn(job_main, &j);  // the descriptor is known by now
    MUST(write(p[1], "x", 1) == 1);
    join(t);
    pid_t pid = fork();
    if (pid == 0) {
        set_timeout(p[0], SO_RCVTIMEO, TIMEOUT);
        _exit(0);
    }
    CHECK_CHILD_OK(reap(pid));
    j = (struct job){.fd = p[0], .call = C_READ, .started = GATE_INIT};
    join(spawn(job_main, &j));
    CHECK_EQ(j.got, -1);
    CHECK_EQ(j.err, EAGAIN);
    timeout_took(j.took, TIMEOUT);
    close2(p);
}

static void *send_timeout_thread(void *arg)
{
    int fd = *(int *)arg;
    static char big[4 << 20];
    long long from = now_ns();
    ssize_t r = send(fd, big, sizeof big, MSG_NOSIGNAL);  // a part fits: that is the result
    CHECK(r > 0 && r < (ssize_t)sizeof big);
    timeout_took(now_ns() - from, TIMEOUT);
    while (send(fd, big, 1, MSG_DONTWAIT) > 0)
        ;
    struct iovec v = {big, sizeof big};
    struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1};
    for (int how = 0; how < 3; how++) {
        from = now_ns();
        errno = 0;
        r = how == 0 ? write(fd, big, 10) : how == 1 ? writev(fd, &v, 1) : sendmsg(fd, &m, 0);
        CHECK_EQ(r, -1);
        CHECK_EQ(errno, EAGAIN);
        timeout_took(now_ns() - from, TIMEOUT);
    }
    return NULL;
}

static void send_timeouts(void)
{
    int p[2];
    make_pair(p);
    set_timeout(p[0], SO_SNDTIMEO, TIMEOUT);
    pthread_t t = spawn(send_timeout_thread, &p[0]);
    others_progress();
    join(t);
    close2(p);
}

static void *accept_timeout_thread(void *arg)
{
    int l = *(int *)arg;
    for (int four = 0; four < 2; four++) {
        long long from = now_ns();
        errno = 0;
        CHECK_EQ(four ? accept4(l, NULL, NULL, 0) : accept(l, NULL, NULL), -1);
        CHECK_EQ(errno, EAGAIN);
        timeout_took(now_ns() - from, TIMEOUT);
    }
    return NULL;
}

static void accept_timeouts(void)
{
    int port, l = tcp_listen(&port, 4);
    set_timeout(l, SO_RCVTIMEO, TIMEOUT);
    pthread_t t = spawn(accept_timeout_thread, &l);
    others_progress();
    join(t);
    close(l);
}

static void unix_address(struct sockaddr_un *a)
{
    static int unique;
    *a = (struct sockaddr_un){.sun_family = AF_UNIX};
    snprintf(a->sun_path + 1, sizeof a->sun_path - 1, "weft-timeo-%d-%d", getpid(), unique++);
}

// connect obeys SO_SNDTIMEO: a full Unix listener queue gives EAGAIN in time.
static void connect_timeouts(void)
{
    struct sockaddr_un a;
    unix_address(&a);
    int l = socket(AF_UNIX, SOCK_STREAM, 0), c1 = socket(AF_UNIX, SOCK_STREAM, 0);
    int c2 = socket(AF_UNIX, SOCK_STREAM, 0);
    MUST(bind(l, (struct sockaddr *)&a, sizeof a) == 0 && listen(l, 0) == 0);
    MUST(connect(c1, (struct sockaddr *)&a, sizeof a) == 0);
    set_timeout(c2, SO_SNDTIMEO, TIMEOUT);
    long long from = now_ns();
    CHECK_FAILS(connect(c2, (struct sockaddr *)&a, sizeof a), EAGAIN);
    timeout_took(now_ns() - from, TIMEOUT);
    close(c1);
    close(c2);
    close(l);
}

static atomic_int handled;

static void on_signal(int sig)
{
    (void)sig;
    atomic_fetch_add(&handled, 1);
}

// signal(7): with a timeout set, a socket call is interrupted even under SA_RESTART.
static void with_a_timeout_sa_restart_does_not_restart(void)
{
    struct sigaction old = set_handler(SIGUSR1, on_signal, SA_RESTART);
    for (int c = 0; c < C_IN; c++) {
        int p[2];
        tcp_pair(p);
        set_timeout(p[0], SO_RCVTIMEO, 30 * SEC);
        handled = 0;
        struct job j = {.fd = p[0], .call = (enum call)c, .started = GATE_INIT};
        pthread_t t = spawn(job_main, &j);
        gate_wait(&j.started, 1);
        long long end = now_ns() + IO_LIMIT_NS;
        while (!j.done) {
            MUST(now_ns() < end);
            pthread_kill(t, SIGUSR1);
            nap(300000);
        }
        join(t);
        CHECK_EQ(j.got, -1);
        CHECK_EQ(j.err, EINTR);
        CHECK(handled > 0);
        close2(p);
    }
    sigaction(SIGUSR1, &old, NULL);
}

static const struct CMUnitTest tests[] = {
    T(receive_timeouts),
    T(data_beat_the_timeout),
    T(timeout_set_through_a_duplicate),
    T(timeout_set_by_a_child),
    T(send_timeouts),
    T(accept_timeouts),
    T(connect_timeouts),
    T(with_a_timeout_sa_restart_does_not_restart),
};
IO_MAIN(tests)

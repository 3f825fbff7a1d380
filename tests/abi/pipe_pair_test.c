// pipe_pair_test.c - the two ends of a pipe or socket pair, written and read in ways that nobody
// but the kernel keeps count of.
//
// Invariant: what a write, a read or a wait does depends on what is in the pipe, however it came
// in or went out: by read and write, by splice, by another number for the same end, or over a
// number that means another pipe by now.
// Callers:   run natively and under LD_PRELOAD; uses io.h only.
#include "io.h"

struct one_read {
    int fd;
    ssize_t got;
    int err;
    char c;
    struct gate done;
};

static void *read_one(void *arg)
{
    struct one_read *r = arg;
    r->got = read(r->fd, &r->c, 1);
    r->err = errno;
    gate_post(&r->done);
    return arg;
}

// n bytes go in by write, and out by splice.
static void in_and_out_unseen(const int p[2], int n)
{
    char buf[256] = {0};
    int away[2], left = n;
    MUST(pipe(away) == 0);
    MUST(write(p[1], buf, (size_t)n) == n);
    while (left > 0) {
        ssize_t r = splice(p[0], NULL, away[1], NULL, (size_t)left, 0);
        MUST(r > 0);
        left -= (int)r;
    }
    close2(away);
}

// One that reads a pipe which looks as if it held something.
static pthread_t read_an_emptied_pipe(struct one_read *r, int p[2])
{
    MUST(pipe(p) == 0);
    in_and_out_unseen(p, 100);
    *r = (struct one_read){.fd = p[0]};
    return spawn(read_one, r);
}

static void an_emptied_pipe_is_waited_for(void)
{
    for (int i = 0; i < 50; i++) {
        int p[2];
        struct one_read r;
        pthread_t t = read_an_emptied_pipe(&r, p);
        settle();  // main comes back while it waits, on one processor as well
        CHECK_EQ(r.done.n, 0);
        MUST(write(p[1], "x", 1) == 1);
        join(t);
        CHECK_EQ(r.got, 1);
        CHECK_EQ(r.c, 'x');
        close2(p);
    }
}

static void *write_one(void *arg)
{
    struct one_read *w = arg;
    w->got = write(w->fd, "y", 1);
    gate_post(&w->done);
    return arg;
}

static void a_pipe_filled_unseen_is_waited_for(void)
{
    for (int i = 0; i < 20; i++) {
        int p[2], from[2];
        static char page[4096];
        MUST(pipe(p) == 0 && pipe(from) == 0);
        ssize_t in = 0, r;
        for (;;) {
            MUST(write(from[1], page, sizeof page) == sizeof page);
            r = splice(from[0], NULL, p[1], NULL, sizeof page, SPLICE_F_NONBLOCK);
            if (r <= 0) break;
            in += r;
        }
        struct one_read w = {.fd = p[1]};
        pthread_t t = spawn(write_one, &w);
        settle();
        CHECK_EQ(w.done.n, 0);
        for (ssize_t out = 0; out < in; out += r) {
            r = read(p[0], page, sizeof page);
            MUST(r > 0);
        }
        join(t);
        CHECK_EQ(w.got, 1);
        MUST(read(p[0], page, 1) == 1);
        CHECK_EQ(page[0], 'y');
        close2(p);
        close2(from);
    }
}

static atomic_int handled;
static void on_signal(int sig)
{
    (void)sig;
    handled++;
}

static void a_wait_for_an_emptied_pipe_ends_by_cancel_and_signal(void)
{
    struct sigaction sa = {.sa_handler = on_signal}, old;
    MUST(sigaction(SIGUSR1, &sa, &old) == 0);
    for (int i = 0; i < 50; i++) {
        int p[2];
        struct one_read r;
        pthread_t t = read_an_emptied_pipe(&r, p);
        if (i % 2 == 0) {
            usleep((useconds_t)i * 10);
            MUST(pthread_cancel(t) == 0);
            void *result = NULL;
            MUST(pthread_join(t, &result) == 0);
            CHECK(result == PTHREAD_CANCELED);
        } else {
            handled = 0;
            while (r.done.n == 0) {  // one that comes before the call ends nothing
                MUST(pthread_kill(t, SIGUSR1) == 0);
                usleep(500);
            }
            join(t);
            CHECK_EQ(r.got, -1);
            CHECK_EQ(r.err, EINTR);
        }
        close2(p);
    }
    sigaction(SIGUSR1, &old, NULL);
}

// The number of a read end, closed, means another pipe's: bytes for the first are not its.
static void a_number_used_again_is_another_pipe(void)
{
    for (int i = 0; i < 50; i++) {
        int a[2], b[2];
        MUST(pipe(a) == 0);
        struct one_read r = {.fd = a[0]};
        pthread_t t = spawn(read_one, &r);
        MUST(write(a[1], "1", 1) == 1);
        join(t);
        int kept = dup(a[0]);  // the pipe stays open
        close(a[0]);
        MUST(pipe(b) == 0);
        CHECK_EQ(b[0], a[0]);
        struct one_read rb = {.fd = b[0]};
        t = spawn(read_one, &rb);
        for (int k = 0; k < 20; k++) MUST(write(a[1], "2", 1) == 1);
        usleep(100);
        CHECK_EQ(rb.done.n, 0);
        MUST(write(b[1], "3", 1) == 1);
        join(t);
        CHECK_EQ(rb.c, '3');
        char buf[32];
        CHECK_EQ(read(kept, buf, sizeof buf), 20);
        close(kept);
        close(a[1]);
        close2(b);
    }
}

static void *returns_all(void *arg)
{
    int *p = arg;
    char c;
    while (read(p[0], &c, 1) == 1 && c != 'q') MUST(write(p[1], &c, 1) == 1);
    return NULL;
}

// Two that feed each other all the time keep nobody else from running.
static void a_pair_does_not_keep_a_sleeper_out(void)
{
    for (int sockets = 0; sockets < 2; sockets++) {
        int there[2], back[2];
        if (sockets) {
            MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, there) == 0);
            back[0] = there[1];
            back[1] = there[0];
        } else {
            MUST(pipe(there) == 0 && pipe(back) == 0);
        }
        int others[2] = {there[0], back[1]}, mine[2] = {back[0], there[1]};
        pthread_t t = spawn(returns_all, others), s;
        int trips[2] = {mine[0], mine[1]};
        MUST(write(mine[1], "x", 1) == 1);
        s = spawn(returns_all, trips);
        for (int i = 0; i < 50; i++) usleep(1000);
        MUST(write(mine[1], "q", 1) == 1);
        join(t);
        MUST(write(others[1], "q", 1) == 1);
        join(s);
        close2(there);
        if (!sockets) close2(back);
    }
}

enum { kWriters = 4, kMessages = 3000 };

struct messages {
    int fd, width;
    unsigned char id;
};

// Each message is its own length: a byte that tells it, then as many of the writer's.
static void *write_messages(void *arg)
{
    struct messages *m = arg;
    for (int i = 0; i < kMessages; i++) {
        unsigned char buf[256];
        int n = 2 + (i * 7 + m->id) % (m->width - 2);
        memset(buf, m->id, (size_t)n);
        buf[0] = (unsigned char)n;
        MUST(write(m->fd, buf, (size_t)n) == n);
    }
    return NULL;
}

// However few pages a pipe has, and should it get others while it is in use, every write waits
// for its room and goes in whole.
static void a_pipe_of_any_size_is_written_whole(void)
{
    static const int sizes[] = {4096, 16384, 65536, 4096, 1 << 20};
    int p[2], count[kWriters] = {0};
    MUST(pipe(p) == 0);
    struct messages m[kWriters];
    pthread_t t[kWriters];
    for (int i = 0; i < kWriters; i++) {
        m[i] = (struct messages){p[1], 40 + 60 * i, (unsigned char)i};
        t[i] = spawn(write_messages, &m[i]);
    }
    for (int got = 0; got < kWriters * kMessages; got++) {
        unsigned char buf[256];
        MUST(read(p[0], buf, 1) == 1);
        int n = buf[0];
        for (int have = 1; have < n;) {
            ssize_t r = read(p[0], buf + have, (size_t)(n - have));
            MUST(r > 0);
            have += (int)r;
        }
        for (int i = 2; i < n; i++) MUST(buf[i] == buf[1]);
        MUST(buf[1] < kWriters);
        count[buf[1]]++;
        if (got % 500 == 0) {  // EBUSY: it holds more than that; EPERM: not for this user
            int rc = fcntl(p[got / 500 % 2], F_SETPIPE_SZ, sizes[got / 500 % 5]);
            MUST(rc > 0 || errno == EBUSY || errno == EPERM);
        }
    }
    for (int i = 0; i < kWriters; i++) {
        MUST(count[i] == kMessages);
        join(t[i]);
    }
    close2(p);
}

static const struct CMUnitTest tests[] = {
    T(an_emptied_pipe_is_waited_for),
    T(a_pipe_filled_unseen_is_waited_for),
    T(a_wait_for_an_emptied_pipe_ends_by_cancel_and_signal),
    T(a_number_used_again_is_another_pipe),
    T(a_pair_does_not_keep_a_sleeper_out),
    T(a_pipe_of_any_size_is_written_whole),
};
IO_MAIN(tests)

// pipe_io_test.c - read and write in all their forms on pipes and socket pairs:
// who blocks, who wakes, what comes back, and what the descriptor's flags say.
//
// Invariant: every expectation here holds for plain kernel threads.
// Callers:   run natively and under LD_PRELOAD; uses io.h only.
#include "io.h"

enum form { READ, READV, PREADV2, FORMS };
static const char *const form_name[] = {"read", "readv", "preadv2"};

static ssize_t read_as(enum form f, int fd, void *buf, size_t n)
{
    struct iovec v[2] = {{buf, n / 2}, {(char *)buf + n / 2, n - n / 2}};
    switch (f) {
    case READ: return read(fd, buf, n);
    case READV: return readv(fd, v, 2);
    default: return preadv2(fd, v, 2, -1, 0);
    }
}

static ssize_t write_as(enum form f, int fd, const void *buf, size_t n)
{
    struct iovec v[2] = {{(void *)buf, n / 2}, {(char *)buf + n / 2, n - n / 2}};
    switch (f) {
    case READ: return write(fd, buf, n);
    case READV: return writev(fd, v, 2);
    default: return pwritev2(fd, v, 2, -1, 0);
    }
}

struct reader {
    enum form form;
    int fd;
    size_t n;
    ssize_t got;
    int err;
    char buf[64];
    struct gate started, done;
};

static void *reader_main(void *arg)
{
    struct reader *r = arg;
    gate_post(&r->started);
    errno = 0;
    r->got = read_as(r->form, r->fd, r->buf, r->n);
    r->err = errno;
    gate_post(&r->done);
    return NULL;
}

static void new_reader(struct reader *r, enum form form, int fd, size_t n)
{
    *r = (struct reader){.form = form, .fd = fd, .n = n, .started = GATE_INIT, .done = GATE_INIT};
}

// A blocked reader of each form gets a short read as soon as one piece is there,
// and the others run on meanwhile.
static void blocked_read_returns_what_there_is(void)
{
    for (int sock = 0; sock < 2; sock++)
        for (int f = 0; f < FORMS; f++) {
            struct reader r;
            int p[2];
            if (sock) make_pair(p); else make_pipe(p);
            new_reader(&r, (enum form)f, p[0], 16);
            pthread_t t = spawn(reader_main, &r);
            gate_wait(&r.started, 1);
            settle();
            others_progress();
            MUST(write(p[1], "hello", 5) == 5);
            join(t);
            CHECK_EQ(r.got, 5);
            CHECK(memcmp(r.buf, "hello", 5) == 0);
            if (r.got != 5) print_message("form %s sock %d\n", form_name[f], sock);
            close2(p);
        }
}

static void eof_wakes_every_blocked_reader(void)
{
    struct reader r[6];
    pthread_t t[6];
    int p[2];
    make_pipe(p);
    for (int i = 0; i < 6; i++) {
        new_reader(&r[i], (enum form)(i % FORMS), p[0], 8);
        t[i] = spawn(reader_main, &r[i]);
    }
    for (int i = 0; i < 6; i++) gate_wait(&r[i].started, 1);
    settle();
    close(p[1]);
    for (int i = 0; i < 6; i++) {
        join(t[i]);
        CHECK_EQ(r[i].got, 0);
    }
    close(p[0]);
}

struct big {
    enum form form;
    int fd;
    size_t n;
    ssize_t got;
    int err;
    struct gate started;
    atomic_int done;
};

static void *big_writer(void *arg)
{
    struct big *b = arg;
    unsigned char *buf = malloc(b->n);
    pattern_fill(buf, b->n, b->n, 0);
    gate_post(&b->started);
    errno = 0;
    b->got = write_as(b->form, b->fd, buf, b->n);
    b->err = errno;
    free(buf);
    b->done = 1;
    return NULL;
}

// One write of a few MiB is one call: it returns the whole count however slowly
// and in whatever pieces the reader takes it.
static void big_write_completes_whole(void)
{
    for (int sock = 0; sock < 2; sock++)
        for (int f = 0; f < FORMS; f++) {
            size_t total = 3u << 20, off = 0;
            struct big b = {.form = (enum form)f, .n = total, .started = GATE_INIT};
            uint64_t seed = 7 + (uint64_t)f;
            static unsigned char buf[65536];
            int p[2];
            if (sock) make_pair(p); else make_pipe(p);
            b.fd = p[1];
            pthread_t t = spawn(big_writer, &b);
            while (off < total) {
                ssize_t r = read(p[0], buf, 1 + rnd(&seed) % sizeof buf);
                MUST(r > 0);
                CHECK(pattern_ok(buf, (size_t)r, total, off));
                off += (size_t)r;
                if (rnd(&seed) % 8 == 0) sched_yield();
                if (off < total / 2) CHECK(!b.done);
            }
            join(t);
            CHECK_EQ(b.got, total);
            close2(p);
        }
}

#define RECORD 512  // below PIPE_BUF: must stay whole
struct many {
    int fd, id, records;
    atomic_int *seen;
};

static void *record_writer(void *arg)
{
    struct many *m = arg;
    unsigned char rec[RECORD];
    for (int i = 0; i < m->records; i++) {
        memset(rec, m->id, sizeof rec);
        MUST(write(m->fd, rec, sizeof rec) == RECORD);
    }
    return NULL;
}

static void *record_reader(void *arg)
{
    struct many *m = arg;
    unsigned char rec[RECORD];
    ssize_t r;
    // Readers take whole records: every write is atomic and a multiple of RECORD.
    while ((r = read(m->fd, rec, sizeof rec)) > 0) {
        CHECK_EQ(r, RECORD);
        for (int i = 1; i < r; i++)
            if (rec[i] != rec[0]) CHECK(!"record torn");
        atomic_fetch_add(&m->seen[rec[0]], 1);
    }
    CHECK_EQ(r, 0);
    return NULL;
}

static void many_readers_and_writers_on_one_pipe(void)
{
    enum { W = 12, R = 7, RECORDS = 400 };
    static atomic_int seen[256];
    struct many w[W], r;
    pthread_t wt[W], rt[R];
    int p[2];
    make_pipe(p);
    memset(seen, 0, sizeof seen);
    r = (struct many){.fd = p[0], .seen = seen};
    for (int i = 0; i < R; i++) rt[i] = spawn(record_reader, &r);
    for (int i = 0; i < W; i++) {
        w[i] = (struct many){.fd = p[1], .id = i + 1, .records = RECORDS};
        wt[i] = spawn(record_writer, &w[i]);
    }
    for (int i = 0; i < W; i++) join(wt[i]);
    close(p[1]);
    for (int i = 0; i < R; i++) join(rt[i]);
    for (int i = 0; i < W; i++) CHECK_EQ(seen[i + 1], RECORDS);
    close(p[0]);
}

struct duplex {
    int fd, write;
    uint64_t key;
    size_t n;
};

static void *duplex_side(void *arg)
{
    struct duplex *d = arg;
    static const size_t piece = 9000;
    unsigned char buf[9000];
    for (size_t off = 0; off < d->n;) {
        size_t want = d->n - off < piece ? d->n - off : piece;
        ssize_t r;
        if (d->write) {
            pattern_fill(buf, want, d->key, off);
            r = write(d->fd, buf, want);
            CHECK_EQ(r, want);
        } else {
            r = read(d->fd, buf, want);
            MUST(r > 0);
            CHECK(pattern_ok(buf, (size_t)r, d->key, off));
        }
        MUST(r > 0);
        off += (size_t)r;
    }
    return NULL;
}

// One descriptor, one thread reading and one writing at the same time, at both
// ends: the two directions must wake independently.
static void reader_and_writer_at_once(void)
{
    int p[2];
    for (int tcp = 0; tcp < 2; tcp++) {
        if (tcp) tcp_pair(p); else make_pair(p);
        struct duplex d[4] = {{p[0], 1, 1, 2 << 20}, {p[0], 0, 2, 2 << 20},
                              {p[1], 1, 2, 2 << 20}, {p[1], 0, 1, 2 << 20}};
        pthread_t t[4];
        for (int i = 0; i < 4; i++) t[i] = spawn(duplex_side, &d[i]);
        for (int i = 0; i < 4; i++) join(t[i]);
        close2(p);
    }
}

// The library may need non-blocking calls; the program's flag must not change,
// not even for a moment: another process could see it.
static void flags_never_change(void)
{
    for (int sock = 0; sock < 2; sock++) {
        struct reader r;
        int p[2], before[2];
        if (sock) make_pair(p); else make_pipe(p);
        for (int i = 0; i < 2; i++) before[i] = fcntl(p[i], F_GETFL);
        new_reader(&r, READ, p[0], 4);
        pthread_t t = spawn(reader_main, &r);
        gate_wait(&r.started, 1);
        for (int k = 0; k < 2000; k++) {
            MUST(fcntl(p[0], F_GETFL) == before[0]);
            if (k % 500 == 0) settle();
        }
        MUST(write(p[1], "done", 4) == 4);
        join(t);
        struct big b = {.form = READ, .fd = p[1], .n = 1 << 20, .started = GATE_INIT};
        t = spawn(big_writer, &b);
        static char sink[1 << 20];
        gate_wait(&b.started, 1);
        for (int k = 0; k < 2000; k++) MUST(fcntl(p[1], F_GETFL) == before[1]);
        read_full(p[0], sink, sizeof sink);
        join(t);
        for (int i = 0; i < 2; i++) CHECK_EQ(fcntl(p[i], F_GETFL), before[i]);
        close2(p);
    }
}

static void expect_again(int rd, int wr)
{
    char buf[8];
    for (int f = 0; f < FORMS; f++) CHECK_FAILS(read_as((enum form)f, rd, buf, 8), EAGAIN);
    if (wr < 0) return;
    fill_up(wr);
    for (int f = 0; f < FORMS; f++) CHECK_FAILS(write_as((enum form)f, wr, "abcdefgh", 8), EAGAIN);
    char drain[4096];
    while (read(rd, drain, sizeof drain) > 0)
        ;
    CHECK_EQ(errno, EAGAIN);
}

static void *again_thread(void *arg)
{
    int *p = arg;
    expect_again(p[0], p[1]);
    return NULL;
}

// O_NONBLOCK belongs to the open file description: however it was set (fcntl,
// FIONBIO, pipe2, through a duplicate, by another process), the next call sees it.
static void nonblock_is_seen_however_set(void)
{
    int p[2], on = 1, off = 0;
    MUST(pipe2(p, O_NONBLOCK) == 0);
    join(spawn(again_thread, p));
    close2(p);

    make_pipe(p);
    MUST(fcntl(p[0], F_SETFL, O_NONBLOCK) == 0 && fcntl(p[1], F_SETFL, O_NONBLOCK) == 0);
    join(spawn(again_thread, p));
    close2(p);

    make_pair(p);
    MUST(ioctl(p[0], FIONBIO, &on) == 0 && ioctl(p[1], FIONBIO, &on) == 0);
    join(spawn(again_thread, p));
    MUST(ioctl(p[0], FIONBIO, &off) == 0);
    CHECK_EQ(fcntl(p[0], F_GETFL) & O_NONBLOCK, 0);
    close2(p);

    make_pipe(p);  // through a duplicate
    int d0 = dup(p[0]), d1 = dup(p[1]);
    MUST(fcntl(d0, F_SETFL, O_NONBLOCK) == 0 && fcntl(d1, F_SETFL, O_NONBLOCK) == 0);
    join(spawn(again_thread, p));
    close(d0);
    close(d1);
    close2(p);

    make_pipe(p);  // by another process, after this one has blocked on it
    struct reader r;
    new_reader(&r, READ, p[0], 1);
    pthread_t t = spawn(reader_main, &r);
    gate_wait(&r.started, 1);
    settle();
    MUST(write(p[1], "x", 1) == 1);
    join(t);
    pid_t pid = fork();
    if (pid == 0) _exit(fcntl(p[0], F_SETFL, O_NONBLOCK) || fcntl(p[1], F_SETFL, O_NONBLOCK));
    CHECK_CHILD_OK(reap(pid));
    join(spawn(again_thread, p));
    MUST(fcntl(p[0], F_SETFL, 0) == 0);  // and blocking again
    new_reader(&r, READ, p[0], 1);
    t = spawn(reader_main, &r);
    gate_wait(&r.started, 1);
    settle();
    MUST(write(p[1], "y", 1) == 1);
    join(t);
    CHECK_EQ(r.got, 1);
    CHECK_EQ(r.buf[0], 'y');
    close2(p);
}

static void nonblocking_write_is_partial(void)
{
    static char big[1 << 20];
    int p[2];
    MUST(pipe2(p, O_NONBLOCK) == 0);
    ssize_t r = write(p[1], big, sizeof big);
    CHECK(r > 0 && r < (ssize_t)sizeof big);
    int q = 0;
    MUST(ioctl(p[0], FIONREAD, &q) == 0);
    CHECK_EQ(q, r);
    close2(p);
}

// Read through volatile, so that the compiler does not judge them.
static void *volatile bad_address = (void *)8;
static volatile int negative = -1, too_many = 5000;

static void *edge_cases(void *unused)
{
    char b[16];
    int p[2], fd;
    struct iovec none = {b, 0}, one = {b, 4};
    make_pipe(p);
    CHECK_EQ(read(p[0], b, 0), 0);  // nothing asked: does not block
    CHECK_EQ(readv(p[0], &none, 1), 0);
    CHECK_EQ(readv(p[0], &one, 0), 0);
    CHECK_FAILS(readv(p[0], &one, negative), EINVAL);
    CHECK_FAILS(readv(p[0], &one, too_many), EINVAL);
    CHECK_FAILS(read(p[1], b, 1), EBADF);  // wrong end
    CHECK_FAILS(write(p[0], b, 1), EBADF);
    CHECK_FAILS(read(-1, b, 1), EBADF);
    CHECK_FAILS(write(9999, b, 1), EBADF);
    CHECK_FAILS(pread(p[0], b, 1, 0), ESPIPE);
    CHECK_FAILS(preadv2(p[0], &one, 1, 0, 0), ESPIPE);
    CHECK_FAILS(preadv2(p[0], &one, 1, -1, RWF_NOWAIT), EAGAIN);
    CHECK_FAILS(preadv2(p[0], &one, 1, -1, 0x40000000), EOPNOTSUPP);
    MUST(write(p[1], "data", 4) == 4);
    CHECK_FAILS(read(p[0], bad_address, 4), EFAULT);
    CHECK_EQ(read(p[0], b, 4), 4);  // and the data are still there
    CHECK_FAILS(write(p[1], bad_address, 4), EFAULT);
    fill_up(p[1]);
    CHECK_EQ(write(p[1], b, 0), 0);
    close2(p);
    fd = temp_file();
    CHECK_EQ(write(fd, "0123456789", 10), 10);
    CHECK_EQ(pread(fd, b, 4, 3), 4);
    CHECK(memcmp(b, "3456", 4) == 0);
    CHECK_EQ(read(fd, b, 4), 0);
    CHECK_EQ(lseek(fd, 8, SEEK_SET), 8);
    CHECK_EQ(read(fd, b, 16), 2);
    CHECK_EQ(preadv2(fd, &one, 1, 0, 0), 4);
    CHECK_EQ(pwritev2(fd, &one, 1, -1, RWF_APPEND), 4);
    CHECK_EQ(lseek(fd, 0, SEEK_END), 14);
    close(fd);
    fd = open("/dev/zero", O_RDWR);
    b[0] = 1;
    CHECK_EQ(read(fd, b, 16), 16);
    CHECK_EQ(b[0], 0);
    CHECK_EQ(write(fd, b, 16), 16);
    close(fd);
    fd = open("/", O_RDONLY);
    CHECK_FAILS(read(fd, b, 1), EISDIR);
    close(fd);
    return unused;
}

static void edge_cases_from_main_and_thread(void)
{
    edge_cases(NULL);
    join(spawn(edge_cases, NULL));
    struct reader r;  // and while someone is parked elsewhere
    int p[2];
    make_pipe(p);
    new_reader(&r, READ, p[0], 1);
    pthread_t t = spawn(reader_main, &r);
    join(spawn(edge_cases, NULL));
    close(p[1]);
    join(t);
    CHECK_EQ(r.got, 0);
    close(p[0]);
}

// 300 threads blocked at once, each on its own pipe, woken in a seeded order.
static void hundreds_blocked_at_once(void)
{
    enum { N = 300 };
    static struct reader r[N];
    static pthread_t t[N];
    static int p[N][2], order[N];
    uint64_t seed = 42;
    for (int i = 0; i < N; i++) {
        make_pipe(p[i]);
        order[i] = i;
        new_reader(&r[i], (enum form)(i % FORMS), p[i][0], 4);
        t[i] = spawn(reader_main, &r[i]);
    }
    for (int i = N - 1; i > 0; i--) {
        int j = (int)(rnd(&seed) % (uint64_t)(i + 1)), x = order[i];
        order[i] = order[j];
        order[j] = x;
    }
    for (int i = 0; i < N; i++) {
        int k = order[i];
        MUST(write(p[k][1], &k, sizeof k) == sizeof k);
        gate_wait(&r[k].done, 1);  // this one woke, and
        if (i + 1 < N) CHECK_EQ(r[order[i + 1]].done.n, 0);  // no other
    }
    for (int i = 0; i < N; i++) {
        join(t[i]);
        CHECK_EQ(r[i].got, 4);
        CHECK(memcmp(r[i].buf, &i, 4) == 0);
        close2(p[i]);
    }
}

static const struct CMUnitTest tests[] = {
    T(blocked_read_returns_what_there_is),
    T(eof_wakes_every_blocked_reader),
    T(big_write_completes_whole),
    T(many_readers_and_writers_on_one_pipe),
    T(reader_and_writer_at_once),
    T(flags_never_change),
    T(nonblock_is_seen_however_set),
    T(nonblocking_write_is_partial),
    T(edge_cases_from_main_and_thread),
    T(hundreds_blocked_at_once),
};
IO_MAIN(tests)

// transfer_test.c - sendfile, splice, tee, vmsplice and copy_file_range by threads:
// they block one thread, move every byte once, and leave the flags alone.
//
// Invariant: every expectation here holds for plain kernel threads.
// Callers:   run natively and under LD_PRELOAD; uses io.h only.
#include "io.h"
#include <sys/sendfile.h>

#define TOTAL (2 << 20)

static int pattern_file(size_t n)
{
    static unsigned char buf[65536];
    int fd = temp_file();
    for (size_t off = 0; off < n; off += sizeof buf) {
        pattern_fill(buf, sizeof buf, 77, off);
        MUST(write(fd, buf, sizeof buf) == sizeof buf);
    }
    MUST(lseek(fd, 0, SEEK_SET) == 0);
    return fd;
}

struct sink {
    int fd;
    size_t want, off;
};

static void *sink_main(void *arg)
{
    struct sink *s = arg;
    static __thread unsigned char buf[30000];
    uint64_t seed = s->want;
    while (s->off < s->want) {
        ssize_t r = read(s->fd, buf, 1 + rnd(&seed) % sizeof buf);
        MUST(r > 0);
        CHECK(pattern_ok(buf, (size_t)r, 77, s->off));
        s->off += (size_t)r;
        if (rnd(&seed) % 16 == 0) sched_yield();
    }
    return NULL;
}

// Natively a blocking sendfile to a socket sends all it was asked to in one call;
// to a pipe it may stop at the pipe's size. Either way nothing is lost.
static void sendfile_to_a_slow_reader(void)
{
    int file = pattern_file(TOTAL), p[2];
    for (int kind = 0; kind < 3; kind++) {
        if (kind == 0) tcp_pair(p); else if (kind == 1) make_pair(p);
        else {
            make_pipe(p);
            int x = p[0];
            p[0] = p[1];
            p[1] = x;
        }
        int fl = fcntl(p[0], F_GETFL);
        struct sink s = {p[1], TOTAL, 0};
        off_t off = 0;
        pthread_t t = spawn(sink_main, &s);
        if (kind < 2) {
            CHECK_EQ(sendfile(p[0], file, &off, TOTAL), TOTAL);
        } else {
            while (off < TOTAL) MUST(sendfile(p[0], file, &off, (size_t)(TOTAL - off)) > 0);
        }
        CHECK_EQ(off, TOTAL);
        CHECK_EQ(sendfile(p[0], file, &off, 10), 0);  // end of the file
        join(t);
        CHECK_EQ(fcntl(p[0], F_GETFL), fl);
        CHECK_EQ(lseek(file, 0, SEEK_CUR), 0);  // an offset was given: the position stays
        close2(p);
    }
    close(file);
}

struct mover {
    int in, out, tee;
    size_t n, moved;
    struct gate started;
    atomic_int done;
};

static void *splice_main(void *arg)
{
    struct mover *m = arg;
    gate_post(&m->started);
    while (m->moved < m->n) {
        ssize_t r = splice(m->in, NULL, m->out, NULL, m->n - m->moved, SPLICE_F_MOVE);
        MUST(r >= 0);
        if (r == 0) break;
        m->moved += (size_t)r;
    }
    m->done = 1;
    return NULL;
}

struct source {
    int fd;
    size_t n;
};

static void *source_main(void *arg)
{
    struct source *s = arg;
    unsigned char buf[7000];
    for (size_t off = 0; off < s->n; off += sizeof buf) {
        size_t n = s->n - off < sizeof buf ? s->n - off : sizeof buf;
        pattern_fill(buf, n, 77, off);
        MUST(write(s->fd, buf, n) == (ssize_t)n);
    }
    return NULL;
}

// source -> socket -> splice -> pipe -> splice -> socket -> sink, a thread each; the
// splicers start with nothing to move.
static void splice_chain_blocks_at_both_ends(void)
{
    int a[2], pipe_[2], b[2];
    tcp_pair(a);
    make_pipe(pipe_);
    make_pair(b);
    struct mover m1 = {.in = a[1], .out = pipe_[1], .n = TOTAL, .started = GATE_INIT};
    struct mover m2 = {.in = pipe_[0], .out = b[0], .n = TOTAL, .started = GATE_INIT};
    pthread_t t1 = spawn(splice_main, &m1), t2 = spawn(splice_main, &m2);
    gate_wait(&m1.started, 1);
    gate_wait(&m2.started, 1);
    settle();
    others_progress();
    struct source src = {a[0], TOTAL};
    pthread_t t3 = spawn(source_main, &src);
    settle();  // now everything is full and nobody reads
    others_progress();
    CHECK(!m2.done);
    struct sink s = {b[1], TOTAL, 0};
    sink_main(&s);
    join(t3);
    join(t1);
    join(t2);
    CHECK_EQ(m1.moved, TOTAL);
    CHECK_EQ(m2.moved, TOTAL);
    // SPLICE_F_NONBLOCK is about the pipe only; a socket goes by its own flag.
    CHECK_FAILS(splice(pipe_[0], NULL, b[0], NULL, 10, SPLICE_F_NONBLOCK), EAGAIN);
    fcntl(a[1], F_SETFL, O_NONBLOCK);
    CHECK_FAILS(splice(a[1], NULL, pipe_[1], NULL, 10, 0), EAGAIN);
    close2(a);
    close2(b);
    close2(pipe_);
}

static void *tee_main(void *arg)
{
    struct mover *m = arg;
    gate_post(&m->started);
    while (m->moved < m->n) {
        ssize_t r = tee(m->in, m->tee, m->n - m->moved, 0);  // copy, then move on
        MUST(r > 0);
        size_t left = (size_t)r;
        while (left) {
            ssize_t k = splice(m->in, NULL, m->out, NULL, left, 0);
            MUST(k > 0);
            left -= (size_t)k;
        }
        m->moved += (size_t)r;
    }
    return NULL;
}

static void tee_blocks_and_duplicates(void)
{
    enum { N = 600000 };
    int in[2], copy[2], out[2];
    make_pipe(in);
    make_pipe(copy);
    make_pipe(out);
    struct mover m = {.in = in[0], .tee = copy[1], .out = out[1], .n = N, .started = GATE_INIT};
    pthread_t t = spawn(tee_main, &m);
    gate_wait(&m.started, 1);
    settle();
    others_progress();
    struct source src = {in[1], N};
    struct sink s1 = {copy[0], N, 0}, s2 = {out[0], N, 0};
    pthread_t ts = spawn(source_main, &src), t1 = spawn(sink_main, &s1), t2 = spawn(sink_main, &s2);
    join(ts);
    join(t);
    join(t1);
    join(t2);
    close2(in);
    close2(copy);
    close2(out);
}

struct vm {
    int fd;
    ssize_t got;
    unsigned char *buf;
};

static void *vmsplice_main(void *arg)
{
    struct vm *v = arg;
    size_t off = 0;
    while (off < TOTAL) {
        struct iovec io = {v->buf + off, TOTAL - off};
        ssize_t r = vmsplice(v->fd, &io, 1, 0);
        MUST(r > 0);
        off += (size_t)r;
    }
    v->got = (ssize_t)off;
    return NULL;
}

static void vmsplice_blocks_when_full(void)
{
    int p[2];
    make_pipe(p);
    struct vm v = {p[1], 0, malloc(TOTAL)};
    pattern_fill(v.buf, TOTAL, 77, 0);
    pthread_t t = spawn(vmsplice_main, &v);
    settle();
    others_progress();
    struct sink s = {p[0], TOTAL, 0};
    sink_main(&s);
    join(t);
    CHECK_EQ(v.got, TOTAL);
    free(v.buf);
    close2(p);
}

static void *copy_range_thread(void *arg)
{
    int from = *(int *)arg, to = temp_file();
    off_t in = 0;
    size_t done = 0;
    static __thread unsigned char buf[65536];
    while (done < TOTAL) {
        ssize_t r = copy_file_range(from, &in, to, NULL, TOTAL - done, 0);
        MUST(r > 0);
        done += (size_t)r;
    }
    for (size_t off = 0; off < TOTAL; off += sizeof buf) {
        MUST(pread(to, buf, sizeof buf, (off_t)off) == sizeof buf);
        CHECK(pattern_ok(buf, sizeof buf, 77, off));
    }
    close(to);
    return NULL;
}

static void copy_file_range_in_threads(void)
{
    int file = pattern_file(TOTAL);
    pthread_t t[3];
    for (int i = 0; i < 3; i++) t[i] = spawn(copy_range_thread, &file);
    others_progress();
    for (int i = 0; i < 3; i++) join(t[i]);
    close(file);
}

static void *broken_pipe_thread(void *arg)
{
    int *fd = arg;
    off_t off = 0;
    CHECK_FAILS(sendfile(fd[0], fd[1], &off, 100), EPIPE);
    CHECK_FAILS(splice(fd[1], &off, fd[0], NULL, 100, 0), EPIPE);
    return NULL;
}

static void peer_gone_is_epipe(void)
{
    int file = pattern_file(65536), p[2];
    signal(SIGPIPE, SIG_IGN);
    make_pipe(p);
    close(p[0]);
    join(spawn(broken_pipe_thread, (int[]){p[1], file}));
    signal(SIGPIPE, SIG_DFL);
    close(p[1]);
    close(file);
}

static const struct CMUnitTest tests[] = {
    T(sendfile_to_a_slow_reader),
    T(splice_chain_blocks_at_both_ends),
    T(tee_blocks_and_duplicates),
    T(vmsplice_blocks_when_full),
    T(copy_file_range_in_threads),
    T(peer_gone_is_epipe),
};
IO_MAIN(tests)

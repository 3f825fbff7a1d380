// tty_test.c - blocking reads and writes on pseudo-terminals: they have neither
// MSG_DONTWAIT nor RWF_NOWAIT, so a library must wait for them in another way.
//
// Invariant: every expectation here holds for plain kernel threads.
// Callers:   run natively and under LD_PRELOAD; uses io.h only.
#include "io.h"
#include <pty.h>
#include <termios.h>

struct tty {
    int master, slave;
};

static struct tty open_tty(int raw)
{
    struct tty t;
    struct termios tio;
    MUST(openpty(&t.master, &t.slave, NULL, NULL, NULL) == 0);
    MUST(tcgetattr(t.slave, &tio) == 0);
    if (raw) cfmakeraw(&tio);
    tio.c_lflag &= ~(tcflag_t)ECHO;
    MUST(tcsetattr(t.slave, TCSANOW, &tio) == 0);
    return t;
}

static void close_tty(struct tty t)
{
    close(t.master);
    close(t.slave);
}

struct io {
    int fd, vec;
    size_t n;
    ssize_t got;
    int err;
    char buf[256];
    struct gate started;
    atomic_int done;
};

static void *tty_reader(void *arg)
{
    struct io *io = arg;
    struct iovec v[2] = {{io->buf, 1}, {io->buf + 1, io->n - 1}};
    gate_post(&io->started);
    errno = 0;
    io->got = io->vec ? readv(io->fd, v, 2) : read(io->fd, io->buf, io->n);
    io->err = errno;
    io->done = 1;
    return NULL;
}

static pthread_t start(struct io *io, int fd, size_t n, int vec)
{
    *io = (struct io){.fd = fd, .n = n, .vec = vec, .started = GATE_INIT};
    pthread_t t = spawn(tty_reader, io);
    gate_wait(&io->started, 1);
    settle();
    return t;
}

// Canonical mode: nothing before the newline, then the line and not more.
static void canonical_read_waits_for_the_line(void)
{
    struct tty tty = open_tty(0);
    struct io io;
    pthread_t t = start(&io, tty.slave, 200, 0);
    int fl = fcntl(tty.slave, F_GETFL);
    MUST(write(tty.master, "half a ", 7) == 7);
    settle();
    CHECK(!io.done);
    others_progress();
    CHECK_EQ(fcntl(tty.slave, F_GETFL), fl);
    MUST(write(tty.master, "line\nnext", 9) == 9);
    join(t);
    CHECK_EQ(io.got, 12);
    CHECK(memcmp(io.buf, "half a line\n", 12) == 0);
    t = start(&io, tty.slave, 200, 0);
    MUST(write(tty.master, "\4", 1) == 1);  // ^D: hand over what is there
    join(t);
    CHECK_EQ(io.got, 4);
    t = start(&io, tty.slave, 200, 0);
    MUST(write(tty.master, "\4", 1) == 1);  // ^D on an empty line: end of file
    join(t);
    CHECK_EQ(io.got, 0);
    close_tty(tty);
}

static void raw_read_waits_for_vmin(void)
{
    struct tty tty = open_tty(1);
    struct termios tio;
    struct io io;
    tcgetattr(tty.slave, &tio);
    tio.c_cc[VMIN] = 4;
    tio.c_cc[VTIME] = 0;
    tcsetattr(tty.slave, TCSANOW, &tio);
    pthread_t t = start(&io, tty.slave, 64, 0);
    MUST(write(tty.master, "ab", 2) == 2);
    settle();
    CHECK(!io.done);
    others_progress();
    MUST(write(tty.master, "cd", 2) == 2);
    join(t);
    CHECK_EQ(io.got, 4);
    tio.c_cc[VMIN] = 0;  // and a read with a timeout of its own: 0.1 s
    tio.c_cc[VTIME] = 1;
    tcsetattr(tty.slave, TCSANOW, &tio);
    long long from = now_ns();
    t = start(&io, tty.slave, 64, 0);
    join(t);
    CHECK_EQ(io.got, 0);
    CHECK(now_ns() - from >= 80 * MS);
    close_tty(tty);
}

static void master_read_and_readv(void)
{
    struct tty tty = open_tty(1);
    struct io io;
    for (int vec = 0; vec < 2; vec++) {
        pthread_t t = start(&io, tty.master, 64, vec);
        others_progress();
        MUST(write(tty.slave, "out", 3) == 3);
        join(t);
        CHECK(io.got >= 1 && io.got <= 3);
        CHECK_EQ(io.buf[0], 'o');
        while (io.got < 3) io.got += read(tty.master, io.buf, 3);
    }
    close_tty(tty);
}

static void hangup_wakes_the_reader(void)
{
    struct tty tty = open_tty(1);
    struct io io;
    pthread_t t = start(&io, tty.slave, 8, 0);
    close(tty.master);
    join(t);
    CHECK(io.got == 0 || (io.got == -1 && io.err == EIO));
    close(tty.slave);

    tty = open_tty(1);
    t = start(&io, tty.master, 8, 0);
    close(tty.slave);
    join(t);
    CHECK_EQ(io.got, -1);
    CHECK_EQ(io.err, EIO);
    close(tty.master);
}

static void *slow_writer(void *arg)
{
    struct io *io = arg;
    unsigned char *buf = malloc(io->n);
    pattern_fill(buf, io->n, 5, 0);
    io->got = write(io->fd, buf, io->n);
    io->done = 1;
    free(buf);
    return NULL;
}

// A write larger than the terminal's buffer blocks and still completes whole.
static void big_write_completes_whole(void)
{
    struct tty tty = open_tty(1);
    struct io io = {.fd = tty.slave, .n = 200000, .started = GATE_INIT};
    static unsigned char buf[3000];
    pthread_t t = spawn(slow_writer, &io);
    settle();
    CHECK(!io.done);
    others_progress();
    for (size_t off = 0; off < io.n;) {
        ssize_t r = read(tty.master, buf, sizeof buf);
        MUST(r > 0);
        CHECK(pattern_ok(buf, (size_t)r, 5, off));
        off += (size_t)r;
        if (off < io.n / 2) CHECK(!io.done);
    }
    join(t);
    CHECK_EQ(io.got, io.n);
    close_tty(tty);
}

static void nonblocking_tty_is_eagain(void)
{
    struct tty tty = open_tty(1);
    char c;
    fcntl(tty.slave, F_SETFL, O_RDWR | O_NONBLOCK);
    CHECK_FAILS(read(tty.slave, &c, 1), EAGAIN);
    close_tty(tty);
}

// Two readers on one terminal, one line each: readiness seen by both must not
// let the second sit in the kernel and stop the rest.
static void two_readers_one_line_each(void)
{
    struct tty tty = open_tty(0);
    struct io a, b;
    pthread_t ta = start(&a, tty.slave, 100, 0), tb = start(&b, tty.slave, 100, 0);
    MUST(write(tty.master, "one\n", 4) == 4);
    WAIT_UNTIL(a.done || b.done);
    settle();
    CHECK_EQ(a.done + b.done, 1);
    others_progress();
    MUST(write(tty.master, "two\n", 4) == 4);
    join(ta);
    join(tb);
    CHECK_EQ(a.got, 4);
    CHECK_EQ(b.got, 4);
    CHECK(memcmp(a.buf, b.buf, 4) != 0);
    close_tty(tty);
}

static atomic_int handled;

static void on_signal(int sig)
{
    (void)sig;
    atomic_fetch_add(&handled, 1);
}

static void tty_read_eintr_and_restart(void)
{
    struct tty tty = open_tty(1);
    for (int restart = 0; restart < 2; restart++) {
        struct io io;
        struct sigaction old = set_handler(SIGUSR1, on_signal, restart ? SA_RESTART : 0);
        handled = 0;
        pthread_t t = start(&io, tty.slave, 8, 0);
        for (int i = 1; i <= 3 && !io.done; i++) {
            pthread_kill(t, SIGUSR1);
            WAIT_UNTIL(handled >= i);
            settle();
        }
        if (restart) {
            CHECK(!io.done);
            MUST(write(tty.master, "z", 1) == 1);
        } else {
            while (!io.done) {
                pthread_kill(t, SIGUSR1);
                nap(MS);
            }
        }
        join(t);
        CHECK_EQ(io.got, restart ? 1 : -1);
        if (!restart) CHECK_EQ(io.err, EINTR);
        sigaction(SIGUSR1, &old, NULL);
    }
    close_tty(tty);
}

// One that only the kernel can do, as it begins or later. It was slept over where the cancel came after the
// call's last look and before its sleep.
static void a_read_for_vmin_is_cancelled(void)
{
    struct tty tty = open_tty(1);
    struct termios tio;
    tcgetattr(tty.slave, &tio);
    tio.c_cc[VMIN] = 4;
    tio.c_cc[VTIME] = 0;
    tcsetattr(tty.slave, TCSANOW, &tio);
    for (int i = 0; i < 2000; i++) {
        struct io io = {.fd = tty.slave, .n = 64, .started = GATE_INIT};
        pthread_t t = spawn(tty_reader, &io);
        gate_wait(&io.started, 1);
        for (volatile int spin = 0; spin < i % 100 * 50; spin++) continue;
        MUST(pthread_cancel(t) == 0);
        CHECK(join(t) == PTHREAD_CANCELED);
    }
    close_tty(tty);
}

static const struct CMUnitTest tests[] = {
    T(canonical_read_waits_for_the_line),
    T(raw_read_waits_for_vmin),
    T(a_read_for_vmin_is_cancelled),
    T(master_read_and_readv),
    T(hangup_wakes_the_reader),
    T(big_write_completes_whole),
    T(nonblocking_tty_is_eagain),
    T(two_readers_one_line_each),
    T(tty_read_eintr_and_restart),
};
IO_MAIN(tests)

// pipe_signal_test.c - pipes and signals: SIGPIPE, EPIPE, EINTR and SA_RESTART of
// blocked reads and writes, partial counts when a transfer is cut short.
//
// Invariant: a signal meant to interrupt is sent until the blocked call says it
//            was interrupted, so no result depends on who came first.
// Callers:   run natively and under LD_PRELOAD; uses io.h only.
#include "io.h"

static atomic_int handled, in_wrong_thread;
static pthread_t expected;

static void on_signal(int sig)
{
    (void)sig;
    if (!pthread_equal(pthread_self(), expected)) atomic_fetch_add(&in_wrong_thread, 1);
    atomic_fetch_add(&handled, 1);
}

struct io {
    int fd, is_write;
    size_t n;
    ssize_t got;
    int err;
    char *buf;
    struct gate started;
    atomic_int done;
};

static void *io_main(void *arg)
{
    struct io *io = arg;
    gate_post(&io->started);
    errno = 0;
    io->got = io->is_write ? write(io->fd, io->buf, io->n) : read(io->fd, io->buf, io->n);
    io->err = errno;
    io->done = 1;
    return NULL;
}

static pthread_t start_io(struct io *io, int fd, int is_write, size_t n)
{
    *io = (struct io){.fd = fd, .is_write = is_write, .n = n, .started = GATE_INIT};
    io->buf = calloc(1, n);
    handled = in_wrong_thread = 0;
    pthread_t t = spawn(io_main, io);
    expected = t;
    gate_wait(&io->started, 1);
    settle();
    return t;
}

static void end_io(struct io *io, pthread_t t)
{
    join(t);
    free(io->buf);
}

// The blocked writer gets EPIPE and one SIGPIPE, in its own thread. A Unix socket
// closed with bytes unread may be a reset for who was blocked (ECONNRESET, no signal),
// or EPIPE for who came a moment later: either, but one of them whole.
static void last_reader_gone_is_sigpipe_and_epipe(void)
{
    for (int sock = 0; sock < 2; sock++) {
        struct io io;
        int p[2];
        struct sigaction old = set_handler(SIGPIPE, on_signal, 0);
        if (sock) make_pair(p); else make_pipe(p);
        fill_up(p[1]);
        pthread_t t = start_io(&io, p[1], 1, 4096);
        close(p[0]);
        end_io(&io, t);
        CHECK_EQ(io.got, -1);
        CHECK(io.err == EPIPE || (sock && io.err == ECONNRESET));
        int first = handled;
        CHECK_EQ(first, io.err == EPIPE);
        CHECK_EQ(in_wrong_thread, 0);
        expected = pthread_self();
        CHECK_FAILS(write(p[1], "x", 1), EPIPE);  // again, without blocking
        CHECK_EQ(handled, first + 1);
        CHECK_EQ(in_wrong_thread, 0);
        sigaction(SIGPIPE, &old, NULL);
        close(p[1]);
    }
}

static void sigpipe_ignored_leaves_epipe(void)
{
    struct io io;
    int p[2];
    struct sigaction old = set_handler(SIGPIPE, SIG_IGN, 0);
    make_pipe(p);
    fill_up(p[1]);
    pthread_t t = start_io(&io, p[1], 1, 100000);
    close(p[0]);
    end_io(&io, t);
    CHECK_EQ(io.got, -1);
    CHECK_EQ(io.err, EPIPE);
    close(p[1]);
    sigaction(SIGPIPE, &old, NULL);
}

// The reader takes a part, then leaves: the writer reports the part, and SIGPIPE
// comes all the same.
static void partly_written_then_reader_gone(void)
{
    struct io io;
    int p[2];
    char page[4096];
    struct sigaction old = set_handler(SIGPIPE, on_signal, 0);
    make_pipe(p);
    size_t room = fill_up(p[1]);
    pthread_t t = start_io(&io, p[1], 1, 1 << 20);
    size_t took = 0;
    while (took < room + 8192) {  // now at least 8192 bytes of the big write are out
        ssize_t r = read(p[0], page, sizeof page);
        MUST(r > 0);
        took += (size_t)r;
    }
    CHECK(!io.done);
    close(p[0]);
    end_io(&io, t);
    CHECK(io.got >= 8192 && io.got < 1 << 20);
    CHECK_EQ(handled, 1);
    CHECK_EQ(in_wrong_thread, 0);
    sigaction(SIGPIPE, &old, NULL);
    close(p[1]);
}

static void die_of_sigpipe_body(void)
{
    struct io io;
    int p[2];
    signal(SIGPIPE, SIG_DFL);
    make_pipe(p);
    fill_up(p[1]);
    pthread_t t = start_io(&io, p[1], 1, 10);
    close(p[0]);
    join(t);
}

static void default_sigpipe_kills_the_process(void)
{
    int st = in_child(die_of_sigpipe_body);
    CHECK(WIFSIGNALED(st));
    CHECK_EQ(WTERMSIG(st), SIGPIPE);
}

static void keep_signalling(struct io *io, pthread_t t)
{
    long long end = now_ns() + IO_LIMIT_NS;
    while (!io->done) {
        MUST(now_ns() < end);
        pthread_kill(t, SIGUSR1);
        nap(300000);
    }
}

static void without_restart_is_eintr(void)
{
    struct sigaction old = set_handler(SIGUSR1, on_signal, 0);
    for (int is_write = 0; is_write < 2; is_write++)
        for (int sock = 0; sock < 2; sock++) {
            struct io io;
            int p[2];
            if (sock) make_pair(p); else make_pipe(p);
            if (is_write) fill_up(p[1]);
            pthread_t t = start_io(&io, p[is_write], is_write, 1);
            keep_signalling(&io, t);
            end_io(&io, t);
            CHECK_EQ(io.got, -1);
            CHECK_EQ(io.err, EINTR);
            CHECK(handled > 0);
            CHECK_EQ(in_wrong_thread, 0);
            close2(p);
        }
    sigaction(SIGUSR1, &old, NULL);
}

// Interrupted after a part went through: the part is the result, with or without
// SA_RESTART.
static void interrupted_big_write_returns_the_part(void)
{
    for (int restart = 0; restart < 2; restart++) {
        struct io io;
        int p[2], q = 0;
        struct sigaction old = set_handler(SIGUSR1, on_signal, restart ? SA_RESTART : 0);
        make_pipe(p);
        pthread_t t = start_io(&io, p[1], 1, 1 << 20);
        do {
            MUST(ioctl(p[0], FIONREAD, &q) == 0);
            sched_yield();
        } while (q < 65536);  // the pipe is full: the rest cannot go
        keep_signalling(&io, t);
        end_io(&io, t);
        CHECK_EQ(io.got, 65536);
        sigaction(SIGUSR1, &old, NULL);
        close2(p);
    }
}

// With SA_RESTART the handlers run one by one while the call stays blocked.
static void with_restart_the_call_goes_on(void)
{
    struct sigaction old = set_handler(SIGUSR1, on_signal, SA_RESTART);
    for (int is_write = 0; is_write < 2; is_write++)
        for (int sock = 0; sock < 2; sock++) {
            struct io io;
            int p[2];
            static char sink[1 << 20];
            if (sock) make_pair(p); else make_pipe(p);
            size_t full = is_write ? fill_up(p[1]) : 0;
            pthread_t t = start_io(&io, p[is_write], is_write, 7);
            for (int i = 1; i <= 5; i++) {
                pthread_kill(t, SIGUSR1);
                WAIT_UNTIL(handled >= i);
            }
            settle();
            CHECK(!io.done);
            if (is_write) {
                read_full(p[0], sink, full + 7);
            } else {
                MUST(write(p[1], "restart", 7) == 7);
            }
            join(t);
            CHECK_EQ(io.got, 7);
            if (!is_write) CHECK(memcmp(io.buf, "restart", 7) == 0);
            CHECK_EQ(handled, 5);
            CHECK_EQ(in_wrong_thread, 0);
            free(io.buf);
            close2(p);
        }
    sigaction(SIGUSR1, &old, NULL);
}

static int handler_pipe[2];

static void on_signal_writes(int sig)
{
    (void)sig;
    int e = errno;
    if (write(handler_pipe[1], "!", 1) != 1) _exit(4);
    atomic_fetch_add(&handled, 1);
    errno = e;
}

// The self-pipe trick: the handler of the blocked reader writes what it waits for.
static void handler_feeds_its_own_blocked_read(void)
{
    struct io io;
    struct sigaction old = set_handler(SIGUSR1, on_signal_writes, SA_RESTART);
    make_pipe(handler_pipe);
    pthread_t t = start_io(&io, handler_pipe[0], 0, 8);
    pthread_kill(t, SIGUSR1);
    end_io(&io, t);
    CHECK_EQ(io.got, 1);
    CHECK_EQ(handled, 1);
    sigaction(SIGUSR1, &old, NULL);
    close2(handler_pipe);
}

// An ignored signal, or one whose default is to be ignored, interrupts nothing.
static void ignored_signals_do_not_interrupt(void)
{
    struct io io;
    int p[2];
    struct sigaction old = set_handler(SIGUSR1, SIG_IGN, 0);
    make_pipe(p);
    pthread_t t = start_io(&io, p[0], 0, 1);
    for (int i = 0; i < 20; i++) {
        pthread_kill(t, SIGUSR1);
        pthread_kill(t, SIGURG);
        pthread_kill(t, SIGWINCH);
        kill(getpid(), SIGCHLD);
        sched_yield();
    }
    settle();
    CHECK(!io.done);
    MUST(write(p[1], "k", 1) == 1);
    end_io(&io, t);
    CHECK_EQ(io.got, 1);
    sigaction(SIGUSR1, &old, NULL);
    close2(p);
}

// A blocked signal interrupts nothing either, and is still pending after.
static void *blocked_mask_reader(void *arg)
{
    mask_signal(SIG_BLOCK, SIGUSR1);
    io_main(arg);
    sigset_t pend;
    sigpending(&pend);
    int was = sigismember(&pend, SIGUSR1);
    CHECK_EQ(handled, 0);
    mask_signal(SIG_UNBLOCK, SIGUSR1);
    CHECK_EQ(handled, 1);
    CHECK_EQ(was, 1);
    return NULL;
}

static void masked_signal_stays_pending(void)
{
    struct io io;
    int p[2];
    char buf[4];
    struct sigaction old = set_handler(SIGUSR1, on_signal, 0);
    make_pipe(p);
    io = (struct io){.fd = p[0], .n = 4, .buf = buf, .started = GATE_INIT};
    handled = in_wrong_thread = 0;
    pthread_t t = expected = spawn(blocked_mask_reader, &io);
    gate_wait(&io.started, 1);
    for (int i = 0; i < 3; i++) pthread_kill(t, SIGUSR1);  // three of a kind are one
    settle();
    CHECK(!io.done);
    MUST(write(p[1], "abc", 3) == 3);
    join(t);
    CHECK_EQ(io.got, 3);
    CHECK_EQ(in_wrong_thread, 0);
    sigaction(SIGUSR1, &old, NULL);
    close2(p);
}

static const struct CMUnitTest tests[] = {
    T(last_reader_gone_is_sigpipe_and_epipe),
    T(sigpipe_ignored_leaves_epipe),
    T(partly_written_then_reader_gone),
    T(default_sigpipe_kills_the_process),
    T(without_restart_is_eintr),
    T(interrupted_big_write_returns_the_part),
    T(with_restart_the_call_goes_on),
    T(handler_feeds_its_own_blocked_read),
    T(ignored_signals_do_not_interrupt),
    T(masked_signal_stays_pending),
};
IO_MAIN(tests)

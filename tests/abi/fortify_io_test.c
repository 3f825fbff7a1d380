// fortify_io_test.c - the fortified twins (__read_chk, __recv_chk, __recvfrom_chk,
// __poll_chk, __ppoll_chk, __fgets_chk ...) block one thread and not the rest, and
// still catch an overflow. FD_SET's check (__fdelt_chk) is libc's own.
//
// Invariant: built with _FORTIFY_SOURCE=2; sizes pass through volatile, so that
//            the compiler emits the checked call.
// Callers:   run natively and under LD_PRELOAD; uses io.h only.
#undef _FORTIFY_SOURCE
#define _FORTIFY_SOURCE 2
#include "io.h"
#include <sys/select.h>

static volatile size_t eight = 8, one = 1, huge = 4096;

enum call { CALL_READ, CALL_RECV, CALL_RECVFROM, CALL_POLL, CALL_PPOLL, CALL_FGETS, CALL_FREAD,
            CALL_SELECT, CALLS };
static const char *const call_name[] = {"read", "recv", "recvfrom", "poll",
                                        "ppoll", "fgets", "fread", "select"};

struct op {
    enum call call;
    int fd;
    long got;
    char buf[8];
    struct gate started;
    atomic_int done;
};

static void *op_main(void *arg)
{
    struct op *op = arg;
    char buf[8] = "";
    struct pollfd pfd[1] = {{.fd = op->fd, .events = POLLIN}};
    fd_set set;
    gate_post(&op->started);
    switch (op->call) {
    case CALL_READ: op->got = read(op->fd, buf, eight); break;
    case CALL_RECV: op->got = recv(op->fd, buf, eight, 0); break;
    case CALL_RECVFROM: op->got = recvfrom(op->fd, buf, eight, 0, NULL, NULL); break;
    case CALL_POLL: op->got = poll(pfd, one, -1); break;
    case CALL_PPOLL: op->got = ppoll(pfd, one, NULL, NULL); break;
    case CALL_FGETS:
    case CALL_FREAD: {
        FILE *f = fdopen(dup(op->fd), "r");
        MUST(f != NULL);
        setvbuf(f, NULL, _IONBF, 0);
        op->got = op->call == CALL_FGETS ? (fgets(buf, (int)eight, f) ? (long)strlen(buf) : -1)
                                         : (long)fread(buf, 1, eight / 2, f);
        fclose(f);
        break;
    }
    default:
        FD_ZERO(&set);
        FD_SET(op->fd, &set);
        op->got = select(op->fd + 1, &set, NULL, NULL, NULL);
        break;
    }
    memcpy(op->buf, buf, 8);
    op->done = 1;
    return NULL;
}

static void each_checked_call_blocks_alone(void)
{
    static const long want[CALLS] = {4, 4, 4, 1, 1, 4, 4, 1};
    for (int c = 0; c < CALLS; c++) {
        int p[2];
        make_pair(p);
        struct op op = {.call = (enum call)c, .fd = p[0], .started = GATE_INIT};
        pthread_t t = spawn(op_main, &op);
        gate_wait(&op.started, 1);
        settle();
        others_progress();
        CHECK(!op.done);
        MUST(write(p[1], "abc\n", 4) == 4);
        join(t);
        if (op.got != want[c]) print_message("call %s\n", call_name[c]);
        CHECK_EQ(op.got, want[c]);
        if (want[c] == 4) CHECK(memcmp(op.buf, "abc\n", 4) == 0);
        close2(p);
    }
}

static int pair[2];

// The write happens before the parent's fork of this child: data are there.
static void *overflow_thread(void *arg)
{
    char buf[8];
    struct pollfd pfd[1] = {{.fd = pair[0], .events = POLLIN}};
    switch ((enum call)(intptr_t)arg) {
    case CALL_READ: if (read(pair[0], buf, huge) < 0) _exit(9); break;
    case CALL_RECV: if (recv(pair[0], buf, huge, 0) < 0) _exit(9); break;
    case CALL_RECVFROM: if (recvfrom(pair[0], buf, huge, 0, NULL, NULL) < 0) _exit(9); break;
    case CALL_POLL: poll(pfd, huge, -1); break;
    default: ppoll(pfd, huge, NULL, NULL); break;
    }
    _exit(8);
}

static int overflow_call;

static void overflow_body(void)
{
    struct sigaction dfl = {.sa_handler = SIG_DFL};
    sigaction(SIGABRT, &dfl, NULL);
    int null = open("/dev/null", O_WRONLY);
    dup2(null, 2);  // libc says "buffer overflow detected" there
    setenv("LIBC_FATAL_STDERR_", "1", 1);
    join(spawn(overflow_thread, (void *)(intptr_t)overflow_call));
}

static void each_checked_call_catches_an_overflow(void)
{
    static const enum call with_buffer[] = {CALL_READ, CALL_RECV, CALL_RECVFROM, CALL_POLL,
                                            CALL_PPOLL};
    make_pair(pair);
    MUST(write(pair[1], "0123456789abcdef", 16) == 16);
    for (size_t i = 0; i < COUNT(with_buffer); i++) {
        overflow_call = with_buffer[i];
        int st = in_child(overflow_body);
        CHECK(WIFSIGNALED(st));
        CHECK_EQ(WIFSIGNALED(st) ? WTERMSIG(st) : -WEXITSTATUS(st), SIGABRT);
    }
    close2(pair);
}

static const struct CMUnitTest tests[] = {
    T(each_checked_call_blocks_alone),
    T(each_checked_call_catches_an_overflow),
};
IO_MAIN(tests)

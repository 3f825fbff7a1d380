// special_fd_test.c - blocking reads and writes of eventfd, timerfd, inotify and
// signalfd by threads, with exact counts.
//
// Invariant: every expectation here holds for plain kernel threads.
// Callers:   run natively and under LD_PRELOAD; uses io.h only.
#include "io.h"
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>

struct io {
    int fd;
    uint64_t value;
    ssize_t got;
    int err;
    struct gate started;
    atomic_int done;
};

static void *reader8(void *arg)
{
    struct io *io = arg;
    gate_post(&io->started);
    errno = 0;
    io->got = read(io->fd, &io->value, 8);
    io->err = errno;
    io->done = 1;
    return NULL;
}

static void *writer8(void *arg)
{
    struct io *io = arg;
    gate_post(&io->started);
    errno = 0;
    io->got = write(io->fd, &io->value, 8);
    io->err = errno;
    io->done = 1;
    return NULL;
}

static pthread_t start(struct io *io, void *(*fn)(void *), int fd, uint64_t value)
{
    *io = (struct io){.fd = fd, .value = value, .started = GATE_INIT};
    pthread_t t = spawn(fn, io);
    gate_wait(&io->started, 1);
    settle();
    return t;
}

static void eventfd_read_blocks_and_takes_all(void)
{
    int fd = eventfd(0, 0);
    struct io io;
    pthread_t t = start(&io, reader8, fd, 0);
    others_progress();
    uint64_t v = 41;
    MUST(write(fd, &v, 8) == 8);
    join(t);
    CHECK_EQ(io.got, 8);
    CHECK_EQ(io.value, 41);
    CHECK_EQ(fcntl(fd, F_GETFL), O_RDWR);
    t = start(&io, reader8, fd, 0);
    MUST(eventfd_write(fd, 7) == 0);  // libc's own wrapper around write
    join(t);
    CHECK_EQ(io.value, 7);
    close(fd);
    CHECK_FAILS(read(eventfd(0, EFD_NONBLOCK), &v, 8), EAGAIN);
}

static void eventfd_write_blocks_at_the_brim(void)
{
    int fd = eventfd(0, 0);
    uint64_t v = 0xfffffffffffffffeull;
    MUST(write(fd, &v, 8) == 8);
    struct io io;
    pthread_t t = start(&io, writer8, fd, 5);
    CHECK(!io.done);
    others_progress();
    MUST(read(fd, &v, 8) == 8);
    join(t);
    CHECK_EQ(io.got, 8);
    CHECK_EQ(read(fd, &v, 8), 8);
    CHECK_EQ(v, 5);
    v = 0xffffffffffffffffull;
    CHECK_FAILS(write(fd, &v, 8), EINVAL);
    CHECK_FAILS(write(fd, &v, 4), EINVAL);
    CHECK_FAILS(read(fd, &v, 4), EINVAL);
    close(fd);
}

static atomic_int taken;

static void *semaphore_reader(void *arg)
{
    uint64_t v;
    for (;;) {
        MUST(read(*(int *)arg, &v, 8) == 8);
        CHECK_EQ(v, 1);
        if (atomic_fetch_add(&taken, 1) >= 300) return NULL;
    }
}

// As a semaphore: 12 readers take exactly as many as were put.
static void eventfd_semaphore_counts_exactly(void)
{
    int fd = eventfd(0, EFD_SEMAPHORE);
    pthread_t t[12];
    taken = 0;
    for (int i = 0; i < 12; i++) t[i] = spawn(semaphore_reader, &fd);
    for (int i = 0; i < 100; i++) MUST(eventfd_write(fd, 3) == 0);
    WAIT_UNTIL(taken == 300);
    settle();
    CHECK_EQ(taken, 300);
    MUST(eventfd_write(fd, 12) == 0);
    for (int i = 0; i < 12; i++) join(t[i]);
    CHECK_EQ(taken, 312);
    close(fd);
}

static void timerfd_read_blocks_until_expiry(void)
{
    int fd = timerfd_create(CLOCK_MONOTONIC, 0);
    struct itimerspec its = {.it_value = {0, 20 * MS}};
    struct io io;
    pthread_t t = start(&io, reader8, fd, 0);  // blocked while disarmed
    CHECK(!io.done);
    long long from = now_ns();
    MUST(timerfd_settime(fd, 0, &its, NULL) == 0);
    others_progress();
    join(t);
    CHECK_EQ(io.got, 8);
    CHECK_EQ(io.value, 1);
    CHECK(now_ns() - from >= 20 * MS);
    its.it_interval = ts_of(2 * MS);
    its.it_value = ts_of(2 * MS);
    from = now_ns();
    MUST(timerfd_settime(fd, 0, &its, NULL) == 0);
    uint64_t sum = 0, v;
    while (sum < 10) {
        MUST(read(fd, &v, 8) == 8);
        CHECK(v >= 1);
        sum += v;
    }
    CHECK(now_ns() - from >= 20 * MS - 1);
    CHECK((long long)sum * 2 * MS <= now_ns() - from);
    close(fd);
}

static void timerfd_absolute_in_the_past_and_cloexec(void)
{
    int fd = timerfd_create(CLOCK_REALTIME, TFD_CLOEXEC);
    struct itimerspec its = {.it_value = {1, 0}};
    uint64_t v = 0;
    CHECK_EQ(fcntl(fd, F_GETFD), FD_CLOEXEC);
    MUST(timerfd_settime(fd, TFD_TIMER_ABSTIME, &its, NULL) == 0);
    CHECK_EQ(read(fd, &v, 8), 8);
    CHECK_EQ(v, 1);
    close(fd);
    fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    CHECK_FAILS(read(fd, &v, 8), EAGAIN);
    close(fd);
}

struct notify {
    int fd;
    ssize_t got;
    char buf[4096] __attribute__((aligned(8)));
    struct gate started;
};

static void *notify_reader(void *arg)
{
    struct notify *n = arg;
    gate_post(&n->started);
    n->got = read(n->fd, n->buf, sizeof n->buf);
    return NULL;
}

static void inotify_read_blocks_until_the_event(void)
{
    char dir[TEMP_ROOM], file[TEMP_ROOM + 16];
    temp_path(dir, "weft-inotify-XXXXXX");
    MUST(mkdtemp(dir) != NULL);
    struct notify n = {.fd = inotify_init1(0), .started = GATE_INIT};
    MUST(inotify_add_watch(n.fd, dir, IN_CREATE) >= 0);
    pthread_t t = spawn(notify_reader, &n);
    gate_wait(&n.started, 1);
    settle();
    others_progress();
    snprintf(file, sizeof file, "%s/born", dir);
    int fd = open(file, O_CREAT | O_WRONLY, 0600);
    MUST(fd >= 0);
    join(t);
    struct inotify_event *ev = (struct inotify_event *)n.buf;
    CHECK(n.got >= (ssize_t)sizeof *ev);
    CHECK_EQ(ev->mask, IN_CREATE);
    CHECK(strcmp(ev->name, "born") == 0);
    close(fd);
    close(n.fd);
    unlink(file);
    rmdir(dir);
}

struct sigread {
    int fd;
    struct signalfd_siginfo si;
    struct gate started;
};

static void *signalfd_reader(void *arg)
{
    struct sigread *s = arg;
    gate_post(&s->started);
    MUST(read(s->fd, &s->si, sizeof s->si) == sizeof s->si);
    return NULL;
}

// All threads block the signal; one of them sits in read on the signalfd.
static void signalfd_read_takes_a_process_signal(void)
{
    mask_signal(SIG_BLOCK, SIGUSR2);
    sigset_t set = one_signal(SIGUSR2);
    struct sigread s = {.fd = signalfd(-1, &set, 0), .started = GATE_INIT};
    for (int i = 0; i < 5; i++) {
        pthread_t t = spawn(signalfd_reader, &s);
        gate_wait(&s.started, i + 1);
        if (i % 2) settle();
        if (i == 1) others_progress();
        MUST(kill(getpid(), SIGUSR2) == 0);
        join(t);
        CHECK_EQ(s.si.ssi_signo, SIGUSR2);
        CHECK_EQ(s.si.ssi_pid, getpid());
        CHECK_EQ(s.si.ssi_code, SI_USER);
    }
    fcntl(s.fd, F_SETFL, O_NONBLOCK);
    CHECK_FAILS(read(s.fd, &s.si, sizeof s.si), EAGAIN);
    close(s.fd);
    mask_signal(SIG_UNBLOCK, SIGUSR2);
}

static const struct CMUnitTest tests[] = {
    T(eventfd_read_blocks_and_takes_all),
    T(eventfd_write_blocks_at_the_brim),
    T(eventfd_semaphore_counts_exactly),
    T(timerfd_read_blocks_until_expiry),
    T(timerfd_absolute_in_the_past_and_cloexec),
    T(inotify_read_blocks_until_the_event),
    T(signalfd_read_takes_a_process_signal),
};
IO_MAIN(tests)

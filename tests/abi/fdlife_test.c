// fdlife_test.c - descriptors closed, replaced and reused while threads wait on them,
// behind the library's back or in front of it.
//
// Invariant: as close(2) says of Linux, a blocked call holds its open file, whatever
//            becomes of the number; a new file under the number is a new file.
// Callers:   run natively and under LD_PRELOAD; uses io.h only.
#include "io.h"
#include <dirent.h>
#include <spawn.h>

extern char **environ;

struct reader {
    int fd, sock;
    ssize_t got;
    int err;
    char buf[8];
    struct gate started;
    atomic_int done;
};

static void *reader_main(void *arg)
{
    struct reader *r = arg;
    gate_post(&r->started);
    errno = 0;
    r->got = r->sock ? recv(r->fd, r->buf, sizeof r->buf, 0) : read(r->fd, r->buf, sizeof r->buf);
    r->err = errno;
    r->done = 1;
    return NULL;
}

// settle() here is what makes the reader be inside its call; a reader that comes late
// sees EBADF, which is also native, and is told apart by `late`.
static pthread_t start(struct reader *r, int fd, int sock)
{
    *r = (struct reader){.fd = fd, .sock = sock, .started = GATE_INIT};
    pthread_t t = spawn(reader_main, r);
    gate_wait(&r->started, 1);
    for (int i = 0; i < 4; i++) settle();
    return t;
}

static int late(const struct reader *r)
{
    return r->got == -1 && r->err == EBADF;
}

static void make_kind(int p[2], int kind)
{
    if (kind == 0) make_pipe(p);
    else if (kind == 1) make_pair(p);
    else tcp_pair(p);
}

// close() does not wake the blocked reader; data sent after it still arrive there.
static void close_under_a_blocked_read(void)
{
    for (int kind = 0; kind < 3; kind++) {
        struct reader r;
        int p[2];
        make_kind(p, kind);
        pthread_t t = start(&r, p[0], kind > 0);
        MUST(close(p[0]) == 0);
        CHECK_FAILS(fcntl(p[0], F_GETFD), EBADF);
        char c;
        CHECK_FAILS(read(p[0], &c, 1), EBADF);
        settle();
        if (!r.done) {
            // No SIGPIPE: the blocked call still holds the reading end.
            CHECK_EQ(write(p[1], "late", 4), 4);
        }
        join(t);
        if (!late(&r)) {
            CHECK_EQ(r.got, 4);
            CHECK(memcmp(r.buf, "late", 4) == 0);
        }
        close(p[1]);
    }
}

// dup2() over the number: the blocked reader stays with the old file, who comes now
// reads the new one.
static void dup2_under_a_blocked_read(void)
{
    for (int kind = 0; kind < 3; kind++)
        for (int three = 0; three < 2; three++) {
            struct reader old, new;
            int p[2], q[2];
            make_kind(p, kind);
            make_kind(q, (kind + 1) % 3);
            pthread_t t = start(&old, p[0], kind > 0);
            MUST((three ? dup3(q[0], p[0], O_CLOEXEC) : dup2(q[0], p[0])) == p[0]);
            CHECK_EQ(fcntl(p[0], F_GETFD), three ? FD_CLOEXEC : 0);
            pthread_t t2 = start(&new, p[0], (kind + 1) % 3 > 0);
            CHECK(!new.done);
            MUST(write(q[1], "new", 3) == 3);
            join(t2);
            CHECK_EQ(new.got, 3);
            if (!old.done) MUST(write(p[1], "old", 3) == 3);
            join(t);
            CHECK_EQ(old.got, 3);
            CHECK(memcmp(old.buf, "old", 3) == 0);
            close2(p);
            close2(q);
        }
}

// A number reused over and over, closed by each road there is, some of which no
// interposed name sees: reads on the new file block, wake, and get its bytes.
static void close_by(int road, int fd, FILE **f)
{
    switch (road) {
    case 0: MUST(close(fd) == 0); break;
    case 1: MUST(fclose(*f) == 0); break;
    case 2: MUST(syscall(SYS_close, fd) == 0); break;
    case 3: MUST(close_range((unsigned)fd, (unsigned)fd, 0) == 0); break;
    default: {
        int null = open("/dev/null", O_RDONLY);
        MUST(dup2(null, fd) == fd);
        MUST(close(fd) == 0 && close(null) == 0);
    }
    }
}

static void number_reused_after_every_way_to_close(void)
{
    uint64_t seed = 11;
    int last = -1;
    for (int i = 0; i < 40; i++) {
        struct reader r;
        int p[2], kind = (int)(rnd(&seed) % 3), road = i % 5;
        make_kind(p, kind);
        if (last >= 0 && p[0] != last) {
            MUST(dup2(p[0], last) == last);
            close(p[0]);
            p[0] = last;
        }
        last = p[0];
        FILE *f = road == 1 ? fdopen(p[0], "r") : NULL;
        r = (struct reader){.fd = p[0], .sock = kind > 0, .started = GATE_INIT};
        pthread_t t = spawn(reader_main, &r);
        gate_wait(&r.started, 1);
        if (i % 2) settle();
        MUST(write(p[1], &i, sizeof i) == sizeof i);
        join(t);
        CHECK_EQ(r.got, sizeof i);
        CHECK(memcmp(r.buf, &i, sizeof i) == 0);
        close_by(road, p[0], &f);
        close(p[1]);
    }
}

// opendir's descriptor takes a number that a socket had, and gives it back.
static void closedir_reuse(void)
{
    for (int i = 0; i < 10; i++) {
        struct reader r;
        int p[2];
        make_pair(p);
        pthread_t t = start(&r, p[0], 1);
        MUST(write(p[1], "a", 1) == 1);
        join(t);
        int n = p[0];
        close(n);
        DIR *d = opendir("/");
        MUST(d && dirfd(d) == n);
        MUST(readdir(d) != NULL);
        closedir(d);
        int q[2];
        make_pipe(q);
        CHECK_EQ(q[0], n);
        t = start(&r, q[0], 0);
        MUST(write(q[1], "bb", 2) == 2);
        join(t);
        CHECK_EQ(r.got, 2);
        close(p[1]);
        close2(q);
    }
}

// The epoll trap: a child keeps the old open file alive, so its events go on coming
// after the number means something else here.
static void stale_events_of_a_file_a_child_keeps(void)
{
    struct reader r;
    int p[2], hold[2];
    char c;
    make_pair(p);
    make_pipe(hold);
    pthread_t t = start(&r, p[0], 1);
    MUST(write(p[1], "1", 1) == 1);
    join(t);
    pid_t pid = fork();
    MUST(pid >= 0);
    if (pid == 0) {
        close(hold[1]);
        close(p[1]);
        while (read(hold[0], &c, 1) > 0)
            ;
        _exit(0);
    }
    int n = p[0], q[2];
    close(n);
    make_pair(q);
    MUST(q[0] == n);
    t = start(&r, q[0], 1);
    for (int i = 0; i < 50; i++) MUST(write(p[1], "stale", 5) == 5);
    settle();
    CHECK(!r.done);
    others_progress();
    MUST(write(q[1], "fresh", 5) == 5);
    join(t);
    CHECK_EQ(r.got, 5);
    CHECK(memcmp(r.buf, "fresh", 5) == 0);
    close2(hold);
    CHECK_CHILD_OK(reap(pid));
    close(p[1]);
    close2(q);
}

// A child's close, dup2 and exec of a number a parent's thread waits on are the
// child's own, also between vfork and exec, where memory is shared.
static void a_childs_closing_does_not_disturb(void)
{
    for (volatile int how = 0; how < 4; how++) {
        struct reader r;
        int p[2];
        make_kind(p, how % 3);
        pthread_t t = start(&r, p[0], how % 3 > 0);
        pid_t pid;
        if (how == 0) {
            pid = fork();
            if (pid == 0) {
                close(p[0]);
                close(p[1]);
                _exit(0);
            }
        } else if (how == 1) {
            pid = vfork();
            if (pid == 0) {
                close(p[0]);
                dup2(2, p[1]);
                close(p[1]);
                execl("/bin/true", "true", (char *)NULL);
                _exit(127);
            }
        } else {
            posix_spawn_file_actions_t fa;
            char *argv[] = {"true", NULL};
            posix_spawn_file_actions_init(&fa);
            posix_spawn_file_actions_addclose(&fa, p[0]);
            posix_spawn_file_actions_adddup2(&fa, 2, p[1]);
            MUST(posix_spawn(&pid, "/bin/true", &fa, NULL, argv, environ) == 0);
            posix_spawn_file_actions_destroy(&fa);
        }
        MUST(pid > 0);
        CHECK_CHILD_OK(reap(pid));
        CHECK(!r.done);
        MUST(write(p[1], "still", 5) == 5);
        join(t);
        CHECK_EQ(r.got, 5);
        close2(p);
    }
}

// Two numbers, one open file: each byte goes to one of the readers, none is stuck.
static void duplicates_share_the_file(void)
{
    for (int kind = 0; kind < 3; kind++)
        for (volatile int how = 0; how < 4; how++) {
            struct reader r[2];
            int p[2], d = -1;
            make_kind(p, kind);
            if (how == 0) d = dup(p[0]);
            if (how == 1) d = fcntl(p[0], F_DUPFD, 100);
            if (how == 2) d = fcntl(p[0], F_DUPFD_CLOEXEC, 100);
            if (how == 3) d = dup3(p[0], 150, 0);
            MUST(d >= 0);
            if (how == 1 || how == 2) CHECK(d >= 100);
            CHECK_EQ(fcntl(d, F_GETFD), how == 2 ? FD_CLOEXEC : 0);
            pthread_t t[2] = {start(&r[0], p[0], 0), start(&r[1], d, 0)};
            MUST(write(p[1], "1", 1) == 1);
            WAIT_UNTIL(r[0].done || r[1].done);
            MUST(write(p[1], "2", 1) == 1);
            for (int i = 0; i < 2; i++) {
                join(t[i]);
                CHECK_EQ(r[i].got, 1);
            }
            CHECK_EQ(r[0].buf[0] + r[1].buf[0], '1' + '2');
            pthread_t last = start(&r[0], p[0], 0);
            close(d);  // not the last reference: nobody is to notice
            MUST(write(p[1], "3", 1) == 1);
            join(last);
            CHECK_EQ(r[0].got, 1);
            close2(p);
        }
}

static void errors_of_close_and_dup(void)
{
    int fd = open("/dev/null", O_RDONLY);
    CHECK_EQ(close(fd), 0);
    CHECK_FAILS(close(fd), EBADF);
    CHECK_FAILS(close(-1), EBADF);
    CHECK_FAILS(dup(fd), EBADF);
    CHECK_FAILS(dup2(fd, 5), EBADF);
    CHECK_FAILS(dup2(2, -1), EBADF);
    CHECK_FAILS(dup3(2, 2, 0), EINVAL);
    CHECK_EQ(dup2(2, 2), 2);
    CHECK_FAILS(close_range(10, 5, 0), EINVAL);
    CHECK_FAILS(fcntl(fd, F_GETFL), EBADF);
    CHECK_FAILS(fcntl(2, F_DUPFD, 1 << 30), EINVAL);
}

static void *errors_thread(void *arg)
{
    errors_of_close_and_dup();
    return arg;
}

static void errors_from_main_and_thread(void)
{
    errors_of_close_and_dup();
    join(spawn(errors_thread, NULL));
}

// A pipe from before the first thread, and so from before there were any records of numbers.
static int from_before[2];
__attribute__((constructor)) static void make_from_before(void) { make_pipe(from_before); }

// Its duplicate was made later, and nobody noted that the file had two numbers: O_NONBLOCK set over
// the one was not seen over the other, where a read slept on. The first test: a fork makes all
// that is known of such numbers void.
static void a_duplicate_of_one_made_before_threads(void)
{
    struct reader r;
    join(spawn(errors_thread, NULL));
    int d = dup(from_before[0]);
    MUST(d >= 0);
    pthread_t t = start(&r, from_before[0], 0);
    MUST(write(from_before[1], "1", 1) == 1);
    join(t);
    CHECK_EQ(r.got, 1);
    MUST(fcntl(d, F_SETFL, O_NONBLOCK) == 0);
    t = start(&r, from_before[0], 0);
    WAIT_UNTIL(r.done);
    join(t);
    CHECK_EQ(r.got, -1);
    CHECK_EQ(r.err, EAGAIN);
    close(d);
    close2(from_before);
}

struct churn {
    uint64_t seed;
    int rounds;
};

static void *churn_main(void *arg)
{
    struct churn *c = arg;
    for (int i = 0; i < c->rounds; i++) {
        int p[2], kind = (int)(rnd(&c->seed) % 3);
        struct reader r = {.started = GATE_INIT};
        make_kind(p, kind);
        r.fd = p[0];
        r.sock = (int)(rnd(&c->seed) & 1) && kind;
        pthread_t t = spawn(reader_main, &r);
        uint64_t tag = rnd(&c->seed);
        if (rnd(&c->seed) & 1) sched_yield();
        MUST(write(p[1], &tag, 8) == 8);
        join(t);
        CHECK_EQ(r.got, 8);
        CHECK(memcmp(r.buf, &tag, 8) == 0);
        close2(p);
    }
    return NULL;
}

// Eight threads open, wait and close at once: numbers migrate between all kinds.
static void numbers_migrate_between_threads(void)
{
    struct churn c[8];
    pthread_t t[8];
    int before = open_fds();
    for (int i = 0; i < 8; i++) {
        c[i] = (struct churn){(uint64_t)i + 5, 40};
        t[i] = spawn(churn_main, &c[i]);
    }
    for (int i = 0; i < 8; i++) join(t[i]);
    CHECK_EQ(open_fds(), before);
}

static const struct CMUnitTest tests[] = {
    T(a_duplicate_of_one_made_before_threads),
    T(close_under_a_blocked_read),
    T(dup2_under_a_blocked_read),
    T(number_reused_after_every_way_to_close),
    T(closedir_reuse),
    T(stale_events_of_a_file_a_child_keeps),
    T(a_childs_closing_does_not_disturb),
    T(duplicates_share_the_file),
    T(errors_from_main_and_thread),
    T(numbers_migrate_between_threads),
};
IO_MAIN(tests)

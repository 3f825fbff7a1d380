// io.h - what the I/O, time and signal ABI tests share: checks, handshakes,
// descriptors and the runner.
//
// Invariant: nothing here orders events by sleeping. settle() only makes the
//            interesting interleaving likely; no result may depend on it.
// Callers:   tests/abi/*_test.c and tests/stress/*.c, from any thread. Include
//            it first: it defines _GNU_SOURCE.
// cmocka's own assert_* longjmp to the main thread's frame, so threads use
// CHECK (counts, goes on) and MUST (ends the program: going on could hang).
// ABI_ISOLATE=1 runs every test in a forked child with a time limit, so that a
// hang or crash costs one test; argv[1] is a cmocka name filter.
#ifndef WEFT_TESTS_IO_H
#define WEFT_TESTS_IO_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "temp.h"

#define IO_FN static __attribute__((unused))
#define MS 1000000LL
#define SEC 1000000000LL
#define IO_LIMIT_NS (15 * SEC)  // every bounded wait ends the program after this
#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

static atomic_int io_failures __attribute__((unused));

IO_FN void io_say(const char *file, int line, const char *what, const char *kind)
{
    char buf[400];
    int e = errno;
    int n = snprintf(buf, sizeof buf, "%s:%d: %s: %s (errno %d)\n", file, line, kind, what, e);
    if (n > (int)sizeof buf) n = (int)sizeof buf;
    if (write(2, buf, (size_t)n) < 0) _exit(3);
    errno = e;
}

// Where a table-driven test is: said only with ABI_VERBOSE=1, to find what hangs.
IO_FN void io_note(const char *where, int n)
{
    char buf[100];
    if (!getenv("ABI_VERBOSE")) return;
    int k = snprintf(buf, sizeof buf, "  at %s %d\n", where, n);
    if (write(2, buf, (size_t)k) < 0) _exit(3);
}

#define CHECK(c)                                              \
    do {                                                      \
        if (!(c)) {                                           \
            io_say(__FILE__, __LINE__, #c, "CHECK failed");   \
            atomic_fetch_add(&io_failures, 1);                \
        }                                                     \
    } while (0)
#define MUST(c)                                               \
    do {                                                      \
        if (!(c)) {                                           \
            io_say(__FILE__, __LINE__, #c, "MUST failed");    \
            _exit(1);                                         \
        }                                                     \
    } while (0)
// Says both values when they differ, which a bare CHECK cannot.
#define CHECK_EQ(a, b)                                                                   \
    do {                                                                                 \
        long long va_ = (long long)(a), vb_ = (long long)(b);                            \
        if (va_ != vb_) {                                                                \
            char m_[300];                                                                \
            snprintf(m_, sizeof m_, "%s == %s: %lld != %lld", #a, #b, va_, vb_);         \
            io_say(__FILE__, __LINE__, m_, "CHECK failed");                              \
            atomic_fetch_add(&io_failures, 1);                                           \
        }                                                                                \
    } while (0)
// The call must fail with exactly this errno.
#define CHECK_FAILS(call, err)                     \
    do {                                           \
        errno = 0;                                 \
        long long r_ = (long long)(call);          \
        int e_ = errno;                            \
        CHECK_EQ(r_, -1);                          \
        CHECK_EQ(e_, err);                         \
    } while (0)

// ---- time --------------------------------------------------------------------

IO_FN long long now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * SEC + t.tv_nsec;
}

IO_FN struct timespec ts_of(long long ns)
{
    return (struct timespec){.tv_sec = ns / SEC, .tv_nsec = ns % SEC};
}

IO_FN struct timeval tv_of(long long ns)
{
    return (struct timeval){.tv_sec = ns / SEC, .tv_usec = ns % SEC / 1000};
}

IO_FN long long ns_of(struct timespec t)
{
    return t.tv_sec * SEC + t.tv_nsec;
}

IO_FN void nap(long long ns)
{
    struct timespec t = ts_of(ns);
    while (nanosleep(&t, &t) == -1 && errno == EINTR)
        ;
}

// Lets the other threads reach the call they announced. Not an ordering.
IO_FN void settle(void)
{
    for (int i = 0; i < 20; i++) sched_yield();
    nap(3 * MS);
}

#define WAIT_UNTIL(c)                                             \
    do {                                                          \
        long long end_ = now_ns() + IO_LIMIT_NS;                  \
        while (!(c)) {                                            \
            if (now_ns() > end_) {                                \
                io_say(__FILE__, __LINE__, #c, "never happened"); \
                _exit(1);                                         \
            }                                                     \
            sched_yield();                                        \
            nap(100000);                                          \
        }                                                         \
    } while (0)

// Before the first thread: the process has the first of its cores alone.
IO_FN void keep_one_core(void)
{
    cpu_set_t set;
    MUST(sched_getaffinity(0, sizeof set, &set) == 0);
    for (int i = 0, found = 0; i < CPU_SETSIZE; i++)
        if (CPU_ISSET(i, &set) && found++ > 0) CPU_CLR(i, &set);
    MUST(sched_setaffinity(0, sizeof set, &set) == 0);
}

// ---- handshake: a counter that can be waited for --------------------------------

struct gate {
    pthread_mutex_t m;
    pthread_cond_t c;
    long n;
};
#define GATE_INIT {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0}

IO_FN void gate_post(struct gate *g)
{
    pthread_mutex_lock(&g->m);
    g->n++;
    pthread_cond_broadcast(&g->c);
    pthread_mutex_unlock(&g->m);
}

IO_FN void gate_wait(struct gate *g, long n)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    t.tv_sec += IO_LIMIT_NS / SEC;
    pthread_mutex_lock(&g->m);
    while (g->n < n) {
        int rc = pthread_cond_timedwait(&g->c, &g->m, &t);
        if (rc == ETIMEDOUT) {
            io_say(__FILE__, __LINE__, "gate_wait", "timed out");
            _exit(1);
        }
    }
    pthread_mutex_unlock(&g->m);
}

// ---- threads ---------------------------------------------------------------------

IO_FN pthread_t spawn(void *(*fn)(void *), void *arg)
{
    pthread_t t;
    int rc = pthread_create(&t, NULL, fn, arg);
    errno = rc;
    MUST(rc == 0);
    return t;
}

IO_FN void *join(pthread_t t)
{
    void *r = NULL;
    int rc = pthread_join(t, &r);
    errno = rc;
    MUST(rc == 0);
    return r;
}

struct io_pong {
    int in, out, rounds;
};

IO_FN void *io_pong_side(void *arg)
{
    struct io_pong *p = arg;
    char c;
    for (int i = 0; i < p->rounds; i++) {
        MUST(read(p->in, &c, 1) == 1);
        MUST(write(p->out, &c, 1) == 1);
    }
    return NULL;
}

// The proof that nobody stops the others: a fresh thread and the caller
// exchange bytes over two pipes. Where progress is lost, this hangs.
IO_FN void progress_rounds(int rounds)
{
    int a[2], b[2];
    char c = 'x';
    MUST(pipe(a) == 0);
    MUST(pipe(b) == 0);
    struct io_pong p = {a[0], b[1], rounds};
    pthread_t t = spawn(io_pong_side, &p);
    for (int i = 0; i < p.rounds; i++) {
        MUST(write(a[1], &c, 1) == 1);
        MUST(read(b[0], &c, 1) == 1);
    }
    join(t);
    for (int i = 0; i < 2; i++) {
        close(a[i]);
        close(b[i]);
    }
}

IO_FN void others_progress(void)
{
    progress_rounds(50);
}

// ---- bytes ------------------------------------------------------------------------

IO_FN uint64_t rnd(uint64_t *s)
{
    uint64_t z = (*s += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

// Byte at offset off of stream key: position-dependent, so that a lost, doubled
// or reordered piece shows.
IO_FN unsigned char pattern(uint64_t key, uint64_t off)
{
    uint64_t x = (off >> 3) * 0x9e3779b97f4a7c15u + key;
    x ^= x >> 29;
    return (unsigned char)(x >> ((off & 7) * 8));
}

IO_FN void pattern_fill(unsigned char *p, size_t n, uint64_t key, uint64_t off)
{
    for (size_t i = 0; i < n; i++) p[i] = pattern(key, off + i);
}

IO_FN int pattern_ok(const unsigned char *p, size_t n, uint64_t key, uint64_t off)
{
    for (size_t i = 0; i < n; i++)
        if (p[i] != pattern(key, off + i)) return 0;
    return 1;
}

IO_FN void read_full(int fd, void *buf, size_t n)
{
    for (size_t got = 0; got < n;) {
        ssize_t r = read(fd, (char *)buf + got, n - got);
        MUST(r > 0);
        got += (size_t)r;
    }
}

// ---- descriptors --------------------------------------------------------------------

IO_FN void make_pipe(int p[2])
{
    MUST(pipe(p) == 0);
}

IO_FN void make_pair(int p[2])
{
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, p) == 0);
}

IO_FN void close2(int p[2])
{
    CHECK(close(p[0]) == 0);
    CHECK(close(p[1]) == 0);
}

// Fills a pipe or socket to the brim without touching its flags for long;
// returns the number of bytes in it.
IO_FN size_t fill_up(int fd)
{
    static const char junk[4096];
    size_t n = 0;
    ssize_t r;
    int fl = fcntl(fd, F_GETFL);
    MUST(fcntl(fd, F_SETFL, fl | O_NONBLOCK) == 0);
    while ((r = write(fd, junk, sizeof junk)) > 0) n += (size_t)r;
    while ((r = write(fd, junk, 1)) > 0) n += (size_t)r;
    MUST(errno == EAGAIN);
    MUST(fcntl(fd, F_SETFL, fl) == 0);
    return n;
}

IO_FN struct sockaddr_in loopback(int port)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return a;
}

// A listener on a free loopback port (reported in *port).
IO_FN int tcp_listen(int *port, int backlog)
{
    int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in a = loopback(0);
    socklen_t n = sizeof a;
    MUST(fd >= 0);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    MUST(bind(fd, (struct sockaddr *)&a, sizeof a) == 0);
    MUST(listen(fd, backlog) == 0);
    MUST(getsockname(fd, (struct sockaddr *)&a, &n) == 0);
    *port = ntohs(a.sin_port);
    return fd;
}

IO_FN int tcp_connect(int port)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in a = loopback(port);
    MUST(fd >= 0);
    MUST(connect(fd, (struct sockaddr *)&a, sizeof a) == 0);
    return fd;
}

// A connected TCP pair over loopback.
IO_FN void tcp_pair(int p[2])
{
    int port, l = tcp_listen(&port, 4);
    p[0] = tcp_connect(port);
    p[1] = accept(l, NULL, NULL);
    MUST(p[1] >= 0);
    close(l);
}

IO_FN int open_fds(void)
{
    int n = 0;
    for (int fd = 0; fd < 4096; fd++)
        if (fcntl(fd, F_GETFD) != -1) n++;
    return n;
}

IO_FN int temp_file(void)
{
    char name[TEMP_ROOM];
    temp_path(name, "weft-abi-XXXXXX");
    int fd = mkstemp(name);
    MUST(fd >= 0);
    unlink(name);
    return fd;
}

// ---- signals ----------------------------------------------------------------------------

IO_FN struct sigaction set_handler(int sig, void (*h)(int), int flags)
{
    struct sigaction sa, old;
    memset(&sa, 0, sizeof sa);
    sa.sa_handler = h;
    sa.sa_flags = flags;
    sigemptyset(&sa.sa_mask);
    MUST(sigaction(sig, &sa, &old) == 0);
    return old;
}

IO_FN struct sigaction set_action(int sig, void (*h)(int, siginfo_t *, void *), int flags)
{
    struct sigaction sa, old;
    memset(&sa, 0, sizeof sa);
    sa.sa_sigaction = h;
    sa.sa_flags = flags | SA_SIGINFO;
    sigemptyset(&sa.sa_mask);
    MUST(sigaction(sig, &sa, &old) == 0);
    return old;
}

IO_FN sigset_t one_signal(int sig)
{
    sigset_t s;
    sigemptyset(&s);
    sigaddset(&s, sig);
    return s;
}

IO_FN void mask_signal(int how, int sig)
{
    sigset_t s = one_signal(sig);
    MUST(pthread_sigmask(how, &s, NULL) == 0);
}

// ---- children ------------------------------------------------------------------------------

// Waits for a child, with a limit; returns its wait status.
IO_FN int reap(pid_t pid)
{
    int st = 0;
    long long end = now_ns() + IO_LIMIT_NS;
    for (;;) {
        pid_t r = waitpid(pid, &st, WNOHANG);
        if (r == pid) return st;
        MUST(r == 0 || errno == EINTR);
        if (now_ns() > end) {
            kill(pid, SIGKILL);
            waitpid(pid, &st, 0);
            io_say(__FILE__, __LINE__, "child hangs", "CHECK failed");
            atomic_fetch_add(&io_failures, 1);
            return st;
        }
        nap(MS);
    }
}

// Runs fn in a forked child; returns the wait status. The child's exit code is
// 1 if a check failed in it.
IO_FN int in_child(void (*fn)(void))
{
    fflush(NULL);
    pid_t pid = fork();
    MUST(pid >= 0);
    if (pid == 0) {
        atomic_store(&io_failures, 0);
        fn();
        _exit(atomic_load(&io_failures) != 0);
    }
    return reap(pid);
}

#define CHECK_CHILD_OK(st)                                      \
    do {                                                        \
        int st_ = (st);                                         \
        CHECK_EQ(WIFSIGNALED(st_) ? WTERMSIG(st_) : 0, 0);      \
        CHECK_EQ(WIFEXITED(st_) ? WEXITSTATUS(st_) : -1, 0);    \
    } while (0)

// ---- runner: only for the cmocka programs -------------------------------------------------------

#ifndef IO_NO_CMOCKA
#include <cmocka.h>

typedef void (*io_test_fn)(void);
#define T(fn) {#fn, io_run, NULL, NULL, (void *)(fn)}

IO_FN void io_run(void **state)
{
    io_test_fn fn = (io_test_fn)*state;
    atomic_store(&io_failures, 0);
    if (getenv("ABI_ISOLATE")) {
        CHECK_CHILD_OK(in_child(fn));
    } else {
        fn();
    }
    assert_int_equal(atomic_load(&io_failures), 0);
}

#define IO_MAIN(tests)                                           \
    int main(int argc, char **argv)                              \
    {                                                            \
        if (argc > 1) cmocka_set_test_filter(argv[1]);           \
        return cmocka_run_group_tests(tests, NULL, NULL);        \
    }
#endif  // IO_NO_CMOCKA
#endif  // WEFT_TESTS_IO_H

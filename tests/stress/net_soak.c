/* net_soak.c - connections opened, half-closed, reset and closed at random, a thread for each end.
 *
 * Over loopback TCP in one process: clients connect, talk in random ways and go; the server
 * has a thread per connection that echoes. Each byte is checked, and at the end so is the
 * number of open descriptors. Prints its seed; a hang is the test runner's to see.
 * Usage: net_soak [seed] [seconds]
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { kClients = 48, kBig = 300000 };

static struct sockaddr_in where;
static atomic_int live;
static atomic_long talks, echoed, resets;
static unsigned seed;
static double end_at;

#define CHECK(c) ((c) ? (void)0 : die(#c, __LINE__))
static void die(const char *what, int line)
{
    printf("net_soak.c:%d: %s failed: %s (seed %u)\n", line, what, strerror(errno), seed);
    fflush(stdout);
    _exit(1);
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static unsigned rnd(unsigned *s) { return (*s = *s * 1664525u + 1013904223u) >> 8; }
static char byte_at(unsigned key, size_t i) { return (char)(key * 31 + i * 7 + (i >> 8)); }

static int open_fds(void)
{
    int n = 0;
    DIR *d = opendir("/proc/self/fd");
    CHECK(d != NULL);
    while (readdir(d)) n++;
    closedir(d);
    return n;
}

static void *serve(void *arg)
{
    int fd = (int)(intptr_t)arg;
    char buf[4096];
    ssize_t n;
    while ((n = read(fd, buf, sizeof buf)) > 0) {
        ssize_t w = send(fd, buf, (size_t)n, MSG_NOSIGNAL);
        if (w != n) break; /* reset by the client */
        atomic_fetch_add(&echoed, n);
    }
    if (n < 0) {
        CHECK(errno == ECONNRESET || errno == EPIPE);
        atomic_fetch_add(&resets, 1);
    }
    CHECK(close(fd) == 0);
    atomic_fetch_sub(&live, 1);
    return NULL;
}

static void *accept_all(void *arg)
{
    int l = *(int *)arg;
    pthread_attr_t attr;
    pthread_attr_init(&attr);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attr, 64 << 10);
    for (;;) {
        int fd = accept(l, NULL, NULL);
        if (fd < 0) {
            CHECK(errno == EINVAL || errno == ECONNABORTED); /* EINVAL: shut down at the end */
            if (errno == EINVAL) return NULL;
            continue;
        }
        pthread_t t;
        atomic_fetch_add(&live, 1);
        CHECK(pthread_create(&t, &attr, serve, (void *)(intptr_t)fd) == 0);
    }
}

static void expect(int fd, unsigned key, size_t from, size_t n)
{
    char buf[8192];
    while (n > 0) {
        ssize_t r = recv(fd, buf, n < sizeof buf ? n : sizeof buf, 0);
        CHECK(r > 0);
        for (ssize_t i = 0; i < r; i++) CHECK(buf[i] == byte_at(key, from + (size_t)i));
        from += (size_t)r;
        n -= (size_t)r;
    }
}

static void say(int fd, unsigned key, size_t from, size_t n)
{
    char buf[8192];
    while (n > 0) {
        size_t k = n < sizeof buf ? n : sizeof buf;
        for (size_t i = 0; i < k; i++) buf[i] = byte_at(key, from + i);
        CHECK(send(fd, buf, k, MSG_NOSIGNAL) == (ssize_t)k);
        from += k;
        n -= k;
    }
}

struct sender {
    int fd;
    unsigned key;
};
static void *send_big(void *arg)
{
    struct sender *s = arg;
    say(s->fd, s->key, 0, kBig);
    CHECK(shutdown(s->fd, SHUT_WR) == 0);
    return NULL;
}

static void small_talk(int fd, unsigned *s)
{
    unsigned key = rnd(s);
    size_t at = 0;
    for (unsigned n = rnd(s) % 30; n > 0; n--) {
        size_t k = 1 + rnd(s) % 200;
        say(fd, key, at, k);
        if (rnd(s) % 4 == 0) { /* wait as servers do that poll first */
            struct pollfd p = {fd, POLLIN, 0};
            CHECK(poll(&p, 1, 20000) == 1);
        }
        expect(fd, key, at, k);
        at += k;
    }
}

static void slow_big_talk(int fd, unsigned *s)
{
    struct sender snd = {fd, rnd(s)};
    pthread_t t;
    CHECK(pthread_create(&t, NULL, send_big, &snd) == 0);
    for (size_t at = 0; at < kBig; at += kBig / 4) {
        usleep(rnd(s) % 3000);
        expect(fd, snd.key, at, kBig / 4);
    }
    char c;
    CHECK(recv(fd, &c, 1, 0) == 0);
    CHECK(pthread_join(t, NULL) == 0);
}

static void *client(void *arg)
{
    unsigned s = seed + (unsigned)(intptr_t)arg * 7919;
    while (now() < end_at) {
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        CHECK(fd >= 0);
        CHECK(connect(fd, (struct sockaddr *)&where, sizeof where) == 0);
        small_talk(fd, &s);
        switch (rnd(&s) % 8) {
        case 0: { /* reset, with an answer perhaps unread */
            struct linger lg = {1, 0};
            say(fd, 1, 0, rnd(&s) % 5000);
            CHECK(setsockopt(fd, SOL_SOCKET, SO_LINGER, &lg, sizeof lg) == 0);
            break;
        }
        case 1: { /* half-close, drain */
            size_t n = rnd(&s) % 20000;
            char c;
            say(fd, 2, 0, n);
            CHECK(shutdown(fd, SHUT_WR) == 0);
            expect(fd, 2, 0, n);
            CHECK(recv(fd, &c, 1, 0) == 0);
            break;
        }
        case 2:
            slow_big_talk(fd, &s);
            break;
        case 3:
            usleep(rnd(&s) % 2000);
            small_talk(fd, &s);
            break;
        default:
            break;
        }
        CHECK(close(fd) == 0);
        atomic_fetch_add(&talks, 1);
    }
    return NULL;
}

int main(int argc, char **argv)
{
    seed = argc > 1 ? (unsigned)strtoul(argv[1], NULL, 0) : (unsigned)time(NULL);
    double seconds = argc > 2 ? atof(argv[2]) : 5;
    printf("seed %u\n", seed);
    signal(SIGPIPE, SIG_IGN);
    int l = socket(AF_INET, SOCK_STREAM, 0);
    socklen_t len = sizeof where;
    where.sin_family = AF_INET;
    where.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    CHECK(bind(l, (struct sockaddr *)&where, sizeof where) == 0 && listen(l, 512) == 0);
    CHECK(getsockname(l, (struct sockaddr *)&where, &len) == 0);
    pthread_t acceptors[3], clients[kClients];
    for (int i = 0; i < 3; i++) CHECK(pthread_create(&acceptors[i], NULL, accept_all, &l) == 0);
    int before = 0;
    end_at = 0;
    for (int round = 0; round < 2; round++) { /* the first: whatever is opened once, is */
        end_at = now() + (round == 0 ? 0.2 : seconds);
        for (intptr_t i = 0; i < kClients; i++)
            CHECK(pthread_create(&clients[i], NULL, client, (void *)i) == 0);
        for (int i = 0; i < kClients; i++) CHECK(pthread_join(clients[i], NULL) == 0);
        double patience = now() + 20;
        while (atomic_load(&live) != 0 && now() < patience) usleep(1000);
        CHECK(atomic_load(&live) == 0);
        if (round == 0) before = open_fds();
    }
    CHECK(open_fds() == before);
    CHECK(shutdown(l, SHUT_RDWR) == 0);
    for (int i = 0; i < 3; i++) CHECK(pthread_join(acceptors[i], NULL) == 0);
    printf("net_soak: %ld connections, %ld bytes echoed, %ld resets: 3 passed, 0 failed\n",
           atomic_load(&talks), atomic_load(&echoed), atomic_load(&resets));
    return 0;
}

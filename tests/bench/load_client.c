/* load_client.c - the load for the servers here: one thread, epoll, a closed loop.
 *
 * Opens N connections; each sends 64 B, waits for the same 64 B, sends again.
 * Never run under weft: it is the same yardstick for all columns. Latencies go
 * into a histogram of 1/16-octave buckets. Reported: requests/s and the
 * 50th, 99th and 99.9th percentile in us, after a warm-up of an eighth of the time.
 * With a request count it stops there instead (for counting syscalls).
 * Usage: load_client NAME PORT [connections] [ms] [requests]
 */
#include "bench.h"
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>

enum { kMessageBytes = 64, kEvents = 256, kBuckets = 16 * 48 };

struct conn {
    int fd;
    int got;          /* bytes of the answer read so far */
    uint64_t number;  /* of the request: the answer must carry it */
    int64_t sent_ns;
};

static long histogram[kBuckets], answered;

/* Bucket of a latency: the octave, and the four bits below its leading one. */
static int bucket_of(uint64_t ns) {
    if (ns < 16) return (int)ns;
    int octave = 63 - __builtin_clzll(ns);
    int b = octave * 16 + (int)((ns >> (octave - 4)) & 15);
    return b < kBuckets ? b : kBuckets - 1;
}

static double bucket_us(int b) {
    if (b < 16) return b / 1e3;
    return (double)((uint64_t)(16 + b % 16) << (b / 16 - 4)) / 1e3;
}

static double percentile_us(double p) {
    long total = 0, seen = 0;
    for (int i = 0; i < kBuckets; i++) total += histogram[i];
    for (int i = 0; i < kBuckets; i++) {
        seen += histogram[i];
        if ((double)seen >= p * (double)total) return bucket_us(i);
    }
    return 0;
}

static void send_request(struct conn *c, int64_t now) {
    uint64_t body[kMessageBytes / 8];
    c->number++;
    for (int i = 0; i < kMessageBytes / 8; i++) body[i] = c->number * 8 + (uint64_t)i + ((uint64_t)c->fd << 40);
    c->got = 0;
    c->sent_ns = now;
    CHECK(send(c->fd, body, kMessageBytes, MSG_NOSIGNAL) == kMessageBytes); /* one in flight: it always fits */
}

static void connect_all(struct conn *conns, long n, int port, int epfd) {
    struct sockaddr_in addr = {.sin_family = AF_INET,
                               .sin_port = htons((uint16_t)port),
                               .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    for (long i = 0; i < n; i++) {
        int fd = socket(AF_INET, SOCK_STREAM, 0), on = 1;
        CHECK(fd >= 0);
        CHECK(connect(fd, (struct sockaddr *)&addr, sizeof addr) == 0);
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        conns[i].fd = fd;
        struct epoll_event ev = {.events = EPOLLIN, .data.ptr = &conns[i]};
        CHECK(epoll_ctl(epfd, EPOLL_CTL_ADD, fd, &ev) == 0);
    }
}

/* Takes what has come for one connection; true when its answer is complete and right. */
static int take_answer(struct conn *c) {
    uint64_t body[kMessageBytes / 8];
    ssize_t n = recv(c->fd, body, (size_t)(kMessageBytes - c->got), MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return 0;
    CHECK(n > 0); /* the server closed on us */
    if (c->got == 0 && n >= 8) CHECK(body[0] == c->number * 8 + ((uint64_t)c->fd << 40));
    c->got += (int)n;
    return c->got == kMessageBytes;
}

/* Runs the closed loop; returns the ns it measured over. */
static double run(struct conn *conns, long n, int epfd, int64_t span, long requests) {
    struct epoll_event events[kEvents];
    int64_t start = now_ns(), measured = requests ? start : start + span / 8, end = start + span;
    for (long i = 0; i < n; i++) send_request(&conns[i], now_ns());
    for (;;) {
        int ready = epoll_wait(epfd, events, kEvents, 5000);
        CHECK(ready > 0 || (ready < 0 && errno == EINTR)); /* 5 s of silence: the server hangs */
        int64_t now = now_ns();
        if (requests ? answered >= requests : now >= end) return (double)(now - measured);
        for (int i = 0; i < ready; i++) {
            struct conn *c = events[i].data.ptr;
            if (!take_answer(c)) continue;
            now = now_ns();
            if (now >= measured) {
                histogram[bucket_of((uint64_t)(now - c->sent_ns))]++;
                answered++;
            }
            send_request(c, now);
        }
    }
}

int main(int argc, char **argv) {
    if (argc < 3) {
        fprintf(stderr, "usage: load_client NAME PORT [connections] [ms] [requests]\n");
        return 2;
    }
    int port = (int)arg_or(argc, argv, 2, 0);
    long n = arg_or(argc, argv, 3, 100), requests = arg_or(argc, argv, 5, 0);
    int64_t span = arg_or(argc, argv, 4, 1500) * 1000000;
    struct conn *conns = calloc((size_t)n, sizeof *conns);
    int epfd = epoll_create1(0);
    CHECK(conns && epfd >= 0);
    connect_all(conns, n, port, epfd);
    double ns = run(conns, n, epfd, span, requests);
    static const struct {
        const char *suffix;
        double p;
    } rows[] = {{"p50", 0.50}, {"p99", 0.99}, {"p99.9", 0.999}};
    char name[80];
    snprintf(name, sizeof name, "%s_rate", argv[1]);
    report(name, (double)answered * 1e9 / ns, "req/s");
    for (int i = 0; i < 3; i++) {
        snprintf(name, sizeof name, "%s_%s", argv[1], rows[i].suffix);
        report(name, percentile_us(rows[i].p), "us");
    }
    return 0;
}

/* listen.h - a listening TCP socket on 127.0.0.1, its port told on stdout.
 *
 * Invariant: the socket is blocking; clients may connect once the line
 * `port N` has been printed.
 * Callers:   the servers of tests/bench, from main, once, before any thread.
 */
#ifndef LISTEN_H
#define LISTEN_H

#include "bench.h"
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

enum { kMessageBytes = 64 };

static inline int listen_loopback(void) {
    int fd = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    struct sockaddr_in addr = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof addr;
    CHECK(fd >= 0);
    CHECK(setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) == 0);
    CHECK(bind(fd, (struct sockaddr *)&addr, sizeof addr) == 0);
    CHECK(listen(fd, 4096) == 0);
    CHECK(getsockname(fd, (struct sockaddr *)&addr, &len) == 0);
    printf("port %d\n", ntohs(addr.sin_port));
    fflush(stdout);
    return fd;
}

/* The next connection, with Nagle's delay off. */
static inline int accept_next(int listener) {
    int fd, on = 1;
    do fd = accept(listener, NULL, NULL);
    while (fd < 0 && (errno == EINTR || errno == ECONNABORTED));
    CHECK(fd >= 0);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return fd;
}

/* Reads one whole message; 0 when the peer has gone. */
static inline int read_message(int fd, char *buf) {
    for (size_t got = 0; got < kMessageBytes;) {
        ssize_t n = read(fd, buf + got, kMessageBytes - got);
        if (n > 0) got += (size_t)n;
        else if (n == 0 || errno != EINTR) return 0;
    }
    return 1;
}

/* Writes one whole message; 0 when the peer has gone. */
static inline int write_message(int fd, const char *buf) {
    for (size_t put = 0; put < kMessageBytes;) {
        ssize_t n = write(fd, buf + put, kMessageBytes - put);
        if (n > 0) put += (size_t)n;
        else if (errno != EINTR) return 0;
    }
    return 1;
}

#endif

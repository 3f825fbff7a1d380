/* request_server.c - the thread-per-request server: a new thread answers each request.
 *
 * A connection has one reader thread; every message it reads is handed to a new
 * detached thread, which computes the answer, writes it and ends. The load
 * (load_client.c) is closed-loop, so a connection has one request under way.
 * Prints `port N`, then serves until it is killed.
 * Usage: request_server
 */
#include "listen.h"
#include <signal.h>

struct request {
    int fd;
    char body[kMessageBytes];
};

static pthread_attr_t detached;

static void *answer(void *arg) {
    struct request *r = arg;
    write_message(r->fd, r->body);
    free(r);
    return NULL;
}

static void *read_requests(void *arg) {
    int fd = (int)(long)arg;
    for (;;) {
        pthread_t t;
        struct request *r = malloc(sizeof *r);
        CHECK(r);
        r->fd = fd;
        if (!read_message(fd, r->body)) {
            free(r);
            break;
        }
        MUST(pthread_create(&t, &detached, answer, r));
    }
    close(fd);
    return NULL;
}

int main(void) {
    signal(SIGPIPE, SIG_IGN);
    int listener = listen_loopback();
    MUST(pthread_attr_init(&detached));
    MUST(pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED));
    for (;;) {
        pthread_t t;
        int fd = accept_next(listener);
        MUST(pthread_create(&t, &detached, read_requests, (void *)(long)fd));
    }
}

/* echo_server.c - the thread-per-connection server: accept, pthread_create, blocking read and write.
 *
 * The question (requests/s and latency) is asked by load_client.c, a separate
 * process. One thread lives as long as its connection and echoes messages of 64 B.
 * Prints `port N`, then serves until it is killed.
 * Usage: echo_server
 */
#include "listen.h"
#include <signal.h>

static void *serve(void *arg) {
    int fd = (int)(long)arg;
    char buf[kMessageBytes];
    while (read_message(fd, buf) && write_message(fd, buf)) continue;
    close(fd);
    return NULL;
}

int main(void) {
    signal(SIGPIPE, SIG_IGN);
    int listener = listen_loopback();
    pthread_attr_t attr;
    MUST(pthread_attr_init(&attr));
    MUST(pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED));
    for (;;) {
        pthread_t t;
        int fd = accept_next(listener);
        MUST(pthread_create(&t, &attr, serve, (void *)(long)fd));
    }
}

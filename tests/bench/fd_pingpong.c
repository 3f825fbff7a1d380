/* fd_pingpong.c - how long is a round trip of one byte between two threads over descriptors?
 *
 * Blocking read and write on two pipes, or on one socketpair. Reported: ns per
 * round trip (two writes, two reads).
 * Usage: fd_pingpong [pipe|socketpair] [ms]
 */
#include "bench.h"
#include <sys/socket.h>

static int mine[2], theirs[2]; /* [0] is read from, [1] is written to */

static void *echo(void *arg) {
    char byte;
    long n = 0;
    while (read(theirs[0], &byte, 1) == 1 && byte != 'q') {
        CHECK(write(theirs[1], &byte, 1) == 1);
        n++;
    }
    *(long *)arg = n;
    return NULL;
}

static void trip(long n) {
    char out = (char)('a' + n % 8), in = 0;
    CHECK(write(mine[1], &out, 1) == 1);
    CHECK(read(mine[0], &in, 1) == 1);
    CHECK(in == out);
}

static void open_both(int sockets) {
    int a[2], b[2];
    if (sockets) {
        CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, a) == 0);
        mine[0] = mine[1] = a[0];
        theirs[0] = theirs[1] = a[1];
        return;
    }
    CHECK(pipe(a) == 0 && pipe(b) == 0);
    mine[0] = a[0], theirs[1] = a[1];
    theirs[0] = b[0], mine[1] = b[1];
}

int main(int argc, char **argv) {
    int sockets = argc > 1 && strcmp(argv[1], "socketpair") == 0;
    int64_t span = arg_or(argc, argv, 2, 500) * 1000000;
    long echoed = 0, timed = 0;
    open_both(sockets);
    pthread_t other;
    MUST(pthread_create(&other, NULL, echo, &echoed));
    for (long i = 0; i < 64; i++) trip(i); /* both threads are up */
    int64_t start = now_ns(), end;
    do {
        for (int i = 0; i < 64; i++, timed++) trip(timed);
        end = now_ns();
    } while (end - start < span);
    CHECK(write(mine[1], "q", 1) == 1);
    MUST(pthread_join(other, NULL));
    CHECK(echoed == timed + 64);
    report(sockets ? "socketpair_pingpong" : "pipe_pingpong", (double)(end - start) / (double)timed, "ns");
    return 0;
}

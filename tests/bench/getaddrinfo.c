/* getaddrinfo.c - how many name look-ups per second from many threads at once?
 *
 * 64 threads resolve a numeric host (no network) until the deadline; with a name
 * instead, e.g. localhost, libc reads its files too, in calls that no interposer
 * sees. Reported: thousand look-ups per second; each answer is checked for an address.
 * Usage: getaddrinfo [ms] [threads] [host]
 */
#include "bench.h"
#include <netdb.h>
#include <sys/socket.h>

static int64_t deadline;
static const char *host;

static void *resolver(void *arg) {
    long n = 0;
    struct addrinfo hints = {.ai_family = AF_INET, .ai_socktype = SOCK_STREAM};
    do {
        struct addrinfo *found = NULL;
        CHECK(getaddrinfo(host, "80", &hints, &found) == 0 && found && found->ai_addr);
        freeaddrinfo(found);
        n++;
    } while (now_ns() < deadline);
    *(long *)arg = n;
    return NULL;
}

int main(int argc, char **argv) {
    int64_t start = now_ns();
    deadline = start + arg_or(argc, argv, 1, 500) * 1000000;
    long threads = arg_or(argc, argv, 2, 64), total = 0;
    host = argc > 3 ? argv[3] : "127.0.0.1";
    pthread_t *t = calloc((size_t)threads, sizeof *t);
    long *n = calloc((size_t)threads, sizeof *n);
    CHECK(t && n);
    for (long i = 0; i < threads; i++) MUST(pthread_create(&t[i], NULL, resolver, &n[i]));
    for (long i = 0; i < threads; i++) {
        MUST(pthread_join(t[i], NULL));
        total += n[i];
    }
    char name[80];
    snprintf(name, sizeof name, "getaddrinfo_%s", argc > 3 ? host : "numeric");
    report(name, (double)total * 1e6 / (double)(now_ns() - start), "k/s");
    return 0;
}

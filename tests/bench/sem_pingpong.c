/* sem_pingpong.c - how long is a round trip between two threads over two semaphores?
 *
 * Reported: ns per round trip (two posts, two waits).
 * Usage: sem_pingpong [ms]
 */
#include "bench.h"
#include <semaphore.h>

static sem_t ping, pong;
static int over; /* written before the last post of ping, read after its wait */

static void *ponger(void *arg) {
    long n = 0;
    for (;;) {
        CHECK(sem_wait(&ping) == 0);
        if (over) break;
        n++;
        CHECK(sem_post(&pong) == 0);
    }
    *(long *)arg = n;
    return NULL;
}

static void trip(void) {
    CHECK(sem_post(&ping) == 0);
    CHECK(sem_wait(&pong) == 0);
}

int main(int argc, char **argv) {
    int64_t span = arg_or(argc, argv, 1, 500) * 1000000;
    long ponged = 0, timed = 0;
    CHECK(sem_init(&ping, 0, 0) == 0 && sem_init(&pong, 0, 0) == 0);
    pthread_t other;
    MUST(pthread_create(&other, NULL, ponger, &ponged));
    for (int i = 0; i < 64; i++) trip(); /* both threads are up */
    int64_t start = now_ns(), end;
    do {
        for (int i = 0; i < 64; i++, timed++) trip();
        end = now_ns();
    } while (end - start < span);
    over = 1;
    CHECK(sem_post(&ping) == 0);
    MUST(pthread_join(other, NULL));
    CHECK(ponged == timed + 64);
    report("sem_pingpong", (double)(end - start) / (double)timed, "ns");
    return 0;
}

/* cond_pingpong.c - how long is a round trip between two threads over a condition variable?
 *
 * One mutex, one condition variable, a turn. Each thread waits for its turn,
 * passes it to the other and signals. Reported: ns per round trip (two wake-ups).
 * Usage: cond_pingpong [ms]
 */
#include "bench.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static int turn; /* guarded by lock; 0: main's, 1: the other's, 2: over */

/* Gives the turn to `to` and waits until it is `mine` again or the game is over. */
static int pass(int to, int mine) {
    MUST(pthread_mutex_lock(&lock));
    turn = to;
    MUST(pthread_cond_signal(&changed));
    while (turn != mine && turn != 2) MUST(pthread_cond_wait(&changed, &lock));
    int now = turn;
    MUST(pthread_mutex_unlock(&lock));
    return now;
}

static void *ponger(void *arg) {
    MUST(pthread_mutex_lock(&lock));
    while (turn != 1) MUST(pthread_cond_wait(&changed, &lock));
    MUST(pthread_mutex_unlock(&lock));
    long n = 1;
    while (pass(0, 1) == 1) n++;
    *(long *)arg = n;
    return NULL;
}

int main(int argc, char **argv) {
    int64_t span = arg_or(argc, argv, 1, 500) * 1000000;
    long ponged = 0, trips = 0;
    pthread_t other;
    MUST(pthread_create(&other, NULL, ponger, &ponged));
    for (int i = 0; i < 64; i++, trips++) pass(1, 0); /* both threads are up */
    int64_t start = now_ns(), end;
    long timed = 0;
    do {
        for (int i = 0; i < 64; i++, timed++) pass(1, 0);
        end = now_ns();
    } while (end - start < span);
    pass(2, 2);
    MUST(pthread_join(other, NULL));
    CHECK(ponged == trips + timed);
    report("cond_pingpong", (double)(end - start) / (double)timed, "ns");
    return 0;
}

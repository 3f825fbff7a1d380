/* mutex_contended.c - how many short critical sections per second when N threads want one lock?
 *
 * The section counts and mixes one shared word (some 10 ns); outside it a thread mixes
 * a word of its own (some 30 ns), so that the lock changes hands. Every thread
 * looks at the clock each 64 rounds and leaves at the deadline. Reported: M sections/s
 * until the last thread has left; the counter must equal the sum of the rounds.
 * Usage: mutex_contended [threads] [ms]
 */
#include "bench.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_barrier_t ready;
static int64_t deadline; /* written before main enters the barrier */
static BENCH_PADDED long counter; /* guarded by lock, as is mix */
static uint64_t mix = 1;

static uint64_t stirred(uint64_t x, int times) {
    while (times--) x = x * 6364136223846793005u + 1442695040888963407u;
    return x;
}

static void *contender(void *arg) {
    long n = 0;
    uint64_t own = 1;
    pthread_barrier_wait(&ready);
    do {
        for (int i = 0; i < 64; i++, n++) {
            pthread_mutex_lock(&lock);
            counter++;
            mix = stirred(mix, 8);
            pthread_mutex_unlock(&lock);
            own = stirred(own, 24);
        }
    } while (now_ns() < deadline);
    CHECK(own != 0); /* keeps the outside work alive */
    *(long *)arg = n;
    return NULL;
}

int main(int argc, char **argv) {
    long threads = arg_or(argc, argv, 1, 8);
    int64_t span = arg_or(argc, argv, 2, 500) * 1000000;
    pthread_t *t = calloc((size_t)threads, sizeof *t);
    long *rounds = calloc((size_t)threads, sizeof *rounds), sum = 0;
    CHECK(t && rounds);
    MUST(pthread_barrier_init(&ready, NULL, (unsigned)threads + 1));
    for (long i = 0; i < threads; i++) MUST(pthread_create(&t[i], NULL, contender, &rounds[i]));
    int64_t start = now_ns();
    deadline = start + span;
    pthread_barrier_wait(&ready);
    for (long i = 0; i < threads; i++) {
        MUST(pthread_join(t[i], NULL));
        sum += rounds[i];
    }
    double elapsed = (double)(now_ns() - start);
    CHECK(sum == counter);
    char name[40];
    snprintf(name, sizeof name, "mutex_%ld", threads);
    report(name, (double)counter * 1e3 / elapsed, "M/s");
    return 0;
}

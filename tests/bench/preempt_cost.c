/* preempt_cost.c - what does preemption cost a program that only computes?
 *
 * As many threads as cores, each doing a fixed amount of integer work without any
 * call. Nobody waits, so nobody should be preempted: the time must not depend
 * on WEFT_PREEMPT. Reported: ms for the whole.
 * Usage: preempt_cost [threads, 0: as many as cores] [million steps per thread]
 */
#include "bench.h"

static long steps;

static void *compute(void *arg) {
    uint64_t x = (uint64_t)(long)arg;
    for (long i = 0; i < steps; i++) x = x * 6364136223846793005u + 1442695040888963407u;
    return (void *)x;
}

int main(int argc, char **argv) {
    long threads = arg_or(argc, argv, 1, 0);
    steps = arg_or(argc, argv, 2, 400) * 1000000;
    if (threads == 0) threads = sysconf(_SC_NPROCESSORS_ONLN);
    pthread_t *t = calloc((size_t)threads, sizeof *t);
    CHECK(t);
    int64_t start = now_ns();
    for (long i = 0; i < threads; i++) MUST(pthread_create(&t[i], NULL, compute, (void *)7));
    void *first = NULL;
    for (long i = 0; i < threads; i++) {
        void *value;
        MUST(pthread_join(t[i], &value));
        if (i == 0) first = value;
        CHECK(value == first); /* same seed, same steps */
    }
    report("preempt_cost", (double)(now_ns() - start) / 1e6, "ms");
    return 0;
}

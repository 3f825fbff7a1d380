/* yield.c - what does sched_yield cost between two threads?
 *
 * Two threads do nothing but yield until the deadline. Reported: wall time of
 * one thread per yield of that thread when both have a core, and per yield of
 * either when they share one; that is elapsed * min(cores, 2) / yields, so that
 * the figure is the cost of a yield and not of the other thread's turn.
 * Usage: yield [ms] [cores]
 */
#include "bench.h"
#include <sched.h>

static int64_t deadline;

static void *yielder(void *arg) {
    long n = 0;
    do {
        for (int i = 0; i < 256; i++) sched_yield();
        n += 256;
    } while (now_ns() < deadline);
    *(long *)arg = n;
    return arg;
}

int main(int argc, char **argv) {
    long ms = arg_or(argc, argv, 1, 500);
    long cores = arg_or(argc, argv, 2, 1);
    long count[2] = {0, 0};
    int64_t start = now_ns();
    deadline = start + ms * 1000000;
    pthread_t other;
    MUST(pthread_create(&other, NULL, yielder, &count[1]));
    yielder(&count[0]);
    MUST(pthread_join(other, NULL));
    double elapsed = (double)(now_ns() - start);
    report("yield", elapsed * (double)(cores > 1 ? 2 : 1) / (double)(count[0] + count[1]), "ns");
    return 0;
}

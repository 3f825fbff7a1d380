/* create_detached.c - what does a detached thread cost, in batches of 1000?
 *
 * A batch is over when its last thread has counted itself down and posted.
 * Reported: ns per thread.
 * Usage: create_detached [ms] [batch]
 */
#include "bench.h"
#include <semaphore.h>
#include <stdatomic.h>

static atomic_long left;
static sem_t done;

static void *count_down(void *arg) {
    if (atomic_fetch_sub(&left, 1) == 1) CHECK(sem_post(&done) == 0);
    return arg;
}

int main(int argc, char **argv) {
    int64_t span = arg_or(argc, argv, 1, 500) * 1000000;
    long batch = arg_or(argc, argv, 2, 1000), n = 0;
    CHECK(sem_init(&done, 0, 0) == 0);
    pthread_attr_t attr;
    MUST(pthread_attr_init(&attr));
    MUST(pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED));
    int64_t start = now_ns(), end;
    do {
        atomic_store(&left, batch);
        for (long i = 0; i < batch; i++) {
            pthread_t t;
            MUST(pthread_create(&t, &attr, count_down, NULL));
        }
        while (sem_wait(&done) != 0) continue;
        n += batch;
        end = now_ns();
    } while (end - start < span);
    report("create_detached", (double)(end - start) / (double)n, "ns");
    return 0;
}

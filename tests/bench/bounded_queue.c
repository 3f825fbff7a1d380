/* bounded_queue.c - how many items per second go through a bounded queue of mutex and two conds?
 *
 * 8 producers, 8 consumers, capacity 128; each put and each get signals once.
 * Producers stop at the deadline, consumers when the queue is closed and empty.
 * Reported: M items/s; the sum put in must come out.
 * Usage: bounded_queue [ms] [producers] [consumers] [capacity]
 */
#include "bench.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t not_empty = PTHREAD_COND_INITIALIZER;
static pthread_cond_t not_full = PTHREAD_COND_INITIALIZER;
static long *ring, capacity, head, tail, producing; /* guarded by lock */
static int64_t deadline;

struct tally {
    long items, sum;
};

static void *producer(void *arg) {
    struct tally *mine = arg;
    do {
        for (int i = 0; i < 64; i++) {
            long item = ++mine->items;
            pthread_mutex_lock(&lock);
            while (tail - head == capacity) pthread_cond_wait(&not_full, &lock);
            ring[tail++ % capacity] = item;
            pthread_cond_signal(&not_empty);
            pthread_mutex_unlock(&lock);
            mine->sum += item;
        }
    } while (now_ns() < deadline);
    pthread_mutex_lock(&lock);
    if (--producing == 0) pthread_cond_broadcast(&not_empty);
    pthread_mutex_unlock(&lock);
    return NULL;
}

static void *consumer(void *arg) {
    struct tally *mine = arg;
    for (;;) {
        pthread_mutex_lock(&lock);
        while (tail == head && producing > 0) pthread_cond_wait(&not_empty, &lock);
        if (tail == head) break;
        long item = ring[head++ % capacity];
        pthread_cond_signal(&not_full);
        pthread_mutex_unlock(&lock);
        mine->items++;
        mine->sum += item;
    }
    pthread_mutex_unlock(&lock);
    return NULL;
}

int main(int argc, char **argv) {
    int64_t span = arg_or(argc, argv, 1, 500) * 1000000;
    long producers = arg_or(argc, argv, 2, 8), consumers = arg_or(argc, argv, 3, 8);
    long n = producers + consumers;
    capacity = arg_or(argc, argv, 4, 128);
    ring = calloc((size_t)capacity, sizeof *ring);
    pthread_t *t = calloc((size_t)n, sizeof *t);
    struct tally *tally = aligned_alloc(128, (size_t)n * 128); /* one per 128 bytes */
    CHECK(ring && t && tally);
    memset(tally, 0, (size_t)n * 128);
    producing = producers;
    int64_t start = now_ns();
    deadline = start + span;
    for (long i = 0; i < n; i++)
        MUST(pthread_create(&t[i], NULL, i < producers ? producer : consumer, &tally[i * 8]));
    long put = 0, got = 0, items = 0;
    for (long i = 0; i < n; i++) {
        MUST(pthread_join(t[i], NULL));
        if (i < producers)
            put += tally[i * 8].sum;
        else
            got += tally[i * 8].sum, items += tally[i * 8].items;
    }
    double elapsed = (double)(now_ns() - start);
    CHECK(put == got);
    report("bounded_queue", (double)items * 1e3 / elapsed, "M/s");
    return 0;
}

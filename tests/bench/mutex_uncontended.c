/* mutex_uncontended.c - what does a lock/unlock pair cost when nobody else wants the lock?
 *
 * A second thread exists, blocked on a semaphore, so that libc and weft are in
 * their multi-threaded state. Reported: ns per pair.
 * Usage: mutex_uncontended [ms]
 */
#include "bench.h"
#include <semaphore.h>

static sem_t finish;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static volatile long counter;

static void *bystander(void *arg) {
    while (sem_wait(&finish) != 0) continue;
    return arg;
}

int main(int argc, char **argv) {
    int64_t span = arg_or(argc, argv, 1, 500) * 1000000;
    CHECK(sem_init(&finish, 0, 0) == 0);
    pthread_t other;
    MUST(pthread_create(&other, NULL, bystander, NULL));
    int64_t start = now_ns(), end;
    do {
        for (int i = 0; i < 4096; i++) {
            pthread_mutex_lock(&lock);
            counter++;
            pthread_mutex_unlock(&lock);
        }
        end = now_ns();
    } while (end - start < span);
    CHECK(sem_post(&finish) == 0);
    MUST(pthread_join(other, NULL));
    report("mutex_uncontended", (double)(end - start) / (double)counter, "ns");
    return 0;
}

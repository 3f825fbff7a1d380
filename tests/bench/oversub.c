/* oversub.c - what does a phase cost when more threads than cores meet at a barrier?
 *
 * K x cores threads share a fixed amount of work (about 20 us on one core) and
 * meet twice per phase: at a pthread_barrier, or at a barrier of the program's own
 * that spins without any call (as some numeric libraries and servers do).
 * Reported: us per phase.
 * Usage: oversub [barrier|spin] [threads per core] [ms]
 */
#include "bench.h"
#include <stdatomic.h>

static pthread_barrier_t barrier;
static BENCH_PADDED atomic_long arrived;
static BENCH_PADDED atomic_long generation;
static long threads, work_steps;
static int spinning;
static int64_t deadline;
static atomic_int over; /* set by thread 0 before a barrier, read by all after it */
static volatile uint64_t sink;

static void meet(void) {
    if (!spinning) {
        pthread_barrier_wait(&barrier);
        return;
    }
    long seen = atomic_load(&generation);
    if (atomic_fetch_add(&arrived, 1) + 1 == threads) {
        atomic_store(&arrived, 0);
        atomic_store(&generation, seen + 1);
    }
    while (atomic_load(&generation) == seen) __builtin_ia32_pause();
}

static void *phases(void *arg) {
    uint64_t x = (uint64_t)(long)arg;
    long n = 0;
    for (;;) {
        for (long i = 0; i < work_steps; i++) x = x * 6364136223846793005u + 1442695040888963407u;
        n++;
        if ((long)arg == 0 && now_ns() >= deadline) atomic_store(&over, 1);
        meet();
        int last = atomic_load(&over);
        meet(); /* nobody starts the next phase before all have read the flag */
        if (last) break;
    }
    sink = x;
    return (void *)n;
}

int main(int argc, char **argv) {
    const char *kind = argc > 1 ? argv[1] : "barrier";
    long per_core = arg_or(argc, argv, 2, 2);
    int64_t span = arg_or(argc, argv, 3, 500) * 1000000;
    spinning = strcmp(kind, "spin") == 0;
    threads = per_core * sysconf(_SC_NPROCESSORS_ONLN);
    work_steps = 20000 / threads; /* a step is about 1 ns */
    MUST(pthread_barrier_init(&barrier, NULL, (unsigned)threads));
    pthread_t *t = calloc((size_t)threads, sizeof *t);
    CHECK(t);
    int64_t start = now_ns();
    deadline = start + span;
    for (long i = 0; i < threads; i++) MUST(pthread_create(&t[i], NULL, phases, (void *)i));
    void *n = NULL, *mine;
    for (long i = 0; i < threads; i++) {
        MUST(pthread_join(t[i], &mine));
        if (i == 0) n = mine;
        CHECK(mine == n); /* every thread saw every phase */
    }
    char name[40];
    snprintf(name, sizeof name, "oversub_%s_%ldx", kind, per_core);
    report(name, (double)(now_ns() - start) / 1e3 / (double)(long)n, "us/phase");
    return 0;
}

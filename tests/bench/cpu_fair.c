/* cpu_fair.c - how late does a 1 ms sleeper wake beside spinning threads, and do those share fairly?
 *
 * 8 threads count without any call until a flag is set; main sleeps 1 ms again
 * and again and notes how much longer it took. Reported: 50th and 99th percentile
 * of the oversleep in us, and the spread of the spinners' progress, (max - min) /
 * mean in percent.
 * Usage: cpu_fair [ms] [spinners]
 */
#include "bench.h"
#include <errno.h>
#include <stdatomic.h>

enum { kMaxSpinners = 1024, kMaxSamples = 100000 };

static struct {
    BENCH_PADDED atomic_long count;
} progress[kMaxSpinners];
static atomic_int stop;
static double oversleep_us[kMaxSamples];

static void *spinner(void *arg) {
    atomic_long *mine = arg;
    long n = 0;
    while (!atomic_load_explicit(&stop, memory_order_relaxed))
        atomic_store_explicit(mine, ++n, memory_order_relaxed);
    return NULL;
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double spread_percent(const long *made, long n) {
    long least = made[0], most = made[0];
    double sum = 0;
    for (long i = 0; i < n; i++) {
        if (made[i] < least) least = made[i];
        if (made[i] > most) most = made[i];
        sum += (double)made[i];
    }
    return sum > 0 ? (double)(most - least) * 100.0 * (double)n / sum : 0;
}

int main(int argc, char **argv) {
    int64_t span = arg_or(argc, argv, 1, 2000) * 1000000;
    long spinners = arg_or(argc, argv, 2, 8), samples = 0;
    CHECK(spinners > 0 && spinners <= kMaxSpinners);
    pthread_t t[kMaxSpinners];
    long made[kMaxSpinners];
    for (long i = 0; i < spinners; i++) MUST(pthread_create(&t[i], NULL, spinner, &progress[i].count));
    int64_t start = now_ns(), before = start;
    while (before - start < span && samples < kMaxSamples) {
        struct timespec left = {0, 1000000};
        while (nanosleep(&left, &left) != 0) CHECK(errno == EINTR);
        int64_t after = now_ns();
        oversleep_us[samples++] = (double)(after - before - 1000000) / 1e3;
        before = after;
    }
    for (long i = 0; i < spinners; i++) made[i] = atomic_load(&progress[i].count);
    atomic_store(&stop, 1);
    for (long i = 0; i < spinners; i++) MUST(pthread_join(t[i], NULL));
    qsort(oversleep_us, (size_t)samples, sizeof *oversleep_us, by_value);
    report("cpu_fair_p50", oversleep_us[samples / 2], "us");
    report("cpu_fair_p99", oversleep_us[samples * 99 / 100], "us");
    report("cpu_fair_spread", spread_percent(made, spinners), "%");
    return 0;
}

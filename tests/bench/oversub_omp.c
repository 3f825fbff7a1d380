/* oversub_omp.c - what does an OpenMP region cost with more threads than cores?
 *
 * The unmodified libgomp, whose barriers wait in futexes of its own that no
 * interposer sees. scripts/bench sets OMP_WAIT_POLICY=passive. K x cores threads
 * share a fixed amount of work (about 20 us on one core) per region, with one barrier
 * inside it.
 * Reported: us per region; the sum is checked.
 * Usage: oversub_omp [threads per core] [ms]
 */
#include "bench.h"
#include <omp.h>

int main(int argc, char **argv) {
    long per_core = arg_or(argc, argv, 1, 2), regions = 0;
    int64_t span = arg_or(argc, argv, 2, 500) * 1000000;
    int threads = (int)(per_core * sysconf(_SC_NPROCESSORS_ONLN));
    enum { kItems = 512 };
    static double item[kItems];
    int64_t start = now_ns(), end;
    do {
        double sum = 0;
#pragma omp parallel num_threads(threads) reduction(+ : sum)
        {
#pragma omp for
            for (int i = 0; i < kItems; i++) {
                double x = i + 1;
                for (int k = 0; k < 16; k++) x = x * 0.5 + 1.0;
                item[i] = x;
            }
#pragma omp for
            for (int i = 0; i < kItems; i++) sum += item[i] > 0 ? 1.0 : 0.0;
        }
        CHECK(sum == kItems);
        regions++;
        end = now_ns();
    } while (end - start < span);
    char name[40];
    snprintf(name, sizeof name, "oversub_omp_%ldx", per_core);
    report(name, (double)(end - start) / 1e3 / (double)regions, "us/phase");
    return 0;
}

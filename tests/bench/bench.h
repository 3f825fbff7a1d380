/* bench.h - what every benchmark here shares: a clock, a report line, a check.
 *
 * Invariant: a benchmark is a plain pthread program. It knows nothing of weft,
 * and prints lines `name value unit` on stdout and nothing else; a wrong result
 * or a failed call ends it with status 1 and one line on stderr.
 * Callers:   the programs of tests/bench only. All runs are time-boxed: work until a
 *            deadline, then divide, so that a 30 us and a 100 ns operation are
 *            measured equally well.
 */
#ifndef BENCH_H
#define BENCH_H

#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define BENCH_PADDED __attribute__((aligned(128))) /* two lines: the prefetcher pairs them */

static inline int64_t now_ns(void) {
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

/* argv[i] as a number, or the default if it was not given. */
static inline long arg_or(int argc, char **argv, int i, long fallback) {
    return i < argc ? strtol(argv[i], NULL, 0) : fallback;
}

static inline void report(const char *name, double value, const char *unit) {
    printf("%s %.3f %s\n", name, value, unit);
    fflush(stdout);
}

static inline void check_failed(const char *file, int line, const char *what) {
    fprintf(stderr, "%s:%d: check failed: %s\n", file, line, what);
    _exit(1);
}
#define CHECK(x) ((x) ? (void)0 : check_failed(__FILE__, __LINE__, #x))

/* For calls that return an error number, as the pthread functions do. */
static inline void must_failed(const char *file, int line, const char *what, int err) {
    fprintf(stderr, "%s:%d: %s: %s\n", file, line, what, strerror(err));
    _exit(1);
}
#define MUST(call)                                              \
    do {                                                        \
        int must_err = (call);                                  \
        if (must_err) must_failed(__FILE__, __LINE__, #call, must_err); \
    } while (0)

#endif

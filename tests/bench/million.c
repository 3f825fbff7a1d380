/* million.c - how many threads can be alive at once, how fast, and what does each cost in memory?
 *
 * Creates N threads that block on one condition variable, waits until every one
 * of them is blocked, reads RSS and page-table size, wakes all, joins all. Where
 * a create is refused (natively: pid_max, map count) it goes on with those it has.
 * Reported: threads alive; us per thread (create, block, wake, join); RSS and page
 * tables per thread; the whole in seconds only if all N came to life.
 * Usage: million [threads] [stack_bytes, 0: default attributes] [name]
 */
#include "bench.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t go = PTHREAD_COND_INITIALIZER;
static pthread_cond_t counted = PTHREAD_COND_INITIALIZER;
static long blocked, awaited = -1; /* guarded by lock */
static int released;               /* guarded by lock */

static void *blocker(void *arg) {
    pthread_mutex_lock(&lock);
    if (++blocked == awaited) pthread_cond_signal(&counted);
    while (!released) pthread_cond_wait(&go, &lock);
    pthread_mutex_unlock(&lock);
    return arg;
}

/* A field of /proc/self/status, in KiB. */
static long status_kib(const char *field) {
    char line[256];
    long kib = 0;
    FILE *f = fopen("/proc/self/status", "r");
    CHECK(f);
    while (fgets(line, sizeof line, f))
        if (strncmp(line, field, strlen(field)) == 0) kib = strtol(line + strlen(field) + 1, NULL, 10);
    fclose(f);
    return kib;
}

/* Creates up to n threads; returns how many there are. */
static long create_all(pthread_t *t, long n, long stack_bytes) {
    pthread_attr_t attr;
    MUST(pthread_attr_init(&attr));
    if (stack_bytes) MUST(pthread_attr_setstacksize(&attr, (size_t)stack_bytes));
    long made = 0;
    for (; made < n; made++) {
        int err = pthread_create(&t[made], stack_bytes ? &attr : NULL, blocker, (void *)(made + 1));
        if (err) {
            fprintf(stderr, "million: create %ld: %s\n", made + 1, strerror(err));
            break;
        }
    }
    pthread_attr_destroy(&attr);
    return made;
}

int main(int argc, char **argv) {
    long n = arg_or(argc, argv, 1, 10000), stack_bytes = arg_or(argc, argv, 2, 65536);
    const char *base = argc > 3 ? argv[3] : "blocked";
    pthread_t *t = calloc((size_t)n, sizeof *t);
    CHECK(t);
    memset(t, 0xff, (size_t)n * sizeof *t); /* its pages are not the threads' */
    long rss = status_kib("VmRSS"), pte = status_kib("VmPTE");

    int64_t start = now_ns();
    long made = create_all(t, n, stack_bytes);
    pthread_mutex_lock(&lock);
    awaited = made;
    while (blocked != made) pthread_cond_wait(&counted, &lock);
    pthread_mutex_unlock(&lock); /* the last one waits on `go`: it gave the lock up */
    int64_t paused = now_ns();
    rss = status_kib("VmRSS") - rss;
    pte = status_kib("VmPTE") - pte;
    paused = now_ns() - paused;

    pthread_mutex_lock(&lock);
    released = 1;
    pthread_cond_broadcast(&go);
    pthread_mutex_unlock(&lock);
    for (long i = 0; i < made; i++) {
        void *value;
        MUST(pthread_join(t[i], &value));
        CHECK(value == (void *)(i + 1));
    }
    double ns = (double)(now_ns() - start - paused), each = (double)(made ? made : 1);

    char name[80];
    snprintf(name, sizeof name, "%s_alive", base);
    report(name, (double)made, "threads");
    snprintf(name, sizeof name, "%s_each", base);
    report(name, ns / 1e3 / each, "us/thread");
    if (made == n) {
        snprintf(name, sizeof name, "%s_all", base);
        report(name, ns / 1e9, "s");
    }
    snprintf(name, sizeof name, "%s_rss", base);
    report(name, (double)rss / each, "KiB/thread");
    snprintf(name, sizeof name, "%s_pte", base);
    report(name, (double)pte / each, "KiB/thread");
    return 0;
}

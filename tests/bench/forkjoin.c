/* forkjoin.c - how long does a recursion take that makes a thread per call?
 *
 * fib(n) with a thread for fib(n-1) and the caller's own stack for fib(n-2):
 * fib(21) makes 17,710 threads, many of them alive at once. Default attributes.
 * Reported: ms per whole recursion, mean over repetitions until the deadline.
 * Usage: forkjoin [n] [ms]
 */
#include "bench.h"

static long fib(long n);

static void *fib_thread(void *arg) { return (void *)fib((long)arg); }

static long fib(long n) {
    if (n < 2) return n;
    pthread_t child;
    void *value;
    MUST(pthread_create(&child, NULL, fib_thread, (void *)(n - 1)));
    long own = fib(n - 2);
    MUST(pthread_join(child, &value));
    return own + (long)value;
}

static long fib_plain(long n) {
    long a = 0, b = 1;
    for (; n > 0; n--) {
        long c = a + b;
        a = b;
        b = c;
    }
    return a;
}

int main(int argc, char **argv) {
    long n = arg_or(argc, argv, 1, 21), runs = 0;
    int64_t span = arg_or(argc, argv, 2, 500) * 1000000;
    int64_t start = now_ns(), end;
    do {
        CHECK(fib(n) == fib_plain(n));
        runs++;
        end = now_ns();
    } while (end - start < span);
    report("forkjoin", (double)(end - start) / 1e6 / (double)runs, "ms");
    return 0;
}

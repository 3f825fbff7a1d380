/* create_join.c - what does a thread that does nothing cost, created and joined one by one?
 *
 * Default attributes. Reported: ns per create + join, the value joined checked.
 * Usage: create_join [ms]
 */
#include "bench.h"

static void *nothing(void *arg) { return arg; }

int main(int argc, char **argv) {
    int64_t span = arg_or(argc, argv, 1, 500) * 1000000;
    long n = 0;
    int64_t start = now_ns(), end;
    do {
        for (int i = 0; i < 32; i++, n++) {
            pthread_t t;
            void *value;
            MUST(pthread_create(&t, NULL, nothing, (void *)(n + 1)));
            MUST(pthread_join(t, &value));
            CHECK(value == (void *)(n + 1));
        }
        end = now_ns();
    } while (end - start < span);
    report("create_join", (double)(end - start) / (double)n, "ns");
    return 0;
}

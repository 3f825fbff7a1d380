/* demo.c - one thread per task, everywhere: the program most people are told not to write.
 *
 * Four acts, each of plain pthreads (create, join, mutex, condition variable) with
 * default attributes, each checked against an answer computed without threads:
 *   words   a thread per line of a text, all adding to one locked table
 *   primes  a chain of threads, one per prime, that hand numbers to each other
 *   sort    merge sort with a thread per half, down to 32 numbers
 *   relay   a crowd of threads, all alive, that pass a token round in a ring
 * It knows nothing of weft. Prints a line per act, for scripts/demo:
 *   act NAME THREADS ANSWER MILLISECONDS KERNEL_THREADS_SEEN
 * Usage: demo [crowd size of the relay, default 10000]
 */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static long threads_made;        /* atomic */
static long kernel_threads_peak; /* one thread at a time looks */

#define CHECK(x) ((x) ? (void)0 : failed(__LINE__, #x))
static void failed(int line, const char *what) {
    fprintf(stderr, "demo.c:%d: check failed: %s\n", line, what);
    exit(1);
}

static double now_ms(void) {
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec * 1e3 + (double)ts.tv_nsec / 1e6;
}

/* How many threads the kernel says this process has. */
static void look_at_kernel_threads(void) {
    char line[256];
    FILE *f = fopen("/proc/self/status", "r");
    if (!f) return;
    while (fgets(line, sizeof line, f))
        if (strncmp(line, "Threads:", 8) == 0) {
            long n = strtol(line + 8, NULL, 10);
            if (n > kernel_threads_peak) kernel_threads_peak = n;
        }
    fclose(f);
}

static pthread_t start(void *(*routine)(void *), void *arg) {
    pthread_t t;
    int err = pthread_create(&t, NULL, routine, arg);
    if (err) {
        fprintf(stderr, "demo: this system refuses thread %ld: %s (a smaller crowd: DEMO_CROWD=2000)\n",
                threads_made + 1, strerror(err));
        exit(3);
    }
    __atomic_add_fetch(&threads_made, 1, __ATOMIC_RELAXED);
    return t;
}

static void *finish(pthread_t t) {
    void *value;
    CHECK(pthread_join(t, &value) == 0);
    return value;
}

static uint64_t mixed(uint64_t x) { /* a hash of a number; also our random source */
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

/* ---- words: 20,000 lines, a thread each, one table under one lock ---- */

enum { kLines = 20000, kWordsPerLine = 40, kVocabulary = 997, kInFlight = 500 };

static pthread_mutex_t table_lock = PTHREAD_MUTEX_INITIALIZER;
static long table[kVocabulary]; /* guarded by table_lock */

static void count_line(uint64_t line, long *into) {
    for (int i = 0; i < kWordsPerLine; i++) into[mixed(line * kWordsPerLine + (uint64_t)i) % kVocabulary]++;
}

static void *line_thread(void *arg) {
    long mine[kVocabulary] = {0};
    count_line((uint64_t)(uintptr_t)arg, mine);
    pthread_mutex_lock(&table_lock);
    for (int i = 0; i < kVocabulary; i++) table[i] += mine[i];
    pthread_mutex_unlock(&table_lock);
    return NULL;
}

static uint64_t words(void) {
    static pthread_t t[kInFlight];
    static long expected[kVocabulary];
    for (long line = 0; line < kLines; line += kInFlight) {
        for (long i = 0; i < kInFlight; i++) t[i] = start(line_thread, (void *)(line + i));
        if (line % 4000 == 0) look_at_kernel_threads();
        for (long i = 0; i < kInFlight; i++) finish(t[i]);
    }
    uint64_t answer = 0;
    for (uint64_t line = 0; line < kLines; line++) count_line(line, expected);
    for (int i = 0; i < kVocabulary; i++) {
        CHECK(table[i] == expected[i]);
        answer = mixed(answer ^ (uint64_t)table[i]);
    }
    return answer;
}

/* ---- primes: each thread keeps the first number it gets and passes on what that does not divide ---- */

enum { kPrimes = 1000, kSlots = 4 };

struct channel { /* a bounded queue; 0 ends the stream */
    pthread_mutex_t lock;
    pthread_cond_t not_empty, not_full;
    long item[kSlots];
    int head, count; /* with item guarded by lock */
};

static struct channel *open_channel(void) {
    struct channel *c = calloc(1, sizeof *c);
    CHECK(c && !pthread_mutex_init(&c->lock, NULL) && !pthread_cond_init(&c->not_empty, NULL) &&
          !pthread_cond_init(&c->not_full, NULL));
    return c;
}

static void put(struct channel *c, long item) {
    pthread_mutex_lock(&c->lock);
    while (c->count == kSlots) pthread_cond_wait(&c->not_full, &c->lock);
    c->item[(c->head + c->count++) % kSlots] = item;
    pthread_cond_signal(&c->not_empty);
    pthread_mutex_unlock(&c->lock);
}

static long get(struct channel *c) {
    pthread_mutex_lock(&c->lock);
    while (c->count == 0) pthread_cond_wait(&c->not_empty, &c->lock);
    long item = c->item[c->head];
    c->head = (c->head + 1) % kSlots;
    c->count--;
    pthread_cond_signal(&c->not_full);
    pthread_mutex_unlock(&c->lock);
    return item;
}

/* One link of the chain; returns the sum of its prime and of all primes after it. */
static void *prime_thread(void *arg) {
    struct channel *in = arg, *out = NULL;
    pthread_t next = 0;
    long prime = get(in), sum = prime;
    if (prime == 0) return NULL;
    for (long n; (n = get(in)) != 0;) {
        if (n % prime == 0) continue;
        if (!out) next = start(prime_thread, out = open_channel());
        put(out, n);
    }
    if (!out) look_at_kernel_threads(); /* the last link: the whole chain is alive */
    if (out) {
        put(out, 0);
        sum += (long)finish(next);
        free(out);
    }
    return (void *)sum;
}

static uint64_t primes(void) {
    long expected = 0, last = 1;
    for (int found = 0; found < kPrimes; found++) {
        for (int prime = 0; !prime;) {
            last++;
            prime = 1;
            for (long d = 2; d * d <= last; d++)
                if (last % d == 0) prime = 0;
        }
        expected += last;
    }
    struct channel *first = open_channel();
    pthread_t chain = start(prime_thread, first);
    for (long n = 2; n <= last; n++) put(first, n);
    put(first, 0);
    long sum = (long)finish(chain);
    free(first);
    CHECK(sum == expected);
    return (uint64_t)sum;
}

/* ---- sort: a thread for the left half of every half ---- */

enum { kNumbers = 1 << 18, kLeaf = 32 };

struct range {
    uint64_t *from, *scratch;
    long n;
    int watched; /* its first leaf looks at the kernel's count */
};

static int ascending(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static void *sort_thread(void *arg) {
    struct range *r = arg;
    if (r->n <= kLeaf) {
        if (r->watched) look_at_kernel_threads();
        qsort(r->from, (size_t)r->n, sizeof *r->from, ascending);
        return NULL;
    }
    long half = r->n / 2;
    struct range left = {r->from, r->scratch, half, 0};
    struct range right = {r->from + half, r->scratch + half, r->n - half, r->watched};
    pthread_t t = start(sort_thread, &left);
    sort_thread(&right);
    finish(t);
    memcpy(r->scratch, r->from, (size_t)half * sizeof *r->from);
    for (long i = 0, j = half, k = 0; i < half; k++) {
        if (j < r->n && r->from[j] < r->scratch[i])
            r->from[k] = r->from[j++];
        else
            r->from[k] = r->scratch[i++];
    }
    return NULL;
}

static uint64_t sort(void) {
    uint64_t *numbers = malloc(sizeof *numbers * kNumbers), *scratch = malloc(sizeof *scratch * kNumbers);
    uint64_t before = 0, after = 0, answer = 0;
    CHECK(numbers && scratch);
    for (uint64_t i = 0; i < kNumbers; i++) before += numbers[i] = mixed(i);
    struct range all = {numbers, scratch, kNumbers, 1};
    sort_thread(&all);
    for (long i = 0; i < kNumbers; i++) {
        CHECK(i == 0 || numbers[i - 1] <= numbers[i]);
        after += numbers[i];
        answer = mixed(answer ^ numbers[i]);
    }
    CHECK(before == after);
    free(numbers);
    free(scratch);
    return answer;
}

/* ---- relay: everybody waits for the token, adds its number, hands the token on ---- */

enum { kLaps = 3 };

struct runner {
    pthread_mutex_t lock;
    pthread_cond_t arrived;
    struct runner *next;
    uint64_t number, token; /* token guarded by lock; 0: none here */
};

static void hand_over(struct runner *to, uint64_t token) {
    pthread_mutex_lock(&to->lock);
    to->token = token;
    pthread_cond_signal(&to->arrived);
    pthread_mutex_unlock(&to->lock);
}

static uint64_t await_token(struct runner *r) {
    pthread_mutex_lock(&r->lock);
    while (r->token == 0) pthread_cond_wait(&r->arrived, &r->lock);
    uint64_t token = r->token;
    r->token = 0;
    pthread_mutex_unlock(&r->lock);
    return token;
}

static void *runner_thread(void *arg) {
    struct runner *r = arg;
    for (int lap = 0; lap < kLaps; lap++) hand_over(r->next, await_token(r) + r->number);
    return NULL;
}

static uint64_t relay(long crowd) {
    struct runner *r = calloc((size_t)crowd + 1, sizeof *r); /* the last one is ours */
    pthread_t *t = calloc((size_t)crowd, sizeof *t);
    CHECK(r && t);
    for (long i = 0; i <= crowd; i++) {
        CHECK(!pthread_mutex_init(&r[i].lock, NULL) && !pthread_cond_init(&r[i].arrived, NULL));
        r[i].next = &r[(i + 1) % (crowd + 1)];
        r[i].number = mixed((uint64_t)i) % 1000;
    }
    for (long i = 0; i < crowd; i++) t[i] = start(runner_thread, &r[i]);
    look_at_kernel_threads(); /* all are alive: nobody has had the token yet */
    uint64_t token = 1, expected = 1;
    for (int lap = 0; lap < kLaps; lap++) {
        hand_over(&r[0], token);
        token = await_token(&r[crowd]);
        for (long i = 0; i < crowd; i++) expected += r[i].number;
    }
    for (long i = 0; i < crowd; i++) finish(t[i]);
    CHECK(token == expected);
    free(r);
    free(t);
    return token;
}

/* ---- */

static long crowd = 10000;
static uint64_t relay_all(void) { return relay(crowd); }

static void act(const char *name, uint64_t (*play)(void)) {
    threads_made = 0;
    kernel_threads_peak = 0;
    double begun = now_ms();
    uint64_t answer = play();
    printf("act %s %ld %016llx %.1f %ld\n", name, threads_made, (unsigned long long)answer, now_ms() - begun,
           kernel_threads_peak);
    fflush(stdout);
}

int main(int argc, char **argv) {
    if (argc > 1) crowd = strtol(argv[1], NULL, 10);
    CHECK(crowd > 0);
    act("words", words);
    act("primes", primes);
    act("sort", sort);
    act("relay", relay_all);
    return 0;
}

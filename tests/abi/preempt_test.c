// preempt_test.c - loops without any call must not keep others from running, with
// more threads than processors, down to one.
//
// Invariant: every spinner ends because another thread ran and set its flag; time
//            bounds are loose.
// Callers:   run natively and under LD_PRELOAD (WEFT_PROCS=1 above all); io.h only.
#include "io.h"
#include <stdbool.h>

#define SPINNERS 6

struct spin {
    volatile int *stop;
    volatile unsigned long count;
    atomic_int running;
};

static void *spin_main(void *arg)
{
    struct spin *s = arg;
    s->running = 1;
    while (!*s->stop) s->count++;  // no call, no barrier: nothing to hook
    return NULL;
}

static void *set_flag(void *arg)
{
    *(volatile int *)arg = 1;
    return NULL;
}

// The thread that ends the spinners is made last: it runs only if they are preempted.
static void spinners_are_stopped_by_a_later_thread(void)
{
    for (int round = 0; round < 3; round++) {
        volatile int stop = 0;
        struct spin s[SPINNERS];
        pthread_t t[SPINNERS];
        memset(s, 0, sizeof s);
        for (int i = 0; i < SPINNERS; i++) {
            s[i].stop = &stop;
            t[i] = spawn(spin_main, &s[i]);
        }
        for (int i = 0; i < SPINNERS; i++) WAIT_UNTIL(s[i].running && s[i].count > 0);
        pthread_t setter = spawn(set_flag, (void *)&stop);
        join(setter);
        for (int i = 0; i < SPINNERS; i++) join(t[i]);
    }
}

// Main spins itself, on a flag that only a later thread sets.
static void main_spins_too(void)
{
    for (int round = 0; round < 3; round++) {
        volatile int flag = 0;
        pthread_t t = spawn(set_flag, (void *)&flag);
        while (!flag)
            ;
        join(t);
    }
}

struct relay {
    volatile int *turn;
    int me, n, rounds;
};

static void *relay_main(void *arg)
{
    struct relay *r = arg;
    for (int i = 0; i < r->rounds; i++) {
        int want = i * r->n + r->me;
        while (*r->turn != want)
            ;
        *r->turn = want + 1;
    }
    return NULL;
}

// A baton passed by pure spinning among more threads than processors: every pass
// may need a preemption.
static void baton_passed_by_spinning(void)
{
    enum { N = 3, ROUNDS = 4 };
    volatile int turn = 0;
    struct relay r[N];
    pthread_t t[N];
    for (int i = 0; i < N; i++) {
        r[i] = (struct relay){&turn, i, N, ROUNDS};
        t[i] = spawn(relay_main, &r[i]);
    }
    for (int i = 0; i < N; i++) join(t[i]);
    CHECK_EQ(turn, N * ROUNDS);
}

static pthread_t *with_spinners(struct spin *s, volatile int *stop)
{
    static pthread_t t[SPINNERS];
    memset(s, 0, sizeof *s * SPINNERS);
    for (int i = 0; i < SPINNERS; i++) {
        s[i].stop = stop;
        t[i] = spawn(spin_main, &s[i]);
    }
    for (int i = 0; i < SPINNERS; i++) WAIT_UNTIL(s[i].count > 0);
    return t;
}

static void end_spinners(pthread_t *t, volatile int *stop)
{
    *stop = 1;
    for (int i = 0; i < SPINNERS; i++) join(t[i]);
}

static void *ticker(void *arg)
{
    int n = 0;
    long long end = now_ns() + 300 * MS;
    (void)arg;
    while (now_ns() < end) {
        nap(MS);
        n++;
    }
    return (void *)(intptr_t)n;
}

// A 1 ms sleeper and a pair that exchanges bytes get on beside spinners.
static void interactive_threads_beside_spinners(void)
{
    volatile int stop = 0;
    struct spin s[SPINNERS];
    pthread_t *t = with_spinners(s, &stop), tick = spawn(ticker, NULL);
    CHECK((intptr_t)join(tick) >= 3);  // 300 if undisturbed; three is not starving
    progress_rounds(10);
    end_spinners(t, &stop);
}

// Of processor time, all threads together: what passes meanwhile says nothing on a busy machine.
static void until_process_used(long long ns)
{
    struct timespec t;
    for (long long end = 0, used = -1; used < end; nap(MS)) {
        MUST(clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t) == 0);
        used = t.tv_sec * SEC + t.tv_nsec;
        if (end == 0) end = used + ns;
    }
}

// What every thread got, counted: nobody starves. On one core the shares are near each other, too; on
// several the kernel may leave one of them to other programs. Very loose, as the machine is shared.
static void count_shares(bool one_core)
{
    volatile int stop = 0;
    struct spin s[SPINNERS];
    pthread_t *t = with_spinners(s, &stop);
    unsigned long base[SPINNERS], min = ~0ul, max = 0;
    for (int i = 0; i < SPINNERS; i++) base[i] = s[i].count;
    until_process_used(400 * MS);
    for (int i = 0; i < SPINNERS; i++) {
        unsigned long n = s[i].count - base[i];
        if (n < min) min = n;
        if (n > max) max = n;
    }
    end_spinners(t, &stop);
    CHECK(min > 0);
    CHECK(!one_core || max / 12 <= min);
}

static void share_one_core(void)
{
    keep_one_core();
    count_shares(true);
}

static void spinners_share(void)
{
    count_shares(false);
    CHECK_CHILD_OK(in_child(share_one_core));
}

static void *malloc_churn(void *arg)
{
    volatile int *stop = arg;
    uint64_t seed = (uint64_t)(uintptr_t)&seed;
    void *slot[64] = {0};
    long n = 0;
    while (!*stop || n < 1000) {
        unsigned i = (unsigned)(rnd(&seed) % 64);
        free(slot[i]);
        slot[i] = malloc(1 + rnd(&seed) % 3000);
        memset(slot[i], (int)i, 1);
        n++;
    }
    for (int i = 0; i < 64; i++) free(slot[i]);
    return (void *)(intptr_t)n;
}

// Preempted at arbitrary places in user code around malloc and stdio: no lock of libc
// may be taken away for good.
static void churning_libc_beside_spinners(void)
{
    volatile int stop = 0;
    struct spin s[SPINNERS];
    pthread_t *t = with_spinners(s, &stop), m[3];
    for (int i = 0; i < 3; i++) m[i] = spawn(malloc_churn, (void *)&stop);
    FILE *f = fopen("/dev/null", "w");
    long long end = now_ns() + 150 * MS;
    while (now_ns() < end) {
        for (int i = 0; i < 100; i++) MUST(fprintf(f, "%d %s %f\n", i, "text", i * 0.5) > 0);
        free(malloc(100000));
    }
    fclose(f);
    end_spinners(t, &stop);
    for (int i = 0; i < 3; i++) CHECK((intptr_t)join(m[i]) >= 1000);
}

struct computing {
    uint64_t seed, result;
    int rounds;
};

static uint64_t compute(uint64_t seed, int rounds)
{
    double d = 1.0;
    uint64_t x = seed;
    long double e = 1.0L;
    for (int i = 0; i < rounds; i++) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        d = d * 1.0000001 + (double)(x >> 60) * 1e-9;
        e = e * 0.9999999L + (long double)d * 1e-7L;
        if (x & 1) x ^= x >> 33;
    }
    uint64_t bits;
    memcpy(&bits, &d, 8);
    return x ^ bits ^ (uint64_t)(e * 1e6L);
}

static void *compute_main(void *arg)
{
    struct computing *c = arg;
    c->result = compute(c->seed, c->rounds);
    return NULL;
}

// Integer, SSE and x87 work gives the same answer however often it was interrupted.
static void interrupted_computations_give_the_same_result(void)
{
    enum { N = 8 };
    struct computing c[N];
    pthread_t t[N];
    uint64_t want[N];
    for (int i = 0; i < N; i++) {
        c[i] = (struct computing){(uint64_t)i * 77 + 1, 0, 2000000};
        want[i] = compute(c[i].seed, c[i].rounds);
    }
    for (int i = 0; i < N; i++) t[i] = spawn(compute_main, &c[i]);
    for (int i = 0; i < N; i++) {
        join(t[i]);
        CHECK(c[i].result == want[i]);
    }
}

static void *read_clocks(void *arg)
{
    struct timespec ts;
    struct timeval tv;
    while (!*(volatile int *)arg) {
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts);
        gettimeofday(&tv, NULL);
    }
    return NULL;
}

// They were asked to make way 30,000 times a second, always in libc or the vdso, where no
// thread is stopped: a sleeper beside them woke 40 to 1000 ms late.
static void loops_that_read_clocks_make_way(void)
{
    volatile int stop = 0;
    pthread_t t[2];
    for (int i = 0; i < 2; i++) t[i] = spawn(read_clocks, (void *)&stop);
    long long start = now_ns();
    for (int i = 0; i < 500; i++) usleep(1000);
    CHECK(now_ns() - start < IO_LIMIT_NS);
    stop = 1;
    for (int i = 0; i < 2; i++) join(t[i]);
}

static const struct CMUnitTest tests[] = {
    T(spinners_are_stopped_by_a_later_thread),
    T(main_spins_too),
    T(loops_that_read_clocks_make_way),
    T(baton_passed_by_spinning),
    T(interactive_threads_beside_spinners),
    T(spinners_share),
    T(churning_libc_beside_spinners),
    T(interrupted_computations_give_the_same_result),
};
IO_MAIN(tests)

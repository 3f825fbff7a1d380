// sleep_storm.c - seeded stress: a thousand threads sleep and wait with timeouts in
// every way, some woken before their time, some interrupted by signals.
// timeout: 120
//
// Invariant: no sleep is early unless interrupted, no timed wait times out early, and
//            nobody sleeps on past the end.
// Callers:   sleep_storm [seed [seconds]]; natively or under LD_PRELOAD. Prints the
//            seed first and the counts last; exit 0 when all is well.
#define IO_NO_CMOCKA
#include "../abi/io.h"
#include <semaphore.h>

#define THREADS 1000

static atomic_long sleeps, timeouts, wakes, interrupts, worst_ns;
static long long deadline;
static pthread_mutex_t m = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t c[16];
static sem_t sem;
static volatile int stop;

static void on_signal(int sig)
{
    (void)sig;
    atomic_fetch_add(&interrupts, 1);
}

static void note_late(long long late)
{
    long old = worst_ns;
    while (late > old && !atomic_compare_exchange_weak(&worst_ns, &old, late))
        ;
}

static void slept(long long from, long long ns, int full)
{
    long long took = now_ns() - from;
    if (full) {
        MUST(took >= ns);
        note_late(took - ns);
        atomic_fetch_add(&sleeps, 1);
    } else {
        atomic_fetch_add(&wakes, 1);
    }
}

static void timed_cond(uint64_t *seed, long long ns)
{
    struct timespec t;
    int real = (int)(rnd(seed) & 1);
    long long from = now_ns();
    clock_gettime(real ? CLOCK_REALTIME : CLOCK_MONOTONIC, &t);
    t = ts_of(ns_of(t) + ns);
    pthread_cond_t *cv = &c[rnd(seed) % 16];
    pthread_mutex_lock(&m);
    int rc = pthread_cond_clockwait(cv, &m, real ? CLOCK_REALTIME : CLOCK_MONOTONIC, &t);
    pthread_mutex_unlock(&m);
    MUST(rc == 0 || rc == ETIMEDOUT);
    if (rc) MUST(now_ns() - from >= (real ? ns - MS : ns));  // the wall clock may be slewed
    atomic_fetch_add(rc ? &timeouts : &wakes, 1);
}

static void timed_sem(long long ns)
{
    long long from = now_ns();
    struct timespec t = ts_of(from + ns);
    int rc = sem_clockwait(&sem, CLOCK_MONOTONIC, &t);
    if (rc == 0) {
        atomic_fetch_add(&wakes, 1);
    } else if (errno == ETIMEDOUT) {
        MUST(now_ns() - from >= ns);
        atomic_fetch_add(&timeouts, 1);
    } else {
        MUST(errno == EINTR);
    }
}

static void nap_once(uint64_t *seed)
{
    long long ns = (long long)(rnd(seed) % (1u << (10 + rnd(seed) % 15)));  // 1 us to 33 ms
    struct timespec t = ts_of(ns), abs = ts_of(now_ns() + ns);
    long long from = now_ns();
    int rc;
    switch (rnd(seed) % 7) {
    case 0:
        rc = nanosleep(&t, NULL);
        if (rc) MUST(errno == EINTR);
        slept(from, ns, rc == 0);
        break;
    case 1:
        rc = clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &abs, NULL);
        MUST(rc == 0 || rc == EINTR);
        if (rc == 0) MUST(now_ns() >= ns_of(abs));
        break;
    case 2:
        rc = poll(NULL, 0, (int)(ns / MS));
        if (rc) MUST(rc == -1 && errno == EINTR);
        slept(from, ns / MS * MS, rc == 0);
        break;
    case 3:
        rc = usleep((useconds_t)(ns / 1000));
        if (rc) MUST(errno == EINTR);
        slept(from, ns / 1000 * 1000, rc == 0);
        break;
    case 4: timed_cond(seed, ns); break;
    case 5: timed_sem(ns); break;
    default: sched_yield(); break;
    }
}

static void *sleeper(void *arg)
{
    uint64_t seed = (uint64_t)(uintptr_t)arg;
    while (!stop && now_ns() < deadline) nap_once(&seed);
    return NULL;
}

int main(int argc, char **argv)
{
    uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 0) : (uint64_t)now_ns();
    double seconds = argc > 2 ? atof(argv[2]) : 2;
    static pthread_t t[THREADS];
    printf("sleep_storm seed %llu\n", (unsigned long long)seed);
    fflush(stdout);
    set_handler(SIGUSR1, on_signal, 0);
    for (int i = 0; i < 16; i++) pthread_cond_init(&c[i], NULL);
    sem_init(&sem, 0, 0);
    deadline = now_ns() + (long long)(seconds * 1e9);
    pthread_attr_t at;
    pthread_attr_init(&at);
    pthread_attr_setstacksize(&at, 128 * 1024);
    for (int i = 0; i < THREADS; i++)
        MUST(pthread_create(&t[i], &at, sleeper, (void *)(uintptr_t)(seed * 7919 + (uint64_t)i)) == 0);
    while (now_ns() < deadline) {
        switch (rnd(&seed) % 4) {
        case 0: pthread_cond_signal(&c[rnd(&seed) % 16]); break;
        case 1: pthread_cond_broadcast(&c[rnd(&seed) % 16]); break;
        case 2: sem_post(&sem); break;
        default: pthread_kill(t[rnd(&seed) % THREADS], SIGUSR1); break;
        }
        nap((long long)(rnd(&seed) % 300) * 1000);
    }
    for (int i = 0; i < THREADS; i++) join(t[i]);
    CHECK(now_ns() < deadline + 20 * SEC);
    CHECK(sleeps > 0 && timeouts > 0);
    printf("sleeps %ld timeouts %ld wakes %ld interrupts %ld worst lateness %.3f ms\n", (long)sleeps,
           (long)timeouts, (long)wakes, (long)interrupts, (double)worst_ns / 1e6);
    return io_failures != 0;
}

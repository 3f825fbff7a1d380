// clock_test.c - CPU clocks belong to the thread that burns: CLOCK_THREAD_CPUTIME_ID,
// pthread_getcpuclockid, getrusage(RUSAGE_THREAD), the process clock and times.
//
// Invariant: a thread's clock counts what it used and nothing that others used, however
//            many threads share a kernel thread; bounds are loose for a loaded machine.
// Callers:   run natively and under LD_PRELOAD; uses io.h only.
#include "io.h"
#include <sys/times.h>

static long long clock_ns(clockid_t c)
{
    struct timespec t;
    MUST(clock_gettime(c, &t) == 0);
    return ns_of(t);
}

static long long rusage_ns(int who)
{
    struct rusage r;
    MUST(getrusage(who, &r) == 0);
    return r.ru_utime.tv_sec * SEC + r.ru_utime.tv_usec * 1000LL + r.ru_stime.tv_sec * SEC +
           r.ru_stime.tv_usec * 1000LL;
}

static void burn(long long ns)
{
    long long end = clock_ns(CLOCK_THREAD_CPUTIME_ID) + ns;
    while (clock_ns(CLOCK_THREAD_CPUTIME_ID) < end)
        for (volatile int i = 0; i < 2000; i++)
            ;
}

struct job {
    long long ns, used, rused, wall;
    struct gate started;
    atomic_int stop;
};

static void *burner(void *arg)
{
    struct job *j = arg;
    long long c0 = clock_ns(CLOCK_THREAD_CPUTIME_ID), w0 = now_ns(), r0 = rusage_ns(RUSAGE_THREAD);
    CHECK(c0 < 500 * MS);  // a new thread starts near zero
    burn(j->ns);
    j->used = clock_ns(CLOCK_THREAD_CPUTIME_ID) - c0;
    j->rused = rusage_ns(RUSAGE_THREAD) - r0;
    j->wall = now_ns() - w0;
    return NULL;
}

static void *sleeper(void *arg)
{
    struct job *j = arg;
    long long c0 = clock_ns(CLOCK_THREAD_CPUTIME_ID), r0 = rusage_ns(RUSAGE_THREAD);
    gate_post(&j->started);
    for (int i = 0; i < 30; i++) nap(MS);
    j->used = clock_ns(CLOCK_THREAD_CPUTIME_ID) - c0;
    j->rused = rusage_ns(RUSAGE_THREAD) - r0;
    return NULL;
}

// Sleepers beside burners: what the ones use is not put down to the others.
static void sleepers_use_little_burners_what_they_burn(void)
{
    struct job s[4], b[4];
    pthread_t st[4], bt[4];
    long long p0 = clock_ns(CLOCK_PROCESS_CPUTIME_ID), sum = 0;
    for (int i = 0; i < 4; i++) {
        s[i] = (struct job){.started = GATE_INIT};
        b[i] = (struct job){.ns = 25 * MS, .started = GATE_INIT};
        st[i] = spawn(sleeper, &s[i]);
        bt[i] = spawn(burner, &b[i]);
    }
    for (int i = 0; i < 4; i++) {
        join(st[i]);
        join(bt[i]);
        CHECK(s[i].used >= 0 && s[i].used < 25 * MS);
        CHECK(s[i].rused >= 0 && s[i].rused < 25 * MS);
        CHECK(b[i].used >= 25 * MS && b[i].used < 60 * MS);
        CHECK(b[i].wall >= b[i].used - MS);  // one thread is never faster than the wall
        CHECK(b[i].rused >= b[i].used - 15 * MS && b[i].rused <= b[i].used + 15 * MS);
        sum += b[i].used + s[i].used;
    }
    long long process = clock_ns(CLOCK_PROCESS_CPUTIME_ID) - p0;
    CHECK(process >= sum - 5 * MS);
    CHECK(process < sum + 300 * MS);
}

static void *burns_until_stop(void *arg)
{
    struct job *j = arg;
    gate_post(&j->started);
    while (!j->stop)
        ;
    return NULL;
}

static void *waits_until_stop(void *arg)
{
    struct job *j = arg;
    gate_post(&j->started);
    gate_wait(&j->started, 2);
    return NULL;
}

// Another thread's clock, read from outside: advances while it burns, stands while it
// is parked.
static void another_threads_clock(void)
{
    struct job b = {.started = GATE_INIT}, w = {.started = GATE_INIT};
    clockid_t bc, wc, own;
    pthread_t bt = spawn(burns_until_stop, &b), wt = spawn(waits_until_stop, &w);
    gate_wait(&b.started, 1);
    gate_wait(&w.started, 1);
    MUST(pthread_getcpuclockid(bt, &bc) == 0);
    MUST(pthread_getcpuclockid(wt, &wc) == 0);
    MUST(pthread_getcpuclockid(pthread_self(), &own) == 0);
    long long w0 = clock_ns(wc), b0 = clock_ns(bc), last = b0;
    for (long long end = now_ns() + IO_LIMIT_NS; last < b0 + 30 * MS;) {
        MUST(now_ns() < end);
        nap(MS);
        long long now = clock_ns(bc);
        CHECK(now >= last);
        last = now;
    }
    CHECK(clock_ns(wc) - w0 < 15 * MS);
    long long a = clock_ns(own), c = clock_ns(CLOCK_THREAD_CPUTIME_ID), d = clock_ns(own);
    CHECK(a <= c + 2 * MS && c <= d + 2 * MS);
    struct timespec res;
    CHECK_EQ(clock_getres(bc, &res), 0);
    b.stop = 1;
    gate_post(&w.started);
    join(bt);
    join(wt);
}

// A thread's clock never runs backwards, whatever it does in between.
static void *monotonic(void *arg)
{
    long long last = clock_ns(CLOCK_THREAD_CPUTIME_ID), lastr = rusage_ns(RUSAGE_THREAD);
    int p[2];
    char c;
    make_pipe(p);
    for (int i = 0; i < 300; i++) {
        switch (i % 5) {
        case 0: sched_yield(); break;
        case 1: nap(20000); break;
        case 2: MUST(write(p[1], "x", 1) == 1 && read(p[0], &c, 1) == 1); break;
        case 3: for (volatile int k = 0; k < 20000; k++); break;
        default: poll(NULL, 0, 0); break;
        }
        long long now = clock_ns(CLOCK_THREAD_CPUTIME_ID), r = rusage_ns(RUSAGE_THREAD);
        CHECK(now >= last);
        CHECK(r >= lastr);
        last = now;
        lastr = r;
    }
    close2(p);
    return arg;
}

static void clocks_never_run_backwards(void)
{
    pthread_t t[8];
    for (int i = 0; i < 8; i++) t[i] = spawn(monotonic, NULL);
    monotonic(NULL);
    for (int i = 0; i < 8; i++) join(t[i]);
}

static void process_clocks_cover_all_threads(void)
{
    struct job b[3];
    pthread_t t[3];
    struct tms t0, t1;
    MUST(times(&t0) != (clock_t)-1);
    clock_t c0 = clock();
    long long r0 = rusage_ns(RUSAGE_SELF), p0 = clock_ns(CLOCK_PROCESS_CPUTIME_ID);
    for (int i = 0; i < 3; i++) {
        b[i] = (struct job){.ns = 40 * MS, .started = GATE_INIT};
        t[i] = spawn(burner, &b[i]);
    }
    for (int i = 0; i < 3; i++) join(t[i]);
    CHECK(clock_ns(CLOCK_PROCESS_CPUTIME_ID) - p0 >= 118 * MS);
    CHECK(rusage_ns(RUSAGE_SELF) - r0 >= 100 * MS);
    CHECK((long long)(clock() - c0) * (SEC / CLOCKS_PER_SEC) >= 118 * MS);
    MUST(times(&t1) != (clock_t)-1);
    CHECK(t1.tms_utime + t1.tms_stime - t0.tms_utime - t0.tms_stime >= sysconf(_SC_CLK_TCK) / 20);
    clockid_t pc;
    MUST(clock_getcpuclockid(getpid(), &pc) == 0);
    CHECK(clock_ns(pc) >= clock_ns(CLOCK_PROCESS_CPUTIME_ID) - SEC);
}

// A fresh thread must not inherit the account of the finished one whose place it takes.
static void accounts_are_not_inherited(void)
{
    for (int i = 0; i < 4; i++) {
        struct job b = {.ns = 20 * MS, .started = GATE_INIT}, s = {.started = GATE_INIT};
        join(spawn(burner, &b));
        CHECK(b.used >= 20 * MS && b.used < 60 * MS);
        join(spawn(sleeper, &s));
        CHECK(s.used < 15 * MS);
    }
}

static void *reports_own_clock(void *arg)
{
    *(long long *)arg = clock_ns(CLOCK_THREAD_CPUTIME_ID);
    return NULL;
}

static void new_threads_start_near_zero(void)
{
    burn(60 * MS);  // the creator's use is the creator's
    for (int i = 0; i < 20; i++) {
        long long ns = -1;
        join(spawn(reports_own_clock, &ns));
        CHECK(ns >= 0 && ns < 20 * MS);
    }
    CHECK(clock_ns(CLOCK_THREAD_CPUTIME_ID) >= 60 * MS);
}

static const struct CMUnitTest tests[] = {
    T(sleepers_use_little_burners_what_they_burn),
    T(another_threads_clock),
    T(clocks_never_run_backwards),
    T(process_clocks_cover_all_threads),
    T(accounts_are_not_inherited),
    T(new_threads_start_near_zero),
};
IO_MAIN(tests)

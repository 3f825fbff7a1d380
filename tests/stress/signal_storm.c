// signal_storm.c - seeded stress: directed and process-wide real-time signals to two hundred
// threads in every state, counted exactly.
// timeout: 120
//
// Invariant: each directed signal is handled once, in its thread, with its value; each
//            process signal is handled once, by a thread that does not block it.
// Callers:   signal_storm [seed [seconds [count]]]; natively or under LD_PRELOAD. Prints the
//            seed first and the counts last; exit 0 when all is well. With a count (or
//            TEST_SIGNALS=count) it sends so many of each kind instead of sending for
//            so long: the full test is 100000.
#define IO_NO_CMOCKA
#include "../abi/io.h"
#include <semaphore.h>
#include <sys/epoll.h>

#define THREADS 200
#define DIRECTED (SIGRTMIN + 1)
#define PROCESS (SIGRTMIN + 2)

enum state { COMPUTE, READ, SLEEP, COND, SEM, POLL, YIELD, MUTEX, WAITINFO, EPOLL, RWLOCK, STDIO,
             SUSPEND, BOUND, STATES };

struct target {
    int id, state, blocks_process;
    pthread_t self;
    int p[2], ep;
    FILE *in;
    sem_t sem;
    uint64_t seed;
    atomic_long directed, process, sum, wrong;
    long sent, sent_sum;
    atomic_int up, ended;
};

static struct target target[THREADS];
static __thread struct target *me;
static atomic_long process_total, process_sum, strays;
static pthread_mutex_t shared = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
static pthread_rwlock_t rwlock = PTHREAD_RWLOCK_INITIALIZER;
static volatile int stop;

static void on_directed(int sig, siginfo_t *si, void *uc)
{
    int e = errno;
    (void)sig;
    (void)uc;
    struct target *t = me;
    if (!t) {
        atomic_fetch_add(&strays, 1);
        return;
    }
    int v = si->si_value.sival_int;
    if (v % THREADS != t->id || !pthread_equal(pthread_self(), t->self) || si->si_code != SI_QUEUE)
        atomic_fetch_add(&t->wrong, 1);
    atomic_fetch_add(&t->sum, v / THREADS);
    atomic_fetch_add(&t->directed, 1);
    errno = e;
}

static void on_process(int sig, siginfo_t *si, void *uc)
{
    int e = errno;
    (void)sig;
    (void)uc;
    struct target *t = me;
    if (t) {
        atomic_fetch_add(&t->process, 1);
        if (t->blocks_process) atomic_fetch_add(&t->wrong, 1);
    } else {
        atomic_fetch_add(&strays, 1);
    }
    atomic_fetch_add(&process_sum, si->si_value.sival_int);
    atomic_fetch_add(&process_total, 1);
    errno = e;
}

// A round of waiting in each state's own way. errno other than EINTR is a failure.
static void wait_once(struct target *t)
{
    char c;
    struct pollfd pf = {.fd = t->p[0], .events = POLLIN};
    struct epoll_event ev;
    struct timespec soon;
    sigset_t none;
    switch (t->state) {
    case COMPUTE:
        for (volatile int i = 0; i < 20000; i++)
            ;
        break;
    case READ:
        if (read(t->p[0], &c, 1) != 1) MUST(errno == EINTR);
        break;
    case SLEEP:
        soon = ts_of((long long)(rnd(&t->seed) % 3000000));
        if (nanosleep(&soon, NULL)) MUST(errno == EINTR);
        break;
    case COND:
        pthread_mutex_lock(&shared);
        if (!stop) MUST(pthread_cond_wait(&cond, &shared) == 0);
        pthread_mutex_unlock(&shared);
        break;
    case SEM:
        if (sem_wait(&t->sem)) MUST(errno == EINTR);
        break;
    case POLL:
        if (poll(&pf, 1, -1) < 0) MUST(errno == EINTR);
        else if (pf.revents) MUST(read(t->p[0], &c, 1) == 1);
        break;
    case EPOLL:
        if (epoll_wait(t->ep, &ev, 1, -1) < 0) MUST(errno == EINTR);
        else MUST(read(t->p[0], &c, 1) == 1);
        break;
    case STDIO:  // blocks inside libc
        if (getc(t->in) == EOF) {
            MUST(ferror(t->in) && errno == EINTR);
            clearerr(t->in);
        }
        break;
    case BOUND: nap(100000); break;
    case SUSPEND:  // ends with any signal; at the end main sends some of its own
        pthread_sigmask(SIG_SETMASK, NULL, &none);
        MUST(sigsuspend(&none) == -1 && errno == EINTR);
        break;
    case RWLOCK:
        if (rnd(&t->seed) % 8 == 0) MUST(pthread_rwlock_wrlock(&rwlock) == 0);
        else MUST(pthread_rwlock_rdlock(&rwlock) == 0);
        if (rnd(&t->seed) % 64 == 0) nap(20000);
        pthread_rwlock_unlock(&rwlock);
        sched_yield();
        break;
    case YIELD: sched_yield(); break;
    case MUTEX:
        MUST(pthread_mutex_lock(&shared) == 0);
        if (rnd(&t->seed) % 64 == 0) nap(20000);
        pthread_mutex_unlock(&shared);
        sched_yield();
        break;
    default:
        sigemptyset(&none);
        sigaddset(&none, SIGUSR2);
        soon = ts_of((long long)(rnd(&t->seed) % 3000000));
        if (sigtimedwait(&none, NULL, &soon) < 0) MUST(errno == EINTR || errno == EAGAIN);
        break;
    }
}

// Sleeps until somebody does something: not with its signals blocked.
static int waits_for_an_event(enum state s)
{
    return s == READ || s == SEM || s == POLL || s == COND || s == EPOLL || s == STDIO || s == SUSPEND;
}

static void *target_main(void *arg)
{
    struct target *t = arg;
    sigset_t s;
    t->self = pthread_self();
    me = t;
    if (t->state == BOUND) {  // a thread of the kernel's from here on
        cpu_set_t one;
        CPU_ZERO(&one);
        CPU_SET(sched_getcpu(), &one);
        MUST(sched_setaffinity(0, sizeof one, &one) == 0);
    }
    mask_signal(SIG_BLOCK, SIGUSR2);
    mask_signal(SIG_UNBLOCK, DIRECTED);
    if (!t->blocks_process) mask_signal(SIG_UNBLOCK, PROCESS);
    t->up = 1;
    while (!stop) {
        if (rnd(&t->seed) % 4 == 0) {  // blocked for a while: they must queue
            mask_signal(SIG_BLOCK, DIRECTED);
            long before = t->directed;
            wait_once(waits_for_an_event(t->state) ? &(struct target){.state = YIELD} : t);
            pthread_sigmask(SIG_SETMASK, NULL, &s);
            if (!sigismember(&s, DIRECTED) || t->directed != before) atomic_fetch_add(&t->wrong, 1);
            mask_signal(SIG_UNBLOCK, DIRECTED);
        } else {
            wait_once(t);
        }
    }
    t->ended = 1;
    return NULL;
}

static void wake(struct target *t)
{
    if (t->state == READ || t->state == POLL || t->state == EPOLL || t->state == STDIO) MUST(write(t->p[1], "w", 1) == 1);
    if (t->state == SEM) sem_post(&t->sem);
    if (t->state == COND) {
        pthread_mutex_lock(&shared);
        pthread_cond_broadcast(&cond);
        pthread_mutex_unlock(&shared);
    }
}

// Real-time signals may be refused when the queue is full: wait, do not lose count.
static void queue_to(struct target *t, int v)
{
    union sigval val = {.sival_int = v};
    int rc;
    while ((rc = t ? pthread_sigqueue(t->self, DIRECTED, val)
                   : sigqueue(getpid(), PROCESS, val) ? errno : 0) == EAGAIN)
        sched_yield();
    MUST(rc == 0);
}

static void direct_to(struct target *t, int v)
{
    queue_to(t, v * THREADS + t->id);
    t->sent++;
    t->sent_sum += v;
}

// For a time, or (count) until so many of each kind are sent; returns the process's.
static long storm(uint64_t *seed, long count, long long deadline, long *sum)
{
    long sent = 0, directed = 0;
    while (count ? sent < count || directed < count : now_ns() < deadline) {
        for (int k = 0; k < 64; k++) {
            struct target *t = &target[rnd(seed) % THREADS];
            int v = (int)(rnd(seed) % 1000);
            int process = rnd(seed) % 3 == 0;
            if (count && sent == count) process = 0;
            if (count && directed == count) process = 1;
            if (process && (!count || sent < count)) {
                queue_to(NULL, v);
                *sum += v;
                sent++;
            } else if (!process) {
                direct_to(t, v);
                directed++;
            }
            if (rnd(seed) % 16 == 0) wake(&target[rnd(seed) % THREADS]);
        }
        if (rnd(seed) % 4 == 0) nap((long long)(rnd(seed) % 200) * 1000);
    }
    return sent;
}

static long handled(void)
{
    long n = process_total;
    for (int i = 0; i < THREADS; i++) n += target[i].directed;
    return n;
}

// Until as many are handled, for as long as it goes on.
static void wait_for_handlers(long want)
{
    long long seen_at = now_ns();
    for (long before = -1, n; (n = handled()) < want; before = n) {
        if (n != before) seen_at = now_ns();
        if (now_ns() - seen_at > IO_LIMIT_NS) {
            fprintf(stderr, "signal_storm: %ld of %ld handled, and no more come\n", n, want);
            _exit(1);
        }
        nap(MS);
    }
}

static void start(struct target *t, int id, uint64_t seed)
{
    struct epoll_event ev = {.events = EPOLLIN};
    t->id = id;
    t->state = id % STATES;
    if (t->state == COMPUTE && id >= 4 * STATES) t->state = SLEEP;  // the cores are for all
    t->blocks_process = id % 3 == 0;
    t->seed = seed + (uint64_t)id;
    MUST(pipe(t->p) == 0);
    MUST((t->in = fdopen(t->p[0], "r")) != NULL);
    setvbuf(t->in, NULL, _IONBF, 0);
    MUST((t->ep = epoll_create1(0)) >= 0);
    MUST(epoll_ctl(t->ep, EPOLL_CTL_ADD, t->p[0], &ev) == 0);
    sem_init(&t->sem, 0, 0);
    spawn(target_main, t);
}

int main(int argc, char **argv)
{
    uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 0) : (uint64_t)now_ns();
    double seconds = argc > 2 ? atof(argv[2]) : 2;
    const char *counted = argc > 3 ? argv[3] : getenv("TEST_SIGNALS");
    long count = counted ? atol(counted) : 0;
    printf("signal_storm seed %llu\n", (unsigned long long)seed);
    fflush(stdout);
    set_action(DIRECTED, on_directed, seed & 1 ? SA_RESTART : 0);
    set_action(PROCESS, on_process, seed & 2 ? SA_RESTART : 0);
    mask_signal(SIG_BLOCK, DIRECTED);
    mask_signal(SIG_BLOCK, PROCESS);
    for (int i = 0; i < THREADS; i++) start(&target[i], i, seed);
    for (int i = 0; i < THREADS; i++) WAIT_UNTIL(target[i].up);
    long want_sum = 0, sent = storm(&seed, count, now_ns() + (long long)(seconds * 1e9), &want_sum);
    long directed = 0;
    for (int i = 0; i < THREADS; i++) directed += target[i].sent;
    wait_for_handlers(sent + directed);
    settle();
    stop = 1;
    for (int i = 0; i < THREADS; i++) wake(&target[i]);
    for (int i = 0; i < THREADS; i++) {
        struct target *t = &target[i];
        for (; t->state == SUSPEND && !t->ended; directed++) {
            direct_to(t, 1);
            nap(MS);
        }
        join(t->self);
        CHECK_EQ(t->directed, t->sent);
        CHECK_EQ(t->sum, t->sent_sum);
        CHECK_EQ(t->wrong, 0);
    }
    CHECK_EQ(process_total, sent);
    CHECK_EQ(process_sum, want_sum);
    CHECK_EQ(strays, 0);
    printf("directed %ld process %ld strays %ld\n", directed, sent, (long)strays);
    return io_failures != 0;
}

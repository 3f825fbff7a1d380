// signal_storm.c - seeded stress: directed and process-wide real-time signals to fifty
// threads in every state, counted exactly.
// timeout: 120
//
// Invariant: each directed signal is handled once, in its thread, with its value; each
//            process signal is handled once, by a thread that does not block it.
// Callers:   signal_storm [seed [seconds]]; natively or under LD_PRELOAD. Prints the
//            seed first and the counts last; exit 0 when all is well.
#define IO_NO_CMOCKA
#include "../abi/io.h"
#include <semaphore.h>

#define THREADS 50
#define DIRECTED (SIGRTMIN + 1)
#define PROCESS (SIGRTMIN + 2)

enum state { COMPUTE, READ, SLEEP, COND, SEM, POLL, YIELD, MUTEX, WAITINFO, STATES };

struct target {
    int id, state, blocks_process;
    pthread_t self;
    int p[2];
    sem_t sem;
    uint64_t seed;
    atomic_long directed, process, sum, wrong;
    long sent, sent_sum;
    atomic_int up;
};

static struct target target[THREADS];
static __thread struct target *me;
static atomic_long process_total, process_sum, strays;
static pthread_mutex_t shared = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
static volatile int stop;
static long long deadline;

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

static void *target_main(void *arg)
{
    struct target *t = arg;
    sigset_t s;
    t->self = pthread_self();
    me = t;
    mask_signal(SIG_BLOCK, SIGUSR2);
    mask_signal(SIG_UNBLOCK, DIRECTED);
    if (!t->blocks_process) mask_signal(SIG_UNBLOCK, PROCESS);
    t->up = 1;
    while (!stop) {
        if (rnd(&t->seed) % 4 == 0) {  // blocked for a while: they must queue
            mask_signal(SIG_BLOCK, DIRECTED);
            long before = t->directed;
            wait_once(t->state == READ || t->state == SEM || t->state == POLL || t->state == COND
                          ? &(struct target){.state = YIELD} : t);
            pthread_sigmask(SIG_SETMASK, NULL, &s);
            if (!sigismember(&s, DIRECTED) || t->directed != before) atomic_fetch_add(&t->wrong, 1);
            mask_signal(SIG_UNBLOCK, DIRECTED);
        } else {
            wait_once(t);
        }
    }
    return NULL;
}

static void wake(struct target *t)
{
    if (t->state == READ || t->state == POLL) MUST(write(t->p[1], "w", 1) == 1);
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

static long storm(uint64_t *seed, long *sum)
{
    long sent = 0;
    while (now_ns() < deadline) {
        for (int k = 0; k < 64; k++) {
            struct target *t = &target[rnd(seed) % THREADS];
            int v = (int)(rnd(seed) % 1000);
            if (rnd(seed) % 3 == 0) {
                queue_to(NULL, v);
                *sum += v;
                sent++;
            } else {
                queue_to(t, v * THREADS + t->id);
                t->sent++;
                t->sent_sum += v;
            }
            if (rnd(seed) % 16 == 0) wake(&target[rnd(seed) % THREADS]);
        }
        if (rnd(seed) % 4 == 0) nap((long long)(rnd(seed) % 200) * 1000);
    }
    return sent;
}

int main(int argc, char **argv)
{
    uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 0) : (uint64_t)now_ns();
    double seconds = argc > 2 ? atof(argv[2]) : 2;
    printf("signal_storm seed %llu\n", (unsigned long long)seed);
    fflush(stdout);
    set_action(DIRECTED, on_directed, seed & 1 ? SA_RESTART : 0);
    set_action(PROCESS, on_process, seed & 2 ? SA_RESTART : 0);
    mask_signal(SIG_BLOCK, DIRECTED);
    mask_signal(SIG_BLOCK, PROCESS);
    pthread_t t[THREADS];
    for (int i = 0; i < THREADS; i++) {
        target[i].id = i;
        target[i].state = i % STATES;
        target[i].blocks_process = i % 3 == 0;
        target[i].seed = seed + (uint64_t)i;
        MUST(pipe2(target[i].p, 0) == 0);
        sem_init(&target[i].sem, 0, 0);
        t[i] = spawn(target_main, &target[i]);
    }
    for (int i = 0; i < THREADS; i++) WAIT_UNTIL(target[i].up);
    deadline = now_ns() + (long long)(seconds * 1e9);
    long want_sum = 0, sent = storm(&seed, &want_sum), directed = 0;
    WAIT_UNTIL(process_total >= sent);
    for (int i = 0; i < THREADS; i++) WAIT_UNTIL(target[i].directed >= target[i].sent);
    settle();
    stop = 1;
    for (int i = 0; i < THREADS; i++) wake(&target[i]);
    for (int i = 0; i < THREADS; i++) {
        join(t[i]);
        CHECK_EQ(target[i].directed, target[i].sent);
        CHECK_EQ(target[i].sum, target[i].sent_sum);
        CHECK_EQ(target[i].wrong, 0);
        directed += target[i].directed;
    }
    CHECK_EQ(process_total, sent);
    CHECK_EQ(process_sum, want_sum);
    CHECK_EQ(strays, 0);
    printf("directed %ld process %ld strays %ld\n", directed, sent, (long)strays);
    return io_failures != 0;
}

// bound_handler_test.c - signal handlers on a thread that is bound to a CPU, hence the kernel's own, and on
// an ordinary one: a timer's, in the middle of what the thread asks of the library.
//
// The handler asks for what a lock guards, which the thread may just hold. An ordinary thread's handlers
// wait for it to leave the scheduler; a bound one's were let in, and it waited for itself.
#include "io.h"

#include <sched.h>
#include <semaphore.h>
#include <sys/time.h>

static cpu_set_t first_cpu;
static sem_t sem;
static pthread_t waiting;

static void *takes_for_ever(void *arg)
{
    while (sem_wait(&sem) == 0 || errno == EINTR) {}
    return arg;
}

// Of a thread that has been bound and does not know yet: it waits.
static void look(void)
{
    cpu_set_t s;
    CHECK_EQ(pthread_getaffinity_np(waiting, sizeof s, &s), 0);
}
static void *nothing(void *arg) { return arg; }
static void start_one(void) { join(spawn(nothing, NULL)); }
static void start_one_detached(void)
{
    pthread_t t = spawn(nothing, NULL);
    CHECK_EQ(pthread_detach(t), 0);
}
static void cancel_one(void)
{
    pthread_t t = spawn(nothing, NULL);
    pthread_cancel(t);
    pthread_join(t, NULL);
}
static void set_a_handler(void)
{
    struct sigaction a = {.sa_handler = SIG_IGN};
    CHECK_EQ(sigaction(SIGUSR2, &a, NULL), 0);
}
static void post(void) { CHECK_EQ(sem_post(&sem), 0); }

static const struct pair {
    const char *name;
    void (*thread_does)(void), (*handler_does)(void);
    int times;
} pairs[] = {
    {"affinity", look, look, 100000},
    {"create and post", start_one, post, 3000},
    {"create detached and post", start_one_detached, post, 3000},
    {"cancel and post", cancel_one, post, 3000},
    {"sigaction", set_a_handler, set_a_handler, 30000},
};
static const struct pair *now;

static void handler(int sig)
{
    (void)sig;
    int saved = errno;
    now->handler_does();
    errno = saved;
}

static void *does(void *cpus)
{
    if (cpus != NULL) MUST(sched_setaffinity(0, sizeof(cpu_set_t), cpus) == 0);
    mask_signal(SIG_UNBLOCK, SIGALRM);
    for (int i = 0; i < now->times; i++) now->thread_does();
    mask_signal(SIG_BLOCK, SIGALRM);
    return NULL;
}

static void what_the_thread_holds_the_handler_may_ask_for(void)
{
    cpu_set_t mine;
    MUST(sched_getaffinity(0, sizeof mine, &mine) == 0);
    CPU_ZERO(&first_cpu);
    for (int i = 0; CPU_COUNT(&first_cpu) == 0; i++)
        if (CPU_ISSET(i, &mine)) CPU_SET(i, &first_cpu);
    struct sigaction a = {.sa_handler = handler, .sa_flags = SA_RESTART}, old;
    MUST(sigaction(SIGALRM, &a, &old) == 0);
    mask_signal(SIG_BLOCK, SIGALRM);
    MUST(sem_init(&sem, 0, 0) == 0);
    waiting = spawn(takes_for_ever, NULL);
    settle();
    CHECK_EQ(pthread_setaffinity_np(waiting, sizeof first_cpu, &first_cpu), 0);
    struct itimerval often = {{0, 50}, {0, 50}}, never = {{0, 0}, {0, 0}};
    for (now = pairs; now < pairs + COUNT(pairs); now++) {
        io_note(now->name, 0);
        MUST(setitimer(ITIMER_REAL, &often, NULL) == 0);
        join(spawn(does, NULL));
        join(spawn(does, &first_cpu));
        MUST(setitimer(ITIMER_REAL, &never, NULL) == 0);
    }
    signal(SIGALRM, SIG_IGN);  // none is left over
    sigaction(SIGALRM, &old, NULL);
    pthread_cancel(waiting);
    pthread_join(waiting, NULL);
}

static const struct CMUnitTest tests[] = {
    T(what_the_thread_holds_the_handler_may_ask_for),
};
IO_MAIN(tests)

// fork_in_handler_test.c - a handler that forks and returns, in both processes.
//
// Each: a thread waits or computes, the handler that interrupts it forks, and the child goes on
// where the thread was: out of the handler, back into the call or out of it as SA_RESTART says,
// and on to threads of its own. The child crashed on its way out of the handler, since it had no
// scheduler and what stands above the handler is in the middle of one.
//
// Invariant: parent and child do the same; the child's exit status is what it found.
// Callers:   run natively and under LD_PRELOAD; uses io.h only.
#include "io.h"
#include <semaphore.h>

static __thread volatile pid_t forked;  // by the handler: the child, or 0 in it
static __thread volatile int handled;
static int pipe_in[2];
static atomic_int waiting;

static void forks(int sig)
{
    (void)sig;
    int e = errno;
    forked = fork();
    MUST(forked >= 0);
    if (forked == 0) {  // cmocka's handlers of faults would run the tests that are left
        signal(SIGSEGV, SIG_DFL);
        signal(SIGBUS, SIG_DFL);
        signal(SIGABRT, SIG_DFL);
        alarm(IO_LIMIT_NS / SEC);
        atomic_store(&io_failures, 0);
    }
    handled++;
    errno = e;
}

static void *nothing(void *arg) { return arg; }

static void counts(int sig)
{
    (void)sig;
    handled++;
}

// In the child: it is a process like others, and ends with 33 if all was well.
static void end_if_child(void)
{
    if (forked != 0) return;
    for (int i = 0; i < 3; i++) {
        pthread_t t = spawn(nothing, &pipe_in);
        void *back = NULL;
        CHECK_EQ(pthread_join(t, &back), 0);
        CHECK(back == &pipe_in);
    }
    int before = handled;
    struct sigaction a = {.sa_handler = counts};
    CHECK_EQ(sigaction(SIGUSR1, &a, NULL), 0);
    CHECK_EQ(raise(SIGUSR1), 0);
    CHECK_EQ(handled, before + 1);
    CHECK_FAILS(waitpid(-1, NULL, WNOHANG), ECHILD);
    _exit(atomic_load(&io_failures) == 0 ? 33 : 34);
}

static void child_was_well(void)
{
    MUST(forked > 0);
    int st = reap(forked);
    CHECK(WIFEXITED(st));
    CHECK_EQ(WIFEXITED(st) ? WEXITSTATUS(st) : -WTERMSIG(st), 33);
    forked = -1;
}

static void *in_raise(void *unused)
{
    for (int i = 0; i < 5; i++) {
        CHECK_EQ(raise(SIGUSR1), 0);
        CHECK_EQ(handled, i + 1);
        end_if_child();
        child_was_well();
    }
    return unused;
}

static void *in_sigmask(void *unused)
{
    mask_signal(SIG_BLOCK, SIGUSR1);
    CHECK_EQ(raise(SIGUSR1), 0);
    CHECK_EQ(handled, 0);
    mask_signal(SIG_UNBLOCK, SIGUSR1);
    CHECK_EQ(handled, 1);
    end_if_child();
    child_was_well();
    return unused;
}

static void *computing(void *unused)
{
    atomic_store(&waiting, 1);
    while (handled == 0)
        ;
    end_if_child();
    child_was_well();
    return unused;
}

// Whether the signal comes before the wait or ends it is open: so is how the wait ends.
#define ENDED(call, err)                          \
    do {                                          \
        int r_ = (call);                          \
        CHECK(r_ == 0 || errno == EINTR || (err != 0 && errno == err)); \
        while (handled == 0)                      \
            ;                                     \
        end_if_child();                           \
        child_was_well();                         \
    } while (0)

static void *in_nanosleep(void *unused)
{
    atomic_store(&waiting, 1);
    struct timespec t = ts_of(50 * MS);
    ENDED(nanosleep(&t, NULL), 0);
    return unused;
}

static void *in_poll(void *unused)
{
    struct pollfd p = {.fd = pipe_in[0], .events = POLLIN};
    atomic_store(&waiting, 1);
    ENDED(poll(&p, 1, 50), 0);
    return unused;
}

static void *in_sem(void *unused)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    t = ts_of(ns_of(t) + 50 * MS);
    sem_t sem;
    sem_init(&sem, 0, 0);
    atomic_store(&waiting, 1);
    ENDED(sem_timedwait(&sem, &t), ETIMEDOUT);
    return unused;
}

static void *in_timed_cond(void *unused)
{
    pthread_mutex_t m = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t c = PTHREAD_COND_INITIALIZER;
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    t = ts_of(ns_of(t) + 50 * MS);
    pthread_mutex_lock(&m);
    atomic_store(&waiting, 1);
    int r;
    while ((r = pthread_cond_timedwait(&c, &m, &t)) == 0)
        ;
    CHECK_EQ(r, ETIMEDOUT);
    CHECK_EQ(pthread_mutex_unlock(&m), 0);
    while (handled == 0)
        ;
    end_if_child();
    child_was_well();
    return unused;
}

// Parent and child go on waiting, each for a byte of its own.
static void *in_read(void *unused)
{
    char c = 0;
    atomic_store(&waiting, 1);
    CHECK_EQ(read(pipe_in[0], &c, 1), 1);
    CHECK_EQ(c, 'x');
    CHECK_EQ(handled, 1);
    end_if_child();
    child_was_well();
    return unused;
}

static void *in_waitpid(void *unused)
{
    pid_t pid = fork();
    MUST(pid >= 0);
    if (pid == 0) {
        char c;
        _exit(read(pipe_in[0], &c, 1) == 1 ? 5 : 6);
    }
    int st = 0;
    atomic_store(&waiting, 1);
    pid_t got = waitpid(pid, &st, 0);
    if (forked == 0) CHECK(got == -1 || got == pid);  // not its child, if it came that far before
    else CHECK_EQ(got, pid);
    CHECK_EQ(handled, 1);
    end_if_child();
    CHECK_EQ(WEXITSTATUS(st), 5);
    child_was_well();
    return unused;
}

static void *in_sigsuspend(void *unused)
{
    sigset_t none;
    mask_signal(SIG_BLOCK, SIGUSR1);
    sigemptyset(&none);
    atomic_store(&waiting, 1);
    CHECK_FAILS(sigsuspend(&none), EINTR);
    CHECK_EQ(handled, 1);
    sigset_t now;
    pthread_sigmask(SIG_SETMASK, NULL, &now);
    CHECK(sigismember(&now, SIGUSR1));
    mask_signal(SIG_UNBLOCK, SIGUSR1);
    end_if_child();
    child_was_well();
    return unused;
}

struct Case {
    void *(*body)(void *);
    int flags;
    int bytes;  // written into the pipe once the handler has run
};

static pthread_t target;

// Sends the one signal once the other waits, and then what ends the wait for good.
static void *sender(void *arg)
{
    const struct Case *c = arg;
    WAIT_UNTIL(atomic_load(&waiting) != 0);
    settle();
    MUST(pthread_kill(target, SIGUSR1) == 0);
    for (int i = 0; i < c->bytes; i++) MUST(write(pipe_in[1], "x", 1) == 1);
    return NULL;
}

static void *run_case(void *arg)
{
    const struct Case *c = arg;
    struct sigaction a = {.sa_handler = forks, .sa_flags = c->flags}, old;
    MUST(sigaction(SIGUSR1, &a, &old) == 0);
    handled = 0;
    forked = -1;
    waiting = 0;
    make_pipe(pipe_in);  // a byte may have come before the signal: that one is not left to the next
    target = pthread_self();
    pthread_t s = 0;
    int sent = c->body != in_raise && c->body != in_sigmask;
    if (sent) s = spawn(sender, arg);
    c->body(NULL);
    if (sent) join(s);
    close2(pipe_in);
    sigaction(SIGUSR1, &old, NULL);
    return NULL;
}

static void run_everywhere(void *(*body)(void *), int flags, int bytes)
{
    struct Case c = {body, flags, bytes};
    for (int i = 0; i < 5; i++) {
        run_case(&c);  // main
        join(spawn(run_case, &c));
    }
}

static void out_of_raise(void) { run_everywhere(in_raise, 0, 0); }
static void as_the_mask_opens(void) { run_everywhere(in_sigmask, 0, 0); }
static void while_it_computes(void) { run_everywhere(computing, 0, 0); }
static void out_of_a_sleep(void) { run_everywhere(in_nanosleep, 0, 0); }
static void out_of_poll(void) { run_everywhere(in_poll, SA_RESTART, 0); }
static void out_of_a_timed_semaphore(void) { run_everywhere(in_sem, 0, 0); }
static void back_into_a_timed_cond(void) { run_everywhere(in_timed_cond, 0, 0); }
static void back_into_read(void) { run_everywhere(in_read, SA_RESTART, 2); }
static void back_into_waitpid(void) { run_everywhere(in_waitpid, SA_RESTART, 1); }
static void out_of_sigsuspend(void) { run_everywhere(in_sigsuspend, 0, 0); }

static const struct CMUnitTest tests[] = {
    T(out_of_raise),     T(as_the_mask_opens),       T(while_it_computes),
    T(out_of_a_sleep),   T(out_of_poll),             T(out_of_a_timed_semaphore),
    T(back_into_read),   T(back_into_a_timed_cond),  T(back_into_waitpid),
    T(out_of_sigsuspend),
};

IO_MAIN(tests)

// signal_pass_test.c - a signal for the process, on its way to a thread that then blocks it, is another's.
//
// weft gives what arrives where no handler can run to a thread that accepts it; if that blocked it just
// then, it stayed pending there, until it was unblocked again, while others accepted it. Natively it is
// taken by one of those.
#include "io.h"
#include <semaphore.h>

enum { kRounds = 3000 };

static atomic_int handled;
static sem_t taken;

static void take(int sig)
{
    (void)sig;
    atomic_fetch_add(&handled, 1);
    sem_post(&taken);
}

static void *accept_all(void *arg)
{
    sem_t *end = arg;
    while (sem_wait(end) != 0) MUST(errno == EINTR);
    return NULL;
}

// One signal for each byte.
static void send_from_outside(int asked, pid_t to)
{
    char c;
    while (read(asked, &c, 1) == 1) MUST(kill(to, SIGUSR1) == 0);
    _exit(0);
}

// main, whom the kernel and weft ask first, opens and closes; no round ends before its signal is handled, and
// main blocks it meanwhile. Seldom right between (with 20 us more between choosing a thread and queueing there
// it hung each time).
static void blocked_as_it_comes(void)
{
    sem_t end;
    MUST(sem_init(&taken, 0, 0) == 0 && sem_init(&end, 0, 0) == 0);
    struct sigaction sa = {.sa_handler = take, .sa_flags = SA_RESTART};
    MUST(sigaction(SIGUSR1, &sa, NULL) == 0);
    int ask[2];
    MUST(pipe(ask) == 0);
    pid_t pid = fork();
    MUST(pid >= 0);
    if (pid == 0) {
        close(ask[1]);
        send_from_outside(ask[0], getppid());
    }
    pthread_t t = spawn(accept_all, &end);
    for (int i = 1; i <= kRounds; i++) {
        MUST(write(ask[1], "s", 1) == 1);
        for (volatile int spin = 0; spin < i % 100 * 600; spin++) continue;
        for (int flips = 0; flips < 30; flips++) {
            mask_signal(SIG_UNBLOCK, SIGUSR1);
            mask_signal(SIG_BLOCK, SIGUSR1);
        }
        mask_signal(SIG_BLOCK, SIGUSR1);
        while (sem_wait(&taken) != 0) MUST(errno == EINTR);
    }
    CHECK_EQ(handled, kRounds);
    close(ask[1]);
    CHECK_CHILD_OK(reap(pid));
    sem_post(&end);
    join(t);
    mask_signal(SIG_UNBLOCK, SIGUSR1);
}

static atomic_int inside;

static void wait_for_the_other(int sig)
{
    (void)sig;
    inside = 1;
    WAIT_UNTIL(handled == 1);
}

static void *send_both(void *arg)
{
    (void)arg;
    MUST(kill(getpid(), SIGUSR1) == 0 && kill(getpid(), SIGUSR2) == 0);
    sigset_t s;  // main does not run yet where there is one P
    do MUST(sigpending(&s) == 0);
    while (sigismember(&s, SIGUSR1) || sigismember(&s, SIGUSR2));
    return NULL;
}

// Two for main; the first one's handler blocks the second.
static void blocked_by_a_handler(void)
{
    sem_t end;
    handled = inside = 0;
    MUST(sem_init(&taken, 0, 0) == 0 && sem_init(&end, 0, 0) == 0);
    struct sigaction first = {.sa_handler = wait_for_the_other, .sa_flags = SA_RESTART};
    sigaddset(&first.sa_mask, SIGUSR2);
    struct sigaction second = {.sa_handler = take, .sa_flags = SA_RESTART};
    MUST(sigaction(SIGUSR1, &first, NULL) == 0 && sigaction(SIGUSR2, &second, NULL) == 0);
    mask_signal(SIG_BLOCK, SIGUSR1);
    pthread_t other = spawn(accept_all, &end);
    mask_signal(SIG_BLOCK, SIGUSR2);
    pthread_t sender = spawn(send_both, NULL);
    mask_signal(SIG_UNBLOCK, SIGUSR1);
    mask_signal(SIG_UNBLOCK, SIGUSR2);
    join(sender);
    CHECK_EQ(handled, 1);
    CHECK_EQ(inside, 1);
    sem_post(&end);
    join(other);
}

static const struct CMUnitTest tests[] = {
    T(blocked_as_it_comes),
    T(blocked_by_a_handler),
};
IO_MAIN(tests)

// second_names_test.c - libc's functions under their other public names.
//
// Behaviours: a handler set by __sigaction runs in the thread that pthread_kill names, __sigsuspend
// waits, a key of __pthread_key_create has its destructor, __gettimeofday and _IO_popen work.
// Erlang has a sigaction of its own, which calls the next __sigaction. That one was libc's: weft knew of
// no handler, gave the signal to the sender, and each crash dump hung.
// Callers:   run natively and under LD_PRELOAD; uses io.h only.
#include "io.h"
#include <dlfcn.h>

static void *named(const char *name)
{
    void *p = dlsym(RTLD_DEFAULT, name);
    MUST(p != NULL);
    return p;
}

static atomic_long ran_in;
static atomic_int ready;
static int gate[2];

static void note_thread(int sig)
{
    (void)sig;
    atomic_store(&ran_in, (long)pthread_self());
}

static int set_by_second_name(int sig, void (*handler)(int), struct sigaction *old)
{
    int (*set)(int, const struct sigaction *, struct sigaction *) =
        (int (*)(int, const struct sigaction *, struct sigaction *))named("__sigaction");
    struct sigaction a = {.sa_handler = handler, .sa_flags = SA_RESTART};
    return set(sig, &a, old);
}

static void *reads(void *unused)
{
    char c;
    atomic_store(&ready, 1);
    CHECK_EQ(read(gate[0], &c, 1), 1);
    return unused;
}

static void handler_runs_in_the_thread_that_is_named(void)
{
    struct sigaction old, now;
    make_pipe(gate);
    pthread_t t = spawn(reads, NULL);  // weft is there before the handler
    WAIT_UNTIL(atomic_load(&ready));
    CHECK_EQ(set_by_second_name(SIGRTMIN + 1, note_thread, &old), 0);
    CHECK_EQ(sigaction(SIGRTMIN + 1, NULL, &now), 0);
    CHECK(now.sa_handler == note_thread);
    for (int i = 0; i < 20; i++) {
        atomic_store(&ran_in, 0);
        CHECK_EQ(pthread_kill(t, SIGRTMIN + 1), 0);
        WAIT_UNTIL(atomic_load(&ran_in) != 0);
        CHECK_EQ(atomic_load(&ran_in), (long)t);
    }
    MUST(write(gate[1], "", 1) == 1);
    join(t);
    CHECK_EQ(sigaction(SIGRTMIN + 1, &old, NULL), 0);
    close2(gate);
}

static void *suspends(void *unused)
{
    int (*suspend)(const sigset_t *) = (int (*)(const sigset_t *))named("__sigsuspend");
    sigset_t none;
    sigemptyset(&none);
    atomic_store(&ready, 1);
    CHECK_FAILS(suspend(&none), EINTR);
    CHECK_EQ(atomic_load(&ran_in), (long)pthread_self());
    return unused;
}

static void sigsuspend_lets_the_signal_in(void)
{
    struct sigaction old = set_handler(SIGUSR1, note_thread, 0);
    mask_signal(SIG_BLOCK, SIGUSR1);  // so does the thread
    atomic_store(&ready, 0);
    atomic_store(&ran_in, 0);
    pthread_t t = spawn(suspends, NULL);
    WAIT_UNTIL(atomic_load(&ready));
    CHECK_EQ(pthread_kill(t, SIGUSR1), 0);
    join(t);
    mask_signal(SIG_UNBLOCK, SIGUSR1);
    sigaction(SIGUSR1, &old, NULL);
}

static pthread_key_t key;
static int destroyed;

static void destroy(void *value) { destroyed += value == &key; }

static void *sets_value(void *unused)
{
    CHECK_EQ(pthread_setspecific(key, &key), 0);
    return unused;
}

static void keys_have_their_destructor(void)
{
    int (*make)(pthread_key_t *, void (*)(void *)) =
        (int (*)(pthread_key_t *, void (*)(void *)))named("__pthread_key_create");
    MUST(make(&key, destroy) == 0);
    for (int i = 1; i <= 3; i++) {
        join(spawn(sets_value, NULL));
        CHECK_EQ(destroyed, i);
    }
    CHECK_EQ(pthread_key_delete(key), 0);
}

static void time_and_pipes(void)
{
    int (*tell)(struct timeval *, void *) = (int (*)(struct timeval *, void *))named("__gettimeofday");
    FILE *(*open_pipe)(const char *, const char *) =
        (FILE * (*)(const char *, const char *)) named("_IO_popen");
    struct timeval a, b;
    CHECK_EQ(gettimeofday(&a, NULL), 0);
    CHECK_EQ(tell(&b, NULL), 0);
    CHECK(b.tv_sec - a.tv_sec <= IO_LIMIT_NS / SEC);
    FILE *f = open_pipe("echo heard", "r");
    MUST(f != NULL);
    char line[20] = "";
    CHECK(fgets(line, sizeof line, f) != NULL);
    CHECK(strcmp(line, "heard\n") == 0);
    CHECK_EQ(pclose(f), 0);
}

static const struct CMUnitTest tests[] = {
    T(handler_runs_in_the_thread_that_is_named),
    T(sigsuspend_lets_the_signal_in),
    T(keys_have_their_destructor),
    T(time_and_pipes),
};

IO_MAIN(tests)

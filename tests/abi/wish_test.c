// wish_test.c - a thread whose affinity another one sets while it computes: it carries the wish out
// as its next call begins, whatever that is, and waits there as the kernel thread it then is.
//
// Failed: the call went on as one of weft's threads. Its kernel thread ran others meanwhile, with
// the affinity that was meant for it, and it came back on another. poll(NULL, 0, ms), flock and
// what has a timeout crashed; sigsuspend never saw its signal.
#include "io.h"

#include <dirent.h>
#include <sched.h>
#include <semaphore.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/select.h>
#include <sys/wait.h>

// Of a kernel thread; 0: the one that runs this.
static int cpus_of(long tid)
{
    cpu_set_t s;
    long r;  // not by a function of libc's, which answers for the thread
    CPU_ZERO(&s);
    __asm__ volatile("syscall" : "=a"(r) : "0"(SYS_sched_getaffinity), "D"(tid), "S"(sizeof s), "d"(&s)
                     : "rcx", "r11", "memory");
    return r < 0 ? -1 : CPU_COUNT(&s);
}

static int cpus(void)
{
    return cpus_of(0);
}

enum { kMostBound = 64 };

// The kernel threads with one processor, of which those of threads that have ended may be there yet.
static int bound(long *tids)
{
    int n = 0;
    DIR *d = opendir("/proc/self/task");
    MUST(d != NULL);
    for (struct dirent *e; (e = readdir(d)) != NULL && n < kMostBound;) {
        long tid = atol(e->d_name);
        if (tid != 0 && cpus_of(tid) == 1) tids[n++] = tid;
    }
    closedir(d);
    return n;
}

static int another_bound(const long *before, int n)
{
    long now[kMostBound];
    int found = 0;
    for (int i = bound(now); i-- > 0;) {
        int known = 0;
        for (int k = 0; k < n; k++) known |= now[i] == before[k];
        found |= !known;
    }
    return found;
}

static int ends[2], listener, port, lock_fd;
static sem_t sem;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
static int cond_met;
static pid_t child;

static void byte_comes(pthread_t t)
{
    (void)t;
    MUST(write(ends[1], "b", 1) == 1);
}
static void nothing_comes(pthread_t t)
{
    (void)t;
}

static void in_read(void)
{
    char c;
    CHECK_EQ(read(ends[0], &c, 1), 1);
}

static void in_timed_recv(void)
{
    struct timeval most = tv_of(IO_LIMIT_NS);
    char c;
    MUST(setsockopt(ends[0], SOL_SOCKET, SO_RCVTIMEO, &most, sizeof most) == 0);
    CHECK_EQ(recv(ends[0], &c, 1, 0), 1);
}

static void in_poll(void)
{
    struct pollfd p = {ends[0], POLLIN, 0};
    CHECK_EQ(poll(&p, 1, -1), 1);
}

static void in_select(void)
{
    fd_set s;
    FD_ZERO(&s);
    FD_SET(ends[0], &s);
    CHECK_EQ(select(ends[0] + 1, &s, NULL, NULL, NULL), 1);
}

static void in_epoll_wait(void)
{
    struct epoll_event e = {.events = EPOLLIN};
    int ep = epoll_create1(0);
    MUST(ep >= 0 && epoll_ctl(ep, EPOLL_CTL_ADD, ends[0], &e) == 0);
    CHECK_EQ(epoll_wait(ep, &e, 1, -1), 1);
    close(ep);
}

static void in_empty_poll(void)
{
    CHECK_EQ(poll(NULL, 0, 30), 0);
}

static void in_nanosleep(void)
{
    long long from = now_ns();
    nap(30 * MS);
    CHECK(now_ns() - from >= 30 * MS);
}

static void in_accept(void)
{
    int fd = accept(listener, NULL, NULL);
    CHECK(fd >= 0);
    close(fd);
}
static void peer_connects(pthread_t t)
{
    (void)t;
    close(tcp_connect(port));
}

static void in_flock(void)
{
    int fd = open("/proc/self/exe", O_RDONLY);
    MUST(fd >= 0);
    CHECK_EQ(flock(fd, LOCK_EX), 0);
    close(fd);
}
static void flock_ends(pthread_t t)
{
    (void)t;
    MUST(flock(lock_fd, LOCK_UN) == 0);
}

static void in_sem_wait(void)
{
    CHECK_EQ(sem_wait(&sem), 0);
}
static void sem_is_posted(pthread_t t)
{
    (void)t;
    sem_post(&sem);
}

static void in_cond_wait(void)
{
    pthread_mutex_lock(&mutex);
    while (!cond_met) pthread_cond_wait(&cond, &mutex);
    pthread_mutex_unlock(&mutex);
}
static void cond_is_met(pthread_t t)
{
    (void)t;
    pthread_mutex_lock(&mutex);
    cond_met = 1;
    pthread_cond_signal(&cond);
    pthread_mutex_unlock(&mutex);
}

static void in_waitpid(void)
{
    CHECK_EQ(waitpid(child, NULL, 0), child);
}

static atomic_int handled;
static void on_usr1(int sig)
{
    (void)sig;
    handled++;
}
static void in_sigsuspend(void)
{
    sigset_t none;
    sigemptyset(&none);
    CHECK_FAILS(sigsuspend(&none), EINTR);
    CHECK_EQ(handled, 1);
}
static void signal_comes(pthread_t t)
{
    MUST(pthread_kill(t, SIGUSR1) == 0);
}

struct kind {
    const char *name;
    void (*call)(void);
    void (*come)(pthread_t);
};
static const struct kind kinds[] = {
    {"read", in_read, byte_comes},
    {"recv with a timeout", in_timed_recv, byte_comes},
    {"poll", in_poll, byte_comes},
    {"select", in_select, byte_comes},
    {"epoll_wait", in_epoll_wait, byte_comes},
    {"poll of nothing", in_empty_poll, nothing_comes},
    {"nanosleep", in_nanosleep, nothing_comes},
    {"accept", in_accept, peer_connects},
    {"flock", in_flock, flock_ends},
    {"sem_wait", in_sem_wait, sem_is_posted},
    {"cond_wait", in_cond_wait, cond_is_met},
    {"waitpid", in_waitpid, byte_comes},
    {"sigsuspend", in_sigsuspend, signal_comes},
};

static atomic_int up, go_on;
static void *computes_then_calls(void *arg)
{
    const struct kind *k = arg;
    mask_signal(SIG_BLOCK, SIGUSR1);
    up = 1;
    while (!go_on) {
    }
    for (int i = 0; i < 2; i++) {
        if (i == 0) k->call();
        else nap(MS);
        int ok = cpus() == 1;
        CHECK(ok);
        if (!ok) io_say(__FILE__, __LINE__, k->name, "not on its kernel thread");
    }
    return NULL;
}

static void child_ends_by_a_byte(void)
{
    child = fork();
    MUST(child >= 0);
    if (child != 0) return;
    char c;
    close(ends[1]);
    _exit(read(ends[0], &c, 1) != 1);
}

static void the_wish_holds_whatever_the_call(void)
{
    int all = cpus();
    struct sigaction old = set_handler(SIGUSR1, on_usr1, 0);
    listener = tcp_listen(&port, 4);
    sem_init(&sem, 0, 0);
    lock_fd = open("/proc/self/exe", O_RDONLY);
    MUST(lock_fd >= 0 && flock(lock_fd, LOCK_EX) == 0);
    cpu_set_t mine, one;
    MUST(sched_getaffinity(0, sizeof mine, &mine) == 0);
    int first = 0;
    while (!CPU_ISSET(first, &mine)) first++;
    CPU_ZERO(&one);
    CPU_SET(first, &one);
    for (size_t i = 0; i < COUNT(kinds); i++) {
        make_pair(ends);
        if (kinds[i].call == in_waitpid) child_ends_by_a_byte();
        up = go_on = 0;
        long before[kMostBound];
        int n_before = bound(before);
        pthread_t t = spawn(computes_then_calls, (void *)&kinds[i]);
        WAIT_UNTIL(up);
        CHECK_EQ(pthread_setaffinity_np(t, sizeof one, &one), 0);
        go_on = 1;
        // Not sooner: a call that need not wait is none of weft's. (All have one processor: no matter.)
        if (kinds[i].come != nothing_comes && all > 1) WAIT_UNTIL(another_bound(before, n_before));
        settle();
        kinds[i].come(t);
        join(t);
        io_note(kinds[i].name, 0);
        CHECK_EQ(cpus(), all);  // it fell upon nobody else
        close2(ends);
    }
    close(lock_fd);
    close(listener);
    sigaction(SIGUSR1, &old, NULL);
}

static void *binds_itself(void *arg)
{
    MUST(sched_setaffinity(0, sizeof(cpu_set_t), arg) == 0);
    return arg;
}

// Its kernel thread ends with it, but the process's first one. Where the next thread had its slot before that
// thread had looked whether it was bound, it went on as one of weft's, on one processor: beside other
// programs that happened to 3 threads in 100 with eight Ps, and whom they ran next could not be bound.
static void a_bound_thread_takes_its_kernel_thread_along(void)
{
    cpu_set_t mine, one;
    long tids[kMostBound];
    if (cpus() == 1) return;
    MUST(sched_getaffinity(0, sizeof mine, &mine) == 0);
    int first = 0;
    while (!CPU_ISSET(first, &mine)) first++;
    CPU_ZERO(&one);
    CPU_SET(first, &one);
    for (int i = 0; i < 500; i++) join(spawn(binds_itself, &one));
    WAIT_UNTIL(bound(tids) <= 1);
}

static const struct CMUnitTest tests[] = {
    T(the_wish_holds_whatever_the_call),
    T(a_bound_thread_takes_its_kernel_thread_along),
};
IO_MAIN(tests)

// seccomp_test.c - a program under a seccomp filter, set by itself or by who started it, that knows the
// program's own system calls.
//
// The scheduler makes others: where they are deadly or refused, threads are native. Where the filter
// lets them through nothing changes; what the scheduler can do without may be refused.
#include "io.h"

#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <semaphore.h>
#include <stddef.h>
#include <sys/prctl.h>

// Answers `answer` to those that a threaded program does not make by itself; pass: to all others.
static int set_filter(uint32_t answer, const int *calls, int n)
{
    struct sock_filter code[40];
    int at = 0;
    code[at++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    for (int i = 0; i < n; i++) {
        code[at++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)calls[i], 0, 1);
        code[at++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, answer);
    }
    code[at++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    struct sock_fprog program = {(unsigned short)at, code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) return -1;
    return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}

static const int of_a_scheduler[] = {SYS_rt_tgsigqueueinfo, SYS_rt_sigqueueinfo, SYS_epoll_create1, SYS_eventfd2,
                                     SYS_membarrier, SYS_process_madvise};
static const int optional[] = {SYS_membarrier, SYS_process_madvise, 441 /*epoll_pwait2*/};

static sem_t up, down;
static int fds[2];
static void *works(void *arg)
{
    char c;
    for (int i = 0; i < 200; i++) {
        sem_post(&up);
        sem_wait(&down);
        if (read(fds[0], &c, 1) != 1) return NULL;
    }
    for (volatile int i = 0; i < 30000000; i++) {}  // for longer than a slice
    return arg;
}

static int use_threads(void)
{
    pthread_t t[3];
    MUST(pipe(fds) == 0 && sem_init(&up, 0, 0) == 0 && sem_init(&down, 0, 0) == 0);
    for (int i = 0; i < 3; i++) t[i] = spawn(works, &up);
    for (int i = 0; i < 600; i++) {
        sem_wait(&up);
        sem_post(&down);
        MUST(write(fds[1], "x", 1) == 1);
    }
    for (int i = 0; i < 3; i++) {
        void *back;
        if (pthread_join(t[i], &back) != 0 || back != &up) return 1;
    }
    return 0;
}

static const struct {
    const char *name;
    uint32_t answer;
    const int *calls;
    int n;
} filters[] = {
    {"lets all through", SECCOMP_RET_KILL_PROCESS, NULL, 0},
    {"kills", SECCOMP_RET_KILL_PROCESS, of_a_scheduler, COUNT(of_a_scheduler)},
    {"traps", SECCOMP_RET_TRAP, of_a_scheduler, COUNT(of_a_scheduler)},
    {"refuses", SECCOMP_RET_ERRNO | EPERM, of_a_scheduler, COUNT(of_a_scheduler)},
    {"knows not", SECCOMP_RET_ERRNO | ENOSYS, of_a_scheduler, COUNT(of_a_scheduler)},
    {"refuses what is optional", SECCOMP_RET_ERRNO | EPERM, optional, COUNT(optional)},
};

static void under_a_filter(void)
{
    fflush(NULL);
    for (size_t i = 0; i < COUNT(filters); i++)
        for (int inherited = 0; inherited < 2; inherited++) {
            pid_t pid = fork();
            MUST(pid >= 0);
            if (pid == 0) {
                if (set_filter(filters[i].answer, filters[i].calls, filters[i].n) != 0) _exit(77);
                if (inherited) execl("/proc/self/exe", "seccomp_test", "threads", (char *)NULL);
                _exit(use_threads());
            }
            int st = reap(pid);
            if (WIFEXITED(st) && WEXITSTATUS(st) == 77) skip();  // no filters here
            if (st != 0) dprintf(2, "filter that %s, inherited %d\n", filters[i].name, inherited);
            CHECK_EQ(st, 0);
        }
}

static const struct CMUnitTest tests[] = {T(under_a_filter)};

int main(int argc, char **argv)
{
    (void)argv;
    if (argc > 1) return use_threads();
    return cmocka_run_group_tests(tests, NULL, NULL);
}

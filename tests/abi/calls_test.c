// calls_test.c - family: cost. How many system calls of some kinds a program's calls come to.
//
// What is cheap must not turn dear unseen: without the shortcut asked for here everything else still
// holds, and no other test fails. Counted from outside: a child runs with a seccomp filter that
// has its parent asked about each such call, and the parent counts and lets it go on. A bound is far from
// what is expected on either side: a kernel thread that loses its core in a call costs some dear ones.
#include "io.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/mman.h>
#include <sys/prctl.h>

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif

enum { kAnyArg = -1, kMostCalls = 3, kThirdArg = 2, kSecondArg = 1 };

struct counted {
    int nr;
    int arg;           // only where this argument
    unsigned is;       // is this
    long n;
};

#define LOAD_FIELD(f) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (unsigned)offsetof(struct seccomp_data, f))
#define RETURN(what) BPF_STMT(BPF_RET | BPF_K, (what))

// Installs the filter in this process; its parent's end, or -1.
static int filter_calls(const struct counted *c, int n)
{
    struct sock_filter code[8 * kMostCalls];
    int at = 0;
    for (int i = 0; i < n; i++) {
        struct sock_filter one[] = {
            LOAD_FIELD(nr),
            BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)c[i].nr, 0, 3),
            LOAD_FIELD(args[c[i].arg == kAnyArg ? 0 : c[i].arg]),
            BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, c[i].is, 0, 1),
            RETURN(SECCOMP_RET_USER_NOTIF),
        };
        if (c[i].arg == kAnyArg) one[3] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_IMM, 0);
        memcpy(code + at, one, sizeof one);
        at += (int)COUNT(one);
    }
    code[at++] = (struct sock_filter)RETURN(SECCOMP_RET_ALLOW);
    struct sock_fprog program = {(unsigned short)at, code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) return -1;
    return (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &program);
}

static void send_fd(int sock, int fd)
{
    char byte = 0;
    struct iovec iov = {&byte, 1};
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE(sizeof(int))];
    } control = {.head = {CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS}};
    memcpy(CMSG_DATA(&control.head), &fd, sizeof fd);
    struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control,
                       .msg_controllen = fd < 0 ? 0 : sizeof control.room};
    MUST(sendmsg(sock, &m, 0) == 1);
}

static int receive_fd(int sock)
{
    char byte;
    struct iovec iov = {&byte, 1};
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE(sizeof(int))];
    } control;
    struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control,
                       .msg_controllen = sizeof control.room};
    MUST(recvmsg(sock, &m, 0) == 1);
    int fd = -1;
    if (m.msg_controllen != 0) memcpy(&fd, CMSG_DATA(&control.head), sizeof fd);
    return fd;
}

static void count_one(const struct seccomp_data *d, struct counted *c, int n)
{
    for (int i = 0; i < n; i++)
        if (c[i].nr == d->nr && (c[i].arg == kAnyArg || (unsigned)d->args[c[i].arg] == c[i].is)) {
            c[i].n++;
            return;
        }
}

// Runs `routine` on a thread of a child. Skips the test where the kernel has no such filters.
static void count_calls(void *(*routine)(void *), struct counted *c, int n)
{
    int sock[2];
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, sock) == 0);
    pid_t pid = fork();
    MUST(pid >= 0);
    if (pid == 0) {
        int fd = filter_calls(c, n);
        send_fd(sock[1], fd);
        close(fd);
        if (fd >= 0) join(spawn(routine, NULL));
        _exit(0);
    }
    int fd = receive_fd(sock[0]);
    struct pollfd p = {.fd = fd, .events = POLLIN};
    while (fd >= 0 && poll(&p, 1, -1) == 1 && (p.revents & POLLIN) != 0) {
        struct seccomp_notif asked;
        memset(&asked, 0, sizeof asked);
        if (ioctl(fd, SECCOMP_IOCTL_NOTIF_RECV, &asked) != 0) continue;  // interrupted since
        count_one(&asked.data, c, n);
        struct seccomp_notif_resp go_on = {.id = asked.id, .flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE};
        ioctl(fd, SECCOMP_IOCTL_NOTIF_SEND, &go_on);
    }
    CHECK_CHILD_OK(reap(pid));
    close2(sock);
    if (fd < 0) skip();
    close(fd);
}

enum { kMessageBytes = 64, kBurst = 800, kBursts = 50, kMessages = kBurst * kBursts };

static void *write_and_read(void *arg)
{
    int p[2];
    char buf[kMessageBytes] = {0};
    MUST(pipe(p) == 0);
    for (int i = 0; i < kBursts; i++) {
        for (int k = 0; k < kBurst; k++) MUST(write(p[1], buf, sizeof buf) == sizeof buf);
        for (int k = 0; k < kBurst; k++) MUST(read(p[0], buf, sizeof buf) == sizeof buf);
    }
    close2(p);
    return arg;
}

// A pipe for which nobody waits: what surely has room is written, up to four fifths of the pipe, and what is
// there read, by the plain calls.
static void a_pipes_calls_are_plain(void)
{
    struct counted c[] = {{SYS_pwritev2, kAnyArg, 0, 0},
                          {SYS_preadv2, kAnyArg, 0, 0},
                          {SYS_fcntl, kSecondArg, F_GETPIPE_SZ, 0}};
    count_calls(write_and_read, c, COUNT(c));
    print_message("pwritev2 %ld, preadv2 %ld, F_GETPIPE_SZ %ld\n", c[0].n, c[1].n, c[2].n);
    CHECK(c[0].n < kMessages / 4);
    CHECK(c[1].n < kMessages / 4);
    CHECK(c[2].n < kMessages / 100);
}

enum { kThreads = 1000 };

static void *wait_at_gate(void *arg)
{
    gate_wait(arg, 1);
    return arg;
}

static void *start_many(void *arg)
{
    static pthread_t t[kThreads];
    struct gate g = GATE_INIT;
    for (int i = 0; i < kThreads; i++) t[i] = spawn(wait_at_gate, &g);
    gate_post(&g);
    for (int i = 0; i < kThreads; i++) join(t[i]);
    return arg;
}

static int guards_come_in_batches(void)
{
    void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct iovec one = {page, 4096};
    long n = syscall(SYS_process_madvise, -10000 /*PIDFD_SELF*/, &one, 1, MADV_GUARD_INSTALL, 0);
    munmap(page, 4096);
    return n == 4096;
}

// The guards of many threads' stacks are set many by one call.
static void guards_are_set_many_at_once(void)
{
    if (!guards_come_in_batches()) skip();
    struct counted c[] = {{SYS_madvise, kThirdArg, MADV_GUARD_INSTALL, 0}, {SYS_mprotect, kThirdArg, PROT_NONE, 0}};
    count_calls(start_many, c, COUNT(c));
    print_message("madvise %ld, mprotect %ld\n", c[0].n, c[1].n);
    CHECK(c[0].n < kThreads / 4);
    CHECK(c[1].n < kThreads / 4);
}

static const struct CMUnitTest tests[] = {
    T(a_pipes_calls_are_plain),
    T(guards_are_set_many_at_once),
};
IO_MAIN(tests)

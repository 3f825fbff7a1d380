// signal_eintr_test.c - signal(7)'s two lists, call by call: which blocking calls a
// handler interrupts always, and which go on under SA_RESTART.
//
// Invariant: without SA_RESTART a signal is sent until the call reports; with it,
//            each handler is counted, then the call is released and must succeed.
// Callers:   run natively and under LD_PRELOAD; uses io.h only.
#include "io.h"
#include <semaphore.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/select.h>
#include <sys/sem.h>

#define SIG SIGUSR1

struct scene {
    int p[2], pair[2], listener, port, ep, msg, semset, file, file2;
    pid_t child;
    char fifo[TEMP_ROOM];
    sem_t sem;
    pthread_mutex_t m;
    pthread_cond_t c;
    pthread_t sub;
    int flag;
};

static struct timespec far_away(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    t.tv_sec += 1000;
    return t;
}

static char byte;
static char big[1 << 20];

static long do_read(struct scene *s) { return read(s->p[0], &byte, 1); }
static long do_write(struct scene *s) { return write(s->p[1], "w", 1); }
static long do_recv(struct scene *s) { return recv(s->pair[0], &byte, 1, 0); }
static long do_recvmsg(struct scene *s)
{
    struct iovec v = {&byte, 1};
    struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1};
    return recvmsg(s->pair[0], &m, 0);
}
static long do_send(struct scene *s) { return send(s->pair[1], "w", 1, 0); }
static long do_accept(struct scene *s)
{
    int fd = accept(s->listener, NULL, NULL);
    if (fd >= 0) close(fd);
    return fd;
}
static long do_waitpid(struct scene *s) { return waitpid(s->child, NULL, 0); }
static long do_wait4(struct scene *s) { return wait4(s->child, NULL, 0, NULL); }
static long do_waitid(struct scene *s)
{
    siginfo_t si;
    return waitid(P_PID, (id_t)s->child, &si, WEXITED);
}
static long do_open_fifo(struct scene *s)
{
    int fd = open(s->fifo, O_RDONLY);
    if (fd >= 0) close(fd);
    return fd;
}
static long do_flock(struct scene *s) { return flock(s->file2, LOCK_EX); }
static long do_setlkw(struct scene *s)
{
    struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    return fcntl(s->file2, F_OFD_SETLKW, &l);
}
static long do_sem_wait(struct scene *s) { return sem_wait(&s->sem); }
static long do_sem_timedwait(struct scene *s)
{
    struct timespec t = far_away();
    return sem_timedwait(&s->sem, &t);
}
static long do_poll(struct scene *s)
{
    struct pollfd p = {.fd = s->p[0], .events = POLLIN};
    return poll(&p, 1, -1);
}
static long do_select(struct scene *s)
{
    fd_set set;
    FD_ZERO(&set);
    FD_SET(s->p[0], &set);
    return select(s->p[0] + 1, &set, NULL, NULL, NULL);
}
static long do_epoll(struct scene *s)
{
    struct epoll_event e;
    return epoll_wait(s->ep, &e, 1, -1);
}
static long do_nanosleep(struct scene *s)
{
    (void)s;
    struct timespec t = {1000, 0};
    return nanosleep(&t, NULL);
}
static long do_msgrcv(struct scene *s)
{
    struct { long type; char b[4]; } m;
    return msgrcv(s->msg, &m, 4, 0, 0);
}
static long do_semop(struct scene *s)
{
    struct sembuf b = {0, -1, 0};
    return semop(s->semset, &b, 1);
}
static long do_semtimedop(struct scene *s)
{
    struct sembuf b = {0, -1, 0};
    struct timespec t = {1000, 0};
    return semtimedop(s->semset, &b, 1, &t);
}
static long do_pause(struct scene *s)
{
    (void)s;
    return pause();
}

static void *sub_connect(void *arg)
{
    close(tcp_connect(((struct scene *)arg)->port));
    return NULL;
}

static void let_read(struct scene *s) { MUST(write(s->p[1], "r", 1) == 1); }
static void let_write(struct scene *s) { read_full(s->p[0], big, 65536); }
static void let_recv(struct scene *s) { MUST(write(s->pair[1], "r", 1) == 1); }
static void let_send(struct scene *s)
{
    while (recv(s->pair[0], big, sizeof big, MSG_DONTWAIT) > 0)
        ;
}
static void let_accept(struct scene *s) { join(spawn(sub_connect, s)); }
static void let_wait(struct scene *s) { MUST(kill(s->child, SIGKILL) == 0); }
static void let_fifo(struct scene *s)
{
    int fd = open(s->fifo, O_WRONLY);
    MUST(fd >= 0);
    close(fd);
}
static void let_flock(struct scene *s) { MUST(flock(s->file, LOCK_UN) == 0); }
static void let_setlkw(struct scene *s)
{
    struct flock l = {.l_type = F_UNLCK, .l_whence = SEEK_SET};
    MUST(fcntl(s->file, F_OFD_SETLK, &l) == 0);
}
static void let_sem(struct scene *s) { sem_post(&s->sem); }

struct entry {
    const char *name;
    long (*call)(struct scene *);
    void (*release)(struct scene *);  // NULL: never restarted
    int prepare;
};
enum { PLAIN, FULL_PIPE, FULL_PAIR, CHILD, FLOCKED, LOCKED };

static const struct entry table[] = {
    {"read", do_read, let_read, PLAIN},
    {"write", do_write, let_write, FULL_PIPE},
    {"recv", do_recv, let_recv, PLAIN},
    {"recvmsg", do_recvmsg, let_recv, PLAIN},
    {"send", do_send, let_send, FULL_PAIR},
    {"accept", do_accept, let_accept, PLAIN},
    {"waitpid", do_waitpid, let_wait, CHILD},
    {"wait4", do_wait4, let_wait, CHILD},
    {"waitid", do_waitid, let_wait, CHILD},
    {"open fifo", do_open_fifo, let_fifo, PLAIN},
    {"flock", do_flock, let_flock, FLOCKED},
    {"F_OFD_SETLKW", do_setlkw, let_setlkw, LOCKED},
    {"sem_wait", do_sem_wait, let_sem, PLAIN},
    // signal(7) lists it as restarted, but a futex wait with a deadline is not.
    {"sem_timedwait", do_sem_timedwait, NULL, PLAIN},
    {"poll", do_poll, NULL, PLAIN},
    {"select", do_select, NULL, PLAIN},
    {"epoll_wait", do_epoll, NULL, PLAIN},
    {"nanosleep", do_nanosleep, NULL, PLAIN},
    {"msgrcv", do_msgrcv, NULL, PLAIN},
    {"semop", do_semop, NULL, PLAIN},
    {"semtimedop", do_semtimedop, NULL, PLAIN},
    {"pause", do_pause, NULL, PLAIN},
};

static void scene_open(struct scene *s, int prepare)
{
    static atomic_int unique;
    memset(s, 0, sizeof *s);
    make_pipe(s->p);
    make_pair(s->pair);
    s->listener = tcp_listen(&s->port, 4);
    s->ep = epoll_create1(0);
    s->msg = msgget(IPC_PRIVATE, 0600);
    s->semset = semget(IPC_PRIVATE, 1, 0600);
    MUST(s->msg >= 0 && s->semset >= 0);
    temp_path(s->fifo, "weft-fifo-%d-%d", getpid(), unique++);
    MUST(mkfifo(s->fifo, 0600) == 0);
    sem_init(&s->sem, 0, 0);
    char name[TEMP_ROOM];
    temp_path(name, "weft-lock-XXXXXX");
    s->file = mkstemp(name);
    s->file2 = open(name, O_RDWR);
    unlink(name);
    struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    if (prepare == FULL_PIPE) fill_up(s->p[1]);
    if (prepare == FULL_PAIR) fill_up(s->pair[1]);
    if (prepare == FLOCKED) MUST(flock(s->file, LOCK_EX) == 0);
    if (prepare == LOCKED) MUST(fcntl(s->file, F_OFD_SETLK, &l) == 0);
    if (prepare == CHILD) {
        s->child = fork();
        if (s->child == 0)
            for (;;) pause();
    }
}

static void scene_close(struct scene *s)
{
    if (s->child) {
        kill(s->child, SIGKILL);
        waitpid(s->child, NULL, 0);
    }
    msgctl(s->msg, IPC_RMID, NULL);
    semctl(s->semset, 0, IPC_RMID);
    unlink(s->fifo);
    sem_destroy(&s->sem);
    close2(s->p);
    close2(s->pair);
    close(s->listener);
    close(s->ep);
    close(s->file);
    close(s->file2);
}

struct caller {
    const struct entry *e;
    struct scene *s;
    long rc;
    int err;
    atomic_int hits, done;
    struct gate started;
};

static __thread struct caller *self;
static atomic_int strays;

static void on_signal(int sig)
{
    (void)sig;
    if (self) atomic_fetch_add(&self->hits, 1);
    else atomic_fetch_add(&strays, 1);
}

static void *caller_main(void *arg)
{
    struct caller *c = arg;
    self = c;
    gate_post(&c->started);
    errno = 0;
    c->rc = c->e->call(c->s);
    c->err = errno;
    c->done = 1;
    return NULL;
}

static void run_entry(const struct entry *e, int restart)
{
    struct scene s;
    int before = atomic_load(&io_failures);
    io_note(e->name, restart);
    scene_open(&s, e->prepare);
    struct caller c = {.e = e, .s = &s, .started = GATE_INIT};
    struct sigaction old = set_handler(SIG, on_signal, restart ? SA_RESTART : 0);
    pthread_t t = spawn(caller_main, &c);
    gate_wait(&c.started, 1);
    settle();
    if (restart && e->release) {
        for (int i = 1; i <= 4; i++) {
            MUST(pthread_kill(t, SIG) == 0);
            WAIT_UNTIL(c.hits >= i);
        }
        settle();
        CHECK(!c.done);
        e->release(&s);
        join(t);
        CHECK(c.rc >= 0);
        CHECK_EQ(c.hits, 4);
    } else {
        long long end = now_ns() + IO_LIMIT_NS;
        while (!c.done) {
            MUST(now_ns() < end);
            pthread_kill(t, SIG);
            nap(200000);
        }
        join(t);
        CHECK_EQ(c.rc, -1);
        CHECK_EQ(c.err, EINTR);
        CHECK(c.hits > 0);
    }
    if (io_failures != before) print_message("%s restart %d\n", e->name, restart);
    sigaction(SIG, &old, NULL);
    scene_close(&s);
}

static void without_restart_every_call_is_interrupted(void)
{
    for (size_t i = 0; i < COUNT(table); i++) run_entry(&table[i], 0);
    CHECK_EQ(strays, 0);
}

static void with_restart_the_calls_of_the_list_go_on(void)
{
    for (size_t i = 0; i < COUNT(table); i++) run_entry(&table[i], 1);
    CHECK_EQ(strays, 0);
}

static void *never_interrupted_main(void *arg)
{
    struct caller *c = arg;
    struct scene *s = c->s;
    struct timespec t = far_away();
    self = c;
    gate_post(&c->started);
    switch (c->rc) {
    case 0: c->err = pthread_mutex_lock(&s->m); break;
    case 1:
        pthread_mutex_lock(&s->m);
        while (!s->flag) MUST(pthread_cond_wait(&s->c, &s->m) == 0);
        break;
    case 2: c->err = pthread_mutex_timedlock(&s->m, &t); break;
    case 3:
        pthread_mutex_lock(&s->m);
        while (!s->flag) MUST(pthread_cond_timedwait(&s->c, &s->m, &t) == 0);
        break;
    default: join(s->sub); break;
    }
    c->done = 1;
    if (c->rc < 4) pthread_mutex_unlock(&s->m);
    return NULL;
}

static void *sub_main(void *arg)
{
    gate_wait(arg, 1);
    return NULL;
}

// Mutexes, conditions and joins never return EINTR, with or without SA_RESTART.
static void locks_and_joins_are_never_interrupted(void)
{
    for (int k = 0; k < 10; k++) {
        struct scene s = {.m = PTHREAD_MUTEX_INITIALIZER, .c = PTHREAD_COND_INITIALIZER};
        struct caller c = {.s = &s, .rc = k / 2, .started = GATE_INIT};
        struct gate sub = GATE_INIT;
        struct sigaction old = set_handler(SIG, on_signal, k % 2 ? SA_RESTART : 0);
        if (c.rc == 0 || c.rc == 2) pthread_mutex_lock(&s.m);
        if (c.rc == 4) s.sub = spawn(sub_main, &sub);
        pthread_t t = spawn(never_interrupted_main, &c);
        gate_wait(&c.started, 1);
        settle();
        for (int i = 1; i <= 5; i++) {
            MUST(pthread_kill(t, SIG) == 0);
            WAIT_UNTIL(c.hits >= i);
        }
        CHECK(!c.done);
        if (c.rc == 1 || c.rc == 3) {
            pthread_mutex_lock(&s.m);
            s.flag = 1;
            pthread_cond_signal(&s.c);
        }
        if (c.rc < 4) pthread_mutex_unlock(&s.m);
        gate_post(&sub);
        join(t);
        CHECK_EQ(c.err, 0);
        CHECK_EQ(c.hits, 5);
        sigaction(SIG, &old, NULL);
    }
}

static const struct CMUnitTest tests[] = {
    T(without_restart_every_call_is_interrupted),
    T(with_restart_the_calls_of_the_list_go_on),
    T(locks_and_joins_are_never_interrupted),
};
IO_MAIN(tests)

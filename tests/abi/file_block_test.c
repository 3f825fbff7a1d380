// file_block_test.c - calls that block in the kernel where no poller can see: locks
// on files, FIFO opens, message queues, System V IPC, waiting for children, getrandom,
// fsync. With threads blocked in each, the others must get on.
//
// Invariant: each entry blocks, is seen to block, is released, and succeeds.
// Callers:   run natively and under LD_PRELOAD; uses io.h only.
#include "io.h"
#include <mqueue.h>
#include <sys/file.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/random.h>
#include <sys/sem.h>

struct scene {
    char file[TEMP_ROOM], fifo[TEMP_ROOM], mqname[64];
    int a, b, msg, sem;  // two open files of one name
    mqd_t mq;
    pid_t child;
};

static struct timespec far_away(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    t.tv_sec += 1000;
    return t;
}

static struct flock whole(short type)
{
    return (struct flock){.l_type = type, .l_whence = SEEK_SET};
}

struct message {
    long type;
    char b[16];
};

static long block_flock(struct scene *s) { return flock(s->b, LOCK_EX); }
static long block_setlkw(struct scene *s)
{
    struct flock l = whole(F_WRLCK);
    return fcntl(s->b, F_SETLKW, &l);
}
static long block_ofd(struct scene *s)
{
    struct flock l = whole(F_WRLCK);
    return fcntl(s->b, F_OFD_SETLKW, &l);
}
static long block_lockf(struct scene *s) { return lockf(s->b, F_LOCK, 0); }
static long block_fifo_read(struct scene *s)
{
    int fd = open(s->fifo, O_RDONLY);
    return fd < 0 ? fd : close(fd);
}
static long block_fifo_write(struct scene *s)
{
    int fd = openat(AT_FDCWD, s->fifo, O_WRONLY | O_CLOEXEC);
    return fd < 0 ? fd : close(fd);
}
static long block_fifo_fopen(struct scene *s)
{
    FILE *f = fopen(s->fifo, "r");
    return f ? fclose(f) : -1;
}
static long block_mq_receive(struct scene *s)
{
    char b[64];
    return mq_receive(s->mq, b, sizeof b, NULL);
}
static long block_mq_timedreceive(struct scene *s)
{
    struct timespec t = far_away();
    char b[64];
    return mq_timedreceive(s->mq, b, sizeof b, NULL, &t);
}
static long block_mq_send(struct scene *s) { return mq_send(s->mq, "x", 1, 0); }
static long block_msgrcv(struct scene *s)
{
    struct message m;
    return msgrcv(s->msg, &m, sizeof m.b, 7, 0);
}
static long block_msgsnd(struct scene *s)
{
    struct message m = {1, ""};
    return msgsnd(s->msg, &m, sizeof m.b, 0);
}
static long block_semop(struct scene *s)
{
    struct sembuf b = {0, -1, 0};
    return semop(s->sem, &b, 1);
}
static long block_semtimedop(struct scene *s)
{
    struct sembuf b = {0, -1, 0};
    struct timespec t = {1000, 0};
    return semtimedop(s->sem, &b, 1, &t);
}
static long block_waitpid(struct scene *s)
{
    int st = 0;
    long r = waitpid(s->child, &st, 0);
    if (r == s->child) CHECK(WIFSIGNALED(st) && WTERMSIG(st) == SIGUSR1);
    return r;
}
static long block_waitid(struct scene *s)
{
    siginfo_t si = {0};
    long r = waitid(P_PID, (id_t)s->child, &si, WEXITED);
    CHECK_EQ(si.si_pid, s->child);
    CHECK_EQ(si.si_status, SIGUSR1);
    return r;
}
static long block_wait4(struct scene *s)
{
    struct rusage ru;
    return wait4(s->child, NULL, 0, &ru);
}

static void hold_flock(struct scene *s) { MUST(flock(s->a, LOCK_EX) == 0); }
static void drop_flock(struct scene *s) { MUST(flock(s->a, LOCK_UN) == 0); }
static void hold_ofd(struct scene *s)
{
    struct flock l = whole(F_WRLCK);
    MUST(fcntl(s->a, F_OFD_SETLK, &l) == 0);
}
static void drop_ofd(struct scene *s)
{
    struct flock l = whole(F_UNLCK);
    MUST(fcntl(s->a, F_OFD_SETLK, &l) == 0);
}
static void fork_child(struct scene *s)
{
    s->child = fork();
    MUST(s->child >= 0);
    if (s->child == 0) {
        signal(SIGUSR1, SIG_DFL);
        for (;;) pause();
    }
}
// A POSIX lock excludes other processes only: a child must hold it.
static void hold_posix(struct scene *s)
{
    int up[2];
    char c = 'u';
    make_pipe(up);
    s->child = fork();
    MUST(s->child >= 0);
    if (s->child == 0) {
        struct flock l = whole(F_WRLCK);
        if (fcntl(s->a, F_SETLK, &l) || write(up[1], &c, 1) != 1) _exit(1);
        for (;;) pause();
    }
    MUST(read(up[0], &c, 1) == 1);
    close2(up);
}
static void kill_child(struct scene *s) { MUST(kill(s->child, SIGUSR1) == 0); }
static void kill_and_reap(struct scene *s)
{
    kill_child(s);
    MUST(waitpid(s->child, NULL, 0) == s->child);
}
static void open_write_end(struct scene *s)
{
    int fd = open(s->fifo, O_WRONLY);
    MUST(fd >= 0);
    close(fd);
}
static void open_read_end(struct scene *s)
{
    int fd = open(s->fifo, O_RDONLY);
    MUST(fd >= 0);
    close(fd);
}
static void mq_put(struct scene *s) { MUST(mq_send(s->mq, "m", 1, 3) == 0); }
static void mq_fill(struct scene *s)
{
    for (int i = 0; i < 2; i++) MUST(mq_send(s->mq, "f", 1, 0) == 0);
}
static void mq_take(struct scene *s)
{
    char b[64];
    MUST(mq_receive(s->mq, b, sizeof b, NULL) == 1);
}
static void msg_put(struct scene *s)
{
    struct message m = {7, "seven"};
    MUST(msgsnd(s->msg, &m, sizeof m.b, 0) == 0);
}
static void msg_fill(struct scene *s)
{
    struct message m = {1, ""};
    struct msqid_ds d;
    MUST(msgctl(s->msg, IPC_STAT, &d) == 0);
    d.msg_qbytes = 64;
    MUST(msgctl(s->msg, IPC_SET, &d) == 0);
    while (msgsnd(s->msg, &m, sizeof m.b, IPC_NOWAIT) == 0)
        ;
    MUST(errno == EAGAIN);
}
static void msg_take(struct scene *s)
{
    struct message m;
    MUST(msgrcv(s->msg, &m, sizeof m.b, 0, 0) >= 0);
}
static void sem_up(struct scene *s)
{
    struct sembuf b = {0, 1, 0};
    MUST(semop(s->sem, &b, 1) == 0);
}

struct entry {
    const char *name;
    void (*prepare)(struct scene *);
    long (*block)(struct scene *);
    void (*release)(struct scene *);
};

static const struct entry table[] = {
    {"flock", hold_flock, block_flock, drop_flock},
    {"F_SETLKW", hold_posix, block_setlkw, kill_and_reap},
    {"F_OFD_SETLKW", hold_ofd, block_ofd, drop_ofd},
    {"lockf", hold_posix, block_lockf, kill_and_reap},
    {"open fifo to read", NULL, block_fifo_read, open_write_end},
    {"open fifo to write", NULL, block_fifo_write, open_read_end},
    {"fopen fifo", NULL, block_fifo_fopen, open_write_end},
    {"mq_receive", NULL, block_mq_receive, mq_put},
    {"mq_timedreceive", NULL, block_mq_timedreceive, mq_put},
    {"mq_send", mq_fill, block_mq_send, mq_take},
    {"msgrcv", NULL, block_msgrcv, msg_put},
    {"msgsnd", msg_fill, block_msgsnd, msg_take},
    {"semop", NULL, block_semop, sem_up},
    {"semtimedop", NULL, block_semtimedop, sem_up},
    {"waitpid", fork_child, block_waitpid, kill_child},
    {"waitid", fork_child, block_waitid, kill_child},
    {"wait4", fork_child, block_wait4, kill_child},
};

static void scene_open(struct scene *s)
{
    static int unique;
    int id = getpid();
    memset(s, 0, sizeof *s);
    unique++;
    temp_path(s->file, "weft-block-%d-%d", id, unique);
    temp_path(s->fifo, "weft-block-fifo-%d-%d", id, unique);
    snprintf(s->mqname, sizeof s->mqname, "/weft-block-%d-%d", id, unique);
    s->a = open(s->file, O_RDWR | O_CREAT, 0600);
    s->b = open(s->file, O_RDWR);
    MUST(s->a >= 0 && s->b >= 0 && mkfifo(s->fifo, 0600) == 0);
    struct mq_attr at = {.mq_maxmsg = 2, .mq_msgsize = 64};
    s->mq = mq_open(s->mqname, O_RDWR | O_CREAT, 0600, &at);
    s->msg = msgget(IPC_PRIVATE, 0600);
    s->sem = semget(IPC_PRIVATE, 1, 0600);
    MUST(s->mq != (mqd_t)-1 && s->msg >= 0 && s->sem >= 0);
}

static void scene_close(struct scene *s)
{
    unlink(s->file);
    unlink(s->fifo);
    mq_close(s->mq);
    mq_unlink(s->mqname);
    msgctl(s->msg, IPC_RMID, NULL);
    semctl(s->sem, 0, IPC_RMID);
    close(s->a);
    close(s->b);
}

struct blocked {
    const struct entry *e;
    struct scene s;
    long rc;
    int err;
    struct gate started;
    atomic_int done;
};

static void *blocked_main(void *arg)
{
    struct blocked *b = arg;
    gate_post(&b->started);
    errno = 0;
    b->rc = b->e->block(&b->s);
    b->err = errno;
    b->done = 1;
    return NULL;
}

static pthread_t blocked_start(struct blocked *b, const struct entry *e)
{
    memset(b, 0, sizeof *b);
    b->e = e;
    b->started = (struct gate)GATE_INIT;
    scene_open(&b->s);
    if (e->prepare) e->prepare(&b->s);
    pthread_t t = spawn(blocked_main, b);
    gate_wait(&b->started, 1);
    return t;
}

static void blocked_end(struct blocked *b, pthread_t t)
{
    b->e->release(&b->s);
    join(t);
    if (b->rc < 0) print_message("%s: errno %d\n", b->e->name, b->err);
    CHECK(b->rc >= 0);
    scene_close(&b->s);
}

static void each_blocks_its_thread_only(void)
{
    for (size_t i = 0; i < COUNT(table); i++) {
        struct blocked b;
        io_note(table[i].name, 0);
        pthread_t t = blocked_start(&b, &table[i]);
        settle();
        others_progress();
        if (b.done) print_message("%s did not block\n", table[i].name);
        CHECK(!b.done);
        blocked_end(&b, t);
    }
}

static void all_blocked_at_once(void)
{
    static struct blocked b[COUNT(table)];
    pthread_t t[COUNT(table)];
    for (size_t i = 0; i < COUNT(table); i++) t[i] = blocked_start(&b[i], &table[i]);
    settle();
    others_progress();
    for (size_t i = 0; i < COUNT(table); i++) CHECK(!b[i].done);
    for (size_t i = COUNT(table); i-- > 0;) blocked_end(&b[i], t[i]);
}

static void *files_thread(void *arg)
{
    int fd = temp_file();
    char b[4096];
    for (int i = 0; i < 20; i++) {
        CHECK_EQ(getrandom(b, 256, 0), 256);
        CHECK_EQ(getentropy(b, 256), 0);
        CHECK_EQ(write(fd, b, sizeof b), sizeof b);
        CHECK_EQ(fdatasync(fd), 0);
        CHECK_EQ(fsync(fd), 0);
        CHECK_EQ(ftruncate(fd, 4096 * (i + 2)), 0);
        CHECK_EQ(posix_fallocate(fd, 0, 4096 * (i + 2)), 0);
    }
    struct stat st;
    CHECK_EQ(fstat(fd, &st), 0);
    CHECK_EQ(st.st_size, 4096 * 21);
    close(fd);
    sync_file_range(2, 0, 0, 0);
    return arg;
}

static void files_and_random_in_threads(void)
{
    pthread_t t[6];
    for (int i = 0; i < 6; i++) t[i] = spawn(files_thread, NULL);
    others_progress();
    for (int i = 0; i < 6; i++) join(t[i]);
}

static void timed_calls_time_out(void)
{
    struct scene s;
    char b[64];
    scene_open(&s);
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    t = ts_of(ns_of(t) + 20 * MS);
    CHECK_FAILS(mq_timedreceive(s.mq, b, sizeof b, NULL, &t), ETIMEDOUT);
    mq_fill(&s);
    CHECK_FAILS(mq_timedsend(s.mq, "x", 1, 0, &t), ETIMEDOUT);
    struct sembuf op = {0, -1, 0};
    struct timespec rel = ts_of(20 * MS);
    long long from = now_ns();
    CHECK_FAILS(semtimedop(s.sem, &op, 1, &rel), EAGAIN);
    CHECK(now_ns() - from >= 20 * MS);
    op.sem_flg = IPC_NOWAIT;
    CHECK_FAILS(semop(s.sem, &op, 1), EAGAIN);
    CHECK_FAILS(msgrcv(s.msg, b, 8, 0, IPC_NOWAIT), ENOMSG);
    hold_flock(&s);
    CHECK_FAILS(flock(s.b, LOCK_EX | LOCK_NB), EWOULDBLOCK);
    CHECK_FAILS(open(s.fifo, O_WRONLY | O_NONBLOCK), ENXIO);
    CHECK_FAILS(waitpid(getpid(), NULL, 0), ECHILD);
    scene_close(&s);
}

static void *waits_for_any(void *arg)
{
    int *seen = arg, st;
    pid_t pid;
    while ((pid = waitpid(-1, &st, 0)) > 0) {
        CHECK(WIFEXITED(st));
        __atomic_fetch_or(seen, 1 << WEXITSTATUS(st), __ATOMIC_SEQ_CST);
    }
    CHECK_EQ(errno, ECHILD);
    return NULL;
}

// Four threads wait for any child: each of the twelve is reported once, then ECHILD.
static void many_threads_wait_for_any_child(void)
{
    int seen = 0, hold[2];
    pthread_t t[4];
    make_pipe(hold);
    for (int i = 0; i < 12; i++) {
        pid_t pid = fork();
        MUST(pid >= 0);
        if (pid == 0) {
            char c;
            close(hold[1]);
            if (read(hold[0], &c, 1) != 0) _exit(31);
            _exit(i);
        }
    }
    for (int i = 0; i < 4; i++) t[i] = spawn(waits_for_any, &seen);
    settle();
    others_progress();
    close(hold[1]);
    for (int i = 0; i < 4; i++) join(t[i]);
    CHECK_EQ(seen, 0xfff);
    close(hold[0]);
}

static const struct CMUnitTest tests[] = {
    T(each_blocks_its_thread_only),
    T(all_blocked_at_once),
    T(files_and_random_in_threads),
    T(timed_calls_time_out),
    T(many_threads_wait_for_any_child),
};
IO_MAIN(tests)

// fdnumber_test.c - the numbers a program sees: the lowest free one is returned also
// after threads started, nothing foreign lies low or survives exec, and closing every
// descriptor leaves threads, sockets and timers working.
//
// Invariant: each body runs in a forked child; the file is also its own exec target
//            ("--fds" prints the open numbers).
// Callers:   run natively and under LD_PRELOAD; uses io.h only.
#include "io.h"
#include <dirent.h>
#include <semaphore.h>

#define LOW 512  // below this nothing may appear that the program did not open

static char *self_exe = "/proc/self/exe";

static int lowest_free(void)
{
    int fd = 0;
    while (fcntl(fd, F_GETFD) != -1) fd++;
    return fd;
}

static unsigned long long low_set(void)
{
    unsigned long long hash = 0;
    for (int fd = 0; fd < LOW; fd++)
        if (fcntl(fd, F_GETFD) != -1) hash = hash * 1000003 + (unsigned)fd + 1;
    return hash;
}

struct busy {
    int p[2], s[2], port, l;
    atomic_int stop;
    struct gate started;
};

static void *sleeps(void *arg)
{
    struct busy *b = arg;
    gate_post(&b->started);
    while (!b->stop) nap(MS);
    return NULL;
}

static void *reads(void *arg)
{
    struct busy *b = arg;
    char c;
    gate_post(&b->started);
    CHECK_EQ(read(b->p[0], &c, 1), 1);
    CHECK_EQ(recv(b->s[0], &c, 1, 0), 1);
    return NULL;
}

static void *accepts(void *arg)
{
    struct busy *b = arg;
    gate_post(&b->started);
    int fd = accept(b->l, NULL, NULL);
    CHECK(fd >= 0);
    close(fd);
    return NULL;
}

// Every part of a runtime that may want a descriptor is used once.
static void use_everything(void)
{
    struct busy b = {.started = GATE_INIT};
    make_pipe(b.p);
    make_pair(b.s);
    b.l = tcp_listen(&b.port, 4);
    pthread_t t[3] = {spawn(sleeps, &b), spawn(reads, &b), spawn(accepts, &b)};
    gate_wait(&b.started, 3);
    settle();
    others_progress();
    struct pollfd pf = {.fd = b.p[0], .events = POLLIN};
    poll(&pf, 1, 2);
    MUST(write(b.p[1], "x", 1) == 1);
    MUST(write(b.s[1], "x", 1) == 1);
    close(tcp_connect(b.port));
    b.stop = 1;
    for (int i = 0; i < 3; i++) join(t[i]);
    pid_t pid = fork();
    if (pid == 0) _exit(0);
    CHECK_CHILD_OK(reap(pid));
    close2(b.p);
    close2(b.s);
    close(b.l);
}

static void *opens_lowest(void *arg)
{
    int want = lowest_free(), p[2], s[2];
    int fd = open("/dev/null", O_RDONLY);
    CHECK_EQ(fd, want);
    close(fd);
    fd = socket(AF_INET, SOCK_STREAM, 0);
    CHECK_EQ(fd, want);
    close(fd);
    CHECK_EQ(dup(0), want);
    close(want);
    make_pipe(p);
    CHECK_EQ(p[0], want);
    CHECK_EQ(p[1], want + 1);
    make_pair(s);
    CHECK_EQ(s[0], want + 2);
    close(p[0]);
    CHECK_EQ(dup(s[1]), want);
    close(want);
    close(p[1]);
    close2(s);
    return arg;
}

static void lowest_body(void)
{
    unsigned long long before = low_set();
    opens_lowest(NULL);
    use_everything();
    CHECK(low_set() == before);
    opens_lowest(NULL);
    join(spawn(opens_lowest, NULL));
    CHECK(low_set() == before);
}

static void lowest_number_before_and_after_threads(void)
{
    CHECK_CHILD_OK(in_child(lowest_body));
}

static void list_fds(char *buf, size_t n)
{
    fflush(NULL);
    int p[2];
    MUST(pipe2(p, O_CLOEXEC) == 0);
    pid_t pid = fork();
    MUST(pid >= 0);
    if (pid == 0) {
        dup2(p[1], 1);
        execl(self_exe, "fdnumber_test", "--fds", (char *)NULL);
        _exit(126);
    }
    close(p[1]);
    size_t off = 0;
    ssize_t r;
    while ((r = read(p[0], buf + off, n - 1 - off)) > 0) off += (size_t)r;
    buf[off] = 0;
    close(p[0]);
    CHECK_CHILD_OK(reap(pid));
}

static void *list_thread(void *arg)
{
    list_fds(arg, 4096);
    return NULL;
}

// What a program finds open after exec is what the executing one left open.
static void exec_body(void)
{
    static char before[4096], after[4096], from_thread[4096];
    list_fds(before, sizeof before);
    use_everything();
    list_fds(after, sizeof after);
    join(spawn(list_thread, from_thread));
    CHECK(strlen(before) > 0);
    CHECK(strcmp(before, after) == 0);
    CHECK(strcmp(before, from_thread) == 0);
    int keep = open("/dev/null", O_RDONLY), drop = open("/dev/null", O_RDONLY | O_CLOEXEC);
    list_fds(after, sizeof after);
    char want[32], not[32];
    snprintf(want, sizeof want, " %d ", keep);
    snprintf(not, sizeof not, " %d ", drop);
    CHECK(strstr(after, want) != NULL);
    CHECK(strstr(after, not) == NULL);
}

static void nothing_survives_exec(void)
{
    CHECK_CHILD_OK(in_child(exec_body));
}

static void close_all_by(int how)
{
    struct rlimit rl;
    MUST(getrlimit(RLIMIT_NOFILE, &rl) == 0);
    long max = rl.rlim_cur < 70000 ? (long)rl.rlim_cur : 70000;
    if (how == 0) {
        for (long fd = 3; fd < max; fd++) close((int)fd);
    } else if (how == 1) {
        closefrom(3);
    } else if (how == 2) {
        MUST(close_range(3, ~0u, 0) == 0);
    } else if (how == 3) {
        for (long fd = 3; fd < max; fd++) syscall(SYS_close, (int)fd);
    } else {  // as daemons do: whatever /proc/self/fd shows
        DIR *d = opendir("/proc/self/fd");
        int list[1024], n = 0;
        MUST(d != NULL);
        for (struct dirent *e; (e = readdir(d)) && n < 1024;)
            if (atoi(e->d_name) > 2 && atoi(e->d_name) != dirfd(d)) list[n++] = atoi(e->d_name);
        closedir(d);
        for (int i = 0; i < n; i++) close(list[i]);
    }
}

static int how_to_close;

struct parked {
    sem_t sem;
    pthread_mutex_t m;
    pthread_cond_t c;
    int flag;
    struct gate started;
};

static void *parked_sem(void *arg)
{
    struct parked *p = arg;
    gate_post(&p->started);
    while (sem_wait(&p->sem)) MUST(errno == EINTR);
    return NULL;
}

static void *parked_cond(void *arg)
{
    struct parked *p = arg;
    gate_post(&p->started);
    pthread_mutex_lock(&p->m);
    while (!p->flag) pthread_cond_wait(&p->c, &p->m);
    pthread_mutex_unlock(&p->m);
    return NULL;
}

static void *parked_sleep(void *arg)
{
    struct parked *p = arg;
    gate_post(&p->started);
    nap(60 * MS);
    return NULL;
}

static void close_all_body(void)
{
    use_everything();
    struct parked p = {.m = PTHREAD_MUTEX_INITIALIZER, .c = PTHREAD_COND_INITIALIZER,
                       .started = GATE_INIT};
    sem_init(&p.sem, 0, 0);
    pthread_t t[3] = {spawn(parked_sem, &p), spawn(parked_cond, &p), spawn(parked_sleep, &p)};
    gate_wait(&p.started, 3);
    settle();
    close_all_by(how_to_close);
    CHECK_EQ(lowest_free(), 3);
    opens_lowest(NULL);
    use_everything();
    others_progress();
    nap(5 * MS);
    sem_post(&p.sem);
    pthread_mutex_lock(&p.m);
    p.flag = 1;
    pthread_cond_signal(&p.c);
    pthread_mutex_unlock(&p.m);
    for (int i = 0; i < 3; i++) join(t[i]);
    use_everything();
}

static void closing_everything_leaves_threads_working(void)
{
    for (how_to_close = 0; how_to_close < 5; how_to_close++) {
        io_note("close all", how_to_close);
        CHECK_CHILD_OK(in_child(close_all_body));
    }
}

// The program's own dup2 to high numbers must get them, whatever was there.
static void high_body(void)
{
    static const int high[] = {511, 700, 900, 1000, 1015, 1020, 1023};
    struct rlimit rl = {1024, 1024};
    MUST(setrlimit(RLIMIT_NOFILE, &rl) == 0);
    use_everything();
    int p[2];
    make_pipe(p);
    for (size_t i = 0; i < COUNT(high); i++) CHECK_EQ(dup2(p[0], high[i]), high[i]);
    use_everything();
    MUST(write(p[1], "high", 4) == 4);
    for (size_t i = 0; i < 4; i++) {
        char c = 0;
        CHECK_EQ(read(high[i], &c, 1), 1);
        CHECK_EQ(c, "high"[i]);
    }
    for (size_t i = 0; i < COUNT(high); i++) CHECK_EQ(close(high[i]), 0);
    use_everything();
}

static void high_numbers_belong_to_the_program(void)
{
    CHECK_CHILD_OK(in_child(high_body));
}

static void limit_body(void)
{
    struct rlimit rl = {40, 40};
    use_everything();
    MUST(setrlimit(RLIMIT_NOFILE, &rl) == 0);
    int n = 0, fd[64];
    while (n < 64 && (fd[n] = open("/dev/null", O_RDONLY)) >= 0) n++;
    CHECK_EQ(errno, EMFILE);
    CHECK(n >= 20 && fd[n - 1] == 39);
    int p[2];
    CHECK_FAILS(pipe(p), EMFILE);
    struct parked k = {.started = GATE_INIT};  // threads and timers need none
    sem_init(&k.sem, 0, 0);
    pthread_t a = spawn(parked_sem, &k), b = spawn(parked_sleep, &k);
    gate_wait(&k.started, 2);
    sem_post(&k.sem);
    join(a);
    join(b);
    while (n > 0) close(fd[--n]);
    use_everything();
}

static void threads_work_without_a_free_number(void)
{
    CHECK_CHILD_OK(in_child(limit_body));
}

static void first_body(void)
{
    struct rlimit rl = {8, 8};
    close_range(3, ~0u, 0);
    MUST(setrlimit(RLIMIT_NOFILE, &rl) == 0);
    int fd[8], n = 0;
    while ((fd[n] = open("/dev/null", O_RDONLY)) >= 0) n++;
    struct parked k = {.started = GATE_INIT};
    sem_init(&k.sem, 0, 0);
    pthread_t a = spawn(parked_sem, &k);  // the first thread ever, and no number is free
    sem_post(&k.sem);
    join(a);
    while (n > 0) close(fd[--n]);
    int p[2];
    make_pair(p);
    struct busy b = {.started = GATE_INIT, .p = {p[0], p[1]}, .s = {p[0], p[1]}};
    a = spawn(reads, &b);
    MUST(write(p[1], "xy", 2) == 2);
    join(a);
}

static void first_thread_without_a_free_number(void)
{
    CHECK_CHILD_OK(in_child(first_body));
}

// A thread that blocks where no entry point is passed, again and again, is looked for
// by whoever runs the threads. The looker took the lowest number each time, for a moment;
// it may once for each of its few kernel threads, not for each block.
struct unseen {
    int p[2], lowest;
    atomic_int stop, taken;
};

static long inline_read(int fd, void *buf, long n)
{
    long r;
    __asm__ volatile("syscall" : "=a"(r) : "a"(SYS_read), "D"(fd), "S"(buf), "d"(n)
                     : "rcx", "r11", "memory");
    return r;
}

static void *blocks_unseen(void *arg)
{
    struct unseen *u = arg;
    char c;
    while (inline_read(u->p[0], &c, 1) == 1 && c != 'q') sched_yield();
    return NULL;
}

static void *opens_and_closes(void *arg)
{
    struct unseen *u = arg;
    int was = u->lowest;
    while (!u->stop) {
        int got = dup(0);
        if (got != u->lowest && was == u->lowest) u->taken++;
        was = got;
        close(got);
    }
    return NULL;
}

static void blocked_threads_take_no_number(void)
{
    struct unseen u = {.p = {0}};
    make_pair(u.p);
    u.lowest = lowest_free();
    pthread_t a = spawn(blocks_unseen, &u);
    pthread_t b = spawn(opens_and_closes, &u);
    for (int i = 0; i < 500; i++) {
        MUST(write(u.p[1], "x", 1) == 1);
        usleep(50);
    }
    u.stop = 1;
    MUST(write(u.p[1], "q", 1) == 1);
    join(a);
    join(b);
    CHECK(u.taken <= 8);  // it was 11 to 50
    close(u.p[0]);
    close(u.p[1]);
}

static const struct CMUnitTest tests[] = {
    T(lowest_number_before_and_after_threads),
    T(nothing_survives_exec),
    T(closing_everything_leaves_threads_working),
    T(high_numbers_belong_to_the_program),
    T(threads_work_without_a_free_number),
    T(first_thread_without_a_free_number),
    T(blocked_threads_take_no_number),
};

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "--fds") == 0) {
        printf(" ");
        for (int fd = 0; fd < 70000; fd++)
            if (fcntl(fd, F_GETFD) != -1) printf("%d ", fd);
        return 0;
    }
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}

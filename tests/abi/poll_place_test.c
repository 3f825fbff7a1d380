// poll_place_test.c - family: cost. run: weft
//
// Loops over poll with several descriptors wait in the kernel, as natively, while their processor has
// nothing else to do: up to eight of them (io_watch.h), each on a kernel thread of its own. All others
// are parked. Beside peers that need the cores a parked loop is woken too late: pgbench under weft made two thirds
// of the native transactions. Without these waits, or with all of them, everything else still holds.
#include "io.h"
#include <dirent.h>
#include <sys/prctl.h>

enum { kLoops = 12, kInPlace = 8, kPipes = 3, kSeen = 5, kMostRounds = 1000 };

static int to_loop[kLoops][kPipes][2], answers[2];

static void *poll_loop(void *arg)
{
    int (*mine)[2] = arg;
    for (char c = 0; c != 'q';) {
        struct pollfd fds[kPipes];
        for (int i = 0; i < kPipes; i++) fds[i] = (struct pollfd){.fd = mine[i][0], .events = POLLIN};
        MUST(poll(fds, kPipes, -1) == 1);
        for (int i = 0; i < kPipes; i++)
            if (fds[i].revents != 0) MUST(read(mine[i][0], &c, 1) == 1);
        MUST(write(answers[1], &c, 1) == 1);
    }
    return arg;
}

static void run_loops(void)
{
    pthread_t t[kLoops];
    for (int i = 0; i < kLoops; i++) t[i] = spawn(poll_loop, to_loop[i]);
    for (int i = 0; i < kLoops; i++) join(t[i]);
    _exit(0);
}

// The kernel threads of pid that sleep in poll or ppoll.
static int asleep_in_poll(pid_t pid)
{
    char dir[60];
    snprintf(dir, sizeof dir, "/proc/%d/task", (int)pid);
    DIR *tasks = opendir(dir);
    MUST(tasks != NULL);
    int n = 0;
    for (struct dirent *d; (d = readdir(tasks)) != NULL;) {
        if (d->d_name[0] == '.') continue;  // ../syscall is the first thread's once more
        char path[400], text[40] = "";
        snprintf(path, sizeof path, "%s/%s/syscall", dir, d->d_name);
        int fd = open(path, O_RDONLY);
        if (fd < 0) continue;
        if (read(fd, text, sizeof text - 1) > 0) n += atoi(text) == SYS_poll || atoi(text) == SYS_ppoll;
        close(fd);
    }
    closedir(tasks);
    return n;
}

// Asked from outside, one after another: nothing else runs as a loop is back at its poll.
static void ask_all(int pipe_no, char c)
{
    for (int i = 0; i < kLoops; i++) {
        char answer;
        MUST(write(to_loop[i][pipe_no][1], &c, 1) == 1);
        MUST(read(answers[0], &answer, 1) == 1 && answer == c);
    }
}

static void eight_loops_wait_in_place(void)
{
    MUST(pipe(answers) == 0);
    for (int i = 0; i < kLoops; i++)
        for (int k = 0; k < kPipes; k++) MUST(pipe(to_loop[i][k]) == 0);
    pid_t pid = fork();
    MUST(pid >= 0);
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        run_loops();
    }
    // One that finds work beside it, that has just come back, or moves while we read, does not count:
    // another round then. On a busy machine most are such.
    int seen = 0;
    for (int round = 0; seen < kSeen && round < kMostRounds; round++) {
        ask_all(round % kPipes, 'x');
        settle();
        seen += asleep_in_poll(pid) == kInPlace;
    }
    CHECK_EQ(seen, kSeen);
    ask_all(0, 'q');
    CHECK_CHILD_OK(reap(pid));
    close2(answers);
    for (int i = 0; i < kLoops; i++)
        for (int k = 0; k < kPipes; k++) close2(to_loop[i][k]);
}

static const struct CMUnitTest tests[] = {
    T(eight_loops_wait_in_place),
};
IO_MAIN(tests)

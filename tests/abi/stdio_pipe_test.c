// stdio_pipe_test.c - stdio on pipes and sockets in threads: fgets, getline,
// fread, fwrite and fflush, scanf, popen. libc calls read and write inside itself
// here, through the jump table of the stream.
//
// Invariant: every expectation here holds for plain kernel threads.
// Callers:   run natively and under LD_PRELOAD; uses io.h only.
#include "io.h"

struct line_pair {
    FILE *in, *out;
    int lines, id;
    atomic_int got;
};

static void *line_writer(void *arg)
{
    struct line_pair *p = arg;
    for (int i = 0; i < p->lines; i++) {
        fprintf(p->out, "pair %d line %d %s\n", p->id, i, i % 3 ? "" : "with some more text");
        if (i % 5 == 0) {
            MUST(fflush(p->out) == 0);
            sched_yield();
        }
    }
    MUST(fclose(p->out) == 0);
    return NULL;
}

static void *line_reader(void *arg)
{
    struct line_pair *p = arg;
    char *line = NULL, fixed[200];
    size_t cap = 0;
    for (int i = 0;; i++) {
        int id = -1, n = -1;
        if (p->id % 3 == 0) {
            if (getline(&line, &cap, p->in) < 0) break;
            MUST(sscanf(line, "pair %d line %d", &id, &n) == 2);
        } else if (p->id % 3 == 1) {
            if (!fgets(fixed, sizeof fixed, p->in)) break;
            MUST(sscanf(fixed, "pair %d line %d", &id, &n) == 2);
        } else {
            if (fscanf(p->in, "pair %d line %d%*[^\n]\n", &id, &n) == EOF) break;
        }
        CHECK_EQ(id, p->id);
        CHECK_EQ(n, i);
        atomic_fetch_add(&p->got, 1);
    }
    CHECK(feof(p->in) && !ferror(p->in));
    free(line);
    fclose(p->in);
    return NULL;
}

static void line_pairs(int n, int lines, int sock)
{
    static struct line_pair lp[24];
    pthread_t r[24], w[24];
    for (int i = 0; i < n; i++) {
        int p[2];
        if (sock) make_pair(p); else make_pipe(p);
        lp[i] = (struct line_pair){fdopen(p[0], "r"), fdopen(p[1], "w"), lines, i, 0};
        MUST(lp[i].in && lp[i].out);
        r[i] = spawn(line_reader, &lp[i]);
    }
    settle();  // all readers sit inside libc
    others_progress();
    for (int i = 0; i < n; i++) w[i] = spawn(line_writer, &lp[i]);
    for (int i = 0; i < n; i++) {
        join(w[i]);
        join(r[i]);
        CHECK_EQ(lp[i].got, lines);
    }
}

static void lines_through_many_pipes(void)
{
    line_pairs(24, 200, 0);
}

static void lines_through_many_sockets(void)
{
    line_pairs(12, 200, 1);
}

struct block {
    FILE *f;
    size_t total;
};

static void *block_writer(void *arg)
{
    struct block *b = arg;
    unsigned char buf[5000];
    for (size_t off = 0; off < b->total; off += sizeof buf) {
        pattern_fill(buf, sizeof buf, 9, off);
        MUST(fwrite(buf, 1, sizeof buf, b->f) == sizeof buf);
    }
    MUST(fclose(b->f) == 0);
    return NULL;
}

// fwrite fills the pipe and blocks inside libc; the reader is slow, and in odd
// pieces.
static void fread_fwrite_large(void)
{
    int p[2];
    unsigned char buf[3333];
    make_pipe(p);
    struct block b = {fdopen(p[1], "w"), 400 * 5000};
    FILE *in = fdopen(p[0], "r");
    pthread_t t = spawn(block_writer, &b);
    settle();
    others_progress();
    size_t off = 0, r;
    while ((r = fread(buf, 1, sizeof buf, in)) > 0) {
        CHECK(pattern_ok(buf, r, 9, off));
        off += r;
    }
    CHECK_EQ(off, b.total);
    join(t);
    fclose(in);
}

struct locker {
    FILE *f;
    struct gate started;
    char buf[32];
};

static void *fgets_and_stay(void *arg)
{
    struct locker *l = arg;
    flockfile(l->f);
    gate_post(&l->started);
    char *r = fgets(l->buf, sizeof l->buf, l->f);
    funlockfile(l->f);
    return r;
}

static void *try_the_lock(void *arg)
{
    return (void *)(intptr_t)ftrylockfile(arg);
}

// The stream's lock belongs to the blocked thread: nobody else gets it, however
// few kernel threads there are, and its owner may take it twice.
static void blocked_reader_keeps_the_stream_lock(void)
{
    int p[2];
    make_pipe(p);
    struct locker l = {.f = fdopen(p[0], "r"), .started = GATE_INIT};
    pthread_t t = spawn(fgets_and_stay, &l);
    gate_wait(&l.started, 1);
    settle();
    CHECK(ftrylockfile(l.f) != 0);
    CHECK((intptr_t)join(spawn(try_the_lock, l.f)) != 0);
    others_progress();
    MUST(write(p[1], "mine\n", 5) == 5);
    CHECK(join(t) != NULL);
    CHECK(strcmp(l.buf, "mine\n") == 0);
    CHECK_EQ(ftrylockfile(l.f), 0);
    funlockfile(l.f);
    fclose(l.f);
    close(p[1]);
}

// A stream closed by fclose or freopen lets its number go; the next file under it is read as
// what it is, at once: a regular file, then another pipe.
static void a_closed_streams_number_is_new(void)
{
    char line[64], name[TEMP_ROOM];
    temp_path(name, "weft-stdio-XXXXXX");
    int file = mkstemp(name);
    MUST(file >= 0 && write(file, "from the file\n", 14) == 14);
    close(file);
    for (int i = 0; i < 50; i++) {
        int p[2];
        make_pipe(p);
        struct locker l = {.f = fdopen(p[0], "r"), .started = GATE_INIT};
        pthread_t t = spawn(fgets_and_stay, &l);
        gate_wait(&l.started, 1);
        if (i % 2) settle();
        MUST(write(p[1], "mine\n", 5) == 5);
        CHECK(join(t) != NULL);
        CHECK(strcmp(l.buf, "mine\n") == 0);
        FILE *f = l.f;
        if (i % 3 == 0) {
            MUST((f = freopen(name, "r", f)) != NULL);
        } else {
            fclose(f);
            MUST((f = fopen(name, "r")) != NULL);
        }
        CHECK_EQ(fileno(f), p[0]);
        MUST(fgets(line, sizeof line, f));
        CHECK(strcmp(line, "from the file\n") == 0);
        fclose(f);
        close(p[1]);
    }
    unlink(name);
}

static void *fgets_alone(void *arg)
{
    struct locker *l = arg;
    gate_post(&l->started);
    return fgets(l->buf, sizeof l->buf, l->f);
}

// A cancel ends a thread that waits in fgets, and its stream is unlocked.
static void a_cancel_ends_fgets_and_unlocks(void)
{
    int p[2];
    char line[8];
    make_pipe(p);
    struct locker l = {.f = fdopen(p[0], "r"), .started = GATE_INIT};
    for (int i = 0; i < 20; i++) {
        l.started = (struct gate)GATE_INIT;
        pthread_t t = spawn(fgets_alone, &l);
        gate_wait(&l.started, 1);
        if (i % 2) settle();
        MUST(pthread_cancel(t) == 0);
        CHECK(join(t) == PTHREAD_CANCELED);
        CHECK_EQ(ftrylockfile(l.f), 0);
        funlockfile(l.f);
    }
    MUST(write(p[1], "more\n", 5) == 5);
    MUST(fgets(line, sizeof line, l.f));
    CHECK(strcmp(line, "more\n") == 0);
    fclose(l.f);
    close(p[1]);
}

static void *shared_writer(void *arg)
{
    for (int i = 0; i < 200; i++) MUST(fprintf(arg, "%08d:%08d\n", i, i) == 18);
    return NULL;
}

// Many threads print to one stream over a full pipe: no line is torn.
static void one_stream_many_writers(void)
{
    int p[2], a, b, lines = 0;
    char line[64];
    make_pipe(p);
    FILE *out = fdopen(p[1], "w"), *in = fdopen(p[0], "r");
    setvbuf(out, NULL, _IOLBF, 4096);
    pthread_t t[8];
    for (int i = 0; i < 8; i++) t[i] = spawn(shared_writer, out);
    while (lines < 8 * 200) {
        MUST(fgets(line, sizeof line, in));
        MUST(sscanf(line, "%d:%d", &a, &b) == 2);
        CHECK_EQ(a, b);
        CHECK_EQ(strlen(line), 18);
        lines++;
    }
    for (int i = 0; i < 8; i++) join(t[i]);
    fclose(out);
    CHECK(fgets(line, sizeof line, in) == NULL);
    fclose(in);
}

static void *popen_thread(void *arg)
{
    char cmd[64], got[64] = "";
    int id = (int)(intptr_t)arg;
    snprintf(cmd, sizeof cmd, "read x; echo got-$x-%d; exit %d", id, id);
    for (int i = 0; i < 3; i++) {
        char full[128];
        snprintf(full, sizeof full, "echo word | { %s; }", cmd);
        FILE *f = popen(full, "r");
        MUST(f != NULL);
        MUST(fgets(got, sizeof got, f) != NULL);
        int st = pclose(f), want_id = -1;
        CHECK(sscanf(got, "got-word-%d", &want_id) == 1);
        CHECK_EQ(want_id, id);
        CHECK(WIFEXITED(st));
        CHECK_EQ(WEXITSTATUS(st), id);
    }
    return NULL;
}

static void popen_from_many_threads(void)
{
    pthread_t t[8];
    for (int i = 0; i < 8; i++) t[i] = spawn(popen_thread, (void *)(intptr_t)i);
    others_progress();
    for (int i = 0; i < 8; i++) join(t[i]);
}

static void *popen_cat(void *arg)
{
    struct gate *g = arg;
    FILE *f = popen("cat >/dev/null; exit 7", "w");
    MUST(f != NULL);
    gate_post(g);
    for (int i = 0; i < 1000; i++) MUST(fprintf(f, "%0200d\n", i) == 201);
    int st = pclose(f);  // waits for the child
    CHECK(WIFEXITED(st));
    CHECK_EQ(WEXITSTATUS(st), 7);
    return NULL;
}

static void popen_writing_and_system(void)
{
    struct gate g = GATE_INIT;
    pthread_t a = spawn(popen_cat, &g), b = spawn(popen_cat, &g);
    gate_wait(&g, 2);
    others_progress();
    int st = system("exit 5");
    CHECK(WIFEXITED(st));
    CHECK_EQ(WEXITSTATUS(st), 5);
    join(a);
    join(b);
    CHECK(system(NULL) != 0);
}

static void *read_errno(void *arg)
{
    FILE *f = arg;
    errno = 0;
    int c = fgetc(f);
    CHECK_EQ(c, EOF);
    CHECK_EQ(errno, EAGAIN);
    CHECK(ferror(f));
    return NULL;
}

// A stream over a descriptor the program made non-blocking fails, not blocks.
static void nonblocking_stream_fails_with_eagain(void)
{
    int p[2];
    MUST(pipe2(p, O_NONBLOCK) == 0);
    FILE *in = fdopen(p[0], "r");
    join(spawn(read_errno, in));
    fclose(in);
    close(p[1]);
}

static const struct CMUnitTest tests[] = {
    T(lines_through_many_pipes),
    T(lines_through_many_sockets),
    T(fread_fwrite_large),
    T(blocked_reader_keeps_the_stream_lock),
    T(a_closed_streams_number_is_new),
    T(a_cancel_ends_fgets_and_unlocks),
    T(one_stream_many_writers),
    T(popen_from_many_threads),
    T(popen_writing_and_system),
    T(nonblocking_stream_fails_with_eagain),
};
IO_MAIN(tests)

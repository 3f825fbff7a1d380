// pipe_mesh.c - seeded stress: a mesh of nodes that pass tokens over pipes and socket
// pairs, blocking, polled, vectored, through stdio-sized and one-byte pieces.
// timeout: 120
//
// Invariant: tokens are conserved: what was put in is what arrives, each hop in its
//            order; every node reads each of its channels to the end of file.
// Callers:   pipe_mesh [seed [seconds]]; natively or under LD_PRELOAD. Prints the
//            seed first and the counts last; exit 0 when all is well.
#define IO_NO_CMOCKA
#include "../abi/io.h"

#define NODES 30
#define OUT 3  // channels out of each node
#define TOKENS 9  // per node; all of them fit one channel, so no cycle can fill up

struct token {
    uint32_t id, hops;
    uint64_t check;  // changes with each hop in a way that any loss would show
    unsigned char pad[48];
};

struct channel {
    int fd[2], from, to;
    pthread_mutex_t m;  // two nodes may not write half a token each
    atomic_long in, out;
};

static struct channel ch[NODES * OUT];
static atomic_long alive, hops, finished;
static atomic_int seen[NODES * TOKENS];
static long long deadline;

struct worker {
    struct channel *c;
    uint64_t seed;
};

static void put(struct channel *c, const struct token *t, uint64_t *seed)
{
    struct iovec v[2] = {{(void *)t, 20}, {(char *)t + 20, sizeof *t - 20}};
    pthread_mutex_lock(&c->m);
    if (rnd(seed) & 1) MUST(write(c->fd[1], t, sizeof *t) == sizeof *t);
    else MUST(writev(c->fd[1], v, 2) == sizeof *t);
    atomic_fetch_add(&c->in, 1);
    pthread_mutex_unlock(&c->m);
}

// One token, in pieces of random size and by random means; 0 at the end of file.
static int take(struct channel *c, struct token *t, uint64_t *seed)
{
    size_t got = 0;
    while (got < sizeof *t) {
        size_t want = 1 + rnd(seed) % (sizeof *t - got);
        char *to = (char *)t + got;
        struct iovec v[2] = {{to, want / 2}, {to + want / 2, want - want / 2}};
        struct pollfd p = {.fd = c->fd[0], .events = POLLIN};
        ssize_t r;
        switch (rnd(seed) % 4) {
        case 0: r = read(c->fd[0], to, want); break;
        case 1: r = readv(c->fd[0], v, 2); break;
        case 2:
            MUST(poll(&p, 1, -1) == 1);
            r = read(c->fd[0], to, want);
            break;
        default: r = preadv2(c->fd[0], v, 2, -1, 0); break;
        }
        MUST(r >= 0);
        if (r == 0) {
            MUST(got == 0);
            return 0;
        }
        got += (size_t)r;
    }
    atomic_fetch_add(&c->out, 1);
    return 1;
}

static uint64_t next_check(const struct token *t)
{
    uint64_t s = t->check + t->hops;
    return rnd(&s);
}

// The worker of a channel takes tokens and sends each on by one of its node's channels,
// or retires it when time is up.
static void *worker_main(void *arg)
{
    struct worker *w = arg;
    struct token t;
    while (take(w->c, &t, &w->seed)) {
        for (size_t i = 0; i < sizeof t.pad; i++) MUST(t.pad[i] == (unsigned char)(t.id + i));
        uint64_t s = t.id;  // replay the walk now and then: costly, so not each hop
        if (t.hops % 256 == 0) {
            struct token r = {.id = t.id, .check = s};
            while (r.hops < t.hops) {
                r.check = next_check(&r);
                r.hops++;
            }
            MUST(r.check == t.check);
        }
        if (now_ns() >= deadline) {
            MUST(atomic_fetch_add(&seen[t.id], 1) == 0);
            atomic_fetch_add(&finished, 1);
            atomic_fetch_sub(&alive, 1);
            continue;
        }
        t.check = next_check(&t);
        t.hops++;
        atomic_fetch_add(&hops, 1);
        if (rnd(&w->seed) % 64 == 0) nap((long long)(rnd(&w->seed) % 100) * 1000);
        put(&ch[w->c->to * OUT + (int)(rnd(&w->seed) % OUT)], &t, &w->seed);
    }
    return NULL;
}

int main(int argc, char **argv)
{
    uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 0) : (uint64_t)now_ns();
    double seconds = argc > 2 ? atof(argv[2]) : 2;
    static struct worker w[NODES * OUT];
    static pthread_t t[NODES * OUT];
    printf("pipe_mesh seed %llu\n", (unsigned long long)seed);
    fflush(stdout);
    deadline = now_ns() + (long long)(seconds * 1e9);
    for (int i = 0; i < NODES * OUT; i++) {
        ch[i] = (struct channel){.from = i / OUT, .to = (int)(rnd(&seed) % NODES),
                                 .m = PTHREAD_MUTEX_INITIALIZER};
        if (i % 2) make_pair(ch[i].fd); else make_pipe(ch[i].fd);
        w[i] = (struct worker){&ch[i], seed + (uint64_t)i};
        t[i] = spawn(worker_main, &w[i]);
    }
    for (uint32_t i = 0; i < NODES * TOKENS; i++) {
        struct token tok = {.id = i, .check = i};
        for (size_t k = 0; k < sizeof tok.pad; k++) tok.pad[k] = (unsigned char)(i + k);
        atomic_fetch_add(&alive, 1);
        put(&ch[i % (NODES * OUT)], &tok, &seed);
    }
    WAIT_UNTIL(now_ns() >= deadline);
    WAIT_UNTIL(alive == 0);
    long in = 0, out = 0;
    for (int i = 0; i < NODES * OUT; i++) close(ch[i].fd[1]);
    // Counted once all are done: a writer counts after its write, which others then overtake.
    for (int i = 0; i < NODES * OUT; i++) join(t[i]);
    for (int i = 0; i < NODES * OUT; i++) {
        close(ch[i].fd[0]);
        in += ch[i].in;
        out += ch[i].out;
    }
    for (int i = 0; i < NODES * TOKENS; i++) CHECK_EQ(seen[i], 1);
    CHECK_EQ(in, out);
    CHECK_EQ(finished, NODES * TOKENS);
    printf("tokens %d hops %ld passed %ld\n", NODES * TOKENS, (long)hops, in);
    return io_failures != 0;
}

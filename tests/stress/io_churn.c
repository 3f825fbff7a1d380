// io_churn.c - seeded stress: connections opened, half-closed, reset and abandoned at
// random, with slow readers, over TCP, Unix sockets and pipes, a thread on each side.
// timeout: 120
//
// Invariant: every byte that arrives is the right one at the right offset, a session
//            that ended in order is whole, and all descriptors are back at the end.
// Callers:   io_churn [seed [seconds]]; natively or under LD_PRELOAD. Prints the seed
//            first and the counts last; exit 0 when all is well.
#define IO_NO_CMOCKA
#include "../abi/io.h"

#define CLIENTS 24

enum ending { ORDERLY, HALF_CLOSE, RESET, VANISH, ENDINGS };

struct header {  // what the client says it will do
    uint64_t key;
    uint32_t to_server, to_client, ending, slow;
};

static atomic_long sessions, orderly, cut, bytes;
static atomic_int live_servers;
static int port, listener, unix_listener;
static struct sockaddr_un unix_addr;
static long long deadline;

static ssize_t all_in(int fd, unsigned char *b, size_t n)
{
    size_t got = 0;
    while (got < n) {
        ssize_t r = read(fd, b + got, n - got);
        if (r <= 0) return r < 0 && errno != ECONNRESET ? -2 : (ssize_t)got;
        got += (size_t)r;
    }
    return (ssize_t)got;
}

// Sends n bytes of the stream in random pieces; returns what went out.
static size_t send_stream(int fd, uint64_t *seed, uint64_t key, size_t n)
{
    unsigned char b[16384];
    size_t off = 0;
    while (off < n) {
        size_t want = 1 + rnd(seed) % sizeof b;
        if (want > n - off) want = n - off;
        pattern_fill(b, want, key, off);
        ssize_t r = rnd(seed) & 1 ? write(fd, b, want) : send(fd, b, want, MSG_NOSIGNAL);
        if (r < 0) {
            MUST(errno == EPIPE || errno == ECONNRESET);
            return off;
        }
        off += (size_t)r;
        if (r < (ssize_t)want) return off;  // cut short by a reset
    }
    return off;
}

// Takes up to n bytes, checking each; returns how many came before end or reset.
static size_t take_stream(int fd, uint64_t *seed, uint64_t key, size_t n, int slow)
{
    unsigned char b[16384];
    size_t off = 0;
    while (off < n) {
        size_t want = 1 + rnd(seed) % (slow ? 700 : sizeof b);
        if (want > n - off) want = n - off;
        if (rnd(seed) % 8 == 0) {
            struct pollfd p = {.fd = fd, .events = POLLIN};
            MUST(poll(&p, 1, -1) == 1);
        }
        ssize_t r = rnd(seed) & 1 ? read(fd, b, want) : recv(fd, b, want, 0);
        if (r < 0) {
            MUST(errno == ECONNRESET);
            return off;
        }
        if (r == 0) return off;
        MUST(pattern_ok(b, (size_t)r, key, off));
        off += (size_t)r;
        atomic_fetch_add(&bytes, r);
        if (slow && rnd(seed) % 16 == 0) nap((long long)(rnd(seed) % 300) * 1000);
    }
    return off;
}

static void reset(int fd)
{
    struct linger lg = {1, 0};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &lg, sizeof lg);
    close(fd);
}

static void *serve(void *arg)
{
    int fd = (int)(intptr_t)arg;
    struct header h;
    if (all_in(fd, (unsigned char *)&h, sizeof h) == sizeof h) {
        uint64_t seed = h.key ^ 0x5e7e;
        size_t got = take_stream(fd, &seed, h.key, h.to_server, h.slow & 1);
        if (h.ending == ORDERLY || h.ending == HALF_CLOSE) {
            MUST(got == h.to_server);
            if (h.ending == HALF_CLOSE) {
                char c;
                MUST(read(fd, &c, 1) == 0);  // its writing side is closed, ours works
            }
        }
        send_stream(fd, &seed, h.key + 1, h.to_client);
    }
    close(fd);
    atomic_fetch_sub(&live_servers, 1);
    return NULL;
}

static void *accept_loop(void *arg)
{
    int l = *(int *)arg;
    pthread_attr_t at;
    pthread_attr_init(&at);
    pthread_attr_setdetachstate(&at, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&at, 256 * 1024);
    for (;;) {
        int fd = accept(l, NULL, NULL);
        if (fd < 0) {
            if (errno == ECONNABORTED) continue;
            MUST(errno == EINVAL);  // shut down: the end
            return NULL;
        }
        pthread_t t;
        atomic_fetch_add(&live_servers, 1);
        MUST(pthread_create(&t, &at, serve, (void *)(intptr_t)fd) == 0);
    }
}

static int open_session(uint64_t *seed)
{
    if (rnd(seed) & 1) return tcp_connect(port);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    MUST(fd >= 0);
    MUST(connect(fd, (struct sockaddr *)&unix_addr, sizeof unix_addr) == 0);
    return fd;
}

static void session(uint64_t *seed)
{
    struct header h = {.key = rnd(seed), .to_server = (uint32_t)(rnd(seed) % 60000),
                       .to_client = (uint32_t)(rnd(seed) % 60000),
                       .ending = (uint32_t)(rnd(seed) % ENDINGS), .slow = (uint32_t)(rnd(seed) % 8)};
    if (h.slow > 3) h.slow = 0;
    int fd = open_session(seed);
    MUST(write(fd, &h, sizeof h) == sizeof h);
    atomic_fetch_add(&sessions, 1);
    if (h.ending == RESET || h.ending == VANISH) {
        send_stream(fd, seed, h.key, rnd(seed) % (h.to_server + 1));
        if (h.ending == RESET) reset(fd);
        else close(fd);
        atomic_fetch_add(&cut, 1);
        return;
    }
    MUST(send_stream(fd, seed, h.key, h.to_server) == h.to_server);
    if (h.ending == HALF_CLOSE) MUST(shutdown(fd, SHUT_WR) == 0);
    MUST(take_stream(fd, seed, h.key + 1, h.to_client, h.slow & 2) == h.to_client);
    char c;
    MUST(read(fd, &c, 1) == 0);
    close(fd);
    atomic_fetch_add(&orderly, 1);
}

static void *client(void *arg)
{
    uint64_t seed = *(uint64_t *)arg;
    while (now_ns() < deadline) session(&seed);
    return NULL;
}

int main(int argc, char **argv)
{
    uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 0) : (uint64_t)now_ns();
    double seconds = argc > 2 ? atof(argv[2]) : 2;
    printf("io_churn seed %llu\n", (unsigned long long)seed);
    fflush(stdout);
    signal(SIGPIPE, SIG_IGN);
    int before = open_fds();
    deadline = now_ns() + (long long)(seconds * 1e9);
    listener = tcp_listen(&port, 256);
    unix_listener = socket(AF_UNIX, SOCK_STREAM, 0);
    unix_addr.sun_family = AF_UNIX;
    snprintf(unix_addr.sun_path + 1, sizeof unix_addr.sun_path - 1, "weft-churn-%d", getpid());
    MUST(bind(unix_listener, (struct sockaddr *)&unix_addr, sizeof unix_addr) == 0);
    MUST(listen(unix_listener, 256) == 0);
    pthread_t a[4], c[CLIENTS];
    uint64_t seeds[CLIENTS];
    for (int i = 0; i < 4; i++) a[i] = spawn(accept_loop, i % 2 ? &listener : &unix_listener);
    for (int i = 0; i < CLIENTS; i++) {
        seeds[i] = seed * 1000 + (uint64_t)i;
        c[i] = spawn(client, &seeds[i]);
    }
    for (int i = 0; i < CLIENTS; i++) join(c[i]);
    WAIT_UNTIL(live_servers == 0);
    shutdown(listener, SHUT_RDWR);
    shutdown(unix_listener, SHUT_RDWR);
    for (int i = 0; i < 4; i++) join(a[i]);
    close(listener);
    close(unix_listener);
    CHECK_EQ(open_fds(), before);
    CHECK_EQ(orderly + cut, sessions);
    CHECK(sessions > 0);
    printf("sessions %ld orderly %ld cut %ld bytes %ld fds %d\n", (long)sessions, (long)orderly,
           (long)cut, (long)bytes, open_fds() - before);
    return io_failures != 0;
}

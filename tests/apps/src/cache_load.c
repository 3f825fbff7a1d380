// cache_load.c - a load client for memcached's text protocol that knows every answer.
//
// Usage: cache_load PORT CONNECTIONS SECONDS. One thread, one epoll. Each connection has keys
// of its own, so a value depends only on the connection, the key and how often it was set:
// a lost, doubled or foreign answer cannot pass. Prints `right N ops/s R`; exits 1 on a wrong
// answer, 2 on a failed call, 3 if nothing came for 20 s.
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { kKeys = 40, kMaxValue = 1000, kBuffer = 1200 };

typedef struct {
  int fd, name;
  uint32_t random;
  uint32_t version[kKeys]; // how often the key was set; 0: never
  size_t got, wanted;
  char answer[kBuffer], expected[kBuffer];
} Connection;

static void die(const char *what) {
  fprintf(stderr, "cache_load: %s: %s\n", what, strerror(errno));
  exit(2);
}

static double now_s(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static uint32_t next_random(uint32_t *state) {
  *state ^= *state << 13;
  *state ^= *state >> 17;
  *state ^= *state << 5;
  return *state;
}

static size_t value_of(const Connection *c, uint32_t key, char *out) {
  uint32_t state = 1 + (uint32_t)c->name * 7919u + key * 104729u + c->version[key] * 1299709u;
  size_t bytes = 1 + next_random(&state) % kMaxValue;
  for (size_t i = 0; i < bytes; i++) out[i] = (char)('a' + next_random(&state) % 26);
  return bytes;
}

static void request(Connection *c) {
  char value[kMaxValue], out[kBuffer];
  uint32_t key = next_random(&c->random) % kKeys;
  int bytes;
  c->got = 0;
  if (c->version[key] == 0 || next_random(&c->random) % 8 == 0) {
    c->version[key]++;
    size_t n = value_of(c, key, value);
    bytes = snprintf(out, sizeof out, "set %d:%u 0 0 %zu\r\n%.*s\r\n", c->name, key, n, (int)n, value);
    c->wanted = (size_t)snprintf(c->expected, sizeof c->expected, "STORED\r\n");
  } else {
    size_t n = value_of(c, key, value);
    bytes = snprintf(out, sizeof out, "get %d:%u\r\n", c->name, key);
    c->wanted = (size_t)snprintf(c->expected, sizeof c->expected, "VALUE %d:%u 0 %zu\r\n%.*s\r\nEND\r\n",
                                 c->name, key, n, (int)n, value);
  }
  if (write(c->fd, out, (size_t)bytes) != bytes) die("write");
}

static void open_connection(Connection *c, int name, int port, int poll_fd) {
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
  struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
  int one = 1;
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  c->name = name;
  c->random = 2463534242u + (uint32_t)name;
  c->fd = socket(AF_INET, SOCK_STREAM, 0);
  if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&to, sizeof to) < 0) die("connect");
  setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  if (epoll_ctl(poll_fd, EPOLL_CTL_ADD, c->fd, &event) < 0) die("epoll_ctl");
}

static int answer_complete(Connection *c) {
  ssize_t n = read(c->fd, c->answer + c->got, sizeof c->answer - c->got);
  if (n <= 0) die("read");
  c->got += (size_t)n;
  if (c->got < c->wanted) return 0;
  if (c->got == c->wanted && memcmp(c->answer, c->expected, c->wanted) == 0) return 1;
  fprintf(stderr, "cache_load: connection %d got %.*s\ninstead of %.*s\n", c->name, (int)c->got, c->answer,
          (int)c->wanted, c->expected);
  exit(1);
}

int main(int argc, char **argv) {
  if (argc != 4) return 2;
  int port = atoi(argv[1]), connections = atoi(argv[2]), open_requests = connections;
  struct epoll_event events[256];
  Connection *all = calloc((size_t)connections, sizeof *all);
  int poll_fd = epoll_create1(0);
  long answers = 0;
  if (!all || poll_fd < 0) die("start");
  for (int i = 0; i < connections; i++) open_connection(&all[i], i, port, poll_fd);
  double start = now_s(), end = start + atof(argv[3]);
  for (int i = 0; i < connections; i++) request(&all[i]);
  while (open_requests > 0) {
    int n = epoll_wait(poll_fd, events, 256, 20000);
    if (n == 0) {
      fprintf(stderr, "cache_load: nothing for 20 s, %d requests open\n", open_requests);
      return 3;
    }
    for (int i = 0; i < n; i++) {
      Connection *c = events[i].data.ptr;
      if (!answer_complete(c)) continue;
      answers++;
      if (now_s() < end) request(c);
      else open_requests--;
    }
  }
  printf("right %ld ops/s %.0f\n", answers, (double)answers / (now_s() - start));
  return 0;
}

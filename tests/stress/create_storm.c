// create_storm.c - stress: random trees of threads, created, joined, detached, exiting, cancelled.
//
// Invariants checked: every thread started is counted once at its end; each join gives the
// value its thread returned; TSD destructors and cleanup handlers run once per thread.
// Usage: create_storm [seed [seconds]].
#include "stress.h"

static long started, ended, destroyed, cleaned, cancelled, trees;
static pthread_key_t key;
static long live;

enum { kMaxLive = 600 };

struct node {
  uint64_t stream;
  int depth, detached;
};

static void count_destroyed(void *value) {
  (void)value;
  ADD(&destroyed, 1);
}
static void count_cleaned(void *arg) {
  (void)arg;
  ADD(&cleaned, 1);
}
static void count_end(void *arg) {
  ADD(&ended, 1);
  ADD(&live, -1);
  free(arg);
}

static void *tree(void *arg);

static pthread_t start_node(uint64_t stream, int depth, int detached, const pthread_attr_t *attr) {
  struct node *n = malloc(sizeof *n);
  pthread_t t;
  *n = (struct node){stream, depth, detached};
  ADD(&started, 1);
  ADD(&live, 1);
  CHECK_OK(pthread_create(&t, attr, tree, n));
  return t;
}

static __attribute__((noinline)) void use_stack(int bytes) {
  volatile char *area = __builtin_alloca((size_t)bytes);
  for (int i = 0; i < bytes; i += 512) area[i] = 1;
}

static void wait_for_cancellation(Random *r) {
  struct timespec t = {1000, 0};
  if (below(r, 2))
    for (;;) pause();
  for (;;) nanosleep(&t, NULL);
}

static void grow(Random *r, uint64_t stream, int depth) {
  pthread_t children[4];
  intptr_t fate[4];
  int n = depth > 0 && LOAD(&live) < kMaxLive ? below(r, 5) : 0;
  pthread_attr_t attr;
  CHECK_OK(pthread_attr_init(&attr));
  CHECK_OK(pthread_attr_setstacksize(&attr, (size_t)(64 + below(r, 8) * 64) * 1024));
  for (int i = 0; i < n; i++) {
    uint64_t child = stream * 5 + (uint64_t)i + 1;
    fate[i] = below(r, 4);
    if (fate[i] == 0) {  // detached by attribute or by us
      CHECK_OK(pthread_attr_setdetachstate(&attr, below(r, 2) ? PTHREAD_CREATE_DETACHED : PTHREAD_CREATE_JOINABLE));
      int state;
      CHECK_OK(pthread_attr_getdetachstate(&attr, &state));
      pthread_t t = start_node(child, depth - 1, 1, &attr);
      if (state == PTHREAD_CREATE_JOINABLE) CHECK_OK(pthread_detach(t));
      CHECK_OK(pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_JOINABLE));
    } else {
      children[i] = start_node(child, fate[i] == 1 ? -1 : depth - 1, 0, below(r, 2) ? &attr : NULL);
      if (fate[i] == 1) CHECK_OK(pthread_cancel(children[i]));
    }
  }
  CHECK_OK(pthread_attr_destroy(&attr));
  for (int i = n - 1; i >= 0; i--) {
    if (fate[i] == 0) continue;
    void *result;
    int error = EBUSY;
    if (fate[i] == 2)
      while ((error = pthread_tryjoin_np(children[i], &result)) == EBUSY) sched_yield();
    else error = pthread_join(children[i], &result);
    CHECK_OK(error);
    if (fate[i] == 1) CHECK(result == PTHREAD_CANCELED);
    else CHECK_EQ((intptr_t)result, (intptr_t)((stream * 5 + (uint64_t)i + 1) & 0xffffff));
  }
}

static void *tree(void *arg) {
  struct node n = *(struct node *)arg;
  Random r = random_stream(n.stream);
  void *result = (void *)(intptr_t)(n.stream & 0xffffff);
  int old;
  CHECK_OK(pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &old));
  CHECK(pthread_getspecific(key) == NULL);
  CHECK_OK(pthread_setspecific(key, arg));
  pthread_cleanup_push(count_end, arg);
  pthread_cleanup_push(count_cleaned, NULL);
  use_stack(below(&r, 20000) + 1);
  if (n.depth < 0) {  // to be cancelled
    ADD(&cancelled, 1);
    CHECK_OK(pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, NULL));
    wait_for_cancellation(&r);
  }
  if (below(&r, 3) == 0) sched_yield();
  grow(&r, n.stream, n.depth);
  if (below(&r, 4) == 0) pthread_exit(result);
  pthread_cleanup_pop(1);
  pthread_cleanup_pop(1);
  return result;
}

int main(int argc, char **argv) {
  stress_begin(argc, argv, 5);
  CHECK_OK(pthread_key_create(&key, count_destroyed));
  for (uint64_t i = 1; time_left(); i++) {
    uint64_t stream = i * 1000003;
    CHECK_EQ((intptr_t)join(start_node(stream, 5, 0, NULL)), (intptr_t)(stream & 0xffffff));
    trees++;
  }
  AWAIT(LOAD(&ended) == LOAD(&started) && LOAD(&destroyed) == LOAD(&started));
  CHECK_EQ(cleaned, started);
  printf("%ld trees, %ld threads, %ld cancelled, all ended once\n", trees, started, cancelled);
  return 0;
}

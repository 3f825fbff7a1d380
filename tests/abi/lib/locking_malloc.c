// locking_malloc.c - an allocator with one lock, as jemalloc's arenas have. An allocation of
// kSlowBytes holds it for a while, computing.
#include <pthread.h>
#include <stdlib.h>
#include <time.h>

enum { kSlowBytes = 12345, kSlowMs = 60 };

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);
extern void __libc_free(void *);

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static long long now_ms(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000LL + t.tv_nsec / 1000000;
}

#define LOCKED(type, call)      \
  pthread_mutex_lock(&lock);    \
  type result = call;           \
  pthread_mutex_unlock(&lock);  \
  return result

void *malloc(size_t n) {
  pthread_mutex_lock(&lock);
  if (n == kSlowBytes)
    for (long long end = now_ms() + kSlowMs; now_ms() < end;)
      for (volatile int i = 0; i < 1000000; i++) {
      }
  void *p = __libc_malloc(n);
  pthread_mutex_unlock(&lock);
  return p;
}

void *calloc(size_t n, size_t m) { LOCKED(void *, __libc_calloc(n, m)); }
void *realloc(void *p, size_t n) { LOCKED(void *, __libc_realloc(p, n)); }
void *memalign(size_t align, size_t n) { LOCKED(void *, __libc_memalign(align, n)); }
void *aligned_alloc(size_t align, size_t n) { return memalign(align, n); }

int posix_memalign(void **p, size_t align, size_t n) {
  *p = memalign(align, n);
  return *p == NULL ? 12 /* ENOMEM */ : 0;
}

void free(void *p) {
  pthread_mutex_lock(&lock);
  __libc_free(p);
  pthread_mutex_unlock(&lock);
}

// tls_dlopen_test.c - family: TLS of libraries opened while threads live.
//
// Behaviours: general-dynamic and initial-exec libraries opened by one thread are usable,
// with initial values, in threads that were already running and in new ones; later threads
// in the same slots start afresh; closing and opening again; destructors registered by a
// closed library still run; nobody waits for ever where callbacks of dl_iterate_phdr wait while
// others open and create (weft: all Ms, and who makes them, stood in the loader's locks, whose
// holder was ready and had no M).
// Invariant: first read of a library's TLS in any thread gives the initial value.
// libs: -ldl
#include "abi.h"

#include <dlfcn.h>
#include <link.h>

static void *open_library(const char *name) {
  char path[PATH_MAX];
  ssize_t n = readlink("/proc/self/exe", path, sizeof path - 64);
  CHECK(n > 0);
  path[n] = 0;
  snprintf(strrchr(path, '/'), 64, "/lib/%s", name);
  void *library = dlopen(path, RTLD_NOW);
  if (!library) dprintf(2, "%s\n", dlerror());
  CHECK(library != NULL);
  return library;
}

static void *symbol(void *library, const char *name) {
  void *p = dlsym(library, name);
  CHECK(p != NULL);
  return p;
}

typedef long *(*address_fn)(void);
typedef char *(*bytes_fn)(void);

static struct {
  address_fn gd, other, ie, ie_zeroes;
  bytes_fn gd_zeroes;
} lib;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
static int phase, arrived;

static void set_phase(int p) {
  pthread_mutex_lock(&lock);
  phase = p;
  pthread_cond_broadcast(&cond);
  pthread_mutex_unlock(&lock);
}

static void await_phase(int p) {
  pthread_mutex_lock(&lock);
  arrived++;
  while (phase < p) pthread_cond_wait(&cond, &lock);
  pthread_mutex_unlock(&lock);
}

static void check_and_scribble_gd(long id) {
  long *value = lib.gd();
  CHECK_EQ(*value, 7700);
  char *zeroes = lib.gd_zeroes();
  for (int i = 0; i < 3000; i++)
    if (zeroes[i]) CHECK_EQ(zeroes[i], 0);
  *value = id;
  memset(zeroes, 0x5a, 3000);
  yield_some(3);
  CHECK_EQ(*lib.gd(), id);
  CHECK(lib.gd() == value);
}

static void check_and_scribble_ie(long id) {
  long *value = lib.ie(), *zeroes = lib.ie_zeroes();
  CHECK_EQ(*value, 5500);
  for (int i = 0; i < 8; i++) CHECK_EQ(zeroes[i], 0);
  *value = id;
  for (int i = 0; i < 8; i++) zeroes[i] = id;
  yield_some(3);
  CHECK_EQ(*lib.ie(), id);
  CHECK(lib.ie() == value);
}

static void *alive_during_open(void *arg) {
  long id = (long)arg;
  await_phase(1);
  check_and_scribble_gd(id);
  check_and_scribble_ie(id);
  await_phase(2);
  CHECK_EQ(*lib.gd(), id);
  CHECK_EQ(*lib.ie(), id);
  CHECK_EQ(*lib.other(), 8800);
  *lib.other() = -id;
  return NULL;
}

static void *born_after_open(void *arg) {
  check_and_scribble_gd((long)arg);
  check_and_scribble_ie((long)arg);
  return NULL;
}

static void *open_in_thread(void *name) { return open_library((const char *)name); }

enum { kThreads = 40 };

static int arrivals(void) {
  pthread_mutex_lock(&lock);
  int n = arrived;
  pthread_mutex_unlock(&lock);
  return n;
}

// In this order: threads live and blocked, some ended; libraries opened by another thread.
static void opened_while_threads_live(void **state) {
  (void)state;
  pthread_t t[kThreads], more[kThreads];
  for (long i = 0; i < kThreads; i++) t[i] = start(alive_during_open, (void *)(i + 1));
  AWAIT(arrivals() == kThreads);
  void *gd = join(start(open_in_thread, (void *)"tls_gd.so"));
  void *ie = join(start(open_in_thread, (void *)"tls_ie.so"));
  lib.gd = (address_fn)symbol(gd, "gd_value_address");
  lib.gd_zeroes = (bytes_fn)symbol(gd, "gd_zeroes_address");
  lib.ie = (address_fn)symbol(ie, "ie_value_address");
  lib.ie_zeroes = (address_fn)symbol(ie, "ie_zeroes_address");
  for (long i = 0; i < kThreads; i++) more[i] = start(born_after_open, (void *)(i + 100));
  set_phase(1);
  for (int i = 0; i < kThreads; i++) join(more[i]);
  AWAIT(arrivals() == 2 * kThreads);
  void *other = join(start(open_in_thread, (void *)"tls_gd_other.so"));
  lib.other = (address_fn)symbol(other, "gd_other_address");
  set_phase(2);
  for (int i = 0; i < kThreads; i++) join(t[i]);
  // Main never touched them.
  CHECK_EQ(*lib.gd(), 7700);
  CHECK_EQ(*lib.ie(), 5500);
  CHECK_EQ(*lib.other(), 8800);
  CHECK_OK(dlclose(other));
}

static void later_threads_start_afresh(void **state) {
  (void)state;
  *lib.gd() = 1;
  *lib.ie() = 2;
  for (long i = 1; i < 400; i++) join(start(born_after_open, (void *)i));
  for (int wave = 0; wave < 5; wave++) {
    pthread_t t[kThreads];
    for (long i = 0; i < kThreads; i++) t[i] = start(born_after_open, (void *)(i + 1));
    for (int i = 0; i < kThreads; i++) join(t[i]);
  }
  CHECK_EQ(*lib.gd(), 1);
  CHECK_EQ(*lib.ie(), 2);
}

// A thread that lives through close and open sees each library's own initial values, even
// where module numbers are used again.
static void *alive_during_reopen(void *arg) {
  (void)arg;
  for (int round = 0; round < 20; round++) {
    await_phase(2 * round + 1);
    address_fn address = LOAD(&lib.other);
    CHECK_EQ(*address(), round & 1 ? 7700 : 8800);
    *address() = round;
    await_phase(2 * round + 2);
  }
  return NULL;
}

static void closed_and_opened_again(void **state) {
  (void)state;
  enum { kFew = 6 };
  pthread_t t[kFew];
  // tls_gd.so must have gone before it can come back fresh.
  lib.gd = NULL;
  void *gd = open_library("tls_gd.so");
  CHECK_OK(dlclose(gd));
  CHECK_OK(dlclose(gd));
  phase = arrived = 0;
  for (long i = 0; i < kFew; i++) t[i] = start(alive_during_reopen, NULL);
  for (int round = 0; round < 20; round++) {
    void *library = open_library(round & 1 ? "tls_gd.so" : "tls_gd_other.so");
    STORE(&lib.other, (address_fn)symbol(library, round & 1 ? "gd_value_address" : "gd_other_address"));
    AWAIT(arrivals() == (2 * round + 1) * kFew);
    set_phase(2 * round + 1);
    AWAIT(arrivals() == (2 * round + 2) * kFew);
    CHECK_OK(dlclose(library));
    set_phase(2 * round + 2);
  }
  for (int i = 0; i < kFew; i++) join(t[i]);
}

static long destroyed;
static void *register_and_close(void *arg) {
  void *library = open_library("tls_dtor.so");
  void (*add)(long *, long) = (void (*)(long *, long))symbol(library, "add_at_thread_end");
  add(&destroyed, (long)arg);
  CHECK_OK(dlclose(library));
  yield_some(5);
  return NULL;
}

static void destructor_of_a_closed_library(void **state) {
  (void)state;
  for (long i = 1; i <= 50; i++) join(start(register_and_close, (void *)i));
  CHECK_EQ(LOAD(&destroyed), 50 * 51 / 2);
  pthread_t t[20];
  STORE(&destroyed, 0);
  for (long i = 0; i < 20; i++) t[i] = start(register_and_close, (void *)(i + 1));
  for (int i = 0; i < 20; i++) join(t[i]);
  CHECK_EQ(LOAD(&destroyed), 210);
}

static void *open_close_often(void *arg) {
  for (int i = 0; i < 10; i++) {
    void *library = open_library((long)arg & 1 ? "tls_gd.so" : "tls_gd_other.so");
    address_fn address =
        (address_fn)symbol(library, (long)arg & 1 ? "gd_value_address" : "gd_other_address");
    long *value = address();
    CHECK(*value == ((long)arg & 1 ? 7700 : 8800) || *value == (long)arg);
    *value = (long)arg;
    sched_yield();
    CHECK_EQ(*address(), (long)arg);
    CHECK(dlerror() == NULL);
    CHECK_OK(dlclose(library));
  }
  return NULL;
}

static void many_threads_open_and_close(void **state) {
  (void)state;
  pthread_t t[16];
  for (long i = 0; i < 16; i++) t[i] = start(open_close_often, (void *)(i + 1));
  for (int i = 0; i < 16; i++) join(t[i]);
}

static void *dl_error_is_mine(void *arg) {
  char name[40];
  snprintf(name, sizeof name, "no-such-library-%ld.so", (long)arg);
  CHECK(dlopen(name, RTLD_NOW) == NULL);
  yield_some(5);
  const char *error = dlerror();
  CHECK(error != NULL && strstr(error, name) != NULL);
  CHECK(dlerror() == NULL);
  return NULL;
}

static void dlerror_is_per_thread(void **state) {
  (void)state;
  pthread_t t[30];
  for (long i = 0; i < 30; i++) t[i] = start(dl_error_is_mine, (void *)i);
  for (int i = 0; i < 30; i++) join(t[i]);
  CHECK(dlerror() == NULL);
}

// A walk's callback runs under the loader's lock, and may take its time and wait. Who opens a
// library waits for it with another lock held, that a new thread needs.
static int walks_left;

static int takes_its_time(struct dl_phdr_info *info, size_t size, void *arg) {
  (void)info, (void)size;
  if (++*(int *)arg % 4 == 0) usleep(100);
  else yield_some(3);
  return 0;
}

static void *walk_often(void *arg) {
  (void)arg;
  int calls = 0;
  while (LOAD(&walks_left) > 0) {
    CHECK_EQ(dl_iterate_phdr(takes_its_time, &calls), 0);
    ADD(&walks_left, -1);
  }
  return NULL;
}

static void *nothing(void *arg) { return arg; }

static void *create_often(void *arg) {
  while (LOAD(&walks_left) > 0) CHECK(join(start(nothing, arg)) == arg);
  return NULL;
}

static void *open_while_walked(void *arg) {
  while (LOAD(&walks_left) > 0) open_close_often(arg);
  return NULL;
}

static void walked_slowly_while_threads_open_and_create(void **state) {
  (void)state;
  void *(*const roles[])(void *) = {open_while_walked, walk_often, open_while_walked, create_often};
  pthread_t t[16];
  STORE(&walks_left, 100);
  for (long i = 0; i < 16; i++) t[i] = start(roles[i % 4], (void *)(i + 1));
  for (int i = 0; i < 16; i++) join(t[i]);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(opened_while_threads_live),
      cmocka_unit_test(later_threads_start_afresh),
      cmocka_unit_test(closed_and_opened_again),
      cmocka_unit_test(destructor_of_a_closed_library),
      cmocka_unit_test(many_threads_open_and_close),
      cmocka_unit_test(dlerror_is_per_thread),
      cmocka_unit_test(walked_slowly_while_threads_open_and_create),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

// tls_test.cc - family: TLS of the program itself, and its life with the thread.
//
// Behaviours: initialised and zeroed in each thread, aligned, distinct, kept over yields and
// blocking; initialised again in every later thread, whatever an earlier one left in
// the slot; thread_local objects constructed on use and destroyed in reverse order at
// return, at pthread_exit, at exit(), before TSD destructors.
// Invariant: a value written by one thread is never seen by another.
#include "abi.h"

#include <atomic>
#include <string>
#include <vector>

static __thread int tls_int = 1234;
static __thread char tls_text[40] = "initial text";
static __thread long tls_zero;
static __thread char tls_big[20000];
static __thread struct { char pad; alignas(256) char body[100]; } tls_aligned = {'p', "aligned body"};
static __thread void *tls_pointer;

static thread_local int built = [] { return 55; }();
static thread_local std::string text = "a string long enough to live on the heap, not inside";
static thread_local std::vector<int> numbers = {1, 2, 3};

static void check_fresh() {
  CHECK_EQ(tls_int, 1234);
  CHECK(strcmp(tls_text, "initial text") == 0);
  CHECK_EQ(tls_zero, 0);
  for (size_t i = 0; i < sizeof tls_big; i++)
    if (tls_big[i]) CHECK_EQ(tls_big[i], 0);
  CHECK(((uintptr_t)tls_aligned.body & 255) == 0);
  CHECK(strcmp(tls_aligned.body, "aligned body") == 0);
  CHECK_EQ(built, 55);
  CHECK(text == "a string long enough to live on the heap, not inside");
  CHECK_EQ(numbers.size(), 3);
  CHECK_EQ(errno, 0);
}

static void scribble(long id) {
  tls_int = (int)id;
  snprintf(tls_text, sizeof tls_text, "thread %ld", id);
  tls_zero = id;
  memset(tls_big, 0xa5, sizeof tls_big);
  memset(tls_aligned.body, 'x', sizeof tls_aligned.body);
  built = (int)id;
  text = "scribbled by thread " + std::to_string(id) + " and again long enough for the heap";
  numbers.assign(20, (int)id);
  errno = (int)id;
}

static void check_scribbled(long id) {
  char want[40];
  CHECK_EQ(errno, id);
  snprintf(want, sizeof want, "thread %ld", id);
  CHECK_EQ(tls_int, id);
  CHECK(strcmp(tls_text, want) == 0);
  CHECK_EQ(tls_zero, id);
  CHECK_EQ((unsigned char)tls_big[19999], 0xa5);
  CHECK_EQ(tls_aligned.body[99], 'x');
  CHECK_EQ(built, id);
  CHECK_EQ(numbers.size(), 20);
  CHECK_EQ(numbers[19], id);
  errno = (int)id;
}

static void *fresh_then_scribble(void *arg) {
  long id = (long)arg;
  check_fresh();
  scribble(id);
  check_scribbled(id);
  return nullptr;
}

// The same slot again and again: one thread after the other.
static void initialised_in_every_later_thread(void **) {
  scribble(3);
  for (long i = 1; i <= 500; i++) join(start(fresh_then_scribble, (void *)(i % 120 + 1)));
  check_scribbled(3);
}

static void initialised_in_waves(void **) {
  for (int wave = 0; wave < 10; wave++) {
    pthread_t t[60];
    for (long i = 0; i < 60; i++) t[i] = start(fresh_then_scribble, (void *)(i + 1));
    for (int i = 0; i < 60; i++) join(t[i]);
  }
}

static pthread_barrier_t barrier;
static void *keep_over_switches(void *arg) {
  long id = (long)arg;
  check_fresh();
  scribble(id);
  char *address = tls_big;
  for (int i = 0; i < 30; i++) {
    sched_yield();
    check_scribbled(id);
    if (i % 10 == 0) pthread_barrier_wait(&barrier);
    check_scribbled(id);
    CHECK(address == tls_big);
  }
  tls_pointer = address;
  return tls_pointer;
}

static void kept_over_yields_and_blocking(void **) {
  enum { kThreads = 64 };
  pthread_t t[kThreads];
  pthread_barrier_init(&barrier, nullptr, kThreads);
  for (long i = 0; i < kThreads; i++) t[i] = start(keep_over_switches, (void *)(i + 1));
  for (int i = 0; i < kThreads; i++) join(t[i]);
  pthread_barrier_destroy(&barrier);
}

// Order of ends, written by destructors of any thread of this test.
static std::atomic<int> log_size;
static int log_entries[64];
static void note(int what) { log_entries[log_size.fetch_add(1)] = what; }
static void check_log(std::initializer_list<int> want) {
  CHECK_EQ(log_size.load(), want.size());
  int i = 0;
  for (int w : want) CHECK_EQ(log_entries[i++], w);
  log_size = 0;
}

struct Noted {
  int id;
  explicit Noted(int i) : id(i) {}
  ~Noted() { note(id); }
  void touch() { asm volatile("" ::"r"(this) : "memory"); }
};

struct Reviver {
  ~Reviver();
  void touch() { asm volatile("" ::"r"(this) : "memory"); }
};

// Each is constructed at its first use in a thread.
template <int id>
static Noted &noted() {
  static thread_local Noted object(id);
  return object;
}
static Reviver &reviver() {
  static thread_local Reviver object;
  return object;
}
Reviver::~Reviver() {
  note(10);
  noted<3>().touch();
  note(11);
}

static pthread_key_t key;
static void tsd_destructor(void *value) { note((int)(intptr_t)value); }

static void *use_objects(void *how) {
  CHECK_OK(pthread_setspecific(key, (void *)100));
  noted<1>().touch();
  reviver().touch();
  noted<2>().touch();
  if (how) pthread_exit(how);
  return nullptr;
}

static void destroyed_in_reverse_before_tsd(void **) {
  CHECK_OK(pthread_key_create(&key, tsd_destructor));
  log_size = 0;
  for (int i = 0; i < 50; i++) {
    CHECK(join(start(use_objects, (void *)(intptr_t)(i & 1))) == (void *)(intptr_t)(i & 1));
    check_log({2, 10, 11, 3, 1, 100});
  }
  CHECK_OK(pthread_key_delete(key));
}

static void *use_nothing(void *) { return nullptr; }

static void not_constructed_unless_used(void **) {
  log_size = 0;
  for (int i = 0; i < 50; i++) join(start(use_nothing, nullptr));
  check_log({});
}

// exit() destroys the calling thread's objects and no other's.
static int *shared_count;
struct Counted {
  int which;
  ~Counted() { shared_count[which]++; }
};
static Counted &counted() {
  static thread_local Counted object{0};
  return object;
}

static void *hold_object(void *arg) {
  counted().which = 1;
  ADD((int *)arg, 1);
  for (;;) pause();
  return nullptr;
}

static void *exit_here(void *) {
  counted().which = 2;
  exit(9);
}

static int exit_from_main(void *) {
  int holding = 0;
  counted().which = 0;
  pthread_t t = start(hold_object, &holding);
  (void)t;
  AWAIT(LOAD(&holding));
  exit(8);
}

static int exit_from_thread(void *) {
  int holding = 0;
  counted().which = 0;
  start(hold_object, &holding);
  AWAIT(LOAD(&holding));
  pthread_join(start(exit_here, nullptr), nullptr);
  return 1;
}

static void exit_destroys_the_callers_only(void **) {
  shared_count = (int *)shared_memory(4096);
  CHECK_EQ(exit_code(in_child(exit_from_main, nullptr)), 8);
  CHECK_EQ(shared_count[0], 1);
  CHECK_EQ(shared_count[1], 0);
  CHECK_EQ(exit_code(in_child(exit_from_thread, nullptr)), 9);
  CHECK_EQ(shared_count[0], 1);
  CHECK_EQ(shared_count[1], 0);
  CHECK_EQ(shared_count[2], 1);
}

static void *nested_thread(void *arg) {
  long depth = (long)arg;
  check_fresh();
  scribble(depth + 1);
  if (depth > 0) join(start(nested_thread, (void *)(depth - 1)));
  check_scribbled(depth + 1);
  return nullptr;
}

static void creator_and_created_are_apart(void **) { join(start(nested_thread, (void *)60)); }

static int use_after_fork(void *) {
  check_scribbled(77);
  for (long i = 1; i < 20; i++) join(start(fresh_then_scribble, (void *)i));
  check_scribbled(77);
  return 0;
}

static void *scribble_and_fork(void *) {
  check_fresh();
  scribble(77);
  int status = in_child(use_after_fork, nullptr);
  errno = 77;
  check_scribbled(77);
  return (void *)(intptr_t)status;
}

static void kept_over_fork(void **) {
  CHECK(join(start(scribble_and_fork, nullptr)) == nullptr);
}

int main() {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(initialised_in_every_later_thread),
      cmocka_unit_test(initialised_in_waves),
      cmocka_unit_test(kept_over_yields_and_blocking),
      cmocka_unit_test(creator_and_created_are_apart),
      cmocka_unit_test(destroyed_in_reverse_before_tsd),
      cmocka_unit_test(not_constructed_unless_used),
      cmocka_unit_test(exit_destroys_the_callers_only),
      cmocka_unit_test(kept_over_fork),
  };
  return cmocka_run_group_tests(tests, nullptr, nullptr);
}

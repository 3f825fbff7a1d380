// tsd_test.c - family: pthread_key_create, delete, setspecific, getspecific.
//
// Behaviours: values start NULL in every thread, in recycled slots too; destructors run with
// the value, after it was reset, up to PTHREAD_DESTRUCTOR_ITERATIONS rounds; keys deleted
// while in use; keys used inside destructors; PTHREAD_KEYS_MAX; stale values of a deleted
// key never show through a new key; main's destructors run at pthread_exit, not at exit.
// Invariant: a destructor sees each non-NULL value once per time it was set.
#include "abi.h"

static void set(pthread_key_t key, long value) { CHECK_OK(pthread_setspecific(key, (void *)value)); }
static long get(pthread_key_t key) { return (long)pthread_getspecific(key); }

static pthread_key_t keys[PTHREAD_KEYS_MAX + 1];
static int key_count;

static void create_all(void (*destructor)(void *)) {
  key_count = 0;
  int error = 0;
  while (key_count <= PTHREAD_KEYS_MAX && (error = pthread_key_create(&keys[key_count], destructor)) == 0) key_count++;
  CHECK_EQ(error, EAGAIN);
  CHECK(key_count > 900 && key_count <= PTHREAD_KEYS_MAX);
}

static void delete_all(void) {
  for (int i = 0; i < key_count; i++) CHECK_OK(pthread_key_delete(keys[i]));
}

static void *fill_all(void *arg) {
  for (int i = 0; i < key_count; i++) CHECK_EQ(get(keys[i]), 0);
  for (int i = 0; i < key_count; i++) set(keys[i], (long)arg + i);
  yield_some(3);
  for (int i = 0; i < key_count; i++) CHECK_EQ(get(keys[i]), (long)arg + i);
  return NULL;
}

static void every_key_starts_null_in_every_thread(void **state) {
  (void)state;
  create_all(NULL);
  for (long i = 1; i <= 50; i++) join(start(fill_all, (void *)i));
  pthread_t t[30];
  for (long i = 0; i < 30; i++) t[i] = start(fill_all, (void *)(i + 1));
  for (int i = 0; i < 30; i++) join(t[i]);
  for (int i = 0; i < key_count; i++) CHECK_EQ(get(keys[i]), 0);
  delete_all();
}

static void bad_keys(void **state) {
  (void)state;
  pthread_key_t key;
  CHECK_OK(pthread_key_create(&key, NULL));
  set(key, 5);
  CHECK_OK(pthread_key_delete(key));
  CHECK_EQ(pthread_key_delete(key), EINVAL);
  CHECK_EQ(pthread_setspecific(key, NULL), EINVAL);
  CHECK_EQ(pthread_setspecific(PTHREAD_KEYS_MAX, NULL), EINVAL);
  CHECK_EQ(pthread_key_delete(PTHREAD_KEYS_MAX), EINVAL);
  CHECK(pthread_getspecific(PTHREAD_KEYS_MAX) == NULL);
}

static long destroyed_sum, destroyed_count;
static void add_up(void *value) {
  ADD(&destroyed_sum, (long)value);
  ADD(&destroyed_count, 1);
}

static void every_destructor_runs(void **state) {
  (void)state;
  destroyed_sum = destroyed_count = 0;
  create_all(add_up);
  for (int i = 0; i < 10; i++) join(start(fill_all, (void *)1));
  CHECK_EQ(destroyed_count, 10L * key_count);
  CHECK_EQ(destroyed_sum, 10L * key_count * (key_count + 1) / 2);
  delete_all();
}

// Rounds.

static pthread_key_t again_key, other_key;
static int again_times, again_runs, order[16], order_size;
static void set_again(void *value) {
  again_runs++;
  CHECK_EQ(get(again_key), 0);
  if (again_runs < again_times) set(again_key, (long)value);
}
static void *use_again_key(void *arg) {
  set(again_key, (long)arg);
  return NULL;
}

static void set_again_in_its_destructor(void **state) {
  (void)state;
  CHECK_OK(pthread_key_create(&again_key, set_again));
  for (again_times = 1; again_times < 8; again_times++) {
    again_runs = 0;
    join(start(use_again_key, (void *)9));
    CHECK_EQ(again_runs, again_times < PTHREAD_DESTRUCTOR_ITERATIONS ? again_times : PTHREAD_DESTRUCTOR_ITERATIONS);
  }
  // A value still set after the last round is not seen by the slot's next thread.
  for (int i = 0; i < 20; i++) {
    again_runs = 0;
    again_times = i & 1 ? 100 : 1;
    join(start(use_again_key, (void *)(i + 1L)));
  }
  CHECK_OK(pthread_key_delete(again_key));
}

static void note(void *value) { order[order_size++] = (int)(long)value; }
static void set_other(void *value) {
  note(value);
  if (!get(other_key)) set(other_key, (long)value + 10);
}
static void *use_both(void *arg) {
  set(again_key, 1);
  if (arg) set(other_key, 2);
  return NULL;
}

static void destructor_sets_another_key(void **state) {
  (void)state;
  CHECK_OK(pthread_key_create(&again_key, set_other));
  CHECK_OK(pthread_key_create(&other_key, note));
  CHECK(again_key < other_key);
  order_size = 0;
  join(start(use_both, NULL));
  CHECK_EQ(order_size, 2);
  CHECK(order[0] == 1 && order[1] == 11);
  order_size = 0;
  join(start(use_both, (void *)1));
  CHECK_EQ(order_size, 2);  // nptl goes through the keys in order
  CHECK(order[0] == 1 && order[1] == 2);
  CHECK_OK(pthread_key_delete(again_key));
  CHECK_OK(pthread_key_delete(other_key));
}

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static void block_in_destructor(void *value) {
  CHECK_OK(pthread_mutex_lock(&lock));
  sched_yield();
  CHECK_OK(pthread_mutex_unlock(&lock));
  char *text = malloc(100);
  snprintf(text, 100, "%p", value);
  free(text);
  // A thread is still a thread here: it has a name, an id, it can create and join.
  CHECK(pthread_equal(pthread_self(), pthread_self()));
  if ((long)value % 5 == 0) join(start(use_both, NULL));
  ADD(&destroyed_count, 1);
}
static void *set_blocking(void *arg) {
  set(keys[0], (long)arg);
  if ((long)arg & 1) pthread_exit(arg);
  return arg;
}

static void destructors_block_and_create(void **state) {
  (void)state;
  CHECK_OK(pthread_key_create(&keys[0], block_in_destructor));
  CHECK_OK(pthread_key_create(&again_key, NULL));
  CHECK_OK(pthread_key_create(&other_key, NULL));
  destroyed_count = 0;
  pthread_t t[50];
  for (long i = 0; i < 50; i++) t[i] = start(set_blocking, (void *)(i + 1));
  for (long i = 0; i < 50; i++) CHECK_EQ((long)join(t[i]), i + 1);
  CHECK_EQ(destroyed_count, 50);
  CHECK_OK(pthread_key_delete(keys[0]));
  CHECK_OK(pthread_key_delete(again_key));
  CHECK_OK(pthread_key_delete(other_key));
}

// Deletion while threads hold values.

static int gate;
static void *hold_value(void *arg) {
  set(keys[0], (long)arg);
  ADD(&gate, 1);
  AWAIT(LOAD(&gate) >= 1000);
  if (keys[1] != (pthread_key_t)-1) CHECK_EQ(get(keys[1]), 0);
  return NULL;
}

static void deleted_while_in_use(void **state) {
  (void)state;
  for (int reuse = 0; reuse < 2; reuse++) {
    pthread_t t[10];
    destroyed_count = 0;
    gate = 0;
    keys[1] = (pthread_key_t)-1;
    CHECK_OK(pthread_key_create(&keys[0], add_up));
    for (long i = 0; i < 10; i++) t[i] = start(hold_value, (void *)(i + 1));
    AWAIT(LOAD(&gate) == 10);
    CHECK_OK(pthread_key_delete(keys[0]));
    // The same number again: old values must neither be seen nor destroyed through it.
    if (reuse) CHECK_OK(pthread_key_create(&keys[1], add_up));
    STORE(&gate, 1000);
    for (int i = 0; i < 10; i++) join(t[i]);
    CHECK_EQ(destroyed_count, 0);
    if (reuse) CHECK_OK(pthread_key_delete(keys[1]));
  }
}

static void delete_own_key(void *value) {
  ADD(&destroyed_count, (long)value);
  CHECK_OK(pthread_key_delete(keys[0]));
}
static void *use_key_0(void *arg) {
  set(keys[0], (long)arg);
  return NULL;
}

static void deleted_in_its_destructor(void **state) {
  (void)state;
  for (int i = 0; i < 20; i++) {
    destroyed_count = 0;
    CHECK_OK(pthread_key_create(&keys[0], delete_own_key));
    join(start(use_key_0, (void *)3));
    CHECK_EQ(destroyed_count, 3);
  }
}

static void create_in_destructor(void *value) {
  pthread_key_t key;
  CHECK_OK(pthread_key_create(&key, add_up));
  CHECK_EQ(get(key), 0);
  set(key, (long)value);
  keys[1] = key;
}

static void created_in_a_destructor(void **state) {
  (void)state;
  CHECK_OK(pthread_key_create(&keys[0], create_in_destructor));
  for (int i = 0; i < 20; i++) {
    destroyed_sum = 0;
    join(start(use_key_0, (void *)7));
    CHECK_EQ(destroyed_sum, 7);
    CHECK_OK(pthread_key_delete(keys[1]));
  }
  CHECK_OK(pthread_key_delete(keys[0]));
}

static void null_value_has_no_destructor_run(void **state) {
  (void)state;
  destroyed_count = 0;
  CHECK_OK(pthread_key_create(&keys[0], add_up));
  join(start(use_key_0, NULL));
  CHECK_EQ(destroyed_count, 0);
  CHECK_OK(pthread_key_delete(keys[0]));
}

// Main.

static long *ran;
static void count_in_shared(void *value) { ADD(ran, (long)value); }
static void *end_process(void *arg) {
  CHECK_OK(pthread_join(abi_main_thread, NULL));
  _exit(LOAD(ran) == 5 ? 0 : (int)(intptr_t)arg);
}
static int main_thread_exits(void *arg) {
  (void)arg;
  set(keys[0], 5);
  start(end_process, (void *)3);
  pthread_exit(NULL);
}
static int process_exits(void *arg) {
  (void)arg;
  set(keys[0], 7);
  exit(0);
}

static void destructors_of_main(void **state) {
  (void)state;
  ran = shared_memory(4096);
  CHECK_OK(pthread_key_create(&keys[0], count_in_shared));
  CHECK_EQ(exit_code(in_child(main_thread_exits, NULL)), 0);
  *ran = 0;
  CHECK_EQ(exit_code(in_child(process_exits, NULL)), 0);
  CHECK_EQ(*ran, 0);  // exit is not pthread_exit
  CHECK_OK(pthread_key_delete(keys[0]));
}

static int check_in_child(void *arg) {
  CHECK_EQ(get(keys[0]), (long)arg);
  set(keys[0], 99);
  for (int i = 0; i < 10; i++) join(start(fill_all, (void *)5));
  CHECK_EQ(get(keys[0]), 99);
  return 0;
}
static void *fork_with_values(void *arg) {
  set(keys[0], (long)arg);
  CHECK_OK(in_child(check_in_child, arg));
  CHECK_EQ(get(keys[0]), (long)arg);
  return NULL;
}

static void kept_over_fork(void **state) {
  (void)state;
  CHECK_OK(pthread_key_create(&keys[0], NULL));
  CHECK_OK(pthread_key_create(&keys[1], NULL));
  key_count = 2;
  fork_with_values((void *)11);
  join(start(fork_with_values, (void *)12));
  CHECK_EQ(get(keys[0]), 11);
  set(keys[0], 0);
  delete_all();
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(every_key_starts_null_in_every_thread),
      cmocka_unit_test(bad_keys),
      cmocka_unit_test(every_destructor_runs),
      cmocka_unit_test(set_again_in_its_destructor),
      cmocka_unit_test(destructor_sets_another_key),
      cmocka_unit_test(destructors_block_and_create),
      cmocka_unit_test(deleted_while_in_use),
      cmocka_unit_test(deleted_in_its_destructor),
      cmocka_unit_test(created_in_a_destructor),
      cmocka_unit_test(null_value_has_no_destructor_run),
      cmocka_unit_test(destructors_of_main),
      cmocka_unit_test(kept_over_fork),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

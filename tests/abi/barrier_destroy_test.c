// barrier_destroy_test.c - family: pthread_barrier_destroy. run: weft
//
// Behaviour: a barrier that somebody waits on is destroyed once the others have come, and those inside
// have left. Ours said EBUSY; the program went on to free what they were in.
// Undefined by POSIX, and by luck in libc: its destroy pretends to be all those who have yet to leave,
// the first one to do so then sets the rounds back to 0, and who has not looked at them by then waits
// for ever. So natively this hung beside other programs.
#include "abi.h"

static pthread_barrier_t barrier;
static int destroying, destroyed;

static void *meet(void *arg) {
  int answer = pthread_barrier_wait(&barrier);
  CHECK(answer == 0 || answer == PTHREAD_BARRIER_SERIAL_THREAD);
  return arg;
}

static void *destroy_it(void *arg) {
  STORE(&destroying, 1);
  CHECK_OK(pthread_barrier_destroy(&barrier));
  STORE(&destroyed, 1);
  return arg;
}

static void destroy_waits_for_those_inside(void **state) {
  (void)state;
  CHECK_OK(pthread_barrier_init(&barrier, NULL, 2));
  pthread_t first = start(meet, NULL);
  AWAIT(__atomic_load_n((int *)&barrier, __ATOMIC_RELAXED) == 1);  // libc's and our count of arrivals
  pthread_t destroyer = start(destroy_it, NULL);
  AWAIT(LOAD(&destroying));
  for (int i = 0; i < 1000; i++) sched_yield();
  CHECK_EQ(LOAD(&destroyed), 0);
  meet(NULL);
  join(first);
  join(destroyer);
  CHECK_EQ(destroyed, 1);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(destroy_waits_for_those_inside)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}

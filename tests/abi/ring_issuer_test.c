// ring_issuer_test.c - family: a ring of io_uring that has one issuer.
//
// Once failed: fio --ioengine=io_uring did half of its reads and said all was well. It sets
// IORING_SETUP_SINGLE_ISSUER, with which the kernel serves only the thread that made the
// ring; the G came to another M and io_uring_enter answered EEXIST.
//
// What is checked: of twelve threads that each make a ring and get about, each can use its
// ring always; so can main one that it made before there were threads, one that a thread
// made disabled and enables itself, and one by its registered number.
#include "abi.h"

#include <linux/io_uring.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#define SINGLE_ISSUER (1U << 12)
#define ENTER_REGISTERED (1U << 4)
enum { THREADS = 12, ROUNDS = 60, ENABLE_RINGS = 12, REGISTER_RING_FDS = 20 };

struct ring {
  int fd;
  unsigned *sq_tail, *sq_mask, *sq_array, *cq_head, *cq_tail, *cq_mask;
  struct io_uring_sqe *sqes;
  struct io_uring_cqe *cqes;
};

// 0, or -1 where the kernel has no such rings.
static int ring_make(struct ring *r, unsigned flags) {
  struct io_uring_params p = {.flags = flags};
  r->fd = (int)syscall(SYS_io_uring_setup, 8, &p);
  if (r->fd < 0) {
    CHECK(errno == ENOSYS || errno == EPERM || errno == EINVAL);
    return -1;
  }
  const int prot = PROT_READ | PROT_WRITE;
  char *sq = mmap(NULL, p.sq_off.array + p.sq_entries * sizeof(unsigned), prot, MAP_SHARED, r->fd, IORING_OFF_SQ_RING);
  char *cq = mmap(NULL, p.cq_off.cqes + p.cq_entries * sizeof(struct io_uring_cqe), prot, MAP_SHARED, r->fd, IORING_OFF_CQ_RING);
  r->sqes = mmap(NULL, p.sq_entries * sizeof *r->sqes, prot, MAP_SHARED, r->fd, IORING_OFF_SQES);
  CHECK(sq != MAP_FAILED && cq != MAP_FAILED && (void *)r->sqes != MAP_FAILED);
  r->sq_tail = (unsigned *)(sq + p.sq_off.tail), r->sq_mask = (unsigned *)(sq + p.sq_off.ring_mask);
  r->sq_array = (unsigned *)(sq + p.sq_off.array);
  r->cq_head = (unsigned *)(cq + p.cq_off.head), r->cq_tail = (unsigned *)(cq + p.cq_off.tail);
  r->cq_mask = (unsigned *)(cq + p.cq_off.ring_mask);
  r->cqes = (struct io_uring_cqe *)(cq + p.cq_off.cqes);
  return 0;
}

// One request that does nothing, and its answer.
static void ring_use(struct ring *r, int number, unsigned flags, uint64_t mark) {
  unsigned tail = *r->sq_tail, at = tail & *r->sq_mask;
  r->sqes[at] = (struct io_uring_sqe){.opcode = IORING_OP_NOP, .user_data = mark};
  r->sq_array[at] = at;
  __atomic_store_n(r->sq_tail, tail + 1, __ATOMIC_RELEASE);
  CHECK_EQ(syscall(SYS_io_uring_enter, number, 1, 1, IORING_ENTER_GETEVENTS | flags, NULL, 0), 1);
  unsigned head = *r->cq_head;
  CHECK_EQ(__atomic_load_n(r->cq_tail, __ATOMIC_ACQUIRE), head + 1);
  CHECK_EQ(r->cqes[head & *r->cq_mask].user_data, mark);
  __atomic_store_n(r->cq_head, head + 1, __ATOMIC_RELEASE);
}

// Gives the scheduler reasons to move the calling thread.
static void wander(int i) {
  sched_yield();
  if (i % 4 == 0) usleep(100);
}

static void *user(void *arg) {
  struct ring r;
  int way = (int)(intptr_t)arg % 3, number;
  unsigned flags = 0;
  wander(0);
  if (ring_make(&r, SINGLE_ISSUER | (way == 1 ? IORING_SETUP_R_DISABLED : 0)) != 0) return NULL;
  number = r.fd;
  if (way == 1) {
    wander(0);
    CHECK_OK(syscall(SYS_io_uring_register, r.fd, ENABLE_RINGS, NULL, 0));
  } else if (way == 2) {
    struct io_uring_rsrc_update up = {.offset = -1U, .data = (uint64_t)r.fd};
    CHECK_EQ(syscall(SYS_io_uring_register, r.fd, REGISTER_RING_FDS, &up, 1), 1);
    number = (int)up.offset;
    flags = ENTER_REGISTERED;
  }
  for (int i = 0; i < ROUNDS; i++) {
    ring_use(&r, number, flags, (uint64_t)i + 1);
    wander(i);
  }
  close(r.fd);
  return NULL;
}

static void every_thread_has_its_ring(void **state) {
  (void)state;
  pthread_t t[THREADS];
  for (int i = 0; i < THREADS; i++) t[i] = start(user, (void *)(intptr_t)i);
  for (int i = 0; i < THREADS; i++) join(t[i]);
}

static int stop;
static void *in_the_way(void *arg) {
  for (int i = 0; !LOAD(&stop); i++) wander(i);
  return arg;
}

// In a process of its own, which had no thread yet.
static int main_first(void *arg) {
  struct ring r;
  pthread_t t[4];
  (void)arg;
  if (ring_make(&r, SINGLE_ISSUER) != 0) return 0;
  ring_use(&r, r.fd, 0, 7);
  for (int i = 0; i < 4; i++) t[i] = start(in_the_way, NULL);
  for (int i = 0; i < ROUNDS; i++) {
    ring_use(&r, r.fd, 0, (uint64_t)i + 1);
    wander(i);
  }
  STORE(&stop, 1);
  for (int i = 0; i < 4; i++) join(t[i]);
  return 0;
}
static void main_keeps_the_ring_it_had(void **state) {
  (void)state;
  CHECK_EQ(in_child(main_first, NULL), 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(main_keeps_the_ring_it_had),
      cmocka_unit_test(every_thread_has_its_ring),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

// io_ipc.cc - System V and POSIX message queues, System V semaphores: the syscall protocol.
//
// They are shared with other processes by nature, and have no readiness to wait for.
#include <mqueue.h>
#include <sys/msg.h>
#include <sys/sem.h>

#include "preload/cancel.h"
#include "preload/io_wait.h"

using namespace weft;

WEFT_EXPORT int mq_send(mqd_t q, const char* m, size_t n, unsigned prio) {
  if (this_g() == nullptr) return real().mq_send(q, m, n, prio);
  return libc_kernel([&] { return real().mq_send(q, m, n, prio); });
}

WEFT_EXPORT int mq_timedsend(mqd_t q, const char* m, size_t n, unsigned prio,
                             const struct timespec* until) {
  if (this_g() == nullptr) return real().mq_timedsend(q, m, n, prio, until);
  return libc_kernel([&] { return real().mq_timedsend(q, m, n, prio, until); });
}

WEFT_EXPORT ssize_t mq_receive(mqd_t q, char* m, size_t n, unsigned* prio) {
  if (this_g() == nullptr) return real().mq_receive(q, m, n, prio);
  return libc_kernel([&] { return real().mq_receive(q, m, n, prio); });
}

WEFT_EXPORT ssize_t mq_timedreceive(mqd_t q, char* __restrict m, size_t n, unsigned* __restrict prio,
                                    const struct timespec* __restrict until) {
  if (this_g() == nullptr) return real().mq_timedreceive(q, m, n, prio, until);
  return libc_kernel([&] { return real().mq_timedreceive(q, m, n, prio, until); });
}

WEFT_EXPORT int msgsnd(int q, const void* m, size_t n, int flags) {
  if (this_g() == nullptr) return real().msgsnd(q, m, n, flags);
  return libc_kernel([&] { return real().msgsnd(q, m, n, flags); });
}

WEFT_EXPORT ssize_t msgrcv(int q, void* m, size_t n, long type, int flags) {
  if (this_g() == nullptr) return real().msgrcv(q, m, n, type, flags);
  return libc_kernel([&] { return real().msgrcv(q, m, n, type, flags); });
}

// Not cancellation points.
WEFT_EXPORT int semop(int set, struct sembuf* ops, size_t n) noexcept {
  return in_syscall([&] { return real().semop(set, ops, n); });
}

WEFT_EXPORT int semtimedop(int set, struct sembuf* ops, size_t n,
                           const struct timespec* timeout) noexcept {
  return in_syscall([&] { return real().semtimedop(set, ops, n, timeout); });
}

// last.h - whose end is the last thread's, and therefore exit(0) (POSIX, pthread_exit).
//
// Nobody's while main lives, so until main leaves its threads are not counted: the counter is a
// line that every P would write twice for each thread (a detached thread made on one P and run on
// another: 12 % of its time). When main leaves it counts those that live (Thread::over):
//
//   main                            a thread's creator            its end
//   a main_left                     1 over = kLives               x over = kOver; had it been
//   b membarrier                    2 main_left? as c for it        kCounted: count - 1; 0: last
//   c each kLives: count + 1,       3 it starts
//     then CAS to kCounted;
//     lost: count - 1
//   d count - 1; 0: last
//
// A thread is counted once, by whose CAS it was, and takes itself out only if it was. Either 2 sees
// a, or 1 was before b and c sees it. The count begins with one for main, so c never empties it.
// The model: tests/model/last_model.cc.
//
// Foreign threads (foreign.h) keep the process, too, and may make others; nobody sees them end
// but who waits for it. So where the last of ours finds one alive it leaves a keeper, a kernel
// thread that from then on is who calls exit(0), when neither is left. It is not the thread that
// ended last, which is all that differs from native. (libc's own count never falls to the last
// one: it has our Ms.)
#pragma once

#include "preload/thread.h"
#include "sched/sched.h"

namespace weft {

void last_boot();
// By its creator, before t can run.
void last_count(Thread* t);
extern std::atomic<bool> main_left;
inline void last_began(Thread* t) {
  t->over.store(kLives, std::memory_order_relaxed);
  compiler_barrier();  // the fence is b; here only where there is none
  if (WEFT_UNLIKELY(!sched.membarrier)) std::atomic_thread_fence(std::memory_order_seq_cst);
  if (WEFT_UNLIKELY(main_left.load(std::memory_order_relaxed))) last_count(t);
}
// t, the calling thread, is at its end: whether it is to exit.
bool last_ended(Thread* t);

}  // namespace weft

// host.cc - the engine's port (sched/host.h) over glibc: kernel threads.
#include "sched/host.h"

#include <string.h>

#include "preload/api.h"
#include "preload/foreign.h"
#include "preload/sigframe.h"

namespace weft {
namespace {

struct Start {
  void (*fn)(void*);
  void* arg;
  std::atomic<uint32_t> taken{0};
};

void* start_main(void* p) {
  auto* s = static_cast<Start*>(p);
  auto* fn = s->fn;
  void* arg = s->arg;
  own_thread_begins();
  s->taken.store(1, std::memory_order_release);
  sys_futex_wake(&s->taken, 1);
  signal_stack_for_thread();
  fn(arg);
  return nullptr;
}

constexpr size_t kThreadStackBytes = 128 << 10;

}  // namespace

int host_start_thread(void (*fn)(void*), void* arg, const char* name) {
  uint64_t all = kAllSignals, old;
  pthread_attr_t attr;
  pthread_t pt;
  Start s{fn, arg};
  TcbLayout l = host_tcb_layout();
  pthread_attr_init(&attr);
  pthread_attr_setstacksize(&attr, kThreadStackBytes + round_up(l.below_bytes, kPageBytes));
  pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
  sys_sigprocmask(SIG_SETMASK, &all, &old);
  own_thread_asked();
  int err = real().pthread_create(&pt, &attr, start_main, &s);
  sys_sigprocmask(SIG_SETMASK, &old, nullptr);
  pthread_attr_destroy(&attr);
  while (err == 0 && s.taken.load(std::memory_order_acquire) == 0) sys_futex_wait(&s.taken, 0);
  own_thread_made();
  (void)name;
  return -err;
}

void host_end_thread() {
  if (sys_gettid() == sys_getpid())
    for (;;) sys_call(SYS_pause);  // the process's first thread would stay as a zombie
  own_thread_ends();
  real().pthread_exit(nullptr);
  __builtin_unreachable();
}

}  // namespace weft

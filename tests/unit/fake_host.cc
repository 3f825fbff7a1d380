// fake_host.cc - see fake_host.h: sched/host.h over plain libc, for unit tests alone.
#include "tests/unit/fake_host.h"

#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>

using namespace weft;

namespace {

struct FakeThread {
  std::function<void()>* f;
};

void* (*allocate_tls)(void*);
size_t pthread_bytes, below_bytes, tls_align;

template <class F>
void find(F& out, const char* name) {
  void* p = dlsym(RTLD_DEFAULT, name);
  if (p == nullptr) p = dlvsym(RTLD_DEFAULT, name, "GLIBC_PRIVATE");
  if (p == nullptr) {
    fprintf(stderr, "fake host: libc has no %s\n", name);
    abort();
  }
  out = reinterpret_cast<F>(p);
}

// The words of a TCB that compilers know: tcb, dtv, self, then flags and the guards.
void make_tcb(G* g) {
  auto* fs = reinterpret_cast<char*>(g->fs);
  auto* mine = static_cast<char*>(__builtin_thread_pointer());
  if (allocate_tls(fs) == nullptr) abort();
  memcpy(fs, &fs, 8);
  memcpy(fs + 16, &fs, 8);
  int threads = 1;
  memcpy(fs + 24, &threads, 4);
  memcpy(fs + 0x28, mine + 0x28, 16);
  memcpy(fs + (reinterpret_cast<char*>(&t_g) - mine), &g, sizeof g);
  g->fresh = false;
}

struct Start {
  void (*fn)(void*);
  void* arg;
};

void* start_main(void* p) {
  Start s = *static_cast<Start*>(p);
  delete static_cast<Start*>(p);
  s.fn(s.arg);
  return nullptr;
}

std::atomic<int> failed{0};

}  // namespace

namespace weft {

uint64_t host_now_ns() {
  fake::clock_reads++;
  struct timespec ts;
  clock_gettime(CLOCK_MONOTONIC, &ts);
  return static_cast<uint64_t>(ts.tv_sec) * 1000000000u + static_cast<uint64_t>(ts.tv_nsec);
}

int host_start_thread(void (*fn)(void*), void* arg, const char*) {
  sigset_t all, old;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &old);
  pthread_t pt;
  int err = pthread_create(&pt, nullptr, start_main, new Start{fn, arg});
  pthread_sigmask(SIG_SETMASK, &old, nullptr);
  if (err == 0) fake::kernel_threads_started++;
  return -err;
}

TcbLayout host_tcb_layout() {
  fake::probe();
  return {below_bytes, pthread_bytes + sizeof(FakeThread), tls_align};
}

void host_g_main(G* g) {
  engine_exit(g);
  auto* t = static_cast<FakeThread*>(g->thread);
  (*t->f)();
  delete t->f;
  engine_enter(g);
  g_mark_dead(g);
  g_free(g);
  g_exit();
}

void host_sync_signals(M* m, G* next) {
  m->kmask = next->sigmask;
}

void host_attention(G* g) {
  fake::attentions++;
  if ((g->attention.exchange(0) & kAttPreempt) == 0) return;
  engine_enter(g);
  yield(true);
  engine_exit(g);
}

void host_end_thread() { pthread_exit(nullptr); }

void host_preempt(M*, Preempt) {}
bool host_cancel_due(bool) { return false; }
void host_cancel_at_once() {}
void host_tick(uint64_t) {}
void host_print_stack(G*) {}

}  // namespace weft

namespace fake {

std::atomic<uint32_t> kernel_threads_started{0};
std::atomic<uint32_t> attentions{0};
std::atomic<uint64_t> clock_reads{0};

void probe() {
  if (allocate_tls != nullptr) return;
  void (*static_info)(size_t*, size_t*);
  uint32_t* size;
  find(static_info, "_dl_get_tls_static_info");
  find(size, "_thread_db_sizeof_pthread");
  size_t bytes, align;
  static_info(&bytes, &align);
  tls_align = align < 64 ? 64 : align;
  pthread_bytes = round_up(*size, 16);
  below_bytes = round_up(bytes - *size, tls_align);
  find(allocate_tls, "_dl_allocate_tls");
}

void boot(uint32_t procs, Caller caller) {
  probe();
  BootConfig c{};
  c.procs = procs;
  c.spin_us = 20;
  c.preempt_ms = 0;  // no signals here: a G that computes is left alone
  c.fsgsbase = (getauxval(AT_HWCAP2) & 2) != 0;
  G* g1 = nullptr;
  if (caller == Caller::kG1) {
    g1 = new (aligned_alloc(64, sizeof(G))) G;
    g1->fs = reinterpret_cast<uintptr_t>(__builtin_thread_pointer());
    g1->fresh = false;
    all_gs_add(g1);
  }
  G* slot = g_alloc(64 << 10, 4096);
  make_tcb(slot);
  if (sched_boot(c, g1, slot) != 0) abort();
}

weft::G* go(std::function<void()> f, size_t stack_bytes) {
  auto* copy = new std::function<void()>(std::move(f));
  G* self = this_g();
  if (self != nullptr) engine_enter(self);
  G* g = g_alloc(stack_bytes, 4096);
  if (self != nullptr) engine_exit(self);
  if (g == nullptr) abort();
  if (g->fresh) make_tcb(g);
  g->thread = reinterpret_cast<char*>(g->fs) + pthread_bytes;
  static_cast<FakeThread*>(g->thread)->f = copy;
  g->engine.store(1);
  g->vtid = 1u << 22 | g->index;
  g_prepare(g, g->stack_hi, [](void* p) { host_g_main(static_cast<G*>(p)); }, g);
  if (self != nullptr) engine_enter(self);
  g_start(g);
  if (self != nullptr) engine_exit(self);
  return g;
}

bool wait_until(const std::function<bool()>& event) {
  uint64_t end = host_now_ns() + 10'000'000'000;
  while (!event()) {
    if (host_now_ns() > end) return false;
    if (G* g = this_g()) {
      engine_enter(g);
      yield(false);
      engine_exit(g);
    }
    sys_sched_yield();
  }
  return true;
}

void Mutex::lock() {
  uint32_t free = 0;
  if (w_.compare_exchange_strong(free, 1)) return;
  while (w_.exchange(2) != 0) gfutex_wait(&w_, 2, kNever, Wait::kMutex);
}

void Mutex::unlock() {
  if (w_.exchange(0) == 2) gfutex_wake(&w_, 1);
}

void expect_at(bool ok, const char* what, int line) {
  if (ok) return;
  if (failed++ == 0) fprintf(stderr, "line %d: expected %s\n", line, what);
}

int failures() { return failed.load(); }

}  // namespace fake

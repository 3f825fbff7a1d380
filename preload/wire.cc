// wire.cc - see wire.h.
//
// Wishes live in one array, searched linearly: they are few and short-lived. A wish is made
// and carried out under one lock, so that getters see it or its effect. Who carries it out:
//   the G itself, when kAttWire makes it look (wire_attention), and whenever it is wired
//   the wisher, when it finds under the lock that the G is wired by now
// Either the wisher's locked look at G::wired comes after the G set it, or the G's own
// locked look comes after the wish. A thread that ends before it looked leaves the bit set:
// its slot's next thread forgets the wish (wish_forget).
#include "preload/wire.h"

#include "preload/tcb.h"

#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include "preload/knobs.h"
#include "preload/say.h"
#include "preload/signals.h"
#include "preload/thread.h"

namespace weft {
namespace {

// Of the thread that was wired, and stale in the slot's next one: counts with G::wired.
thread_local constinit bool t_inherits = false;

Lock wish_lock;  // leaf; guards the three below
Wish* wishes;
uint32_t cap_wishes;
std::atomic<uint32_t> n_wishes{0};  // read without the lock for "none at all"

void number(char* out, uint64_t v) {
  char digits[20];
  int n = 0;
  do digits[n++] = static_cast<char>('0' + v % 10);
  while ((v /= 10) != 0);
  while (n > 0) *out++ = digits[--n];
  *out = 0;
}

Wish* find_locked(const G* g) {
  uint32_t n = n_wishes.load(std::memory_order_relaxed);
  for (uint32_t i = 0; i < n; i++)
    if (wishes[i].g == g) return &wishes[i];
  return nullptr;
}

bool grow_locked() {
  uint32_t cap = cap_wishes == 0 ? 16 : cap_wishes * 2;
  void* mem = sys_mmap(nullptr, cap * sizeof(Wish), PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS);
  if (sys_failed(mem)) return false;
  if (cap_wishes != 0) {
    memcpy(mem, wishes, cap_wishes * sizeof(Wish));
    sys_munmap(wishes, cap_wishes * sizeof(Wish));
  }
  wishes = static_cast<Wish*>(mem);
  cap_wishes = cap;
  return true;
}

Wish* make_locked(G* g) {
  if (Wish* w = find_locked(g)) return w;
  uint32_t n = n_wishes.load(std::memory_order_relaxed);
  if (n == cap_wishes && !grow_locked()) return nullptr;
  n_wishes.store(n + 1, std::memory_order_relaxed);
  Wish* w = &wishes[n];
  w->g = g;
  w->has_sched = w->has_nice = w->has_mask = false;
  return w;
}

void remove_locked(Wish* w) {
  uint32_t n = n_wishes.load(std::memory_order_relaxed) - 1;
  *w = wishes[n];
  n_wishes.store(n, std::memory_order_release);
}

// g has a kernel thread of its own: `ktid`, or 0 when it is the caller.
void carry_out_locked(Wish* w, pid_t ktid) {
  if (w->has_mask)
    sys_call(SYS_sched_setaffinity, ktid, sys_arg(w->mask_bytes), sys_arg(&w->mask[0]));
  if (w->has_nice) sys_call(SYS_setpriority, PRIO_PROCESS, ktid, w->nice);
  if (w->has_sched) {
    struct sched_param p = {};
    p.sched_priority = w->priority;
    sys_call(SYS_sched_setscheduler, ktid, w->policy, sys_arg(&p));
  }
  remove_locked(w);
}

// libc keeps a thread's policy and priority in its TCB too (tcb.cc) and reckons priority
// ceilings from there. What was written at the start of a life need not be true any more;
// a wish was carried out past libc. Main's TCB was always libc's.
void tell_libc_scheduling(G* g, bool wished) {
  if (g == first_thread() && !wished) return;
  struct sched_param p = {};
  auto policy = static_cast<int>(sys_call(SYS_sched_getscheduler, 0));
  sys_call(SYS_sched_getparam, 0, sys_arg(&p));
  real().pthread_setschedparam(g->fs, policy, &p);
}

template <class F>
auto locked(F f) {
  Door in;
  Hold hold(wish_lock);
  return f();
}

}  // namespace

void enter_to_stay(G* g) {
  constexpr int kTries = 4000;  // an M may have to be made first
  engine_enter(g);
  if (g == first_thread()) return;
  for (int i = 0; i < kTries && g->m->tid.load(std::memory_order_relaxed) == sys_getpid(); i++) {
    if (i != 0) sys_sleep_ns(50'000);
    leave_m();
  }
}

bool wire_inherited() { return t_inherits && t_g != nullptr && t_g->wired; }

void wire_thread(const char* why) {
  wire_thread_for_lock(why);
  t_inherits = true;
}

void wire_thread_for_lock(const char* why) {
  G* g = this_g();
  if (g == nullptr) return;
  t_inherits = false;
  if (knobs().wire) {
    char id[24] = " ";
    number(id + 1, g->vtid);
    char text[80] = ": ";
    strncpy(text + 2, why, sizeof text - 3);
    say_line("weft: wired thread", id, text);
  }
  if (g->engine.load(std::memory_order_relaxed) == 0) enter_to_stay(g);
  wire_self(why);
  signals_wired(g);
  tcb_wire(g);
  // Locked all the way: what another thread sets between the look and the telling would be undone.
  locked([&] {
    Wish* w = find_locked(g);
    bool wished = w != nullptr && w->has_sched;
    if (w != nullptr) carry_out_locked(w, 0);
    tell_libc_scheduling(g, wished);
    return 0;
  });
  thread_of(g)->libc_told.store(true, std::memory_order_release);
  pending_wired(g);  // last: handlers may run here, and see all of it done
}

bool wish_add(G* g, void (*change)(Wish* w, const void* arg), const void* arg) {
  return locked([&] {
    Wish* w = make_locked(g);
    if (w == nullptr) return false;
    change(w, arg);
    if (g->wired) carry_out_locked(w, g->m->tid.load(std::memory_order_relaxed));
    else g->attention.fetch_or(kAttWire, std::memory_order_release);
    return true;
  });
}

bool wish_get(G* g, Wish* out) {
  if (n_wishes.load(std::memory_order_acquire) == 0) return false;  // after the last was carried out
  return locked([&] {
    Wish* w = find_locked(g);
    if (w == nullptr) return false;
    *out = *w;
    return true;
  });
}

void wish_settle(G* g) {
  if (n_wishes.load(std::memory_order_acquire) == 0) return;
  locked([&] {
    Wish* w = find_locked(g);
    if (w != nullptr && g->wired) carry_out_locked(w, g->m->tid.load(std::memory_order_relaxed));
    return 0;
  });
}

void wish_forget(G* g) {
  locked([&] {
    if (Wish* w = find_locked(g)) remove_locked(w);
    return 0;
  });
}

void wire_attention(G*) { wire_thread("another thread set its scheduling"); }

void wire_after_fork() {
  if (wish_lock.held()) {  // cut off while it grew: the old array may be gone
    wishes = nullptr;
    cap_wishes = 0;
  }
  wish_lock.reset();
  n_wishes.store(0, std::memory_order_relaxed);
}

}  // namespace weft

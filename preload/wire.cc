// wire.cc - see wire.h.
//
// Wishes live in one array, searched linearly: they are few and short-lived. One is valid
// only while its G has kAttWire set; a slot's next thread starts without the bit, so what
// was wished for the last one is never carried out.
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

Lock wish_lock;  // leaf; guards the three below
Wish* wishes;
uint32_t n_wishes, cap_wishes;

void number(char* out, uint64_t v) {
  char digits[20];
  int n = 0;
  do digits[n++] = static_cast<char>('0' + v % 10);
  while ((v /= 10) != 0);
  while (n > 0) *out++ = digits[--n];
  *out = 0;
}

bool valid(const Wish& w) {
  return (w.g->attention.load(std::memory_order_acquire) & kAttWire) != 0;
}

Wish* find_locked(const G* g) {
  for (uint32_t i = 0; i < n_wishes; i++)
    if (wishes[i].g == g) return &wishes[i];
  return nullptr;
}

bool grow_locked() {
  uint32_t cap = cap_wishes == 0 ? 16 : cap_wishes * 2;
  void* mem = sys_mmap(nullptr, cap * sizeof(Wish), PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS);
  if (sys_failed(mem)) return false;
  if (cap_wishes != 0) {
    memcpy(mem, wishes, n_wishes * sizeof(Wish));
    sys_munmap(wishes, cap_wishes * sizeof(Wish));
  }
  wishes = static_cast<Wish*>(mem);
  cap_wishes = cap;
  return true;
}

Wish* make_locked(G* g) {
  Wish* w = find_locked(g);
  if (w != nullptr && valid(*w)) return w;
  for (uint32_t i = 0; w == nullptr && i < n_wishes; i++)
    if (!valid(wishes[i])) w = &wishes[i];
  if (w == nullptr) {
    if (n_wishes == cap_wishes && !grow_locked()) return nullptr;
    w = &wishes[n_wishes++];
  }
  w->g = g;
  w->has_sched = w->has_nice = w->has_mask = false;
  return w;
}

template <class F>
auto locked(F f) {
  G* self = this_g();
  if (self != nullptr) engine_enter(self);
  wish_lock.lock();
  auto r = f();
  wish_lock.unlock();
  if (self != nullptr) engine_exit(self);
  return r;
}

}  // namespace

void wire_thread(const char* why) {
  G* g = this_g();
  if (g == nullptr) return;
  if (knobs().wire) {
    char id[24] = " ";
    number(id + 1, g->vtid);
    char text[80] = ": ";
    strncpy(text + 2, why, sizeof text - 3);
    say_line("weft: wired thread", id, text);
  }
  wire_self(why);
  signals_wired(g);
  tcb_wire(g);
}

bool wish_add(G* g, void (*change)(Wish* w, const void* arg), const void* arg) {
  return locked([&] {
    Wish* w = make_locked(g);
    if (w == nullptr) return false;
    change(w, arg);
    // Release: the G's exchange of attention acquires the wish (and the lock orders it).
    g->attention.fetch_or(kAttWire, std::memory_order_release);
    return true;
  });
}

bool wish_get(G* g, Wish* out) {
  if ((g->attention.load(std::memory_order_acquire) & kAttWire) == 0) return false;
  return locked([&] {
    Wish* w = find_locked(g);
    if (w == nullptr || !valid(*w)) return false;
    *out = *w;
    return true;
  });
}

void wire_attention(G* g) {
  Wish w;
  bool found = locked([&] {
    Wish* mine = find_locked(g);
    if (mine == nullptr) return false;
    w = *mine;
    *mine = wishes[--n_wishes];
    return true;
  });
  if (!found) return;
  wire_thread("another thread set its scheduling");
  if (w.has_mask)
    sys_call(SYS_sched_setaffinity, 0, sys_arg(w.mask_bytes), sys_arg(&w.mask[0]));
  if (w.has_nice) sys_call(SYS_setpriority, PRIO_PROCESS, 0, w.nice);
  if (w.has_sched) {
    struct sched_param p = {};
    p.sched_priority = w.priority;
    sys_call(SYS_sched_setscheduler, 0, w.policy, sys_arg(&p));
  }
}

void wire_after_fork() {
  wish_lock.reset();
  n_wishes = 0;
}

}  // namespace weft

// wire.h - a G becomes a 1:1 thread: the answer wherever state belongs to a kernel thread.
//
// A thread may also be told by another one to change such state (pthread_setaffinity_np,
// sched_setscheduler by tid ...). It is then left a wish, which it carries out itself when
// it next leaves the engine; getters answer from the wish until then.
#pragma once

#include "preload/api.h"

namespace weft {

// Wires the calling G; nothing on foreign threads and wired Gs. `why` is constant text,
// shown under WEFT_DEBUG=wire=1. Outside the engine or at depth 1, which it leaves.
void wire_thread(const char* why);
// The calling thread was wired by something that threads inherit from their creator: those
// it creates are to be native ones (kernel threads made by this one). A mutex is no such
// thing: wire_thread_for_lock.
bool wire_inherited();
void wire_thread_for_lock(const char* why);

// Enters the engine before something that ties g, the caller, to its kernel thread. That is not to be the
// process's first: it has main's id, by which the kernel and libc know who owns a lock (a PI mutex
// that main held let the other lock it again, or wait for itself), and it does not end when the thread does.
void enter_to_stay(G* g);

// f is a raw system call that changes the calling kernel thread. Where it succeeds, the G
// stays with this thread for good. f's answer.
template <class F>
long native_self(const char* why, F f) {
  G* g = this_g();
  if (g == nullptr) return f();
  enter_to_stay(g);  // not to be moved between the call and the wiring
  long r = f();
  if (r < 0) engine_exit(g);
  else wire_thread(why);
  return r;
}

// The same on an M that is to be as it was: f puts back what it tried.
template <class F>
long try_out(F f) {
  G* g = this_g();
  if (g == nullptr) return f();
  engine_enter(g);
  long r = f();
  engine_exit(g);
  return r;
}

constexpr size_t kMaskBytes = 1024;  // 8192 CPUs, the most that x86-64 kernels are built for

struct Wish {
  G* g = nullptr;
  bool has_sched = false, has_nice = false, has_mask = false;
  int policy = 0, priority = 0, nice = 0;
  size_t mask_bytes = 0;
  unsigned char mask[kMaskBytes];
};

// Adds to g's wish what `change` sets. False: no memory.
bool wish_add(G* g, void (*change)(Wish* w, const void* arg), const void* arg);
// Copies g's wish; false if there is none.
bool wish_get(G* g, Wish* out);
// g is wired by now: what was wished for it before is carried out, so that what the caller
// does next comes after it.
void wish_settle(G* g);
// g's slot begins a new life and kAttWire was still set in the last one.
void wish_forget(G* g);
// host_attention found kAttWire: g, the caller, carries its wish out.
void wire_attention(G* g);
void wire_after_fork();

}  // namespace weft

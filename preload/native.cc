// native.cc - see native.h.
//
// A thread of libc's own counts among those whose last one's end is exit(0) (last.h), so its
// end must be seen, be it by return, pthread_exit or a cancel. What sees it is a key whose
// destructor sets the value again until libc's last round: by then thread_locals and the values of
// the program's keys are gone, and what exits is a thread with its TLS, as natively. (libc's own
// count never falls to the last one: it has our Ms.)
//
// Callers: thread.cc, on any thread, outside the engine.
#include "preload/native.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>

#include "preload/last.h"
#include "preload/real.h"

namespace weft {
namespace {

struct Start {
  void* (*fn)(void*);
  int (*fn_c11)(void*);
  void* arg;
  int rounds;    // of destructors so far
  bool counted;
};

std::atomic<uint32_t> key_plus_1{0};  // 0: none yet. Made when first needed: they are few

pthread_key_t key() { return key_plus_1.load(std::memory_order_acquire) - 1; }

void ended(void* p) {
  auto* s = static_cast<Start*>(p);
  if (++s->rounds < PTHREAD_DESTRUCTOR_ITERATIONS && real().pthread_setspecific(key(), s) == 0) return;
  free(s);
  if (last_ended_native()) exit(0);
}

bool make_key() {
  if (key_plus_1.load(std::memory_order_acquire) != 0) return true;
  pthread_key_t k;
  if (real().pthread_key_create(&k, ended) != 0) return false;
  uint32_t none = 0;
  if (!key_plus_1.compare_exchange_strong(none, k + 1, std::memory_order_acq_rel))
    real().pthread_key_delete(k);  // another creator's stands
  return true;
}

void* run(void* p) {
  auto* s = static_cast<Start*>(p);
  Start mine = *s;
  if (!mine.counted) {
    free(s);
  } else if (real().pthread_setspecific(key(), s) != 0) {  // no memory: nobody waits for its end then
    free(s);
    last_ended_native();
  }
  if (mine.fn_c11 == nullptr) return mine.fn(mine.arg);
  return reinterpret_cast<void*>(static_cast<intptr_t>(mine.fn_c11(mine.arg)));
}

}  // namespace

int native_create(pthread_t* out, const pthread_attr_t* attr, void* (*start)(void*),
                  int (*start_c11)(void*), void* arg) {
  auto* s = static_cast<Start*>(malloc(sizeof(Start)));
  if (s == nullptr) return EAGAIN;
  // Where the program has used up all keys, a thread runs all the same, and main's end may cut it short.
  *s = Start{start, start_c11, arg, 0, make_key()};
  bool counted = s->counted;
  if (counted) last_began_native();
  int err = real().pthread_create(out, attr, run, s);
  if (err == 0) return 0;
  if (counted) last_ended_native();  // the caller lives: not the last
  free(s);
  return err;
}

}  // namespace weft

// tsd.cc - thread-specific data: libc keeps the values, we keep the destructors.
//
// Values live in struct pthread, which is per G, so pthread_getspecific stays libc's. Its
// function that runs destructors is hidden; hence the table of keys here. setspecific is
// interposed only to note that a thread has values at all: most have none.
//
// A key deleted while a thread ends: its destructor may or may not run, as natively.
#include <limits.h>
#include <threads.h>

#include "preload/api.h"
#include "preload/thread.h"

namespace weft {
namespace {

struct Key {
  std::atomic<bool> used{false};
  std::atomic<void (*)(void*)> destructor{nullptr};
};
Key keys[PTHREAD_KEYS_MAX];
std::atomic<uint32_t> keys_end{0};  // one past the highest key ever made

void note_key(pthread_key_t key, void (*destructor)(void*)) {
  if (key >= PTHREAD_KEYS_MAX) return;
  keys[key].destructor.store(destructor, std::memory_order_relaxed);
  keys[key].used.store(true, std::memory_order_release);  // pairs with the run's acquire
  uint32_t end = keys_end.load(std::memory_order_relaxed);
  while (end <= key &&
         !keys_end.compare_exchange_weak(end, key + 1, std::memory_order_acq_rel)) {
  }
}

}  // namespace

void tsd_run_destructors(Thread* t) {
  if (!t->tsd_used) return;
  uint32_t end = keys_end.load(std::memory_order_acquire);
  for (int round = 0; round < PTHREAD_DESTRUCTOR_ITERATIONS; round++) {
    bool again = false;
    for (uint32_t k = 0; k < end; k++) {
      if (!keys[k].used.load(std::memory_order_acquire)) continue;
      void* value = pthread_getspecific(k);
      if (value == nullptr) continue;
      real().pthread_setspecific(k, nullptr);
      auto* destructor = keys[k].destructor.load(std::memory_order_relaxed);
      if (destructor == nullptr) continue;
      destructor(value);
      again = true;
    }
    if (!again) break;
  }
  // What destructors keep setting is dropped: the slot's next thread starts with nulls.
  for (uint32_t k = 0; k < end; k++)
    if (pthread_getspecific(k) != nullptr) real().pthread_setspecific(k, nullptr);
  t->tsd_used = false;
}

}  // namespace weft

using namespace weft;

WEFT_EXPORT int pthread_key_create(pthread_key_t* key, void (*destructor)(void*)) {
  int r = real().pthread_key_create(key, destructor);
  if (r == 0) note_key(*key, destructor);
  return r;
}
WEFT_TWIN(int, __pthread_key_create, pthread_key_create, (pthread_key_t*, void (*)(void*)));

WEFT_EXPORT int pthread_key_delete(pthread_key_t key) {
  if (key < PTHREAD_KEYS_MAX) keys[key].used.store(false, std::memory_order_relaxed);
  return real().pthread_key_delete(key);
}

WEFT_EXPORT int pthread_setspecific(pthread_key_t key, const void* value) {
  if (Thread* t = own_thread()) t->tsd_used = true;
  return real().pthread_setspecific(key, value);
}

WEFT_EXPORT int tss_create(tss_t* key, tss_dtor_t destructor) {
  return pthread_key_create(key, destructor) == 0 ? thrd_success : thrd_error;
}

WEFT_EXPORT void tss_delete(tss_t key) { pthread_key_delete(key); }

WEFT_EXPORT int tss_set(tss_t key, void* value) {
  return pthread_setspecific(key, value) == 0 ? thrd_success : thrd_error;
}

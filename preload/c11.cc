// c11.cc - mtx_*, cnd_* and call_once: the POSIX functions under their other names.
//
// glibc's types have the same layout; init and destroy of mtx_t and init of cnd_t are
// libc's own. Results are C11's.
#include <threads.h>

#include "preload/mutex.h"

extern "C" {
int pthread_mutex_lock(pthread_mutex_t*) noexcept;
}

namespace weft {
namespace {

int answer(int err) {
  switch (err) {
    case 0: return thrd_success;
    case EBUSY: return thrd_busy;
    case ETIMEDOUT: return thrd_timedout;
    case ENOMEM: return thrd_nomem;
    default: return thrd_error;
  }
}

pthread_mutex_t* posix(mtx_t* m) { return reinterpret_cast<pthread_mutex_t*>(m); }
pthread_cond_t* posix(cnd_t* c) { return reinterpret_cast<pthread_cond_t*>(c); }
static_assert(sizeof(mtx_t) == sizeof(pthread_mutex_t) && sizeof(cnd_t) == sizeof(pthread_cond_t));
static_assert(sizeof(once_flag) == sizeof(pthread_once_t));

}  // namespace
}  // namespace weft

using namespace weft;

WEFT_EXPORT int mtx_lock(mtx_t* m) { return answer(pthread_mutex_lock(posix(m))); }
WEFT_EXPORT int mtx_trylock(mtx_t* m) { return answer(pthread_mutex_trylock(posix(m))); }
WEFT_EXPORT int mtx_unlock(mtx_t* m) { return answer(pthread_mutex_unlock(posix(m))); }
WEFT_EXPORT int mtx_timedlock(mtx_t* m, const struct timespec* abs) {
  return answer(pthread_mutex_timedlock(posix(m), abs));
}

WEFT_EXPORT int cnd_wait(cnd_t* c, mtx_t* m) { return answer(pthread_cond_wait(posix(c), posix(m))); }
WEFT_EXPORT int cnd_timedwait(cnd_t* c, mtx_t* m, const struct timespec* abs) {
  return answer(pthread_cond_timedwait(posix(c), posix(m), abs));
}
WEFT_EXPORT int cnd_signal(cnd_t* c) { return answer(pthread_cond_signal(posix(c))); }
WEFT_EXPORT int cnd_broadcast(cnd_t* c) { return answer(pthread_cond_broadcast(posix(c))); }
WEFT_EXPORT void cnd_destroy(cnd_t* c) { pthread_cond_destroy(posix(c)); }

WEFT_EXPORT void call_once(once_flag* flag, void (*fn)(void)) {
  pthread_once(reinterpret_cast<pthread_once_t*>(flag), fn);
}

// native.h - threads that are kernel threads from the first: what pthread_create falls back to.
#pragma once

#include <pthread.h>

namespace weft {

// As libc's pthread_create; `start_c11` instead of `start` for thrd_create. 0 or an error number.
int native_create(pthread_t* out, const pthread_attr_t* attr, void* (*start)(void*),
                  int (*start_c11)(void*), void* arg);

}  // namespace weft

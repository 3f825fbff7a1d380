// spawn_attr.h - what a pthread_attr_t asks of a new G.
#pragma once

#include <pthread.h>

#include "sched/base.h"

namespace weft {

struct SpawnAttr {
  void* user_stack = nullptr;  // the program's, used whole
  size_t stack_bytes = 0;
  size_t guard_bytes = 4096;
  bool detached = false;
  bool explicit_sched = false;  // and yet what all have: SCHED_OTHER
  bool has_sigmask = false;
  uint64_t sigmask = 0;
};

// Reads attr (null: defaults). False: it asks for what only a kernel thread can give.
bool spawn_attr(const pthread_attr_t* attr, SpawnAttr* out);
// After pthread_setattr_default_np.
void spawn_attr_forget_default();

}  // namespace weft

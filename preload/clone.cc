// clone.cc - libc's clone() from a G: a fork, a vfork with a stack of its own, or a thread
// that libc does not know.
//
//   without CLONE_VM          as fork without handlers: the child forgets the scheduler (fork.h)
//   CLONE_VM | CLONE_VFORK    as vfork: this kernel thread sleeps until the child execs
//   CLONE_VM, no CLONE_SETTLS the new thread shares our TCB while we run on: the caller is
//                             wired first, so that both are native from here on
//   CLONE_VM | CLONE_SETTLS   the new thread brings its own TLS, and is foreign
#include <sched.h>
#include <stdarg.h>

#include "preload/api.h"
#include "preload/fork.h"
#include "preload/io_fd.h"
#include "preload/vfork.h"
#include "preload/wire.h"

namespace weft {
namespace {

struct Start {
  int (*fn)(void*);
  void* arg;
  bool vfork;
};

// The Start lies on the parent's stack: the child has a copy, or the parent sleeps.
int child_main(void* p) {
  Start s = *static_cast<Start*>(p);
  if (s.vfork) {
    t_g = nullptr;
    t_vfork_depth = t_vfork_depth + 1;
  } else {
    fork_in_raw_child();
  }
  return s.fn(s.arg);
}

int clone_forking(int (*fn)(void*), void* stack, int flags, void* arg, pid_t* ptid, void* tls,
                  pid_t* ctid) {
  Start s{fn, arg, false};
  fork_begin();
  int pid = real().clone(child_main, stack, flags, &s, ptid, tls, ctid);
  fork_in_parent();
  return pid;
}

int clone_vforking(int (*fn)(void*), void* stack, int flags, void* arg, pid_t* ptid, void* tls,
                   pid_t* ctid) {
  Start s{fn, arg, true};
  G* g = t_g;
  uint32_t depth = t_vfork_depth;
  if (depth == 0) io_descriptors_shared();
  bool bracket = depth == 0 && this_g() != nullptr && g_state(g) == GState::kRunning;
  if (bracket) enter_syscall(g);
  int pid = real().clone(child_main, stack, flags, &s, ptid, tls, ctid);
  t_vfork_depth = depth;
  t_g = g;
  if (bracket) exit_syscall(g);
  return pid;
}

int clone_any(int (*fn)(void*), void* stack, int flags, void* arg, pid_t* ptid, void* tls,
              pid_t* ctid) {
  if (fn == nullptr || stack == nullptr || (flags & CLONE_SETTLS) != 0)
    return real().clone(fn, stack, flags, arg, ptid, tls, ctid);
  if ((flags & CLONE_VM) == 0) return clone_forking(fn, stack, flags, arg, ptid, tls, ctid);
  if ((flags & CLONE_VFORK) != 0) return clone_vforking(fn, stack, flags, arg, ptid, tls, ctid);
  wire_thread("clone with a shared TCB");
  return real().clone(fn, stack, flags, arg, ptid, tls, ctid);
}

}  // namespace
}  // namespace weft

using namespace weft;

#define CLONE_BODY                                                            \
  va_list ap;                                                                 \
  va_start(ap, arg);                                                          \
  auto* ptid = va_arg(ap, pid_t*);                                            \
  void* tls = va_arg(ap, void*);                                              \
  auto* ctid = va_arg(ap, pid_t*);                                            \
  va_end(ap);                                                                 \
  return clone_any(fn, stack, flags, arg, ptid, tls, ctid)

// Absent optional arguments are read as whatever stands there and go to the kernel, which
// looks at them only when the flags say so.
WEFT_EXPORT int clone(int (*fn)(void*), void* stack, int flags, void* arg, ...) { CLONE_BODY; }
WEFT_EXPORT int __clone(int (*fn)(void*), void* stack, int flags, void* arg, ...) { CLONE_BODY; }

// wait.cc - waiting for children: wait, waitpid, waitid, wait3, wait4.
//
// A G asks once without waiting, then sleeps in the kernel inside the syscall protocol, on
// its M, with the P given away. Parking on a pidfd was rejected: it saves a kernel thread
// per waiting G, but each of those has a whole process to wait for; and the descriptor
// would take the number that a close()+open() pair in another thread counts on.
//
// EINTR and SA_RESTART are the kernel's. Cancellation points, all of them.
// __WNOTHREAD is dropped for Gs: "children of this thread" would mean the M's.
#include <sys/wait.h>

#include "preload/cancel.h"
#include "preload/api.h"

using namespace weft;

namespace {

bool on_g() { return this_g() != nullptr; }

// f(options) is the raw call; `none` says that its answer means "nothing yet".
template <class F, class None>
long wait_loop(int options, F f, None none) {
  options &= ~__WNOTHREAD;
  cancel_point();
  long r = f(options | WNOHANG);
  if ((options & WNOHANG) != 0 || !none(r)) return r;
  r = in_cancel_syscall_block([&] { return f(options); });
  if (r == -EINTR) cancel_point();
  return r;
}

pid_t g_wait4(pid_t pid, int* status, int options, struct rusage* usage) {
  long r = wait_loop(
      options,
      [&](int o) { return sys_call(SYS_wait4, pid, sys_arg(status), o, sys_arg(usage)); },
      [](long got) { return got == 0; });
  return static_cast<pid_t>(errno_ret(r));
}

}  // namespace

WEFT_EXPORT pid_t wait4(pid_t pid, int* status, int options, struct rusage* usage) {
  return on_g() ? g_wait4(pid, status, options, usage) : real().wait4(pid, status, options, usage);
}

WEFT_EXPORT pid_t waitpid(pid_t pid, int* status, int options) {
  return on_g() ? g_wait4(pid, status, options, nullptr) : real().waitpid(pid, status, options);
}
WEFT_EXPORT pid_t __waitpid(pid_t pid, int* status, int options) {
  return waitpid(pid, status, options);
}

WEFT_EXPORT pid_t wait(int* status) {
  return on_g() ? g_wait4(-1, status, 0, nullptr) : real().wait(status);
}
WEFT_EXPORT pid_t __wait(int* status) { return wait(status); }

WEFT_EXPORT pid_t wait3(int* status, int options, struct rusage* usage) {
  return on_g() ? g_wait4(-1, status, options, usage) : real().wait3(status, options, usage);
}

WEFT_EXPORT int waitid(idtype_t type, id_t id, siginfo_t* info, int options) {
  if (!on_g()) return real().waitid(type, id, info, options);
  siginfo_t mine;  // "nothing yet" shows in si_pid only
  siginfo_t* out = info != nullptr ? info : &mine;
  long r = wait_loop(
      options,
      [&](int o) {
        out->si_pid = 0;
        return sys_call(SYS_waitid, static_cast<long>(type), id, sys_arg(out), o, 0);
      },
      [&](long got) { return got == 0 && out->si_pid == 0; });
  return static_cast<int>(errno_ret(r));
}

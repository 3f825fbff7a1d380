// sigkill.cc - sending: kill, pthread_kill, raise, tgkill, sigqueue and their like.
//
// A target that is a G gets it by signal_g, a wired one or a foreign thread by the kernel.
// A process signal to ourselves that has a handler goes to a G by weft's own choice, in the
// kernel's order: main if it accepts it, else the caller, else anybody.
#include <string.h>

#include "preload/api.h"
#include "preload/ids.h"
#include "preload/signals.h"
#include "preload/thread.h"
#include "preload/vfork.h"

using namespace weft;

namespace {

siginfo_t info_from_self(int sig, int code) {
  siginfo_t info;
  memset(&info, 0, sizeof info);
  info.si_signo = sig;
  info.si_code = code;
  info.si_pid = sys_getpid();
  info.si_uid = static_cast<uid_t>(sys_call(SYS_getuid));
  return info;
}

int send(G* g, int sig, const siginfo_t* info) {
  Thread* t = thread_of(g);
  if (!t->alive.load(std::memory_order_acquire)) return 0;  // libc's looks no further, whatever sig is
  if (sig < 0 || sig > 64) return EINVAL;
  if (sig == 0) return 0;
  return -signal_g(g, sig, info);
}

}  // namespace

// POSIX pthread_kill. To itself: the handler has run when it returns.
WEFT_EXPORT int pthread_kill(pthread_t pt, int sig) {
  G* g = g_of(pt);
  if (g == nullptr) return real().pthread_kill(pt, sig);
  if (sig == 32 || sig == 33) return EINVAL;
  siginfo_t info = info_from_self(sig, SI_TKILL);
  return send(g, sig, &info);
}

WEFT_EXPORT int pthread_sigqueue(pthread_t pt, int sig, const union sigval value) {
  G* g = g_of(pt);
  if (g == nullptr) return real().pthread_sigqueue(pt, sig, value);
  if (!thread_of(g)->alive.load(std::memory_order_acquire)) return ESRCH;
  if (sig == 32 || sig == 33) return EINVAL;
  siginfo_t info = info_from_self(sig, SI_QUEUE);
  info.si_value = value;
  return send(g, sig, &info);
}

WEFT_EXPORT int raise(int sig) {
  G* g = this_g();
  if (g == nullptr) return real().raise(sig);
  if (sig == 32 || sig == 33) {
    errno = EINVAL;
    return -1;
  }
  siginfo_t info = info_from_self(sig, SI_TKILL);
  int err = send(g, sig, &info);
  if (err == 0) return 0;
  errno = err;
  return -1;
}

WEFT_EXPORT int gsignal(int sig) { return raise(sig); }

namespace weft {
namespace {

bool here(long pid) { return sched.booted.load(std::memory_order_relaxed) && pid == sys_getpid(); }

// To ourselves: the kernel would pick a kernel thread. POSIX: where only the caller accepts
// it, it is delivered before kill returns.
long to_process(int sig, const siginfo_t* info) {
  uint64_t bit = sig_bit(sig);
  G* self = this_g();
  for (int tries = 0; tries < 8; tries++) {
    G* g = who_accepts(bit);
    if (g == nullptr) g = who_handles(bit);
    if (g == nullptr) break;
    if (g != first_thread() && self != nullptr && (self->sigmask & bit) == 0) g = self;
    int r = signal_g_of_process(g, sig, info);
    if (r != -ESRCH) return r;
  }
  masks_close(bit);  // it is to stay pending in the kernel, for all to see
  return 1;
}

}  // namespace

long signals_kill(long pid, long sig) {
  if (!in_vfork_child() && sched.booted.load(std::memory_order_relaxed) && pid > 0) {
    if (g_of_vtid(static_cast<pid_t>(pid)) != nullptr) pid = sys_getpid();
    if (here(pid) && sig > 0 && sig < kSignals && sig != 32 && sig != 33 &&
        has_handler(static_cast<int>(sig))) {
      siginfo_t info = info_from_self(static_cast<int>(sig), SI_USER);
      long r = to_process(static_cast<int>(sig), &info);
      if (r <= 0) return r;
    }
  }
  return sys_call(SYS_kill, pid, sig);
}

long signals_queue(long pid, long sig, const siginfo_t* info) {
  if (!in_vfork_child() && here(pid) && sig > 0 && sig < kSignals && sig != 32 && sig != 33 &&
      has_handler(static_cast<int>(sig))) {
    long r = to_process(static_cast<int>(sig), info);
    if (r <= 0) return r;
  }
  return sys_call(SYS_rt_sigqueueinfo, pid, sig, sys_arg(info));
}

long signals_tgkill(long tgid, long tid, long sig) {
  G* g = sched.booted.load(std::memory_order_relaxed) && (tgid == -1 || tgid == sys_getpid())
             ? g_of_vtid(static_cast<pid_t>(tid))
             : nullptr;
  if (g == nullptr)
    return tgid == -1 ? sys_call(SYS_tkill, tid, sig) : sys_call(SYS_tgkill, tgid, tid, sig);
  siginfo_t info = info_from_self(static_cast<int>(sig), SI_TKILL);
  return -send(g, static_cast<int>(sig), &info);
}

long signals_tgqueue(long tgid, long tid, long sig, const siginfo_t* info) {
  G* g = sched.booted.load(std::memory_order_relaxed) && tgid == sys_getpid()
             ? g_of_vtid(static_cast<pid_t>(tid))
             : nullptr;
  if (g == nullptr) return sys_call(SYS_rt_tgsigqueueinfo, tgid, tid, sig, sys_arg(info));
  return -send(g, static_cast<int>(sig), info);
}

}  // namespace weft

WEFT_EXPORT int tgkill(pid_t tgid, pid_t tid, int sig) {
  return static_cast<int>(errno_ret(signals_tgkill(tgid, tid, sig)));
}

WEFT_EXPORT int kill(pid_t pid, int sig) noexcept {
  return static_cast<int>(errno_ret(signals_kill(pid, sig)));
}

WEFT_EXPORT int sigqueue(pid_t pid, int sig, const union sigval value) noexcept {
  siginfo_t info = info_from_self(sig, SI_QUEUE);
  info.si_value = value;
  return static_cast<int>(errno_ret(signals_queue(pid, sig, &info)));
}

// thread_state.cc - system calls that change the calling kernel thread: the caller is wired.
//
// Namespaces, credentials of one thread, the tracer's identity, execution domain, filters.
// The call is made first and the G wired only when it worked; where the call merely asks
// (personality(-1), setfsuid(-1)) or changes nothing, it is not wired at all.
#include <sched.h>
#include <stdarg.h>
#include <sys/fsuid.h>
#include <sys/io.h>
#include <sys/personality.h>
#include <sys/ptrace.h>

#include "preload/fork.h"
#include "preload/ids.h"
#include "preload/kcall.h"
#include "preload/tcb.h"
#include "preload/thread.h"
#include "preload/wire.h"

namespace weft {
namespace {

// setfsuid and setfsgid answer the old value, never an error.
long set_fsid(long nr, long id) {
  G* g = this_g();
  if (g == nullptr) return sys_call(nr, id);
  enter_to_stay(g);
  long old = sys_call(nr, id);
  if (sys_call(nr, -1) != old) wire_thread("setfsuid or setfsgid");
  else engine_exit(g);
  return old;
}

long set_personality(unsigned long p) {
  G* g = this_g();
  if (g == nullptr) return sys_call(SYS_personality, sys_arg(p));
  enter_to_stay(g);
  long old = sys_call(SYS_personality, sys_arg(p));
  if (old >= 0 && sys_call(SYS_personality, 0xffffffff) != old) wire_thread("personality");
  else engine_exit(g);
  return old;
}

// The kernel thread that attached last for the calling G.
thread_local constinit int t_tracer_ktid = 0;

long trace_on(int ktid, const long a[4]) {
  if (ktid == 0) return -ESRCH;
  KCall call{SYS_ptrace, a[0], a[1], a[2], a[3], -ESRCH};
  kcall_lock();  // may park: which M we are on is known only from here on
  G* g = this_g();
  if (g != nullptr) engine_enter(g);
  if (ktid == sys_gettid()) call.result = sys_call(SYS_ptrace, a[0], a[1], a[2], a[3]);
  else if (!kcall_on(ktid, &call)) call.result = -ESRCH;
  if (g != nullptr) engine_exit(g);
  kcall_unlock();
  return call.result;
}

// To the kernel a tracer is one thread: the M that attached, or the one that forked a child
// which asked to be traced (TRACEME). The G may have left it since. So whichever M is the
// tracer is asked to make the call. Wiring would not do: it is too late when a child stops,
// and the M of a wired G ends with it, which would let every tracee go.
long trace(const long a[4]) {
  long request = a[0];
  auto raw = [&] { return sys_call(SYS_ptrace, a[0], a[1], a[2], a[3]); };
  if (request == PTRACE_TRACEME) return native_self("ptrace", raw);
  if (request == PTRACE_ATTACH || request == PTRACE_SEIZE)
    return try_out([&] {
      t_tracer_ktid = sys_gettid();
      return raw();
    });
  long r = raw();
  if (r == -ESRCH) r = trace_on(t_tracer_ktid, a);
  if (r == -ESRCH) r = trace_on(t_fork_ktid, a);
  M* m = sched.all_m.load(std::memory_order_acquire);
  for (; r == -ESRCH && m != nullptr; m = m->all_next)
    r = trace_on(m->tid.load(std::memory_order_relaxed), a);
  return r;
}

// The kernel would clear the word when the M ends, which outlives its Gs; and the word that
// the M has is libc's, for its joiner. So it is kept here.
long set_tid_address(void* at) {
  Thread* t = this_thread();
  t->clear_tid = at;
  t->clear_tid_set = at != tcb_tid_address(t->g);
  return static_cast<long>(t->g->vtid);
}

}  // namespace

void* clear_tid_of(const Thread* t) {
  return t->clear_tid_set ? t->clear_tid : tcb_tid_address(t->g);
}

// By the kernel, which does not mind an address that has gone.
void clear_tid_at_end(const Thread* t) {
  constexpr long kSetZero = 0;  // FUTEX_OP(FUTEX_OP_SET, 0, FUTEX_OP_CMP_EQ, 0)
  sys_call(SYS_futex, sys_arg(t->clear_tid), FUTEX_WAKE_OP, 1, 0, sys_arg(t->clear_tid), kSetZero);
}

long do_thread_state(long nr, const long a[6]) {
  auto raw = [&] { return sys_call(nr, a[0], a[1], a[2], a[3], a[4], a[5]); };
  switch (nr) {
    case SYS_unshare: return a[0] == 0 ? raw() : native_self("unshare", raw);
    case SYS_setns: return native_self("setns", raw);
    case SYS_capset: return native_self("capset", raw);
    case SYS_seccomp: return a[0] <= 1 ? native_self("seccomp", raw) : raw();  // 2, 3 ask
    case SYS_ioperm: return native_self("ioperm", raw);
    case SYS_iopl: return native_self("iopl", raw);
    case SYS_arch_prctl: return native_self("arch_prctl", raw);
    case 446 /*landlock_restrict_self*/: return native_self("landlock", raw);
    case SYS_add_key: case SYS_keyctl: case SYS_request_key:
      return native_self("keys of the thread", raw);
    case SYS_set_tid_address: return set_tid_address(reinterpret_cast<void*>(a[0]));
    case SYS_set_robust_list: case SYS_rseq:
      return native_self("lists the kernel keeps of the thread", raw);
    case SYS_setuid: case SYS_setgid: case SYS_setreuid: case SYS_setregid: case SYS_setresuid:
    case SYS_setresgid: case SYS_setgroups:
      return native_self("credentials by syscall()", raw);  // of one thread, unlike libc's
    case SYS_setfsuid: case SYS_setfsgid: return set_fsid(nr, a[0]);
    case SYS_personality: return set_personality(static_cast<unsigned long>(a[0]));
    case SYS_ptrace: return trace(a);
    default: return -ENOSYS;
  }
}

}  // namespace weft

using namespace weft;

namespace {

int changed(long nr, long a0 = 0, long a1 = 0, long a2 = 0) {
  long a[6] = {a0, a1, a2, 0, 0, 0};
  return static_cast<int>(errno_ret(do_thread_state(nr, a)));
}

}  // namespace

WEFT_EXPORT int unshare(int flags) { return changed(SYS_unshare, flags); }
WEFT_EXPORT int setns(int fd, int type) { return changed(SYS_setns, fd, type); }
WEFT_EXPORT int setfsuid(uid_t id) { return changed(SYS_setfsuid, static_cast<long>(id)); }
WEFT_EXPORT int setfsgid(gid_t id) { return changed(SYS_setfsgid, static_cast<long>(id)); }
WEFT_EXPORT int capset(void* header, const void* data) {
  return changed(SYS_capset, sys_arg(header), sys_arg(data));
}
WEFT_EXPORT int personality(unsigned long persona) {
  return changed(SYS_personality, sys_arg(persona));
}
WEFT_EXPORT int ioperm(unsigned long from, unsigned long n, int on) {
  return changed(SYS_ioperm, sys_arg(from), sys_arg(n), on);
}
WEFT_EXPORT int iopl(int level) { return changed(SYS_iopl, level); }
WEFT_EXPORT int arch_prctl(int code, unsigned long addr) {
  return changed(SYS_arch_prctl, code, sys_arg(addr));
}
WEFT_TWIN(int, __arch_prctl, arch_prctl, (int, unsigned long));

WEFT_EXPORT long ptrace(enum __ptrace_request request, ...) {
  va_list ap;
  va_start(ap, request);
  pid_t pid = va_arg(ap, pid_t);
  void* addr = va_arg(ap, void*);
  void* data = va_arg(ap, void*);
  va_end(ap);
  if (t_g == nullptr || t_g->is_g0) return real().ptrace(request, pid, addr, data);
  // The kernel stores what PEEK* read; the function answers it.
  bool peek = request >= PTRACE_PEEKTEXT && request <= PTRACE_PEEKUSER;
  long word = 0;
  long a[4] = {request, pid, sys_arg(addr), peek ? sys_arg(&word) : sys_arg(data)};
  long r = trace(a);
  if (r < 0 || !peek) return errno_ret(r);
  errno = 0;
  return word;
}

// thread_name.cc - names of threads, and prctl.
//
// A G's name is kept in its Thread. The kernel sees it where there is a kernel thread that
// means this one: the first thread's, whose comm is the process's name in ps, and a wired
// G's. The others cannot show in /proc/self/task: their Ms are shared.
//
// Nobody named: all zeros, and so are the threads it creates. Named "": a 1 behind the 0.
//
// prctl: options that belong to the process, and getters, go straight through. Those that
// change the calling kernel thread wire the caller; so do options we do not know.
#include <fcntl.h>
#include <stdarg.h>
#include <string.h>
#include <sys/prctl.h>

#include "preload/filtered.h"
#include "preload/ids.h"
#include "preload/thread.h"
#include "preload/wire.h"

namespace weft {
namespace {

constexpr size_t kNameBytes = 16;  // TASK_COMM_LEN, with the final 0

void comm_path(char* out, pid_t ktid) {
  strcpy(out, "/proc/self/task/");
  out += strlen(out);
  char digits[12];
  int n = 0;
  for (; ktid > 0; ktid /= 10) digits[n++] = static_cast<char>('0' + ktid % 10);
  while (n > 0) *out++ = digits[--n];
  strcpy(out, "/comm");
}

long open_comm(pid_t ktid, int flags) {
  char path[48];
  comm_path(path, ktid);
  return sys_call(SYS_openat, AT_FDCWD, sys_arg(&path[0]), flags | O_CLOEXEC);
}

void write_comm(pid_t ktid, const char* name) {
  long fd = open_comm(ktid, O_WRONLY);
  if (fd < 0) return;
  sys_call(SYS_write, fd, sys_arg(name), sys_arg(strlen(name)));
  sys_call(SYS_close, fd);
}

// The process's own name: what every thread inherits that nobody named.
void read_comm(char out[kNameBytes]) {
  memset(out, 0, kNameBytes);
  long fd = open_comm(sys_getpid(), O_RDONLY);
  if (fd < 0) return;
  long n = sys_call(SYS_read, fd, sys_arg(out), kNameBytes);
  sys_call(SYS_close, fd);
  if (n > 0) out[n - 1] = 0;  // the newline
}

void set_name(G* g, const char name[kNameBytes]) {
  char* to = thread_of(g)->name;
  memcpy(to, name, kNameBytes);
  if (name[0] == 0) to[1] = 1;
  if (g->wired) write_comm(g->m->tid.load(std::memory_order_relaxed), name);
  else if (g == first_thread()) write_comm(sys_getpid(), name);
}

void get_name(G* g, char out[kNameBytes]) {
  memcpy(out, thread_of(g)->name, kNameBytes);
  if (out[0] != 0) return;
  if (out[1] == 0) read_comm(out);
  else out[1] = 0;
}

bool is_getter(long option) {
  switch (option) {
    case PR_GET_PDEATHSIG: case PR_GET_DUMPABLE: case PR_GET_UNALIGN: case PR_GET_KEEPCAPS:
    case PR_GET_FPEMU: case PR_GET_FPEXC: case PR_GET_TIMING: case PR_GET_ENDIAN:
    case PR_GET_SECCOMP: case PR_CAPBSET_READ: case PR_GET_TSC: case PR_GET_SECUREBITS:
    case PR_GET_TIMERSLACK: case PR_MCE_KILL_GET: case PR_GET_CHILD_SUBREAPER:
    case PR_GET_NO_NEW_PRIVS: case PR_GET_THP_DISABLE:
    case PR_GET_FP_MODE: case PR_GET_SPECULATION_CTRL: case PR_GET_IO_FLUSHER:
      return true;
    default:
      return false;
  }
}

bool is_process_wide(long option) {
  switch (option) {
    case PR_SET_DUMPABLE: case PR_SET_MM: case PR_SET_PTRACER: case PR_SET_CHILD_SUBREAPER:
    case PR_SET_THP_DISABLE: case PR_SET_TIMING: case PR_TASK_PERF_EVENTS_DISABLE:
    case PR_TASK_PERF_EVENTS_ENABLE: case 0x53564d41 /*PR_SET_VMA*/: case 65 /*PR_SET_MDWE*/:
    case 66 /*PR_GET_MDWE*/: case 67 /*PR_SET_MEMORY_MERGE*/: case 68 /*PR_GET_MEMORY_MERGE*/:
      return true;
    default:
      return false;
  }
}

}  // namespace

long do_prctl(const long a[5]) {
  long option = a[0];
  auto raw = [&] { return sys_call(SYS_prctl, a[0], a[1], a[2], a[3], a[4]); };
  G* g = t_g;
  if (g == nullptr || g->is_g0 || is_process_wide(option)) return raw();
  if (option == PR_SET_NAME) {
    char name[kNameBytes] = {};
    strncpy(name, reinterpret_cast<const char*>(a[1]), kNameBytes - 1);  // longer: cut, as the kernel
    set_name(g, name);
    return 0;
  }
  if (option == PR_GET_NAME) {
    get_name(g, reinterpret_cast<char*>(a[1]));
    return 0;
  }
  if (option == PR_GET_TID_ADDRESS) {
    long r = raw();  // the M's; now the address is known to be good
    if (r == 0) *reinterpret_cast<void**>(a[1]) = clear_tid_of(thread_of(g));
    return r;
  }
  if (is_getter(option)) return raw();
  return native_self("prctl on the thread", raw);
}

}  // namespace weft

using namespace weft;

WEFT_EXPORT int prctl(int option, ...) {
  va_list ap;
  va_start(ap, option);
  long a[5] = {option, 0, 0, 0, 0};
  for (int i = 1; i < 5; i++) a[i] = va_arg(ap, long);
  va_end(ap);
  if (option == PR_SET_SECCOMP) filter_is_set();
  return static_cast<int>(errno_ret(do_prctl(a)));
}

namespace {

G* named(pthread_t pt) {
  return sched.booted.load(std::memory_order_acquire) ? g_of(pt) : nullptr;
}

}  // namespace

WEFT_EXPORT int pthread_setname_np(pthread_t pt, const char* text) {
  G* g = named(pt);
  if (g == nullptr) return real().pthread_setname_np(pt, text);
  if (strlen(text) >= kNameBytes) return ERANGE;
  if (!thread_of(g)->alive.load(std::memory_order_acquire)) return ENOENT;  // no such file in /proc
  char name[kNameBytes] = {};
  strcpy(name, text);
  set_name(g, name);
  return 0;
}

WEFT_EXPORT int pthread_getname_np(pthread_t pt, char* out, size_t room) {
  G* g = named(pt);
  if (g == nullptr) return real().pthread_getname_np(pt, out, room);
  if (room < kNameBytes) return ERANGE;
  if (!thread_of(g)->alive.load(std::memory_order_acquire)) return ENOENT;
  get_name(g, out);
  return 0;
}

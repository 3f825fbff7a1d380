// ids.h - thread ids: what the program is told (vtid) and what the kernel knows (ktid).
//
// A thread's vtid is stable for its life: the pid for the first thread, above 2^22 for the
// others, where no kernel id can be. An unwired G has no kernel thread of its own; where
// it is asked about, any unwired M answers, for all of those are alike.
#pragma once

#include "preload/api.h"

namespace weft {

// Who owns locks: a G's vtid, as before it was wired; of any other thread what libc believes its id
// to be, in its TCB. After clone(2) that is the parent's until the program writes the child's there:
// Firefox does, having asked a mutex. 0 until first asked for, and in a fork child again; a raw one looks
// each time.
extern thread_local constinit uint32_t t_own_id;
uint32_t self_id_slow();
inline uint32_t self_id() {
  uint32_t id = t_own_id;
  return WEFT_LIKELY(id != 0) ? id : self_id_slow();
}
// Before main runs, and again at boot: finds that place.
void ids_begin();

// The live G with this vtid, or null: another process, a kernel thread, or nobody.
G* g_of_vtid(pid_t vtid);

struct Thread;

struct Target {
  G* g = nullptr;      // null: not a G; the number is the kernel's
  bool self = false;   // the calling thread
  bool wired = false;  // g has a kernel thread: ktid. Also set when g is null.
  pid_t ktid = 0;      // whom to ask: 0 is the caller's kernel thread
};
// What `tid` means in a system call: 0 is the caller.
Target resolve_tid(pid_t tid);
// The same for a G at hand.
Target resolve_g(G* g);

// System calls by number, for syscall()'s owner: true if nr is one of these, *result being
// the kernel's answer or -errno. Tids are translated, per-thread state wires the caller,
// forks reset the child.
bool process_syscall(long nr, const long a[6], long* result);

// One each, as the kernel defines them (-errno), for interposers and process_syscall.
long do_sched_setaffinity(const Target& t, size_t bytes, const void* mask);
long do_sched_getaffinity(const Target& t, size_t bytes, void* mask);
long do_sched_setscheduler(const Target& t, int policy, const struct sched_param* p);
long do_sched_setparam(const Target& t, const struct sched_param* p);
long do_sched_getscheduler(const Target& t);
long do_sched_getparam(const Target& t, struct sched_param* p);
long do_setpriority(const Target& t, int nice);
long do_getpriority(const Target& t);  // 20 - nice, as the kernel answers
long do_prctl(const long a[5]);
// The word of set_tid_address(2): asked for by prctl, and set to 0 and woken at t's end.
void* clear_tid_of(const Thread* t);
void clear_tid_at_end(const Thread* t);
long do_thread_state(long nr, const long a[6]);  // unshare, setns, capset, ...: thread_state.cc

}  // namespace weft

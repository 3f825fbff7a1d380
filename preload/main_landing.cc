// main_landing.cc - where pthread_exit of the first thread lands.
//
// libc ends main's kernel thread at that point. Under weft that kernel thread is an M and
// goes on serving others, so main() runs inside a landing of our own, left by interposing
// __libc_start_main. Costs a setjmp per process.
//
// A fork child may boot on another thread than main: a G's has host_g_main's landing, but one of
// libc's own (a timer's, or one left to the kernel) would end its kernel thread, that is M0 with
// its P. What sees its end, be it by return, pthread_exit or a cancel, is a key whose destructor
// sets the value again until libc's last round: by then thread_locals and the values of the
// program's keys are gone, and the rest is the life of a G (thread_finish).
#include <limits.h>
#include <setjmp.h>

#include "preload/api.h"
#include "preload/cancel.h"
#include "preload/ids.h"
#include "preload/thread.h"

extern "C" {
extern int __sigsetjmp(struct __jmp_buf_tag*, int) __attribute__((returns_twice));
extern void __pthread_register_cancel(__pthread_unwind_buf_t*);
extern void __pthread_unregister_cancel(__pthread_unwind_buf_t*);
}

namespace weft {
namespace {

int (*program_main)(int, char**, char**);
uintptr_t main_fs;  // the TCB of the thread that has the landing

pthread_key_t late_key;
bool late_key_made;
thread_local constinit int t_late_rounds = 0;

void late_first_ends(void* value) {
  Thread* t = this_thread();
  if (t == nullptr) return;  // in a fork child again, and not booted: libc's end
  if (++t_late_rounds < PTHREAD_DESTRUCTOR_ITERATIONS &&
      real().pthread_setspecific(late_key, value) == 0)
    return;
  thread_finish(t);
}

int landing_main(int argc, char** argv, char** envp) {
  main_fs = reinterpret_cast<uintptr_t>(__builtin_thread_pointer());
  __pthread_unwind_buf_t buf;
  if (__sigsetjmp(reinterpret_cast<struct __jmp_buf_tag*>(buf.__cancel_jmp_buf), 0) == 0) {
    __pthread_register_cancel(&buf);
    int status = program_main(argc, argv, envp);
    __pthread_unregister_cancel(&buf);
    return status;
  }
  Thread* t = this_thread();
  if (t != nullptr) {
    cancel_landed(t);
    thread_finish(t);
  }
  __pthread_unregister_cancel(&buf);
  real().pthread_exit(nullptr);  // never booted: on to libc's own landing
  __builtin_unreachable();
}

}  // namespace

bool land_first(const G* g1) {
  if (g1->fs == main_fs || g1->cls != nullptr) return true;
  if (!late_key_made) {
    if (real().pthread_key_create(&late_key, late_first_ends) != 0) return false;
    late_key_made = true;
  }
  t_late_rounds = 0;
  return real().pthread_setspecific(late_key, thread_of(g1)) == 0;
}

}  // namespace weft

using namespace weft;

WEFT_EXPORT int __libc_start_main(int (*main_fn)(int, char**, char**), int argc, char** argv,
                                  void (*init)(void), void (*fini)(void),
                                  void (*rtld_fini)(void), void* stack_end) {
  program_main = main_fn;
  ids_begin();
  return real().__libc_start_main(landing_main, argc, argv, init, fini, rtld_fini, stack_end);
}

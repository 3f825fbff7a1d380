// main_landing.cc - where pthread_exit of the first thread lands.
//
// libc ends main's kernel thread at that point. Under weft that kernel thread is an M and
// goes on serving others, so main() runs inside a landing of our own, left by interposing
// __libc_start_main. Costs a setjmp per process.
#include <setjmp.h>

#include "preload/api.h"
#include "preload/cancel.h"
#include "preload/thread.h"

extern "C" {
extern int __sigsetjmp(struct __jmp_buf_tag*, int) __attribute__((returns_twice));
extern void __pthread_register_cancel(__pthread_unwind_buf_t*);
extern void __pthread_unregister_cancel(__pthread_unwind_buf_t*);
}

namespace weft {
namespace {

int (*program_main)(int, char**, char**);

int landing_main(int argc, char** argv, char** envp) {
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
}  // namespace weft

using namespace weft;

WEFT_EXPORT int __libc_start_main(int (*main_fn)(int, char**, char**), int argc, char** argv,
                                  void (*init)(void), void (*fini)(void),
                                  void (*rtld_fini)(void), void* stack_end) {
  program_main = main_fn;
  return real().__libc_start_main(landing_main, argc, argv, init, fini, rtld_fini, stack_end);
}

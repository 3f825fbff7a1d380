// real.cc - the table behind real.h.
#include "preload/real.h"

#include <dlfcn.h>

#include "sched/base.h"
#include "sched/sys.h"

namespace weft {

constinit Real real_table;

void* real_resolve(const char* name, const char* version) {
  return version == nullptr ? dlsym(RTLD_NEXT, name) : dlvsym(RTLD_NEXT, name, version);
}

void real_missing(const char* name) {
  auto put = [](const char* s) {
    size_t n = 0;
    while (s[n] != 0) n++;
    sys_call(SYS_write, 2, sys_arg(s), sys_arg(n));
  };
  put("weft: this libc has no ");
  put(name);
  put("\n");
  fatal("missing libc function");
}

void real_resolve_all() {
#define REAL(name) real_table.name.exists();
#define REAL_V(name, ver) real_table.name.exists();
#include "preload/real_all.def"
#undef REAL
#undef REAL_V
}

}  // namespace weft

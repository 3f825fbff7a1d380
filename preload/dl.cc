// dl.cc - dlopen and dlclose: libc cannot initialise TLS in Gs, which are on no list of its.
//
// Dynamic TLS needs nothing (made on demand). Initial-exec TLS of a library loaded now lies
// in every thread's static block and must be set from its image in each G that exists; that
// is done as soon as the real dlopen has returned, before the program has the handle.
//
// dlopen looks at its return address to find the caller's RUNPATH, RPATH and $ORIGIN. Where
// these matter (caller_matters) we must not stand between the two: the stub jumps on to
// libc's, and the TLS is set at the caller's next visit to the engine (kAttModules) or when
// the next thread starts, whichever is first.
//
// Known limit: the library's own constructors, and in the second case everybody until the
// refresh, see zeros where an initial-exec variable has a nonzero first value.
#include <dlfcn.h>
#include <link.h>
#include <string.h>

#include "preload/api.h"
#include "preload/stub.h"
#include "preload/tls_modules.h"

using namespace weft;

namespace {

struct Caller {
  uintptr_t pc;
  bool runpath, rpath;
};

int look_at(dl_phdr_info* info, size_t, void* arg) {
  auto* c = static_cast<Caller*>(arg);
  const ElfW(Dyn)* dynamic = nullptr;
  bool holds = false;
  for (int i = 0; i < info->dlpi_phnum; i++) {
    const auto& ph = info->dlpi_phdr[i];
    uintptr_t at = info->dlpi_addr + ph.p_vaddr;
    if (ph.p_type == PT_DYNAMIC) dynamic = reinterpret_cast<const ElfW(Dyn)*>(at);
    if (ph.p_type == PT_LOAD && c->pc >= at && c->pc < at + ph.p_memsz) holds = true;
  }
  if (!holds) return 0;
  for (; dynamic != nullptr && dynamic->d_tag != DT_NULL; dynamic++) {
    c->runpath |= dynamic->d_tag == DT_RUNPATH;
    c->rpath |= dynamic->d_tag == DT_RPATH;
  }
  return 1;
}

// Whether libc would answer differently if the call came from us. An RPATH counts for the
// dependencies of what is opened, too; a RUNPATH for names without a slash.
bool caller_matters(const char* name, uintptr_t pc) {
  if (name == nullptr) return false;
  if (strchr(name, '$') != nullptr) return true;
  Caller c{pc, false, false};
  dl_iterate_phdr(look_at, &c);
  return c.rpath || (c.runpath && strchr(name, '/') == nullptr);
}

void* opened(void* handle) {
  tls_modules_stale();
  tls_modules_refresh();
  return handle;
}

void* open_and_refresh(const char* name, int mode) { return opened(real().dlopen(name, mode)); }
void* mopen_and_refresh(Lmid_t ns, const char* name, int mode) {
  return opened(real().dlmopen(ns, name, mode));
}

// Where the stub is to jump to.
template <class F>
void* way(F& real_fn, void* wrapped, const char* name, uintptr_t pc) {
  if (!sched.booted.load(std::memory_order_relaxed)) return reinterpret_cast<void*>(real_fn.get());
  tls_modules_stale();  // its constructors may create threads
  if (!caller_matters(name, pc)) return wrapped;
  if (G* g = this_g()) g->attention.fetch_or(kAttModules, std::memory_order_relaxed);
  return reinterpret_cast<void*>(real_fn.get());
}

}  // namespace

extern "C" {
__attribute__((used, visibility("hidden"))) void* weft_way_dlopen(const char* name, int, void*,
                                                                  uintptr_t pc) {
  return way(real().dlopen, reinterpret_cast<void*>(&open_and_refresh), name, pc);
}
__attribute__((used, visibility("hidden"))) void* weft_way_dlmopen(Lmid_t, const char* name, int,
                                                                   uintptr_t pc) {
  return way(real().dlmopen, reinterpret_cast<void*>(&mopen_and_refresh), name, pc);
}
}

WEFT_STUB(dlopen);
WEFT_STUB(dlmopen);

WEFT_EXPORT int dlclose(void* handle) {
  int r = real().dlclose(handle);
  if (sched.booted.load(std::memory_order_relaxed)) opened(nullptr);
  return r;
}

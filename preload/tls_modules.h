// tls_modules.h - the static TLS of loaded libraries, as Gs must have it.
//
// Every library with initial-exec or program TLS has a block at a fixed distance below each
// thread's TCB. libc fills these when it makes a TCB and, for its own threads, at dlopen.
// Here is kept what each block holds at first, so that a recycled G gets it back and a
// library opened late reaches Gs that exist. libc's own block and libweft's are left out:
// they live on with the slot (tcb.h).
//
// Images are kept as copies: the library they come from may be closed by another thread.
// Callers: any thread, outside the engine; tls_reset_static on the G itself, anywhere.
#pragma once

#include "sched/g.h"

namespace weft {

// First reading, on the thread that boots. `offset_desc` is libthread_db's description of
// link_map::l_tls_offset. False: libc's block or ours was not found. *all_static: no library
// loaded so far has its TLS elsewhere than below the TCB.
bool tls_modules_boot(size_t static_below, const uint32_t* offset_desc, bool* all_static);
// Asks `agrees(module id, its block in the calling thread, arg)` of each static module.
bool tls_modules_agree(bool (*agrees)(size_t, const char*, void*), void* arg);
// Puts every block of the TCB at `fs` back to its first contents.
void tls_reset_static(uintptr_t fs);
// dlopen or dlclose is being called: modules may come or go.
void tls_modules_stale();
// If stale (for so many times after the call above, as its end may be unseen): reads the
// modules anew; static TLS of new ones is set in every G that exists, that of gone ones
// zeroed. Cheap when nothing is stale.
void tls_modules_refresh();
// Changes when the set of modules does. Whoever makes a TCB compares before and after: a
// walk in between passed it by.
uint32_t tls_modules_version();
void tls_modules_after_fork();

}  // namespace weft

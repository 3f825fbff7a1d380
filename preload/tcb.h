// tcb.h - makes a G a complete thread to glibc: TCB, static TLS, dtv, and what libc reads.
//
// Facts this rests on are in DESIGN section 2. No offset is hard-coded beyond the TCB
// header that compilers rely on (self 0x10, canary 0x28, pointer guard 0x30): sizes come
// from _thread_db_* and _dl_get_tls_static_info, the robust list's place from
// get_robust_list(2). tcb_probe() checks all of it on the calling thread; if anything is
// off, weft stays native.
//
// Recycling: at a thread's end its TLS is put back in shape on its own TCB (tcb_reset):
// every module's static block from its image, dynamically loaded modules' blocks freed,
// libc's own segment kept (it holds the malloc cache), libweft's kept (it holds t_g).
#pragma once

#include "sched/g.h"

namespace weft {

// Null when everything is as expected, else why not (one clause, for the user).
const char* tcb_probe();
size_t tcb_static_below();
size_t tcb_pthread_bytes();

// Makes g's TCB and TLS from nothing; allocates the dtv with the program's malloc. False:
// no memory. `g->vtid` is set. Caller: the creator, outside the engine.
bool tcb_make(G* g);
// Called by the new thread itself before anything else when its TCB was made just now.
void tcb_first_run();
// C++ thread_local destructors of the calling thread.
void tcb_run_dtors();
// At the end of a thread, on it, outside the engine: see above.
void tcb_reset(G* g);
// libc's word of cancellation bits in g's TCB (cancel.cc); null where it is not known.
std::atomic<int>* tcb_cancel_word(const G* g);
// What it says of the calling thread, of any kind; 0 where it is not known.
int tcb_own_cancel_bits();
// Takes the caller's kernel thread's rseq registration back: its TCB migrates from now on.
void tcb_unregister_rseq();
// In a fork child, on g: off libc's list of threads (fork's child put it there), linked to
// itself again.
void tcb_after_fork_child(G* g);
// A G that becomes 1:1: libc and the kernel see the kernel thread's own id and robust list
// in its TCB from now on. On it, after wire_self.
void tcb_wire(G* g);
// Its end: marks robust mutexes it still holds as orphaned, as the kernel does at a kernel
// thread's exit (robust_list(7)), and gives the kernel thread its own list back.
void tcb_unwire(G* g);
// Where a TCB has the thread's id, by libc's word and a look at the caller's; 0: not there.
size_t tcb_tid_offset();
// What libc gives to set_tid_address(2).
void* tcb_tid_address(const G* g);
// The kernel's thread id of a thread of libc's; 0: it has ended.
int tcb_tid_of(pthread_t t);
// Writes what libc believes to be the thread's id.
void tcb_set_tid(G* g, uint32_t tid);

}  // namespace weft

// unwind_lock.cc - what libunwind's lock calls do inside libweft.so: nothing.
//
// libunwind locks a cache of registered frames with pthread_rwlock_*. Linked in here those
// would be the functions we interpose, and a dump could park. We never register frames
// and dump from one thread at a time, so the cache is only read: the Makefile redirects
// the calls to these stubs. Any stack, no lock, no effect.

extern "C" {
int weft_unwind_rdlock(void*);
int weft_unwind_wrlock(void*);
int weft_unwind_unlock(void*);

int weft_unwind_rdlock(void*) { return 0; }
int weft_unwind_wrlock(void*) { return 0; }
int weft_unwind_unlock(void*) { return 0; }
}

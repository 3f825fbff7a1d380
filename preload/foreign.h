// foreign.h - which kernel threads of this process are weft's, and which are foreign.
//
// libc makes some for itself (a SIGEV_THREAD timer's, aio's), the program has some from
// pthread_create (attributes that only the kernel can serve), and natively each of them keeps a
// process that main has left by pthread_exit (last.h).
//
// Callers: foreign_*: any thread, outside the engine; may sleep in the kernel. own_thread_*: host.cc.
#pragma once

namespace weft {

// The tid of a foreign thread that lives, not the caller's; 0: none, or no /proc to ask.
int foreign_thread();
// Returns when it has ended, or early.
void foreign_await_end(int tid);

// One of weft's is asked for, and has begun or could not be made. One at a time.
void own_thread_asked();
void own_thread_made();
// On that thread, first and last.
void own_thread_begins();
void own_thread_ends();
void own_threads_after_fork();

}  // namespace weft

// asleep.h - is a kernel thread of ours asleep in a system call? sysmon asks.
//
// /proc/self/task/TID/syscall says it: a number first when the thread sleeps in the kernel,
// "running" when it has a core or waits for one; where it may not be read, .../stat does. The
// file of each M that was asked about is kept open and read anew at offset 0 (1 us instead of 5).
// An open file needs a descriptor, and the kernel gives the lowest free one: opened for each
// question, as it was, it was seen by a program that counts or numbers its descriptors, and a
// program that closes everything it finds and opens anew lost a file of its own to our close. So
// it moves to a high number at once, hidden like netpoll's (netpoll_owns); the low one is taken
// for a moment once per kernel thread, not 25,000 times a second.
//
// Callers: asleep_in_kernel: sysmon only. The others: any thread; a G in the engine.
#pragma once

#include "sched/sys.h"

namespace weft {

// Whether kernel thread `tid`, that of M number `m_id`, sleeps in a system call. kUnknown: the file
// could not be opened (the program has used up its descriptors).
enum class Asleep : uint8_t { kNo, kYes, kUnknown };
Asleep asleep_in_kernel(uint32_t m_id, int tid);
// Takes the numbers for the files kept here, unless it is done; any open file will do.
void asleep_reserve(int some_fd);
// One of the descriptors kept here.
bool asleep_owns(int fd);
// The lowest of them that is >= from; INT_MAX: none.
int asleep_next_owned(int from);
// The program wants the number: let it go.
void asleep_make_room(int fd);
void asleep_after_fork();

}  // namespace weft

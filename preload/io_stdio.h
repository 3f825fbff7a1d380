// io_stdio.h - stdio's own read, write and close come to us.
//
// fgets, fread, fprintf, fflush, popen's streams ... call the kernel inside libc, where no name
// can be interposed; a thread that waited there held its P until sysmon found it (P 1 of 1,
// waits of 20 ms: the next thread began 1.4 ms later in the median, 16 us natively). But
// they all go through the jump table of their FILE, and its read and write slots hold
// _IO_file_read and _IO_file_write. boot puts our own there, in every table of libc's: a G
// then parks in the netpoller with the stream's lock held, as a thread would sleep.
//
// Close, too (fclose, pclose), and freopen, which puts another file under the number: the
// records of descriptors would else outlive the file behind our back, and a read wait for an
// edge that never comes until it is re-verified.
//
// The tables lie in libc's read-only relocated pages, which are made writable for the moment.
// If anything is not as expected nothing is changed, and sysmon finds the sleepers as before.
#pragma once

namespace weft {

// At boot, before a second thread exists; again in a fork child without effect.
void stdio_boot();

}  // namespace weft

// tasks.h - every kernel thread of this process, by the kernel's own list.
//
// Callers: foreign.cc, xid.cc. Any thread, any stack; system calls only.
#pragma once

#include <fcntl.h>

#include "sched/sys.h"

namespace weft {

// f(tid) for each entry of /proc/self/task. False: not readable (a chroot without /proc).
template <class F>
bool each_task(F f) {
  struct Dirent {
    uint64_t ino;
    int64_t off;
    unsigned short reclen;
    unsigned char type;
    char name[1];
  };
  long fd = sys_call(SYS_openat, AT_FDCWD, sys_arg("/proc/self/task"),
                     O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return false;
  alignas(8) char buf[2048];
  long n;
  while ((n = sys_call(SYS_getdents64, fd, sys_arg(&buf[0]), sizeof buf)) > 0)
    for (long at = 0; at < n;) {
      auto* d = reinterpret_cast<Dirent*>(buf + at);
      at += d->reclen;
      int tid = 0;
      for (const char* s = d->name; *s >= '0' && *s <= '9'; s++) tid = tid * 10 + (*s - '0');
      if (tid != 0) f(tid);
    }
  sys_call(SYS_close, fd);
  return true;
}

}  // namespace weft

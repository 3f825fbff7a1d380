// say.h - one line for the person, on stderr by write(2). Any thread, any stack.
#pragma once

#include <initializer_list>

#include "sched/sys.h"

namespace weft {

// Writes a, b, c and a newline in one write, so that lines of threads do not mix.
inline void say_line(const char* a, const char* b = "", const char* c = "") {
  char line[512];
  size_t n = 0;
  for (const char* s : {a, b, c})
    for (; *s != 0 && n < sizeof line - 1; s++) line[n++] = *s;
  line[n++] = '\n';
  sys_call(SYS_write, 2, sys_arg(&line[0]), sys_arg(n));
}

}  // namespace weft

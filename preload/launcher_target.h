// launcher_target.h - what kind of program a command is: can libweft.so be loaded into it?
//
// Invariant: a Target says either that the program takes the library, or why not, in
// words that complete "NAME ...".
// Callers: the launcher only. Reads files, blocks on nothing else, changes nothing.
#pragma once

#include <stddef.h>

namespace weft {

struct Target {
  bool takes_preload = true;
  char why_not[512] = "";
  bool shell_script = false;  // no #! line and no ELF: execvp hands such a file to /bin/sh
};

// Looks at the file execve would load for `path`: through #! lines to the interpreter.
// A file that cannot be read is taken to be an ordinary one; execve has the last word.
Target examine_target(const char* path);

enum class Found { kYes, kMissing, kNotExecutable };

// Finds `command` as execvp does and leaves its path in `out`. kNotExecutable leaves the
// path of the file that was found but cannot be run.
Found find_command(const char* command, const char* search_path, char* out, size_t room);

}  // namespace weft

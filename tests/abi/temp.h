// temp.h - where the tests put files: TMPDIR, as mktemp(1), else /tmp.
//
// Callers: any thread; included by abi.h and io.h.
#ifndef TESTS_ABI_TEMP_H
#define TESTS_ABI_TEMP_H

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

// Room for a path below any TMPDIR we are run with; a longer one ends the test.
#define TEMP_ROOM 256

// A path in that directory, its last part as printf has it; for mkstemp and its kin it ends in
// XXXXXX.
__attribute__((unused, format(printf, 2, 3))) static void temp_path(char path[TEMP_ROOM],
                                                                   const char *name, ...)
{
    const char *dir = getenv("TMPDIR");
    if (dir == NULL || *dir == 0) dir = "/tmp";
    int n = snprintf(path, TEMP_ROOM, "%s/", dir);
    va_list args;
    va_start(args, name);
    if (n < TEMP_ROOM) n += vsnprintf(path + n, (size_t)(TEMP_ROOM - n), name, args);
    va_end(args);
    if (n < TEMP_ROOM) return;
    fprintf(stderr, "TMPDIR is too long for these tests: %s\n", dir);
    abort();
}

#endif

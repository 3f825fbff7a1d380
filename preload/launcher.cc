// launcher.cc - the `weft` command: runs a program with libweft.so preloaded.
//
//     weft [options] command [args]
//
// It finds the library, says in one line why a program cannot take it (static, setuid,
// 32-bit ...) and then runs it natively, and execs: the command's exit status is weft's.
// Invariant: nothing is written unless something is wrong or was asked for; nothing of
// the environment changes but LD_PRELOAD, WEFT_PROCS (--procs) and WEFT__CHECKED.
// An ordinary program of its own: libc, one thread, no part of libweft.so.
#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <initializer_list>

#include "preload/knobs.h"
#include "preload/launcher_target.h"

#ifndef WEFT_VERSION
#define WEFT_VERSION "unknown"
#endif

namespace {

constexpr int kExitUsage = 2;
constexpr int kExitOurs = 125;  // env(1)'s number for a failure of its own
constexpr int kExitNotExecutable = 126;
constexpr int kExitMissing = 127;

constexpr char kLibrary[] = "libweft.so";

// One line on stderr, in one write so that it stays whole.
[[gnu::format(printf, 1, 2)]] void say(const char* format, ...) {
  char line[8192];
  int n = snprintf(line, sizeof line, "weft: ");
  va_list args;
  va_start(args, format);
  int room = static_cast<int>(sizeof line) - n - 1;
  int m = vsnprintf(line + n, static_cast<size_t>(room), format, args);
  va_end(args);
  n += m < room ? m : room - 1;
  line[n++] = '\n';
  for (int off = 0; off < n;) {
    ssize_t w = write(2, line + off, static_cast<size_t>(n - off));
    if (w <= 0) break;
    off += static_cast<int>(w);
  }
}

constexpr char kHelp[] =
    "usage: weft [options] command [args]\n"
    "\n"
    "Runs an unmodified pthread program with its threads scheduled by weft, many of\n"
    "them on few kernel threads.\n"
    "\n"
    "  --procs N   run N threads at once (default: the cores the program may use)\n"
    "  --help-env  explain the WEFT_* environment variables\n"
    "  --version   print the version\n"
    "  --help      print this\n"
    "  --          end of options\n"
    "\n"
    "A program that cannot take the library (static, setuid, 32-bit ...) runs natively,\n"
    "and one line says so. The exit status is the command's; 125 if weft itself fails,\n"
    "126 if the command cannot be run, 127 if it is not found, 2 for wrong usage.\n";

// ---- --help-env: the knob table as text and as man page source ----------------

void print_wrapped(const char* text, int indent) {
  int column = 0;
  for (const char* word = text; *word;) {
    int n = static_cast<int>(strcspn(word, " "));
    if (column && column + 1 + n > 78 - indent) {
      putchar('\n');
      column = 0;
    }
    if (column) {
      putchar(' ');
      column++;
    } else {
      printf("%*s", indent, "");
    }
    printf("%.*s", n, word);
    column += n;
    word += n;
    word += strspn(word, " ");
  }
  putchar('\n');
}

void print_row(const weft::KnobRow& row, int indent) {
  char accepted[512];
  weft::knob_accepted(row, accepted, sizeof accepted);
  if (row.kind == weft::KnobKind::kPairs) strcpy(accepted, "key=value,key=value...");
  printf("%*s%s  (%s", indent, "", row.name, accepted);
  if (*row.initial) printf("; default %s", row.initial);
  printf(")\n");
  print_wrapped(row.help, indent + 6);
}

// roff: a dash is a minus and a leading dot a request unless escaped.
void print_roff(const char* text) {
  for (; *text; text++) {
    if (*text == '-') putchar('\\');
    if (*text == '\\') putchar('\\');
    putchar(*text);
  }
}

void print_row_roff(const weft::KnobRow& row) {
  char accepted[512];
  weft::knob_accepted(row, accepted, sizeof accepted);
  if (row.kind == weft::KnobKind::kPairs) strcpy(accepted, "key=value,key=value...");
  printf(".TP\n.B %s\n", row.name);
  print_roff(row.help);
  printf("\nAccepted: ");
  print_roff(accepted);
  if (*row.initial) {
    printf("; default ");
    print_roff(row.initial);
  }
  printf(".\n");
}

int help_env(bool roff) {
  weft::KnobTable table = weft::knob_table(), keys = weft::knob_debug_table();
  if (!roff) {
    printf("weft reads these environment variables. A bad value is reported in one line\n"
           "and the default used.\n\n");
  }
  for (size_t i = 0; i < table.count; i++) {
    roff ? print_row_roff(table.rows[i]) : print_row(table.rows[i], 0);
    if (table.rows[i].kind != weft::KnobKind::kPairs) continue;
    if (roff) printf(".RS\n");
    for (size_t j = 0; j < keys.count; j++) {
      roff ? print_row_roff(keys.rows[j]) : print_row(keys.rows[j], 6);
    }
    if (roff) printf(".RE\n");
  }
  return fflush(stdout) ? 1 : 0;
}

// ---- finding the library --------------------------------------------------------

// Next to this program (a build directory), or where make install puts it.
bool find_library(char* out, size_t room) {
  char self[PATH_MAX];
  ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
  if (n <= 0) {
    say("cannot read /proc/self/exe (%s), so %s is not found", strerror(errno), kLibrary);
    return false;
  }
  self[n] = 0;
  *strrchr(self, '/') = 0;
  for (const char* dir : {"", "/../lib/weft", "/../lib"}) {
    char path[PATH_MAX * 2], real[PATH_MAX];
    snprintf(path, sizeof path, "%s%s/%s", self, dir, kLibrary);
    if (access(path, R_OK) || !realpath(path, real)) continue;
    if (strpbrk(real, " :")) {
      say("%s: LD_PRELOAD cannot carry a path with a space or a colon; install weft elsewhere",
          real);
      return false;
    }
    snprintf(out, room, "%s", real);
    return true;
  }
  say("%s is neither in %s nor in ../lib/weft or ../lib from there", kLibrary, self);
  return false;
}

// ---- the command's environment ----------------------------------------------------

// LD_PRELOAD without `library`, and with it in front where `wanted`; "" means none.
void edit_preload(const char* library, bool wanted) {
  const char* old = getenv("LD_PRELOAD");
  size_t room = strlen(library) + (old ? strlen(old) : 0) + 2;
  char* value = static_cast<char*>(malloc(room));
  if (!value) return;
  size_t n = 0;
  if (wanted) n = static_cast<size_t>(snprintf(value, room, "%s", library));
  for (const char* at = old ? old : ""; *at;) {
    size_t len = strcspn(at, " :");
    if (len && !(len == strlen(library) && !strncmp(at, library, len))) {
      if (n) value[n++] = ':';
      memcpy(value + n, at, len);
      n += len;
    }
    at += len;
    if (*at) at++;
  }
  value[n] = 0;
  if (n) setenv("LD_PRELOAD", value, 1);
  else unsetenv("LD_PRELOAD");
  free(value);
}

void check_knobs() {
  weft::knobs_parse(environ);
  char sum[17];
  weft::knobs_sum_text(weft::knobs_env_sum(environ), sum);
  setenv(weft::kKnobsChecked, sum, 1);
}

int run(char** argv) {
  char path[PATH_MAX + 256], library[PATH_MAX];
  switch (weft::find_command(argv[0], getenv("PATH"), path, sizeof path)) {
    case weft::Found::kMissing:
      say("%s: command not found", argv[0]);
      return kExitMissing;
    case weft::Found::kNotExecutable:
      say("%s: cannot be executed (not an executable file)", path);
      return kExitNotExecutable;
    case weft::Found::kYes:
      break;
  }
  if (!find_library(library, sizeof library)) return kExitOurs;
  check_knobs();
  weft::Target target = weft::examine_target(path);
  if (!target.takes_preload) say("%s %s: running natively", path, target.why_not);
  edit_preload(library, target.takes_preload);
  execv(path, argv);
  int error = errno;
  if (error == ENOEXEC && target.shell_script) {
    size_t count = 0;
    while (argv[count]) count++;
    char** shell = static_cast<char**>(calloc(count + 2, sizeof *shell));
    if (!shell) return kExitOurs;
    shell[0] = const_cast<char*>("/bin/sh");
    shell[1] = path;
    for (size_t i = 1; i < count; i++) shell[i + 1] = argv[i];
    execv(shell[0], shell);
    error = errno;
  }
  say("%s: cannot be executed (%s)", path, strerror(error));
  return kExitNotExecutable;
}

bool set_procs(const char* value) {
  if (value && weft::knob_value_ok("WEFT_PROCS", value)) {
    setenv("WEFT_PROCS", value, 1);
    return true;
  }
  char accepted[64] = "";
  weft::KnobTable table = weft::knob_table();
  for (size_t i = 0; i < table.count; i++) {
    if (!strcmp(table.rows[i].name, "WEFT_PROCS")) {
      weft::knob_accepted(table.rows[i], accepted, sizeof accepted);
    }
  }
  say("--procs takes a number (accepted: %s)%s%s", accepted, value ? ", not " : "",
      value ? value : "");
  return false;
}

}  // namespace

int main(int argc, char** argv) {
  int i = 1;
  for (; i < argc && argv[i][0] == '-'; i++) {
    const char* option = argv[i];
    if (!strcmp(option, "--")) {
      i++;
      break;
    }
    if (!strcmp(option, "--help")) return fputs(kHelp, stdout) < 0 || fflush(stdout) ? 1 : 0;
    if (!strcmp(option, "--version")) return puts("weft " WEFT_VERSION) < 0 || fflush(stdout);
    if (!strcmp(option, "--help-env")) return help_env(false);
    if (!strcmp(option, "--help-env=roff")) return help_env(true);  // for man/weft.1
    if (!strncmp(option, "--procs=", 8)) {
      if (!set_procs(option + 8)) return kExitUsage;
    } else if (!strcmp(option, "--procs")) {
      if (!set_procs(argv[++i])) return kExitUsage;  // argv[argc] is nullptr
    } else {
      say("unknown option %s (weft --help lists them)", option);
      return kExitUsage;
    }
  }
  if (i >= argc) {
    say("no command given (usage: weft [options] command [args])");
    return kExitUsage;
  }
  return run(argv + i);
}

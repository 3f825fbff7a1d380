// launcher_target.cc - looks at a command before it is run: see launcher_target.h.
//
// The rules are the kernel's: search_path as execvp, #! as binfmt_script (first 256
// bytes, interpreters may be scripts again, five deep), the loader from PT_INTERP, and
// AT_SECURE (in which ld.so drops LD_PRELOAD) from setuid, setgid and file capabilities.
// A sanitizer's runtime shows in the dynamic string table.
// Part of the launcher, not of libweft.so.
#include "preload/launcher_target.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/xattr.h>
#include <unistd.h>

namespace weft {
namespace {

constexpr char kLoader[] = "/lib64/ld-linux-x86-64.so.2";
constexpr char kLoaderName[] = "ld-linux-x86-64.so.2";
constexpr int kScriptDepth = 5;    // BINPRM's limit
constexpr size_t kHeadBytes = 256; // BINPRM_BUF_SIZE

bool same_file(const char* a, const char* b) {
  struct stat x, y;
  return !stat(a, &x) && !stat(b, &y) && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

// Would running `path` set AT_SECURE? Only a change counts: root running a program that
// is setuid root gains nothing.
const char* privilege_gained(const char* path) {
  struct stat st;
  struct statvfs fs;
  if (stat(path, &st)) return nullptr;
  if (!statvfs(path, &fs) && (fs.f_flag & ST_NOSUID)) return nullptr;
  if (prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1) return nullptr;
  if ((st.st_mode & S_ISUID) && st.st_uid != getuid()) return "is setuid";
  if ((st.st_mode & S_ISGID) && (st.st_mode & S_IXGRP) && st.st_gid != getgid()) {
    return "is setgid";
  }
  if (getuid() != 0 && getxattr(path, "security.capability", nullptr, 0) > 0) {
    return "has file capabilities";
  }
  return nullptr;
}

void refuse(Target& t, const char* path, bool is_interpreter, const char* why) {
  t.takes_preload = false;
  if (is_interpreter) {
    snprintf(t.why_not, sizeof t.why_not, "is a script for %.400s, which %s", path, why);
  } else {
    snprintf(t.why_not, sizeof t.why_not, "%s", why);
  }
}

// The loader an ELF file asks for, or nullptr. `out` holds it.
const char* elf_loader(int fd, const Elf64_Ehdr& eh, char* out, size_t room) {
  for (unsigned i = 0; i < eh.e_phnum; i++) {
    Elf64_Phdr ph;
    off_t at = static_cast<off_t>(eh.e_phoff + uint64_t{i} * eh.e_phentsize);
    if (pread(fd, &ph, sizeof ph, at) != static_cast<ssize_t>(sizeof ph)) return nullptr;
    if (ph.p_type != PT_INTERP || ph.p_filesz == 0) continue;
    size_t n = ph.p_filesz < room ? ph.p_filesz : room - 1;
    ssize_t got = pread(fd, out, n, static_cast<off_t>(ph.p_offset));
    if (got <= 0) return nullptr;
    out[got] = 0;
    return out;
  }
  return nullptr;
}

// ---- sanitizers

// Runtimes that know threads by their own pthread_create and stacks by libc's: under weft
// they would see one thread with many stacks. (The undefined-behaviour one sees neither.)
struct Sanitizer {
  const char* entry;    // imported from the shared runtime, or exported by clang's static one
  const char* library;  // of programs that call no entry
  const char* why;
};
constexpr Sanitizer kSanitizers[] = {
    {"__asan_init", "libasan.so", "is built with AddressSanitizer"},
    {"__hwasan_init", "libhwasan.so", "is built with HWAddressSanitizer"},
    {"__tsan_init", "libtsan.so", "is built with ThreadSanitizer"},
    {"__msan_init", "libmsan.so", "is built with MemorySanitizer"},
    {"__lsan_init", "liblsan.so", "is built with LeakSanitizer"},
};

// A whole name in a string table, or the beginning of one (a library's version follows).
bool in_strings(const char* table, size_t bytes, const char* name, bool whole) {
  size_t n = strlen(name);
  for (const char* at = table; at + n < table + bytes;) {
    at = static_cast<const char*>(memmem(at, static_cast<size_t>(table + bytes - at), name, n));
    if (!at) return false;
    if ((at == table || at[-1] == 0) && (!whole || at + n == table + bytes || at[n] == 0)) return true;
    at += n;
  }
  return false;
}

const char* sanitizer_in(const unsigned char* file, size_t bytes) {
  Elf64_Ehdr eh;
  if (bytes < sizeof eh) return nullptr;
  memcpy(&eh, file, sizeof eh);
  if (eh.e_phentsize != sizeof(Elf64_Phdr) || eh.e_phoff > bytes ||
      (bytes - eh.e_phoff) / sizeof(Elf64_Phdr) < eh.e_phnum)
    return nullptr;
  auto ph = [&](unsigned i) {
    Elf64_Phdr p;
    memcpy(&p, file + eh.e_phoff + i * sizeof p, sizeof p);
    return p;
  };
  uint64_t strings = 0, size = 0;  // DT_STRTAB (an address), DT_STRSZ
  for (unsigned i = 0; i < eh.e_phnum; i++) {
    Elf64_Phdr p = ph(i);
    if (p.p_type != PT_DYNAMIC || p.p_offset > bytes || bytes - p.p_offset < p.p_filesz) continue;
    for (uint64_t at = 0; at + sizeof(Elf64_Dyn) <= p.p_filesz; at += sizeof(Elf64_Dyn)) {
      Elf64_Dyn d;
      memcpy(&d, file + p.p_offset + at, sizeof d);
      if (d.d_tag == DT_STRTAB) strings = d.d_un.d_ptr;
      if (d.d_tag == DT_STRSZ) size = d.d_un.d_val;
    }
  }
  for (unsigned i = 0; i < eh.e_phnum; i++) {
    Elf64_Phdr p = ph(i);
    if (p.p_type != PT_LOAD || strings < p.p_vaddr || strings - p.p_vaddr >= p.p_filesz) continue;
    uint64_t at = p.p_offset + (strings - p.p_vaddr);
    if (at > bytes || bytes - at < size) return nullptr;
    auto* table = reinterpret_cast<const char*>(file + at);
    for (const Sanitizer& s : kSanitizers)
      if (in_strings(table, size, s.entry, true) || in_strings(table, size, s.library, false))
        return s.why;
  }
  return nullptr;
}

const char* sanitizer_of(int fd) {
  struct stat st;
  if (fstat(fd, &st) || st.st_size <= 0) return nullptr;
  size_t bytes = static_cast<size_t>(st.st_size);
  void* file = mmap(nullptr, bytes, PROT_READ, MAP_PRIVATE, fd, 0);
  if (file == MAP_FAILED) return nullptr;
  const char* why = sanitizer_in(static_cast<const unsigned char*>(file), bytes);
  munmap(file, bytes);
  return why;
}

void examine_elf(Target& t, int fd, const unsigned char* head, const char* path, bool nested) {
  if (head[EI_CLASS] == ELFCLASS32) return refuse(t, path, nested, "is a 32-bit program");
  Elf64_Ehdr eh;
  memcpy(&eh, head, sizeof eh);
  if (eh.e_machine != EM_X86_64) return refuse(t, path, nested, "is not an x86-64 program");
  char loader[256];
  if (!elf_loader(fd, eh, loader, sizeof loader)) {
    if (same_file(path, kLoader)) return;  // ld.so run by hand: it preloads too
    return refuse(t, path, nested, "is statically linked");
  }
  const char* slash = strrchr(loader, '/');
  if (strcmp(slash ? slash + 1 : loader, kLoaderName)) {
    return refuse(t, path, nested, "uses a C library other than glibc");
  }
  if (const char* why = sanitizer_of(fd)) refuse(t, path, nested, why);
}

// The interpreter in a #! line, cut out of `line` in place; nullptr when there is none.
char* script_interpreter(char* line) {
  line[strcspn(line, "\n")] = 0;
  char* name = line + 2 + strspn(line + 2, " \t");
  name[strcspn(name, " \t")] = 0;
  return *name ? name : nullptr;
}

bool may_run(const char* path, struct stat& st) {
  return S_ISREG(st.st_mode) && !access(path, X_OK);
}

}  // namespace

Target examine_target(const char* path) {
  Target t;
  // A script or a program of its own; what it runs inherits the environment.
  const char* slash = strrchr(path, '/');
  if (!strcmp(slash ? slash + 1 : path, "valgrind")) {
    refuse(t, path, false, "runs programs on a processor of its own");
    return t;
  }
  char current[4096];
  snprintf(current, sizeof current, "%s", path);
  for (int depth = 0; depth <= kScriptDepth; depth++) {
    bool nested = depth > 0;
    alignas(Elf64_Ehdr) unsigned char head[kHeadBytes + 1] = {};
    int fd = open(current, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? 0 : read(fd, head, kHeadBytes);
    if (n >= static_cast<ssize_t>(sizeof(Elf64_Ehdr)) && !memcmp(head, ELFMAG, SELFMAG)) {
      examine_elf(t, fd, head, current, nested);
    }
    if (fd >= 0) close(fd);
    bool script = n > 2 && head[0] == '#' && head[1] == '!';
    if (!script) {
      const char* gain = privilege_gained(current);
      if (gain && t.takes_preload) refuse(t, current, nested, gain);
      // What is no program the kernel knows goes to /bin/sh, as with execvp.
      t.shell_script = depth == 0 && n > 0 && memcmp(head, ELFMAG, SELFMAG) != 0;
      return t;
    }
    const char* name = script_interpreter(reinterpret_cast<char*>(head));
    if (!name) return t;
    snprintf(current, sizeof current, "%s", name);
  }
  return t;
}

Found find_command(const char* command, const char* search_path, char* out, size_t room) {
  struct stat st;
  if (strchr(command, '/')) {
    snprintf(out, room, "%s", command);
    if (stat(out, &st)) return errno == EACCES ? Found::kNotExecutable : Found::kMissing;
    return may_run(out, st) ? Found::kYes : Found::kNotExecutable;
  }
  if (!search_path) search_path = "/bin:/usr/bin";
  char refused[4096] = "";
  for (const char* at = search_path; *command;) {
    size_t n = strcspn(at, ":");
    int len = n ? snprintf(out, room, "%.*s/%s", static_cast<int>(n), at, command)
                : snprintf(out, room, "./%s", command);
    if (len > 0 && static_cast<size_t>(len) < room && !stat(out, &st)) {
      if (may_run(out, st)) return Found::kYes;
      if (!*refused && S_ISREG(st.st_mode)) snprintf(refused, sizeof refused, "%s", out);
    }
    if (!at[n]) break;
    at += n + 1;
  }
  if (!*refused) return Found::kMissing;
  snprintf(out, room, "%s", refused);
  return Found::kNotExecutable;
}

}  // namespace weft

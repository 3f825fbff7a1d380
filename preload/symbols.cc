// symbols.cc - see symbols.h.
#include "preload/symbols.h"

#include <elf.h>
#include <fcntl.h>
#include <link.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "sched/sys.h"

namespace weft {
namespace {

struct File {
  uint64_t base, lo, hi;     // load bias and extent
  const char* path;
  bool read;
  const Elf64_Sym* syms;
  size_t n_syms;
  const char* names;
  size_t names_bytes;
};

constexpr size_t kMaxFiles = 256;
constexpr size_t kCache = 1024;  // a dump names the same few frames again and again
File files[kMaxFiles];
size_t n_files;
struct Cached {
  uint64_t pc = 0;
  Symbol s;  // without a file: none yet
};
constinit Cached cache[kCache] = {};

const char* last_part(const char* path) {
  const char* slash = strrchr(path, '/');
  return slash == nullptr ? path : slash + 1;
}

int add_file(dl_phdr_info* info, size_t, void*) {
  if (n_files == kMaxFiles) return 1;
  File& f = files[n_files++];
  f.base = info->dlpi_addr;
  f.lo = ~uint64_t{0};
  f.path = info->dlpi_name != nullptr && info->dlpi_name[0] != 0 ? info->dlpi_name
                                                                 : "/proc/self/exe";
  for (int i = 0; i < info->dlpi_phnum; i++) {
    const auto& ph = info->dlpi_phdr[i];
    if (ph.p_type != PT_LOAD) continue;
    uint64_t lo = f.base + ph.p_vaddr, hi = lo + ph.p_memsz;
    if (lo < f.lo) f.lo = lo;
    if (hi > f.hi) f.hi = hi;
  }
  return 0;
}

struct Image {
  const char* at;
  size_t bytes;
  bool holds(uint64_t off, uint64_t n) const { return off <= bytes && n <= bytes - off; }
};

Image map_file(const char* path) {
  long fd = sys_call(SYS_openat, AT_FDCWD, sys_arg(path), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return {};
  struct stat st;
  Image im{};
  if (sys_call(SYS_fstat, fd, sys_arg(&st)) == 0 && st.st_size > 64) {
    auto bytes = static_cast<size_t>(st.st_size);
    long p = sys_call(SYS_mmap, 0, sys_arg(bytes), PROT_READ, MAP_PRIVATE, fd, 0);
    if (p > 0) im = {reinterpret_cast<const char*>(p), bytes};
  }
  sys_call(SYS_close, fd);
  return im;
}

// Finds the fuller of the two symbol tables; leaves n_syms 0 when the file has none.
void read_symbols(File& f) {
  f.read = true;
  Image im = map_file(f.path);
  if (im.at == nullptr || memcmp(im.at, ELFMAG, SELFMAG) != 0) return;
  auto* eh = reinterpret_cast<const Elf64_Ehdr*>(im.at);
  if (!im.holds(eh->e_shoff, uint64_t{eh->e_shnum} * sizeof(Elf64_Shdr))) return;
  auto* sh = reinterpret_cast<const Elf64_Shdr*>(im.at + eh->e_shoff);
  for (int i = 0; i < eh->e_shnum; i++) {
    bool full = sh[i].sh_type == SHT_SYMTAB;
    if (!full && (sh[i].sh_type != SHT_DYNSYM || f.n_syms != 0)) continue;
    if (sh[i].sh_link >= eh->e_shnum || !im.holds(sh[i].sh_offset, sh[i].sh_size)) continue;
    const Elf64_Shdr& str = sh[sh[i].sh_link];
    if (!im.holds(str.sh_offset, str.sh_size)) continue;
    f.syms = reinterpret_cast<const Elf64_Sym*>(im.at + sh[i].sh_offset);
    f.n_syms = sh[i].sh_size / sizeof(Elf64_Sym);
    f.names = im.at + str.sh_offset;
    f.names_bytes = str.sh_size;
  }
}

Symbol look_up(uint64_t pc) {
  Symbol s;
  s.file = "?";
  for (size_t i = 0; i < n_files; i++) {
    File& f = files[i];
    if (pc < f.lo || pc >= f.hi) continue;
    if (!f.read) read_symbols(f);
    s.file = last_part(f.path);
    if (strcmp(f.path, "/proc/self/exe") == 0) s.file = "program";
    s.offset = pc - f.base;
    uint64_t at = pc - f.base, best = 0;
    for (size_t k = 0; k < f.n_syms; k++) {
      const Elf64_Sym& y = f.syms[k];
      unsigned type = ELF64_ST_TYPE(y.st_info);
      if ((type != STT_FUNC && type != STT_GNU_IFUNC && type != STT_NOTYPE) ||
          y.st_shndx == SHN_UNDEF || y.st_value > at || y.st_name >= f.names_bytes)
        continue;
      // Assembly has symbols without a size: they reach up to the next one.
      if (y.st_size != 0 ? at >= y.st_value + y.st_size : type != STT_NOTYPE) continue;
      if (y.st_value < best || (type == STT_NOTYPE && s.name != nullptr)) continue;
      best = y.st_value;
      s.name = f.names + y.st_name;
      s.offset = at - y.st_value;
    }
    return s;
  }
  return s;
}

}  // namespace

Symbol symbol_at(uint64_t pc) {
  if (n_files == 0) dl_iterate_phdr(add_file, nullptr);
  Cached& c = cache[(pc * 0x9e3779b97f4a7c15u) >> 54];
  static_assert(kCache == 1u << (64 - 54));
  if (c.s.file == nullptr || c.pc != pc) {
    c.s = look_up(pc);
    c.pc = pc;
  }
  return c.s;
}

}  // namespace weft

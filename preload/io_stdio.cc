// io_stdio.cc - see io_stdio.h.
#include "preload/io_stdio.h"

#include <link.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include "preload/io_fd.h"
#include "preload/real.h"

namespace weft {
namespace {

using ReadFn = ssize_t (*)(FILE*, void*, ssize_t);
using WriteFn = ssize_t (*)(FILE*, const void*, ssize_t);
using CloseFn = int (*)(FILE*);

// libc's, as found in the tables.
ReadFn file_read;
WriteFn file_write;
CloseFn file_close, proc_close;

constexpr int kNotCancel = 2;   // FILE::_flags2: fopen's mode "c", its calls cancel nothing
constexpr int kErrorSeen = 32;  // FILE::_flags: ferror()

bool ours(const FILE* f) { return this_g() != nullptr && (f->_flags2 & kNotCancel) == 0; }

ssize_t stdio_read(FILE* f, void* buf, ssize_t n) {
  if (!ours(f)) return file_read(f, buf, n);
  return read(f->_fileno, buf, static_cast<size_t>(n));
}

// Everything is written, or the stream is in error: how much was.
ssize_t stdio_write(FILE* f, const void* data, ssize_t n) {
  if (!ours(f)) return file_write(f, data, n);
  auto* from = static_cast<const char*>(data);
  ssize_t done = 0;
  while (done < n) {
    ssize_t r = write(f->_fileno, from + done, static_cast<size_t>(n - done));
    if (r < 0) {
      f->_flags |= kErrorSeen;
      break;
    }
    done += r;
  }
  if (f->_offset >= 0) f->_offset += done;
  return done;
}

int stdio_close(FILE* f) {
  io_closing(f->_fileno);
  return file_close(f);
}

int stdio_proc_close(FILE* f) {
  io_closing(f->_fileno);
  return proc_close(f);
}

// The four of these that follow each other in struct _IO_jump_t, whose order is part of
// libstdc++'s ABI since 1999.
struct Slots {
  void* read;
  void* write;
  void* seek;
  void* close;
};

struct Relro {
  uintptr_t holds, lo = 0, hi = 0;
};

int find_relro(dl_phdr_info* info, size_t, void* arg) {
  auto* want = static_cast<Relro*>(arg);
  for (int i = 0; i < info->dlpi_phnum; i++) {
    const auto& ph = info->dlpi_phdr[i];
    uintptr_t from = info->dlpi_addr + ph.p_vaddr;
    if (ph.p_type != PT_GNU_RELRO || want->holds < from || want->holds >= from + ph.p_memsz) continue;
    // What the loader made read-only of it.
    want->lo = from & ~(kPageBytes - 1);
    want->hi = (from + ph.p_memsz) & ~(kPageBytes - 1);
    return 1;
  }
  return 0;
}

template <class F>
void each_table(uintptr_t lo, uintptr_t hi, F f) {
  for (uintptr_t at = lo; at + sizeof(Slots) <= hi; at += sizeof(void*)) {
    auto* s = reinterpret_cast<Slots*>(at);
    if (s->read == reinterpret_cast<void*>(file_read) && s->write == reinterpret_cast<void*>(file_write))
      f(s);
  }
}

void take_over(Slots* s) {
  s->read = reinterpret_cast<void*>(stdio_read);
  s->write = reinterpret_cast<void*>(stdio_write);
  if (s->close == reinterpret_cast<void*>(file_close)) s->close = reinterpret_cast<void*>(stdio_close);
  else if (s->close == reinterpret_cast<void*>(proc_close)) s->close = reinterpret_cast<void*>(stdio_proc_close);
}

template <class F>
void find(F& f, const char* name) {
  f = reinterpret_cast<F>(real_resolve(name, nullptr));
}

}  // namespace

void stdio_boot() {
  if (file_read != nullptr) return;
  find(file_close, "_IO_file_close");
  find(proc_close, "_IO_proc_close");
  find(file_write, "_IO_file_write");
  find(file_read, "_IO_file_read");
  auto jumps = reinterpret_cast<uintptr_t>(real_resolve("_IO_file_jumps", nullptr));
  if (file_read == nullptr || file_write == nullptr || file_close == nullptr || jumps == 0) return;
  Relro r = {jumps};
  dl_iterate_phdr(find_relro, &r);
  constexpr uintptr_t kNear = 2 * kPageBytes;  // all tables are in one section, 3.4 KiB of it
  if (r.lo < jumps - kNear) r.lo = (jumps - kNear) & ~(kPageBytes - 1);
  if (r.hi > jumps + kNear) r.hi = round_up(jumps + kNear, kPageBytes);
  bool known = false;
  each_table(r.lo, r.hi, [&](Slots* s) {
    known = known || (reinterpret_cast<uintptr_t>(s) > jumps && s->close == reinterpret_cast<void*>(file_close));
  });
  if (!known || mprotect(reinterpret_cast<void*>(r.lo), r.hi - r.lo, PROT_READ | PROT_WRITE) != 0) return;
  each_table(r.lo, r.hi, take_over);
  mprotect(reinterpret_cast<void*>(r.lo), r.hi - r.lo, PROT_READ);
}

}  // namespace weft

using namespace weft;

WEFT_EXPORT FILE* freopen(const char* path, const char* mode, FILE* f) {
  if (f->_fileno >= 0) io_closing(f->_fileno);
  return real().freopen(path, mode, f);
}

WEFT_EXPORT FILE* freopen64(const char* path, const char* mode, FILE* f) {
  if (f->_fileno >= 0) io_closing(f->_fileno);
  return real().freopen64(path, mode, f);
}

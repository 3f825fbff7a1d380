// tls_modules.cc - see tls_modules.h.
//
// The table has one writer at a time (modules_lock) and readers that copy it and look at
// `version` before and after: thread ends are frequent and must not share a lock.
#include "preload/tls_modules.h"

#include <errno.h>
#include <link.h>
#include <string.h>
#include <sys/mman.h>

#include "sched/sched.h"
#include "sched/sys.h"

namespace weft {
namespace {

struct Module {
  size_t id;
  size_t offset;  // of the block below the TCB
  const char* image;
  size_t image_bytes;
  size_t bytes;   // the rest is zero
};
constexpr size_t kMaxModules = 64;
constexpr uint32_t kReadings = 64;

Module modules[kMaxModules];
size_t n_modules;
std::atomic<uint32_t> version{0};   // odd: being written
Lock modules_lock;
std::atomic<uint32_t> stale{0};     // readings still to be made
size_t static_below;
bool libc_found, own_found;

char* fs_base() { return static_cast<char*>(__builtin_thread_pointer()); }

// Copies of images; equal contents share one. Never freed.
struct Copy {
  Copy* next;
  size_t bytes;
  char* data() { return reinterpret_cast<char*>(this + 1); }
};
Copy* copies;
char* pool;
size_t pool_left;

const char* copy_of(const char* image, size_t bytes) {
  if (bytes == 0) return nullptr;
  for (Copy* c = copies; c != nullptr; c = c->next)
    if (c->bytes == bytes && memcmp(c->data(), image, bytes) == 0) return c->data();
  size_t need = round_up(sizeof(Copy) + bytes, 16);
  if (need > pool_left) {
    size_t chunk = round_up(need, 64 << 10);
    void* p = sys_mmap(nullptr, chunk, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
    if (sys_failed(p)) return nullptr;
    pool = static_cast<char*>(p);
    pool_left = chunk;
  }
  auto* c = reinterpret_cast<Copy*>(pool);
  pool += need;
  pool_left -= need;
  c->next = copies;
  c->bytes = bytes;
  memcpy(c->data(), image, bytes);
  copies = c;
  return c->data();
}

struct Reading {
  Module list[kMaxModules];
  size_t n;
  bool dynamic = false;  // a library's TLS is not among the static
};
std::atomic<uint64_t> next_reading{0};
uint64_t last_reading;  // guarded by modules_lock

// Around work under modules_lock; on a G inside the engine, else it could be preempted there.
void lock_modules() {
  if (G* g = this_g()) engine_enter(g);
  modules_lock.lock();
}
void unlock_modules() {
  modules_lock.unlock();
  if (G* g = this_g()) engine_exit(g);
}

// Where libc keeps a library's TLS offset: the debugger's interface tells. dlpi_tls_data
// will not do: it is null in threads that have not touched the library's TLS yet.
uint32_t offset_field;

const link_map* map_of(const dl_phdr_info* info) {
  for (const link_map* m = _r_debug.r_map; m != nullptr; m = m->l_next)
    if (m->l_addr == info->dlpi_addr && m->l_name == info->dlpi_name) return m;
  return nullptr;
}

// Of the block below the TCB; 0: dynamic.
size_t static_offset(const dl_phdr_info* info) {
  const link_map* m = map_of(info);
  if (m == nullptr) return 0;
  ptrdiff_t offset;
  memcpy(&offset, reinterpret_cast<const char*>(m) + offset_field, sizeof offset);
  return offset > 0 && static_cast<size_t>(offset) <= static_below ? static_cast<size_t>(offset) : 0;
}

// In libc's walk, under its lock against unloading, so the image may be read. Nothing of the
// engine here: on its way out a G may lose its P, and would be queued with libc's lock held, for
// which the Ms then wait, and who opens a library, with the lock that a new M's TLS needs.
// To be given back by drop_image.
const char* image_aside(const char* image, size_t bytes) {
  if (bytes == 0) return nullptr;
  void* p = sys_mmap(nullptr, round_up(bytes, kPageBytes), PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS);
  if (sys_failed(p)) return nullptr;
  memcpy(p, image, bytes);
  return static_cast<const char*>(p);
}
void drop_image(const char* image, size_t bytes) {
  if (image != nullptr) sys_munmap(const_cast<char*>(image), round_up(bytes, kPageBytes));
}

int add_module(dl_phdr_info* info, size_t, void* arg) {
  auto* r = static_cast<Reading*>(arg);
  if (info->dlpi_tls_modid == 0) return 0;
  size_t offset = r->n == kMaxModules ? 0 : static_offset(info);
  if (offset == 0) {
    r->dynamic = true;
    return 0;
  }
  char* block = fs_base() - offset;
  for (int i = 0; i < info->dlpi_phnum; i++) {
    const auto& ph = info->dlpi_phdr[i];
    if (ph.p_type != PT_TLS) continue;
    auto inside = [&](const void* p) { return p >= block && p < block + ph.p_memsz; };
    bool own = inside(&t_g), libc = inside(&errno);
    own_found |= own;
    libc_found |= libc;
    if (own || libc) break;
    Module& m = r->list[r->n++];
    m.id = info->dlpi_tls_modid;
    m.offset = offset;
    m.image_bytes = ph.p_filesz;
    m.bytes = ph.p_memsz;
    m.image = image_aside(reinterpret_cast<const char*>(info->dlpi_addr + ph.p_vaddr), ph.p_filesz);
  }
  return 0;
}

// Under modules_lock: what was put aside becomes the copies.
void keep_images(Reading& r) {
  for (size_t i = 0; i < r.n; i++) {
    Module& m = r.list[i];
    const char* aside = m.image;
    m.image = aside == nullptr ? nullptr : copy_of(aside, m.image_bytes);
    drop_image(aside, m.image_bytes);
    if (m.image == nullptr) m.image_bytes = 0;
  }
}

void begin_change() {
  version.fetch_add(1, std::memory_order_acq_rel);
  std::atomic_thread_fence(std::memory_order_seq_cst);
}
void end_change(const Reading& r) {
  memcpy(modules, r.list, r.n * sizeof(Module));
  n_modules = r.n;
  version.fetch_add(1, std::memory_order_release);
}

bool same(const Module& a, const Module& b) {
  return a.id == b.id && a.offset == b.offset && a.image == b.image && a.bytes == b.bytes;
}

bool among(const Module& m, const Module* list, size_t n) {
  for (size_t i = 0; i < n; i++)
    if (same(m, list[i])) return true;
  return false;
}

// A new library's block in g. It was zero until now; what is not belongs to a constructor
// or a user that was faster than we, and stays.
void set_new(G* g, const Module& m) {
  char* block = reinterpret_cast<char*>(g->fs) - m.offset;
  for (size_t i = 0; i < m.image_bytes; i++)
    if (block[i] == 0) block[i] = m.image[i];
}

template <class F>
void every_tls(F f) {
  for (G* g = all_gs_first(); g != nullptr; g = g->all_next)
    if (g->cls != nullptr && !g->fresh) f(g);
}

// libc does for its own threads what we do here for ours (it keeps them on no list).
void take_over(const Reading& now) {
  bool changed = now.n != n_modules;
  for (size_t i = 0; i < now.n; i++) changed |= !among(now.list[i], modules, n_modules);
  if (!changed) return;
  begin_change();  // before the walk: a G being made now notices (tls_modules_version)
  for (size_t i = 0; i < n_modules; i++) {
    const Module& m = modules[i];
    if (among(m, now.list, now.n)) continue;
    every_tls([&](G* g) { memset(reinterpret_cast<char*>(g->fs) - m.offset, 0, m.bytes); });
  }
  for (size_t i = 0; i < now.n; i++) {
    const Module& m = now.list[i];
    if (among(m, modules, n_modules)) continue;
    every_tls([&](G* g) { set_new(g, m); });
  }
  end_change(now);
}

}  // namespace

bool tls_modules_boot(size_t below, const uint32_t* offset_desc, bool* all_static) {
  static_below = below;
  offset_field = offset_desc[2];
  if (offset_field == 0 || offset_field > 4096) return false;
  Reading r;
  r.n = 0;
  dl_iterate_phdr(add_module, &r);
  *all_static = !r.dynamic;
  keep_images(r);
  begin_change();
  end_change(r);
  return libc_found && own_found;
}

bool tls_modules_agree(bool (*agrees)(size_t, const char*, void*), void* arg) {
  for (size_t i = 0; i < n_modules; i++)
    if (!agrees(modules[i].id, fs_base() - modules[i].offset, arg)) return false;
  return true;
}

void tls_reset_static(uintptr_t fs) {
  Module list[kMaxModules];
  size_t n;
  uint32_t seen;
  do {
    for (int i = 0; ((seen = version.load(std::memory_order_acquire)) & 1) != 0; i++) {
      cpu_relax();
      if (i > 1000) sys_sched_yield();
    }
    n = n_modules < kMaxModules ? n_modules : 0;
    memcpy(list, modules, n * sizeof(Module));
    std::atomic_thread_fence(std::memory_order_acquire);
  } while (version.load(std::memory_order_relaxed) != seen);
  for (size_t i = 0; i < n; i++) {
    char* block = reinterpret_cast<char*>(fs) - list[i].offset;
    memcpy(block, list[i].image, list[i].image_bytes);
    memset(block + list[i].image_bytes, 0, list[i].bytes - list[i].image_bytes);
  }
}

uint32_t tls_modules_version() { return version.load(std::memory_order_seq_cst); }

void tls_modules_stale() { stale.store(kReadings, std::memory_order_release); }

// The walk itself is outside the engine: it waits for libc's lock, whose holder may be a G
// that needs our P.
void tls_modules_refresh() {
  uint32_t left = stale.load(std::memory_order_acquire);
  if (WEFT_LIKELY(left == 0)) return;
  stale.compare_exchange_strong(left, left - 1, std::memory_order_relaxed);
  uint64_t reading = next_reading.fetch_add(1, std::memory_order_acq_rel) + 1;
  Reading now;
  now.n = 0;
  dl_iterate_phdr(add_module, &now);
  lock_modules();
  keep_images(now);
  if (reading > last_reading) {  // else a later one has been taken over
    last_reading = reading;
    take_over(now);
  }
  unlock_modules();
}

void tls_modules_after_fork() {
  modules_lock.reset();
  // Cut off in the middle of a change: what was being written is read again in full.
  if ((version.load(std::memory_order_relaxed) & 1) != 0) {
    version.fetch_add(1, std::memory_order_relaxed);
    tls_modules_stale();
  }
}

}  // namespace weft

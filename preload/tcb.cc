// tcb.cc - see tcb.h.
#include "preload/tcb.h"

#include <dlfcn.h>
#include <link.h>
#include <linux/rseq.h>
#include <locale.h>
#include <netdb.h>
#include <resolv.h>
#include <stdlib.h>
#include <string.h>

#undef p_type  // <resolv.h> renames it
#include "preload/api.h"
#include "preload/thread.h"
#include "sched/stack.h"
#include "sched/sys.h"

extern "C" {
// Since glibc 2.35; absent in 2.34, hence weak.
extern const ptrdiff_t __rseq_offset __attribute__((weak));
extern const unsigned __rseq_size __attribute__((weak));
}

namespace weft {
namespace {

// The TCB header as compilers and libc's assembly know it.
struct TcbHead {
  void* tcb;
  void* dtv;
  void* self;
  int multiple_threads;
  int gscope;
  uintptr_t sysinfo;
  uintptr_t stack_guard;
  uintptr_t pointer_guard;
};
static_assert(offsetof(TcbHead, stack_guard) == 0x28 && offsetof(TcbHead, pointer_guard) == 0x30);

// A dtv slot as __tls_get_addr's callers see it through libthread_db. dtv[-1].word is the
// capacity, dtv[0].word the generation, dtv[i] module i's block and what to free for it.
union DtvSlot {
  size_t word;
  struct {
    void* block;
    void* to_free;
  } p;
};
void* const kDtvUnallocated = reinterpret_cast<void*>(~uintptr_t{0});

struct Module {
  size_t id;
  size_t offset;       // below the TCB; 0: dynamic
  const void* image;
  size_t image_bytes;
  size_t bytes;
};

struct Privates {
  void* (*allocate_tls)(void*);
  void (*tls_static_info)(size_t*, size_t*);
  void (*call_tls_dtors)();
  void (*ctype_init)();
  uint32_t sizeof_pthread;
  uint32_t tid_offset;
  size_t static_below;
  size_t static_align;
  size_t robust_offset;  // of struct robust_list_head; 0: unknown
  long robust_futex_offset;
  ptrdiff_t resp_offset;
  ptrdiff_t t_g_offset;
  bool dtv_known;
};
Privates priv;

constexpr size_t kMaxModules = 256;
Module modules[kMaxModules];
size_t n_modules;
size_t libc_module, own_module;
Lock modules_lock;  // guards the four above
// Readings still to be made after a dlopen or dlclose whose end we do not see (dl.cc).
std::atomic<uint32_t> modules_stale{0};
constexpr uint32_t kReadings = 64;

char* fs_base() { return static_cast<char*>(__builtin_thread_pointer()); }
TcbHead* head_of(uintptr_t fs) { return reinterpret_cast<TcbHead*>(fs); }

template <class F>
bool find(F& out, const char* name) {
  void* p = dlsym(RTLD_DEFAULT, name);
  if (p == nullptr) p = dlvsym(RTLD_DEFAULT, name, "GLIBC_PRIVATE");
  out = reinterpret_cast<F>(p);
  return p != nullptr;
}

int add_module(dl_phdr_info* info, size_t, void* arg) {
  if (info->dlpi_tls_modid == 0) return 0;
  auto& n = *static_cast<size_t*>(arg);
  if (n == kMaxModules) return 0;
  for (int i = 0; i < info->dlpi_phnum; i++) {
    const auto& ph = info->dlpi_phdr[i];
    if (ph.p_type != PT_TLS) continue;
    Module& m = modules[n++];
    m.id = info->dlpi_tls_modid;
    m.image = reinterpret_cast<const void*>(info->dlpi_addr + ph.p_vaddr);
    m.image_bytes = ph.p_filesz;
    m.bytes = ph.p_memsz;
    char* block = static_cast<char*>(info->dlpi_tls_data);
    char* fs = fs_base();
    // Static iff it lies in the calling thread's static block.
    m.offset = block != nullptr && block < fs && block >= fs - priv.static_below
                   ? static_cast<size_t>(fs - block)
                   : 0;
    char* own = reinterpret_cast<char*>(&t_g);
    if (m.offset != 0 && own >= block && own < block + m.bytes) own_module = m.id;
    char* err = reinterpret_cast<char*>(&errno);
    if (m.offset != 0 && err >= block && err < block + m.bytes) libc_module = m.id;
  }
  return 0;
}

void read_modules() {
  size_t n = 0;
  dl_iterate_phdr(add_module, &n);
  n_modules = n;
}

// The module ids whose dtv entries we know must agree with what dl_iterate_phdr says.
bool check_dtv() {
  auto* dtv = static_cast<DtvSlot*>(head_of(reinterpret_cast<uintptr_t>(fs_base()))->dtv);
  if (dtv == nullptr) return false;
  size_t cap = dtv[-1].word;
  if (cap == 0 || cap > 100000) return false;
  for (size_t i = 0; i < n_modules; i++) {
    const Module& m = modules[i];
    if (m.offset == 0) continue;
    if (m.id > cap || dtv[m.id].p.block != fs_base() - m.offset) return false;
  }
  return n_modules > 0;
}

bool find_robust() {
  void* head = nullptr;
  size_t len = 0;
  if (sys_call(SYS_get_robust_list, 0, sys_arg(&head), sys_arg(&len)) != 0) return false;
  char* fs = fs_base();
  auto* h = static_cast<char*>(head);
  if (h < fs || h + 24 > fs + priv.sizeof_pthread) return false;
  priv.robust_offset = static_cast<size_t>(h - fs);
  memcpy(&priv.robust_futex_offset, h + 8, sizeof(long));
  return true;
}

void reset_static(uintptr_t fs, const Module& m) {
  char* block = reinterpret_cast<char*>(fs) - m.offset;
  if (m.image_bytes != 0) memcpy(block, m.image, m.image_bytes);
  if (m.bytes > m.image_bytes) memset(block + m.image_bytes, 0, m.bytes - m.image_bytes);
}

// Blocks that __tls_get_addr allocated for this thread go; it makes new ones on demand.
void free_dynamic_tls(TcbHead* head) {
  auto* dtv = static_cast<DtvSlot*>(head->dtv);
  size_t cap = dtv[-1].word;
  for (size_t i = 1; i <= cap; i++) {
    if (dtv[i].p.to_free == nullptr) continue;
    void* mem = dtv[i].p.to_free;
    dtv[i].p.to_free = nullptr;
    dtv[i].p.block = kDtvUnallocated;
    free(mem);
  }
}

}  // namespace

const char* tcb_probe() {
  uint32_t* sizeof_pthread;
  uint32_t* tid_desc;
  void* resp;
  if (!find(priv.allocate_tls, "_dl_allocate_tls") ||
      !find(priv.tls_static_info, "_dl_get_tls_static_info") ||
      !find(priv.call_tls_dtors, "__call_tls_dtors") || !find(priv.ctype_init, "__ctype_init") ||
      !find(sizeof_pthread, "_thread_db_sizeof_pthread") ||
      !find(tid_desc, "_thread_db_pthread_tid") || !find(resp, "__resp"))
    return "this libc does not export what a thread of ours is made of";
  priv.sizeof_pthread = *sizeof_pthread;
  priv.tid_offset = tid_desc[2];
  size_t bytes = 0, align = 0;
  priv.tls_static_info(&bytes, &align);
  char* fs = fs_base();
  TcbHead* head = head_of(reinterpret_cast<uintptr_t>(fs));
  if (bytes < priv.sizeof_pthread || priv.sizeof_pthread < 512 || priv.sizeof_pthread > 65536 ||
      priv.tid_offset + 4 > priv.sizeof_pthread || align == 0 || head->self != fs ||
      head->tcb != fs)
    return "this libc's thread control block looks different";
  priv.static_align = align < 64 ? 64 : align;
  priv.static_below = round_up(bytes - priv.sizeof_pthread, priv.static_align);
  int tid;
  memcpy(&tid, fs + priv.tid_offset, sizeof tid);
  if (tid != sys_gettid()) return "this libc keeps the thread id elsewhere";
  priv.resp_offset = static_cast<char*>(resp) - fs;
  priv.t_g_offset = reinterpret_cast<char*>(&t_g) - fs;
  if (!find_robust()) return "this libc keeps its robust list elsewhere";
  read_modules();
  priv.dtv_known = check_dtv();
  if (!priv.dtv_known || libc_module == 0 || own_module == 0)
    return "this libc lays thread-local storage out differently";
  return nullptr;
}

size_t tcb_static_below() { return priv.static_below; }
size_t tcb_pthread_bytes() { return priv.sizeof_pthread; }

TcbLayout host_tcb_layout() {
  return {priv.static_below, round_up(priv.sizeof_pthread, 16) + sizeof(Thread),
          priv.static_align};
}

void tcb_set_tid(G* g, uint32_t tid) {
  memcpy(reinterpret_cast<char*>(g->fs) + priv.tid_offset, &tid, sizeof tid);
}

bool tcb_make(G* g) {
  char* fs = reinterpret_cast<char*>(g->fs);
  TcbHead* mine = head_of(reinterpret_cast<uintptr_t>(fs_base()));
  TcbHead* head = head_of(g->fs);
  if (head->tcb != nullptr) {  // left by a thread that a fork cut off
    memset(fs - priv.static_below, 0, priv.static_below);
    memset(fs, 0, priv.sizeof_pthread);
  }
  if (priv.allocate_tls(fs) == nullptr) return false;
  head->tcb = head->self = fs;
  head->multiple_threads = 1;
  head->stack_guard = mine->stack_guard;
  head->pointer_guard = mine->pointer_guard;
  tcb_set_tid(g, g->vtid);
  // fork's child unlinks and relinks the caller's list node, which lies just before tid.
  char* node = fs + priv.tid_offset - 2 * sizeof(void*);
  void* self_link[2] = {node, node};
  memcpy(node, self_link, sizeof self_link);
  // An empty robust list, as every thread of libc's has one: head, and a back pointer before it.
  char* robust = fs + priv.robust_offset;
  memcpy(robust, &robust, sizeof robust);
  memcpy(robust + 8, &priv.robust_futex_offset, sizeof(long));
  memcpy(robust - 8, &robust, sizeof robust);
  if (&__rseq_offset != nullptr && __rseq_offset != 0) {
    auto* rs = reinterpret_cast<struct rseq*>(fs + __rseq_offset);
    rs->cpu_id = static_cast<uint32_t>(RSEQ_CPU_ID_REGISTRATION_FAILED);
  }
  auto* t = static_cast<Thread*>(g->thread);
  void* res = &t->res;
  memcpy(fs + priv.resp_offset, &res, sizeof res);
  memcpy(fs + priv.t_g_offset, &g, sizeof g);
  return true;
}

void tcb_first_run() { priv.ctype_init(); }

void tcb_run_dtors() { priv.call_tls_dtors(); }

void tcb_reset(G* g) {
  auto* t = static_cast<Thread*>(g->thread);
  if ((t->res.options & RES_INIT) != 0) {
    res_nclose(&t->res);
    memset(&t->res, 0, sizeof t->res);
  }
  uselocale(LC_GLOBAL_LOCALE);
  for (size_t i = 0; i < n_modules; i++) {
    const Module& m = modules[i];
    if (m.offset != 0 && m.id != libc_module && m.id != own_module) reset_static(g->fs, m);
  }
  free_dynamic_tls(head_of(g->fs));
  errno = 0;
  h_errno = 0;
}

void tcb_modules_stale() { modules_stale.store(kReadings, std::memory_order_release); }

namespace {

bool has_tls(const G* g) { return g->cls != nullptr && !g->fresh; }

// A new library's block in g. It was zero until now; what is not belongs to a constructor
// or a user that was faster than we, and stays.
void set_new_static(G* g, const Module& m) {
  char* block = reinterpret_cast<char*>(g->fs) - m.offset;
  auto* image = static_cast<const char*>(m.image);
  for (size_t i = 0; i < m.image_bytes; i++)
    if (block[i] == 0) block[i] = image[i];
}

template <class F>
void every_tls(F f) {
  for (G* g = all_gs_first(); g != nullptr; g = g->all_next)
    if (has_tls(g)) f(g);
}

bool same(const Module& a, const Module& b) {
  return a.id == b.id && a.offset == b.offset && a.image == b.image;
}

bool among(const Module& m, const Module* list, size_t n) {
  for (size_t i = 0; i < n; i++)
    if (same(m, list[i])) return true;
  return false;
}

// libc does for its own threads what we do here for ours (it keeps them on no list).
void modules_reread() {
  static Module seen[kMaxModules];
  size_t n_seen = n_modules;
  memcpy(seen, modules, n_seen * sizeof(Module));
  read_modules();
  for (size_t i = 0; i < n_seen; i++) {
    const Module& m = seen[i];
    if (m.offset == 0 || among(m, modules, n_modules)) continue;
    every_tls([&](G* g) { memset(reinterpret_cast<char*>(g->fs) - m.offset, 0, m.bytes); });
  }
  for (size_t i = 0; i < n_modules; i++) {
    const Module& m = modules[i];
    if (m.offset == 0 || m.image_bytes == 0 || among(m, seen, n_seen)) continue;
    every_tls([&](G* g) { set_new_static(g, m); });
  }
}

}  // namespace

void tcb_modules_refresh() {
  uint32_t left = modules_stale.load(std::memory_order_acquire);
  if (WEFT_LIKELY(left == 0)) return;
  G* me = this_g();
  if (me != nullptr) engine_enter(me);  // else preempted while holding the lock
  modules_lock.lock();
  modules_stale.compare_exchange_strong(left, left - 1, std::memory_order_relaxed);
  modules_reread();
  modules_lock.unlock();
  if (me != nullptr) engine_exit(me);
}

void tcb_after_fork_child(G* g) {
  struct Node {
    Node* next;
    Node* prev;
  };
  auto* node = reinterpret_cast<Node*>(reinterpret_cast<char*>(g->fs) + priv.tid_offset) - 1;
  node->next->prev = node->prev;
  node->prev->next = node->next;
  node->next = node->prev = node;
}

void tcb_wire(G* g) {
  tcb_set_tid(g, static_cast<uint32_t>(sys_gettid()));
  sys_call(SYS_set_robust_list, sys_arg(g->fs + priv.robust_offset), 24);
}

void tcb_unwire(G* g) {
  auto* head = reinterpret_cast<void**>(g->fs + priv.robust_offset);
  auto tid = static_cast<uint32_t>(sys_gettid());
  constexpr uint32_t kTidMask = 0x3fffffff, kOwnerDied = 0x40000000, kWaiters = 0x80000000;
  constexpr int kMostHeld = 2048;  // the kernel's own limit
  void* at = *head;
  for (int i = 0; at != static_cast<void*>(head) && at != nullptr && i < kMostHeld; i++) {
    // Bit 0 marks a PI mutex, whose owner the kernel itself knows.
    auto entry = reinterpret_cast<uintptr_t>(at);
    auto* lock = reinterpret_cast<std::atomic<uint32_t>*>(
        (entry & ~uintptr_t{1}) + static_cast<uintptr_t>(priv.robust_futex_offset));
    at = *reinterpret_cast<void**>(entry & ~uintptr_t{1});
    uint32_t word = lock->load(std::memory_order_relaxed);
    while ((word & kTidMask) == tid &&
           !lock->compare_exchange_weak(word, (word & kWaiters) | kOwnerDied,
                                        std::memory_order_acq_rel)) {
    }
    if ((word & kTidMask) == tid && (word & kWaiters) != 0)
      sys_call(SYS_futex, sys_arg(lock), FUTEX_WAKE, 1);
  }
  *head = head;
  *(head - 1) = head;
  sys_call(SYS_set_robust_list, sys_arg(g->m->g0.fs + priv.robust_offset), 24);
  tcb_set_tid(g, g->vtid);
}

void tcb_unregister_rseq() {
  if (&__rseq_offset == nullptr || __rseq_offset == 0 || __rseq_size == 0) return;
  auto* rs = reinterpret_cast<struct rseq*>(fs_base() + __rseq_offset);
  if (static_cast<int32_t>(rs->cpu_id) < 0) return;
  if (sys_call(SYS_rseq, sys_arg(rs), 32, RSEQ_FLAG_UNREGISTER, 0x53053053) == 0)
    rs->cpu_id = static_cast<uint32_t>(RSEQ_CPU_ID_REGISTRATION_FAILED);
}

}  // namespace weft

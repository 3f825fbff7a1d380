// tcb.cc - see tcb.h.
#include "preload/tcb.h"

#include <dlfcn.h>
#include <linux/rseq.h>
#include <locale.h>
#include <netdb.h>
#include <resolv.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "preload/api.h"
#include "preload/thread.h"
#include "preload/tls_modules.h"
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

struct Privates {
  void* (*allocate_tls)(void*);
  void (*tls_static_info)(size_t*, size_t*);
  void (*call_tls_dtors)();
  void (*ctype_init)();
  uint32_t sizeof_pthread;
  uint32_t tid_offset;
  size_t static_below;
  size_t static_align;
  size_t static_generation;  // of a dtv without dynamic TLS; all ones: unknown
  size_t cancel_offset;  // of the word with libc's cancellation bits; 0: unknown
  size_t robust_offset;  // of struct robust_list_head; 0: unknown
  long robust_futex_offset;
  uint32_t sched_offset[3];  // of what libc notes of a thread's scheduling; 0: unknown
  uint32_t sched_word[3];
  ptrdiff_t resp_offset;
  ptrdiff_t t_g_offset;
};
Privates priv;

char* fs_base() { return static_cast<char*>(__builtin_thread_pointer()); }
TcbHead* head_of(uintptr_t fs) { return reinterpret_cast<TcbHead*>(fs); }

template <class F>
bool find(F& out, const char* name) {
  void* p = dlsym(RTLD_DEFAULT, name);
  if (p == nullptr) p = dlvsym(RTLD_DEFAULT, name, "GLIBC_PRIVATE");
  out = reinterpret_cast<F>(p);
  return p != nullptr;
}

// The dtv entries of modules must agree with what dl_iterate_phdr says.
bool check_dtv() {
  auto* dtv = static_cast<DtvSlot*>(head_of(reinterpret_cast<uintptr_t>(fs_base()))->dtv);
  if (dtv == nullptr) return false;
  size_t cap = dtv[-1].word;
  if (cap == 0 || cap > 100000) return false;
  return tls_modules_agree([](size_t id, const char* block, void* arg) {
    auto* d = static_cast<DtvSlot*>(arg);
    return id <= d[-1].word && d[id].p.block == block;
  }, dtv);
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

// Blocks that __tls_get_addr allocated for this thread go; it makes new ones on demand.
// libc counts the generation up with each library that brings TLS and notes it in the dtv
// before it hands out a block of that library's.
void free_dynamic_tls(TcbHead* head) {
  auto* dtv = static_cast<DtvSlot*>(head->dtv);
  if (WEFT_LIKELY(dtv[0].word == priv.static_generation)) return;
  size_t cap = dtv[-1].word;
  for (size_t i = 1; i <= cap; i++) {
    if (dtv[i].p.to_free == nullptr) continue;
    void* mem = dtv[i].p.to_free;
    dtv[i].p.to_free = nullptr;
    dtv[i].p.block = kDtvUnallocated;
    free(mem);
  }
}

// Flags, policy and priority: libc fills them in when it first wants them (aio_read does), by
// the thread's id, which for ours the kernel does not know. It is shown a TCB with the id
// of this kernel thread, which is as all of ours are.
void find_sched_words() {
  uint32_t *policy_desc, *priority_desc;
  if (!find(policy_desc, "_thread_db_pthread_schedpolicy") ||
      !find(priority_desc, "_thread_db_pthread_schedparam_sched_priority"))
    return;
  size_t bytes = round_up(priv.sizeof_pthread, kPageBytes);
  void* mem = sys_mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
  if (sys_failed(mem)) return;
  auto* words = static_cast<uint32_t*>(mem);
  words[priv.tid_offset / 4] = static_cast<uint32_t>(sys_gettid());
  int policy;
  struct sched_param param;
  uint32_t flags = 0, n_flags = 0;
  if (real().pthread_getschedparam(reinterpret_cast<pthread_t>(mem), &policy, &param) == 0) {
    for (uint32_t at = 0; at < priv.sizeof_pthread; at += 4) {
      if (words[at / 4] == 0 || at == priv.tid_offset || at == policy_desc[2] || at == priority_desc[2])
        continue;
      flags = at;
      n_flags++;
    }
  }
  if (n_flags == 1) {
    const uint32_t at[3] = {flags, policy_desc[2], priority_desc[2]};
    for (int i = 0; i < 3; i++) priv.sched_word[i] = words[(priv.sched_offset[i] = at[i]) / 4];
  }
  sys_munmap(mem, bytes);
}

void set_sched_words(char* fs) {
  for (int i = 0; i < 3 && priv.sched_offset[i] != 0; i++)
    memcpy(fs + priv.sched_offset[i], &priv.sched_word[i], 4);
}

// libc's cancellation word, if it holds state and type as bits 0 and 1 (2.34 and 2.35 keep
// them elsewhere). It is tried out on the calling thread.
void find_cancel_word() {
  uint32_t* desc;
  if (!find(desc, "_thread_db_pthread_cancelhandling") || desc[2] + 4 > priv.sizeof_pthread) return;
  auto* word = reinterpret_cast<volatile int*>(fs_base() + desc[2]);
  int state, type, ignored;
  real().pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &state);
  real().pthread_setcanceltype(PTHREAD_CANCEL_DEFERRED, &type);
  int disabled = *word;
  real().pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, &ignored);
  int async = *word;
  real().pthread_setcanceltype(type, &ignored);
  real().pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, &ignored);
  int enabled = *word;
  real().pthread_setcancelstate(state, &ignored);
  if ((disabled & 3) == 1 && (async & 3) == 3 && (enabled & 1) == 0) priv.cancel_offset = desc[2];
}

}  // namespace

const char* tcb_probe() {
  uint32_t* sizeof_pthread;
  uint32_t* tid_desc;
  uint32_t* offset_desc;
  void* resp;
  if (!find(priv.allocate_tls, "_dl_allocate_tls") ||
      !find(priv.tls_static_info, "_dl_get_tls_static_info") ||
      !find(priv.call_tls_dtors, "__call_tls_dtors") || !find(priv.ctype_init, "__ctype_init") ||
      !find(sizeof_pthread, "_thread_db_sizeof_pthread") ||
      !find(tid_desc, "_thread_db_pthread_tid") ||
      !find(offset_desc, "_thread_db_link_map_l_tls_offset") || !find(resp, "__resp"))
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
  find_cancel_word();
  find_sched_words();
  bool all_static = false;
  if (!tls_modules_boot(priv.static_below, offset_desc, &all_static) || !check_dtv())
    return "this libc lays thread-local storage out differently";
  priv.static_generation =
      all_static ? static_cast<DtvSlot*>(head->dtv)[0].word : ~size_t{0};
  return nullptr;
}

size_t tcb_static_below() { return priv.static_below; }
size_t tcb_pthread_bytes() { return priv.sizeof_pthread; }

TcbLayout host_tcb_layout() {
  return {priv.static_below, round_up(priv.sizeof_pthread, 16) + sizeof(Thread),
          priv.static_align};
}

size_t tcb_tid_offset() {
  uint32_t *desc, *bytes;
  if (!find(desc, "_thread_db_pthread_tid") || !find(bytes, "_thread_db_sizeof_pthread") || desc[2] + 4 > *bytes)
    return 0;
  int tid;
  memcpy(&tid, fs_base() + desc[2], sizeof tid);
  return tid == sys_gettid() ? desc[2] : 0;
}

void* tcb_tid_address(const G* g) { return reinterpret_cast<char*>(g->fs) + priv.tid_offset; }

int tcb_tid_of(pthread_t t) {
  return __atomic_load_n(reinterpret_cast<const int*>(t + priv.tid_offset), __ATOMIC_RELAXED);
}

void tcb_set_tid(G* g, uint32_t tid) {
  memcpy(reinterpret_cast<char*>(g->fs) + priv.tid_offset, &tid, sizeof tid);
}

std::atomic<int>* tcb_cancel_word(const G* g) {
  if (priv.cancel_offset == 0) return nullptr;
  return reinterpret_cast<std::atomic<int>*>(g->fs + priv.cancel_offset);
}

int tcb_own_cancel_bits() {
  if (priv.cancel_offset == 0) return 0;
  return reinterpret_cast<std::atomic<int>*>(fs_base() + priv.cancel_offset)->load(std::memory_order_relaxed);
}

bool tcb_make(G* g) {
  char* fs = reinterpret_cast<char*>(g->fs);
  TcbHead* mine = head_of(reinterpret_cast<uintptr_t>(fs_base()));
  TcbHead* head = head_of(g->fs);
  // Written before anything there is read: a page first read is the zero page, and the write
  // then a second fault that interrupts every other core (a third of a creation's time).
  head->tcb = head->self = fs;
  if (priv.allocate_tls(fs) == nullptr) return false;
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
  set_sched_words(fs);
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
  tls_reset_static(g->fs);
  free_dynamic_tls(head_of(g->fs));
  if (auto* word = tcb_cancel_word(g)) word->store(0, std::memory_order_relaxed);
  if (g->wired) set_sched_words(reinterpret_cast<char*>(g->fs));
  errno = 0;
  h_errno = 0;
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

// stack.cc - cutting, guarding and recycling slots (see stack.h).
//
// A slot is as long as guard and stack, plus the TLS, TCB and G at its top rounded down to
// pages: the odd part of a page is taken from the stack, as libc takes all of it. So the
// stack_bytes above the guard hold every frame, which is what pthread_getattr_np must be
// able to say, and the first frames share a page with the TLS. One slot's top touches the
// next one's guard: they mostly share a page-table page.
//
// Where a program makes many at once they are cut kCutBatch at a time: two process_madvise
// calls set the guards and fetch the top pages of all, instead of a call and two page faults
// for each (300,000 blocked threads: creation 6.2 us each, so 4.9). Meanwhile Ps without work cut some
// ahead, for two cores clear pages in half of the time (300,000: 3.1 s, so 1.7; a million: 24, so 9 to 16).
//
// Free slots: each P's list (no lock), refilled and relieved in batches; beyond that the
// class's warm list, and when that is long, its cold one, whose stacks are given back to the
// kernel (TLS and G stay: libc's malloc cache lives there).
//
// Under RLIMIT_AS address space is dear: the program may want for malloc what its threads have
// given up. As libc does, no more than 40 MiB of free stacks are kept; of others guard and
// stack are unmapped, and mapped again in the same place when their turn comes. The Ps'
// lists are left out then: they may hold more than that.
//
// Tops are coloured by up to 15 cache lines: TCBs and first frames of all slots would
// otherwise fall into the same few sets of the L1 cache.
#include "sched/stack.h"

#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/uio.h>

#include <new>

namespace weft {
namespace {

constexpr uint32_t kMaxClasses = 64;
constexpr uint32_t kMaxChunks = 8192;
constexpr size_t kMaxChunkBytes = size_t{64} << 30;
constexpr uint32_t kColours = 16;
constexpr size_t kLeastStack = 2 * kPageBytes;     // the colour and the odd part must fit in
constexpr size_t kMostStack = size_t{1} << 47;     // the address space
constexpr uint32_t kPerPFree = 256;
constexpr uint32_t kBatch = 64;                    // slots from the class's list to a P's at once
constexpr uint32_t kWarm = 1024;                   // free slots of a class that keep their stack pages
constexpr uint32_t kMaxChunkSlots = 65536;
constexpr uint32_t kTightChunkSlots = 8;           // where RLIMIT_AS makes address space dear
constexpr int kMadvGuardInstall = 102;             // linux/mman.h of 6.13; not in Debian 12's headers
constexpr int kPidfdSelf = -10000;                 // linux/pidfd.h of 6.14
constexpr uint32_t kCutBatch = 16;                 // slots cut at once,
constexpr uint32_t kManySlots = 128;               // from a class whose next chunk has so many
constexpr uint32_t kAheadSlots = 4;                // a P without work cuts so many, then looks for work;
constexpr uint32_t kAheadTimes = 32;               // so often after one who makes many has come
constexpr int64_t kDearIdleBytes = 40 << 20;      // libc's cache of stacks
constexpr size_t kTopBytes = 2 * kPageBytes;       // TLS, TCB, G and the first frames

struct Chunk {
  char* lo;
  char* hi;
  StackClass* cls;
};

StackClass classes[kMaxClasses];
std::atomic<uint32_t> n_classes{0};
Chunk chunks[kMaxChunks];
std::atomic<uint32_t> n_chunks{0};
Lock pool_lock;                                    // guards the two tables
std::atomic<G*> all_gs{nullptr};
std::atomic<uint32_t> next_index{1};
uint32_t first_index = 0;                          // lower ones are threads of a parent process,
const G* survivor = nullptr;                       // but for the one that forked
std::atomic<bool> guard_by_madvise{true};
std::atomic<bool> guards_gone{false};
std::atomic<bool> by_batch{true};
std::atomic<StackClass*> ahead_of{nullptr};        // for whom Ps without work cut slots,
std::atomic<uint32_t> ahead_times{0};              // and how often yet
std::atomic<bool> dear{false};                     // RLIMIT_AS was set when a chunk was mapped
std::atomic<int64_t> dear_idle_bytes{0};           // in warm lists since; below 0 for older ones
std::atomic<int> guard_mprotect_left{30000};       // half of the default vm.max_map_count

TcbLayout layout() {
  static constinit TcbLayout l{};
  if (l.align == 0) l = host_tcb_layout();
  return l;
}

// What a slot needs above its stack; with a colour it is up to kColours lines more.
size_t least_top_bytes() {
  TcbLayout l = layout();
  return round_up(l.below_bytes, l.align) + round_up(l.above_bytes, kCacheLine) + sizeof(G);
}

StackClass* class_for(size_t stack_bytes, size_t guard_bytes) {
  uint32_t n = n_classes.load(std::memory_order_acquire);
  for (uint32_t i = 0; i < n; i++)
    if (classes[i].stack_bytes == stack_bytes && classes[i].guard_bytes == guard_bytes)
      return &classes[i];
  Hold hold(pool_lock);
  n = n_classes.load(std::memory_order_relaxed);
  StackClass* best = nullptr;  // when the table is full: the smallest that fits
  for (uint32_t i = 0; i < n; i++) {
    StackClass& c = classes[i];
    if (c.stack_bytes == stack_bytes && c.guard_bytes == guard_bytes) return &c;
    if (c.stack_bytes >= stack_bytes && c.guard_bytes >= guard_bytes &&
        (best == nullptr || c.stride < best->stride))
      best = &c;
  }
  if (n == kMaxClasses) return best;
  StackClass& c = classes[n];
  c.stack_bytes = stack_bytes;
  c.guard_bytes = guard_bytes;
  c.stride = guard_bytes + stack_bytes + (least_top_bytes() & ~(kPageBytes - 1));
  n_classes.store(n + 1, std::memory_order_release);
  return &c;
}

bool address_space_is_dear() {
  uint64_t limit[2] = {0, 0};
  return sys_call(SYS_getrlimit, RLIMIT_AS, sys_arg(&limit[0])) == 0 && limit[0] != kNever;
}

// Maps the next chunk of c; c->lock held. Halves the wish until the kernel agrees.
bool map_chunk(StackClass* c) {
  size_t wish = c->next_chunk;
  if (address_space_is_dear()) {
    dear.store(true, std::memory_order_relaxed);
    if (wish > kTightChunkSlots) wish = kTightChunkSlots;
  }
  for (size_t n = wish; n > 0; n /= 2) {
    size_t bytes = n * c->stride;
    if (bytes > kMaxChunkBytes && n > 1) continue;
    void* p = sys_mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK);
    if (sys_failed(p)) continue;
    sys_madvise(p, bytes, MADV_NOHUGEPAGE);
    Hold hold(pool_lock);
    uint32_t k = n_chunks.load(std::memory_order_relaxed);
    if (k == kMaxChunks) {
      sys_munmap(p, bytes);
      return false;
    }
    c->cut = static_cast<char*>(p);
    c->cut_end = c->cut + bytes;
    chunks[k] = {c->cut, c->cut_end, c};
    n_chunks.store(k + 1, std::memory_order_release);
    if (c->next_chunk < kMaxChunkSlots) c->next_chunk *= 2;
    return true;
  }
  return false;
}

void install_guard(char* lo, size_t bytes) {
  if (bytes == 0) return;
  if (guard_by_madvise.load(std::memory_order_relaxed)) {
    if (sys_madvise(lo, bytes, kMadvGuardInstall) == 0) return;
    guard_by_madvise.store(false, std::memory_order_relaxed);
  }
  if (guard_mprotect_left.fetch_sub(1, std::memory_order_relaxed) <= 0 ||
      sys_call(SYS_mprotect, sys_arg(lo), sys_arg(bytes), PROT_NONE) != 0)
    guards_gone.store(true, std::memory_order_relaxed);
}

// Cuts never-used slots off c, up to *n, and says how many; null: no memory, or none mapped.
char* cut_slots(StackClass* c, uint32_t* n, bool may_map) {
  Hold hold(c->lock);
  if (c->cut == c->cut_end && (!may_map || !map_chunk(c))) return nullptr;
  char* slot = c->cut;
  size_t left = static_cast<size_t>(c->cut_end - c->cut) / c->stride;
  if (c->next_chunk < kManySlots) *n = 1;
  else if (left < *n) *n = static_cast<uint32_t>(left);
  c->cut += *n * c->stride;
  return slot;
}

// Guards and top pages of n neighbouring slots; false: the guards must be set one by one.
bool set_up_batch(const StackClass* c, char* slot, uint32_t n) {
  if (!by_batch.load(std::memory_order_relaxed)) return false;
  iovec guards[kCutBatch], tops[kCutBatch];
  for (uint32_t i = 0; i < n; i++) {
    char* at = slot + i * c->stride;
    guards[i] = {at, c->guard_bytes};
    tops[i] = {at + c->stride - kTopBytes, kTopBytes};
  }
  long set = c->guard_bytes == 0 ? 0
                                 : sys_call(SYS_process_madvise, kPidfdSelf, sys_arg(guards), n,
                                            kMadvGuardInstall, 0);
  if (set != static_cast<long>(n * c->guard_bytes)) {
    by_batch.store(false, std::memory_order_relaxed);
    return false;
  }
  sys_call(SYS_process_madvise, kPidfdSelf, sys_arg(tops), n, MADV_POPULATE_WRITE, 0);
  return true;
}

size_t tcb_end(const StackClass* c) { return c->stride - sizeof(G); }

G* slot_g(const StackClass* c, char* slot) { return reinterpret_cast<G*>(slot + tcb_end(c)); }

G* make_g(StackClass* c, char* slot, bool guarded) {
  TcbLayout l = layout();
  G* g = new (static_cast<void*>(slot_g(c, slot))) G;
  uint32_t index = next_index.fetch_add(1, std::memory_order_relaxed);
  g->index = index;
  g->cls = c;
  g->slot_lo = slot;
  g->guard_bytes = c->guard_bytes;
  uintptr_t end = reinterpret_cast<uintptr_t>(g);
  uintptr_t tcb = end - (index % kColours) * kCacheLine - round_up(l.above_bytes, kCacheLine);
  tcb &= ~(uintptr_t{l.align} - 1);
  g->fs = tcb;
  g->stack_lo = slot + c->guard_bytes;
  g->stack_hi = reinterpret_cast<char*>((tcb - l.below_bytes) & ~uintptr_t{kCacheLine - 1});
  g->slot_stack_hi = g->stack_hi;
  if (!guarded) install_guard(slot, c->guard_bytes);
  all_gs_add(g);
  return g;
}

// The caller's list of free slots; null on foreign and wired threads.
GList* local_list() {
  M* m = this_m();
  return m != nullptr && m->p != nullptr ? &m->p->free_gs : nullptr;
}

void count_free(StackClass* c) {  // c->lock held
  c->n_free.store(c->warm.n + c->cold.n + c->shed.n, std::memory_order_relaxed);
}

size_t sheddable_bytes(const G* g) {
  uintptr_t hi = reinterpret_cast<uintptr_t>(g->slot_stack_hi) & ~(kPageBytes - 1);
  return hi - reinterpret_cast<uintptr_t>(g->slot_lo);
}

// A slot of the shed list, whole again; c->lock held. Null: none, or no address space.
G* take_shed(StackClass* c) {
  constexpr int kFixedNoreplace = 0x100000;  // MAP_FIXED_NOREPLACE
  while (G* g = c->shed.pop()) {
    size_t n = sheddable_bytes(g);
    void* p = sys_mmap(g->slot_lo, n, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK | kFixedNoreplace);
    if (p == g->slot_lo) {
      sys_madvise(p, n, MADV_NOHUGEPAGE);
      install_guard(g->slot_lo, g->guard_bytes);
      return g;
    }
    if (p == reinterpret_cast<void*>(-ENOMEM)) {
      c->shed.push_front(g);
      return nullptr;
    }
    if (!sys_failed(p)) sys_munmap(p, n);
    // Something else lies there by now: this slot is given up.
  }
  return nullptr;
}

// g_free where address space is dear.
void free_dear(StackClass* c, G* g) {
  GList out;
  {
    Hold hold(c->lock);
    c->warm.push_front(g);
    auto stride = static_cast<int64_t>(c->stride);
    int64_t idle = dear_idle_bytes.fetch_add(stride, std::memory_order_relaxed) + stride;
    // The caller may be g itself, still on that stack.
    for (; g != t_g && idle > kDearIdleBytes && c->warm.head != nullptr; idle -= stride) {
      out.push(c->warm.pop());
      dear_idle_bytes.fetch_sub(stride, std::memory_order_relaxed);
    }
    count_free(c);
  }
  if (out.head == nullptr) return;
  for (G* x = out.head; x != nullptr; x = x->link) {
    wait_off_cpu(x);
    sys_munmap(x->slot_lo, sheddable_bytes(x));
  }
  Hold hold(c->lock);
  c->shed.append(out);
  count_free(c);
}

// Whoever calls makes many that stay.
void want_ahead(StackClass* c) {
  ahead_of.store(c, std::memory_order_relaxed);
  ahead_times.store(kAheadTimes, std::memory_order_release);
}

G* take_free(StackClass* c) {
  GList* local = local_list();
  if (local != nullptr && local->head != nullptr && local->head->cls == c) return local->pop();
  if (c->n_free.load(std::memory_order_relaxed) == 0) return nullptr;
  Hold hold(c->lock);
  G* g = c->warm.pop();
  if (WEFT_UNLIKELY(dear.load(std::memory_order_relaxed))) {
    if (g != nullptr) dear_idle_bytes.fetch_sub(static_cast<int64_t>(c->stride), std::memory_order_relaxed);
    else if ((g = c->cold.pop()) == nullptr) g = take_shed(c);
    count_free(c);
    return g;
  }
  if (g == nullptr) g = c->cold.pop();
  // Whoever creates without ending (another P ends them) comes here once in kBatch.
  if (local != nullptr && local->head == nullptr)
    for (uint32_t i = 1; i < kBatch && c->warm.head != nullptr; i++) local->push(c->warm.pop());
  if (g != nullptr && g->fresh) want_ahead(c);  // so were its like
  count_free(c);
  return g;
}

// The stacks' whole pages go back to the kernel. Their last owners must be off them.
void trim(const GList& gs) {
  iovec stacks[kCutBatch];
  for (G* g = gs.head; g != nullptr;) {
    uint32_t n = 0;
    for (; g != nullptr && n < kCutBatch; g = g->link) {
      wait_off_cpu(g);
      uintptr_t hi = reinterpret_cast<uintptr_t>(g->slot_stack_hi) & ~(kPageBytes - 1);
      char* lo = g->slot_lo + g->guard_bytes;
      if (hi > reinterpret_cast<uintptr_t>(lo))
        stacks[n++] = {lo, hi - reinterpret_cast<uintptr_t>(lo)};
    }
    if (by_batch.load(std::memory_order_relaxed) &&
        sys_call(SYS_process_madvise, kPidfdSelf, sys_arg(stacks), n, MADV_DONTNEED, 0) > 0)
      continue;
    for (uint32_t i = 0; i < n; i++) sys_madvise(stacks[i].iov_base, stacks[i].iov_len, MADV_DONTNEED);
  }
}

// Gives a batch of one class to all Ps.
void give_back(StackClass* c, GList& gs) {
  bool cold = c->n_free.load(std::memory_order_relaxed) >= kWarm;
  if (cold) trim(gs);
  Hold hold(c->lock);
  GList& to = cold ? c->cold : c->warm;
  gs.append(to);  // in front: LIFO
  to = gs;
  count_free(c);
}

}  // namespace

void all_gs_add(G* g) {
  if (g->index == 0) g->index = next_index.fetch_add(1, std::memory_order_relaxed);
  G* head = all_gs.load(std::memory_order_relaxed);
  do g->all_next = head;
  while (!all_gs.compare_exchange_weak(head, g, std::memory_order_release,
                                       std::memory_order_relaxed));
}

G* all_gs_first() { return all_gs.load(std::memory_order_acquire); }
bool guards_exhausted() { return guards_gone.load(std::memory_order_relaxed); }

G* g_alloc(size_t stack_bytes, size_t guard_bytes) {
  if (stack_bytes > kMostStack || guard_bytes > kMostStack) return nullptr;
  stack_bytes = stack_bytes < kLeastStack ? kLeastStack : round_up(stack_bytes, kPageBytes);
  StackClass* c = class_for(stack_bytes, round_up(guard_bytes, kPageBytes));
  if (c == nullptr) return nullptr;
  if (G* g = take_free(c)) {
    // Its last owner may still be on the way off this stack; that takes nanoseconds.
    wait_off_cpu(g);
    return g;
  }
  GList* local = local_list();
  uint32_t n = local != nullptr && local->head == nullptr ? kCutBatch : 1;
  char* slot = cut_slots(c, &n, true);
  if (slot == nullptr) return nullptr;
  if (n > 1 && !dear.load(std::memory_order_relaxed)) want_ahead(c);
  bool guarded = n > 1 && set_up_batch(c, slot, n);
  for (uint32_t i = n - 1; i > 0; i--) local->push_front(make_g(c, slot + i * c->stride, guarded));
  return make_g(c, slot, guarded);
}

bool stack_cut_ahead() {
  uint32_t times = ahead_times.load(std::memory_order_acquire);
  while (times != 0 && !ahead_times.compare_exchange_weak(times, times - 1, std::memory_order_acquire,
                                                          std::memory_order_relaxed)) {
  }
  if (times == 0) return false;
  StackClass* c = ahead_of.load(std::memory_order_relaxed);
  if (c->n_free.load(std::memory_order_relaxed) >= kAheadSlots * kAheadTimes) return false;
  uint32_t n = kAheadSlots;
  char* slot = cut_slots(c, &n, false);
  if (slot == nullptr) return false;
  bool guarded = set_up_batch(c, slot, n);
  GList made;
  for (uint32_t i = 0; i < n; i++) made.push(make_g(c, slot + i * c->stride, guarded));
  Hold hold(c->lock);
  c->warm.append(made);  // behind those in use before
  count_free(c);
  return true;
}

void g_free(G* g) {
  StackClass* c = g->cls;
  if (WEFT_UNLIKELY(dear.load(std::memory_order_relaxed))) {
    free_dear(c, g);
    return;
  }
  GList* local = local_list();
  if (local == nullptr || (local->head != nullptr && local->head->cls != c)) {
    GList one;
    one.push(g);
    // The caller may be g itself, still on that stack: then it is not to be trimmed.
    if (g == t_g) {
      Hold hold(c->lock);
      c->warm.push_front(g);
      count_free(c);
      return;
    }
    give_back(c, one);
    return;
  }
  if (local->n >= kPerPFree) {
    GList half;
    for (uint32_t i = 0; i < kPerPFree / 2; i++) half.push(local->pop());
    give_back(c, half);
  }
  local->push_front(g);
}

void g_prepare(G* g, char* stack_hi, void (*fn)(void*), void* arg) {
  // The frame weft_switch pops (asm/switch.S), returning into weft_g_entry, which then
  // makes the call with the stack aligned as the psABI wants.
  auto* sp = reinterpret_cast<uint64_t*>(reinterpret_cast<uintptr_t>(stack_hi) & ~uintptr_t{15});
  *--sp = 0;
  *--sp = 0;                                   // end of the chain for frame-pointer walkers
  *--sp = reinterpret_cast<uint64_t>(&weft_g_entry);
  *--sp = 0;                                   // rbp
  *--sp = reinterpret_cast<uint64_t>(fn);      // rbx
  *--sp = reinterpret_cast<uint64_t>(arg);     // r12
  *--sp = 0;                                   // r13
  *--sp = 0;                                   // r14
  *--sp = 0;                                   // r15
  uint32_t mxcsr;
  uint16_t cw;
  __asm__ volatile("stmxcsr %0\n\tfnstcw %1" : "=m"(mxcsr), "=m"(cw));
  *--sp = uint64_t{mxcsr} | uint64_t{cw} << 32;  // a thread inherits them from its creator
  g->sp = sp;
}

G* g_at(const void* addr) {
  auto* a = static_cast<const char*>(addr);
  // The newest first: it may lie where an older one's stack is unmapped (take_shed).
  for (uint32_t i = n_chunks.load(std::memory_order_acquire); i-- > 0;) {
    const Chunk& k = chunks[i];
    if (a < k.lo || a >= k.hi) continue;
    char* slot = k.lo + static_cast<size_t>(a - k.lo) / k.cls->stride * k.cls->stride;
    G* g = slot_g(k.cls, slot);
    if (g->cls != k.cls) return nullptr;  // zero page: never made
    return g->index >= first_index || g == survivor ? g : nullptr;
  }
  return nullptr;
}

void stack_after_fork(G* keep) {
  // The other threads do not exist here. Their slots are left alone, whatever state they are
  // in: to take them back would copy a page or two of each, in every child of a process with
  // thousands of threads. New ones are cut behind them.
  pool_lock.reset();
  uint32_t n = n_classes.load(std::memory_order_relaxed);
  for (uint32_t i = 0; i < n; i++) {
    StackClass& c = classes[i];
    // Held: a thread that is not here was at it, and cut and cut_end may belong to two
    // chunks. What is left of the chunk is given up.
    if (c.lock.held()) c.cut = c.cut_end = nullptr;
    c.lock.reset();
    c.warm = c.cold = c.shed = GList{};
    c.n_free.store(0, std::memory_order_relaxed);
  }
  // The first thread's G is no slot's, and may be put to use again: as a new one.
  for (G* g = all_gs_first(); g != nullptr; g = g->all_next)
    if (g != keep && g->cls == nullptr) g->index = 0;
  if (keep != nullptr) keep->all_next = nullptr;
  all_gs.store(keep, std::memory_order_relaxed);
  ahead_times.store(0, std::memory_order_relaxed);
  dear_idle_bytes.store(0, std::memory_order_relaxed);
  survivor = keep;
  first_index = next_index.load(std::memory_order_relaxed);
}

}  // namespace weft

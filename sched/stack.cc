// stack.cc - cutting, guarding and recycling slots (see stack.h).
//
// Where strides reach 2 MiB, slots are placed so that their boundary falls into the middle
// of a 2 MiB region: a slot's top pages and the next slot's guard then share one page-table
// page. Otherwise each thread costs 4 KiB of page table for its guard alone.
//
// Tops are coloured by up to 15 cache lines: TCBs and first frames of all slots would
// otherwise fall into the same few sets of the L1 cache.
#include "sched/stack.h"

#include <sys/mman.h>

#include <new>

namespace weft {
namespace {

constexpr uint32_t kMaxClasses = 64;
constexpr uint32_t kMaxChunks = 8192;
constexpr size_t kRegion = size_t{2} << 20;        // one page-table page maps this much
constexpr size_t kMaxChunkBytes = size_t{64} << 30;
constexpr uint32_t kColours = 16;
constexpr uint32_t kPerPFree = 256;
constexpr int kMadvGuardInstall = 102;             // linux/mman.h of 6.13; not in Debian 12's headers

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
std::atomic<bool> guard_by_madvise{true};
std::atomic<bool> guards_gone{false};
std::atomic<int> guard_mprotect_left{30000};       // half of the default vm.max_map_count

TcbLayout layout() {
  static constinit TcbLayout l{};
  if (l.align == 0) l = host_tcb_layout();
  return l;
}

size_t top_bytes() {
  TcbLayout l = layout();
  return round_up(l.below_bytes, l.align) + round_up(l.above_bytes, kCacheLine) + sizeof(G) +
         kColours * kCacheLine;
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
  c.stride = round_up(guard_bytes + stack_bytes + top_bytes(), kPageBytes);
  if (c.stride >= kRegion / 2) c.stride = round_up(c.stride, kRegion);
  n_classes.store(n + 1, std::memory_order_release);
  return &c;
}

// Maps the next chunk of c; c->lock held. Halves the wish until the kernel agrees.
bool map_chunk(StackClass* c) {
  size_t slack = c->stride % kRegion == 0 ? kRegion : 0;
  for (size_t n = c->next_chunk; n > 0; n /= 2) {
    size_t bytes = n * c->stride + slack;
    if (bytes > kMaxChunkBytes && n > 1) continue;
    void* p = sys_mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK);
    if (sys_failed(p)) continue;
    sys_madvise(p, bytes, MADV_NOHUGEPAGE);
    char* lo = static_cast<char*>(p);
    if (slack != 0) {
      uintptr_t a = reinterpret_cast<uintptr_t>(lo);
      lo += (kRegion + kRegion / 2 - a % kRegion) % kRegion;  // boundary mid-region
    }
    Hold hold(pool_lock);
    uint32_t k = n_chunks.load(std::memory_order_relaxed);
    if (k == kMaxChunks) {
      sys_munmap(p, bytes);
      return false;
    }
    c->cut = lo;
    c->cut_end = lo + n * c->stride;
    chunks[k] = {c->cut, c->cut_end, c};
    n_chunks.store(k + 1, std::memory_order_release);
    if (c->next_chunk < 65536) c->next_chunk *= 2;
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

// Cuts a never-used slot off c; c->lock held.
char* cut_slot(StackClass* c) {
  if (c->cut == c->cut_end && !map_chunk(c)) return nullptr;
  char* slot = c->cut;
  c->cut += c->stride;
  return slot;
}

size_t tcb_end(const StackClass* c) { return c->stride - sizeof(G); }

G* slot_g(const StackClass* c, char* slot) { return reinterpret_cast<G*>(slot + tcb_end(c)); }

G* make_g(StackClass* c, char* slot) {
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
  install_guard(slot, c->guard_bytes);
  all_gs_add(g);
  return g;
}

G* take_free(StackClass* c) {
  M* m = this_m();
  if (m != nullptr && m->p != nullptr) {
    GList& local = m->p->free_gs;
    if (local.head != nullptr && local.head->cls == c) return local.pop();
  }
  Hold hold(c->lock);
  return c->free.pop();
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
  StackClass* c =
      class_for(round_up(stack_bytes, kPageBytes), round_up(guard_bytes, kPageBytes));
  if (c == nullptr) return nullptr;
  if (G* g = take_free(c)) {
    // Its last owner may still be on the way off this stack; that takes nanoseconds.
    wait_off_cpu(g);
    return g;
  }
  char* slot;
  {
    Hold hold(c->lock);
    slot = cut_slot(c);
  }
  return slot == nullptr ? nullptr : make_g(c, slot);
}

void g_free(G* g) {
  M* m = this_m();
  StackClass* c = g->cls;
  if (m != nullptr && m->p != nullptr) {
    GList& local = m->p->free_gs;
    if (local.n < kPerPFree && (local.head == nullptr || local.head->cls == c)) {
      local.push_front(g);
      return;
    }
    if (local.n >= kPerPFree) {  // give half back to all Ps
      GList half;
      StackClass* lc = local.head->cls;
      for (uint32_t i = 0; i < kPerPFree / 2; i++) half.push(local.pop());
      Hold hold(lc->lock);
      half.append(lc->free);
      lc->free = half;
    }
  }
  Hold hold(c->lock);
  c->free.push_front(g);
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
  uint32_t n = n_chunks.load(std::memory_order_acquire);
  for (uint32_t i = 0; i < n; i++) {
    const Chunk& k = chunks[i];
    if (a < k.lo || a >= k.hi) continue;
    char* slot = k.lo + static_cast<size_t>(a - k.lo) / k.cls->stride * k.cls->stride;
    G* g = slot_g(k.cls, slot);
    return g->cls == k.cls ? g : nullptr;  // zero page: never made
  }
  return nullptr;
}

void stack_after_fork(G* keep) {
  // The other threads do not exist here. Their slots are free again, all but the one the
  // child stands on; their TLS is as the parent left it, so it must be made afresh.
  pool_lock.reset();
  uint32_t n = n_classes.load(std::memory_order_relaxed);
  for (uint32_t i = 0; i < n; i++) {
    classes[i].lock.reset();
    classes[i].free = GList{};
  }
  for (G* g = all_gs_first(); g != nullptr; g = g->all_next) {
    if (g == keep || g->cls == nullptr) continue;
    if (g_state(g) != GState::kDead) g->fresh = true;
    g->on_cpu.store(0, std::memory_order_relaxed);
    g->state.store(0, std::memory_order_relaxed);
    g->engine.store(0, std::memory_order_relaxed);
    g->attention.store(0, std::memory_order_relaxed);
    g->wired = false;
    g->cls->free.push(g);
  }
}

}  // namespace weft

// stack.h - slots: where a G, its TCB and its stack live.
//
//   slot_lo                                                            slot end
//   | guard | stack ...grows down <- | static TLS | struct pthread+ | G |
//                          stack_hi -^            ^- TCB = FS base
//
// Slots of one size make a class. They are cut from a few large MAP_NORESERVE mappings, so
// a million of them cost few map entries; guards are MADV_GUARD_INSTALL (no VMA split,
// kernel 6.13), else mprotect while the map budget lasts. A G's own pages are never unmapped:
// it is type-stable (g.h).
//
// A dead G keeps its slot and its TLS; `fresh` says that the TLS was never made. Free Gs:
// per P for the class used last (no lock), else the class's lists. LIFO, for warm pages.
//
// Callers: g_alloc in the engine or on a foreign thread; g_free by whoever owns a dead G.
#pragma once

#include "sched/sched.h"

namespace weft {

struct StackClass {
  size_t stack_bytes = 0;   // usable, page multiple
  size_t guard_bytes = 0;
  size_t stride = 0;        // slot to slot
  Lock lock;                // guards the lists and the cut
  GList warm;               // free slots
  GList cold;               // free slots whose stack pages were given back
  GList shed;               // free slots whose guard and stack are unmapped (dear, stack.cc)
  std::atomic<uint32_t> n_free{0};  // all lists; for readers without the lock
  char* cut = nullptr;      // next never-used slot
  char* cut_end = nullptr;
  uint32_t next_chunk = 16; // slots in the next mapping; doubles
};

// A dead G whose slot has `stack_bytes` above its guard, of which TLS and TCB take at most
// the odd part of a page; null when memory or the class table is exhausted (EAGAIN to the
// program).
G* g_alloc(size_t stack_bytes, size_t guard_bytes);
// Returns a dead G. Its on_cpu may still be 1: g_alloc's next taker waits for it.
void g_free(G* g);
// A P without work cuts a few slots where another makes many. False: nobody does.
bool stack_cut_ahead();
// Prepares g to run fn(arg) on [stack_lo, stack_hi) when first switched to.
void g_prepare(G* g, char* stack_hi, void (*fn)(void*), void* arg);
// True if `addr` lies in a slot; gives its G. For pthread_t validation and fault reports.
G* g_at(const void* addr);
// As g_alloc, but for the TCB of M0's g0 and for G1, which bring parts of their own.
void all_gs_add(G* g);
// How guards are made here, for the one-line warning: true when mprotect ran out.
bool guards_exhausted();
void stack_after_fork(G* keep);

}  // namespace weft

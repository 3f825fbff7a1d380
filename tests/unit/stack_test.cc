// stack_test.cc - slots: apart from each other, guarded, aligned, found by address, reused.
#include "sched/stack.h"

#include <criterion/criterion.h>
#include <signal.h>
#include <string.h>

#include <algorithm>
#include <random>
#include <vector>

#include "tests/unit/fake_host.h"

using namespace weft;

Test(stack, slots_do_not_overlap_and_hold_what_was_asked_for) {
  std::mt19937 rng(7);
  std::vector<G*> gs;
  for (int i = 0; i < 600; i++) {
    size_t stack = (1 + rng() % 64) * kPageBytes, guard = rng() % 3 * kPageBytes;
    G* g = g_alloc(stack, guard);
    cr_assert_not_null(g);
    // The odd part of a page goes to the TCB; the range that is reported holds every frame.
    cr_assert_geq(static_cast<size_t>(g->stack_hi - g->stack_lo) + 5120, stack);
    cr_assert_geq(g->cls->stack_bytes, stack);
    cr_assert_leq(g->stack_hi, g->stack_lo + g->cls->stack_bytes);
    cr_assert_eq(g->stack_lo, g->slot_lo + g->guard_bytes);
    cr_assert_geq(g->guard_bytes, guard);
    cr_assert_eq(g->fs % host_tcb_layout().align, 0u);
    cr_assert_eq(reinterpret_cast<uintptr_t>(g) % kCacheLine, 0u);
    cr_assert_leq(reinterpret_cast<uintptr_t>(g->stack_hi) + host_tcb_layout().below_bytes, g->fs);
    cr_assert_leq(g->fs + host_tcb_layout().above_bytes, reinterpret_cast<uintptr_t>(g));
    memset(g->stack_lo, 1, static_cast<size_t>(g->stack_hi - g->stack_lo));
    gs.push_back(g);
  }
  std::sort(gs.begin(), gs.end(), [](G* a, G* b) { return a->slot_lo < b->slot_lo; });
  for (size_t i = 1; i < gs.size(); i++)
    cr_assert_geq(gs[i]->slot_lo, reinterpret_cast<char*>(gs[i - 1] + 1));
}

Test(stack, every_address_of_a_slot_finds_its_g_and_no_other_address_does) {
  G* a = g_alloc(64 << 10, 4096);
  G* b = g_alloc(1 << 20, 4096);
  for (G* g : {a, b}) {
    cr_assert_eq(g_at(g->stack_lo), g);
    cr_assert_eq(g_at(g->stack_hi - 1), g);
    cr_assert_eq(g_at(reinterpret_cast<void*>(g->fs)), g);
    cr_assert_eq(g_at(g), g);
  }
  int on_stack;
  cr_assert_null(g_at(&on_stack));
  cr_assert_null(g_at(nullptr));
  cr_assert_null(g_at(b + 1));  // the next slot was never made
}

Test(stack, the_guard_faults, .signal = SIGSEGV) {
  G* g = g_alloc(64 << 10, 4096);
  *static_cast<volatile char*>(g->stack_lo) = 1;      // the lowest byte is usable
  *static_cast<volatile char*>(g->stack_lo - 1) = 1;  // the one below is not
}

Test(stack, the_last_one_freed_is_the_next_one_given) {
  G* a = g_alloc(64 << 10, 4096);
  G* b = g_alloc(64 << 10, 4096);
  g_free(a);
  g_free(b);
  cr_assert_eq(g_alloc(64 << 10, 4096), b);
  cr_assert_eq(g_alloc(64 << 10, 4096), a);
}

Test(stack, sizes_do_not_mix) {
  G* a = g_alloc(64 << 10, 4096);
  g_free(a);
  cr_assert_neq(g_alloc(128 << 10, 4096), a);
  cr_assert_neq(g_alloc(64 << 10, 8192), a);
  cr_assert_eq(g_alloc(64 << 10, 4096), a);
}

Test(stack, a_p_without_work_cuts_slots_for_one_who_makes_many) {
  fake::boot(1, fake::Caller::kG1);
  G* self = this_g();
  engine_enter(self);
  std::vector<G*> gs;
  auto make = [&](int n) { while (n-- > 0) gs.push_back(g_alloc(64 << 10, 4096)); };
  auto cut_ahead = [] { uint32_t n = 0; while (stack_cut_ahead()) n++; return n; };
  make(20);
  cr_assert_eq(cut_ahead(), 0u);        // a few are no reason
  make(280);
  cr_assert_gt(cut_ahead(), 0u);
  cr_assert_eq(cut_ahead(), 0u);        // until it comes again
  uint32_t free = gs[0]->cls->n_free.load();
  cr_assert_gt(free, 0u);
  cr_assert_leq(free, 128u);
  make(16);                             // those it had at hand, and the first of the others
  cr_assert_lt(gs[0]->cls->n_free.load(), free);
  cr_assert_gt(cut_ahead(), 0u);
  make(300);
  std::sort(gs.begin(), gs.end());
  cr_assert_eq(std::adjacent_find(gs.begin(), gs.end()), gs.end());
  for (G* g : gs) cr_assert_eq(g_at(g->stack_lo), g);
  for (G* g : gs) g_free(g);
  cr_assert_eq(cut_ahead(), 0u);        // enough are free
  engine_exit(self);
}

// More sizes than there are classes: the smallest class that fits serves.
Test(stack, a_hundred_sizes_are_served) {
  for (size_t i = 1; i <= 100; i++) {
    size_t bytes = (101 - i) * kPageBytes;  // large ones first, so that classes fit later ones
    G* g = g_alloc(bytes, 4096);
    cr_assert_not_null(g);
    cr_assert_geq(static_cast<size_t>(g->stack_hi - g->stack_lo) + 5120, bytes);
  }
}

Test(stack, an_impossible_size_is_refused_and_the_next_one_served) {
  cr_assert_null(g_alloc(size_t{1} << 50, 4096));
  cr_assert_not_null(g_alloc(64 << 10, 4096));
}

Test(stack, all_gs_lists_each_g_once_with_its_own_index) {
  std::vector<G*> made;
  for (int i = 0; i < 1000; i++) made.push_back(g_alloc(16 << 10, 4096));
  std::vector<bool> seen(5000);
  size_t n = 0;
  for (G* g = all_gs_first(); g != nullptr; g = g->all_next, n++) {
    cr_assert_lt(g->index, seen.size());
    cr_assert_not(seen[g->index]);
    seen[g->index] = true;
  }
  cr_assert_eq(n, made.size());
}

// 30,000 guarded slots of 8 MiB: address space only, and few enough mappings.
Test(stack, thirty_thousand_threads_worth_of_address_space, .timeout = 60) {
  for (int i = 0; i < 30000; i++) cr_assert_not_null(g_alloc(8 << 20, 4096), "slot %d", i);
  cr_assert_not(guards_exhausted());
}

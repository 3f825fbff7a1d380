// host.h - the port: what the engine asks of the world outside.
//
// preload/ implements it over glibc; tests/unit/fake_host.cc fakes it. Linked, not
// registered: there is one host per program, and a call costs nothing extra.
// Stack: each says which it is called on. None may park a G.
#pragma once

#include "sched/base.h"

namespace weft {

struct G;
struct M;
enum class Preempt : uint8_t;

// CLOCK_MONOTONIC in nanoseconds. Any stack, any thread, async-signal-safe.
uint64_t host_now_ns();

// Starts a kernel thread that runs fn(arg) with every signal blocked, on a TCB of its
// own. Called on the spawner's thread only. 0 or -errno.
int host_start_thread(void (*fn)(void*), void* arg, const char* name);

// Room the host wants at the top of each slot: [.. stack | below | TCB | above].
// The engine puts its G behind `above`. `align` is a power of two.
struct TcbLayout {
  size_t below_bytes;  // static TLS
  size_t above_bytes;  // struct pthread and what the host keeps behind it
  size_t align;
};
TcbLayout host_tcb_layout();

// First code of a new G, on its own stack and TCB, outside the engine. Does not return:
// ends in g_exit().
[[noreturn]] void host_g_main(G* g);

// The kernel's signal mask on this M is about to be `next`'s: make it so and note it in
// m->kmask. Called only when they differ. In the engine, on the stack switched away from.
void host_sync_signals(M* m, G* next);

// The engine was left (depth 1 -> 0) with g->attention set: deliver deferred signals,
// cancel, or yield. Runs on g's stack, outside the engine.
void host_attention(G* g);

// The M of a wired G that has ended: end this kernel thread. g0 stack.
[[noreturn]] void host_end_thread();

// Asks m to interrupt its G at a safe point, for yield_preempted(why); any thread. May be
// lost.
void host_preempt(M* m, Preempt why);
// The calling thread, of any kind, is to be cancelled: now, if it stands at a cancellation point or has
// asked for that at any place. The second: if it has asked for it, it is (and does not return).
bool host_cancel_due(bool at_point);
void host_cancel_at_once();

// Once a sysmon tick, on its thread.
void host_tick(uint64_t now_ns);

// Deadlock report and fatal errors: print the stack of a parked G. g0 or foreign stack.
void host_print_stack(G* g);

}  // namespace weft

// g.cc - names, and the proof that asm/offsets.h tells the truth.
#include "sched/g.h"

#include <stddef.h>

#include "sched/trace.h"

namespace weft {

static_assert(offsetof(G, sp) == G_SP);
static_assert(offsetof(G, fs) == G_FS);
static_assert(offsetof(G, on_cpu) == G_ON_CPU && sizeof(G::on_cpu) == 4);

thread_local constinit G* t_g = nullptr;

const char* const kWaitNames[] = {
    "running", "futex", "mutex", "cond",   "rwlock",  "sem",    "barrier", "once", "join",  "sleep",
    "read",    "write", "poll",  "accept", "connect", "signal", "chan",    "child", "other",
};
static_assert(sizeof(kWaitNames) / sizeof(kWaitNames[0]) == static_cast<size_t>(Wait::kCount));

const char* const kEvNames[] = {
    "none",   "run",     "park",   "ready",  "yield", "preempt", "sysenter", "sysexit", "syslost", "handoff",
    "retake", "hidden", "steal", "stopm", "startm",  "poll",     "create",  "exit",    "wire",    "signal",
    "switch",
};
static_assert(sizeof(kEvNames) / sizeof(kEvNames[0]) == static_cast<size_t>(Ev::kCount));

}  // namespace weft

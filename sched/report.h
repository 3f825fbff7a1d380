// report.h - text about the scheduler: who runs, who waits for what, since when.
//
// Read-only over live structures, without a lock: a report must come out when everything
// is stuck, so lines may be a moment apart and a racing field stale. Never dereferences
// what a recycled slot may have dropped (Gs and Ms are type-stable).
//
// Callers: any thread, any stack with 8 KiB left. No lock, no malloc, no stdio; writes to
// descriptor 2 with raw write(2).
#pragma once

#include "sched/sched.h"

namespace weft {

// Collects text and writes it out in pieces; flushed by flush() and the destructor.
class Out {
 public:
  Out() = default;
  ~Out() { flush(); }
  Out(const Out&) = delete;
  Out& operator=(const Out&) = delete;
  Out& operator<<(const char* s);
  Out& operator<<(uint64_t v);
  Out& operator<<(uint32_t v) { return *this << uint64_t{v}; }
  Out& operator<<(int64_t v);
  Out& operator<<(int v) { return *this << int64_t{v}; }
  Out& operator<<(bool v) { return *this << (v ? "true" : "false"); }
  Out& hex(uint64_t v);
  Out& ptr(const void* p) { return hex(reinterpret_cast<uint64_t>(p)); }
  void flush();

 private:
  void put(char c) {
    if (n_ == sizeof buf_) flush();
    buf_[n_++] = c;
  }
  char buf_[2048];
  size_t n_ = 0;
};

// One schedtrace line in Go's format, with `detail` each P, M and G too.
void report_schedtrace(Out& out, uint64_t ms, bool detail);
// Every M, with its last `events` ring entries; every P.
void report_ms(Out& out, uint32_t events);
void report_ps(Out& out);
// Every live G with state, wait reason, duration; `stacks`: host_print_stack for each.
void report_gs(Out& out, bool stacks);
// True if nothing inside the process can ever wake a G again: all are parked, no timer,
// no descriptor watched, no M in the kernel.
bool report_all_asleep();

// The whole dump, as the signal and fatal() print it, in a forked copy of the process when
// one can be had: unwinding may read wild addresses there, and nobody waits for a lock.
// Returns the copy's pid (0: it was printed in place, without stacks); with `wait` (fatal) it
// has ended when this returns, and holds the caller's own stack too.
int report_in_copy(const char* title, uint32_t events, bool wait);
// In the copy: the process it was made of; else 0.
extern int report_copy_parent;
// True once the copy has ended; kills it after 10 s.
bool report_copy_done(int pid, uint64_t started_ns);

}  // namespace weft

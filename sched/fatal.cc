// fatal.cc - the end after a broken invariant: say what is known, then abort.
//
// Constant text and numbers by raw write(2); no lock, no malloc, no stdio. The state goes
// out first, in place; stacks follow from a forked copy, whose own failure costs nothing.
// Callers: any thread, any stack with 8 KiB left, signal handlers too. Does not return.
#include <signal.h>

#include "sched/report.h"

namespace weft {
namespace {

std::atomic<int> dying_tid{0};

// The program's SIGABRT handler, if it has one, must not run on a broken engine.
[[noreturn]] void die() {
  struct {  // the kernel's struct sigaction
    void* handler;
    unsigned long flags;
    void* restorer;
    uint64_t mask;
  } dfl = {};
  sys_call(SYS_rt_sigaction, SIGABRT, sys_arg(&dfl), 0, 8);
  uint64_t set = uint64_t{1} << (SIGABRT - 1);
  sys_sigprocmask(1 /*SIG_UNBLOCK*/, &set, nullptr);
  sys_call(SYS_tgkill, sys_getpid(), sys_gettid(), SIGABRT);
  __builtin_trap();
}

}  // namespace

void fatal(const char* what) {
  int me = sys_gettid(), nobody = 0;
  if (!dying_tid.compare_exchange_strong(nobody, me, std::memory_order_acq_rel)) {
    if (nobody == me) die();  // failed while reporting
    for (;;) sys_call(SYS_pause);  // another thread is reporting and will abort us all
  }
  {
    Out out;
    out << "weft: fatal: " << what << "\n";
    G* g = t_g;
    if (g == nullptr) {
      out << "on foreign thread " << me << "\n";
    } else {
      out << "on " << (g->is_g0 ? "g0 of M " : "G ");
      out << (g->is_g0 ? g->m->id : g->index) << ", thread " << me << "\n";
    }
    report_ms(out, 32);
    report_ps(out);
    report_gs(out, false);
  }
  report_in_copy("stacks", 0, true);
  die();
}

}  // namespace weft

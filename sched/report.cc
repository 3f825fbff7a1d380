// report.cc - see report.h.
#include "sched/report.h"

#include "sched/netpoll.h"

namespace weft {

void Out::flush() {
  for (size_t done = 0; done < n_;) {
    long r = sys_call(SYS_write, 2, sys_arg(&buf_[done]), sys_arg(n_ - done));
    if (r == -4 /*EINTR*/) continue;
    if (r <= 0) break;
    done += static_cast<size_t>(r);
  }
  n_ = 0;
}

Out& Out::operator<<(const char* s) {
  for (; *s != 0; s++) put(*s);
  return *this;
}

Out& Out::operator<<(uint64_t v) {
  char digits[20];
  int n = 0;
  do digits[n++] = static_cast<char>('0' + v % 10);
  while ((v /= 10) != 0);
  while (n > 0) put(digits[--n]);
  return *this;
}

Out& Out::operator<<(int64_t v) {
  if (v >= 0) return *this << static_cast<uint64_t>(v);
  put('-');
  return *this << ~static_cast<uint64_t>(v) + 1;
}

Out& Out::hex(uint64_t v) {
  *this << "0x";
  int shift = 60;
  while (shift > 0 && (v >> shift & 15) == 0) shift -= 4;
  for (; shift >= 0; shift -= 4) put("0123456789abcdef"[v >> shift & 15]);
  return *this;
}

namespace {

constexpr uint32_t kMaxListed = 20000;  // Gs in one dump; beyond that nobody reads on

const char* state_name(uint32_t s) {
  switch (s) {
    case 0: return "dead";
    case 1: return "runnable";
    case 2: return "running";
    case 3: return "syscall";
    case 4: return "waiting";
    case 15: return "syscall, P lost";  // kSyscallLost (syscall.h)
    default: return "?";
  }
}

uint32_t raw_state(const G* g) {
  return static_cast<uint32_t>(g->state.load(std::memory_order_acquire));
}

// Go's numbers, which readers of schedtrace know: runnable 1, running 2, syscall 3,
// waiting 4, dead 6.
uint32_t go_state(uint32_t s) { return s == 0 ? 6 : s == 15 ? 3 : s; }

const char* wait_name(const G* g) {
  auto w = static_cast<size_t>(g->wait);
  return w == 0 || w >= static_cast<size_t>(Wait::kCount) ? "" : kWaitNames[w];
}

Out& m_or_nil(Out& out, const M* m) { return m == nullptr ? out << "nil" : out << m->id; }
Out& p_or_nil(Out& out, const P* p) { return p == nullptr ? out << "nil" : out << p->id; }
Out& g_or_nil(Out& out, const G* g) { return g == nullptr ? out << "nil" : out << g->index; }

template <class F>
void each_p(F f) {
  for (uint32_t i = 0; sched.p != nullptr && i < sched.procs; i++) f(&sched.p[i]);
}
template <class F>
void each_m(F f) {
  for (M* m = sched.all_m.load(std::memory_order_acquire); m != nullptr; m = m->all_next) f(m);
}
template <class F>
void each_g(F f) {
  for (G* g = all_gs_first(); g != nullptr; g = g->all_next)
    if (raw_state(g) != 0) f(g);
}

// The M of a G only means something while it runs there.
const M* running_on(const G* g) {
  uint32_t s = raw_state(g);
  return s == 2 || s == 3 || s == 15 ? g->m : nullptr;
}

void detail(Out& out) {
  each_p([&](P* p) {
    M* m = p->m.load(std::memory_order_acquire);
    G* g = m == nullptr ? nullptr : m->curg.load(std::memory_order_acquire);
    uint64_t calls = g == nullptr ? 0 : g->state.load(std::memory_order_relaxed) >> 32;
    out << "  P" << p->id << ": status=" << (m == nullptr ? 0u : 1u)
        << " schedtick=" << p->tick.load(std::memory_order_relaxed) << " syscalltick=" << calls
        << " m=";
    m_or_nil(out, m) << " runqsize=" << p->runq.size() << " gfreecnt=" << p->free_gs.n
                     << " timerslen=" << p->timers.size() << "\n";
  });
  each_m([&](M* m) {
    out << "  M" << m->id << ": p=";
    p_or_nil(out, m->p) << " curg=";
    G* g = m->curg.load(std::memory_order_acquire);
    g_or_nil(out, g) << " mallocing=0 throwing=0 preemptoff= locks="
                     << (g == nullptr ? 1 : g->engine.load(std::memory_order_relaxed))
                     << " dying=0 spinning=" << m->spinning
                     << " blocked=" << (m->p == nullptr && g == nullptr) << " lockedg=";
    g_or_nil(out, g != nullptr && g->wired ? g : nullptr) << "\n";
  });
  uint32_t listed = 0;
  each_g([&](G* g) {
    if (listed++ >= kMaxListed) return;
    out << "  G" << g->index << ": status=" << go_state(raw_state(g)) << "(" << wait_name(g)
        << ") m=";
    m_or_nil(out, running_on(g)) << " lockedm=";
    m_or_nil(out, g->wired ? g->m : nullptr) << "\n";
  });
}

}  // namespace

void report_schedtrace(Out& out, uint64_t ms, bool with_detail) {
  // sysmon and the spawner are kernel threads too.
  out << "SCHED " << ms << "ms: gomaxprocs=" << sched.procs
      << " idleprocs=" << sched.n_idle_p.load(std::memory_order_relaxed)
      << " threads=" << sched.n_m.load(std::memory_order_relaxed) + 2
      << " spinningthreads=" << sched.n_spinning.load(std::memory_order_relaxed)
      << " needspinning=" << (sched.need_spinning.load(std::memory_order_relaxed) ? 1 : 0)
      << " idlethreads=" << sched.n_idle_m
      << " runqueue=" << sched.globq_n.load(std::memory_order_relaxed);
  if (with_detail) {
    out << " gcwaiting=false nmidlelocked=0 stopwait=0 sysmonwait=false\n";
    detail(out);
    return;
  }
  const char* sep = " [";
  each_p([&](P* p) {
    out << sep << p->runq.size() + (p->runq.has_next() ? 1 : 0);
    sep = " ";
  });
  out << "]\n";
}

void report_ms(Out& out, uint32_t events) {
  each_m([&](M* m) {
    out << "M " << m->id << ": tid " << m->tid.load(std::memory_order_relaxed) << " p=";
    p_or_nil(out, m->p) << " curg=";
    G* g = m->curg.load(std::memory_order_acquire);
    g_or_nil(out, g) << (m->spinning ? " spinning" : "");
    if (uint32_t r = m->retake.load(std::memory_order_relaxed)) out << " retake=" << r;
    out << "\n";
    if (events == 0) return;
    const TraceRing& t = m->trace;
    uint32_t n = t.n, k = n < events ? n : events;
    if (k > TraceRing::kSize) k = TraceRing::kSize;
    out << "   ";
    for (uint32_t i = n - k; i != n; i++) {
      const TraceRing::Entry& e = t.entry[i % TraceRing::kSize];
      out << " " << (e.ev < static_cast<uint32_t>(Ev::kCount) ? kEvNames[e.ev] : "?") << ":"
          << e.g;
      if (e.arg != 0) out << ":" << (e.arg == kNever ? uint64_t{0} : e.arg);
    }
    out << "\n";
  });
}

void report_ps(Out& out) {
  each_p([&](P* p) {
    out << "P " << p->id << ": "
        << (p->status.load(std::memory_order_relaxed) == PStatus::kIdle ? "idle" : "running")
        << " m=";
    m_or_nil(out, p->m.load(std::memory_order_acquire))
        << " tick=" << p->tick.load(std::memory_order_relaxed)
        << " switches=" << p->switches.load(std::memory_order_relaxed)
        << " runqsize=" << p->runq.size() << (p->runq.has_next() ? "+next" : "")
        << " timers=" << p->timers.size() << "\n";
  });
}

void report_gs(Out& out, bool stacks) {
  uint64_t now = host_now_ns();
  uint32_t listed = 0, more = 0;
  each_g([&](G* g) {
    if (listed++ >= kMaxListed) {
      more++;
      return;
    }
    uint32_t s = raw_state(g);
    bool waits = s == 4;
    out << "G " << g->index << " [" << (waits && g->wait != Wait::kNone ? wait_name(g) : state_name(s));
    if (waits) out << " wait";
    uint64_t since = g->wait_since_ns;
    if (waits && since != 0 && since < now)
      out << ", " << (now - since) / 1'000'000'000 << "." << (now - since) / 100'000'000 % 10
          << " s";
    out << "] vtid " << g->vtid;
    if (waits && g->wait_on != nullptr) out.ptr((out << " on ", g->wait_on));
    if (const M* m = running_on(g)) out << " m=" << m->id;
    if (g->wired) out << " wired";
    if (uint32_t depth = g->engine.load(std::memory_order_relaxed); depth > (waits ? 1u : 0u))
      out << " engine=" << depth;
    out << "\n";
    if (stacks) {
      out.flush();
      host_print_stack(g);
    }
  });
  if (more != 0) out << "... and " << more << " more\n";
}

bool report_all_asleep() {
  if (sched.globq_n.load(std::memory_order_acquire) != 0 || netpoll_waiters()) return false;
  bool asleep = true;
  each_p([&](P* p) { asleep &= p->timers.size() == 0 && p->runq.empty(); });
  uint32_t n = 0;
  each_g([&](G* g) {
    n++;
    asleep &= raw_state(g) == 4;
  });
  return asleep && n != 0;
}

}  // namespace weft

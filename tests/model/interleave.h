// interleave.h - runs a small concurrent program in every order that x86 allows.
//
// A model is a struct with start() (spawns threads by go()) and finish() (what must hold
// when all have ended). Its threads share Atomic<T>; each operation on one is a step, and
// the explorer tries every order of steps, depth first. It runs real code: sched/runq.h is
// a template over its atomic type, and is handed this one.
//
// Memory: total store order, as on x86. A plain store enters the thread's store buffer and
// reaches memory at a step of its own, as late as it likes; loads see the own buffer first;
// read-modify-writes, seq_cst stores, fence() and locks drain it; membarrier() drains all.
// Acquire and release cost nothing there and are not told apart from relaxed.
//
// States: a thread's locals are a function of what it has read, so memory, buffers and a
// hash of each thread's reads identify a state; one seen before is not explored again.
// Every path is run afresh from the start (threads are stackful and cannot be copied).
//
// locals() forgets the reads that no longer matter: without it loops multiply states. So does a thread's
// end: what finish() looks at is memory too (Var), no plain member that a thread has set.
//
// Waiting: never a loop; await(condition) takes the thread out until it holds. No thread
// able to run before all have ended is a deadlock, that is, a lost wake-up.
//
// A mutant is the same model with one step of the protocol left out. expect_breaks() fails
// unless the explorer finds the fault: the proof that the model can see it.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <new>
#include <string>
#include <unordered_set>
#include <vector>

namespace model {

constexpr int kMaxThreads = 6;
constexpr int kMaxBuffer = 6;
constexpr size_t kStackBytes = 64 << 10;
constexpr size_t kMaxStates = 30'000'000;

extern "C" void model_switch(void** save, void* load);
__asm__(
    ".text\n.type model_switch, @function\nmodel_switch:\n"
    " push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n"
    " mov %rsp, (%rdi)\n mov %rsi, %rsp\n"
    " pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n ret\n"
    ".size model_switch, . - model_switch\n");

inline uint64_t mix(uint64_t h, uint64_t v) {
  h = (h ^ v) * 0x9e3779b97f4a7c15u;
  return h ^ h >> 29;
}

struct Thread {
  const char* name = "";
  std::function<void()> body;
  std::function<bool()> ready;  // empty: can run
  void* sp = nullptr;
  char* stack = nullptr;
  bool done = false;
  uint64_t seen = 0;            // hash of all it has read
  struct Pending {
    int cell;
    uint64_t value;
  } buffer[kMaxBuffer];
  int pending = 0;
};

struct Step {
  int thread;
  const char* what;
  int cell;
  uint64_t value;
};

// The one explorer; its memory is the array of cells.
struct Explorer {
  std::vector<uint64_t> cells;
  std::vector<const char*> names;
  std::vector<Thread> threads;
  std::vector<char*> stacks;
  int current = -1;
  bool asking = false;          // evaluating a condition of await(): nothing is learnt from it
  bool store_buffers = true;    // false: sequential consistency, for larger models
  void* scheduler_sp = nullptr;
  std::string failure;
  std::vector<Step> trace;
  bool tracing = false;

  Thread& me() { return threads[static_cast<size_t>(current)]; }

  void note(const char* what, int cell, uint64_t value) {
    if (tracing) trace.push_back({current, what, cell, value});
  }

  // Hands control to the scheduler; returns when this thread is chosen again.
  void point() {
    if (current < 0) return;  // setting up, or finish(): no interleaving
    model_switch(&me().sp, scheduler_sp);
  }

  uint64_t look(int cell) {  // as the current thread sees it
    if (current >= 0)
      for (int i = me().pending; i-- > 0;)
        if (me().buffer[i].cell == cell) return me().buffer[i].value;
    return cells[static_cast<size_t>(cell)];
  }

  void flush_one(Thread& t) {
    cells[static_cast<size_t>(t.buffer[0].cell)] = t.buffer[0].value;
    for (int i = 1; i < t.pending; i++) t.buffer[i - 1] = t.buffer[i];
    t.pending--;
  }
  void drain(Thread& t) {
    while (t.pending > 0) flush_one(t);
  }

  void fail(const std::string& why) {
    if (failure.empty()) failure = why;
    if (current >= 0) {
      me().done = true;
      model_switch(&me().sp, scheduler_sp);
    }
  }
};

inline Explorer ex;

inline void check(bool ok, const char* what) {
  if (!ok) ex.fail(what);
}

// Takes the thread out until `f` holds; then goes on in the same step.
inline void await(std::function<bool()> f) {
  if (ex.current >= 0) ex.me().ready = std::move(f);
  ex.point();
}

// Says that from here on the thread depends on these values alone, not on what else it has
// read: paths that meet again are then seen as one. `place` tells the calls apart.
template <class... V>
void locals(uint64_t place, V... v) {
  if (ex.current < 0) return;
  uint64_t h = mix(99, place);
  ((h = mix(h, static_cast<uint64_t>(v))), ...);
  ex.me().seen = h;
}

// A step without effect: others may run here.
inline void step() { ex.point(); }

inline void fence() {
  ex.point();
  if (ex.current >= 0) ex.drain(ex.me());
  ex.note("fence", -1, 0);
}

// MEMBARRIER_CMD_PRIVATE_EXPEDITED: a full barrier on every thread.
inline void membarrier() {
  ex.point();
  for (auto& t : ex.threads) ex.drain(t);
  ex.note("membarrier", -1, 0);
}

template <class T>
class Atomic {
  static_assert(sizeof(T) <= 8);

 public:
  Atomic() : Atomic(T{}) {}
  Atomic(T v) : cell_(static_cast<int>(ex.cells.size())) {
    ex.cells.push_back(bits(v));
    ex.names.push_back("cell");
  }
  Atomic(T v, const char* name) : Atomic(v) { ex.names.back() = name; }
  Atomic(const Atomic&) = delete;
  Atomic& operator=(const Atomic&) = delete;

  T load(std::memory_order = std::memory_order_seq_cst) const {
    ex.point();
    uint64_t v = ex.look(cell_);
    saw(v);
    ex.note("load", cell_, v);
    return value(v);
  }
  void store(T v, std::memory_order o = std::memory_order_release) {
    ex.point();
    if (ex.current < 0) {
      ex.cells[static_cast<size_t>(cell_)] = bits(v);
      return;
    }
    Thread& t = ex.me();
    if (t.pending == kMaxBuffer) ex.flush_one(t);
    t.buffer[t.pending++] = {cell_, bits(v)};
    if (o == std::memory_order_seq_cst || !ex.store_buffers) ex.drain(t);
    ex.note("store", cell_, bits(v));
  }
  T exchange(T v, std::memory_order = std::memory_order_seq_cst) {
    return rmw("exchange", [&](T) { return v; });
  }
  T fetch_add(T d, std::memory_order = std::memory_order_seq_cst) {
    return rmw("add", [&](T old) { return static_cast<T>(old + d); });
  }
  T fetch_sub(T d, std::memory_order = std::memory_order_seq_cst) {
    return rmw("sub", [&](T old) { return static_cast<T>(old - d); });
  }
  T fetch_or(T b, std::memory_order = std::memory_order_seq_cst) {
    return rmw("or", [&](T old) { return static_cast<T>(old | b); });
  }
  T fetch_and(T b, std::memory_order = std::memory_order_seq_cst) {
    return rmw("and", [&](T old) { return static_cast<T>(old & b); });
  }
  bool compare_exchange_strong(T& want, T v, std::memory_order = std::memory_order_seq_cst,
                               std::memory_order = std::memory_order_seq_cst) {
    T expected = want;
    T old = rmw("cas", [&](T o) { return o == expected ? v : o; });
    want = old;
    return old == expected;
  }
  bool compare_exchange_weak(T& want, T v, std::memory_order a = std::memory_order_seq_cst,
                             std::memory_order b = std::memory_order_seq_cst) {
    return compare_exchange_strong(want, v, a, b);
  }
  // Without a step: for conditions of await() and for finish().
  T peek() const { return value(ex.look(cell_)); }

 private:
  template <class F>
  T rmw(const char* what, F f) {
    ex.point();
    if (ex.current >= 0) ex.drain(ex.me());
    uint64_t& cell = ex.cells[static_cast<size_t>(cell_)];
    T old = value(cell);
    cell = bits(f(old));
    saw(bits(old));
    ex.note(what, cell_, cell);
    return old;
  }
  static void saw(uint64_t v) {
    if (ex.current >= 0) ex.me().seen = mix(ex.me().seen, v);
  }
  static uint64_t bits(T v) {
    uint64_t b = 0;
    memcpy(&b, &v, sizeof v);
    return b;
  }
  static T value(uint64_t b) {
    T v;
    memcpy(&v, &b, sizeof v);
    return v;
  }
  int cell_;
};

// Data that only the holder of a lock touches: part of the state, but no step of its own.
template <class T>
class Var {
 public:
  Var(T v = T{}) : a_(v) {}
  operator T() const {
    T v = a_.peek();
    if (ex.current >= 0 && !ex.asking) {
      uint64_t b = 0;
      memcpy(&b, &v, sizeof v);
      ex.me().seen = mix(ex.me().seen, b);
    }
    return v;
  }
  Var& operator=(T v) {
    int was = ex.current;
    ex.current = -1;
    a_.store(v);
    ex.current = was;
    return *this;
  }
  T operator->() const { return *this; }

 private:
  Atomic<T> a_;
};

class Lock {
 public:
  void lock() {
    await([this] { return word_.peek() == 0; });
    if (ex.current >= 0) ex.drain(ex.me());
    word_ = 1;
    ex.note("lock", -1, 0);
  }
  void unlock() {
    ex.point();
    if (ex.current >= 0) ex.drain(ex.me());
    word_ = 0;
    ex.note("unlock", -1, 0);
  }

 private:
  struct Word : Var<int> {
    using Var<int>::operator=;
    int peek() const { return *this; }
  } word_;
};

class Hold {
 public:
  explicit Hold(Lock& l) : l_(l) { l_.lock(); }
  ~Hold() { l_.unlock(); }

 private:
  Lock& l_;
};

inline void thread_main() {
  Thread& t = ex.me();
  t.body();
  ex.me().done = true;
  model_switch(&ex.me().sp, ex.scheduler_sp);
}

// Starts a thread of the model; in start() only.
inline void go(const char* name, std::function<void()> body) {
  size_t i = ex.threads.size();
  if (i == ex.stacks.size()) ex.stacks.push_back(static_cast<char*>(malloc(kStackBytes)));
  ex.threads.emplace_back();
  Thread& t = ex.threads.back();
  t.name = name;
  t.body = std::move(body);
  auto** sp = reinterpret_cast<void**>(ex.stacks[i] + kStackBytes - 64);
  *--sp = nullptr;  // the entry's return address: never used, keeps the alignment
  *--sp = reinterpret_cast<void*>(&thread_main);
  for (int k = 0; k < 6; k++) *--sp = nullptr;
  t.sp = sp;
}

// What models share: `mutant` is 0 or the step that is left out.
struct Model {
  explicit Model(int m) : mutant(m) {}
  int mutant;
  void finish() {}
};

struct Result {
  bool holds = true;
  std::string failure;
  size_t states = 0, paths = 0;
  std::vector<Step> trace;
  std::vector<std::string> thread_names, cell_names;
};

// Every order of M(mutant)'s steps.
template <class M>
Result explore(int mutant) {
  struct Choice {
    int taken, options;
  };
  alignas(64) static char room[sizeof(M)];
  Result result;
  std::unordered_set<uint64_t> visited;
  std::vector<Choice> path;
  for (;;) {
    ex.cells.clear();
    ex.names.clear();
    ex.threads.clear();
    ex.threads.reserve(kMaxThreads);
    ex.failure.clear();
    ex.trace.clear();
    ex.current = -1;
    memset(room, 0, sizeof room);
    M* m = new (room) M(mutant);
    m->start();
    result.paths++;
    for (size_t depth = 0;; depth++) {
      int options[2 * kMaxThreads], n = 0;  // 2i: thread i steps; 2i+1: its oldest store lands
      bool all_done = true;
      for (int i = 0; i < static_cast<int>(ex.threads.size()); i++) {
        Thread& t = ex.threads[static_cast<size_t>(i)];
        ex.current = i;
        ex.asking = true;
        if (!t.done && (!t.ready || t.ready())) options[n++] = 2 * i;
        if (t.pending > 0) options[n++] = 2 * i + 1;
        all_done &= t.done;
      }
      ex.current = -1;
      ex.asking = false;
      if (n == 0) {
        if (all_done) m->finish();
        else ex.failure = "deadlock: nobody can run";
        break;
      }
      if (depth == path.size()) {
        if (n > 1) {
          uint64_t h = 1;
          for (uint64_t c : ex.cells) h = mix(h, c);
          for (auto& t : ex.threads) {
            h = mix(mix(h, t.done ? 0 : t.seen), t.done);
            for (int i = 0; i < t.pending; i++)
              h = mix(mix(h, t.buffer[i].value + 1), static_cast<uint64_t>(t.buffer[i].cell));
          }
          if (!visited.insert(h).second) break;
        }
        path.push_back({0, n});
      }
      int choice = options[path[depth].taken];
      ex.current = choice / 2;
      Thread& t = ex.me();
      if (choice % 2 != 0) {
        ex.note("lands", t.buffer[0].cell, t.buffer[0].value);
        ex.flush_one(t);
      } else {
        t.ready = nullptr;
        t.seen = mix(t.seen, 77);  // its program counter moves
        model_switch(&ex.scheduler_sp, t.sp);
      }
      ex.current = -1;
      if (!ex.failure.empty()) break;
    }
    if (!ex.failure.empty()) {
      result.holds = false;
      result.failure = ex.failure;
      if (ex.tracing) {
        result.trace = ex.trace;
        for (auto& t : ex.threads) result.thread_names.push_back(t.name);
        for (auto* c : ex.names) result.cell_names.push_back(c);
        break;
      }
      ex.tracing = true;  // the same path once more, with its steps written down
      continue;
    }
    while (!path.empty() && path.back().taken + 1 == path.back().options) path.pop_back();
    if (path.empty()) break;
    path.back().taken++;
    if (visited.size() > kMaxStates) {
      result.holds = false;
      result.failure = "too many states";
      break;
    }
  }
  ex.tracing = false;
  result.states = visited.size();
  return result;
}

inline int passed, failed;

inline void print_trace(const Result& r) {
  for (const Step& s : r.trace) {
    printf("      %-10s %s", r.thread_names[static_cast<size_t>(s.thread)].c_str(), s.what);
    if (s.cell >= 0)
      printf(" %s[%d] = 0x%llx", r.cell_names[static_cast<size_t>(s.cell)].c_str(), s.cell,
             static_cast<unsigned long long>(s.value));
    printf("\n");
  }
}

template <class M>
void expect_holds(const char* name, bool store_buffers = true) {
  ex.store_buffers = store_buffers;
  Result r = explore<M>(0);
  (r.holds ? passed : failed)++;
  printf("%s %s: %zu states, %zu paths%s%s\n", r.holds ? "ok  " : "FAIL", name, r.states, r.paths,
         r.holds ? "" : ": ", r.failure.c_str());
  if (!r.holds) print_trace(r);
  fflush(stdout);
}

// `mutant` > 0 says to M which step to leave out.
template <class M>
void expect_breaks(const char* name, int mutant, bool store_buffers = true) {
  ex.store_buffers = store_buffers;
  Result r = explore<M>(mutant);
  bool found = !r.holds && r.failure != "too many states";
  (found ? passed : failed)++;
  printf("%s mutant, %s: %s (%zu states)\n", found ? "ok  " : "FAIL", name,
         r.holds ? "not found out" : r.failure.c_str(), r.states);
  if (found && getenv("MODEL_TRACE") != nullptr) print_trace(r);
  fflush(stdout);
}

inline int summary() {
  printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 ? 0 : 1;
}

}  // namespace model

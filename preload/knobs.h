// knobs.h - what the WEFT_* environment variables say, parsed once.
//
// Invariant: knobs() never changes after knobs_parse(); before it, knobs() holds the
// defaults. Strings point into the environment they were parsed from.
// Callers: knobs_parse: boot, and the launcher, before any other thread of ours runs.
// knobs(): anyone, any stack. Nothing here allocates, blocks, takes a lock or calls a
// libc function that could be interposed; messages leave through write(2), one per line.
#pragma once

#include <cstddef>
#include <cstdint>

namespace weft {

enum class Netpoll : int { kEpoll, kOff };

struct Knobs {
  int procs = 0;                      // 0: not set, take min(affinity, cgroup quota)
  int preempt_ms = 10;                // 0: never preempt
  size_t stack_bytes = 0;             // 0: not set, take RLIMIT_STACK as glibc does
  int spin_us = 20;                   // about what waking an M on an idle core costs
  Netpoll netpoll = Netpoll::kEpoll;
  const char* only = nullptr;
  const char* skip = nullptr;
  bool stats = false;
  const char* debug = nullptr;        // the raw text; its keys are the next four
  int schedtrace_ms = 0;              // 0: no trace
  bool scheddetail = false;
  bool wire = false;
  int dumpsig = 0;                    // 0: no dump signal
  bool native = false;                // WEFT_ONLY or WEFT_SKIP leaves this program native
};

const Knobs& knobs();

// Reads every WEFT_* variable of `envp`. One line on stderr for each that is unknown or has
// a bad value; its default is used. Reads nothing in a setuid program (AT_SECURE).
void knobs_parse(char** envp);

// As knobs_parse, into `k`, with each line handed to `say` instead (nullptr: no lines).
void knobs_parse_into(Knobs& k, char** envp, void (*say)(const char* line, size_t n));

enum class KnobKind : uint8_t {
  kInt,       // low..high
  kOffOrInt,  // off (0) or low..high
  kSize,      // low..high bytes, k/m/g behind the number
  kEnum,      // one of words
  kBool,      // 0 or 1
  kList,      // names separated by commas
  kPairs,     // key=value separated by commas, keys in the debug table
  kSignal,    // SIGUSR2, USR2, RTMIN+1 or a number
};

struct KnobRow {
  const char* name;
  KnobKind kind;
  uint16_t offset;  // of the field in Knobs
  int64_t low, high;
  const char* words;
  const char* initial;
  const char* help;
};

struct KnobTable {
  const KnobRow* rows;
  size_t count;
};
KnobTable knob_table();        // the variables
KnobTable knob_debug_table();  // the keys of WEFT_DEBUG

// Writes the accepted values of `row` into `out` as text with a final 0; its length.
size_t knob_accepted(const KnobRow& row, char* out, size_t room);

// Whether `value` is good for the variable `name`.
bool knob_value_ok(const char* name, const char* value);

// The launcher prints the complaints, then leaves this variable with the sum of what it
// has checked, so that the library in the command prints them again only if the
// environment has changed since.
inline constexpr char kKnobsChecked[] = "WEFT__CHECKED";
uint64_t knobs_env_sum(char** envp);
size_t knobs_sum_text(uint64_t sum, char out[17]);

// Whether `list` (names separated by commas) holds the last part of `path`.
bool knob_list_has(const char* list, const char* path);

}  // namespace weft

// knobs.cc - the parser of the WEFT_* variables: see knobs.h for the contract.
//
// Invariant: a field is written only with a value inside the row's accepted range.
// It runs at boot inside someone else's process, perhaps in its first pthread_create, so
// it has a parser of its own: libc's strtol reads the locale, getenv is no use in a
// setuid program, and stdio allocates.
#include "preload/knobs.h"

#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/auxv.h>

#include "sched/sys.h"

namespace weft {
namespace {

constexpr char kPrefix[] = "WEFT_";
constexpr size_t kPrefixBytes = sizeof kPrefix - 1;

#define WEFT_KNOB(name, field, kind, low, high, words, initial, help) \
  {#name, KnobKind::kind, offsetof(Knobs, field), low, high, words, initial, help},
#define WEFT_DEBUG_KEY(name, field, kind, low, high, words, initial, help)
constexpr KnobRow kRows[] = {
#include "preload/knobs.def"
};
#undef WEFT_KNOB
#undef WEFT_DEBUG_KEY
#define WEFT_KNOB(name, field, kind, low, high, words, initial, help)
#define WEFT_DEBUG_KEY(name, field, kind, low, high, words, initial, help) \
  {#name, KnobKind::kind, offsetof(Knobs, field), low, high, words, initial, help},
constexpr KnobRow kDebugRows[] = {
#include "preload/knobs.def"
};
#undef WEFT_KNOB
#undef WEFT_DEBUG_KEY

constinit Knobs the_knobs;

// Text of known length inside the environment; not terminated.
struct Span {
  const char* at;
  size_t n;
  bool is(const char* word) const { return strlen(word) == n && memcmp(word, at, n) == 0; }
};

// One line of output; what does not fit is left out, the newline never is.
struct Line {
  char text[1024];
  size_t n = 0;
  void put(char c) {
    if (n < sizeof text - 1) text[n++] = c;
  }
  void put(const char* s) {
    while (*s) put(*s++);
  }
  void put(int64_t v) {
    char digits[20];
    size_t i = 0;
    do digits[i++] = static_cast<char>('0' + v % 10);
    while (v /= 10);
    while (i) put(digits[--i]);
  }
  // Someone else's text: at most 80 bytes, and nothing a terminal would act on.
  void put_foreign(Span s) {
    for (size_t i = 0; i < s.n && i < 80; i++) {
      put(s.at[i] < ' ' || s.at[i] == 127 ? '?' : s.at[i]);
    }
    if (s.n > 80) put("...");
  }
  void put_size(int64_t bytes) {
    constexpr char kUnits[] = {'g', 'm', 'k'};
    for (int i = 0; i < 3; i++) {
      int64_t unit = int64_t{1} << (30 - 10 * i);
      if (bytes >= unit && bytes % unit == 0) {
        put(bytes / unit);
        put(kUnits[i]);
        return;
      }
    }
    put(bytes);
  }
};

// Cuts the next item off `rest` at `separator`; false when none is left.
bool next_item(Span& rest, char separator, Span& item) {
  if (!rest.at) return false;
  const void* end = memchr(rest.at, separator, rest.n);
  if (!end) {
    item = rest;
    rest = {nullptr, 0};
    return true;
  }
  size_t n = static_cast<size_t>(static_cast<const char*>(end) - rest.at);
  item = {rest.at, n};
  rest = {rest.at + n + 1, rest.n - n - 1};
  return true;
}

bool parse_number(Span s, int64_t& out) {
  if (s.n == 0 || s.n > 15) return false;
  int64_t v = 0;
  for (size_t i = 0; i < s.n; i++) {
    if (s.at[i] < '0' || s.at[i] > '9') return false;
    v = v * 10 + (s.at[i] - '0');
  }
  out = v;
  return true;
}

bool parse_size(Span s, int64_t& out) {
  int shift = 0;
  if (s.n) {
    switch (s.at[s.n - 1] | 0x20) {
      case 'k': shift = 10; break;
      case 'm': shift = 20; break;
      case 'g': shift = 30; break;
      default: break;
    }
  }
  if (shift) s.n--;
  if (!parse_number(s, out) || out > (int64_t{1} << 60 >> shift)) return false;
  out <<= shift;
  return true;
}

struct SignalName {
  const char* name;
  int number;
};
constexpr SignalName kSignals[] = {
    {"HUP", SIGHUP},   {"INT", SIGINT},       {"QUIT", SIGQUIT}, {"USR1", SIGUSR1},
    {"USR2", SIGUSR2}, {"PIPE", SIGPIPE},     {"ALRM", SIGALRM}, {"TERM", SIGTERM},
    {"CHLD", SIGCHLD}, {"CONT", SIGCONT},     {"TSTP", SIGTSTP}, {"TTIN", SIGTTIN},
    {"TTOU", SIGTTOU}, {"XCPU", SIGXCPU},     {"XFSZ", SIGXFSZ}, {"VTALRM", SIGVTALRM},
    {"PROF", SIGPROF}, {"WINCH", SIGWINCH},   {"IO", SIGIO},     {"PWR", SIGPWR},
    {"SYS", SIGSYS},   {"STKFLT", SIGSTKFLT},
};
constexpr int kRtMin = 34;  // what a program sees as SIGRTMIN: glibc keeps 32 and 33
constexpr int kRtMax = 64;

// No dump on signals that cannot be caught, report a fault, or belong to libc or to us.
bool signal_usable(int64_t n) {
  if (n >= kRtMin && n <= kRtMax) return true;
  for (const SignalName& s : kSignals) {
    if (s.number == n) return true;
  }
  return false;
}

bool parse_signal(Span s, int64_t& out) {
  if (parse_number(s, out)) return signal_usable(out);
  if (s.n > 3 && memcmp(s.at, "SIG", 3) == 0) s = {s.at + 3, s.n - 3};
  for (const SignalName& named : kSignals) {
    if (s.is(named.name)) {
      out = named.number;
      return true;
    }
  }
  if (s.n >= 5 && memcmp(s.at, "RTMIN", 5) == 0) {
    out = kRtMin;
    if (s.n == 5) return true;
    if (s.at[5] != '+' || !parse_number({s.at + 6, s.n - 6}, out)) return false;
    out += kRtMin;
    return out <= kRtMax;
  }
  return false;
}

bool parse_word(const char* words, Span s, int64_t& out) {
  Span rest = {words, strlen(words)}, item;
  for (out = 0; next_item(rest, '|', item); out++) {
    if (item.n == s.n && memcmp(item.at, s.at, s.n) == 0) return true;
  }
  return false;
}

template <class T>
void store(Knobs& k, const KnobRow& row, T v) {
  memcpy(reinterpret_cast<char*>(&k) + row.offset, &v, sizeof v);
}

bool parse_pairs(Knobs& k, const char* text);

bool in_range(const KnobRow& row, int64_t v) { return v >= row.low && v <= row.high; }

// `value` is the text up to its end in the environment where the kind keeps the pointer.
bool parse_value(Knobs& k, const KnobRow& row, Span value) {
  int64_t v = 0;
  switch (row.kind) {
    case KnobKind::kOffOrInt:
    case KnobKind::kInt:
      if (row.kind == KnobKind::kOffOrInt && value.is("off")) {
        v = 0;
      } else if (!parse_number(value, v) || !in_range(row, v)) {
        return false;
      }
      store(k, row, static_cast<int>(v));
      return true;
    case KnobKind::kSize:
      if (!parse_size(value, v) || !in_range(row, v)) return false;
      store(k, row, static_cast<size_t>(v));
      return true;
    case KnobKind::kEnum:
      if (!parse_word(row.words, value, v)) return false;
      store(k, row, static_cast<int>(v));
      return true;
    case KnobKind::kBool:
      if (!value.is("0") && !value.is("1")) return false;
      store(k, row, value.is("1"));
      return true;
    case KnobKind::kSignal:
      if (!parse_signal(value, v)) return false;
      store(k, row, static_cast<int>(v));
      return true;
    case KnobKind::kList:
      store(k, row, value.at);
      return true;
    case KnobKind::kPairs:
      store(k, row, value.at);
      return parse_pairs(k, value.at);
  }
  return false;
}

const KnobRow* find_row(KnobTable table, Span name) {
  for (size_t i = 0; i < table.count; i++) {
    if (name.is(table.rows[i].name)) return &table.rows[i];
  }
  return nullptr;
}

// The good pairs count even where one is bad.
bool parse_pairs(Knobs& k, const char* text) {
  bool good = true;
  Span rest = {text, strlen(text)}, item;
  while (next_item(rest, ',', item)) {
    Span value = item, key;
    if (item.n == 0) continue;
    next_item(value, '=', key);
    const KnobRow* row = find_row(knob_debug_table(), key);
    if (!row || !value.at || !parse_value(k, *row, value)) good = false;
  }
  return good;
}

void put_accepted(Line& line, const KnobRow& row) {
  switch (row.kind) {
    case KnobKind::kOffOrInt:
      line.put("off, ");
      [[fallthrough]];
    case KnobKind::kInt:
      line.put(row.low);
      line.put("..");
      line.put(row.high);
      return;
    case KnobKind::kSize:
      line.put_size(row.low);
      line.put("..");
      line.put_size(row.high);
      return;
    case KnobKind::kEnum:
      for (const char* w = row.words; *w; w++) {
        if (*w == '|') line.put(", ");
        else line.put(*w);
      }
      return;
    case KnobKind::kBool: line.put("0, 1"); return;
    case KnobKind::kList: line.put("names separated by commas"); return;
    case KnobKind::kSignal: line.put("a signal's name or number"); return;
    case KnobKind::kPairs:
      for (const KnobRow& key : kDebugRows) {
        if (&key != kDebugRows) line.put("; ");
        line.put(key.name);
        line.put('=');
        put_accepted(line, key);
      }
      return;
  }
}

void say_bad_value(Line& line, const KnobRow& row, Span value) {
  line.put("weft: ");
  line.put(row.name);
  line.put('=');
  line.put_foreign(value);
  line.put(" is not valid (accepted: ");
  put_accepted(line, row);
  line.put("); the default is used");
}

void say_unknown(Line& line, Span name) {
  line.put("weft: ");
  line.put_foreign(name);
  line.put(" is no variable of weft (accepted: ");
  for (const KnobRow& row : kRows) {
    if (&row != kRows) line.put(", ");
    line.put(row.name);
  }
  line.put("); it is ignored");
}

void write_line(const char* text, size_t n) { sys_call(SYS_write, 2, sys_arg(text), sys_arg(n)); }

bool is_ours(const char* entry) { return strncmp(entry, kPrefix, kPrefixBytes) == 0; }

// What the lists are matched against: the path the program was started by (a script's own
// path) and the file that runs (the interpreter behind it, links resolved).
bool list_names_this_program(const char* list) {
  const char* started = reinterpret_cast<const char*>(getauxval(AT_EXECFN));
  if (started && knob_list_has(list, started)) return true;
  char exe[4096] = {};
  long n = sys_call(SYS_readlink, sys_arg("/proc/self/exe"), sys_arg(exe), sizeof exe - 1);
  if (n <= 0) return false;
  return knob_list_has(list, exe);
}

}  // namespace

const Knobs& knobs() { return the_knobs; }
KnobTable knob_table() { return {kRows, sizeof kRows / sizeof *kRows}; }
KnobTable knob_debug_table() { return {kDebugRows, sizeof kDebugRows / sizeof *kDebugRows}; }

bool knob_list_has(const char* list, const char* path) {
  const char* slash = strrchr(path, '/');
  const char* base = slash ? slash + 1 : path;
  Span rest = {list, strlen(list)}, item;
  while (next_item(rest, ',', item)) {
    if (item.is(base)) return true;
  }
  return false;
}

size_t knob_accepted(const KnobRow& row, char* out, size_t room) {
  Line line;
  put_accepted(line, row);
  size_t n = line.n < room ? line.n : room - 1;
  memcpy(out, line.text, n);
  out[n] = 0;
  return n;
}

bool knob_value_ok(const char* name, const char* value) {
  Knobs scratch;
  const KnobRow* row = find_row(knob_table(), {name, strlen(name)});
  return row && parse_value(scratch, *row, {value, strlen(value)});
}

void knobs_parse_into(Knobs& k, char** envp, void (*say)(const char*, size_t)) {
  for (char** e = envp; e && *e; e++) {
    if (!is_ours(*e)) continue;
    Span value = {*e, strlen(*e)}, name;
    next_item(value, '=', name);
    if (!value.at || name.is(kKnobsChecked)) continue;
    Line line;
    const KnobRow* row = find_row(knob_table(), name);
    if (!row) {
      say_unknown(line, name);
    } else if (value.n && !parse_value(k, *row, value)) {  // empty means not set
      say_bad_value(line, *row, value);
    } else {
      continue;
    }
    line.text[line.n++] = '\n';
    if (say) say(line.text, line.n);
  }
}

uint64_t knobs_env_sum(char** envp) {
  uint64_t sum = 0;  // of FNV-1a per variable, so that their order does not matter
  for (char** e = envp; e && *e; e++) {
    if (!is_ours(*e)) continue;
    if (!strncmp(*e, kKnobsChecked, sizeof kKnobsChecked - 1)) continue;
    uint64_t h = 14695981039346656037u;
    for (const char* c = *e; *c; c++) h = (h ^ static_cast<unsigned char>(*c)) * 1099511628211u;
    sum += h;
  }
  return sum;
}

size_t knobs_sum_text(uint64_t sum, char out[17]) {
  for (int i = 0; i < 16; i++) out[i] = "0123456789abcdef"[sum >> (60 - 4 * i) & 15];
  out[16] = 0;
  return 16;
}

void knobs_parse(char** envp) {
  if (getauxval(AT_SECURE)) return;
  bool checked = false;
  char sum[17];
  knobs_sum_text(knobs_env_sum(envp), sum);
  constexpr size_t kName = sizeof kKnobsChecked - 1;
  for (char** e = envp; e && *e; e++) {
    if (!strncmp(*e, kKnobsChecked, kName) && (*e)[kName] == '=') {
      checked = !strcmp(*e + kName + 1, sum);
    }
  }
  knobs_parse_into(the_knobs, envp, checked ? nullptr : write_line);
  the_knobs.native = (the_knobs.only && !list_names_this_program(the_knobs.only)) ||
                     (the_knobs.skip && list_names_this_program(the_knobs.skip));
}

}  // namespace weft

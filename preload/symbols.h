// symbols.h - names for code addresses, from the symbol tables of the loaded files.
//
// Reads each file's .symtab (or .dynsym) through a mapping of its own, so static functions
// have names too. For the dump's copy of the process only (sched/report.h): it asks the
// loader for its list once and keeps every mapping.
// Callers: one thread. No malloc, no stdio.
#pragma once

#include <cstddef>
#include <cstdint>

namespace weft {

struct Symbol {
  const char* name = nullptr;  // null: unknown
  const char* file = nullptr;  // last part of the path, or "?"
  uint64_t offset = 0;         // from the symbol, or from the file's start
};

// The symbol that holds `pc`.
Symbol symbol_at(uint64_t pc);

}  // namespace weft

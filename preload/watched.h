// watched.h - is the process run by a tool, or a runtime, that keeps its own books about threads?
//
// Callers: boot, once. Neither blocks nor allocates.
#pragma once

namespace weft {

// Why the program is to run natively, or nullptr.
const char* watched_by();

}  // namespace weft

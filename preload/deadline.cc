// deadline.cc - the program's clocks to the engine's (CLOCK_MONOTONIC ns).
#include <limits.h>

#include "preload/api.h"

namespace weft {
namespace {

constexpr int64_t kFarSeconds = int64_t{500} * 365 * 86400;
constexpr uint64_t kBillion = 1000000000;

}  // namespace

uint64_t host_now_ns() {
  struct timespec ts;
  real().clock_gettime(CLOCK_MONOTONIC, &ts);  // the program's own makes way (cpuclock.cc)
  return static_cast<uint64_t>(ts.tv_sec) * kBillion + static_cast<uint64_t>(ts.tv_nsec);
}

uint64_t deadline_in(const struct timespec* rel) {
  if (rel->tv_sec < 0) return 1;
  if (rel->tv_sec >= kFarSeconds) return kNever;
  return host_now_ns() + static_cast<uint64_t>(rel->tv_sec) * kBillion +
         static_cast<uint64_t>(rel->tv_nsec);
}

uint64_t deadline_from(clockid_t clock, const struct timespec* abs) {
  if (abs->tv_sec >= kFarSeconds) return kNever;
  if (abs->tv_sec < 0) return 1;
  uint64_t at = static_cast<uint64_t>(abs->tv_sec) * kBillion + static_cast<uint64_t>(abs->tv_nsec);
  if (clock == CLOCK_MONOTONIC) return at == 0 ? 1 : at;
  struct timespec now;
  clock_gettime(clock, &now);
  struct timespec rel = {abs->tv_sec - now.tv_sec, abs->tv_nsec - now.tv_nsec};
  if (rel.tv_nsec < 0) {
    rel.tv_nsec += static_cast<long>(kBillion);
    rel.tv_sec--;
  }
  return deadline_in(&rel);
}

}  // namespace weft

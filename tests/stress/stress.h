// stress.h - frame of the programs in tests/stress: seed, deadline, random numbers.
//
// Usage:     PROGRAM [seed [seconds]]; the seed is printed first, a run is repeated with it.
// Invariant: random numbers come from per-thread states derived from the seed alone.
// Callers:   main calls stress_begin once, before any thread; the rest from any thread.
#ifndef TESTS_STRESS_STRESS_H
#define TESTS_STRESS_STRESS_H

#define ABI_NO_CMOCKA
#include "../abi/abi.h"

static uint64_t stress_seed;
static int64_t stress_end_ns;

ABI_UNUSED static void stress_begin(int argc, char **argv, int default_seconds) {
  stress_seed = argc > 1 ? strtoull(argv[1], NULL, 0) : (uint64_t)now_ns(CLOCK_REALTIME) % 1000000007;
  int64_t seconds = argc > 2 ? atoi(argv[2]) : default_seconds;
  printf("seed %llu, %lld s\n", (unsigned long long)stress_seed, (long long)seconds);
  fflush(stdout);
  stress_end_ns = now_ns(CLOCK_MONOTONIC) + seconds * 1000000000;
}

ABI_UNUSED static int time_left(void) { return now_ns(CLOCK_MONOTONIC) < stress_end_ns; }

// splitmix64: small, and any two streams of one seed are unrelated.
typedef struct {
  uint64_t state;
} Random;

ABI_UNUSED static Random random_stream(uint64_t stream) {
  Random r = {stress_seed * 0x9e3779b97f4a7c15u + (stream + 1) * 0xbf58476d1ce4e5b9u};
  return r;
}

ABI_UNUSED static uint64_t next_random(Random *r) {
  uint64_t z = (r->state += 0x9e3779b97f4a7c15u);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

ABI_UNUSED static int below(Random *r, int n) { return (int)(next_random(r) % (uint64_t)n); }

#endif

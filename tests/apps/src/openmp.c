// openmp.c - libgomp's ways to block, each with a sum that is known beforehand.
//
// Usage: openmp ROUNDS (few, where threads spin and outnumber the cores: then each barrier
// lasts a time slice). Prints `right`, or what was wrong and exits 1. libgomp waits in
// futex instructions of its own, which no library can interpose by name.
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>

static int wrong;

static void expect(const char *what, long got, long wanted) {
  if (got == wanted) return;
  printf("%s: %ld instead of %ld\n", what, got, wanted);
  wrong = 1;
}

static long tree(int depth) { // leaves of a binary tree, a task per inner node
  long left, right;
  if (depth == 0) return 1;
#pragma omp task shared(left)
  left = tree(depth - 1);
#pragma omp task shared(right)
  right = tree(depth - 1);
#pragma omp taskwait
  return left + right;
}

static void loops(int rounds) {
  long sum = 0;
  for (int r = 0; r < rounds; r++) {
#pragma omp parallel for reduction(+ : sum) schedule(dynamic, 16)
    for (int i = 0; i < 1000; i++) sum += i;
  }
  expect("parallel for", sum, 499500L * rounds);
}

static void barriers(int rounds) {
  long shared = 0, seen = 0;
#pragma omp parallel reduction(+ : seen)
  for (int r = 0; r < rounds; r++) {
#pragma omp single
    shared++;
    // single ends with a barrier: everyone sees the same count
    seen += shared == r + 1;
#pragma omp barrier
  }
  expect("single", shared, rounds);
  expect("barrier", seen, (long)rounds * omp_get_max_threads());
}

static void locks(int rounds) {
  long under_lock = 0, critical = 0, in_order = 0;
  omp_lock_t lock;
  omp_init_lock(&lock);
#pragma omp parallel for ordered schedule(dynamic)
  for (int i = 0; i < rounds; i++) {
    omp_set_lock(&lock);
    under_lock++;
    omp_unset_lock(&lock);
#pragma omp critical
    critical++;
#pragma omp ordered
    in_order += in_order == i;
  }
  omp_destroy_lock(&lock);
  expect("lock", under_lock, rounds);
  expect("critical", critical, rounds);
  expect("ordered", in_order, rounds);
}

int main(int argc, char **argv) {
  int rounds = argc > 1 ? atoi(argv[1]) : 500;
  long leaves = 0, nested = 0;
  loops(rounds);
  barriers(rounds);
  locks(rounds);
#pragma omp parallel
#pragma omp single
  leaves = tree(12);
  expect("tasks", leaves, 1 << 12);
  omp_set_max_active_levels(2);
#pragma omp parallel num_threads(3) reduction(+ : nested)
  {
    long inner = 0;
#pragma omp parallel num_threads(2) reduction(+ : inner)
    inner += 1;
    nested += inner;
  }
  expect("nested", nested, 6);
  if (!wrong) puts("right");
  return wrong;
}

#!/usr/bin/env bash
# openmp.sh - a gcc -fopenmp program: libgomp blocks in futex instructions of its own, after
# spinning (active) or at once (passive), with as many threads as cores and with more.
# set: light
# packages: gcc libc6-dev
# timeout: 400
. "$(dirname "$0")/lib.sh"
need gcc
compile openmp -fopenmp

right() { # MODE THREADS POLICY ROUNDS
  OMP_NUM_THREADS=$2 OMP_WAIT_POLICY=$3 $1 "$WORK/openmp" "$4" >"$WORK/out" || because "$(cat "$WORK/out")" || return
  [ "$(cat "$WORK/out")" = right ] || because "$(cat "$WORK/out")"
}

run_case passive_2 ms right 2 passive 1000
run_case passive_4 ms right 4 passive 1000
run_case active_2 ms right 2 active 40
run_case default_8 ms right 8 '' 100

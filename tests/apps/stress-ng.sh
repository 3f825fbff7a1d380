#!/usr/bin/env bash
# stress-ng.sh - stress-ng's own verification of threads, mutexes, semaphores, futexes, pipes.
# set: heavy
# packages: stress-ng
# timeout: 600
. "$(dirname "$0")/lib.sh"
need stress-ng
cd "$WORK" || exit 1

verifies() { # MODE STRESSOR
  $1 stress-ng -v --"$2" 2 -t "$SECS" --metrics-brief --verify --temp-path "$WORK" ||
    because "status $?: $(grep -m1 'fail:\|error:' "$WORK/stderr")" || return
  ! grep 'fail:\|error:' "$WORK/stderr" >"$WORK/said" || because "$(head -n 1 "$WORK/said")" || return
  grep -q 'successful run completed' "$WORK/stderr" || because "no successful run" || return
  FIGURE=$(awk -v name="$2" '{for (i = 1; i < 6; i++) if ($i == name && $(i + 1) ~ /^[0-9]+$/) {print $(i + 5); exit}}' "$WORK/stderr")
  [ -n "$FIGURE" ] || because "no figure in its output"
}

for stressor in pthread mutex sem futex pipe; do
  run_case $stressor ops/s verifies $stressor
done

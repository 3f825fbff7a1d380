#!/usr/bin/env bash
# hackbench.sh - hackbench -T: ten groups of 40 threads that write to each other.
# set: heavy
# packages: rt-tests
# timeout: 300
. "$(dirname "$0")/lib.sh"
need hackbench

messages() { # MODE [OPTIONS]
  local mode=$1
  shift
  $mode hackbench -T -g 10 "$@" >"$WORK/out" || because "status $?" || return
  FIGURE=$(awk '/^Time:/ {printf "%.0f", $2 * 1000}' "$WORK/out")
  [ -n "$FIGURE" ] || because "no time in its output"
}

run_case pipes ms messages -p -l 500
run_case sockets ms messages -l 200

#!/usr/bin/env bash
# sort.sh - GNU sort with eight threads, in memory and with merges from files.
# set: light
# packages: coreutils
# timeout: 300
. "$(dirname "$0")/lib.sh"

text 12000000 >"$WORK/lines"
sort --parallel=1 "$WORK/lines" >"$WORK/sorted"
sort --parallel=1 -n -r "$WORK/lines" >"$WORK/numeric"

sorts() { # MODE RIGHT [OPTIONS]
  local mode=$1 right=$2
  shift 2
  $mode sort --parallel=8 "$@" -T "$WORK" -o "$WORK/out" "$WORK/lines" || because "status $?" || return
  cmp -s "$WORK/out" "$WORK/$right" || because "wrong order"
}

run_case memory ms sorts sorted -S 200M
run_case files ms sorts numeric -n -r -S 4M

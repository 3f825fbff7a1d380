#!/usr/bin/env bash
# guile.sh - Guile: the Boehm collector stops all threads by signals, at any point.
# set: heavy
# packages: guile-3.0
# timeout: 300
. "$(dirname "$0")/lib.sh"
need guile
export GUILE_AUTO_COMPILE=0

threads() {
  $1 guile --no-auto-compile "$APPS/src/threads.scm" >"$WORK/out" || because "$(tail -n 1 "$WORK/stderr")" || return
  [ "$(cat "$WORK/out")" = right ] || because "did not say right"
}

run_case threads ms threads

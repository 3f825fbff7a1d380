#!/usr/bin/env bash
# ruby.sh - Ruby's threads: it reads stack bounds, interrupts by signals, forks with threads.
# set: heavy
# packages: ruby
# timeout: 300
. "$(dirname "$0")/lib.sh"
need ruby

threads() {
  $1 ruby "$APPS/src/threads.rb" >"$WORK/out" || because "$(grep -m1 . "$WORK/stderr")" || return
  [ "$(cat "$WORK/out")" = right ] || because "did not say right"
}

run_case threads ms threads

#!/usr/bin/env bash
# ripgrep.sh - rg (Rust: raw futexes through syscall()) over a tree, with eight threads.
# set: light
# packages: ripgrep
# timeout: 200
. "$(dirname "$0")/lib.sh"
need rg

mkdir "$WORK/tree"
text 6000000 | split -b 20000 -a 4 - "$WORK/tree/part"
cd "$WORK" || exit 1
rg -j1 -c '[a-c]{2}[x-z]' tree | sort >counts

counts() {
  $1 rg -j8 -c '[a-c]{2}[x-z]' tree >out || because "status $?" || return
  sort out | cmp -s - counts || because "other counts than with one thread"
}

nothing() { # no match is status 1, and ends as well
  $1 rg -j8 -q 'no such words' tree
  [ $? = 1 ] || because "no match, but not status 1"
}

run_case counts ms counts
run_case no_match ms nothing

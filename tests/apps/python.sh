#!/usr/bin/env bash
# python.sh - python3: threads and their primitives, asyncio, child processes, an HTTP server.
# set: light
# packages: python3
# timeout: 400
. "$(dirname "$0")/lib.sh"
need python3

says_right() { # MODE SCRIPT [ARGS]
  local mode=$1 script=$2
  shift 2
  $mode python3 "$APPS/src/$script" "$@" >"$WORK/out" || because "$(tail -n 1 "$WORK/stderr")" || return
  [ "$(cat "$WORK/out")" = right ] || because "did not say right" || return
  ! [ -s "$WORK/stderr" ] || because "stderr: $(tail -n 1 "$WORK/stderr")"
}

run_case threads ms says_right threads.py
run_case asyncio ms says_right aio.py
run_case children ms says_right children.py
run_case http_server ms says_right httpd.py self

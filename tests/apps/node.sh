#!/usr/bin/env bash
# node.sh - node: worker_threads, and libuv's pool with 64 pbkdf2 jobs, files, zlib, name lookups.
# set: heavy
# packages: nodejs
# timeout: 300
. "$(dirname "$0")/lib.sh"
need node
text 300000 >"$WORK/file"

workers() { # MODE POOL
  UV_THREADPOOL_SIZE=$2 $1 node "$APPS/src/workers.js" "$WORK/file" >"$WORK/out" ||
    because "$(grep -m1 Error "$WORK/stderr")" || return
  FIGURE=$(awk '$1 == "right" {print $2}' "$WORK/out")
  [ -n "$FIGURE" ] || because "did not say right"
}

run_case pool_4 keys/s workers 4
run_case pool_16 keys/s workers 16

#!/usr/bin/env bash
# redis.sh - redis-server, plain and with I/O threads: known values, a load, a forked save.
# set: light
# packages: redis-server redis-tools
# timeout: 400
. "$(dirname "$0")/lib.sh"
need redis-server redis-cli redis-benchmark

socket=$WORK/s
cli() { redis-cli -s "$socket" "$@"; }
for i in {1..1000}; do echo "SET v:$i $((i * i))-$i"; done >"$WORK/set"
for i in {1..1000}; do echo "GET v:$i"; done >"$WORK/get"
for i in {1..1000}; do echo "$((i * i))-$i"; done >"$WORK/values"

saved() { cli info persistence | grep -q 'aof_rewrite_in_progress:0'; }

serves() { # MODE IO_THREADS
  rm -rf "$WORK/data" && mkdir "$WORK/data"
  server "$1" redis-server --port 0 --unixsocket "$socket" --dir "$WORK/data" --save '' --appendonly yes \
    --io-threads "$2" --io-threads-do-reads yes
  await "answers to PING" cli ping || return
  [ "$(cli <"$WORK/set" | grep -c '^OK')" = 1000 ] || because "SET failed" || return
  native redis-benchmark -s "$socket" -t set,get,incr,lpush -n "$requests" -c 20 -r 1000 -d 64 --csv >"$WORK/bench" ||
    because "redis-benchmark: status $?" || return
  cli <"$WORK/get" | cmp -s - "$WORK/values" || because "wrong values after the load" || return
  [ "$(cli get counter:__rand_int__)$(cli llen mylist)" = "$requests" ] || because "LPUSH lost or doubled" || return
  cli bgrewriteaof >/dev/null
  await "the save has ended" saved || return
  cli info persistence | grep -q 'aof_last_bgrewrite_status:ok' || because "the forked save failed" || return
  FIGURE=$(awk -F'","|"' '$2 == "GET" {print $3}' "$WORK/bench")
}

requests=5000
run_case plain req/s serves 1
run_case io_threads_2 req/s serves 2

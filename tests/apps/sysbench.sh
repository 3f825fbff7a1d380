#!/usr/bin/env bash
# sysbench.sh - sysbench's own tests with 64 threads: cpu, threads (yields and locks), mutex, memory.
# set: heavy
# packages: sysbench
# timeout: 600
. "$(dirname "$0")/lib.sh"
need sysbench

events_per_second() { # MODE TEST [OPTIONS]
  local mode=$1 test=$2
  shift 2
  $mode sysbench "$test" --threads=64 --time="$SECS" "$@" run >"$WORK/out" || because "status $?" || return
  # Every thread took part, and the sum over all of them is the total.
  grep -q '^Threads started!' "$WORK/out" || because "threads not started" || return
  FIGURE=$(awk '/total number of events:/ {n = $NF} /total time:/ {t = $NF + 0} END {if (t) printf "%.1f", n / t}' "$WORK/out")
  awk -v f="$FIGURE" 'BEGIN {exit !(f > 0)}' || because "no events"
}

mutex() {
  $1 sysbench mutex --threads=64 --mutex-num=64 --mutex-locks=50000 --mutex-loops=100 run >"$WORK/out" || because "status $?" || return
  [ "$(awk '/total number of events:/ {print $NF}' "$WORK/out")" = 64 ] || because "not one event per thread" || return
  FIGURE=$(awk '/total time:/ {printf "%.0f", ($NF + 0) * 1000}' "$WORK/out")
}

run_case cpu events/s events_per_second cpu --cpu-max-prime=10000
run_case threads events/s events_per_second threads --thread-yields=100 --thread-locks=4
run_case mutex ms mutex
run_case memory events/s events_per_second memory --memory-block-size=4K --memory-total-size=100T

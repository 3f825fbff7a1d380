#!/usr/bin/env bash
# iperf3.sh - an iperf3 server under test, four streams from a native client.
# set: heavy
# packages: iperf3
# timeout: 300
. "$(dirname "$0")/lib.sh"
need iperf3

streams() {
  local port
  port=$(free_port)
  server "$1" iperf3 -s -1 -B 127.0.0.1 -p "$port" # -1: one test, then it ends by itself
  await "iperf3 listens" grep -qi " 0100007F:$(printf %04X "$port") .* 0A " /proc/net/tcp || return
  native iperf3 -c 127.0.0.1 -p "$port" -P 4 -t "$SECS" -f m >"$WORK/out" || because "client: $(tail -n 1 "$WORK/stderr")" || return
  FIGURE=$(awk '/^\[SUM\].*receiver/ {print $6}' "$WORK/out")
  [ -n "$FIGURE" ] || because "no sum in the client's output" || return
  ended || because "the server did not end after its test"
}

ended() {
  local end=$((SECONDS + 20))
  while running "$server_pid" && [ $SECONDS -lt $end ]; do sleep 0.05; done
  ! running "$server_pid" || return
  wait "$server_pid" || return
  server_pid=''
}

run_case four_streams Mbit/s streams

#!/usr/bin/env bash
# memcached.sh - memcached -t 4 under a client that checks each answer; ends well on SIGTERM.
# set: heavy
# packages: memcached gcc libc6-dev
# timeout: 600
. "$(dirname "$0")/lib.sh"
need memcached gcc
compile cache_load

serves() { # MODE CONNECTIONS
  local port as=()
  port=$(free_port)
  [ "$(id -u)" != 0 ] || as=(-u root)
  server "$1" memcached "${as[@]}" -l 127.0.0.1 -p "$port" -U 0 -t 4 -c 4096 -m 256
  await "memcached listens" answers "$port" || return
  native "$WORK/cache_load" "$port" "$2" "$SECS" >"$WORK/out" || because "$(head -c 300 "$WORK/stderr")" || return
  FIGURE=$(awk '/^right/ {print $4}' "$WORK/out")
}

# SIGTERM with requests under way: all workers block it, main waits in its event loop.
stops_under_load() {
  local port client
  port=$(free_port)
  local as=()
  [ "$(id -u)" != 0 ] || as=(-u root)
  server "$1" memcached "${as[@]}" -l 127.0.0.1 -p "$port" -U 0 -t 4 -c 4096 -m 256
  await "memcached listens" answers "$port" || return
  helper "$WORK/cache_load" "$port" 64 60
  client=${helpers[0]}
  await "the client is connected" test -e "/proc/$client/fd/40" || return
  stop_server
}

run_case c64 ops/s serves 64
run_case c1000 ops/s serves 1000
run_case stops_under_load ms stops_under_load

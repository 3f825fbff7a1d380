#!/usr/bin/env bash
# curl.sh - curl -Z: parallel transfers, each name resolved in a thread, against a python server.
# set: light
# packages: curl python3
# timeout: 200
. "$(dirname "$0")/lib.sh"
need curl python3

count=200
mkdir "$WORK/www"
for i in {0..15}; do text $((20000 + i * 3000)) $((i + 1)) >"$WORK/www/f$i"; done
port=$(free_port)
for ((i = 0; i < count; i++)); do
  printf 'url = http://localhost:%d/f%d?%d\noutput = %s/got/%d\n' "$port" $((i % 16)) "$i" "$WORK" "$i"
done >"$WORK/list"

parallel() {
  local i
  rm -rf "$WORK/got" && mkdir "$WORK/got"
  helper python3 -m http.server -b 127.0.0.1 -d "$WORK/www" "$port"
  await "the python server listens" answers "$port" || return
  $1 curl -4 -sS --fail-early -Z --parallel-max 30 -K "$WORK/list" || because "$(tail -n 1 "$WORK/stderr")" || return
  for ((i = 0; i < count; i++)); do
    cmp -s "$WORK/got/$i" "$WORK/www/f$((i % 16))" || because "transfer $i differs" || return
  done
}

unknown_host() { # the resolver's thread must report, not hang
  $1 curl -s -o /dev/null http://no-such-host.invalid/
  [ $? = 6 ] || because "an unknown host did not give status 6"
}

run_case parallel ms parallel
run_case unknown_host ms unknown_host

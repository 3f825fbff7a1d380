#!/usr/bin/env bash
# java.sh - OpenJDK: a java.util.concurrent program with two collectors, and a server with a
# thread per connection.
# set: heavy
# packages: default-jdk-headless wrk curl
# timeout: 900
. "$(dirname "$0")/lib.sh"
need java javac wrk curl
javac -d "$WORK" "$APPS/src/Concurrent.java" "$APPS/src/Server.java" || exit 1
text 1024 >"$WORK/body"

concurrent() { # MODE COLLECTOR
  $1 java -Xmx256m -Xss512k "-XX:+Use$2GC" -XX:ErrorFile="$WORK/hs" -cp "$WORK" Concurrent >"$WORK/out" ||
    because "$(head -n 1 "$WORK/stderr")" || return
  [ "$(cat "$WORK/out")" = right ] || because "did not say right"
}

serves() { # MODE CONNECTIONS
  local port
  port=$(free_port)
  server "$1" java -Xmx256m -XX:ErrorFile="$WORK/hs" -cp "$WORK" Server "$port" "$WORK/body"
  await "the server listens" answers "$port" || return
  load "http://127.0.0.1:$port/" "$WORK/body" "$2"
}

run_case concurrent_serial ms concurrent Serial
run_case concurrent_g1 ms concurrent G1
run_case server_c64 req/s serves 64
run_case server_c500 req/s serves 500

#!/usr/bin/env bash
# python-http.sh - python3's ThreadingHTTPServer, a thread per connection, under wrk.
# set: heavy
# packages: python3 wrk curl
# timeout: 300
. "$(dirname "$0")/lib.sh"
need python3 wrk curl
text 1024 >"$WORK/body"

serves() { # MODE CONNECTIONS
  local port
  port=$(free_port)
  server "$1" python3 "$APPS/src/httpd.py" "$port" "$WORK/body"
  await "the server listens" answers "$port" || return
  load "http://127.0.0.1:$port/" "$WORK/body" "$2"
}

run_case c64 req/s serves 64
run_case c300 req/s serves 300

#!/usr/bin/env bash
# haproxy.sh - haproxy with four threads before an nginx; it handles SIGURG itself and has timers
# on CPU clocks per thread. Ends by a soft stop (SIGUSR1).
# set: heavy
# packages: haproxy nginx wrk curl
# timeout: 600
. "$(dirname "$0")/lib.sh"
need haproxy nginx wrk curl
open_to_servers
mkdir "$WORK/www" && text 1024 >"$WORK/www/small"

serves() { # MODE CONNECTIONS
  local behind front user=''
  behind=$(free_port)
  [ "$(id -u)" != 0 ] || user='user root;'
  cat >"$WORK/nginx.conf" <<CONF
$user
daemon off; master_process off; pid $WORK/pid; error_log $WORK/error.log;
events { worker_connections 2048; }
http {
  access_log off; keepalive_requests 100000000;
  client_body_temp_path $WORK/t1; proxy_temp_path $WORK/t2; fastcgi_temp_path $WORK/t3;
  uwsgi_temp_path $WORK/t4; scgi_temp_path $WORK/t5;
  server { listen 127.0.0.1:$behind backlog=4096; root $WORK/www; }
}
CONF
  helper nginx -p "$WORK" -c "$WORK/nginx.conf" -e "$WORK/error.log"
  await "nginx listens" answers "$behind" || return
  front=$(free_port)
  cat >"$WORK/conf" <<CONF
global
  nbthread 4
  maxconn 4000
defaults
  mode http
  timeout connect 10s
  timeout client 30s
  timeout server 30s
frontend f
  bind 127.0.0.1:$front
  default_backend b
backend b
  http-reuse always
  server s 127.0.0.1:$behind maxconn 512
CONF
  server "$1" haproxy -db -f "$WORK/conf"
  await "haproxy listens" answers "$front" || return
  stop_signal=USR1
  load "http://127.0.0.1:$front/small" "$WORK/www/small" "$2"
}

run_case c64 req/s serves 64
run_case c200 req/s serves 200

#!/usr/bin/env bash
# nginx.sh - nginx: event loops, and file reads handed to its pool of threads.
# set: heavy
# packages: nginx wrk curl
# timeout: 600
. "$(dirname "$0")/lib.sh"
need nginx wrk curl
open_to_servers
mkdir "$WORK/www" && text 1024 >"$WORK/www/small" && text 262144 >"$WORK/www/big"

serves() { # MODE FILES FILE: FILES says how file data is sent
  local port user='' how='sendfile on;'
  port=$(free_port)
  [ "$(id -u)" != 0 ] || user='user root;'
  [ "$2" = loop ] || how='sendfile off; aio threads=default; output_buffers 1 64k;'
  cat >"$WORK/conf" <<CONF
$user
worker_processes 2;
daemon off;
pid $WORK/pid;
error_log $WORK/error.log;
thread_pool default threads=8 max_queue=65536;
events { worker_connections 2048; }
http {
  access_log off; keepalive_requests 100000000; $how
  client_body_temp_path $WORK/t1; proxy_temp_path $WORK/t2; fastcgi_temp_path $WORK/t3;
  uwsgi_temp_path $WORK/t4; scgi_temp_path $WORK/t5;
  server { listen 127.0.0.1:$port backlog=4096; root $WORK/www; }
}
CONF
  server "$1" nginx -p "$WORK" -c "$WORK/conf" -e "$WORK/error.log"
  await "nginx listens" answers "$port" || return
  load "http://127.0.0.1:$port/$3" "$WORK/www/$3" 64
}

run_case loop req/s serves loop small
run_case thread_pool req/s serves pool big

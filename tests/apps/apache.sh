#!/usr/bin/env bash
# apache.sh - apache2 with mpm_worker and mpm_event (it forks, then starts threads) under wrk.
# set: heavy
# packages: apache2 wrk curl
# timeout: 600
. "$(dirname "$0")/lib.sh"
need apache2 wrk curl
open_to_servers
mkdir "$WORK/www" && text 1024 >"$WORK/www/small" && text 262144 >"$WORK/www/big"

configure() { # MPM PORT
  local user='' threads=128
  # event closes kept-alive connections when all workers of a process are busy
  [ "$1" != event ] || threads=256
  [ "$(id -u)" != 0 ] || user=$'User www-data\nGroup www-data'
  cat >"$WORK/conf" <<CONF
ServerRoot $WORK
ServerName localhost
Listen 127.0.0.1:$2
PidFile $WORK/apache.pid
DefaultRuntimeDir $WORK
Mutex file:$WORK default
LoadModule mpm_$1_module /usr/lib/apache2/modules/mod_mpm_$1.so
LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so
$user
DocumentRoot $WORK/www
ErrorLog $WORK/error.log
StartServers 2
ServerLimit 2
ThreadsPerChild $threads
ThreadLimit $threads
MaxRequestWorkers $((2 * threads))
MinSpareThreads 32
MaxSpareThreads $((2 * threads))
KeepAlive On
MaxKeepAliveRequests 0
<Directory $WORK/www>
Require all granted
</Directory>
CONF
}

serves() { # MODE MPM FILE CONNECTIONS
  local port
  port=$(free_port)
  : >"$WORK/error.log"
  configure "$2" "$port"
  server "$1" apache2 -d "$WORK" -f "$WORK/conf" -DFOREGROUND
  await "apache2 listens" answers "$port" || return
  load "http://127.0.0.1:$port/$3" "$WORK/www/$3" "$4" || return
  ! grep -i 'segfault\|exit signal\|emerg' "$WORK/error.log" >"$WORK/said" || because "$(head -n 1 "$WORK/said")"
}

run_case worker_c64 req/s serves worker small 64
run_case worker_c200 req/s serves worker small 200
run_case worker_big req/s serves worker big 64
run_case event_c64 req/s serves event small 64
run_case event_c200 req/s serves event small 200

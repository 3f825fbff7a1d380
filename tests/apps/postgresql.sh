#!/usr/bin/env bash
# postgresql.sh - postgresql: a process per connection, shared memory, semaphores between
# processes. It has no threads to move; it must simply work as natively, and as fast.
# set: heavy
# packages: postgresql util-linux
# timeout: 600
. "$(dirname "$0")/lib.sh"
bin=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -n 1)
[ -n "$bin" ] || skip "no postgresql (scripts/deps installs it)"
need setpriv
open_to_servers

as=() data=$WORK/data # the server refuses to run as root
mkdir "$data"
if [ "$(id -u)" = 0 ]; then
  as=(setpriv --reuid=postgres --regid=postgres --clear-groups)
  chown postgres "$data"
fi
cd / || exit 1
"${as[@]}" "$bin/initdb" -D "$data" -U postgres -A trust >"$WORK/initdb.log" 2>&1 || { tail -n 3 "$WORK/initdb.log"; exit 1; }

balanced() { # what pgbench moves between accounts, tellers and branches must agree
  local got
  got=$("$bin/psql" -h "$data" -U postgres -Atc "select (select sum(abalance) from pgbench_accounts) =
    (select sum(bbalance) from pgbench_branches) and (select sum(delta) from pgbench_history) =
    (select sum(tbalance) from pgbench_tellers)" postgres)
  [ "$got" = t ] || because "balances differ: $got"
}

serves() { # MODE: also the client, pgbench, which has threads
  local port=5432 mode=$1
  server "$mode" "${as[@]}" "$bin/postgres" -D "$data" -k "$data" -c listen_addresses= -c fsync=off -c max_connections=100
  stop_signal=INT # fast shutdown
  await "postgres answers" "$bin/psql" -h "$data" -p $port -U postgres -c 'select 1' postgres || return
  native "$bin/pgbench" -h "$data" -U postgres -i -s 2 -q postgres >"$WORK/out" 2>&1 || because "pgbench -i failed" || return
  $mode "$bin/pgbench" -h "$data" -U postgres -c 16 -j 4 -T "$SECS" postgres >"$WORK/out" || because "pgbench: status $?" || return
  balanced || return
  FIGURE=$(awk '/^tps/ {printf "%.0f", $3}' "$WORK/out")
}

run_case pgbench tx/s serves

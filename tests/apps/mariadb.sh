#!/usr/bin/env bash
# mariadb.sh - mariadbd, a thread per connection, under sysbench over its socket; tables checked
# before and after. Cases: point_select_N and read_write_N for N of 8, 64, 128, 1000 connections.
# set: heavy
# packages: mariadb-server mariadb-client sysbench
# timeout: 1200
. "$(dirname "$0")/lib.sh"
need mariadbd mariadb-install-db sysbench mariadb

socket=$WORK/sock data=$WORK/data
as=()
[ "$(id -u)" != 0 ] || as=(--user=root)
sql() { mariadb --no-defaults -S "$socket" -u root -N "$@"; }
bench=(sysbench --db-driver=mysql --mysql-socket="$socket" --mysql-user=root --mysql-db=sb --tables=4 --table-size=10000)

start() { # MODE
  ulimit -n "$(ulimit -H -n)"
  server "$1" mariadbd --no-defaults "${as[@]}" --datadir="$data" --socket="$socket" --skip-networking \
    --pid-file="$WORK/pid" --max-connections=1200 --max-prepared-stmt-count=200000 --innodb-buffer-pool-size=256M \
    --innodb-flush-log-at-trx-commit=2 --innodb-log-file-size=256M --skip-log-bin --table-open-cache=4000 \
    --thread-handling=one-thread-per-connection --performance-schema=OFF
  await "mariadbd answers" sql -e 'select 1'
}

prepare() {
  echo "# making the tables"
  mariadb-install-db --no-defaults "${as[@]}" --datadir="$data" --auth-root-authentication-method=normal \
    --skip-test-db >"$WORK/install.log" 2>&1 || { tail -n 5 "$WORK/install.log"; return 1; }
  start native && sql -e 'create database sb' && "${bench[@]}" oltp_read_write prepare >"$WORK/prepare.log" && stop_server
}

tables_right() { # row counts, secondary index against primary, CHECK TABLE
  local i got
  for i in 1 2 3 4; do
    got=$(sql sb -e "select count(*) from sbtest$i; select count(*) from sbtest$i force index(k_$i) where k > -1;
      check table sbtest$i" | tr '\n\t' '  ')
    [ "$got" = "10000 10000 sb.sbtest$i check status OK " ] || because "table $i: $got" || return
  done
}

sums() { sql sb -e 'checksum table sbtest1, sbtest2, sbtest3, sbtest4'; }

serves() { # MODE TEST CONNECTIONS
  local before
  start "$1" || return
  tables_right || return
  before=$(sums)
  # Deadlocks, lock timeouts and rows changed meanwhile are transactions' own business.
  native "${bench[@]}" "oltp_$2" --threads="$3" --time="$SECS" --mysql-ignore-errors=1213,1020,1205 run >"$WORK/out" ||
    because "sysbench: $(grep -m1 FATAL "$WORK/out" "$WORK/stderr")" || return
  grep -q 'reconnects: *0 ' "$WORK/out" || because "connections were lost" || return
  if [ "$2" = point_select ]; then
    grep -q 'ignored errors: *0 ' "$WORK/out" || because "errors while reading" || return
    [ "$(sums)" = "$before" ] || because "reading changed the tables" || return
  fi
  tables_right || return
  FIGURE=$(sed -n 's/^ *queries: .*(\([0-9.]*\) per sec.*/\1/p' "$WORK/out")
}

prepare || because "cannot make the tables" || { echo "not ok $app: $REASON"; exit 1; }
for test in point_select read_write; do
  for connections in 8 64 128 1000; do
    run_case ${test}_$connections queries/s serves $test $connections
  done
done

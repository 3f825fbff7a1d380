#!/usr/bin/env bash
# sqlite.sh - sqlite3 under Python's threads, and its shell with worker threads for sorting.
# set: light
# packages: python3 sqlite3
# timeout: 300
. "$(dirname "$0")/lib.sh"
need python3 sqlite3

threads() {
  rm -f "$WORK"/db*
  $1 python3 "$APPS/src/sqlite.py" "$WORK/db" >"$WORK/out" || because "$(tail -n 1 "$WORK/stderr")" || return
  [ "$(cat "$WORK/out")" = right ] || because "did not say right"
}

# An index over unordered values: with `pragma threads` the sorter runs threads of its own
# once it has more than a cache full.
shell() {
  rm -f "$WORK"/cli.db*
  $1 sqlite3 "$WORK/cli.db" >"$WORK/out" <<'SQL' || because "$(tail -n 1 "$WORK/stderr")" || return
pragma journal_mode=off; pragma synchronous=off; pragma cache_size=-2000; pragma threads=4;
create table t as with recursive c(i) as (select 1 union all select i+1 from c where i<300000)
  select i, (i*7919)%300007 as k, hex(i*104729) as s from c;
create index by_s on t(s, k);
select count(*), sum(k), min(s), max(s) from t indexed by by_s;
pragma integrity_check;
SQL
  [ "$1" = weft ] || cp "$WORK/out" "$WORK/native_rows"
  [ "$(tail -n 1 "$WORK/out")" = ok ] || because "integrity: $(tail -n 1 "$WORK/out")" || return
  cmp -s "$WORK/out" "$WORK/native_rows" || because "other rows than natively"
}

run_case threads ms threads
run_case shell ms shell

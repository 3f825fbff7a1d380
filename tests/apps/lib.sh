# lib.sh - what every case of tests/apps shares: one real program, run natively and on weft.
# shellcheck shell=bash
# set: none (sourced by the others, never run)
#
# A case is a function that gets a mode, `native` or `weft`, runs the program with that word
# in front (`$1 pigz -c ...`), checks the answer and returns 0, or 1 with REASON set.
# Invariant: a weft run that is not on weft counts as failed: no library, one that cannot
#            be loaded, or a line `weft: ...` on stderr (native fall-back, wrong knob).
# Env:       B=build directory, WEFT_PROCS, ROUNDS (1), NATIVE_ROUNDS (ROUNDS), SECS (2: load
#            per measured server run), LIMIT (60: seconds until a run counts as hung),
#            CASES (regex of case names). Ends with `N passed, N failed`.
set -u
APPS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=$(cd "$APPS/../.." && pwd)
B=${B:-$ROOT/build}
LIBWEFT=$(realpath -m "${LIBWEFT:-$B/libweft.so}")
ROUNDS=${ROUNDS:-1} NATIVE_ROUNDS=${NATIVE_ROUNDS:-${ROUNDS:-1}} SECS=${SECS:-2} LIMIT=${LIMIT:-60}
export LC_ALL=C.UTF-8
unset LD_PRELOAD
PATH=/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin # Debian's own, no wrappers

app=$(basename "$0" .sh)
passed=0 failed=0
REASON='' FIGURE='' ELAPSED_MS=0
server_pid='' server_mode='' stop_signal=TERM helpers=()

# ---- end of a script, however it comes ---------------------------------------------

WORK=$(mktemp -d "${TMPDIR:-/tmp}/weft-apps.XXXXXX") || exit 1
export TMPDIR=$WORK
finish() {
  local status=$?
  [ $BASHPID = $$ ] || exit $status
  trap - EXIT
  drop_processes
  cd / && rm -rf "$WORK"
  [ $status = 77 ] && [ $((passed + failed)) = 0 ] && exit 77
  if [ $status != 0 ]; then
    echo "not ok $app: the script ended with status $status"
    failed=$((failed + 1))
  fi
  echo "$passed passed, $failed failed"
  [ $failed = 0 ] && [ $passed -gt 0 ]
  exit
}
trap finish EXIT
# A child between fork and exec still has these traps: it must not clean up in our name.
trap '[ $BASHPID = $$ ] || kill -KILL $BASHPID; exit 130' INT TERM

drop_processes() {
  local pid
  for pid in $server_pid ${helpers[@]+"${helpers[@]}"}; do
    kill -KILL $(descendants "$pid") 2>/dev/null
  done
  wait 2>/dev/null
  server_pid='' helpers=()
}

skip() { # this machine cannot run it: say why
  echo "$app: $*"
  exit 77
}

need() { # need COMMAND...
  local command
  for command; do type -P "$command" >/dev/null || skip "no $command (scripts/deps installs it)"; done
}

because() { # COMMAND || because "what is wrong" || return
  [ -n "$REASON" ] || REASON=$*
  return 1
}

# ---- processes ---------------------------------------------------------------------

descendants() { # PID and all below it, parents first
  local pid stat rest fields known=" $1 " grew=1
  echo "$1"
  while [ $grew = 1 ]; do
    grew=0
    for stat in /proc/[0-9]*/stat; do
      { read -r rest <"$stat"; } 2>/dev/null || continue
      read -ra fields <<<"${rest##*) }" # the name in brackets may hold anything
      stat=${stat%/stat}
      pid=${stat#/proc/}
      if [[ $known == *" ${fields[1]} "* && $known != *" $pid "* ]]; then
        known+="$pid "
        grew=1
        echo "$pid"
      fi
    done
  done
}

backtraces() { # PID: the stacks of all its threads and its children's, into a file; the start here
  local pid gs=() log=$B/hang/$app-$1.txt
  mkdir -p "$B/hang"
  [ ! -e "$ROOT/scripts/weft-gdb.py" ] || gs=(-ex "source $ROOT/scripts/weft-gdb.py" -ex 'info gs')
  for pid in $(descendants "$1" | head -n 6); do
    [ -r "/proc/$pid/cmdline" ] || continue
    echo "process $pid: $(tr '\0' ' ' <"/proc/$pid/cmdline" | cut -c1-200)"
    grep . "/proc/$pid"/task/*/syscall /dev/null 2>/dev/null
    type -P gdb >/dev/null || { echo "no gdb, no stacks"; continue; }
    timeout -k 5 60 gdb -p "$pid" -batch -nx -ex 'set pagination off' -ex 'set debuginfod enabled off' \
      "${gs[@]}" -ex 'thread apply all bt 24' 2>&1 </dev/null |
      grep -vE '^\[(New LWP|Thread debug)|^warning:|^Download|^Using host'
  done >"$log" 2>&1
  head -n 80 "$log" | sed 's/^/#   /'
  echo "# all of it: $log ($(wc -l <"$log") lines)"
}

# limited COMMAND...: the command's status, its stderr in $WORK/stderr, its time in
# ELAPSED_MS. After LIMIT seconds: stacks, KILL, status 124.
limited() {
  local pid timer ended='' status start=${EPOCHREALTIME/./}
  "$@" <&0 2>"$WORK/stderr" &
  pid=$!
  sleep "$LIMIT" </dev/null >/dev/null 2>&1 &
  timer=$!
  wait -n -p ended $pid $timer 2>/dev/null
  status=$?
  ELAPSED_MS=$(((${EPOCHREALTIME/./} - start) / 1000))
  if [ "$ended" = "$timer" ]; then
    REASON="no end after $LIMIT s: $*"
    backtraces $pid >&2
    kill -KILL $(descendants $pid) 2>/dev/null
    status=124
  else
    kill -KILL $timer 2>/dev/null
  fi
  wait $pid $timer 2>/dev/null
  [ $status -le 128 ] || because "signal $((status - 128)): $*"
  return $status
}

native() { limited "$@"; }

weft() {
  limited env "LD_PRELOAD=$LIBWEFT" "$@"
  local status=$?
  if grep -a -m1 '^weft: \|cannot be preloaded' "$WORK/stderr" >"$WORK/said"; then
    because "weft said: $(cat "$WORK/said")"
    [ $status != 0 ] || status=1
  fi
  return $status
}

server() { # MODE COMMAND...: the one server under test; run_case stops it and looks at its end
  local mode=$1
  shift
  stop_signal=TERM server_mode=$mode
  { [ "$mode" = native ] || export LD_PRELOAD=$LIBWEFT; exec "$@"; } >"$WORK/server.log" 2>&1 </dev/null &
  server_pid=$!
}

helper() { # COMMAND...: a server that is not under test
  "$@" >"$WORK/helper.log" 2>&1 </dev/null &
  helpers+=($!)
}

running() { # PID, and no zombie
  local rest
  { read -r rest <"/proc/$1/stat"; } 2>/dev/null && [[ ${rest##*) } != Z* ]]
}

free_port() { # a port nobody listens on, below the ephemeral ones
  local port
  for _ in {1..100}; do
    port=$((20000 + RANDOM % 12000))
    if ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then echo $port; return; fi
  done
}

answers() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# await WHAT COMMAND...: until the command succeeds; fails if the server dies or after LIMIT.
await() {
  local what=$1 end=$((SECONDS + LIMIT))
  shift
  until "$@" >/dev/null 2>&1; do
    if [ -n "$server_pid" ] && ! running "$server_pid"; then because "the server died before: $what"; return; fi
    if [ $SECONDS -ge $end ]; then because "not in $LIMIT s: $what"; return; fi
    sleep 0.05
  done
  [ "$server_mode" != weft ] || [ -z "$server_pid" ] ||
    grep -q "$LIBWEFT" "/proc/$server_pid/maps" || because "the server does not have weft loaded"
}

stop_server() { # it must end by itself, and well
  local status timer ended=''
  [ -n "$server_pid" ] || return 0
  running "$server_pid" || because "the server died: $(tail -n 2 "$WORK/server.log" | tr '\n' ' ')"
  kill -"$stop_signal" "$server_pid" 2>/dev/null
  sleep 30 </dev/null >/dev/null 2>&1 &
  timer=$!
  wait -n -p ended "$server_pid" $timer 2>/dev/null
  status=$?
  if [ "$ended" = $timer ]; then
    because "the server did not end in 30 s after SIG$stop_signal"
    backtraces "$server_pid" >&2
  else
    kill -KILL $timer 2>/dev/null
    wait $timer 2>/dev/null
    case $status in
      0 | 130 | 143) ;;
      *) because "the server ended with status $status: $(tail -n 2 "$WORK/server.log" | tr '\n' ' ')" ;;
    esac
  fi
  if [ "$server_mode" = weft ] && grep -a -m1 '^weft: \|cannot be preloaded' "$WORK/server.log" >"$WORK/said"; then
    because "weft said: $(cat "$WORK/said")"
  fi
  drop_processes
  [ -z "$REASON" ]
}

# ---- cases -------------------------------------------------------------------------

median() { sort -g | awk '{v[NR] = $1} END {if (NR) print v[int((NR + 1) / 2)]}'; }

one_run() { # MODE UNIT FUNCTION [ARGS]: FIGURE or REASON
  local mode=$1 unit=$2
  shift 2
  REASON='' FIGURE='' server_pid=''
  : >"$WORK/stderr"
  if ! "$1" "$mode" "${@:2}"; then
    because "wrong"
    if [ -s "$WORK/stderr" ]; then tail -n 8 "$WORK/stderr" | sed 's/^/#   /' >&2; fi
    if [ "$mode" = weft ] && [ -n "$server_pid" ] && running "$server_pid"; then backtraces "$server_pid" >&2; fi
  fi
  stop_server
  drop_processes
  if [ "$unit" = ms ] && [ -z "$FIGURE" ]; then FIGURE=$ELAPSED_MS; fi
  [ -z "$REASON" ]
}

# run_case NAME UNIT FUNCTION [ARGS]: natively and on weft in turn. UNIT is ms or s (less is
# better) or something per second; the ratio is weft's speed over native's.
run_case() {
  local name=$app/$1 unit=$2 mode round
  shift 2
  [[ $name =~ ${CASES:-.} ]] || return 0
  declare -A figures=([native]='' [weft]='') bad=([native]=0 [weft]=0) why=([native]='' [weft]='')
  for ((round = 1; round <= ROUNDS; round++)); do
    for mode in native weft; do
      [ $mode = weft ] || [ $round -le "$NATIVE_ROUNDS" ] || continue
      if one_run $mode "$unit" "$@"; then
        figures[$mode]+=$FIGURE$'\n'
      else
        bad[$mode]=$((bad[$mode] + 1))
        why[$mode]="round $round: $REASON"
      fi
    done
  done
  for mode in native weft; do
    if [ "${bad[$mode]}" = 0 ]; then
      passed=$((passed + 1))
      echo "ok $name ($mode)"
    else
      failed=$((failed + 1))
      echo "not ok $name ($mode): ${bad[$mode]} of $ROUNDS wrong, ${why[$mode]}"
    fi
  done
  compare "$name" "$unit" "$(median <<<"${figures[native]%$'\n'}")" "$(median <<<"${figures[weft]%$'\n'}")"
}

compare() { # NAME UNIT NATIVE WEFT: one line with the ratio
  awk -v name="$1" -v unit="$2" -v n="$3" -v w="$4" -v procs="${WEFT_PROCS:-default}" 'BEGIN {
    ratio = (n + 0 > 0 && w + 0 > 0) ? sprintf("%.2fx", unit ~ /\/s$/ ? w / n : n / w) : "-"
    printf "   %-34s native %10s  weft %10s %-9s ratio %s  procs %s\n", name, n == "" ? "-" : n, w == "" ? "-" : w, unit, ratio, procs}'
}

# ---- input and tools ---------------------------------------------------------------

text() { # BYTES [SEED]: lines of made-up words, always the same
  awk -v bytes="$1" -v x="${2:-1}" '
    function next_random() { x = (x * 16807) % 2147483647; return x }
    BEGIN {
      for (i = 0; i < 2000; i++) {
        word = ""
        for (k = 2 + next_random() % 8; k > 0; k--) word = word sprintf("%c", 97 + next_random() % 26)
        words[i] = word
      }
      while (bytes > 0) {
        line = next_random() " " words[next_random() % 2000] " " words[next_random() % 2000] " " words[next_random() % 2000]
        print line
        bytes -= length(line) + 1
      }
    }' | head -c "$1"
}

sum_of() { sha256sum "$@" | cut -d' ' -f1; }

compile() { # NAME [FLAGS]: src/NAME.c into $WORK/NAME
  local name=$1
  shift
  gcc -std=gnu11 -O2 -Wall -Wextra -pthread "$@" -o "$WORK/$name" "$APPS/src/$name.c" || exit 1
}

open_to_servers() { # servers that drop root must reach $WORK
  chmod 755 "$WORK"
  [ "$(id -u)" != 0 ] || [ -k "$(dirname "$WORK")" ] || chmod o+x "$(dirname "$WORK")"
}

# load URL FILE CONNECTIONS: wrk against the server under test: every body compared first,
# then SECS seconds for the figure, then once more.
load() {
  local url=$1 file=$2 connections=$3
  curl -s --max-time 10 "$url" | cmp -s - "$file" || because "wrong body at $url" || return
  EXPECT=$file native wrk -t1 -c"$connections" -d1s --timeout 10s -s "$APPS/src/body.lua" "$url" >"$WORK/wrk" ||
    because "wrk failed" || return
  grep -q '^bodies wrong 0, right [1-9]' "$WORK/wrk" || because "$(grep ^bodies "$WORK/wrk")" || return
  native wrk -t1 -c"$connections" -d"$SECS"s --timeout 10s --latency "$url" >"$WORK/wrk" || because "wrk failed" || return
  ! grep -E 'Socket errors|Non-2xx' "$WORK/wrk" >"$WORK/said" || because "wrk:$(cat "$WORK/said")" || return
  curl -s --max-time 10 "$url" | cmp -s - "$file" || because "wrong body after the load" || return
  FIGURE=$(awk '/^Requests\/sec/ {print $2}' "$WORK/wrk")
}

# ---- is there a weft to test? --------------------------------------------------------

if ! [ -s "$LIBWEFT" ]; then
  echo "not ok $app: no library $LIBWEFT"
  failed=1
  exit 0
fi
if said=$(LD_PRELOAD=$LIBWEFT /bin/true 2>&1) && [ -z "$said" ]; then :; else
  echo "not ok $app: $LIBWEFT cannot be preloaded: $said"
  failed=1
  exit 0
fi

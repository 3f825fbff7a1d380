#!/usr/bin/env bash
# knobs_env_test.sh - the library itself reads WEFT_*: when, how often it complains, what
# WEFT_ONLY and WEFT_SKIP leave alone. env: B=build directory.
# timeout: 60
set -u
B=$(realpath "${B:-build}")
dir=$(mktemp -d) || exit 1
chmod 755 "$dir"
trap 'rm -rf "$dir"' EXIT
passed=0 failed=0
unset LD_PRELOAD
for variable in ${!WEFT_*}; do unset "$variable"; done
export weft=$B/weft lib=$B/libweft.so
[ -e "$lib" ] || { echo "$lib is not built"; exit 1; }

# One thread asks for its tid: weft gives numbers above 2^22, where no kernel tid can be.
cat >"$dir/threads.c" <<'C'
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <unistd.h>
static void *body(void *weft) {
  *(int *)weft = gettid() > 1 << 22;
  return NULL;
}
int main(void) {
  pthread_t thread;
  int weft = 0;
  if (pthread_create(&thread, NULL, body, &weft) || pthread_join(thread, NULL)) return 1;
  puts(weft ? "weft" : "native");
}
C
echo 'int main(void) { return 0; }' >"$dir/single.c"
gcc -pthread -o "$dir/threads" "$dir/threads.c" && gcc -o "$dir/single" "$dir/single.c" || exit 1
printf '#!%s\n' "$dir/threads" >"$dir/script"
chmod +x "$dir/script"
cd "$dir" || exit 1

# expect NAME STDOUT STDERR COMMAND...: as in launcher_test.sh, status 0 wanted.
expect() {
  local name=$1 out=$2 err=$3 got_out got_err got
  shift 3
  got_out=$(timeout 20 "$@" 2>err </dev/null)
  got=$?
  got_err=$(cat err)
  if [ $got != 0 ] || [[ $got_out != $out ]] || [[ $got_err != $err ]] ||
    { [ -n "$err" ] && [ "$(wc -l <err)" != 1 ]; }; then
    failed=$((failed + 1))
    printf 'failed: %s\n  status %s\n  stdout: %s, wanted %s\n  stderr: %s\n  wanted: %s\n' \
      "$name" $got "$got_out" "$out" "$got_err" "$err"
  else
    passed=$((passed + 1))
  fi
}

expect "active by the launcher" weft '' "$weft" ./threads
expect "active by LD_PRELOAD" weft '' env LD_PRELOAD="$lib" ./threads
expect "every variable at its default" weft '' env WEFT_PROCS= WEFT_PREEMPT=10 WEFT_SPIN=20 \
  WEFT_NETPOLL=epoll WEFT_STATS=0 WEFT_DEBUG=wire=0 "$weft" ./threads
expect "bad value without the launcher" weft 'weft: WEFT_PROCS=abc *1..1024*' \
  env WEFT_PROCS=abc LD_PRELOAD="$lib" ./threads
expect "unknown name without the launcher" weft 'weft: WEFT_FOO *WEFT_PROCS*' \
  env WEFT_FOO=1 LD_PRELOAD="$lib" ./threads
expect "bad value with the launcher: one line in all" weft 'weft: WEFT_PROCS=abc *1..1024*' \
  env WEFT_PROCS=abc "$weft" ./threads
expect "a mistake made inside is seen inside" weft 'weft: WEFT_PROCS=0 *' \
  "$weft" sh -c 'WEFT_PROCS=0 exec ./threads'
expect "a program without threads says nothing" '' '' env WEFT_FOO=1 LD_PRELOAD="$lib" ./single
expect "only others" native '' env WEFT_ONLY=python3,xz "$weft" ./threads
expect "only this" weft '' env WEFT_ONLY=xz,threads "$weft" ./threads
expect "skip this" native '' env WEFT_SKIP=threads "$weft" ./threads
expect "skip others" weft '' env WEFT_SKIP=thread,xz "$weft" ./threads
expect "only and skip" native '' env WEFT_ONLY=threads WEFT_SKIP=threads "$weft" ./threads
expect "a script goes by its own name too" native '' env WEFT_SKIP=script "$weft" ./script
expect "a script goes by its interpreter's name too" native '' env WEFT_SKIP=threads "$weft" ./script

# Setuid programs read no variable of ours. As root only: the program must change uid.
if [ "$(id -u)" = 0 ]; then
  cp threads setuid && chown 65534 setuid && chmod 4755 setuid
  expect "a setuid program ignores all of it" native '' env WEFT_FOO=1 LD_PRELOAD="$lib" ./setuid
fi

echo "$passed passed, $failed failed"
[ $failed = 0 ]

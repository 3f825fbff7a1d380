#!/usr/bin/env bash
# watched_test.sh - a program under valgrind or a sanitizer, started by another program that
# runs on weft, says so in one line and runs on native threads.
#
# Was: valgrind's processor does not know what boot asks of libc and faulted; LeakSanitizer
# and ThreadSanitizer know no stack but those they saw made. env: B=build directory.
# timeout: 90
set -u
B=$(realpath "${B:-build}")
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
passed=0 failed=0
cat >"$dir/one.c" <<'C'
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
static void *make(void *arg) { return arg; }
int main(void) {
  pthread_t t;
  void *got, *sent = malloc(3);
  if (pthread_create(&t, NULL, make, sent) || pthread_join(t, &got) || got != sent) return 1;
  free(sent);
  puts("joined");
  return 0;
}
C

expect() { # expect NAME WHO COMMAND...
  local name=$1 who=$2 out status
  shift 2
  out=$("$@" 2>"$dir/err" </dev/null)
  status=$?
  if [ $status = 0 ] && [ "$out" = joined ] && [ "$(wc -l <"$dir/err")" = 1 ] &&
    [[ $(cat "$dir/err") == "weft: "*"$who"*": this program runs on native threads" ]]; then
    passed=$((passed + 1))
  else
    failed=$((failed + 1))
    printf 'failed: %s: status %s, %s\n' "$name" "$status" "$out"
    sed 's/^/  /' "$dir/err"
  fi
}

preloaded=(env LD_PRELOAD="$B/libweft.so")
for kind in thread:ThreadSanitizer leak:LeakSanitizer; do
  gcc -fsanitize=${kind%:*} -o "$dir/one-${kind%:*}" "$dir/one.c" -pthread || exit 1
  expect "${kind%:*}" "${kind#*:}" "${preloaded[@]}" "$dir/one-${kind%:*}"
done
gcc -o "$dir/one" "$dir/one.c" -pthread || exit 1
if command -v valgrind >/dev/null; then
  expect "valgrind" "valgrind" "${preloaded[@]}" valgrind -q "$dir/one"
fi
echo "$passed passed, $failed failed"
[ $failed = 0 ]

#!/usr/bin/env bash
# watched_test.sh - a program under valgrind or a sanitizer, started by another program that
# runs on weft, or one with Go's runtime in it, says so in one line and runs on native threads.
#
# Was: valgrind's processor does not know what boot asks of libc and faulted; LeakSanitizer
# and ThreadSanitizer know no stack but those they saw made; Go aborted at every other signal, "handler
# not on signal stack", its thread having left the M on which it had set that up. env: B=build directory.
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
# What Go's linker leaves, in a program and in a library that it uses.
cat >"$dir/note.s" <<'S'
  .section .note.go.buildid, "a", @note
  .align 4
  .long 4, 6, 4
  .asciz "Go\0"
  .asciz "id/id"
  .align 4
  .section .note.GNU-stack, "", @progbits
S
gcc -o "$dir/one-note" "$dir/one.c" "$dir/note.s" -pthread || exit 1
expect "Go's note" "Go's runtime" "${preloaded[@]}" "$dir/one-note"
gcc -shared -o "$dir/libnote.so" "$dir/note.s" || exit 1
gcc -o "$dir/one-lib" "$dir/one.c" -pthread -Wl,--no-as-needed "$dir/libnote.so" || exit 1
expect "a library with Go's note" "Go's runtime" "${preloaded[@]}" "$dir/one-lib"
if command -v go >/dev/null; then
  mkdir "$dir/go"
  printf 'module joined\n' >"$dir/go/go.mod"
  cat >"$dir/go/main.go" <<'GO'
package main

// #include <unistd.h>
import "C"
import (
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"
)

func main() {
	arrived := make(chan os.Signal, 1)
	signal.Notify(arrived, syscall.SIGUSR1)
	for round := 0; round < 50; round++ {
		var all sync.WaitGroup
		for i := 0; i < 8; i++ {
			all.Add(1)
			go func() { C.usleep(100); all.Done() }()
		}
		syscall.Kill(os.Getpid(), syscall.SIGUSR1)
		<-arrived
		all.Wait()
	}
	fmt.Println("joined")
}
GO
  (cd "$dir/go" && GOFLAGS=-mod=mod GOCACHE="$dir/cache" go build -o "$dir/one-go" . 2>"$dir/err") || cat "$dir/err"
  expect "Go" "Go's runtime" "${preloaded[@]}" "$dir/one-go"
fi
if command -v valgrind >/dev/null; then
  expect "valgrind" "valgrind" "${preloaded[@]}" valgrind -q "$dir/one"
fi
echo "$passed passed, $failed failed"
[ $failed = 0 ]

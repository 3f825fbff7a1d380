#!/usr/bin/env bash
# launcher_test.sh - what `weft` does with each kind of command, option and environment.
#
# The launcher is copied into a directory of its own beside a libweft.so that does
# nothing, so that only the launcher is under test. env: B=build directory.
# timeout: 60
set -u
B=${B:-build}
dir=$(mktemp -d) || exit 1
chmod 755 "$dir"
trap 'rm -rf "$dir"' EXIT
passed=0 failed=0
unset LD_PRELOAD
for variable in ${!WEFT_*}; do unset "$variable"; done

mkdir -p "$dir/bin" "$dir/path"
cp "$B/weft" "$dir/bin/weft" || exit 1
weft=$dir/bin/weft lib=$dir/bin/libweft.so
echo 'int weft_stub;' | gcc -shared -fPIC -o "$lib" -x c - || exit 1
echo 'int stub2;' | gcc -shared -fPIC -o "$dir/other.so" -x c - || exit 1
cat >"$dir/show.c" <<'C'
#include <stdio.h>
#include <stdlib.h>
int main(int argc, char **argv) {
  const char *preload = getenv("LD_PRELOAD");
  printf("[%s]", preload ? preload : "none");
  for (int i = 1; i < argc; i++) printf(" %s", argv[i]);
  printf("\n");
  return argc > 1 ? atoi(argv[1]) : 0;
}
C
for sanitizer in address thread leak undefined; do
  gcc -fsanitize=$sanitizer -o "$dir/show-$sanitizer" "$dir/show.c" || exit 1
done
printf '#!/bin/sh\nexec "$@"\n' >"$dir/path/valgrind" && chmod +x "$dir/path/valgrind" || exit 1
gcc -o "$dir/show" "$dir/show.c" && gcc -static -o "$dir/static" "$dir/show.c" &&
  gcc -static-pie -o "$dir/static-pie" "$dir/show.c" || exit 1

# expect NAME STATUS STDOUT STDERR COMMAND...: the texts are patterns of [[ == ]]; an
# empty STDERR means nothing at all, any other exactly one line.
expect() {
  local name=$1 status=$2 out=$3 err=$4 got_out got_err got
  shift 4
  got_out=$("$@" 2>"$dir/err" </dev/null)
  got=$?
  got_err=$(cat "$dir/err")
  if [ $got != "$status" ] || [[ $got_out != $out ]] || [[ $got_err != $err ]] ||
    { [ -n "$err" ] && [ "$(wc -l <"$dir/err")" != 1 ]; }; then
    failed=$((failed + 1))
    printf 'failed: %s\n  status %s, wanted %s\n  stdout: %s\n  wanted: %s\n  stderr: %s\n  wanted: %s\n' \
      "$name" $got "$status" "$got_out" "$out" "$got_err" "$err"
  else
    passed=$((passed + 1))
  fi
}
native='*: running natively'

# Tools with books of their own about threads. AddressSanitizer refused to start behind the
# library, ThreadSanitizer's start never ended, LeakSanitizer knew no thread's stack.
expect "AddressSanitizer" 0 '\[none\]' "weft: $dir/show-address is built with AddressSanitizer$native" \
  "$weft" "$dir/show-address"
expect "ThreadSanitizer" 0 '\[none\]' "*is built with ThreadSanitizer$native" "$weft" "$dir/show-thread"
expect "LeakSanitizer" 0 '\[none\]' "*is built with LeakSanitizer$native" "$weft" "$dir/show-leak"
expect "undefined behaviour only" 0 "\[$lib\]" '' "$weft" "$dir/show-undefined"
expect "valgrind" 0 '\[none\] 0' "weft: */valgrind runs programs on a processor of its own$native" \
  env PATH="$dir/path:$PATH" "$weft" valgrind "$dir/show" 0

# Options.
expect "version" 0 'weft [0-9]*' '' "$weft" --version
expect "help" 0 'usage: weft*--procs N*' '' "$weft" --help
expect "help-env" 0 '*WEFT_PROCS*WEFT_PREEMPT*WEFT_DEBUG*schedtrace*' '' "$weft" --help-env
expect "unknown option" 2 '' 'weft: unknown option --nonsense*' "$weft" --nonsense "$dir/show"
expect "no command" 2 '' 'weft: no command*' "$weft"
expect "no command after options" 2 '' 'weft: no command*' "$weft" --procs 2
expect "procs sets the variable" 0 '3' '' "$weft" --procs 3 sh -c 'echo $WEFT_PROCS'
expect "procs with =" 0 '4' '' "$weft" --procs=4 sh -c 'echo $WEFT_PROCS'
expect "procs wins over the environment" 0 '4' '' env WEFT_PROCS=2 "$weft" --procs=4 sh -c 'echo $WEFT_PROCS'
expect "procs not a number" 2 '' 'weft: --procs*1..1024*' "$weft" --procs x "$dir/show"
expect "procs out of range" 2 '' 'weft: --procs*1..1024*' "$weft" --procs 1025 "$dir/show"
expect "procs without value" 2 '' 'weft: --procs*' "$weft" --procs
expect "end of options" 0 '* a' '' "$weft" -- "$dir/show" a
expect "options after the command are the command's" 0 '* 0 --procs x --version' '' \
  "$weft" "$dir/show" 0 --procs x --version
expect "a full stdout is a failure" 1 '' '' sh -c '"$1" --help >/dev/full' - "$weft"

# The command: found, executed, status.
cp "$dir/show" "$dir/path/weft-show"
expect "by path" 7 "?$lib? 7" '' "$weft" "$dir/show" 7
expect "by PATH" 0 "?$lib? 0 arg" '' env PATH="/nowhere:$dir/path:$PATH" "$weft" weft-show 0 arg
expect "by an empty part of PATH" 0 "?$lib?" '' sh -c 'cd "$1/path" && PATH=:/usr/bin "$2" weft-show' - "$dir" "$weft"
expect "without PATH" 0 'x' '' env -u PATH "$weft" echo x
expect "killed by a signal" 143 '' '' "$weft" sh -c 'kill -TERM $$'
expect "missing by path" 127 '' 'weft: /nowhere/prog: command not found' "$weft" /nowhere/prog
expect "missing by PATH" 127 '' 'weft: no-such-command: command not found' "$weft" no-such-command
expect "empty command" 127 '' 'weft: : command not found' "$weft" ''
expect "path through a file" 127 '' 'weft: *not found' "$weft" "$dir/show/x"
echo text >"$dir/text"
expect "not executable" 126 '' "weft: $dir/text: cannot be executed*" "$weft" "$dir/text"
cp "$dir/text" "$dir/path/text"
expect "not executable in PATH" 126 '' "weft: $dir/path/text: cannot be executed*" env PATH="$dir/path:$PATH" "$weft" text
expect "a later one in PATH that is executable" 0 "?$lib?" '' \
  sh -c 'mkdir "$1/later"; cp "$1/show" "$1/later/text"; PATH=$1/path:$1/later:$PATH exec "$2" text' - "$dir" "$weft"
expect "a directory" 126 '' "weft: $dir: cannot be executed*" "$weft" "$dir"

# LD_PRELOAD.
expect "kept, ours in front" 0 "?$lib:$dir/other.so?" '' env LD_PRELOAD="$dir/other.so" "$weft" "$dir/show"
expect "kept with spaces" 0 "?$lib:$dir/other.so:$dir/other.so?" '' \
  env LD_PRELOAD="$dir/other.so $dir/other.so" "$weft" "$dir/show"
expect "not twice when nested" 0 "?$lib?" '' "$weft" "$weft" "$weft" "$dir/show"
expect "inherited" 0 "?$lib?" '' "$weft" sh -c '"$1"' - "$dir/show"

# Programs that cannot take the library run natively, with their own status.
expect "static" 5 '?none? 5' "weft: $dir/static is statically linked$native" "$weft" "$dir/static" 5
expect "static pie" 5 '?none? 5' "weft: $dir/static-pie is statically linked$native" "$weft" "$dir/static-pie" 5
expect "static keeps other preloads" 0 "?$dir/other.so?" "weft: *static*" env LD_PRELOAD="$dir/other.so" "$weft" "$dir/static"
expect "static inside weft" 0 '?none?' "weft: *static*" "$weft" "$weft" "$dir/static"
expect "the loader by hand is not static" 0 "?$lib?" '' "$weft" /lib64/ld-linux-x86-64.so.2 "$dir/show"

# A 32-bit program of one segment: exit(42) by int 0x80.
{
  printf '\177ELF\1\1\1\0\0\0\0\0\0\0\0\0\2\0\3\0\1\0\0\0\124\200\4\10\64\0\0\0\0\0\0\0\0\0\0\0\64\0\40\0\1\0\0\0\0\0\0\0'
  printf '\1\0\0\0\0\0\0\0\0\200\4\10\0\200\4\10\140\0\0\0\140\0\0\0\5\0\0\0\0\20\0\0'
  printf '\270\1\0\0\0\273\52\0\0\0\315\200'
} >"$dir/prog32"
chmod +x "$dir/prog32"
"$dir/prog32" 2>/dev/null
if [ $? = 42 ]; then
  expect "32-bit" 42 '' "weft: $dir/prog32 is a 32-bit program$native" "$weft" "$dir/prog32"
else # a kernel without 32-bit support: two lines, the second says that it cannot be executed
  "$weft" "$dir/prog32" 2>"$dir/err2"
  expect "32-bit that the kernel refuses" 126 '' '' sh -c 'exit $1' - $?
fi
{ printf '\177ELF\2\1\1\0\0\0\0\0\0\0\0\0\2\0\267\0'; head -c 200 /dev/zero; } >"$dir/arm"
chmod +x "$dir/arm"
"$weft" "$dir/arm" 2>"$dir/err2"
expect "another processor" 126 '*is not an x86-64 program: running natively*cannot be executed*' '' \
  sh -c 'cat "$2"; exit $1' - $? "$dir/err2"
sed 's#/lib64/ld-linux-x86-64.so.2#/lib/ld-musl-x86_64.so.1\x00#' "$dir/show" >"$dir/musl"
chmod +x "$dir/musl"
"$weft" "$dir/musl" 2>"$dir/err2"
expect "another C library" 0 "weft: $dir/musl uses a C library other than glibc$native*" '' cat "$dir/err2"

if [ "$(id -u)" = 0 ] && [ "$(stat -f -c %T "$dir")" != nosuid ]; then
  cp "$dir/show" "$dir/setuid" && chown 65534 "$dir/setuid" && chmod 4755 "$dir/setuid"
  cp "$dir/show" "$dir/setgid" && chgrp 65534 "$dir/setgid" && chmod 2755 "$dir/setgid"
  cp "$dir/show" "$dir/own" && chmod 4755 "$dir/own"
  expect "setuid" 0 '?none?' "weft: $dir/setuid is setuid$native" "$weft" "$dir/setuid"
  expect "setgid" 0 '?none?' "weft: $dir/setgid is setgid$native" "$weft" "$dir/setgid"
  expect "setuid to oneself gains nothing" 0 "?$lib?" '' "$weft" "$dir/own"
  expect "setuid to others, run by its owner" 0 "?$lib?" '' \
    setpriv --reuid 65534 --clear-groups "$weft" "$dir/setuid"
else
  su=$(command -v su) && [ -u "$su" ] &&
    expect "setuid" 0 '*' "weft: $su is setuid$native" "$weft" "$su" --version
fi

# Scripts: the interpreter counts, as deep as the kernel goes.
printf '#!%s\n' "$dir/static" >"$dir/script-static"
printf '#! %s 3\n' "$dir/show" >"$dir/script"
printf '#!%s\n' "$dir/script-static" >"$dir/script-script"
printf 'echo "[$LD_PRELOAD]" $1; exit 9\n' >"$dir/no-line"
printf '#!/nowhere/interpreter\n' >"$dir/no-interpreter"
chmod +x "$dir"/script* "$dir"/no-*
expect "script" 3 "?$lib? 3 $dir/script" '' "$weft" "$dir/script"
expect "script for a static program" 0 '?none?*' \
  "weft: $dir/script-static is a script for $dir/static, which is statically linked$native" "$weft" "$dir/script-static"
expect "script for a script" 0 '?none?*' "weft: $dir/script-script is a script for $dir/static,*" "$weft" "$dir/script-script"
expect "script without a first line" 9 "?$lib? a" '' "$weft" "$dir/no-line" a
expect "script whose interpreter is missing" 126 '' "weft: $dir/no-interpreter: cannot be executed*" "$weft" "$dir/no-interpreter"

# Variables.
expect "bad value: one line, still runs" 0 "?$lib?" 'weft: WEFT_PROCS=abc *1..1024*' env WEFT_PROCS=abc "$weft" "$dir/show"
expect "unknown name: one line, still runs" 0 "?$lib?" 'weft: WEFT_FOO *WEFT_PROCS*WEFT_DEBUG*' env WEFT_FOO=1 "$weft" "$dir/show"
expect "nested: complained about once" 0 "*" 'weft: WEFT_FOO *' env WEFT_FOO=1 "$weft" "$weft" "$dir/show"
expect "nested: a new mistake is a new line" 0 '*' 'weft: WEFT_SPIN=x*' "$weft" env WEFT_SPIN=x "$weft" "$dir/show"

# Where the library is.
for place in lib lib/weft; do
  mkdir -p "$dir/$place-root/bin" "$dir/$place-root/$place"
  cp "$weft" "$dir/$place-root/bin/" && cp "$lib" "$dir/$place-root/$place/"
  expect "installed in $place" 0 "?$dir/$place-root/$place/libweft.so?" '' "$dir/$place-root/bin/weft" "$dir/show"
done
ln -s "$weft" "$dir/path/weft"
expect "through a symbolic link" 0 "?$lib?" '' "$dir/path/weft" "$dir/show"
mkdir "$dir/alone" "$dir/a b" && cp "$weft" "$dir/alone/" && cp "$weft" "$lib" "$dir/a b/"
expect "no library" 125 '' 'weft: libweft.so is neither*' "$dir/alone/weft" "$dir/show"
expect "library in a path with a space" 125 '' 'weft: *space*' "$dir/a b/weft" "$dir/show"

echo "$passed passed, $failed failed"
[ $failed = 0 ]

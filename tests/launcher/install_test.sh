#!/usr/bin/env bash
# install_test.sh - make install puts three things in place that work there, and make
# uninstall takes back exactly those. env: B=build directory.
# timeout: 120
set -u
cd "$(dirname "$0")/../.." || exit 1
export B=${B:-build}
root=$(mktemp -d) || exit 1
trap 'rm -rf "$root"' EXIT
passed=0 failed=0
unset LD_PRELOAD MAKEFLAGS MAKELEVEL

check() { # check NAME COMMAND...
  local name=$1
  shift
  if "$@" >"$root.log" 2>&1; then
    passed=$((passed + 1))
  else
    failed=$((failed + 1))
    echo "failed: $name"
    cat "$root.log"
  fi
  rm -f "$root.log"
}
files() { (cd "$root" && find . -type f | sort | tr '\n' ' '); }

[ -e "$B/libweft.so" ] || { echo "$B/libweft.so is not built"; exit 1; }
mkdir -p "$root/stage/opt/lib" && echo keep >"$root/stage/opt/lib/other"
check "install" make install PREFIX=/opt DESTDIR="$root/stage"
check "the files" [ "$(files)" = "./stage/opt/bin/weft ./stage/opt/lib/other ./stage/opt/lib/weft/libweft.so $(
  for m in man/*.[0-9]; do echo "./stage/opt/share/man/man${m##*.}/${m##*/}"; done | sort | tr '\n' ' ')" ]
check "runs from there" "$root/stage/opt/bin/weft" true
check "preloads the installed library" [ "$("$root/stage/opt/bin/weft" sh -c 'echo $LD_PRELOAD')" = \
  "$root/stage/opt/lib/weft/libweft.so" ]
check "uninstall" make uninstall PREFIX=/opt DESTDIR="$root/stage"
check "nothing left but what was there" [ "$(files)" = "./stage/opt/lib/other " ]
check "uninstall twice" make uninstall PREFIX=/opt DESTDIR="$root/stage"

echo "$passed passed, $failed failed"
[ $failed = 0 ]

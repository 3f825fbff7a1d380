#!/usr/bin/env bash
# compress.sh - pigz, pbzip2, xz, zstd with threads: what they pack must be what went in, and
# must be the same bytes as natively; what they unpack too.
# set: light
# packages: pigz pbzip2 gzip bzip2 xz-utils zstd
# timeout: 500
. "$(dirname "$0")/lib.sh"
need pigz pbzip2 xz zstd

text 8000000 >"$WORK/input"
input_sum=$(sum_of "$WORK/input")
declare -A native_sum

# round_trip MODE NAME UNPACK -- PACK: PACK under test, UNPACK in another implementation or
# with one thread, always natively.
round_trip() {
  local mode=$1 name=$2 unpack=$3
  shift 4
  $mode "$@" <"$WORK/input" >"$WORK/packed" || because "status $?" || return
  [ "$($unpack <"$WORK/packed" | sum_of)" = "$input_sum" ] || because "does not unpack to the input" || return
  [ "$mode" = weft ] || native_sum[$name]=$(sum_of "$WORK/packed")
  [ "$(sum_of "$WORK/packed")" = "${native_sum[$name]}" ] || because "other bytes than natively"
}

unpacks() { # MODE PACKER -- UNPACK
  local mode=$1 packer=$2
  shift 3
  [ -s "$WORK/packed.${packer%% *}" ] || $packer <"$WORK/input" >"$WORK/packed.${packer%% *}"
  $mode "$@" <"$WORK/packed.${packer%% *}" >"$WORK/plain" || because "status $?" || return
  [ "$(sum_of "$WORK/plain")" = "$input_sum" ] || because "wrong output"
}

run_case pigz ms round_trip pigz 'gzip -dc' -- pigz -p 4 -c
run_case unpigz ms unpacks 'gzip -1c' -- pigz -p 4 -dc
run_case pbzip2 ms round_trip pbzip2 'bzip2 -dc' -- pbzip2 -p4 -b5 -c
run_case unpbzip2 ms unpacks 'pbzip2 -p2 -b5 -c' -- pbzip2 -p4 -dc
run_case xz ms round_trip xz 'xz -T1 -dc' -- xz -T4 -1 --block-size=1MiB -c
run_case unxz ms unpacks 'xz -T2 -0 --block-size=1MiB -c' -- xz -T4 -dc
run_case zstd ms round_trip zstd 'zstd -qdc' -- zstd -q -6 -T4 -c
run_case unzstd ms unpacks 'zstd -q -3 -c' -- zstd -q -dc

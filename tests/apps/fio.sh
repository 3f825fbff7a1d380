#!/usr/bin/env bash
# fio.sh - fio with four jobs as threads: every engine reads and writes as much as it was
# told to, and each block read holds what was written there.
# set: heavy
# packages: fio
# timeout: 300
. "$(dirname "$0")/lib.sh"
need fio

# Counts, not bytes: an engine that stops half-way calls that success.
moves() { # MODE ENGINE
  local mode=$1 reads writes
  rm -f "$WORK"/j.*
  $mode fio --thread --name=j --directory="$WORK" --size=2m --rw=randrw --bs=4k --ioengine="$2" \
    --numjobs=4 --iodepth=8 --verify=crc32c --verify_fatal=1 --verify_state_save=0 --randrepeat=1 --group_reporting \
    >"$WORK/out" || because "status $?: $(head -n 1 "$WORK/stderr")" || return
  grep -q 'err= *0:' "$WORK/out" || because "$(grep -o 'err= *[0-9]*' "$WORK/out")" || return
  IFS=,= read -r _ reads writes _ < <(grep 'issued rwts' "$WORK/out")
  # What is written is read again for the check, so that all of the 2048 blocks are read.
  [ "$reads" = 2048 ] && [ "$writes" -gt 900 ] || because "$reads reads, $writes writes of 2048 blocks"
}

for engine in psync pvsync2 mmap libaio posixaio io_uring; do
  run_case "$engine" ms moves "$engine"
done

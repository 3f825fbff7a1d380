#!/usr/bin/env bash
# video.sh - ffmpeg and x264 with eight threads: same bitstream as natively, same decoded frames.
# set: heavy
# packages: ffmpeg x264
# timeout: 600
. "$(dirname "$0")/lib.sh"
need ffmpeg x264

clip=$WORK/clip.y4m
ffmpeg -nostdin -v error -f lavfi -i testsrc2=size=480x270:rate=30:duration=3 -pix_fmt yuv420p "$clip" || exit 1
declare -A native_sum

same_as_natively() { # MODE WHAT FILE
  [ "$1" = weft ] || native_sum[$2]=$(sum_of "$3")
  [ -s "$3" ] && [ "$(sum_of "$3")" = "${native_sum[$2]}" ] || because "$2: other output than natively"
}

x264_encode() {
  $1 x264 --quiet --threads 8 --preset medium --crf 23 -o "$WORK/out.264" "$clip" || because "status $?" || return
  same_as_natively "$1" x264 "$WORK/out.264"
}

ffmpeg_encode() {
  $1 ffmpeg -nostdin -v error -y -threads 8 -filter_threads 8 -i "$clip" -vf 'scale=400:224:flags=bicubic,gblur=sigma=1' \
    -c:v libx264 -threads 8 -preset veryfast -flags +bitexact -fflags +bitexact "$WORK/out.mkv" || because "status $?" || return
  same_as_natively "$1" encode "$WORK/out.mkv"
}

ffmpeg_decode() {
  [ -s "$WORK/in.mkv" ] || ffmpeg -nostdin -v error -i "$clip" -c:v libx264 -preset veryfast "$WORK/in.mkv" || return
  $1 ffmpeg -nostdin -v error -y -threads 8 -i "$WORK/in.mkv" -f framemd5 "$WORK/frames" || because "status $?" || return
  [ "$(grep -c '^0' "$WORK/frames")" = 90 ] || because "not 90 frames" || return
  same_as_natively "$1" decode "$WORK/frames"
}

run_case x264 ms x264_encode
run_case ffmpeg_encode ms ffmpeg_encode
run_case ffmpeg_decode ms ffmpeg_decode

#!/usr/bin/env bash
# git.sh - git gc, grep and index-pack with threads on a repository made here.
# set: light
# packages: git
# timeout: 400
. "$(dirname "$0")/lib.sh"
need git

export GIT_CONFIG_NOSYSTEM=1 GIT_CONFIG_GLOBAL=/dev/null HOME=$WORK
export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a GIT_AUTHOR_DATE='2020-01-01T00:00:00Z'
export GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a GIT_COMMITTER_DATE='2020-01-01T00:00:00Z'
origin=$WORK/origin
git init -q -b main "$origin" && cd "$origin" && git config gc.auto 0 || exit 1
for round in 1 2 3 4; do
  text 400000 "$round" | split -b 4000 -a 3 - "part$((round % 3))."
  git add -A && git commit -qm "$round" || exit 1
done
git rev-list --all --objects | sort >"$WORK/objects"
git grep --threads=1 -c 'ab.*c' >"$WORK/matches"

gc() {
  rm -rf "$WORK/copy" && cp -r "$origin" "$WORK/copy" && cd "$WORK/copy" || return
  $1 git -c pack.threads=4 gc -q --aggressive --prune=now || because "status $?" || return
  git fsck --full --strict >/dev/null 2>&1 || because "fsck finds errors" || return
  git rev-list --all --objects | sort | cmp -s - "$WORK/objects" || because "objects missing"
}

search() {
  cd "$origin" || return
  $1 git grep --threads=8 -c 'ab.*c' >"$WORK/out" || because "status $?" || return
  cmp -s "$WORK/out" "$WORK/matches" || because "other matches than with one thread"
}

# clone: pack-objects and index-pack, processes that are threaded and talk through pipes
clone() {
  rm -rf "$WORK/clone"
  $1 git -c pack.threads=4 clone -q --no-local "file://$origin" "$WORK/clone" || because "status $?" || return
  git -C "$WORK/clone" rev-list --all --objects | sort | cmp -s - "$WORK/objects" || because "objects missing" || return
  [ -z "$(git -C "$WORK/clone" status --porcelain)" ] || because "work tree differs"
}

run_case gc ms gc
run_case grep ms search
run_case clone ms clone

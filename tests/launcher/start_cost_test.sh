#!/usr/bin/env bash
# start_cost_test.sh - a program without threads pays next to nothing for being started on weft:
# at most 24 pages more than natively, which is what any library of this size costs. Constructors
# that the compiler had made for tables without a constant initial value wrote 50 pages into each
# process, and the table of libc's functions was relocated in four more: 0.2 ms of the 0.6 that
# starting /bin/true takes, and as much again to be copied by each fork.
# env: B=build directory.
set -u
B=$(realpath "${B:-build}")
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
unset LD_PRELOAD
for variable in ${!WEFT_*}; do unset "$variable"; done

cat >"$dir/faults.c" <<'C'
// Runs argv[1] with LD_PRELOAD=argv[2], if there is one; prints how many pages it touched: the
// least of five, for what else goes on in the machine (a page given back meanwhile) only adds.
#include <spawn.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/wait.h>
int main(int argc, char **argv) {
  char preload[4096];
  char *env[2] = {NULL, NULL};
  if (argc > 2 && snprintf(preload, sizeof preload, "LD_PRELOAD=%s", argv[2]) > 0) env[0] = preload;
  long least = -1;
  for (int i = 0; i < 5; i++) {
    struct rusage before, after;
    getrusage(RUSAGE_CHILDREN, &before);
    pid_t pid;
    int status;
    if (posix_spawn(&pid, argv[1], NULL, NULL, (char *[]){argv[1], NULL}, env) != 0) return 1;
    if (waitpid(pid, &status, 0) != pid || status != 0) return 1;
    getrusage(RUSAGE_CHILDREN, &after);
    long faults = after.ru_minflt + after.ru_majflt - before.ru_minflt - before.ru_majflt;
    if (least < 0 || faults < least) least = faults;
  }
  printf("%ld\n", least);
  return 0;
}
C
echo 'int main(void) { return 0; }' >"$dir/nothing.c"
gcc -O1 -o "$dir/faults" "$dir/faults.c" && gcc -O1 -o "$dir/nothing" "$dir/nothing.c" || exit 1

native=$("$dir/faults" "$dir/nothing") && weft=$("$dir/faults" "$dir/nothing" "$B/libweft.so")
if [ -z "${native:-}" ] || [ -z "${weft:-}" ]; then
  echo "start_cost: the program did not run"
elif [ $((weft - native)) -gt 24 ]; then
  echo "start_cost: $weft pages touched, natively $native"
else
  echo "1 passed, 0 failed"
  exit 0
fi
echo "0 passed, 1 failed"
exit 1

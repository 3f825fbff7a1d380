#!/usr/bin/env bash
# crowd_test.sh - 10,000 threads, all alive and blocked on a condition variable, need no more
# kernel threads than the Ps and six, and each is joined with its own value. Natively
# they need 10,001, which the same program shows. So do 200 that wait in fgets, each on a pipe
# of its own: the wait was inside libc, and each took a kernel thread. env: B=build directory.
# timeout: 120
set -u
B=$(realpath "${B:-build}")
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
passed=0 failed=0
unset LD_PRELOAD
for variable in ${!WEFT_*}; do unset "$variable"; done

cat >"$dir/crowd.c" <<'C'
#include <dirent.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
enum { kThreads = 10000 };
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t came = PTHREAD_COND_INITIALIZER, go = PTHREAD_COND_INITIALIZER;
static int waiting, open;
static void *stand(void *arg) {
  pthread_mutex_lock(&lock);
  if (++waiting == kThreads) pthread_cond_signal(&came);
  while (!open) pthread_cond_wait(&go, &lock);
  pthread_mutex_unlock(&lock);
  return (void *)((uintptr_t)arg * 7 + 1);
}
int main(void) {
  static pthread_t t[kThreads];
  for (uintptr_t i = 0; i < kThreads; i++)
    if (pthread_create(&t[i], NULL, stand, (void *)i) != 0) return 2;
  pthread_mutex_lock(&lock);
  while (waiting < kThreads) pthread_cond_wait(&came, &lock);
  int kernel_threads = -2;  // . and ..
  DIR *tasks = opendir("/proc/self/task");
  if (tasks == NULL) return 3;
  while (readdir(tasks) != NULL) kernel_threads++;
  closedir(tasks);
  open = 1;
  pthread_cond_broadcast(&go);
  pthread_mutex_unlock(&lock);
  for (uintptr_t i = 0; i < kThreads; i++) {
    void *value;
    if (pthread_join(t[i], &value) != 0 || (uintptr_t)value != i * 7 + 1) return 4;
  }
  printf("%d\n", kernel_threads);
}
C
gcc -O1 -pthread -o "$dir/crowd" "$dir/crowd.c" || exit 1

cat >"$dir/readers.c" <<'C'
#include <dirent.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
enum { kThreads = 200 };
static int waiting, ends[kThreads][2];
static void *hear(void *arg) {
  FILE *f = fdopen(*(int *)arg, "r");
  char line[16];
  __atomic_add_fetch(&waiting, 1, __ATOMIC_SEQ_CST);
  if (f == NULL || fgets(line, sizeof line, f) == NULL || strcmp(line, "go\n") != 0) return NULL;
  fclose(f);
  return arg;
}
int main(void) {
  static pthread_t t[kThreads];
  for (int i = 0; i < kThreads; i++)
    if (pipe(ends[i]) != 0 || pthread_create(&t[i], NULL, hear, &ends[i][0]) != 0) return 2;
  while (__atomic_load_n(&waiting, __ATOMIC_SEQ_CST) < kThreads) sched_yield();
  int kernel_threads = -2;
  DIR *tasks = opendir("/proc/self/task");
  if (tasks == NULL) return 3;
  while (readdir(tasks) != NULL) kernel_threads++;
  closedir(tasks);
  for (int i = 0; i < kThreads; i++) {
    void *heard;
    if (write(ends[i][1], "go\n", 3) != 3 || pthread_join(t[i], &heard) != 0 || heard == NULL) return 4;
    close(ends[i][1]);
  }
  printf("%d\n", kernel_threads);
}
C
gcc -O1 -pthread -o "$dir/readers" "$dir/readers.c" || exit 1

# at_most N COMMAND...: it prints how many kernel threads it had.
at_most() {
  local most=$1 got status
  shift
  got=$("$@")
  status=$?
  if [ $status = 0 ] && [ "$got" -le "$most" ]; then
    passed=$((passed + 1))
  else
    failed=$((failed + 1))
    echo "failed: $*: status $status, $got kernel threads, at most $most wanted"
  fi
}

for procs in 1 2 8; do
  for ((round = 0; round < 3; round++)); do
    at_most $((procs + 6)) "$B/weft" --procs $procs "$dir/crowd"
    at_most $((procs + 6)) "$B/weft" --procs $procs "$dir/readers"
  done
done
# It counts what it should: natively one for each. (pid_max may be too low for that.)
native=$("$dir/crowd" 2>/dev/null) && [ "$native" != 10001 ] &&
  { failed=$((failed + 1)); echo "failed: natively $native kernel threads"; }
echo "$passed passed, $failed failed"
[ $failed = 0 ] && [ $passed -gt 0 ]

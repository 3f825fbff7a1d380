#!/usr/bin/env bash
# dump_test.sh - looking inside a running program: schedtrace, the dump of all Gs with stacks
# and lock owners, the deadlock note, fatal(), WEFT_STATS, gdb. env: B=build directory.
# timeout: 120
set -u
B=$(realpath "${B:-build}")
dir=$(mktemp -d) || exit 1
passed=0 failed=0 pid=''
trap '[ -z "$pid" ] || kill -KILL "$pid" 2>/dev/null; rm -rf "$dir"' EXIT
unset LD_PRELOAD
for variable in ${!WEFT_*}; do unset "$variable"; done
weft=$B/weft lib=$B/libweft.so
[ -e "$lib" ] || { echo "$lib is not built"; exit 1; }

# One G holds a lock for ever (in read), one wants it, one computes, one waits on a cond.
# With an argument: an address in libweft.so to call as fatal(); `blocked`: a child forked before
# the first thread does it all, with every signal blocked; `own`, `own-late`: SIGUSR2 is the program's.
cat >"$dir/stuck.c" <<'C'
#define _GNU_SOURCE
#include <link.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER, other = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
static pthread_barrier_t up;
static int computes = 1;
static volatile int stop;
__attribute__((noinline)) static void hold_it(void) {
  char c;
  pthread_mutex_lock(&lock);
  pthread_barrier_wait(&up);
  if (computes) { if (read(0, &c, 1) < 0) abort(); }
  else for (;;) pthread_cond_wait(&cond, &lock);
  pthread_mutex_unlock(&lock);
}
__attribute__((noinline)) static void want_it(void) {
  pthread_mutex_lock(&lock);
  __asm__ volatile("");
  pthread_mutex_unlock(&lock);
}
static void *holder(void *a) { pthread_setname_np(pthread_self(), "the-holder"); hold_it(); return a; }
static void *wanter(void *a) { pthread_barrier_wait(&up); want_it(); return a; }
static void *computer(void *a) { while (!stop) __asm__ volatile(""); return a; }
static void *waiter(void *a) {
  pthread_mutex_lock(&other);
  while (!stop) pthread_cond_wait(&cond, &other);
  pthread_mutex_unlock(&other);
  return a;
}
static unsigned long base;
static int find(struct dl_phdr_info *i, size_t n, void *a) {
  (void)n; (void)a;
  if (strstr(i->dlpi_name, "libweft")) base = i->dlpi_addr;
  return 0;
}
static void on_usr2(int sig) { (void)sig; if (write(1, "own handler\n", 12) < 0) abort(); }
int main(int argc, char **argv) {
  pthread_t t[4];
  if (argc > 1 && strcmp(argv[1], "blocked") == 0) {
    sigset_t all;
    sigfillset(&all);
    if (fork() != 0) { pause(); return 0; }
    sigprocmask(SIG_SETMASK, &all, NULL);
    printf("child %d\n", (int)getpid());
  }
  if (argc > 1 && strcmp(argv[1], "own") == 0) signal(SIGUSR2, on_usr2);
  computes = argc > 1 && strcmp(argv[1], "deadlock") != 0;
  pthread_barrier_init(&up, NULL, 3);
  pthread_create(&t[0], NULL, holder, NULL);
  pthread_create(&t[1], NULL, wanter, NULL);
  pthread_create(&t[2], NULL, waiter, NULL);
  if (computes) pthread_create(&t[3], NULL, computer, NULL);
  pthread_barrier_wait(&up);
  if (argc > 1 && strcmp(argv[1], "own-late") == 0) signal(SIGUSR2, on_usr2);
  puts("up");
  fflush(stdout);
  if (argc > 1 && argv[1][0] == '0') {
    dl_iterate_phdr(find, NULL);
    ((void (*)(const char *))(base + strtoul(argv[1], NULL, 16)))("called by the test");
  }
  pthread_join(t[0], NULL);
  pthread_join(t[1], NULL);
  pthread_mutex_lock(&other);
  stop = 1;
  pthread_cond_broadcast(&cond);
  pthread_mutex_unlock(&other);
  pthread_join(t[2], NULL);
  if (computes) pthread_join(t[3], NULL);
  puts("done");
  return 0;
}
C
gcc -O1 -g -pthread -o "$dir/stuck" "$dir/stuck.c" || exit 1
mkfifo "$dir/in"
cd "$dir" || exit 1

verdict() { # NAME OK
  if [ "$2" = 0 ]; then passed=$((passed + 1)); echo "ok     $1"
  else failed=$((failed + 1)); echo "not ok $1"; sed 's/^/  | /' err | head -n 80; fi
}
has() { # every pattern is in err, in this order
  local from=1 at pattern
  for pattern; do
    at=$(tail -n +$from err | grep -nE -m 1 -e "$pattern") || { echo "missing: $pattern"; return 1; }
    from=$((from + ${at%%:*} - 1))
  done
}
wait_for() { # PATTERN FILE: up to 20 s
  local i
  for ((i = 0; i < 400; i++)); do
    grep -qE -e "$1" "$2" 2>/dev/null && return 0
    sleep 0.05
  done
  return 1
}
dump_until() { # PATTERN: asks for dumps until one holds it
  local i
  for ((i = 0; i < 20; i++)); do
    : >err
    kill -USR2 "$pid"
    wait_for 'end of dump' err || return 1
    grep -qE -e "$1" err && return 0
  done
  return 1
}
switches() { cat /proc/"$pid"/task/*/status 2>/dev/null | awk '/ctxt_switches/ {n += $2} END {print n}'; }
at_rest() { # no kernel thread of it has run for a while: sysmon sleeps deep
  local i before=-1 now
  for ((i = 0; i < 100; i++)); do
    now=$(switches)
    [ "$now" != "$before" ] || return 0
    before=$now
    sleep 0.2
  done
  return 1
}
launch() { # ENV... -- ARGS: in the background, its input a fifo that we hold open
  local settings=()
  while [ "$1" != -- ]; do settings+=("$1"); shift; done
  shift
  : >out; : >err
  env "${settings[@]}" "$weft" ./stuck "$@" <>in >out 2>>err &
  pid=$!
  wait_for up out
}
end() { # lets the program go; its status
  echo x >in
  wait "$pid"
  local status=$?
  pid=''
  return $status
}

for procs in 1 2; do
  launch WEFT_PROCS=$procs WEFT_DEBUG=dumpsig=USR2 -- run
  dump_until 'held by'
  has 'weft: dump of process' 'M [0-9]+: tid' 'P 0:' && has 'G [0-9]+ .*vtid' 'weft: end of dump' &&
    grep -q 'started in computer' err && grep -q 'the-holder, started in holder' err &&
    has 'held by G [0-9]+, vtid [0-9]+' 'want_it\+0x' && has 'hold_it\+0x' && has 'cond wait' 'waiter\+0x'
  verdict "dump on a signal, $procs P" $?
  end && grep -q done out
  verdict "the program goes on after the dump, $procs P" $?
done

launch WEFT_PROCS=2 WEFT_DEBUG=dumpsig=USR2 -- deadlock
at_rest && [ ! -s err ]
verdict "a deadlock is silent by itself" $?
kill -USR2 "$pid"
wait_for 'end of dump' err && has 'held by|cond wait' 'all threads are asleep'
verdict "a dump names the deadlock, with sysmon asleep" $?
kill -KILL "$pid"
wait "$pid" 2>/dev/null
pid=''

# sysmon closed the signal with the first look at what the threads accept, and nothing came out.
for procs in 1 2; do
  launch WEFT_PROCS=$procs WEFT_DEBUG=dumpsig=USR2 -- blocked
  parent=$pid pid=$(sed -n 's/^child //p' out)
  dump_until 'held by'
  has 'weft: dump of process '"$pid" 'M [0-9]+: tid' && has 'held by G [0-9]+, vtid [0-9]+' 'want_it\+0x'
  verdict "a dump of a forked child whose threads block the signal, $procs P" $?
  kill -KILL "$pid" "$parent"
  wait "$parent" 2>/dev/null
  pid=''
done

# The dump's handler took the place of the program's, or was gone without a word.
for mode in own own-late; do
  launch WEFT_PROCS=2 WEFT_DEBUG=dumpsig=USR2 -- $mode
  kill -USR2 "$pid"
  wait_for 'own handler' out && [ "$(cat err)" = "weft: WEFT_DEBUG=dumpsig: this program has its own use for that signal: no dumps" ]
  verdict "the program's own handler wins over a dump, $mode" $?
  end
done

launch WEFT_PROCS=2 WEFT_DEBUG=schedtrace=20 WEFT_STATS=1 -- run
wait_for '^SCHED .*(\n.*)*' err
end
has '^SCHED [0-9]+ms: gomaxprocs=2 idleprocs=[0-9]+ threads=[0-9]+ spinningthreads=[0-9]+ needspinning=[01] idlethreads=[0-9]+ runqueue=[0-9]+ \[[0-9]+ [0-9]+\]$'
verdict "schedtrace lines are Go's" $?
has '^weft: .*procs=2.*switches=[0-9]+'
verdict "WEFT_STATS prints counters" $?

launch WEFT_PROCS=1 WEFT_DEBUG=schedtrace=20,scheddetail=1 -- run
wait_for '^  G' err
end
has '^SCHED [0-9]+ms: gomaxprocs=1' '^  P0: status=' '^  M[0-9]+: p=' '^  G[0-9]+: status=[0-9]+\('
verdict "scheddetail lines are Go's" $?

address=$(nm "$lib" | sed -n 's/^\([0-9a-f]*\) . _ZN4weft5fatalEPKc$/\1/p')
launch WEFT_PROCS=2 -- "0$address"
wait "$pid" 2>/dev/null
[ $? = 134 ] && has 'weft: fatal: called by the test' 'on G' 'M 0: tid' 'weft: stacks of process' 'main\+0x' 'end of stacks'
verdict "fatal() tells all and aborts" $?
pid=''

if command -v gdb >/dev/null; then
  launch WEFT_PROCS=2 -- run
  main=$(pgrep -P "$pid" stuck || echo "$pid")
  timeout 100 gdb -p "$main" -batch -nx -ex 'set debuginfod enabled off' -ex "source $OLDPWD/scripts/weft-gdb.py" \
    -ex 'info gs' -ex 'info ms' -ex 'info ps' -ex 'g all bt' >err 2>&1 </dev/null
  has 'waiting.*mutex on 0x[0-9a-f]+, held by vtid' 'M 0: tid' 'P 1:' 'G [0-9]+ \[waiting, mutex' 'want_it' && grep -q 'hold_it' err
  verdict "gdb: info gs, ms, ps, g all bt" $?
  end
fi

echo "$passed passed, $failed failed"
[ $failed = 0 ]

// spawn_test.c - family: posix_spawn, vfork, exec, system, popen in threaded programs.
//
// Behaviours: many at once from many threads; file actions and attributes (mask, defaults,
// process group, schedpolicy, usevfork); vfork that execs, that exits, whose child closes
// descriptors; execve from a thread while others live; output through pipes; exit status;
// errors of a missing program.
// Invariant: a child process never changes anything of ours but what it was told to.
#include "abi.h"

#include <fcntl.h>
#include <spawn.h>

extern char **environ;

static int wait_for(pid_t pid) {
  int status = -1;
  pid_t got;
  do got = waitpid(pid, &status, 0);
  while (got < 0 && errno == EINTR);
  CHECK_EQ(got, pid);
  return status;
}

static pid_t spawn_shell(const char *script, const posix_spawn_file_actions_t *actions, const posix_spawnattr_t *attr) {
  pid_t pid = -1;
  char *argv[] = {(char *)"sh", (char *)"-c", (char *)script, NULL};
  CHECK_OK(posix_spawn(&pid, "/bin/sh", actions, attr, argv, environ));
  return pid;
}

static void *spawn_some(void *arg) {
  char script[64];
  for (int i = 0; i < 5; i++) {
    snprintf(script, sizeof script, "exit %d", (int)(intptr_t)arg + i);
    CHECK_EQ(exit_code(wait_for(spawn_shell(script, NULL, NULL))), (intptr_t)arg + i);
  }
  return NULL;
}

static void spawned_by_many_threads(void **state) {
  (void)state;
  pthread_t t[8];
  spawn_some((void *)1);
  for (intptr_t i = 0; i < 8; i++) t[i] = start(spawn_some, (void *)(i * 10));
  for (int i = 0; i < 8; i++) join(t[i]);
  pid_t pid;
  char *argv[] = {(char *)"nothing", NULL};
  CHECK_EQ(posix_spawn(&pid, "/no/such/program", NULL, NULL, argv, environ), ENOENT);
  CHECK_EQ(posix_spawnp(&pid, "no-such-program-anywhere", NULL, NULL, argv, environ), ENOENT);
  char *true_argv[] = {(char *)"true", NULL};
  CHECK_OK(posix_spawnp(&pid, "true", NULL, NULL, true_argv, environ));
  CHECK_OK(wait_for(pid));
}

static void *spawn_with_actions(void *arg) {
  int out[2];
  char text[64] = "", want[64];
  posix_spawn_file_actions_t actions;
  CHECK_OK(pipe2(out, O_CLOEXEC));
  CHECK_OK(posix_spawn_file_actions_init(&actions));
  CHECK_OK(posix_spawn_file_actions_adddup2(&actions, out[1], 1));
  CHECK_OK(posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0));
  CHECK_OK(posix_spawn_file_actions_addclose(&actions, out[0]));
  CHECK_OK(posix_spawn_file_actions_addchdir_np(&actions, "/tmp"));
  snprintf(want, sizeof want, "%d /tmp\n", (int)(intptr_t)arg);
  char script[64];
  snprintf(script, sizeof script, "read x; echo %d $PWD", (int)(intptr_t)arg);
  pid_t pid = spawn_shell(script, &actions, NULL);
  close(out[1]);
  size_t have = 0;
  ssize_t n;
  while ((n = read(out[0], text + have, sizeof text - 1 - have)) > 0) have += (size_t)n;
  close(out[0]);
  CHECK_OK(wait_for(pid));
  CHECK(strcmp(text, want) == 0);
  CHECK_OK(posix_spawn_file_actions_destroy(&actions));
  return NULL;
}

static void file_actions(void **state) {
  (void)state;
  pthread_t t[6];
  for (intptr_t i = 0; i < 6; i++) t[i] = start(spawn_with_actions, (void *)i);
  for (int i = 0; i < 6; i++) join(t[i]);
}

static void *spawn_with_attributes(void *arg) {
  posix_spawnattr_t attr;
  sigset_t mask, defaults, before, after;
  CHECK_OK(posix_spawnattr_init(&attr));
  sigemptyset(&mask);
  sigaddset(&mask, SIGUSR2);
  CHECK_OK(posix_spawnattr_setsigmask(&attr, &mask));
  sigemptyset(&defaults);
  sigaddset(&defaults, SIGTERM);
  CHECK_OK(posix_spawnattr_setsigdefault(&attr, &defaults));
  CHECK_OK(posix_spawnattr_setpgroup(&attr, 0));
  struct sched_param param = {0};
  CHECK_OK(posix_spawnattr_setschedpolicy(&attr, SCHED_OTHER));
  CHECK_OK(posix_spawnattr_setschedparam(&attr, &param));
  CHECK_OK(posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP |
                                               POSIX_SPAWN_SETSCHEDULER));
  CHECK_OK(pthread_sigmask(SIG_BLOCK, NULL, &before));
  // Blocked SIGUSR2 does not end it; SIGTERM, ignored by us, does.
  pid_t pid = spawn_shell("kill -USR2 $$; kill -TERM $$; sleep 100", NULL, &attr);
  CHECK_EQ(death_signal(wait_for(pid)), SIGTERM);
  CHECK_OK(pthread_sigmask(SIG_BLOCK, NULL, &after));
  CHECK_EQ(memcmp(&before, &after, 8), 0);
  CHECK_OK(posix_spawnattr_destroy(&attr));
  return arg;
}

static void attributes(void **state) {
  (void)state;
  struct sigaction ignore = {.sa_handler = SIG_IGN}, old;
  CHECK_OK(sigaction(SIGTERM, &ignore, &old));
  spawn_with_attributes(NULL);
  pthread_t t[4];
  for (int i = 0; i < 4; i++) t[i] = start(spawn_with_attributes, NULL);
  for (int i = 0; i < 4; i++) join(t[i]);
  CHECK_OK(sigaction(SIGTERM, &old, NULL));
}

static void *vfork_and_exec(void *arg) {
  int keep[2], status;
  char c = 0;
  CHECK_OK(pipe(keep));
  for (int i = 0; i < 5; i++) {
    volatile int changed = 0;
    pid_t pid = vfork();
    if (pid == 0) {
      changed = 1;
      // Its own descriptors: closing them must not disturb the parent, which shares memory.
      close(keep[0]);
      close(keep[1]);
      if (i & 1) execl("/bin/sh", "sh", "-c", "exit 44", (char *)NULL);
      _exit(i & 1 ? 127 : 43);
    }
    CHECK(pid > 0);
    CHECK_EQ(changed, 1);
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    CHECK_EQ(exit_code(status), i & 1 ? 44 : 43);
    CHECK_EQ(write(keep[1], "v", 1), 1);
    CHECK_EQ(read(keep[0], &c, 1), 1);
  }
  close(keep[0]);
  close(keep[1]);
  return arg;
}

static void vfork_in_threads(void **state) {
  (void)state;
  vfork_and_exec(NULL);
  pthread_t t[6];
  for (int i = 0; i < 6; i++) t[i] = start(vfork_and_exec, NULL);
  for (int i = 0; i < 6; i++) join(t[i]);
}

static void *use_system(void *arg) {
  char command[64];
  snprintf(command, sizeof command, "exit %d", (int)(intptr_t)arg);
  for (int i = 0; i < 3; i++) CHECK_EQ(exit_code(system(command)), (intptr_t)arg);
  return NULL;
}

static void *use_popen(void *arg) {
  char command[64], line[64];
  snprintf(command, sizeof command, "echo out-%d; exit 3", (int)(intptr_t)arg);
  FILE *f = popen(command, "r");
  CHECK(f != NULL);
  CHECK(fgets(line, sizeof line, f) != NULL);
  CHECK_EQ(atoi(line + 4), (intptr_t)arg);
  CHECK_EQ(exit_code(pclose(f)), 3);
  f = popen("read line; test \"$line\" = hello", "w");
  CHECK(f != NULL);
  CHECK(fputs("hello\n", f) >= 0);
  CHECK_OK(pclose(f));
  return NULL;
}

static void system_and_popen_in_threads(void **state) {
  (void)state;
  pthread_t t[12];
  for (intptr_t i = 0; i < 12; i++) t[i] = start(i & 1 ? use_system : use_popen, (void *)i);
  for (int i = 0; i < 12; i++) join(t[i]);
  CHECK(system(NULL) != 0);
}

static int stop;
static void *stay_alive(void *arg) {
  while (!LOAD(&stop)) sched_yield();
  return arg;
}
static void *sleep_on(void *arg) {
  for (;;) pause();
  return arg;
}

static void *exec_now(void *arg) {
  const char *script = arg;
  execl("/bin/sh", "sh", "-c", script, (char *)NULL);
  _exit(99);
}
static int exec_with_threads_alive(void *arg) {
  for (int i = 0; i < 4; i++) start(i & 1 ? stay_alive : sleep_on, NULL);
  if (arg) {
    join(start(exec_now, (void *)"test $$ = \"$WANTED_PID\" && exit 45"));
  } else {
    exec_now((void *)"exit 46");
  }
  return 98;
}
static int exec_keeps_the_pid(void *arg) {
  char text[32];
  snprintf(text, sizeof text, "%d", getpid());
  setenv("WANTED_PID", text, 1);
  return exec_with_threads_alive(arg);
}

// The new program replaces all threads, has the same pid, default signal state, and ends alone.
static void exec_from_any_thread(void **state) {
  (void)state;
  for (int i = 0; i < 5; i++) {
    CHECK_EQ(exit_code(in_child(exec_keeps_the_pid, (void *)1)), 45);
    CHECK_EQ(exit_code(in_child(exec_with_threads_alive, NULL)), 46);
  }
}

// Failed exec leaves everything as it was.
static void *fail_exec(void *arg) {
  char *argv[] = {(char *)"x", NULL};
  CHECK_FAILS(execve("/no/such/program", argv, environ), ENOENT);
  CHECK_FAILS(execv("/tmp", argv), EACCES);
  return arg;
}
static void failed_exec(void **state) {
  (void)state;
  pthread_t t = start(sleep_on, NULL);
  fail_exec(NULL);
  for (int i = 0; i < 10; i++) join(start(fail_exec, NULL));
  CHECK_OK(pthread_cancel(t));
  CHECK(join(t) == PTHREAD_CANCELED);
}

// The child sees pending nothing, the mask of the thread that spawned it, ignored signals.
static void *spawn_with_own_mask(void *arg) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGUSR1);
  CHECK_OK(pthread_sigmask((intptr_t)arg & 1 ? SIG_BLOCK : SIG_UNBLOCK, &set, NULL));
  yield_some(3);
  int status = wait_for(spawn_shell("kill -USR1 $$; exit 5", NULL, NULL));
  if ((intptr_t)arg & 1) CHECK_EQ(exit_code(status), 5);
  else CHECK_EQ(death_signal(status), SIGUSR1);
  return NULL;
}
static void mask_of_the_spawning_thread(void **state) {
  (void)state;
  pthread_t t[8];
  for (intptr_t i = 0; i < 8; i++) t[i] = start(spawn_with_own_mask, (void *)i);
  for (int i = 0; i < 8; i++) join(t[i]);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(spawned_by_many_threads),
      cmocka_unit_test(file_actions),
      cmocka_unit_test(attributes),
      cmocka_unit_test(vfork_in_threads),
      cmocka_unit_test(system_and_popen_in_threads),
      cmocka_unit_test(exec_from_any_thread),
      cmocka_unit_test(failed_exec),
      cmocka_unit_test(mask_of_the_spawning_thread),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

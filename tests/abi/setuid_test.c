// setuid_test.c - setuid and its family change the ids of every thread of the process.
//
// Each case runs in a forked child that is root, starts threads in several states, changes
// ids from one of them, and reads what the kernel says of every task. Skipped (77) when
// not root. `setgroups` and `initgroups` must not hang, nor may a change wait for a thread
// that has ended.
#include "abi.h"

#include <dirent.h>
#include <grp.h>
#include <sys/fsuid.h>

enum { kNobody = 65534, kThreads = 24 };

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
static int stop, running, pipe_fd[2];

static void *sleeps(void *arg) {
  (void)arg;
  pthread_mutex_lock(&mutex);
  ADD(&running, 1);
  while (!stop) pthread_cond_wait(&cond, &mutex);
  pthread_mutex_unlock(&mutex);
  return NULL;
}

static void *computes(void *arg) {
  (void)arg;
  ADD(&running, 1);
  while (!LOAD(&stop)) {
  }
  return NULL;
}

static void *reads(void *arg) {
  (void)arg;
  char c;
  ADD(&running, 1);
  CHECK_EQ(read(pipe_fd[0], &c, 1), 1);  // restarted, not ended, by the broadcast
  return NULL;
}

static void *ends(void *arg) { return arg; }

static pthread_t threads[kThreads];

static void start_threads(void) {
  CHECK_OK(pipe(pipe_fd));
  stop = running = 0;
  for (int i = 0; i < kThreads; i++)
    threads[i] = start(i % 8 == 1 ? computes : i % 8 == 2 ? reads : sleeps, NULL);
  AWAIT(LOAD(&running) == kThreads);
  for (int i = 0; i < kThreads; i++) join(start(ends, NULL));
}

static void stop_threads(void) {
  pthread_mutex_lock(&mutex);
  STORE(&stop, 1);
  pthread_cond_broadcast(&cond);
  pthread_mutex_unlock(&mutex);
  for (int i = 0; i < kThreads; i++) CHECK_EQ(write(pipe_fd[1], "x", 1), 1);
  for (int i = 0; i < kThreads; i++) join(threads[i]);
}

// The line of /proc/self/task/TID/status that starts with `field`, compared in every task.
// Answers how many tasks there were.
static int check_all_tasks(const char *field, const char *want) {
  DIR *d = opendir("/proc/self/task");
  CHECK(d != NULL);
  int n = 0;
  for (struct dirent *e; (e = readdir(d)) != NULL;) {
    if (e->d_name[0] == '.') continue;
    char path[300], line[512];
    snprintf(path, sizeof path, "/proc/self/task/%s/status", e->d_name);
    FILE *f = fopen(path, "r");
    if (f == NULL) continue;  // it has ended
    int found = 0;
    while (fgets(line, sizeof line, f) != NULL)
      if (strncmp(line, field, strlen(field)) == 0) {
        line[strcspn(line, "\n")] = 0;
        if (strcmp(line + strlen(field), want) != 0) {
          dprintf(2, "task %s: %s, want %s\n", e->d_name, line, want);
          CHECK(0);
        }
        found = 1;
      }
    fclose(f);
    n += found;
  }
  closedir(d);
  return n;
}

static int change_on_main(void *arg) {
  (void)arg;
  start_threads();
  CHECK_OK(setgroups(0, NULL));
  CHECK(check_all_tasks("Groups:", "\t ") > 0);
  CHECK_OK(setgid(kNobody));
  CHECK(check_all_tasks("Gid:", "\t65534\t65534\t65534\t65534") > 0);
  CHECK_OK(setuid(kNobody));
  CHECK(check_all_tasks("Uid:", "\t65534\t65534\t65534\t65534") > 0);
  CHECK_FAILS(setuid(0), EPERM);
  stop_threads();
  CHECK(check_all_tasks("Uid:", "\t65534\t65534\t65534\t65534") > 0);
  return 0;
}

static void *changes(void *arg) {
  (void)arg;
  CHECK_OK(setresgid(1, 2, 3));
  CHECK(check_all_tasks("Gid:", "\t1\t2\t3\t2") > 0);
  CHECK_OK(setegid(3));
  CHECK(check_all_tasks("Gid:", "\t1\t3\t3\t3") > 0);
  CHECK_OK(setregid(3, 1));
  CHECK_OK(seteuid(kNobody));
  CHECK(check_all_tasks("Uid:", "\t0\t65534\t0\t65534") > 0);
  CHECK_OK(seteuid(0));
  CHECK_OK(setreuid(7, 8));
  CHECK(check_all_tasks("Uid:", "\t7\t8\t8\t8") > 0);
  CHECK_OK(setresuid(-1, 7, 7));
  CHECK(check_all_tasks("Uid:", "\t7\t7\t7\t7") > 0);
  CHECK_FAILS(setresuid(0, -1, -1), EPERM);
  CHECK_FAILS(seteuid(-1), EINVAL);
  CHECK_FAILS(setegid(-1), EINVAL);
  return NULL;
}

static int change_on_thread(void *arg) {
  (void)arg;
  start_threads();
  join(start(changes, NULL));
  // Threads made later have the new ids too.
  pthread_t late = start(ends, NULL);
  CHECK(check_all_tasks("Uid:", "\t7\t7\t7\t7") > 0);
  join(late);
  stop_threads();
  return 0;
}

static void *changes_often(void *arg) {
  gid_t list[2] = {(gid_t)(uintptr_t)arg, 99};
  for (int i = 0; i < 20; i++) CHECK_OK(setgroups(2, list));
  return NULL;
}

static int change_at_once(void *arg) {
  (void)arg;
  pthread_t t[4];
  start_threads();
  for (uintptr_t i = 0; i < 4; i++) t[i] = start(changes_often, (void *)(i + 1));
  for (int i = 0; i < 4; i++) join(t[i]);
  gid_t last[2] = {5, 6};
  CHECK_OK(setgroups(2, last));
  CHECK(check_all_tasks("Groups:", "\t5 6 ") > 0);
  CHECK_OK(initgroups("root", 0));
  CHECK(check_all_tasks("Groups:", "\t0 ") > 0);
  stop_threads();
  return 0;
}

// A thread's own file-system ids are its own; the others keep theirs.
static void *changes_fsuid(void *arg) {
  (void)arg;
  CHECK_EQ(setfsuid(kNobody), 0);
  CHECK_EQ(setfsuid(-1), kNobody);
  CHECK_EQ(setfsgid(kNobody), 0);
  yield_some(50);
  CHECK_EQ(setfsgid(-1), kNobody);
  return NULL;
}

static int fsuid_of_one(void *arg) {
  (void)arg;
  start_threads();
  join(start(changes_fsuid, NULL));
  CHECK_EQ(setfsuid(-1), 0);
  CHECK_EQ(setfsgid(-1), 0);
  stop_threads();
  return 0;
}

// In a fork child of a threaded process, before and after it has threads again.
static int change_in_grandchild(void *arg) {
  (void)arg;
  start_threads();
  CHECK_OK(setegid(1));
  CHECK_EQ(in_child(change_on_main, NULL), 0);
  stop_threads();
  return 0;
}

static int change_before_threads(void *arg) {
  (void)arg;
  start_threads();
  CHECK_OK(setegid(1));
  pid_t pid = fork();
  if (pid == 0) {
    CHECK_OK(setgid(2));
    CHECK_OK(setuid(kNobody));
    CHECK_EQ(getuid(), (uid_t)kNobody);
    _exit(0);
  }
  int status = -1;
  CHECK_EQ(waitpid(pid, &status, 0), pid);
  CHECK_EQ(status, 0);
  stop_threads();
  return 0;
}

// One thread has taken other ids, by a call of its own, and is refused: libc ends the process by
// abort(), whose signal may be handled.
static void *takes_ids_of_its_own(void *arg) {
  CHECK_EQ(syscall(SYS_setresuid, 2001, 2002, 2003), 0);
  return sleeps(arg);
}
static void ends_well(int sig) { _exit(sig == SIGABRT ? 0 : 1); }

static int change_refused_by_one(void *arg) {
  (void)arg;
  start(takes_ids_of_its_own, NULL);
  AWAIT(LOAD(&running) == 1);
  CHECK(signal(SIGABRT, ends_well) != SIG_ERR);
  (void)!setresuid(1001, 1002, 1003);
  return 2;
}

#define CASE(name)                              \
  static void test_##name(void **state) {       \
    (void)state;                                \
    CHECK_EQ(exit_code(in_child(name, NULL)), 0); \
  }
CASE(change_on_main)
CASE(change_on_thread)
CASE(change_at_once)
CASE(fsuid_of_one)
CASE(change_in_grandchild)
CASE(change_before_threads)
CASE(change_refused_by_one)

int main(void) {
  if (geteuid() != 0) {
    puts("not root: the ids of others cannot be taken");
    return 77;
  }
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_change_on_main),       cmocka_unit_test(test_change_on_thread),
      cmocka_unit_test(test_change_at_once),       cmocka_unit_test(test_fsuid_of_one),
      cmocka_unit_test(test_change_in_grandchild), cmocka_unit_test(test_change_before_threads),
      cmocka_unit_test(test_change_refused_by_one),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}

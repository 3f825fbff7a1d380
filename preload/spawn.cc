// spawn.cc - posix_spawn and system: children that exec at once.
//
// posix_spawn's child shares our memory until it execs, on a stack of libc's making, and
// calls libc inside only: nothing of ours runs in it. The parent's kernel thread sleeps
// for that time, hence the bracket. It calls no malloc, so no interposed lock, inside.
// popen does, and is left to libc: its one wait is found by sysmon; so is pclose's.
//
// system is written out for Gs, as POSIX describes it, because libc's waits inside, on the
// M, and knows no cancellation of Gs. SIGINT and SIGQUIT are ignored while any system call
// of the process runs: counted, as libc does.
#include <paths.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

#include "preload/api.h"
#include "preload/io_fd.h"
#include "preload/vfork.h"

extern char** environ;

extern "C" {
extern int __sigsetjmp(struct __jmp_buf_tag*, int) __attribute__((returns_twice));
extern void __pthread_register_cancel(__pthread_unwind_buf_t*);
extern void __pthread_unregister_cancel(__pthread_unwind_buf_t*);
extern void __pthread_unwind_next(__pthread_unwind_buf_t*) __attribute__((noreturn));
}

using namespace weft;

WEFT_EXPORT int posix_spawn(pid_t* pid, const char* path, const posix_spawn_file_actions_t* actions,
                            const posix_spawnattr_t* attr, char* const argv[], char* const envp[]) {
  if (!in_vfork_child()) io_descriptors_shared();
  return in_syscall([&] { return real().posix_spawn(pid, path, actions, attr, argv, envp); });
}

WEFT_EXPORT int posix_spawnp(pid_t* pid, const char* file,
                             const posix_spawn_file_actions_t* actions,
                             const posix_spawnattr_t* attr, char* const argv[],
                             char* const envp[]) {
  if (!in_vfork_child()) io_descriptors_shared();
  return in_syscall([&] { return real().posix_spawnp(pid, file, actions, attr, argv, envp); });
}

WEFT_EXPORT FILE* popen(const char* command, const char* mode) {
  if (!in_vfork_child()) io_descriptors_shared();
  return real().popen(command, mode);
}
WEFT_TWIN(FILE*, _IO_popen, popen, (const char*, const char*));

namespace {

// Guarded by `system_word` (0 free, 1 held): sleepers are Gs, so it is a gfutex, not a Lock.
std::atomic<uint32_t> system_word{0};
int systems_running;
struct sigaction old_int, old_quit;

void system_lock() {
  while (system_word.exchange(1, std::memory_order_acquire) != 0)
    gfutex_wait(&system_word, 1, kNever, Wait::kOther);
}
void system_unlock() {
  system_word.store(0, std::memory_order_release);
  gfutex_wake(&system_word, 1);
}

void ignore_interrupts() {
  struct sigaction ignore = {};
  ignore.sa_handler = SIG_IGN;
  system_lock();
  if (systems_running++ == 0) {
    sigaction(SIGINT, &ignore, &old_int);
    sigaction(SIGQUIT, &ignore, &old_quit);
  }
  system_unlock();
}

void restore_interrupts() {
  system_lock();
  if (--systems_running == 0) {
    sigaction(SIGINT, &old_int, nullptr);
    sigaction(SIGQUIT, &old_quit, nullptr);
  }
  system_unlock();
}

int spawn_shell(const char* command, const sigset_t* mask, pid_t* pid) {
  posix_spawnattr_t attr;
  sigset_t defaults;
  sigemptyset(&defaults);
  if (old_int.sa_handler != SIG_IGN) sigaddset(&defaults, SIGINT);
  if (old_quit.sa_handler != SIG_IGN) sigaddset(&defaults, SIGQUIT);
  posix_spawnattr_init(&attr);
  posix_spawnattr_setsigmask(&attr, mask);
  posix_spawnattr_setsigdefault(&attr, &defaults);
  posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK);
  const char* argv[] = {"sh", "-c", command, nullptr};
  int err = posix_spawn(pid, _PATH_BSHELL, nullptr, &attr, const_cast<char* const*>(argv), environ);
  posix_spawnattr_destroy(&attr);
  return err;
}

// Not a cancellation point by itself.
int reap(pid_t pid) {
  int status = -1;
  long r;
  do {
    r = in_syscall_block([&] { return sys_call(SYS_wait4, pid, sys_arg(&status), 0, 0); });
  } while (r == -EINTR);
  if (r < 0) errno = static_cast<int>(-r);
  return r == pid ? status : -1;
}

// Waits for the shell; a cancel kills and reaps it on the way out. The jump buffer is what
// pthread_cleanup_push makes in C.
int wait_cancellable(pid_t pid, const sigset_t* mask) {
  __pthread_unwind_buf_t buf;
  if (__builtin_expect(
          __sigsetjmp(reinterpret_cast<struct __jmp_buf_tag*>(buf.__cancel_jmp_buf), 0) != 0, 0)) {
    sys_call(SYS_kill, pid, SIGKILL);
    reap(pid);
    restore_interrupts();
    pthread_sigmask(SIG_SETMASK, mask, nullptr);
    __pthread_unwind_next(&buf);
  }
  __pthread_register_cancel(&buf);
  int status = -1;
  pid_t r;
  do {
    r = waitpid(pid, &status, 0);
  } while (r < 0 && errno == EINTR);
  __pthread_unregister_cancel(&buf);
  return r == pid ? status : -1;
}

int g_system(const char* command) {
  sigset_t block, mask;
  pid_t pid = 0;
  cancel_point();
  ignore_interrupts();
  sigemptyset(&block);
  sigaddset(&block, SIGCHLD);
  pthread_sigmask(SIG_BLOCK, &block, &mask);
  int err = spawn_shell(command, &mask, &pid);
  int status = err == 0 ? wait_cancellable(pid, &mask) : 127 << 8;
  int saved = err != 0 ? err : errno;
  restore_interrupts();
  pthread_sigmask(SIG_SETMASK, &mask, nullptr);
  errno = saved;
  return status;
}

}  // namespace

namespace weft {
void spawn_after_fork() {
  system_word.store(0, std::memory_order_relaxed);
  systems_running = 0;
}
}  // namespace weft

WEFT_EXPORT int system(const char* command) {
  if (this_g() == nullptr) return real().system(command);
  if (command == nullptr) return g_system("exit 0") == 0;
  return g_system(command);
}

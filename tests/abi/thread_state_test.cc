// thread_state_test.cc - family: the C library's and the processor's state of each thread.
//
// Behaviours: errno, locale, ctype tables, strerror/strsignal buffers, the resolver's state,
// rand_r-free printf of doubles, malloc and free across threads, setjmp/longjmp, stack
// alignment and stack protector; rounding modes, x87 control word and mxcsr kept over
// yields and blocking; registers kept over long loops without calls.
// Invariant: no switch between threads changes what a thread left in its own state.
// libs: -lm -lresolv
#include "abi.h"

#include <ctype.h>
#include <fenv.h>
#include <locale.h>
#include <math.h>
#include <netdb.h>
#include <netinet/in.h>
#include <resolv.h>
#include <semaphore.h>
#include <wchar.h>
#include <xmmintrin.h>

static pthread_barrier_t barrier;

// Runs fn in n threads with ids 1..n that share `barrier`.
static void run_together(int n, void *(*fn)(void *)) {
  pthread_t t[128];
  CHECK_OK(pthread_barrier_init(&barrier, nullptr, (unsigned)n));
  for (long i = 0; i < n; i++) t[i] = start(fn, (void *)(i + 1));
  for (int i = 0; i < n; i++) join(t[i]);
  CHECK_OK(pthread_barrier_destroy(&barrier));
}

static void *errno_stays(void *arg) {
  int mine = (int)(long)arg;
  static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
  sem_t sem;
  sem_init(&sem, 0, 0);
  int *where = &errno;
  CHECK_EQ(errno, 0);
  for (int i = 0; i < 20; i++) {
    errno = mine;
    sched_yield();
    CHECK_EQ(errno, mine);
    pthread_barrier_wait(&barrier);
    CHECK_EQ(errno, mine);
    pthread_mutex_lock(&lock);
    sched_yield();
    CHECK_EQ(errno, mine);
    pthread_mutex_unlock(&lock);
    // Failures answered by value leave errno alone.
    struct timespec soon = in_us(CLOCK_REALTIME, 100);
    CHECK_EQ(pthread_mutex_trylock(&lock) == 0 ? pthread_mutex_unlock(&lock) : 0, 0);
    CHECK_FAILS(sem_timedwait(&sem, &soon), ETIMEDOUT);
    CHECK(&errno == where);
  }
  return nullptr;
}

static void errno_per_thread(void **) { run_together(60, errno_stays); }

static void *locale_stays(void *arg) {
  // A fresh thread has the global locale, whatever the slot's last thread used.
  CHECK(uselocale(nullptr) == LC_GLOBAL_LOCALE);
  CHECK_EQ(MB_CUR_MAX, 1);
  bool utf8 = (long)arg & 1;
  locale_t mine = newlocale(LC_ALL_MASK, utf8 ? "C.UTF-8" : "C", nullptr);
  CHECK(mine != nullptr);
  CHECK(uselocale(mine) == LC_GLOBAL_LOCALE);
  for (int i = 0; i < 10; i++) {
    CHECK_EQ(MB_CUR_MAX, utf8 ? 6 : 1);
    wchar_t w = 0;
    mbstate_t state = {};
    size_t n = mbrtowc(&w, "\xc3\xa4", 2, &state);
    if (utf8) CHECK(n == 2 && w == 0xe4);
    CHECK(uselocale(nullptr) == mine);
    if (i % 5 == 0) pthread_barrier_wait(&barrier);
    sched_yield();
  }
  // Left in use by half of them: the next thread in this slot must not see it.
  if ((long)arg % 4 < 2) {
    uselocale(LC_GLOBAL_LOCALE);
    freelocale(mine);
  }
  return nullptr;
}

static void locale_per_thread(void **) {
  for (int round = 0; round < 5; round++) run_together(24, locale_stays);
  CHECK(uselocale(nullptr) == LC_GLOBAL_LOCALE);
}

static void *ctype_works(void *) {
  for (int c = 'a'; c <= 'z'; c++) {
    CHECK(isalpha(c) && islower(c) && !isdigit(c));
    CHECK_EQ(toupper(c), c - 'a' + 'A');
  }
  CHECK(isspace(' ') && isxdigit('F') && ispunct('!'));
  CHECK_EQ(strcasecmp("MiXeD", "mIxEd"), 0);
  CHECK_EQ(strtol("  0x7f", nullptr, 0), 127);
  return nullptr;
}

static void ctype_tables_in_new_threads(void **) { run_together(20, ctype_works); }

static void *messages_are_mine(void *arg) {
  long id = (long)arg;
  char want[64], want_signal[64];
  for (int i = 0; i < 5; i++) {
    snprintf(want, sizeof want, "Unknown error %ld", 5000 + id);
    snprintf(want_signal, sizeof want_signal, "Unknown signal %ld", 100 + id);
    const char *error = strerror((int)(5000 + id)), *signal = strsignal((int)(100 + id));
    pthread_barrier_wait(&barrier);
    CHECK(strcmp(error, want) == 0);
    CHECK(strcmp(signal, want_signal) == 0);
    pthread_barrier_wait(&barrier);
  }
  return nullptr;
}

static void message_buffers_per_thread(void **) { run_together(20, messages_are_mine); }

static struct __res_state *resolver[32];
static void *resolver_is_mine(void *arg) {
  long id = (long)arg - 1;
  resolver[id] = __res_state();
  CHECK_OK(res_init());
  h_errno = (int)id + 50;
  _res.retry = (int)id + 1;
  pthread_barrier_wait(&barrier);
  CHECK(__res_state() == resolver[id]);
  CHECK_EQ(_res.retry, id + 1);
  CHECK_EQ(h_errno, id + 50);
  pthread_barrier_wait(&barrier);
  return nullptr;
}

static void resolver_state_per_thread(void **) {
  run_together(20, resolver_is_mine);
  for (int i = 0; i < 20; i++)
    for (int j = 0; j < i; j++) CHECK(resolver[i] != resolver[j]);
}

static void *resolve_numeric(void *) {
  for (int i = 0; i < 10; i++) {
    struct addrinfo hints = {}, *list = nullptr;
    hints.ai_flags = AI_NUMERICHOST;
    hints.ai_socktype = SOCK_STREAM;
    CHECK_OK(getaddrinfo("127.0.0.1", "8080", &hints, &list));
    const struct sockaddr_in *in = (const struct sockaddr_in *)list->ai_addr;
    CHECK_EQ(ntohl(in->sin_addr.s_addr), INADDR_LOOPBACK);
    CHECK_EQ(ntohs(in->sin_port), 8080);
    freeaddrinfo(list);
    CHECK(gai_strerror(EAI_NONAME) != nullptr);
    CHECK(getservbyname("no-such-service", "tcp") == nullptr);
  }
  return nullptr;
}

static void getaddrinfo_in_threads(void **) { run_together(16, resolve_numeric); }

static void *exchange[64];
static void *free_my_neighbours(void *arg) {
  long id = (long)arg - 1;
  for (int round = 0; round < 30; round++) {
    size_t bytes = (size_t)((id * 37 + round * 101) % 5000 + 16);
    char *mine = (char *)malloc(bytes);
    memset(mine, (int)id, bytes);
    *(size_t *)mine = bytes;
    exchange[id] = mine;
    pthread_barrier_wait(&barrier);
    long from = (id + round + 1) % 32;
    char *theirs = (char *)exchange[from];
    CHECK_EQ(theirs[*(size_t *)theirs - 1], from);
    pthread_barrier_wait(&barrier);
    free(theirs);
  }
  return nullptr;
}

static void memory_freed_by_another_thread(void **) { run_together(32, free_my_neighbours); }

static void *allocate_and_leave(void *arg) {
  void **list = (void **)malloc(64 * sizeof(void *));
  for (int i = 0; i < 64; i++) list[i] = memset(malloc((size_t)i * 20 + 1), (int)(long)arg, (size_t)i * 20 + 1);
  return list;
}

// Memory of ended threads is freed by main; slots and their caches are used again meanwhile.
static void memory_of_ended_threads(void **) {
  for (long round = 0; round < 200; round++) {
    void **list = (void **)join(start(allocate_and_leave, (void *)(round & 127)));
    for (int i = 0; i < 64; i++) {
      CHECK_EQ(((char *)list[i])[i * 20], round & 127);
      free(list[i]);
    }
    free(list);
  }
}

static __attribute__((noinline)) void jump_back(jmp_buf env, int depth) {
  volatile char frame[200];
  frame[0] = (char)depth;
  sched_yield();
  if (depth > 0)
    jump_back(env, depth - 1);
  else if (env)
    longjmp(env, 42);
  frame[1] = frame[0];
}

static void *jump_often(void *) {
  int rounds = 0, *counter = &rounds;
  jmp_buf env;
  while (*counter < 20) {
    int r = setjmp(env);
    if (r == 0) jump_back(env, 5);
    CHECK_EQ(r, 42);
    __atomic_add_fetch(counter, 1, __ATOMIC_RELAXED);
  }
  sigjmp_buf with_mask;
  sigset_t set, now;
  sigemptyset(&set);
  sigaddset(&set, SIGUSR1);
  if (sigsetjmp(with_mask, 1) == 0) {
    pthread_sigmask(SIG_BLOCK, &set, nullptr);
    sched_yield();
    siglongjmp(with_mask, 1);
  }
  pthread_sigmask(SIG_BLOCK, nullptr, &now);
  CHECK(!sigismember(&now, SIGUSR1));
  return nullptr;
}

static void jumps_inside_threads(void **) { run_together(16, jump_often); }

static void *alignment(void *arg) {
  alignas(16) float local[4];
  CHECK_EQ((uintptr_t)__builtin_frame_address(0) % 16, 0);
  CHECK_EQ((uintptr_t)local % 16, 0);
  _mm_store_ps(local, _mm_set1_ps((float)(long)arg));
  asm volatile("movaps %0, %%xmm1" ::"m"(*(float(*)[4])local) : "xmm1");
  char text[64];
  snprintf(text, sizeof text, "%.3f %Lg", (double)local[2] + 0.125, 2.5L);
  char want[64];
  snprintf(want, sizeof want, "%ld.125 2.5", (long)arg);
  CHECK(strcmp(text, want) == 0);
  return nullptr;
}

static void stack_alignment_at_entry(void **) { run_together(20, alignment); }

static __attribute__((noinline, optimize("stack-protector-all"))) int guarded(int depth) {
  volatile char buffer[64];
  for (size_t i = 0; i < sizeof buffer; i++) buffer[i] = (char)depth;
  sched_yield();
  return depth ? guarded(depth - 1) + (buffer[3] == depth) : 0;
}

static void *guarded_frames(void *) { return (void *)(long)guarded(20); }

static void *guard_value(void *) {
  uintptr_t guard;
  asm volatile("mov %%fs:0x28, %0" : "=r"(guard));
  return (void *)guard;
}

// One value in all threads: frames may move between them (coroutines) and fork keeps it.
static void stack_protector(void **) {
  for (int i = 0; i < 10; i++) CHECK_EQ((long)join(start(guarded_frames, nullptr)), 20);
  for (int i = 0; i < 10; i++) CHECK(join(start(guard_value, nullptr)) == guard_value(nullptr));
}

static void *rounding_stays(void *arg) {
  static const int modes[] = {FE_TONEAREST, FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO};
  static const unsigned short x87[] = {0x037f, 0x007f, 0x027f, 0x0f7f};
  CHECK_EQ(fegetround(), FE_TONEAREST);
  int mode = modes[(long)arg & 3];
  unsigned short control = x87[(long)arg >> 2 & 3], seen;
  unsigned mxcsr_extra = (long)arg & 1 ? _MM_FLUSH_ZERO_ON : 0;
  CHECK_OK(fesetround(mode));
  _mm_setcsr((_mm_getcsr() & ~(unsigned)_MM_FLUSH_ZERO_MASK) | mxcsr_extra);
  asm volatile("fldcw %0" ::"m"(control));
  volatile double one = 1, three = 3;
  double third = one / three;
  for (int i = 0; i < 20; i++) {
    sched_yield();
    if (i % 5 == 0) pthread_barrier_wait(&barrier);
    struct timespec tiny = {0, 1000};
    if (i % 7 == 0) nanosleep(&tiny, nullptr);
    CHECK(one / three == third);
    CHECK_EQ(_mm_getcsr() & _MM_ROUND_MASK, (unsigned)mode << 3);
    CHECK_EQ(_mm_getcsr() & _MM_FLUSH_ZERO_MASK, mxcsr_extra);
    asm volatile("fnstcw %0" : "=m"(seen));
    CHECK_EQ(seen, control);
  }
  return nullptr;
}

static void rounding_and_control_words_per_thread(void **) {
  for (int i = 0; i < 3; i++) run_together(32, rounding_stays);
  CHECK_EQ(fegetround(), FE_TONEAREST);
}

// 30 ms in a loop without calls, every register holding a value of this thread: whatever
// interrupts it must give all of them back, and the flags, and what lies below the stack
// pointer (the red zone).
static void *registers_stay(void *arg) {
  long id = (long)arg;
  uint64_t begin = (uint64_t)now_ns(CLOCK_MONOTONIC);
  do {
    long wrong = 0;
    asm volatile(
        "mov %[id], %%rbx\n mov %[id], %%r8\n mov %[id], %%r9\n mov %[id], %%r10\n"
        "mov %[id], %%r12\n mov %[id], %%r13\n mov %[id], %%r14\n mov %[id], %%r15\n"
        "movq %[id], %%xmm0\n movq %[id], %%xmm1\n movq %[id], %%xmm7\n movq %[id], %%xmm8\n"
        "movq %[id], %%xmm15\n mov %[id], -8(%%rsp)\n mov %[id], -120(%%rsp)\n"
        "mov $400000, %%ecx\n"
        "1: cmp %%rbx, %%r8\n jne 2f\n cmp %%r9, %%r10\n jne 2f\n cmp %%r12, %%r13\n jne 2f\n"
        "cmp %%r14, %%r15\n jne 2f\n cmp %%rbx, %%r15\n jne 2f\n cmp -8(%%rsp), %%rbx\n jne 2f\n"
        "cmp -120(%%rsp), %%r12\n jne 2f\n"
        "movq %%xmm0, %%rax\n cmp %%rax, %%rbx\n jne 2f\n movq %%xmm7, %%rax\n cmp %%rax, %%r9\n jne 2f\n"
        "movq %%xmm8, %%rax\n cmp %%rax, %%r9\n jne 2f\n movq %%xmm15, %%rax\n cmp %%rax, %%r9\n jne 2f\n"
        "dec %%ecx\n jnz 1b\n jmp 3f\n"
        "2: mov $1, %[wrong]\n"
        "3:\n"
        : [wrong] "+D"(wrong)
        : [id] "S"(id)
        : "rax", "rbx", "rcx", "r8", "r9", "r10", "r12", "r13", "r14", "r15", "xmm0", "xmm1",
          "xmm7", "xmm8", "xmm15", "memory", "cc");
    CHECK_EQ(wrong, 0);
  } while ((uint64_t)now_ns(CLOCK_MONOTONIC) - begin < 30000000);
  return nullptr;
}

static void registers_over_long_loops(void **) { run_together(12, registers_stay); }

int main() {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(errno_per_thread),
      cmocka_unit_test(locale_per_thread),
      cmocka_unit_test(ctype_tables_in_new_threads),
      cmocka_unit_test(message_buffers_per_thread),
      cmocka_unit_test(resolver_state_per_thread),
      cmocka_unit_test(getaddrinfo_in_threads),
      cmocka_unit_test(memory_freed_by_another_thread),
      cmocka_unit_test(memory_of_ended_threads),
      cmocka_unit_test(jumps_inside_threads),
      cmocka_unit_test(stack_alignment_at_entry),
      cmocka_unit_test(stack_protector),
      cmocka_unit_test(rounding_and_control_words_per_thread),
      cmocka_unit_test(registers_over_long_loops),
  };
  return cmocka_run_group_tests(tests, nullptr, nullptr);
}

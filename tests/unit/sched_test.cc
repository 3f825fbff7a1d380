// sched_test.cc - the whole engine on a fake host: thousands of Gs on 1, 2 and 8 Ps.
#include "sched/sched.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <thread>
#include <vector>

#include "tests/unit/fake_host.h"

using namespace weft;
using fake::Caller;

namespace {

void let_others_run() {
  G* g = this_g();
  engine_enter(g);
  yield(false);
  engine_exit(g);
}

void sleep_ns(uint64_t ns) {
  std::atomic<uint32_t> w{0};
  gfutex_wait(&w, 0, host_now_ns() + ns, Wait::kSleep);
}

long read_byte(int fd) {
  char c;
  return sys_call(SYS_read, fd, sys_arg(&c), 1);
}
void write_byte(int fd) {
  char c = 1;
  sys_call(SYS_write, fd, sys_arg(&c), 1);
}

thread_local int tls_word = 7;

}  // namespace

// Each test below runs with 1, 2 and 8 Ps.
#define ON_PROCS(name)                                                      \
  static void name(uint32_t procs);                                         \
  Test(sched, name##_on_1, .timeout = 60) { name(1); }                      \
  Test(sched, name##_on_2, .timeout = 60) { name(2); }                      \
  Test(sched, name##_on_8, .timeout = 60) { name(8); }                      \
  static void name(uint32_t procs)

ON_PROCS(all_of_5000_gs_run_once) {
  boot(procs);
  constexpr uint32_t kGs = 5000;
  std::vector<std::atomic<int>> ran(kGs);
  Latch l(kGs);
  for (uint32_t i = 0; i < kGs; i++)
    go([&, i] {
      ran[i]++;
      l.done();
    });
  l.wait();
  for (auto& r : ran) cr_assert_eq(r.load(), 1);
}

ON_PROCS(yielding_gs_all_get_on_and_keep_their_tls) {
  boot(procs, Caller::kG1);
  Latch l(500);
  for (int i = 0; i < 500; i++)
    go([&, i] {
      EXPECT(tls_word == 7);
      tls_word = i;
      errno = i;
      for (int k = 0; k < 100; k++) {
        let_others_run();
        EXPECT(tls_word == i && errno == i);
      }
      tls_word = 7;  // the fake host hands slots on as they are
      l.done();
    });
  l.wait();
  cr_assert_eq(tls_word, 7);
  cr_assert_eq(fake::failures(), 0);
}

ON_PROCS(a_tree_of_gs_creates_gs) {
  boot(procs);
  std::atomic<int> leaves{0};
  Latch l(1 << 12);
  std::function<void(int)> grow = [&](int depth) {
    if (depth == 0) {
      leaves++;
      l.done();
      return;
    }
    for (int k = 0; k < 2; k++) go([&, depth] { grow(depth - 1); });
  };
  go([&] { grow(12); });
  l.wait();
  cr_assert_eq(leaves.load(), 1 << 12);
}

// It ran on to the end of its slice: all 20,000 were alive at once, each in a slot of its own.
Test(sched, a_creator_lets_what_it_made_run, .timeout = 60) {
  boot(1, Caller::kG1);
  constexpr int kGs = 20'000;
  Latch l(kGs);
  std::atomic<int> ended{0};
  int most = 0;
  for (int made = 1; made <= kGs; made++) {
    go([&] {
      ended++;
      l.done();
    });
    int alive = made - ended.load();
    if (alive > most) most = alive;
  }
  l.wait();
  cr_assert_leq(most, 256);
}

ON_PROCS(ping_pong_by_gfutex) {
  boot(procs);
  std::atomic<uint32_t> ball{0};
  Latch l(2);
  for (uint32_t side = 0; side < 2; side++)
    go([&, side] {
      for (int i = 0; i < 20000; i++) {
        while (ball.load() != side) gfutex_wait(&ball, 1 - side, kNever, Wait::kFutex);
        ball.store(1 - side);
        gfutex_wake(&ball, 1);
      }
      l.done();
    });
  l.wait();
  cr_assert_eq(ball.load(), 0u);
}

ON_PROCS(a_ring_of_1000_passes_a_token) {
  boot(procs);
  constexpr uint32_t kGs = 1000;
  std::vector<std::atomic<uint32_t>> seat(kGs);
  Latch l(kGs);
  for (uint32_t i = 0; i < kGs; i++)
    go([&, i] {
      for (uint32_t round = 1; round <= 10; round++) {
        while (seat[i].load() < round) gfutex_wait(&seat[i], round - 1, kNever, Wait::kFutex);
        uint32_t to = (i + 1) % kGs;
        seat[to]++;
        gfutex_wake(&seat[to], 1);
      }
      l.done();
    });
  seat[0]++;
  gfutex_wake(&seat[0], 1);
  l.wait();
  cr_assert_eq(seat[0].load(), 11u);
}

ON_PROCS(sleepers_wake_in_time_and_not_before) {
  boot(procs);
  Latch l(300);
  for (uint64_t i = 0; i < 300; i++)
    go([&, i] {
      uint64_t want = 1'000'000 + i * 100'000, t0 = host_now_ns();
      sleep_ns(want);
      EXPECT(host_now_ns() - t0 >= want);
      l.done();
    });
  l.wait();
  cr_assert_eq(fake::failures(), 0);
}

// A G in a bracketed call must not hold its P: with one P the others still run.
ON_PROCS(a_blocked_system_call_gives_its_p_away) {
  boot(procs);
  int fd[2];
  cr_assert_eq(pipe(fd), 0);
  const int kBlocked = 12;
  Latch blocked(kBlocked), l(200);
  for (int i = 0; i < kBlocked; i++)
    go([&] {
      EXPECT(in_syscall([&] { return read_byte(fd[0]); }) == 1);
      blocked.done();
    });
  for (int i = 0; i < 200; i++)
    go([&] {
      for (int k = 0; k < 20; k++) let_others_run();
      l.done();
    });
  l.wait();
  cr_assert_eq(blocked.left(), static_cast<uint32_t>(kBlocked));
  for (int i = 0; i < kBlocked; i++) write_byte(fd[1]);
  blocked.wait();
  cr_assert_eq(fake::failures(), 0);
}

ON_PROCS(a_call_announced_as_blocking_gives_its_p_away) {
  boot(procs);
  int fd[2];
  cr_assert_eq(pipe(fd), 0);
  Latch blocked(10), l(50);
  for (int i = 0; i < 10; i++)
    go([&] {
      EXPECT(in_syscall_block([&] { return read_byte(fd[0]); }) == 1);
      blocked.done();
    });
  for (int i = 0; i < 50; i++) go([&] { l.done(); });
  l.wait();
  for (int i = 0; i < 10; i++) write_byte(fd[1]);
  blocked.wait();
  cr_assert_eq(fake::failures(), 0);
}

// The engine is not told of this read: sysmon has to find the sleeping M.
ON_PROCS(a_hidden_block_gives_its_p_away) {
  boot(procs);
  int fd[2];
  cr_assert_eq(pipe(fd), 0);
  const uint32_t kBlocked = procs + 2;
  Latch blocked(kBlocked), l(100);
  for (uint32_t i = 0; i < kBlocked; i++)
    go([&] {
      EXPECT(read_byte(fd[0]) == 1);
      let_others_run();  // comes back without a P
      blocked.done();
    });
  for (int i = 0; i < 100; i++)
    go([&] {
      for (int k = 0; k < 10; k++) let_others_run();
      l.done();
    });
  l.wait();
  for (uint32_t i = 0; i < kBlocked; i++) write_byte(fd[1]);
  blocked.wait();
  cr_assert_eq(fake::failures(), 0);
}

// Short and long calls, hidden ones, locks and sleeps at once, over and over.
ON_PROCS(retakes_race_returns) {
  boot(procs);
  fake::Mutex mu;
  uint64_t counter = 0;
  Latch l(60);
  for (int i = 0; i < 60; i++)
    go([&, i] {
      for (int k = 0; k < 60; k++) {
        struct timespec ts = {0, (i * 7 + k * 13) % 90 * 1000L};
        if ((i + k) % 3 == 0) sys_call(SYS_nanosleep, sys_arg(&ts));
        else if ((i + k) % 3 == 1) in_syscall([&] { return sys_call(SYS_nanosleep, sys_arg(&ts)); });
        else in_syscall_block([&] { return sys_call(SYS_nanosleep, sys_arg(&ts)); });
        mu.lock();
        counter++;
        mu.unlock();
        let_others_run();
      }
      l.done();
    });
  l.wait();
  cr_assert_eq(counter, 60u * 60);
}

// With nobody to use it and nothing to watch, a P was taken from each call of 20 us where all
// others were in calls too: another M woke for it, found nothing, and slept again.
ON_PROCS(gs_in_short_calls_keep_their_ps_when_nobody_wants_them) {
  boot(procs);
  Latch l(procs);
  std::atomic<uint64_t> lasted{0};  // calls after which sysmon may have taken the P all the same: 10 ms
  for (uint32_t i = 0; i < procs; i++)
    go([&] {
      for (int k = 0; k < 20; k++) {
        struct timespec ts = {0, 2'000'000};
        uint64_t since = host_now_ns();
        in_syscall([&] { return sys_call(SYS_nanosleep, sys_arg(&ts)); });
        lasted += host_now_ns() - since >= 8'000'000;
      }
      l.done();
    });
  l.wait();
  // Beside those, the first calls, while a new G waits yet.
  cr_assert_leq(sched.n_retakes.load(), lasted.load() + uint64_t{procs} * 20 / 4);
}

// A call that lasts until sysmon has taken the P, however late that comes.
void call_until_the_p_is_taken() {
  in_syscall([] {
    struct timespec ts = {0, 100'000};
    while (static_cast<uint32_t>(this_g()->state.load()) != kSyscallLost)
      sys_call(SYS_nanosleep, sys_arg(&ts));
    return 0;
  });
}

// Each such call kept its P until sysmon took it, 20 to 40 us later, with others waiting for it.
Test(sched, a_g_whose_calls_sleep_gives_its_p_up_by_itself, .timeout = 60) {
  boot(1);
  std::atomic<bool> over{false};
  Latch l(2);
  // First: it is to wait for the P when the other's call begins.
  go([&] {
    while (!over) let_others_run();
    l.done();
  });
  go([&] {
    struct timespec block = {0, 1'000'000};
    in_syscall_block([&] { return sys_call(SYS_nanosleep, sys_arg(&block)); });
    EXPECT(this_g()->call_habit == 0);  // given up by choice, not taken: it counted, once
    for (int k = 0; k < kCallsSleep; k++) call_until_the_p_is_taken();
    uint64_t taken = sched.n_retakes.load();
    for (int k = 0; k < 60; k++) {
      EXPECT(this_g()->call_habit == kCallsSleep);
      in_syscall([&] { return sys_call(SYS_nanosleep, sys_arg(&block)); });
    }
    EXPECT(this_g()->call_habit == kCallsSleep);
    EXPECT(sched.n_retakes.load() == taken);
    // One may be long: where others want the processors, its M can lose its core in it.
    for (int k = 0; k < 100 && this_g()->call_habit != 0; k++) in_syscall([] { return sys_call(SYS_getppid); });
    EXPECT(this_g()->call_habit == 0);
    over = true;
    l.done();
  });
  l.wait();
  cr_assert_eq(fake::failures(), 0);
}

// An M that has switched to g0 still names the G it left in curg, and may lose its core there.
// sysmon took that for the M of the call that the G made meanwhile on another M: it took the
// first M's P, behind its back (CHECK in release_p or acquire_p soon after).
Test(sched, no_p_is_taken_from_an_m_that_its_g_has_left, .timeout = 60) {
  boot(1);
  static M left, runs;
  static P p;
  static G g;
  left.curg = &g;
  left.p = &p;
  p.m = &left;
  runs.curg = &g;
  g.m = &runs;
  uint64_t called = uint64_t{7} << 32 | static_cast<uint64_t>(GState::kSyscall);
  g.state = called;
  cr_assert_not(retake_syscall(&p, &left, &g, called));
  cr_assert_eq(g.state.load(), called);
  g.state = static_cast<uint64_t>(GState::kRunning);
  cr_assert_not(retake_hidden(&p, &left, &g));
  cr_assert_eq(p.m.load(), &left);
  cr_assert_eq(left.retake.load(), 0u);
  cr_assert_not(sent_begin(&left, &g, kSentPoke, false));
  cr_assert_eq(left.sent.load(), 0u);
  g.m = &left;  // and now it is there
  cr_assert(sent_begin(&left, &g, kSentPoke, false));
  cr_assert(retake_hidden(&p, &left, &g));
  cr_assert_null(p.m.load());
}

// The overflow of a ring: one G readies far more than 256 others without a pause.
ON_PROCS(a_burst_of_ready_gs_overflows_and_is_not_lost) {
  boot(procs);
  Latch parked(2000), l(2000);
  std::atomic<uint32_t> gate{0};
  for (int i = 0; i < 2000; i++)
    go([&] {
      parked.done();
      while (gate.load() == 0) gfutex_wait(&gate, 0, kNever, Wait::kFutex);
      l.done();
    });
  parked.wait();
  go([&] {
    gate = 1;
    gfutex_wake(&gate, ~0u);
  });
  l.wait();
  cr_assert_eq(l.left(), 0u);
}

// On one P, with Gs that compute in the ring and in the global queue: who is preempted to make
// way gives it to the woken one, at every switch, and has its own turn before those who have
// to wait for the end of a slice. The upkeep of every 64th switch used to send the woken one
// to the ring's tail, behind all that compute, each of which then had a share first.
Test(sched, who_makes_way_makes_it_for_the_woken_one, .timeout = 60) {
  boot(1, Caller::kG1);
  constexpr int kRounds = 300;
  std::atomic<uint32_t> word{0};
  std::atomic<int> woken{0}, others{0};
  std::atomic<bool> stop{false};
  Latch ended(3);
  go([&] {
    for (uint32_t n = 0; !stop; n = word.load()) {
      gfutex_wait(&word, n, kNever, Wait::kFutex);
      woken++;
    }
    ended.done();
  });
  for (int i = 0; i < 2; i++)
    go([&] {
      while (!stop) {
        others++;
        engine_enter(this_g());
        yield_preempted(Preempt::kSliceOver);
        engine_exit(this_g());
      }
      ended.done();
    });
  while (others < 2) let_others_run();
  for (int i = 1; i <= kRounds; i++) {
    int before = others;
    word++;
    gfutex_wake(&word, 1);
    engine_enter(this_g());
    yield_preempted(Preempt::kMakeWay);
    engine_exit(this_g());
    EXPECT(woken == i);
    EXPECT(others <= before + 1);  // one may have been in the ring already
  }
  stop = true;
  word++;
  gfutex_wake(&word, 1);
  ended.wait();
  cr_assert_eq(fake::failures(), 0);
}

// Asked by a mark, then by a signal, it answered the mark once more as it came back, and lost its
// next slice.
Test(sched, who_is_asked_twice_gives_way_once, .timeout = 60) {
  boot(1, Caller::kG1);
  std::atomic<bool> stop{false};
  Latch ended(1);
  go([&] {
    while (!stop) let_others_run();
    ended.done();
  });
  for (Preempt why : {Preempt::kSliceOver, Preempt::kMakeWay}) {
    this_g()->attention.fetch_or(kAttPreempt | kAttMakeWay);
    engine_enter(this_g());
    yield_preempted(why);
    EXPECT((this_g()->attention & (kAttPreempt | kAttMakeWay)) == 0);
    engine_exit(this_g());
  }
  stop = true;
  ended.wait();
  cr_assert_eq(fake::failures(), 0);
}

// One that serves many goes ahead of a queue, not of those it gives way to: where the upkeep of
// every 64th switch fell on its own preemption it was next itself, and for ever, since that was
// no switch (redis with two I/O threads on one P).
Test(sched, who_serves_many_gives_way_too, .timeout = 60) {
  boot(1, Caller::kG1);
  constexpr int kOthers = 40;
  std::atomic<int> others{0};
  std::atomic<bool> stop{false};
  Latch ended(kOthers);
  for (int i = 0; i < kOthers; i++)
    go([&] {
      while (!stop) {
        others++;
        let_others_run();
      }
      ended.done();
    });
  this_g()->ahead = true;
  for (int i = 0; i < 1000; i++) {
    int before = others;
    engine_enter(this_g());
    yield_preempted(Preempt::kSliceOver);
    engine_exit(this_g());
    EXPECT(others > before);
    EXPECT(others <= before + 130);  // 64 switches, twice; not a round for each that waits
    if (i % 3 == 0) let_others_run();
  }
  stop = true;
  ended.wait();
  cr_assert_eq(fake::failures(), 0);
}

Test(sched, a_wired_g_runs_beside_the_others_and_can_block, .timeout = 60) {
  boot(1);
  int fd[2];
  cr_assert_eq(pipe(fd), 0);
  std::atomic<uint32_t> w{0};
  Latch ends(2), l(20);
  go([&] {
    wire_self("test");
    EXPECT(this_g() == nullptr);
    EXPECT(read_byte(fd[0]) == 1);
    while (w.load() == 0) gfutex_wait(&w, 0, kNever, Wait::kFutex);
    ends.done();
    for (;;) pause();  // its end is preload's business
  });
  for (int i = 0; i < 20; i++) go([&] { l.done(); });
  l.wait();
  write_byte(fd[1]);
  go([&] {
    w = 1;
    gfutex_wake(&w, 1);
    ends.done();
  });
  ends.wait();
  cr_assert_eq(fake::failures(), 0);
}

Test(sched, ten_thousand_parked_gs_need_no_kernel_threads, .timeout = 60) {
  boot(2);
  Latch parked(10000), l(10000);
  std::atomic<uint32_t> gate{0};
  for (int i = 0; i < 10000; i++)
    go([&] {
      parked.done();
      while (gate.load() == 0) gfutex_wait(&gate, 0, kNever, Wait::kCond);
      l.done();
    }, 16 << 10);
  parked.wait();
  cr_assert_leq(fake::kernel_threads_started.load(), 2u + 6u, "%u kernel threads, %lu hidden, %lu retaken",
                fake::kernel_threads_started.load(), sched.n_hidden.load(), sched.n_retakes.load());
  gate = 1;
  gfutex_wake(&gate, ~0u);
  l.wait();
}

Test(sched, an_idle_process_comes_to_rest_and_wakes_again, .timeout = 60) {
  boot(2);
  Latch first(1);
  go([&] { first.done(); });
  first.wait();
  // sysmon sleeps for good once every P has been idle for a second.
  cr_assert(wait_until([&] { return sched.sysmon_word.load() == 1; }));
  int fd[2];
  cr_assert_eq(pipe(fd), 0);
  Latch l(3);
  go([&] {
    read_byte(fd[0]);  // hidden: needs sysmon awake
    l.done();
  });
  for (int i = 0; i < 2; i++)
    go([&] {
      let_others_run();
      l.done();
    });
  cr_assert(wait_until([&] { return l.left() == 1; }));
  write_byte(fd[1]);
  l.wait();
}

// netpoll_test.cc - waits for descriptors: edges, takers and observers, closing, settling, repair.
#include "sched/netpoll.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <thread>

#include "sched/polldesc.h"
#include "tests/unit/fake_host.h"

using namespace weft;

namespace {

constexpr uint64_t kMs = 1'000'000;

// One byte the way preload/io_rw.cc reads it; `untried`: the first try is left out, and the wait is
// `told` so.
long take_byte(int fd, uint64_t deadline = kNever, bool untried = false, bool told = true) {
  PollTurn t;
  poll_turn_begin(t, polldesc_get(fd), kPollIn);
  for (bool first = true;; first = false) {
    poll_turn_sample(t);
    char c = 0;
    struct iovec one = {&c, 1};
    long r = first && untried ? -EAGAIN
                              : sys_call(SYS_preadv2, t.pd->fd, sys_arg(&one), 1, -1, -1, RWF_NOWAIT);
    if (r != -EAGAIN) {
      poll_turn_end(t);
      return r == 1 ? c : r;
    }
    int w = poll_turn_wait(t, deadline, Wait::kRead, first && untried && told);
    if (w != 0) {
      poll_turn_end(t);
      return w;
    }
  }
}

void put(int fd, const char* s, size_t n = 1) { EXPECT(write(fd, s, n) == static_cast<ssize_t>(n)); }

// Of the pipe of which `end` is one. Not all there are: sysmon has a low one for a moment when it
// first looks whether an M sleeps.
int descriptors_of_pipe(int end) {
  struct stat want = {}, is = {};
  EXPECT(fstat(end, &want) == 0);
  int n = 0;
  for (int fd = 0; fd < 8192; fd++) n += fstat(fd, &is) == 0 && is.st_dev == want.st_dev && is.st_ino == want.st_ino;
  return n;
}

// A pipe with `number` as its end to read from, which becomes free at the latest when sysmon's is closed.
bool pipe_at(int number, int ends[2]) {
  return wait_until([&] {
    if (pipe(ends) != 0) return false;
    if (ends[0] == number) return true;
    close(ends[0]);
    close(ends[1]);
    return false;
  });
}

bool someone_waits(int fd) {
  PollDesc* pd = polldesc_peek(fd);
  return pd != nullptr && pd->head[kPollIn] != nullptr;
}

}  // namespace

#define ON_PROCS(name)                                                        \
  static void name(uint32_t procs);                                           \
  Test(netpoll, name##_on_1, .timeout = 60) { name(1); }                      \
  Test(netpoll, name##_on_2, .timeout = 60) { name(2); }                      \
  Test(netpoll, name##_on_8, .timeout = 60) { name(8); }                      \
  static void name(uint32_t procs)

ON_PROCS(ping_pong_over_pipes) {
  boot(procs);
  int a[2], b[2];
  cr_assert(pipe(a) == 0 && pipe(b) == 0);
  Latch done(2);
  go([&] {
    for (int i = 0; i < 3000; i++) {
      put(a[1], "x");
      EXPECT(take_byte(b[0]) == 'y');
    }
    done.done();
  });
  go([&] {
    for (int i = 0; i < 3000; i++) {
      EXPECT(take_byte(a[0]) == 'x');
      put(b[1], "y");
    }
    done.done();
  });
  done.wait();
  cr_assert(fake::failures() == 0);
  cr_assert(netpoll_repaired() == 0, "%lu lost wake-ups", netpoll_repaired());
}

// Many bytes come as one edge: each woken taker passes the rest on.
ON_PROCS(one_edge_serves_all_takers) {
  boot(procs);
  int p[2];
  cr_assert(pipe(p) == 0);
  constexpr uint32_t kTakers = 200;
  for (int round = 0; round < 5; round++) {
    Latch done(kTakers);
    for (uint32_t i = 0; i < kTakers; i++)
      go([&] {
        EXPECT(take_byte(p[0]) == 'z');
        done.done();
      });
    cr_assert(wait_until([&] { return someone_waits(p[0]); }));
    char all[kTakers];
    for (char& c : all) c = 'z';
    put(p[1], all, kTakers);
    done.wait();
  }
  cr_assert(fake::failures() == 0);
  cr_assert(netpoll_repaired() == 0);
}

// An edge on a descriptor that nobody waits for ended the sleep of the M in the netpoller, which
// then stopped. The waits that were left were found by sysmon every 10 ms, and once it slept
// deep by nobody: git clone hung in a read of its pipe.
ON_PROCS(an_event_for_nobody_does_not_end_the_watch) {
  boot(procs);
  int a[2], b[2];
  cr_assert(pipe(a) == 0 && pipe(b) == 0);
  Latch done(1);
  go([&] {
    EXPECT(take_byte(b[0]) == 'b');  // registered from here on
    EXPECT(take_byte(a[0]) == 'a');
    done.done();
  });
  auto watched = [] { return sched.last_poll_ns.load() == 0; };
  cr_assert(wait_until([&] { return someone_waits(b[0]); }));
  put(b[1], "b");
  cr_assert(wait_until([&] { return someone_waits(a[0]) && watched(); }));
  for (int i = 0; i < 20; i++) {
    uint64_t before = netpoll_stats().polls;
    put(b[1], "n");
    cr_assert(wait_until([&] { return netpoll_stats().polls != before && watched(); }), "event %d", i);
  }
  put(a[1], "a");
  done.wait();
  cr_assert(fake::failures() == 0);
}

// The same for a break, which a sleeper with an earlier deadline makes: the M that came back
// found that sleeper's M idle already, nothing due, and stopped. Once sysmon slept deep (1 s)
// no timer fired any more: sleep(1) of a thread beside another's timed rwlock wait hung.
ON_PROCS(a_break_does_not_end_the_watch_over_timers) {
  boot(procs);
  std::atomic<uint32_t> never{0};
  Latch done(1);
  go([&] {
    gfutex_wait(&never, 0, host_now_ns() + 1500 * kMs, Wait::kSleep);
    done.done();
  });
  cr_assert(wait_until([&] { return sched.last_poll_ns.load() == 0; }));
  for (int i = 0; i < 20; i++) {
    netpoll_break();
    sys_sleep_ns(kMs);  // it comes back; how far does not matter
  }
  cr_assert(wait_until([&] { return done.left() == 0; }));
  cr_assert(fake::failures() == 0);
}

ON_PROCS(hang_up_wakes_all) {
  boot(procs);
  int p[2];
  cr_assert(pipe(p) == 0);
  Latch done(50);
  for (int i = 0; i < 50; i++)
    go([&] {
      EXPECT(take_byte(p[0]) == 0);
      done.done();
    });
  cr_assert(wait_until([&] { return someone_waits(p[0]); }));
  close(p[1]);
  done.wait();
  cr_assert(fake::failures() == 0);
}

ON_PROCS(deadline_ends_a_wait) {
  boot(procs);
  int p[2];
  cr_assert(pipe(p) == 0);
  Latch done(1);
  go([&] {
    uint64_t until = host_now_ns() + 3 * kMs;
    EXPECT(take_byte(p[0], until) == -ETIMEDOUT);
    EXPECT(host_now_ns() >= until);
    done.done();
  });
  done.wait();
  cr_assert(!someone_waits(p[0]));
  cr_assert(fake::failures() == 0);
}

// The edge was used up before the wait, as by a read that left something behind.
ON_PROCS(untried_wait_on_ready_data_is_settled) {
  boot(procs);
  int p[2];
  cr_assert(pipe(p) == 0);
  Latch done(1);
  go([&] {
    for (int i = 0; i < 20; i++) {
      put(p[1], "ab", 2);
      EXPECT(take_byte(p[0]) == 'a');
      EXPECT(take_byte(p[0], kNever, true) == 'b');
    }
    done.done();
  });
  done.wait();
  cr_assert(fake::failures() == 0);
  cr_assert(netpoll_repaired() == 0);
}

ON_PROCS(untried_wait_is_settled_while_the_p_computes) {
  boot(procs);
  int p[2];
  cr_assert(pipe(p) == 0);
  std::atomic<bool> got{false};
  Latch done(2);
  put(p[1], "cd", 2);
  go([&] {
    EXPECT(take_byte(p[0]) == 'c');
    EXPECT(take_byte(p[0], kNever, true) == 'd');
    got.store(true);
    done.done();
  });
  go([&] {  // on one P nothing else runs until this lets go, now and then
    while (!got.load()) {
      G* g = this_g();
      engine_enter(g);
      yield(false);
      engine_exit(g);
    }
    done.done();
  });
  done.wait();
  cr_assert(fake::failures() == 0);
}

// The file stays with who waited for it; its number is free at once.
ON_PROCS(closing_moves_takers_to_a_duplicate) {
  boot(procs);
  int p[2], q[2];
  cr_assert(pipe(p) == 0);
  Latch done(3);
  for (int i = 0; i < 3; i++)
    go([&] {
      EXPECT(take_byte(p[0]) == 'o');
      done.done();
    });
  cr_assert(wait_until([&] {
    PollDesc* pd = polldesc_peek(p[0]);
    if (pd == nullptr) return false;
    int n = 0;
    pd->lock.lock();
    for (PollWaiter* w = pd->head[kPollIn]; w != nullptr; w = w->next) n++;
    pd->lock.unlock();
    return n == 3;
  }));
  polldesc_retire(polldesc_peek(p[0]));
  close(p[0]);
  cr_assert(pipe_at(p[0], q), "the number is free");
  cr_assert(polldesc_next_orphan(0) != __INT_MAX__);
  put(q[1], "nnn", 3);  // not theirs
  put(p[1], "ooo", 3);
  done.wait();
  cr_assert(wait_until([] { return polldesc_next_orphan(0) == __INT_MAX__; }));
  cr_assert(wait_until([&] { return descriptors_of_pipe(p[1]) == 1; }));
  cr_assert(fake::failures() == 0);
}

ON_PROCS(observers_see_the_edge_and_take_nothing) {
  boot(procs);
  int p[2], q[2];
  cr_assert(pipe(p) == 0 && pipe(q) == 0);
  Latch done(11);
  for (int i = 0; i < 10; i++)
    go([&] {
      for (;;) {
        PollWatch w[2];
        for (int k = 0; k < 2; k++) {
          w[k].pd = polldesc_get(k == 0 ? q[0] : p[0]);
          w[k].seq = w[k].pd->seq[kPollIn].load();
        }
        struct pollfd f[2] = {{q[0], POLLIN, 0}, {p[0], POLLIN, 0}};
        if (poll(f, 2, 0) > 0) break;
        EXPECT(poll_watch_wait(w, 2, kNever, Wait::kPoll) == 0);
      }
      done.done();
    });
  cr_assert(wait_until([&] { return someone_waits(p[0]); }));
  put(p[1], "k");
  cr_assert(wait_until([&] { return done.left() == 1; }));
  go([&] {
    EXPECT(take_byte(p[0]) == 'k');
    done.done();
  });
  done.wait();
  cr_assert(!someone_waits(p[0]) && !someone_waits(q[0]));
  cr_assert(fake::failures() == 0);
}

// The number is closed and made anew without our knowing, as fclose does.
ON_PROCS(a_stale_registration_is_found) {
  boot(procs);
  int p[2], q[2];
  cr_assert(pipe(p) == 0);
  Latch armed(1), done(1);
  go([&] {
    EXPECT(take_byte(p[0]) == '1');
    armed.done();
  });
  cr_assert(wait_until([&] { return someone_waits(p[0]); }));
  put(p[1], "1");
  armed.wait();
  close(p[0]);
  close(p[1]);
  cr_assert(pipe_at(p[0], q));
  go([&] {
    EXPECT(take_byte(q[0]) == '2');
    done.done();
  });
  cr_assert(wait_until([&] { return someone_waits(q[0]); }));
  uint64_t before = host_now_ns();
  put(q[1], "2");
  done.wait();
  cr_assert(host_now_ns() - before < 2000 * kMs);
  cr_assert(netpoll_stats().readded + netpoll_repaired() >= 1);
  cr_assert(fake::failures() == 0);
}

ON_PROCS(breaks_end_a_sleep_with_and_without_epoll) {
  boot(procs);
  int p[2];
  cr_assert(pipe(p) == 0);
  for (int i = 0; i < 2; i++) {
    Latch done(1);
    go([&] {  // a long timer first, then a short one must not wait for it
      std::atomic<uint32_t> w{0};
      go([] {
        std::atomic<uint32_t> never{0};
        gfutex_wait(&never, 0, host_now_ns() + 400 * kMs, Wait::kSleep);
      });
      uint64_t from = host_now_ns();
      gfutex_wait(&w, 0, from + 20 * kMs, Wait::kSleep);
      EXPECT(host_now_ns() - from >= 20 * kMs);
      done.done();
    });
    done.wait();
    go([&] { take_byte(p[0]); });  // epoll from here on
    cr_assert(wait_until([&] { return someone_waits(p[0]); }));
  }
  cr_assert(fake::failures() == 0);
}

namespace {

// A reader on end[0] of a socket pair whose first byte came with a second one, by one edge. Its
// next read leaves the try out; `meanwhile` runs on the same P, before that has nothing to do.
void read_untried(int end[2], std::function<void()> meanwhile, bool told = true) {
  Latch done(1);
  go([&] {
    EXPECT(take_byte(end[0]) == 'x');
    go(meanwhile);
    EXPECT(take_byte(end[0], kNever, true, told) == 'y');
    done.done();
  });
  cr_assert(wait_until([&] { return someone_waits(end[0]); }));
  put(end[1], "xy", 2);
  done.wait();
}

}  // namespace

// A wait for room on the same socket made the read's note look outdated: the read stood until
// re-verification woke it, 60 ms later, and was counted as a lost wake-up.
ON_PROCS(a_wait_for_room_leaves_an_untried_read_to_be_settled) {
  boot(procs);
  int end[2];
  cr_assert(socketpair(AF_UNIX, SOCK_STREAM, 0, end) == 0);
  std::atomic<int> filled{0};
  auto fill = [&] {
    PollTurn t;
    poll_turn_begin(t, polldesc_get(end[0]), kPollOut);
    for (bool full = false; !full;) {
      poll_turn_sample(t);
      char some[4096] = {};
      if (sys_call(SYS_sendto, end[0], sys_arg(some), sizeof some, MSG_DONTWAIT, 0, 0) == -EAGAIN)
        full = poll_turn_wait(t, kNever, Wait::kWrite) == 0;
    }
    poll_turn_end(t);
    filled++;
  };
  auto drain = [&](int times) {
    char sink[4096];
    cr_assert(wait_until([&] {
      while (recv(end[1], sink, sizeof sink, MSG_DONTWAIT) > 0) {
      }
      return filled == times;
    }));
  };
  go(fill);  // registered for room from here on: that would tell of the bytes, too
  drain(1);
  read_untried(end, fill);
  cr_assert(netpoll_repaired() == 0 && netpoll_readded() == 0, "it was not settled");
  drain(2);
  cr_assert(fake::failures() == 0);
}

// Re-verification may be the first to look at a wait that began without a try. It counted an edge
// as lost that never was to come: 15 in a soak of ten minutes.
Test(netpoll, an_untried_wait_that_verification_wakes_is_no_repair, .timeout = 60) {
  boot(1);
  int end[2];
  cr_assert(socketpair(AF_UNIX, SOCK_STREAM, 0, end) == 0);
  read_untried(end, [] { netpoll_settle_after_fork(); });  // as if nobody had settled it
  cr_assert(netpoll_readded() == 1, "it was not verification that woke it");
  cr_assert(netpoll_repaired() == 0);
  cr_assert(fake::failures() == 0);
}

Test(netpoll, a_lost_edge_is_found_and_counted, .timeout = 60) {
  boot(1);
  int end[2];
  cr_assert(socketpair(AF_UNIX, SOCK_STREAM, 0, end) == 0);
  read_untried(end, [] {}, false);
  cr_assert(netpoll_readded() == 1 && netpoll_repaired() == 1);
  cr_assert(fake::failures() == 0);
}

// P took up those in the global queue, found enough in its ring then, and said that it had looked
// at the netpoller; sysmon believed it. Nor did sysmon look where it knew that P had not: for as
// long as somebody filled that queue no event was fetched.
Test(netpoll, events_are_fetched_beside_a_global_queue_that_is_never_empty, .timeout = 60) {
  boot(1);
  int p[2];
  cr_assert(pipe(p) == 0);
  constexpr uint32_t kBusy = 3000;
  constexpr int kBytes = 10;
  static std::atomic<uint32_t> word[kBusy];
  std::atomic<int> taken{0};
  std::atomic<bool> stop{false};
  Latch done(kBusy + 1);
  go([&] {
    for (; taken < kBytes; taken++) EXPECT(take_byte(p[0]) == 'b');
    done.done();
  });
  for (auto& w : word)
    go([&] {
      while (!stop) {
        gfutex_wait(&w, 0, kNever, Wait::kFutex);
        w = 0;
        for (uint64_t until = tsc() + 20000; tsc() < until;) cpu_relax();
      }
      done.done();
    });
  std::thread waker([&] {
    while (done.left() != 0)
      for (auto& w : word) {
        w = 1;
        gfutex_wake(&w, 1);
      }
  });
  for (int i = 0; i < kBytes; i++) {
    cr_expect(wait_until([] { return sched.globq_n > 100; }));
    put(p[1], "b");
    cr_expect(wait_until([&] { return taken > i; }), "byte %d", i);
  }
  stop = true;
  waker.join();
  done.wait();
  cr_assert(fake::failures() == 0);
}

// netpoll.cc - see netpoll.h: the epoll descriptor, its numbers, waiting, breaking.
//
// Each descriptor is added once, edge-triggered, at the first wait for it; EPOLLOUT joins at
// the first wait for room. (A unix socket reports room at every read of its peer: asked
// for from the start, each message would cost an event nobody wants.) An event carries
// [tag:32 | fd:32]; one whose tag is not the number's present life is dropped.
//
// Break: an eventfd, level-triggered, drained by the M that blocks. `breaking` says that a
// break is under way, so a burst of them costs one write. Without epoll it is a futex word.
//
// Numbers: above the soft limit where the hard one allows (it is raised for the moment of
// the dup), so that the program gets as many descriptors, and the same ones, as without
// us; else below 4096 (the kernel copies the table up to the highest number in each fork).
//
// Precision: epoll_pwait2 may come 0.1 % late on top of 50 us. A long sleep is therefore
// cut: up to 0.2 % before its end, then the rest.
//
// Why epoll and not io_uring, measured 26 November 2026, 2 cores, kernel 6.18. Files: 64 random
// reads of 4 KiB under way, past the page cache: a bare io_uring loop 69 to 73 k/s, weft's calls
// on kernel threads 68 to 71, native threads 72 to 74 (processor time 4, 10 and 9 us each);
// from the page cache 0.8 M/s against 1.3 to 1.6. Sockets: a bare io_uring echo loop of one
// thread, no threads scheduled at all, 100 connections: 150 k/s, weft on one P 150; 1000: 120
// against 99 (medians of 3, spread 40 %). What is left to win did not seem worth a second
// way to wait, with its own cancelling, closing, forking and lifetime of buffers.
#include "sched/netpoll.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>

#include "sched/asleep.h"
#include "sched/polldesc.h"

namespace weft {
namespace {

constexpr int kEvents = 128;              // Go's; a fuller batch waits for the next look
constexpr uint64_t kBreakData = ~uint64_t{0};
constexpr int kLowHigh = 4096;
constexpr uint64_t kSlackNs = 60'000;

constexpr uint32_t kEvIn = 0x001, kEvPri = 0x002, kEvOut = 0x004, kEvErr = 0x008, kEvHup = 0x010,
                   kEvRdnorm = 0x040, kEvRdband = 0x080, kEvWrnorm = 0x100, kEvWrband = 0x200,
                   kEvRdhup = 0x2000, kEvEt = 1u << 31;
constexpr uint32_t kMaskIn = kEvIn | kEvPri | kEvRdnorm | kEvRdband | kEvRdhup;
constexpr uint32_t kMaskOut = kEvOut | kEvWrnorm | kEvWrband;

struct __attribute__((packed)) Event {  // the kernel's epoll_event
  uint32_t events;
  uint64_t data;
};

Lock init_lock;                           // leaf; making and moving the two numbers
std::atomic<int> ep_fd{-1};
std::atomic<int> ev_fd{-1};
std::atomic<bool> off{false};
std::atomic<bool> no_pwait2{false};
std::atomic<uint32_t> breaking{0};
std::atomic<uint32_t> break_word{0};      // without epoll
std::atomic<uint64_t> n_events{0}, n_breaks{0};
// Looks begun and handled to the end; equal when no M holds events it has not handled yet.
std::atomic<uint64_t> n_begun{0}, n_done{0};
std::atomic<uint64_t> n_slept{0};         // blocking looks handled to the end
std::atomic<uint64_t> n_drained{0};       // looks that left no event in the kernel
std::atomic<bool> sleeping{false};        // an M is in one

long ctl(int op, int fd, uint32_t events, uint64_t data) {
  Event ev = {events, data};
  return sys_call(SYS_epoll_ctl, ep_fd.load(std::memory_order_relaxed), op, fd, sys_arg(&ev));
}

uint32_t mask_of(uint32_t dirs) {
  return ((dirs & 1u << kPollIn) != 0 ? kMaskIn : 0) |
         ((dirs & 1u << kPollOut) != 0 ? kMaskOut : 0) | kEvEt;
}

uint64_t data_of(const PollDesc* pd) {
  return uint64_t{pd->tag.load(std::memory_order_relaxed)} << 32 | static_cast<uint32_t>(pd->fd);
}

int make() {
  Hold hold(init_lock);
  if (int ep = ep_fd.load(std::memory_order_relaxed); ep >= 0) return ep;
  if (off.load(std::memory_order_relaxed)) return -ENOSYS;
  long low = sys_call(SYS_epoll_create1, EPOLL_CLOEXEC);
  if (low < 0) return static_cast<int>(low);
  int ep = netpoll_high_dup(static_cast<int>(low));
  sys_call(SYS_close, low);
  if (ep < 0) return ep;
  low = sys_call(SYS_eventfd2, 0, EFD_CLOEXEC | EFD_NONBLOCK);
  int ev = low < 0 ? static_cast<int>(low) : netpoll_high_dup(static_cast<int>(low));
  if (low >= 0) sys_call(SYS_close, low);
  if (ev < 0) {
    sys_call(SYS_close, ep);
    return ev;
  }
  Event e = {kEvIn, kBreakData};
  sys_call(SYS_epoll_ctl, ep, EPOLL_CTL_ADD, ev, sys_arg(&e));
  asleep_reserve(ev);
  ev_fd.store(ev, std::memory_order_relaxed);
  ep_fd.store(ep, std::memory_order_release);
  // Whoever sleeps on the word comes back and finds epoll.
  break_word.store(1, std::memory_order_seq_cst);
  sys_futex_wake(&break_word, 1 << 30);
  return ep;
}

void sleep_without_epoll(uint64_t deadline) {
  while (break_word.exchange(0, std::memory_order_acq_rel) == 0)
    if (sys_futex_wait(&break_word, 0, deadline) == -ETIMEDOUT) return;
}

long wait_once(int ep, Event* ev, uint64_t ns) {
  if (!no_pwait2.load(std::memory_order_relaxed)) {
    struct timespec ts = {static_cast<time_t>(ns / 1000000000u),
                          static_cast<long>(ns % 1000000000u)};
    long n = sys_call(SYS_epoll_pwait2, ep, sys_arg(ev), kEvents,
                      ns == kNever ? 0 : sys_arg(&ts), 0, 8);
    if (n != -ENOSYS && n != -EPERM) return n;  // EPERM: a seccomp filter older than the call
    no_pwait2.store(true, std::memory_order_relaxed);
  }
  uint64_t ms = ns == kNever ? 0 : (ns + 999'999) / 1'000'000;
  long t = ns == kNever ? -1 : ms > 0x7fffffff ? 0x7fffffff : static_cast<long>(ms);
  return sys_call(SYS_epoll_pwait, ep, sys_arg(ev), kEvents, t, 0, 8);
}

long wait_until(int ep, Event* ev, uint64_t delay) {
  if (delay == 0) return sys_call(SYS_epoll_pwait, ep, sys_arg(ev), kEvents, 0, 0, 8);
  if (delay == kNever) return wait_once(ep, ev, kNever);
  uint64_t deadline = host_now_ns() + delay;
  for (;;) {
    uint64_t slack = delay / 1000;
    bool cut = slack > kSlackNs;
    long n = wait_once(ep, ev, cut ? delay - 2 * slack : delay);
    if (n != 0 || !cut) return n;
    uint64_t now = host_now_ns();
    if (now >= deadline) return 0;
    delay = deadline - now;
  }
}

void handle(const Event& e, GList& out) {
  PollDesc* pd = polldesc_peek(static_cast<int>(e.data & 0xffffffffu));
  if (pd == nullptr) return;
  uint32_t dirs = 0;
  bool all = false;
  uint32_t sticky = 0;
  if ((e.events & kMaskIn) != 0) dirs |= 1u << kPollIn;
  if ((e.events & kMaskOut) != 0) dirs |= 1u << kPollOut;
  if ((e.events & (kEvErr | kEvHup)) != 0) {
    dirs = 3;
    all = true;
  }
  if ((e.events & (kEvErr | kEvHup | kEvRdhup)) != 0) sticky |= kSeenHup;
  if ((e.events & kEvPri) != 0) sticky |= kSeenPri;
  pd->lock.lock();
  if (pd->tag.load(std::memory_order_relaxed) == static_cast<uint32_t>(e.data >> 32)) {
    if (sticky != 0) pd->sticky.fetch_or(sticky, std::memory_order_relaxed);
    polldesc_fire(pd, dirs & ~(1u << kPollIn), all, out);
    if ((dirs & 1u << kPollIn) != 0)
      polldesc_fire(pd, 1u << kPollIn, all || (e.events & kEvRdhup) != 0, out);
  }
  pd->lock.unlock();
}

}  // namespace

// ---------------------------------------------------------------- for the scheduler

GList netpoll(uint64_t delay_ns, bool* more) {
  GList out;
  int ep = ep_fd.load(std::memory_order_acquire);
  if (ep < 0) {
    if (delay_ns != 0)
      sleep_without_epoll(delay_ns == kNever ? kNever : host_now_ns() + delay_ns);
    return out;
  }
  Event ev[kEvents];
  bool blocks = delay_ns != 0;
  if (blocks) sleeping.store(true, std::memory_order_relaxed);
  else n_begun.fetch_add(1, std::memory_order_relaxed);  // locked: before the system call
  long n = wait_until(ep, ev, delay_ns);
  bool drained = n >= 0 && n < kEvents;
  if (drained) n_drained.fetch_add(1, std::memory_order_relaxed);
  if (more != nullptr) *more = !drained;
  if (n > 0) n_events.fetch_add(static_cast<uint64_t>(n), std::memory_order_relaxed);
  for (long i = 0; i < n; i++) __builtin_prefetch(polldesc_peek(static_cast<int>(ev[i].data & 0xffffffffu)), 1);
  for (long i = 0; i < n; i++) {
    if (ev[i].data != kBreakData) {
      if (i + 4 < n)
        if (PollDesc* ahead = polldesc_peek(static_cast<int>(ev[i + 4].data & 0xffffffffu)))
          __builtin_prefetch(ahead->head[kPollIn], 1);
      handle(ev[i], out);
    } else if (delay_ns != 0) {  // meant for the M that blocks: it alone drains
      uint64_t count;
      sys_call(SYS_read, ev_fd.load(std::memory_order_relaxed), sys_arg(&count), sizeof count);
      breaking.store(0, std::memory_order_release);
    }
  }
  // Release: netpoll_all_handled's acquire sees what we did to the PollDescs.
  if (blocks) {
    sleeping.store(false, std::memory_order_relaxed);
    n_slept.fetch_add(1, std::memory_order_release);
  } else {
    n_done.fetch_add(1, std::memory_order_release);
  }
  return out;
}

void netpoll_break() {
  if (ep_fd.load(std::memory_order_acquire) < 0) {
    break_word.store(1, std::memory_order_seq_cst);
    sys_futex_wake(&break_word, 1);
    // Made in between: its maker woke the word's sleeper, who may be in epoll_wait by now.
    if (ep_fd.load(std::memory_order_acquire) < 0) return;
  }
  if (breaking.exchange(1, std::memory_order_acq_rel) != 0) return;
  n_breaks.fetch_add(1, std::memory_order_relaxed);
  uint64_t one = 1;
  sys_call(SYS_write, ev_fd.load(std::memory_order_relaxed), sys_arg(&one), sizeof one);
}

bool netpoll_waiters() { return polldesc_any_waits(); }

void netpoll_after_fork() {
  // Ours are the parent's too: the file is shared, so close, never change it.
  if (int fd = ep_fd.load(std::memory_order_relaxed); fd >= 0) sys_call(SYS_close, fd);
  if (int fd = ev_fd.load(std::memory_order_relaxed); fd >= 0) sys_call(SYS_close, fd);
  ep_fd.store(-1, std::memory_order_relaxed);
  ev_fd.store(-1, std::memory_order_relaxed);
  breaking.store(0, std::memory_order_relaxed);
  break_word.store(0, std::memory_order_relaxed);
  sleeping.store(false, std::memory_order_relaxed);
  n_done.store(n_begun.load(std::memory_order_relaxed), std::memory_order_relaxed);
  init_lock.reset();
  asleep_after_fork();
  polldesc_after_fork();
}

// ---------------------------------------------------------------- registration

int netpoll_arm(PollDesc* pd, uint32_t dirs) {
  if (ep_fd.load(std::memory_order_acquire) < 0) {
    int ep = make();
    if (ep < 0) return ep;
  }
  uint32_t want = pd->armed | dirs;
  long r = ctl(pd->armed == 0 ? EPOLL_CTL_ADD : EPOLL_CTL_MOD, pd->fd, mask_of(want), data_of(pd));
  // ENOENT: closed and made anew where we could not see it. EEXIST: the file of an earlier
  // life of this number is back under it.
  if (r == -ENOENT) r = ctl(EPOLL_CTL_ADD, pd->fd, mask_of(want), data_of(pd));
  else if (r == -EEXIST) r = ctl(EPOLL_CTL_MOD, pd->fd, mask_of(want), data_of(pd));
  if (r < 0) return static_cast<int>(r);
  pd->armed = want;
  return 0;
}

void netpoll_disarm(PollDesc* pd) {
  if (pd->armed == 0) return;
  pd->armed = 0;
  // Needed when the file outlives the number (dup, fork): its events would come for ever.
  ctl(EPOLL_CTL_DEL, pd->fd, 0, 0);
}

int netpoll_rearm(PollDesc* pd) {
  return static_cast<int>(ctl(EPOLL_CTL_MOD, pd->fd, mask_of(pd->armed), data_of(pd)));
}

// ---------------------------------------------------------------- numbers

void netpoll_disable() { off.store(true, std::memory_order_relaxed); }
bool netpoll_enabled() { return !off.load(std::memory_order_relaxed); }

bool netpoll_owns(int fd) {
  return fd >= 0 && (fd == ep_fd.load(std::memory_order_relaxed) ||
                     fd == ev_fd.load(std::memory_order_relaxed) || polldesc_is_orphan(fd) ||
                     asleep_owns(fd));
}

int netpoll_next_owned(int from) {
  int best = polldesc_next_orphan(from);
  if (int fd = asleep_next_owned(from); fd < best) best = fd;
  for (auto* n : {&ep_fd, &ev_fd}) {
    int fd = n->load(std::memory_order_relaxed);
    if (fd >= from && fd < best) best = fd;
  }
  return best;
}

int netpoll_high_dup(int fd) {
  struct rlimit64 {
    uint64_t cur, max;
  } was = {}, wide = {};
  sys_call(SYS_prlimit64, 0, RLIMIT_NOFILE, 0, sys_arg(&was));
  if (was.max > was.cur && was.cur <= 1u << 16) {
    wide = {was.cur + 1024 < was.max ? was.cur + 1024 : was.max, was.max};
    if (sys_call(SYS_prlimit64, 0, RLIMIT_NOFILE, sys_arg(&wide), 0) == 0) {
      long r = sys_call(SYS_fcntl, fd, F_DUPFD_CLOEXEC, static_cast<long>(was.cur));
      sys_call(SYS_prlimit64, 0, RLIMIT_NOFILE, sys_arg(&was), 0);
      if (r >= 0) return static_cast<int>(r);
    }
  }
  uint64_t base = was.cur < kLowHigh ? was.cur : kLowHigh;
  for (uint64_t from = base > 16 ? base - 16 : 0; from > 16; from /= 2) {
    long r = sys_call(SYS_fcntl, fd, F_DUPFD_CLOEXEC, static_cast<long>(from));
    if (r >= 0 || (r != -EMFILE && r != -EINVAL)) return static_cast<int>(r);
  }
  return static_cast<int>(sys_call(SYS_fcntl, fd, F_DUPFD_CLOEXEC, 3));
}

void netpoll_make_room(int fd) {
  if (fd < 0) return;
  Door in;
  init_lock.lock();
  // Waiters inside epoll_wait hold the file, not the number, and registrations belong to
  // the file as well.
  for (auto* n : {&ep_fd, &ev_fd}) {
    if (n->load(std::memory_order_relaxed) != fd) continue;
    int to = netpoll_high_dup(fd);
    if (to >= 0) n->store(to, std::memory_order_release);
  }
  init_lock.unlock();
  asleep_make_room(fd);
}

bool netpoll_all_handled(uint64_t* mark) {
  uint64_t slept = n_slept.load(std::memory_order_acquire);
  uint64_t done = n_done.load(std::memory_order_acquire);
  bool asleep = sleeping.load(std::memory_order_relaxed);
  if (*mark == 0) {  // the sleeper, if any, is to come round once
    *mark = slept + 1;
    if (asleep) netpoll_break();
  }
  return n_begun.load(std::memory_order_relaxed) == done && (!asleep || slept + 1 != *mark);
}

uint64_t netpoll_drains() { return n_drained.load(std::memory_order_relaxed); }

NetpollStats netpoll_stats() {
  return {n_done.load(std::memory_order_relaxed) + n_slept.load(std::memory_order_relaxed), n_events.load(std::memory_order_relaxed),
          n_breaks.load(std::memory_order_relaxed), netpoll_repaired(), netpoll_readded()};
}

}  // namespace weft

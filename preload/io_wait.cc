// io_wait.cc - see io_wait.h.
#include "preload/io_wait.h"

#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <termios.h>
#include <unistd.h>

#include "preload/io_peers.h"
#include "preload/io_signal.h"

namespace weft {

bool io_restart_after_interrupt(const SignalMark& m) {
  return !cancel_pending() && (!handler_ran(m) || signals_may_restart());
}

namespace {

// A terminal may want the caller in read(2) itself: a background process is to be stopped
// by SIGTTIN at once, and without ICANON the reader's VTIME and VMIN count, which poll does
// not know.
bool tty_wants_caller(int fd) {
  struct termios t;
  if (sys_call(SYS_ioctl, fd, TCGETS, sys_arg(&t)) != 0) return false;
  // The kernel's struct is shorter; c_cc starts at the same place in both.
  if ((t.c_lflag & ICANON) == 0 && (t.c_cc[VTIME] != 0 || t.c_cc[VMIN] != 1)) return true;
  int group = 0;
  if (sys_call(SYS_ioctl, fd, TIOCGPGRP, sys_arg(&group)) != 0) return false;
  return group != sys_call(SYS_getpgid, 0);
}

// A unix stream whose peer went away with data unread tells a writer it has blocked
// ECONNRESET, without a signal; one that comes later gets EPIPE and SIGPIPE.
int error_of_broken(int fd) {
  int err = 0;
  socklen_t n = sizeof err;
  sys_call(SYS_getsockopt, fd, SOL_SOCKET, SO_ERROR, sys_arg(&err), sys_arg(&n));
  return -err;
}

}  // namespace

long io_poll_now(int fd, PollDir dir) {
  struct pollfd p = {fd, static_cast<short>(dir == kPollIn ? POLLIN | POLLRDHUP : POLLOUT), 0};
  return sys_call(SYS_poll, sys_arg(&p), 1, 0) == 0 ? -EAGAIN : 0;
}

int io_block(IoCall& c) {
  PollDesc* pd = c.turn.pd;
  if (!c.asked) {
    c.asked = true;
    IoAttr a;
    int err = io_attr(pd, static_cast<PollDir>(c.turn.dir), &a);
    if (err < 0) return err;
    if (a.nonblock) {
      if (c.turn.dir == kPollIn) io_note_empty(pd, c.turn.seq);
      return -EAGAIN;
    }
    if (a.timeo_ns != 0) {
      c.timed = true;
      c.deadline_ns = host_now_ns() + a.timeo_ns;
    }
    if (WEFT_UNLIKELY(io_kind(pd) == kIoTty) && c.turn.dir == kPollIn && tty_wants_caller(pd->fd))
      return kCannotWait;
  }
  if (c.turn.dir == kPollIn && io_is_socket(io_kind(pd))) io_let_peers_run(pd->fd);
  SignalMark mark = signal_mark();
  int w = poll_turn_wait(c.turn, c.deadline_ns, c.why, c.untried);
  c.untried = false;
  if (WEFT_LIKELY(w == 0))
    return c.turn.dir == kPollOut && (io_notes(pd) & kNoteUnix) != 0 &&
                   pd->sticky.load(std::memory_order_acquire) != 0
               ? error_of_broken(pd->fd)
               : 0;
  if (w == -ETIMEDOUT) return -EAGAIN;
  if (w == -EBADF) return w;
  if (w != -EINTR) return kCannotWait;
  if (!c.started && cancel_pending()) {
    poll_turn_end(c.turn);
    cancel_point();
  }
  bool on = c.timed || c.started ? io_wait_after_interrupt(mark) : io_restart_after_interrupt(mark);
  if (!on) return -EINTR;
  return c.turn.forked ? kCannotWait : 0;  // the kind of file is not known any more
}

}  // namespace weft

// io_fd.h - what we know of a descriptor number: its kind, and notes that spare a call.
//
// The record lives in the PollDesc (sched/polldesc.h) and dies with the number. It is kept
// only once weft is up; before that, and beyond the table, everything is kIoFile: the
// syscall protocol, which is always right.
//
// Numbers are closed and made behind our back (fclose, popen). A wrong kind is therefore
// never trusted with more than a try: ENOTSOCK, EOPNOTSUPP and EPERM from epoll send the
// caller back to io_probe.
//
// Attributes (O_NONBLOCK, SO_RCVTIMEO, SO_SNDTIMEO) belong to the open file, which others
// may share. They are remembered only while nobody else can have it: made here by a call we
// saw, never duplicated, and no fork, spawn or SCM_RIGHTS since. Else they are asked for
// before each wait (0.1 us).
#pragma once

#include "preload/api.h"
#include "sched/netpoll.h"
#include "sched/polldesc.h"

namespace weft {

enum IoKind : uint32_t {
  kIoUnknown,
  kIoFile,    // never waits for readiness: regular, directory, block, memory devices
  kIoTcp,     // a short read means empty
  kIoStream,  // other byte streams: unix, vsock, mptcp
  kIoDgram,   // every other socket
  kIoPipe,    // RWF_NOWAIT, if not a FIFO opened by name
  kIoNowait,  // anonymous files that may take RWF_NOWAIT: eventfd, timerfd
  kIoPoll,    // poll first, then call
  kIoTty,     // the same, with the line discipline's own rules
};
inline bool io_is_socket(uint32_t k) { return k >= kIoTcp && k <= kIoDgram; }

enum IoNote : uint32_t {
  kNoteBorn = 1,          // made by a call we saw
  kNoteAliased = 2,       // has or had another number
  kNoteAttr = 4,          // the next three are known
  kNoteNonblock = 8,
  kNoteRcvTimeo = 16,
  kNoteSndTimeo = 32,
  kNoteNoNowait = 64,     // << PollDir: RWF_NOWAIT is refused; 64 and 128
  kNoteListener = 256,
  kNoteNotListener = 512,
  kNoteOdd = 1024,        // SO_RCVLOWAT, kTLS, packet pipes: poll first, believe no short read
  kNoteUnix = 2048,
};

// The record of fd, its kind probed; null: use the syscall protocol.
PollDesc* io_desc_slow(int fd);
inline PollDesc* io_desc(int fd) {
  PollDesc* pd = polldesc_peek(fd);
  if (WEFT_LIKELY(pd != nullptr && pd->kind.load(std::memory_order_relaxed) > kIoFile)) return pd;
  return io_desc_slow(fd);
}
inline uint32_t io_kind(const PollDesc* pd) { return pd->kind.load(std::memory_order_relaxed); }
inline uint32_t io_notes(const PollDesc* pd) { return pd->notes.load(std::memory_order_relaxed); }
inline void io_note(PollDesc* pd, uint32_t bits) {
  pd->notes.fetch_or(bits, std::memory_order_relaxed);
}
uint32_t io_socket_kind(int domain, int type, int protocol);
// The attribute notes of a socket just accepted from `listener`.
uint32_t io_inherited_notes(const PollDesc* listener, bool nonblock);
// SO_RCVTIMEO, SO_SNDTIMEO: set (or, with 0, cleared) on fd.
void io_timeo_set(int fd, PollDir dir, bool nonzero);
// The descriptor needs poll-first treatment from now on.
void io_mark_odd(int fd);
// Forgets the kind and asks the kernel again. False: it is kIoFile now.
bool io_probe(PollDesc* pd);

// The receive side was found empty by a call that sampled `seq` before: until the next edge
// it stays so (if edges are being counted), and a wait needs no try.
inline void io_note_empty(PollDesc* pd, uint32_t seq) {
  if ((pd->armed & 1u << kPollIn) != 0)
    pd->drained.store(uint64_t{1} << 32 | seq, std::memory_order_relaxed);
}
// `seq` is the present one. False after hang-up or urgent data: those end reads early.
inline bool io_known_empty(const PollDesc* pd, uint32_t seq) {
  return pd->drained.load(std::memory_order_relaxed) == (uint64_t{1} << 32 | seq) &&
         pd->sticky.load(std::memory_order_acquire) == 0 && (io_notes(pd) & kNoteOdd) == 0;
}

// O_NONBLOCK and the direction's timeout, before a wait. `timeo_ns` 0: none. 0 or -errno.
struct IoAttr {
  bool nonblock;
  uint64_t timeo_ns;
};
int io_attr(PollDesc* pd, PollDir dir, IoAttr* out);
// Known to be blocking, without a timeout, without a system call.
bool io_surely_blocking(const PollDesc* pd, PollDir dir);

// ---- the life of numbers; no-ops before boot and in a vfork child
extern std::atomic<uint32_t> io_share_epoch;
void io_descriptors_shared();                     // fork, spawn, SCM_RIGHTS
void io_made(int fd, uint32_t kind, uint32_t notes);  // by a call we saw; fd < 0: failed
void io_paired(int from, int to);                 // what goes into the one comes out of the other
void io_closing(int fd);                          // before the kernel closes or replaces it
void io_aliased(int fd, int other);               // dup: two numbers, one file
// Everybody who waits for the file of fd, under any of its numbers, is to try again.
void io_wake_all(int fd);
void io_flags_set(int fd, bool nonblock);         // F_SETFL, FIONBIO succeeded

}  // namespace weft

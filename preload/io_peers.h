// io_peers.h - those whom a thread serves need a core, too.
//
// A native thread that waits for its next request sleeps, and the core is free for a moment: for
// the clients that have an answer to read, where they run on this machine. An M does not sleep
// there; it runs the next G, and while requests come it never sleeps at all. The kernel takes the
// core from it when a client's turn comes; but where the server has a scheduling group of its own
// (autogroup, systemd), the clients' group has on this core only the weight of those few that
// stand there, and one of 8 clients waited 940 ms for an M to go.
//
// So an M that has run for kCoreTsc without sleeping sleeps for kNapNs in a receive from a socket
// whose peer is on this machine. Who stands there has the core at once, and the M has it back when
// its turn comes, with what it is owed. Where nobody stands there that costs up to 70 us (the
// sleep and the timer slack) of 16 ms. The answers also come to stay on the core where they were
// made, and need no interrupt to another one (5 us of 25 a query).
//
// Not in a thread that waits on many descriptors at once: natively that would not sleep either.
//
// mariadbd and sysbench on the same 2 cores, a scheduling group each, point_select, k/s, and the
// longest wait of a run: with naps each 4 ms 8 connections 53 to 56, 25 to 44 ms, before 47 to 50,
// 37 to 476 ms, natively 49 to 50, 12 to 120 ms; 128: 46, 136 to 168 ms, before 41, 382 to 1353 ms,
// natively 38. Each 16 ms is as good there (three rounds of 8 connections: 47 to 60 k/s, 46 to 77 ms;
// each 4 ms 46 to 56, 31 to 35 ms), and costs who needs no naps less: the echo server with 100
// connections and one client 2 to 6 %, each 4 ms 7 to 10 %. Not to nap where the kernel takes the core
// now and then would be no naps at all: it does so once a query, only never for that one client. Both
// Ms kept on a core each, by affinity, brought less (128: 31, before 36).
#pragma once

#include "preload/api.h"
#include "sched/sched.h"

namespace weft {

constexpr uint64_t kCoreTsc = 40'000'000;  // about 16 ms at 2-3 GHz
constexpr long kNapNs = 20'000;

void io_nap(G* g, int fd);
// A G about to receive from the socket fd, outside the engine; may park, as any call.
inline void io_let_peers_run(int fd) {
  G* g = t_g;
  if (WEFT_UNLIKELY(tsc() - g->m->nap_tsc > kCoreTsc)) io_nap(g, fd);
}

}  // namespace weft

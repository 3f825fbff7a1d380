// io_peers.cc - see io_peers.h.
#include "preload/io_peers.h"

#include <netinet/in.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>

#include "sched/polldesc.h"
#include "sched/syscall.h"

namespace weft {
namespace {

bool loopback(const sockaddr_storage& a) {
  if (a.ss_family == AF_INET)
    return ntohl(reinterpret_cast<const sockaddr_in&>(a).sin_addr.s_addr) >> 24 == IN_LOOPBACKNET;
  const in6_addr& v6 = reinterpret_cast<const sockaddr_in6&>(a).sin6_addr;
  return IN6_IS_ADDR_LOOPBACK(&v6) || (IN6_IS_ADDR_V4MAPPED(&v6) && v6.s6_addr[12] == IN_LOOPBACKNET);
}

bool same_address(const sockaddr_storage& a, const sockaddr_storage& b) {
  if (a.ss_family != b.ss_family) return false;
  if (a.ss_family == AF_INET)
    return reinterpret_cast<const sockaddr_in&>(a).sin_addr.s_addr ==
           reinterpret_cast<const sockaddr_in&>(b).sin_addr.s_addr;
  return memcmp(&reinterpret_cast<const sockaddr_in6&>(a).sin6_addr,
                &reinterpret_cast<const sockaddr_in6&>(b).sin6_addr, sizeof(in6_addr)) == 0;
}

// On this machine, and not a thread of ours, which needs no core of its own.
bool peer_is_here(int fd) {
  const PollDesc* pd = polldesc_peek(fd);
  if (pd != nullptr && pd->peer.load(std::memory_order_relaxed) != 0) return false;
  sockaddr_storage peer = {}, own = {};
  socklen_t n = sizeof peer;
  if (sys_call(SYS_getpeername, fd, sys_arg(&peer), sys_arg(&n)) != 0) return false;
  if (peer.ss_family == AF_UNIX) return true;
  if (peer.ss_family != AF_INET && peer.ss_family != AF_INET6) return false;
  if (loopback(peer)) return true;
  n = sizeof own;
  return sys_call(SYS_getsockname, fd, sys_arg(&own), sys_arg(&n)) == 0 && same_address(peer, own);
}

}  // namespace

void io_nap(G* g, int fd) {
  M* m = g->m;
  m->nap_tsc = tsc();
  struct rusage u;
  if (sys_call(SYS_getrusage, RUSAGE_THREAD, sys_arg(&u)) != 0) return;
  bool slept = u.ru_nvcsw != m->nap_nvcsw;
  m->nap_nvcsw = u.ru_nvcsw;
  if (slept || g->ahead || g->no_preempt != 0 || g->wired || !peer_is_here(fd)) return;
  struct timespec nap = {0, kNapNs};
  uint8_t habit = g->call_habit;  // it says nothing about the program's calls
  enter_syscall(g);
  sys_call(SYS_nanosleep, sys_arg(&nap), 0);
  m->nap_nvcsw++;
  exit_syscall(g);
  g->call_habit = habit;
}

}  // namespace weft

// real.h - libc's own functions: `real().read(fd, buf, n)` is what `read` would be without us.
//
// One table, cut into families (real_*.def, one line a symbol: REAL(name) or
// REAL_V(name, "GLIBC_x.y") where libc has several versions). A symbol is resolved by
// dlsym/dlvsym(RTLD_NEXT) on its first call, and all of them at boot (real_resolve_all),
// so that no thread of a threaded program is ever inside dlsym because of us: a fork child
// could find the loader's lock held. dlsym does not allocate when it finds the symbol.
//
// A symbol this libc lacks stays null; ask `real().name.exists()` before using one that
// glibc 2.34 does not promise. Calling a missing one is fatal with its name.
#pragma once

#include <stddef.h>

#include <atomic>

#include "preload/real_decls.h"

namespace weft {

void* real_resolve(const char* name, const char* version);
[[noreturn]] void real_missing(const char* name);
void real_resolve_all();

// A symbol's name or version ("": none), part of its function's type: the table then holds
// nothing but addresses. It is zero in the file, so that the loader has nothing to relocate in
// it and a process has no page of it before its first call.
template <size_t N>
struct RealName {
  constexpr RealName(const char (&text)[N]) {
    for (size_t i = 0; i < N; i++) s[i] = text[i];
  }
  char s[N];
};

template <class F, RealName name, RealName version>
class RealAddress {
 public:
  bool exists() { return find() != nullptr; }
  F* get() {
    F* f = find();
    if (__builtin_expect(f == nullptr, 0)) real_missing(name.s);
    return f;
  }

 private:
  F* find() {
    // Relaxed: every racer stores the same value.
    F* f = fn_.load(std::memory_order_relaxed);
    if (__builtin_expect(f == nullptr, 0)) {
      f = reinterpret_cast<F*>(real_resolve(name.s, version.s[0] == 0 ? nullptr : version.s));
      fn_.store(f, std::memory_order_relaxed);
    }
    return f;
  }
  std::atomic<F*> fn_{nullptr};
};

template <class F, RealName name, RealName version>
struct RealFn;

// As declared by the headers, noexcept stripped; variadic ones (open, fcntl, ioctl,
// syscall) keep their "..." form.
template <class R, class... A, RealName name, RealName version>
struct RealFn<R(A...), name, version> : RealAddress<R(A...), name, version> {
  R operator()(A... a) { return this->get()(a...); }
};

template <class R, class... A, RealName name, RealName version>
struct RealFn<R(A..., ...), name, version> : RealAddress<R(A..., ...), name, version> {
  template <class... B>
  R operator()(A... a, B... b) {
    return this->get()(a..., b...);
  }
};

template <class T>
struct StripNoexcept { using type = T; };
template <class R, class... A>
struct StripNoexcept<R(A...) noexcept> { using type = R(A...); };
template <class R, class... A>
struct StripNoexcept<R(A..., ...) noexcept> { using type = R(A..., ...); };

// decltype carries the headers' attributes along (nonnull, warn_unused_result), which a
// template argument drops; that is what we want.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wignored-attributes"
struct Real {
#define REAL(name) RealFn<StripNoexcept<decltype(::name)>::type, #name, ""> name;
#define REAL_V(name, ver) RealFn<StripNoexcept<decltype(::name)>::type, #name, ver> name;
#include "preload/real_all.def"
#undef REAL
#undef REAL_V
};
#pragma GCC diagnostic pop
extern Real real_table;
inline Real& real() { return real_table; }

}  // namespace weft

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

template <class Fn>
class RealFn;

template <class R, class... A>
class RealFn<R(A...)> {
 public:
  constexpr RealFn(const char* name, const char* version) : name_(name), version_(version) {}
  R operator()(A... a) { return get()(a...); }
  bool exists() { return find() != nullptr; }
  R (*get())(A...) {
    auto* f = find();
    if (__builtin_expect(f == nullptr, 0)) real_missing(name_);
    return f;
  }

 private:
  R (*find())(A...) {
    // Relaxed: every racer stores the same value.
    auto* f = fn_.load(std::memory_order_relaxed);
    if (__builtin_expect(f == nullptr, 0)) {
      f = reinterpret_cast<R (*)(A...)>(real_resolve(name_, version_));
      fn_.store(f, std::memory_order_relaxed);
    }
    return f;
  }
  std::atomic<R (*)(A...)> fn_{nullptr};
  const char* name_;
  const char* version_;
};

// As declared by the headers, noexcept stripped; variadic ones (open, fcntl, ioctl,
// syscall) keep their "..." form.
template <class R, class... A>
class RealFn<R(A..., ...)> {
 public:
  constexpr RealFn(const char* name, const char* version) : name_(name), version_(version) {}
  bool exists() { return find() != nullptr; }
  template <class... B>
  R operator()(A... a, B... b) {
    auto* f = find();
    if (__builtin_expect(f == nullptr, 0)) real_missing(name_);
    return f(a..., b...);
  }
  using Ptr = R (*)(A..., ...);
  Ptr get() { return find(); }

 private:
  Ptr find() {
    Ptr f = fn_.load(std::memory_order_relaxed);
    if (__builtin_expect(f == nullptr, 0)) {
      f = reinterpret_cast<Ptr>(real_resolve(name_, version_));
      fn_.store(f, std::memory_order_relaxed);
    }
    return f;
  }
  std::atomic<Ptr> fn_{nullptr};
  const char* name_;
  const char* version_;
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
#define REAL(name) RealFn<StripNoexcept<decltype(::name)>::type> name{#name, nullptr};
#define REAL_V(name, ver) RealFn<StripNoexcept<decltype(::name)>::type> name{#name, ver};
#include "preload/real_all.def"
#undef REAL
#undef REAL_V
};
#pragma GCC diagnostic pop
extern Real real_table;
inline Real& real() { return real_table; }

}  // namespace weft

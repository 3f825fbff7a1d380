// tls_dtor.c - a library that registers a thread_local destructor the way C++ does, so that
// a thread can close it before the destructor has run.
//
// Invariant: the destructor adds its thread's amount to the counter given, once per thread.
extern int __cxa_thread_atexit_impl(void (*)(void *), void *, void *);
extern void *__dso_handle;

static __thread long amount;
static __thread long *counter;

static void at_thread_end(void *unused) {
  (void)unused;
  __atomic_add_fetch(counter, amount, __ATOMIC_SEQ_CST);
}

void add_at_thread_end(long *where, long how_much);
void add_at_thread_end(long *where, long how_much) {
  amount = how_much;
  counter = where;
  __cxa_thread_atexit_impl(at_thread_end, 0, &__dso_handle);
}

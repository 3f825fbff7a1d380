// Concurrent.java - java.util.concurrent and what a JVM does with signals: pools, queues, locks,
// monitors, barriers, timers, interrupts, collections under load, stack overflow, null checks,
// stopping a thread that only computes. Prints `right`; a wrong answer throws, exit status 1.
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.*;
import java.util.concurrent.atomic.*;
import java.util.concurrent.locks.ReentrantLock;
import java.util.stream.IntStream;

public class Concurrent {
  interface Work { void run(int i) throws Exception; }

  static void expect(String what, long got, long wanted) {
    if (got != wanted) throw new IllegalStateException(what + ": " + got + " instead of " + wanted);
  }

  static void threads(int count, Work work) throws Exception {
    List<Throwable> wrong = new CopyOnWriteArrayList<>();
    Thread[] all = new Thread[count];
    for (int i = 0; i < count; i++) {
      int me = i;
      all[i] = new Thread(() -> { try { work.run(me); } catch (Throwable t) { wrong.add(t); } });
      all[i].start();
    }
    for (Thread t : all) t.join();
    if (!wrong.isEmpty()) throw new IllegalStateException(wrong.get(0));
  }

  static class Fib extends RecursiveTask<Long> {
    final int n;
    Fib(int n) { this.n = n; }
    protected Long compute() {
      if (n < 2) return (long) n;
      Fib left = new Fib(n - 1);
      left.fork();
      return new Fib(n - 2).compute() + left.join();
    }
  }

  static void pools() throws Exception {
    expect("fork-join", new ForkJoinPool(4).invoke(new Fib(22)), 17711);
    ExecutorService pool = Executors.newFixedThreadPool(32);
    List<Future<Long>> squares = new ArrayList<>();
    for (long i = 0; i < 5000; i++) { long n = i; squares.add(pool.submit(() -> n * n)); }
    long sum = 0;
    for (Future<Long> f : squares) sum += f.get();
    expect("pool", sum, 4999L * 5000 * 9999 / 6);
    CyclicBarrier barrier = new CyclicBarrier(8);
    AtomicInteger passed = new AtomicInteger();
    for (int i = 0; i < 8; i++)
      pool.submit(() -> { for (int k = 0; k < 200; k++) { barrier.await(); passed.incrementAndGet(); } return 0; });
    pool.shutdown();
    expect("pool ends", pool.awaitTermination(60, TimeUnit.SECONDS) ? 1 : 0, 1);
    expect("barrier", passed.get(), 1600);
    ScheduledExecutorService timer = Executors.newScheduledThreadPool(2);
    CountDownLatch ticks = new CountDownLatch(20);
    timer.scheduleAtFixedRate(ticks::countDown, 0, 5, TimeUnit.MILLISECONDS);
    expect("timer", ticks.await(60, TimeUnit.SECONDS) ? 1 : 0, 1);
    timer.shutdownNow();
    expect("parallel stream", IntStream.range(0, 1000000).parallel().asLongStream().sum(), 499999500000L);
  }

  static void waiting() throws Exception {
    SynchronousQueue<Integer> hand = new SynchronousQueue<>();
    AtomicLong taken = new AtomicLong();
    threads(2, i -> { for (int k = 0; k < 10000; k++) if (i == 0) hand.put(k); else taken.addAndGet(hand.take()); });
    expect("synchronous queue", taken.get(), 9999L * 10000 / 2);
    ReentrantLock lock = new ReentrantLock();
    long[] count = {0};
    threads(16, i -> { for (int k = 0; k < 10000; k++) { lock.lock(); try { count[0]++; } finally { lock.unlock(); } } });
    expect("lock", count[0], 160000);
    Object monitor = new Object();
    int[] turn = {0};
    threads(4, i -> { for (int k = 0; k < 1000; k++) synchronized (monitor) {
      while (turn[0] != i) monitor.wait();
      turn[0] = (turn[0] + 1) % 4;
      monitor.notifyAll();
    } });
    expect("monitor", turn[0], 0);
    Thread sleeper = new Thread(() -> { try { Thread.sleep(1000000); } catch (InterruptedException e) { count[0] = -1; } });
    sleeper.start();
    while (sleeper.getState() != Thread.State.TIMED_WAITING) Thread.yield();
    sleeper.interrupt();
    sleeper.join();
    expect("interrupt", count[0], -1);
    for (int round = 0; round < 5; round++) threads(200, i -> { });
  }

  static int deep(int n) { return deep(n + 1) + 1; }

  static void faults() throws Exception {
    AtomicInteger caught = new AtomicInteger();
    Work overflow = i -> { try { deep(0); } catch (StackOverflowError e) { caught.incrementAndGet(); } };
    overflow.run(0);
    threads(4, overflow);
    int[] nothing = null;
    for (int i = 0; i < 20000; i++) try { caught.addAndGet(nothing[0]); } catch (NullPointerException e) { caught.incrementAndGet(); }
    expect("caught", caught.get(), 20005);
  }

  static volatile long blackhole;

  static void stopping() throws Exception {
    AtomicBoolean stop = new AtomicBoolean();
    Thread spinner = new Thread(() -> { long n = 0; while (!stop.get()) n++; blackhole = n; });
    spinner.start();
    for (int i = 0; i < 10; i++) { System.gc(); Thread.getAllStackTraces(); }
    stop.set(true);
    spinner.join();
    threads(8, i -> { List<byte[]> keep = new ArrayList<>(); for (int k = 0; k < 4000; k++) { if (k % 100 == 0) keep.clear(); keep.add(new byte[4096]); } });
    Process echo = new ProcessBuilder("/bin/echo", "hi").start();
    expect("child's output", new String(echo.getInputStream().readAllBytes()).equals("hi\n") ? 1 : 0, 1);
    expect("child's status", echo.waitFor(), 0);
  }

  public static void main(String[] args) throws Exception {
    pools();
    waiting();
    faults();
    stopping();
    System.out.println("right");
  }
}

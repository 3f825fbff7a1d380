# threads.py - every waiting primitive of Python's threading, queue and concurrent.futures,
# with sums known beforehand. Prints `right`; any wrong answer raises.
import concurrent.futures
import hashlib
import queue
import signal
import socket
import threading
import time


def in_threads(count, work):
    threads = [threading.Thread(target=work, args=(i,)) for i in range(count)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    assert not any(t.is_alive() for t in threads), work.__name__


def futures():
    def digest(i):  # hashlib lets go of the interpreter lock for large buffers
        return hashlib.sha256(bytes([i]) * 100000).hexdigest()

    serial = [digest(i) for i in range(128)]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        assert list(pool.map(digest, range(128))) == serial
        submitted = [pool.submit(pow, i, 3) for i in range(2000)]
        assert sum(f.result() for f in concurrent.futures.as_completed(submitted)) == sum(i**3 for i in range(2000))


def queues():
    there, back = queue.Queue(), queue.Queue(maxsize=4)

    def add_one(_):
        while (x := there.get()) is not None:
            back.put(x + 1)

    def drive(_):
        total = 0
        for i in range(5000):
            there.put(i)
            total += back.get()
        for _ in range(4):
            there.put(None)
        totals.append(total)

    totals = []
    in_threads(5, lambda i: drive(i) if i == 0 else add_one(i))
    assert totals == [sum(range(5000)) + 5000]
    try:
        back.get(timeout=0.05)
        raise AssertionError("empty queue gave something")
    except queue.Empty:
        pass


def locks():
    lock, count, active, most = threading.Lock(), [0], [0], [0]

    def increment(_):
        for _ in range(5000):
            with lock:
                count[0] += 1

    in_threads(8, increment)
    assert count[0] == 40000
    slots = threading.BoundedSemaphore(3)

    def enter(_):
        for _ in range(10):
            with slots:
                with lock:
                    active[0] += 1
                    most[0] = max(most[0], active[0])
                time.sleep(0.0005)
                with lock:
                    active[0] -= 1

    in_threads(12, enter)
    assert 1 <= most[0] <= 3 and active[0] == 0

    turn, condition, order = [0], threading.Condition(), []

    def take_turns(i):
        for _ in range(300):
            with condition:
                assert condition.wait_for(lambda: turn[0] == i, timeout=60)
                order.append(i)
                turn[0] = (turn[0] + 1) % 4
                condition.notify_all()

    in_threads(4, take_turns)
    assert order == [0, 1, 2, 3] * 300
    barrier, places = threading.Barrier(8), []

    def meet(_):
        for _ in range(100):
            places.append(barrier.wait(60))

    in_threads(8, meet)
    assert sorted(places) == sorted(list(range(8)) * 100)


def threads_own_data():
    local, meet, idents, kernel_ids = threading.local(), threading.Barrier(50), set(), set()

    def own(i):
        local.x = i
        meet.wait(60)
        assert local.x == i
        idents.add(threading.get_ident())
        kernel_ids.add(threading.get_native_id())
        meet.wait(60)

    in_threads(50, own)
    assert len(idents) == 50 and len(kernel_ids) == 50
    for _ in range(10):
        in_threads(100, lambda i: None)


def sockets():
    pairs = [socket.socketpair() for _ in range(20)]

    def echo(i):
        while data := pairs[i][1].recv(100):
            pairs[i][1].sendall(data)

    def drive():
        for k in range(50):
            for i, (ours, _) in enumerate(pairs):
                message = b"%d of %d" % (k, i)
                ours.settimeout(30)
                ours.sendall(message)
                assert ours.recv(100) == message
        for ours, _ in pairs:
            ours.close()

    in_threads(21, lambda i: drive() if i == 20 else echo(i))
    a, b = socket.socketpair()
    a.settimeout(0.05)
    try:
        a.recv(1)
        raise AssertionError("nobody sent this")
    except socket.timeout:
        pass
    a.close()
    b.close()


def alarms():
    rung = []
    signal.signal(signal.SIGALRM, lambda *_: rung.append(threading.current_thread()))
    signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
    while len(rung) < 5:
        time.sleep(1)  # goes on after the handler, for the whole second
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert set(rung) == {threading.main_thread()}


for part in (futures, queues, locks, threads_own_data, sockets, alarms):
    part()
print("right")

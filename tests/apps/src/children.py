# children.py - child processes made by many threads at once: pipes, fork, statuses, signals.
# Prints `right`; any wrong answer raises.
import os
import signal
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor


def echo(i):
    return int(subprocess.run(["/bin/echo", str(i)], capture_output=True, check=True).stdout)


def through_cat(i):
    data = b"%d " % i * 20000  # more than a pipe holds: both directions at once
    return subprocess.run(["/bin/cat"], input=data, capture_output=True, check=True).stdout == data


def status_of(i):
    return subprocess.run(["/bin/sh", "-c", f"exit {i}"]).returncode


def killed(_):
    process = subprocess.Popen(["/bin/sleep", "1000"])
    process.send_signal(signal.SIGTERM)
    return process.wait(60)


def forked(i):
    """The child of a threaded process starts a thread of its own."""
    pid = os.fork()
    if pid == 0:
        seen = []
        t = threading.Thread(target=seen.append, args=(i,))
        t.start()
        t.join()
        os._exit(i if seen == [i] else 255)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


with ThreadPoolExecutor(8) as pool:
    assert list(pool.map(echo, range(40))) == list(range(40))
    assert all(pool.map(through_cat, range(16)))
    assert list(pool.map(status_of, range(40))) == list(range(40))
    assert list(pool.map(killed, range(16))) == [-signal.SIGTERM] * 16
    assert list(pool.map(forked, range(16))) == list(range(16))
    assert all(pool.map(lambda i: os.popen(f"echo {i}").read() == f"{i}\n", range(16)))
    assert list(pool.map(lambda i: os.system(f"exit {i}") >> 8, range(16))) == list(range(16))
print("right")

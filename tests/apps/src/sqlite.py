# sqlite.py - eight writers and two readers on one database file, then one shared connection.
# Usage: sqlite.py FILE. Prints `right`; any wrong answer raises.
import sqlite3
import sys
import threading

path, writers, each = sys.argv[1], 8, 150
wrong = []


def guarded(work):
    def run(*args):
        try:
            work(*args)
        except BaseException as e:  # a thread's exception would only be printed
            wrong.append(e)

    return run


@guarded
def write(n):
    db = sqlite3.connect(path, timeout=60, isolation_level=None)
    db.execute("pragma synchronous=off")
    for i in range(each):
        db.execute("begin immediate")
        db.execute("insert into entries(writer, value) values(?, ?)", (n, i))
        db.execute("update total set n = n + 1")
        db.execute("commit")
    db.close()


@guarded
def read(stop):
    db = sqlite3.connect(path, timeout=60)
    while not stop.is_set():
        rows, total = db.execute("select (select count(*) from entries), (select n from total)").fetchone()
        assert rows == total, (rows, total)
    db.close()


@guarded
def insert_shared(db):
    for i in range(500):
        db.execute("insert into numbers values(?)", (i,))


def together(threads):
    for t in threads:
        t.start()
    for t in threads:
        t.join()


db = sqlite3.connect(path)
db.execute("pragma journal_mode=wal")
db.executescript("create table entries(id integer primary key, writer int, value int);"
                 "create table total(n int); insert into total values(0);")
stop = threading.Event()
readers = [threading.Thread(target=read, args=(stop,)) for _ in range(2)]
for t in readers:
    t.start()
together([threading.Thread(target=write, args=(n,)) for n in range(writers)])
stop.set()
for t in readers:
    t.join()
assert not wrong, wrong
assert db.execute("select n from total").fetchone() == (writers * each,)
assert db.execute("select count(*), count(distinct writer), sum(value) from entries").fetchone() == (
    writers * each, writers, writers * each * (each - 1) // 2)
assert db.execute("pragma integrity_check").fetchone() == ("ok",)

shared = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
shared.execute("create table numbers(n int)")
together([threading.Thread(target=insert_shared, args=(shared,)) for _ in range(8)])
assert not wrong, wrong
assert shared.execute("select count(*), sum(n) from numbers").fetchone() == (4000, 8 * 499 * 250)
print("right")

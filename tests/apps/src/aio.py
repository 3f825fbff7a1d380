# aio.py - asyncio: streams, timers, thread pool, subprocesses and signals in one event loop.
# Prints `right`; any wrong answer raises.
import asyncio
import os
import signal
import threading


async def echo(reader, writer):
    while line := await reader.readline():
        writer.write(line)
        await writer.drain()
    writer.close()


async def client(port, name):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for i in range(40):
        writer.write(b"%d %d\n" % (name, i))
        assert await reader.readline() == b"%d %d\n" % (name, i)
    writer.close()
    await writer.wait_closed()
    return name


async def child(i):
    process = await asyncio.create_subprocess_exec("/bin/cat", stdin=-1, stdout=-1)
    out, _ = await process.communicate(b"%d" % i)
    assert process.returncode == 0
    return int(out)


async def main():
    loop = asyncio.get_running_loop()
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    assert sorted(await asyncio.gather(*(client(port, n) for n in range(30)))) == list(range(30))

    squares = await asyncio.gather(*(asyncio.to_thread(pow, i, 2) for i in range(300)))
    assert squares == [i * i for i in range(300)]
    names = await asyncio.gather(*(loop.getaddrinfo("localhost", 80) for _ in range(20)))
    assert all(names)
    assert await asyncio.gather(*(child(i) for i in range(12))) == list(range(12))

    # An event set from threads: call_soon_threadsafe writes to the loop's self-pipe.
    count, done = [0], asyncio.Event()

    def tick():
        count[0] += 1
        if count[0] == 400:
            done.set()

    for _ in range(8):
        threading.Thread(target=lambda: [loop.call_soon_threadsafe(tick) for _ in range(50)]).start()
    await asyncio.wait_for(done.wait(), 60)

    got = asyncio.Event()
    loop.add_signal_handler(signal.SIGUSR1, got.set)
    os.kill(os.getpid(), signal.SIGUSR1)
    await asyncio.wait_for(got.wait(), 60)
    try:
        await asyncio.wait_for(asyncio.sleep(60), 0.05)
        raise AssertionError("slept through")
    except asyncio.TimeoutError:
        pass
    server.close()
    await server.wait_closed()


asyncio.run(main())
print("right")

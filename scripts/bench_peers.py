"""What Athena is compared with: floors that no design can go below, and ``multiprocessing``.

``python -m scripts.bench_peers`` reads commands, one a line, and answers each with one line of JSON. It is a process of
its own because a peer must not carry what the benchmark has imported: ``multiprocessing`` imports the main module again
in every process that it spawns. It ends, with everything it started, when its standard input ends.

A peer's child imports what any agent's process needs (an event loop, an HTTP client, data models) and is ready when its
event loop runs. The floor, the fork of an interpreter that has imported all that, is :func:`fork_on_demand`.
"""

from __future__ import annotations

import asyncio
import gc
import json
import multiprocessing
import os
import signal
import socket
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from athena.wire import Frame, Framer, encode

WARM_UP = 20
"""Round trips that are not counted: the other side is still starting."""


def agent_child(pipe: Connection) -> None:
    """A process as an agent needs it, to the running event loop; it ends with its pipe."""
    import httpx  # noqa: F401
    import orjson  # noqa: F401
    import pydantic  # noqa: F401

    asyncio.run(_until_end_of(pipe.fileno(), lambda: pipe.send_bytes(b"R")))


async def _until_end_of(fd: int, ready: Callable[[], object]) -> None:
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    loop.add_reader(fd, over.set)
    ready()
    await over.wait()


class Child:
    """One process of ``multiprocessing``, from its start to its readiness."""

    def __init__(self, method: str) -> None:
        context: Any = multiprocessing.get_context(method)
        begin = time.perf_counter()
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(target=agent_child, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()
        self._pipe.recv_bytes()
        self.took_s = time.perf_counter() - begin

    def end(self) -> None:
        """Kill and reap it."""
        self.process.kill()
        self.process.join()
        self._pipe.close()


def start(method: str) -> list[float]:
    """Seconds from the start to ready."""
    child = Child(method)
    child.end()
    return [child.took_s]


def restart(method: str) -> list[float]:
    """Seconds from ``kill -9``, over the reaping, to the next one's readiness."""
    first = Child(method)
    begin = time.perf_counter()
    first.end()
    second = Child(method)
    took_s = time.perf_counter() - begin
    second.end()
    return [took_s]


def memory(method: str) -> list[float]:
    """Unique memory of one idle child, in bytes."""
    child = Child(method)
    found = float(unique_bytes(child.process.pid))
    child.end()
    return [found]


def unique_bytes(pid: int) -> int:
    """What would come free if this process ended: its private pages, clean and dirty."""
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as rows:
        return sum(int(row.split()[1]) for row in rows if row.startswith("Private_")) * 1024


# --- round trips ------------------------------------------------------------------------------------------------------


def fork(run: Callable[[], None]) -> int:
    """A child that does one thing and ends without looking back."""
    pid = os.fork()
    if pid == 0:
        try:
            run()
        finally:
            os._exit(0)
    return pid


def reap(pids: list[int]) -> None:
    """End and reap our own children."""
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def pipe_round_trips(count: int) -> list[float]:
    """Seconds of each round trip over ``multiprocessing.Pipe``."""
    ours, theirs = multiprocessing.Pipe()

    def echo() -> None:
        ours.close()
        while True:
            theirs.send(theirs.recv())

    pid = fork(echo)
    theirs.close()
    took = []
    for _ in range(WARM_UP + count):
        begin = time.perf_counter()
        ours.send({"op": "usage"})
        ours.recv()
        took.append(time.perf_counter() - begin)
    reap([pid])
    ours.close()
    return took[WARM_UP:]


class _Frames(asyncio.Protocol):
    """Whole frames of Athena's wire on one side of a socket pair; its end ends the process."""

    def __init__(self, on_frame: Callable[[_Frames, Frame], None]) -> None:
        self._framer = Framer()
        self._on_frame = on_frame
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep it to write to."""
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Hand the frames on."""
        for frame in self._framer.feed(data):
            self._on_frame(self, frame)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Nobody asks any more."""
        os._exit(0)


def _run_loop(serve: Callable[[asyncio.AbstractEventLoop], Any], *, fast: bool) -> None:
    factory = asyncio.new_event_loop
    if fast:
        try:
            import uvloop

            factory = uvloop.new_event_loop
        except ImportError:
            pass

    async def run() -> None:
        loop = asyncio.get_running_loop()
        await serve(loop)
        await loop.create_future()

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(run())


def _answering(end: socket.socket, *, fast: bool) -> Callable[[], None]:
    def answer(peer: _Frames, frame: Frame) -> None:
        peer.transport.write(encode({"kind": "reply", "id": frame.header["id"], "ok": True}, b"{}"))

    return lambda: _run_loop(lambda loop: loop.create_connection(lambda: _Frames(answer), sock=end), fast=fast)


def _relaying(client: socket.socket, child: socket.socket) -> Callable[[], None]:
    async def serve(loop: asyncio.AbstractEventLoop) -> None:
        askers: list[_Frames] = []

        def back(_: _Frames, frame: Frame) -> None:
            askers[0].transport.write(encode(frame.header, frame.body))

        def forth(peer: _Frames, frame: Frame) -> None:
            askers[:] = [peer]
            answerer.transport.write(encode(frame.header, frame.body))

        _, answerer = await loop.create_connection(lambda: _Frames(back), sock=child)
        await loop.create_connection(lambda: _Frames(forth), sock=client)

    return lambda: _run_loop(serve, fast=True)


def _ask(sock: socket.socket, count: int) -> list[float]:
    """Seconds of each round trip of a blocking client."""
    framer = Framer()
    took = []
    for number in range(WARM_UP + count):
        begin = time.perf_counter()
        sock.sendall(encode({"kind": "request", "id": number, "op": "usage", "session": "s"}))
        while not framer.feed(data := sock.recv(65536)):
            if not data:
                raise EOFError("the other side has ended")
        took.append(time.perf_counter() - begin)
    return took[WARM_UP:]


def hop_round_trips(count: int) -> list[float]:
    """Seconds of each round trip to one asyncio process and back, with a blocking client."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        pid = fork(_answering(theirs, fast=False))
        took = _ask(ours, count)
    reap([pid])
    return took


def relay_round_trips(count: int) -> list[float]:
    """Seconds of each round trip over a relay that does nothing else: three processes, Athena's frames, uvloop."""
    ours, front = socket.socketpair()
    back, theirs = socket.socketpair()
    with ours, front, back, theirs:
        pids = [fork(_answering(theirs, fast=True)), fork(_relaying(front, back))]
        took = _ask(ours, count)
    reap(pids)
    return took


# --- the floor of a start ---------------------------------------------------------------------------------------------


def fork_on_demand(lifeline: int) -> None:
    """Import what an agent needs, then fork a child for every byte on standard input.

    Each child prints its pid when its event loop runs, and lives until ``lifeline`` ends or it is killed.
    """
    import ssl

    import httpx  # noqa: F401
    import orjson  # noqa: F401
    import pydantic  # noqa: F401

    ssl.create_default_context()
    gc.collect()
    gc.freeze()
    print("ready", flush=True)
    while os.read(0, 1):
        fork(lambda: asyncio.run(_until_end_of(lifeline, lambda: os.write(1, b"%d\n" % os.getpid()))))
        while _reap_one_dead():
            pass


def _reap_one_dead() -> bool:
    try:
        return os.waitpid(-1, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return False


COMMANDS: dict[str, Callable[[str], list[float]]] = {
    "start": start,
    "restart": restart,
    "memory": memory,
    "pipe": lambda count: pipe_round_trips(int(count)),
    "hop": lambda count: hop_round_trips(int(count)),
    "relay": lambda count: relay_round_trips(int(count)),
}


def main() -> None:
    """Answer commands until standard input ends."""
    for line in sys.stdin:
        command, _, argument = line.strip().partition(" ")
        values = COMMANDS[command](argument)
        print(json.dumps({"values": values, "median": statistics.median(values)}), flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        fork_on_demand(int(sys.argv[1]))
    else:
        main()

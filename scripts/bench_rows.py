"""The rows of design section 11 that this benchmark measures, each with its goal."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from athena import AsyncSession, Session, events
from athena.session import EventStream
from athena.stores.jsonl import JsonlLog, JsonlStore
from athena.subscriber import StreamDelta
from scripts.bench_peers import unique_bytes
from scripts.bench_rigs import BareHttpx, Rig, Turns
from scripts.bench_table import ATHENA, FLOOR, PEER, Row, Series

LOG_EVENTS = 1000
SYNCS_PER_TURN = 2.2
CALLS_PER_ROUND = 50
SUBSCRIBERS = 100


def start(rig: Rig, rounds: int, stack: ExitStack) -> Row:
    """A session of a running supervisor, from the call to the handle: its child is ready then."""

    def athena() -> list[float]:
        begin = time.perf_counter()
        session = rig.session()
        took_s = time.perf_counter() - begin
        session.stop()
        return [took_s]

    athena()
    return Row(
        "start", "start to ready", "ms",
        [
            Series(ATHENA, ATHENA, athena),
            Series("fork of a preloaded interpreter", FLOOR, rig.floor.start),
            Series("multiprocessing forkserver", PEER, lambda: rig.peers.values("start forkserver")),
            Series("multiprocessing spawn", PEER, lambda: rig.peers.values("start spawn")),
        ],
        "within 4x of the fork, 15x under spawn",
        lambda row: (
            row.median(ATHENA) <= 4 * row.median("fork of a preloaded interpreter")
            and 15 * row.median(ATHENA) <= row.median("multiprocessing spawn")
        ),
        rounds,
    )  # fmt: skip


def restart(rig: Rig, rounds: int, stack: ExitStack) -> Row:
    """``kill -9`` of the child, to the next one's answer to a call: a hop more than its readiness."""
    session = stack.enter_context(rig.long_log(LOG_EVENTS))

    def athena() -> list[float]:
        before = session.status()
        begin = time.perf_counter()
        os.kill(int(before["pid"]), signal.SIGKILL)
        session.usage()
        took_s = time.perf_counter() - begin
        if session.status()["incarnation"] == before["incarnation"]:
            return athena()  # the dying one was faster
        return [took_s]

    return Row(
        "restart", f"kill -9 to ready again, log of {LOG_EVENTS:,} events", "ms",
        [
            Series(ATHENA, ATHENA, athena),
            Series("multiprocessing forkserver, no log", PEER, lambda: rig.peers.values("restart forkserver")),
            Series("multiprocessing spawn, no log", PEER, lambda: rig.peers.values("restart spawn")),
        ],
        "under 30 ms",
        lambda row: row.median(ATHENA) < 0.030,
        rounds,
    )  # fmt: skip


def memory(rig: Rig, rounds: int, stack: ExitStack) -> list[Row]:
    """Private pages of a session's process: what one more session costs."""

    def idle() -> list[float]:
        with rig.session() as session:
            return [float(unique_bytes(_pid(session)))]

    def used() -> list[float]:
        with rig.session(durability="os") as session:
            for _ in range(10):
                session.send_message("read the notes")
            return [float(unique_bytes(_pid(session)))]

    floor = Series("forked asyncio process", FLOOR, rig.floor.memory)
    spawned = Series("multiprocessing spawn", PEER, lambda: rig.peers.values("memory spawn"))
    first = Row(
        "memory_idle", "unique memory, before the first turn", "MB", [Series(ATHENA, ATHENA, idle), floor, spawned],
        "under 5 MB", lambda row: row.median(ATHENA) < 5e6, max(2, rounds // 4),
    )  # fmt: skip
    second = Row(
        "memory_used", "unique memory, after ten turns", "MB", [Series(ATHENA, ATHENA, used)],
        "under 9 MB", lambda row: row.median(ATHENA) < 9e6, max(2, rounds // 4),
    )  # fmt: skip
    return [first, second]


def _pid(session: Session) -> int:
    pid = session.pid
    assert pid is not None
    return int(pid)


def call(rig: Rig, rounds: int, stack: ExitStack) -> Row:
    """Client, supervisor, child and back."""
    session = stack.enter_context(rig.session())
    twin = rig.async_session()
    stack.callback(lambda: rig.loop.run_until_complete(twin.stop()))
    pings = f" {CALLS_PER_ROUND}"
    return Row(
        "call", "call: client, supervisor, child and back", "us",
        [
            Series(ATHENA, ATHENA, lambda: _timed(session.usage)),
            Series("Athena, queue()", ATHENA, lambda: _timed(session.queue)),
            Series("Athena, AsyncSession", ATHENA, lambda: rig.loop.run_until_complete(_timed_async(twin))),
            Series("one asyncio hop", FLOOR, lambda: rig.peers.values("hop" + pings)),
            Series("bare relay, three uvloop processes", FLOOR, lambda: rig.peers.values("relay" + pings)),
            Series("multiprocessing.Pipe", PEER, lambda: rig.peers.values("pipe" + pings)),
        ],
        "under 170 us",
        lambda row: row.median(ATHENA) < 170e-6,
        rounds * 2,
    )  # fmt: skip


def _timed(ask: Callable[[], object]) -> list[float]:
    took = []
    for _ in range(CALLS_PER_ROUND):
        begin = time.perf_counter()
        ask()
        took.append(time.perf_counter() - begin)
    return took


async def _timed_async(session: AsyncSession) -> list[float]:
    took = []
    for _ in range(CALLS_PER_ROUND):
        begin = time.perf_counter()
        await session.usage()
        took.append(time.perf_counter() - begin)
    return took


def turns(rig: Rig, rounds: int, stack: ExitStack) -> list[Row]:
    """A turn of two streamed model calls and one ``read``, from ``send_message`` to its result."""
    fast, safe, floor = Turns(rig, "os"), Turns(rig, "turn"), BareHttpx(rig)
    for part in (fast, safe, floor):
        stack.callback(part.close)
    disk = Disk(rig.home / "sync.bin")
    stack.callback(disk.close)
    plain = Series('Athena, durability="os"', ATHENA, fast.sample)
    bare = Series("bare async httpx, the same two requests", FLOOR, floor.sample)
    synced = Series('Athena, durability="turn"', ATHENA, safe.sample)
    sync = Series("one fdatasync of an appended line", FLOOR, disk.sample)

    def within_syncs(row: Row) -> bool:
        return synced.median <= plain.median + SYNCS_PER_TURN * sync.median

    def sample_both() -> list[float]:  # in the rounds of the other row: what is added to must be of the same minutes
        synced.values += safe.sample()
        sync.values += disk.sample()
        return fast.sample()

    plain.sample = sample_both
    os_row = Row(
        "turn_os", "turn: 2 streamed model calls and 1 read", "ms", [plain, bare],
        "under 2x the floor", lambda row: plain.median < 2 * bare.median, rounds * 3,
    )  # fmt: skip
    goal = f"under the row above + {SYNCS_PER_TURN} syncs"
    return [os_row, Row("turn_synced", "the same turn, synced", "ms", [synced, sync], goal, within_syncs, 0)]


class Disk:
    """What the disk takes to make one appended line durable."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def sample(self) -> list[float]:
        """Seconds of one ``fdatasync``."""
        os.write(self._fd, b"x" * 400)
        begin = time.perf_counter()
        os.fdatasync(self._fd)
        return [time.perf_counter() - begin]

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def store(rig: Rig, rounds: int, stack: ExitStack) -> list[Row]:
    """The log's own costs, in this process."""
    log = JsonlStore(rig.home / "store").open(events.new_session_id())
    stack.callback(log.close)
    disk = Disk(rig.home / "append.bin")
    stack.callback(disk.close)
    append = Row(
        "append", "append of one event: encoded and with the kernel", "us",
        [Series(ATHENA, ATHENA, lambda: _timed(lambda: _append(log)))], rounds=rounds,
    )  # fmt: skip
    sync = Row(
        "sync", "sync of one appended event", "ms",
        [Series(ATHENA, ATHENA, lambda: _sync(log)), Series("fdatasync", FLOOR, disk.sample)], rounds=rounds * 2,
    )  # fmt: skip
    return [append, sync]


def _append(log: JsonlLog) -> None:
    message = {"role": "assistant", "content": "The notes say the same thing forty times. " * 5}
    log.append(events.encode(log.last_seq + 1, "assistant_message", {"message": message, "model": "canned"}, "t1"))


def _sync(log: JsonlLog) -> list[float]:
    _append(log)
    begin = time.perf_counter()
    log.sync()
    return [time.perf_counter() - begin]


def deltas(rig: Rig, rounds: int, stack: ExitStack) -> list[Row]:
    """A piece of text, from the endpoint's write to a subscriber's hands."""
    session = stack.enter_context(rig.session(model="paced", durability="os"))
    stream = stack.enter_context(session.events())
    crowd: list[EventStream] = []

    def crowded() -> list[float]:
        while len(crowd) < SUBSCRIBERS - 1:  # nobody reads them: each falls behind its bound and costs nobody else
            crowd.append(stack.enter_context(session.events()))
        return _delays(session, stream)

    alone = Row(
        "delta", "delta, provider to its only subscriber", "ms",
        [Series(ATHENA, ATHENA, lambda: _delays(session, stream))],
        "p99 under 2 ms", lambda row: row.series[0].p99 < 0.002, max(1, rounds // 10),
    )  # fmt: skip
    among = Row(
        "delta_crowd", f"delta, to one of {SUBSCRIBERS} subscribers, the others frozen", "ms",
        [Series(ATHENA, ATHENA, crowded)],
        "p99 under 10 ms", lambda row: row.series[0].p99 < 0.010, max(1, rounds // 10),
    )  # fmt: skip
    return [alone, among]


def _delays(session: Session, stream: EventStream) -> list[float]:
    turn = session.submit("go")
    took: list[float] = []
    for item in _until_end(stream, turn.message_id):
        if isinstance(item, StreamDelta):
            now_ns = time.monotonic_ns()
            took.append((now_ns - int(item.text.split()[-1])) / 1e9)
    return took


def _until_end(stream: EventStream, message_id: str) -> Iterator[Any]:
    for item in stream:
        yield item
        if not isinstance(item, StreamDelta) and item.event == "turn_end" and item.data["message_id"] == message_id:
            return

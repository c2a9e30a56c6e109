"""The connections of an asyncio client: one for all calls of an event loop, and one of its own for each stream."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict, deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from athena.client import AsyncConnection, call_timeout, replaced
from athena.errors import AthenaError, Unresponsive
from athena.recovery import ANSWERED_AT_ONCE
from athena.session_calls import Call
from athena.supervisors import Target
from athena.wire import Frame, Header

T = TypeVar("T")

STREAM_BYTES = 4 * 1024 * 1024
"""Received and not yet read by the caller; above it the socket is not read, and the supervisor lets us fall behind."""


class Inbox:
    """A connection of one stream, with its unread frames; the socket is not read while there are too many."""

    def __init__(self, connection: AsyncConnection) -> None:
        self.connection = connection
        self._frames: deque[Frame] = deque()
        self._bytes = 0
        self._arrived = asyncio.Event()
        connection.on_notice = self._on_frame
        connection.lost.add_done_callback(lambda _: self._arrived.set())

    @classmethod
    async def open(cls, target: Target) -> Inbox:
        connection = await AsyncConnection.open(target.path)
        target.pool.supervisor_id = (connection.hello or {}).get("supervisor")
        return cls(connection)

    async def next(self) -> Frame | None:
        """The next frame, or ``None`` when the connection has ended and all frames are read."""
        while not self._frames:
            if not self.connection.is_open:
                return None
            self._arrived.clear()
            await self._arrived.wait()
        frame = self._frames.popleft()
        self._bytes -= len(frame.body)
        if self._bytes <= STREAM_BYTES // 2:
            self.connection.resume_reading()
        return frame

    def close(self) -> None:
        self.connection.close()

    def _on_frame(self, frame: Frame) -> None:
        self._frames.append(frame)
        self._bytes += len(frame.body)
        if self._bytes > STREAM_BYTES:
            self.connection.pause_reading()
        self._arrived.set()


class _Connections:
    """The connections of one event loop, one to each supervisor; hung up when the loop ends."""

    def __init__(self) -> None:
        self.open: dict[Path, AsyncConnection] = {}
        self.locks: defaultdict[Path, asyncio.Lock] = defaultdict(asyncio.Lock)
        """Whose turn it is to connect: of many first calls at once, one."""
        self.end = self._end()

    async def _end(self) -> AsyncGenerator[None, None]:
        """Suspended until the loop ends: that is when a loop closes its generators, and it tells nobody else."""
        try:
            yield
        finally:
            _by_loop.pop(asyncio.get_running_loop(), None)
            for connection in self.open.values():
                connection.close()


_by_loop: dict[asyncio.AbstractEventLoop, _Connections] = {}


async def _connection(target: Target) -> AsyncConnection:
    """This event loop's connection to the target."""
    loop = asyncio.get_running_loop()
    connections = _by_loop.get(loop)
    if connections is None:
        connections = _by_loop[loop] = _Connections()
        await anext(connections.end)
    async with connections.locks[target.path]:
        found = connections.open.get(target.path)
        if found is None or not found.is_open:
            found = connections.open[target.path] = await AsyncConnection.open(target.path)
            target.pool.supervisor_id = (found.hello or {}).get("supervisor")
    return found


async def perform(target: Target, call: Call[T], timeout: float | None, *, expect: str | None = None) -> T:
    """One call, once, on this event loop's connection. Raises as :func:`athena.recovery.perform`."""
    connection = await _connection(target)
    if expect is not None and (connection.hello or {}).get("supervisor") != expect:
        raise replaced()
    try:
        frame = await connection.call(call.op, call.header, call.body, timeout)
    except TimeoutError as error:
        if isinstance(error, AthenaError):
            raise
        if call.op in ANSWERED_AT_ONCE:
            raise Unresponsive(f"the supervisor at {str(target.path)!r} does not answer; is it stopped?") from None
        raise call_timeout(call.op, timeout, call.message_id) from None
    return call.read(frame)


async def take(target: Target, header: Header, timeout: float | None) -> Frame:
    """Ask for a message, and confirm it when it is here. Raises as :meth:`AsyncConnection.call`."""
    connection = await _connection(target)
    answer = await connection.call("take", header, b"", timeout)
    connection.tell("confirm", {"take": answer.header["id"]})
    return answer


_undoings: set[asyncio.Task[None]] = set()


async def or_undone(starting: asyncio.Task[T], undo: Callable[[T], Awaitable[None]]) -> T:
    """What a start brings up; ``undo`` it if whoever waits is cancelled. If the event loop ends before, so does its
    connection, and the supervisor does the same."""

    async def undone() -> None:
        with contextlib.suppress(AthenaError):
            await undo(await starting)

    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        undoing = asyncio.create_task(undone())
        _undoings.add(undoing)
        undoing.add_done_callback(_undoings.discard)
        raise

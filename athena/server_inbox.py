"""What waits to be handled by a server: the frames of its pipe, in the order of arrival."""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable

from athena import failpoints
from athena.errors import Reason
from athena.wire import Frame, Framer

logger = logging.getLogger(__name__)

READ_BYTES = 64 * 1024

HIGH_BYTES = 1024 * 1024
"""Of waiting messages. More stays in the pipe, and so with the supervisor, which has an answer to too much of it."""


FRAME_BYTES = 500
"""What a message takes beside its body."""


def first_frames(fd: int, framer: Framer, count: int = 1) -> list[Frame]:
    """The frames up to the ``count``-th, and what came right behind it. Fewer at the end of the pipe."""
    frames: list[Frame] = []
    while len(frames) < count and (data := os.read(fd, READ_BYTES)):
        frames += framer.feed(data)
    return frames


class Inbox:
    """The messages of one server. ``framer`` and ``frames`` are what was read of the pipe already."""

    def __init__(self, fd: int, framer: Framer, frames: Iterable[Frame]) -> None:
        self._fd = fd
        self._framer = framer
        self._early = list(frames)
        self._frames: deque[Frame] = deque()
        self._wakeup: asyncio.Future[None] | None = None
        self._bytes = 0
        self._is_reading = False
        self._is_closed = False
        self.received = 0
        """Frames so far."""

    def __bool__(self) -> bool:
        return bool(self._frames)

    def open(self, on_shutdown: Callable[[Reason], None], on_end: Callable[[], None]) -> None:
        """Read from now on. ``on_shutdown`` gets the parent's exit signal, ``on_end`` is called once, at the end of
        the pipe."""
        self._on_shutdown = on_shutdown
        self._on_end = on_end
        os.set_blocking(self._fd, False)
        self._watch(True)
        early, self._early = self._early, []
        for frame in early:
            self._receive(frame)

    async def next(self, timeout_s: float | None) -> Frame | None:
        """The next message, or ``None`` after so many seconds without one."""
        if self._frames:
            await asyncio.sleep(0)  # many messages must not keep the loop from the pipe and from the server's own work
            return self._take()
        loop = asyncio.get_running_loop()
        self._wakeup = loop.create_future()
        timer = None if timeout_s is None else loop.call_later(timeout_s, self._wake)
        await self._wakeup
        if timer is not None:
            timer.cancel()
        if not self._frames:
            self.read()  # a message that is there when the time is up came before
        return self._take() if self._frames else None

    def put(self, frame: Frame) -> None:
        """One more, the last so far."""
        self._frames.append(frame)
        self._bytes += FRAME_BYTES + len(frame.body)
        self._watch(self._bytes < HIGH_BYTES)
        self._wake()

    def read(self) -> bool:
        """Take in what the pipe has. Returns whether there was anything."""
        if self._is_closed:
            return False
        try:
            data = os.read(self._fd, READ_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self._watch(False)
            self._is_closed = True
            self._on_end()
        for frame in self._framer.feed(data):
            self._receive(frame)
        return bool(data)

    def _take(self) -> Frame:
        frame = self._frames.popleft()
        self._bytes -= FRAME_BYTES + len(frame.body)
        self._watch(self._bytes < HIGH_BYTES)
        return frame

    def _watch(self, on: bool) -> None:
        if on == self._is_reading or self._is_closed:
            return
        self._is_reading = on
        loop = asyncio.get_running_loop()
        if on:
            loop.add_reader(self._fd, self.read)
        else:
            loop.remove_reader(self._fd)

    def _receive(self, frame: Frame) -> None:
        self.received += 1
        if failpoints.hit is not None:
            failpoints.hit(f"frame_in:{frame.header.get('op', frame.kind)}")
        match frame.kind:
            case "call" | "cast" | "info" | "stop":
                self.put(frame)
            case "shutdown":
                self._on_shutdown(frame.header.get("reason", "shutdown"))
            case other:
                logger.warning("the supervisor sent an unknown frame kind=%r", other)

    def _wake(self) -> None:
        if self._wakeup is not None and not self._wakeup.done():
            self._wakeup.set_result(None)

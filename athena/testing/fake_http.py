"""A small HTTP/1.1 server for fakes: streams in chunks, can break off, and sees it when a client hangs up.

Not a server for the world: loopback only, one request at a time per connection, bodies with a length. It is written
here because the faults that matter (half a stream, silence, a cut connection) are what ready-made servers prevent.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import orjson

_MAX_BODY_BYTES = 64 * 1024 * 1024
_START_S = 10.0


@dataclass(frozen=True, slots=True)
class Recorded:
    """A request as it came in; ``json`` is its decoded body or ``None``."""

    method: str
    path: str
    headers: dict[str, str]
    json: Any


class Hangup(Exception):
    """Raised by a handler to cut the connection without ending the answer."""


class Responder:
    """Writes one answer: either :meth:`json`, or :meth:`start`, pieces, :meth:`end`."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    async def json(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        """A whole JSON answer."""
        body = orjson.dumps(value)
        lines = {"content-type": "application/json", "content-length": str(len(body)), **(headers or {})}
        await self._write(_head(status, lines) + body)

    async def start(self, content_type: str) -> None:
        """The head of a chunked answer with status 200."""
        await self._write(_head(200, {"content-type": content_type, "transfer-encoding": "chunked"}))

    async def piece(self, data: bytes) -> None:
        """One chunk."""
        await self._write(b"%x\r\n%b\r\n" % (len(data), data))

    async def end(self) -> None:
        """The last chunk."""
        await self._write(b"0\r\n\r\n")

    async def _write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()


def _head(status: int, headers: dict[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} {'OK' if status < 400 else 'Error'}", *(f"{k}: {v}" for k, v in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


class FakeServer:
    """Base of the fakes: ``async with`` it, or ``with fake.in_thread()`` from synchronous code.

    ``requests`` records what came in, ``hangups`` counts clients that went away before their answer was over,
    ``connections`` counts connections ever accepted.
    """

    closes_silently = False
    """Serve one request per connection without announcing it, as llama.cpp does: a second one is not read."""

    def __init__(self) -> None:
        self.requests: list[Recorded] = []
        self.hangups = 0
        self.connections = 0
        self.base_url = ""
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()

    async def respond(self, request: Recorded, responder: Responder) -> None:
        """Answer one request. Raise :class:`Hangup` to cut the connection instead."""
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.base_url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)
        await self._server.wait_closed()

    async def wait_until(self, condition: Any) -> None:
        """Wait until ``condition()`` is true; it is asked again whenever a request or a hang-up came in."""
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    @contextlib.contextmanager
    def in_thread(self) -> Iterator[Self]:
        """Run the server in a thread of its own while the block runs."""
        ready, stop = threading.Event(), asyncio.Event()
        loops: list[asyncio.AbstractEventLoop] = []

        async def serve() -> None:
            async with self:
                loops.append(asyncio.get_running_loop())
                ready.set()
                await stop.wait()

        thread = threading.Thread(target=lambda: asyncio.run(serve()), name=type(self).__name__, daemon=True)
        thread.start()
        if not ready.wait(_START_S):
            raise RuntimeError("the fake server did not start")
        try:
            yield self
        finally:
            loops[0].call_soon_threadsafe(stop.set)
            thread.join()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        self.connections += 1
        try:
            await self._serve(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, Hangup):
            pass  # the client went away, or the script wants it to think that we did
        except asyncio.CancelledError:
            pass  # the server is being closed; this task is the connection's outermost frame
        finally:
            self._open.discard(task)
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ahead, answered = b"", False
        while (request := await _read_request(reader, ahead)) is not None:
            if answered and self.closes_silently:
                return
            answered = True
            self.requests.append(request)
            self._changed.set()
            answer = asyncio.ensure_future(self.respond(request, Responder(writer)))
            # Reading on is how a hang-up is noticed: nothing else may come before the answer is over.
            watch = asyncio.ensure_future(_next_byte(reader))
            try:
                await asyncio.wait({answer, watch}, return_when=asyncio.FIRST_COMPLETED)
                if not answer.done() and watch.result() == b"":
                    self.hangups += 1
                    self._changed.set()
                    return
                await answer
                ahead = await watch
            finally:
                for task in (answer, watch):
                    task.cancel()
                await asyncio.gather(answer, watch, return_exceptions=True)
            if not ahead:
                return


async def _next_byte(reader: asyncio.StreamReader) -> bytes:
    """One byte, or none if the client has gone; with bytes of ours unread it goes with a reset and not an end."""
    try:
        return await reader.read(1)
    except ConnectionError:
        return b""


async def _read_request(reader: asyncio.StreamReader, ahead: bytes) -> Recorded | None:
    try:
        head = ahead + await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.decode("latin-1").rstrip().split("\r\n")
    method, path, _ = first.split(" ", 2)
    headers = {k.strip().lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
    length = int(headers.get("content-length", "0"))
    if length > _MAX_BODY_BYTES:
        return None
    body = await reader.readexactly(length)
    try:
        value = orjson.loads(body) if body else None
    except orjson.JSONDecodeError:
        value = None
    return Recorded(method, path, headers, value)

"""The one asyncio shell over :mod:`athena.wire`: a framed, two-way connection over a socket or a pair of pipes.

Writes never block the caller: they go to the transport at once while it keeps up, else to the :class:`Outbox`, which
drains as the peer reads. :meth:`Channel.drained` waits for a data bound; what happens at the bound is the owner's
policy.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from athena import failpoints
from athena.errors import ProtocolError
from athena.wire import MAX_ANSWER_BYTES, MAX_FRAME_BYTES, PART_BYTES, Frame, Framer, Header, Outbox, encode

TRANSPORT_HIGH_BYTES = 64 * 1024
"""What may sit in a transport's own buffer, where control cannot overtake it any more."""

OnFrame = Callable[[Frame], None]
OnClose = Callable[[BaseException | None], None]


class Channel(asyncio.Protocol):
    """A connection that delivers whole frames to ``on_frame`` and its end, exactly once, to ``on_close``.

    ``on_close`` gets ``None`` for an end of file between frames, else the error. ``on_frame`` must not block; what it
    raises ends this channel and goes to ``on_close``.
    """

    def __init__(self, on_frame: OnFrame, on_close: OnClose, *, max_body_bytes: int = MAX_FRAME_BYTES) -> None:
        self._on_frame = on_frame
        self._on_close = on_close
        self._framer = Framer(max_body_bytes=max_body_bytes)
        self._outbox = Outbox()
        self._soon: list[bytes] = []
        self._reader: Any = None
        self._writer: Any = None
        self._paused = False
        self._writer_gone = False
        self._is_paused_reading = False
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []
        self.closed = False

    # --- asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self._reader is None:
            self._reader = transport
        if self._writer is None:  # a socket: one transport both ways
            self.attach_writer(transport)

    @property
    def socket(self) -> Any:
        """The socket below, to ask the kernel who is at its other end; ``None`` for pipes."""
        return None if self._writer is None else self._writer.get_extra_info("socket")

    def attach_writer(self, transport: Any) -> None:
        """Write to ``transport`` from now on (pipes have one transport for each direction)."""
        self._writer = transport
        transport.set_write_buffer_limits(high=TRANSPORT_HIGH_BYTES)

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._framer.feed(data):
                if self.closed:
                    return
                if failpoints.hit is not None:
                    failpoints.hit(_point("frame_in", frame.header))
                self._on_frame(frame)
        except (
            Exception
        ) as error:  # the owner's handler failed or the peer sent garbage: this connection ends, no other
            self.abort(error)

    def eof_received(self) -> bool:
        self.abort(ProtocolError("the stream ended inside a frame") if self._framer.pending_bytes else None)
        return False

    def connection_lost(self, exc: BaseException | None) -> None:
        self.abort(exc)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._pump()

    # --- ours

    def send(self, header: Header, body: bytes = b"", *, control: bool = False) -> None:
        """Send a frame; silently dropped after the end (``on_close`` has told the owner)."""
        if self.closed or self._writer_gone:
            return
        if failpoints.hit is not None:
            failpoints.hit(_point("frame_out", header))
        if not self._paused and not self._outbox and len(body) <= PART_BYTES:
            self._write(encode(header, body))
            return
        self._outbox.put(header, body, control=control)
        self._pump()

    def send_raw(self, raw: bytes, *, control: bool = False) -> None:
        """Send bytes that are whole frames already (relaying)."""
        if self.closed or self._writer_gone:
            return
        if failpoints.hit is not None:
            failpoints.hit("frame_out:relayed")
        if not self._paused and not self._outbox:
            self._write(raw)
            return
        self._outbox.put_raw(raw, control=control)

    def send_soon(self, header: Header, body: bytes) -> None:
        """Send a frame with the next one, at the latest in the next turn of the event loop: many small frames at once
        cost one system call, and wake the peer once."""
        if self._paused or self._outbox or len(body) > PART_BYTES or not self._is_writable():
            self.send(header, body)
            return
        if not self._soon:
            asyncio.get_running_loop().call_soon(self._write)
        self._soon.append(encode(header, body))

    @property
    def queued_bytes(self) -> int:
        """Data bytes that the transport has not taken yet."""
        return self._outbox.data_bytes

    def drop_data(self) -> None:
        """Forget queued data frames; control frames stay."""
        self._outbox.drop_data()

    async def drained(self, below_bytes: int = 1) -> None:
        """Wait until fewer than ``below_bytes`` data bytes are queued, or the channel has ended."""
        if self.closed or self._outbox.data_bytes < below_bytes:
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append((below_bytes, waiter))
        await waiter

    async def flushed(self) -> None:
        """Wait until the kernel has every byte, or the channel has ended."""
        if self.closed or self._writer_gone:
            return
        self._write()
        await self.drained()
        if self._writer.get_write_buffer_size():
            self._writer.set_write_buffer_limits(high=0)
            try:
                while self._is_writable() and self._writer.get_write_buffer_size():
                    waiter = asyncio.get_running_loop().create_future()
                    self._waiters.append((1, waiter))
                    await waiter
            finally:
                if not self.closed:
                    self._writer.set_write_buffer_limits(high=TRANSPORT_HIGH_BYTES)

    def pause_reading(self) -> None:
        """Leave what comes with the kernel, and so with the peer."""
        if not self.closed and not self._is_paused_reading:
            self._is_paused_reading = True
            self._reader.pause_reading()

    def resume_reading(self) -> None:
        """Read on."""
        if not self.closed and self._is_paused_reading:
            self._is_paused_reading = False
            self._reader.resume_reading()

    def writer_lost(self) -> None:
        """Nothing can be written any more; what the peer wrote before is still read, and its end ends the channel."""
        self._writer_gone = True
        while self._outbox.take() is not None:
            pass
        self._wake()

    def _is_writable(self) -> bool:
        return not (self.closed or self._writer_gone)

    def close(self) -> None:
        """End politely: what is queued is still written by the transport if the peer reads. ``on_close`` gets
        ``None``."""
        self._write()
        while not self.closed and (raw := self._outbox.take()) is not None:
            self._writer.write(raw)
        self._end(None, abort=False)

    def abort(self, error: BaseException | None) -> None:
        """End now. Safe to call at any time, any number of times."""
        self._end(error, abort=True)

    def _end(self, error: BaseException | None, *, abort: bool) -> None:
        if self.closed:
            return
        self.closed = True
        if self._writer is not None and not self._writer_gone:  # asyncio's pipe transport must not be ended twice
            if abort:
                self._writer.abort()
            else:
                self._writer.close()
        if self._reader is not self._writer and self._reader is not None:
            self._reader.close()
        self._outbox = Outbox()  # what a dead peer did not read is nobody's any more
        self._soon.clear()
        self._wake()
        self._on_close(error)

    def _write(self, raw: bytes = b"") -> None:
        """Hand ``raw`` to the transport, behind what was to be sent soon."""
        if self._soon:
            raw = b"".join((*self._soon, raw))
            self._soon.clear()
        if raw and self._is_writable():
            self._writer.write(raw)

    def _pump(self) -> None:
        self._write()
        while not self._paused and not self.closed:
            raw = self._outbox.take()
            if raw is None:
                break
            self._writer.write(raw)
        self._wake()

    def _wake(self) -> None:
        keep = []
        for below, waiter in self._waiters:
            if waiter.done():
                continue
            if self.closed or self._outbox.data_bytes < below:
                waiter.set_result(None)
            else:
                keep.append((below, waiter))
        self._waiters = keep


def _point(way: str, header: Header) -> str:
    """The fail point of a frame: its way, and what it asks for or its kind."""
    return f"{way}:{header.get('op', header.get('kind'))}"


class _WriteSide(asyncio.BaseProtocol):
    """The write end of a pipe pair: its flow control and its loss belong to the channel."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def pause_writing(self) -> None:
        self._channel.pause_writing()

    def resume_writing(self) -> None:
        self._channel.resume_writing()

    def connection_lost(self, exc: BaseException | None) -> None:
        # EPIPE: the reader is gone. Its last words may still be in the other pipe, so the end of that one decides.
        self._channel.writer_lost()


async def open_pipes(
    read_fd: int, write_fd: int, on_frame: OnFrame, on_close: OnClose, *, max_body_bytes: int = MAX_FRAME_BYTES
) -> Channel:
    """A channel over two pipe descriptors, which it owns from now on."""
    channel = Channel(on_frame, on_close, max_body_bytes=max_body_bytes)
    await _write_to(write_fd, channel)
    os.set_blocking(read_fd, False)
    await asyncio.get_running_loop().connect_read_pipe(lambda: channel, os.fdopen(read_fd, "rb", 0))
    return channel


async def open_write_pipe(fd: int) -> Channel:
    """A channel that only writes. That nobody reads any more, it does not tell."""
    channel = Channel(lambda _: None, lambda _: None)
    await _write_to(fd, channel)
    return channel


async def _write_to(fd: int, channel: Channel) -> None:
    os.set_blocking(fd, False)
    pipe = os.fdopen(fd, "wb", 0)
    writer, _ = await asyncio.get_running_loop().connect_write_pipe(lambda: _WriteSide(channel), pipe)
    channel.attach_writer(writer)


async def open_unix(path: Path, on_frame: OnFrame, on_close: OnClose) -> Channel:
    """A channel to a unix socket. Raises ``OSError``."""
    loop = asyncio.get_running_loop()
    _, channel = await loop.create_unix_connection(
        lambda: Channel(on_frame, on_close, max_body_bytes=MAX_ANSWER_BYTES), str(path)
    )
    return channel

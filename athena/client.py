"""The client's half of the protocol: sans-IO, and its two thin shells, a blocking socket and an asyncio channel.

A client's identity is its OS process, not its connection (design 7), so the blocking shell simply uses one connection
for each call that waits at the same time, from a pool; the asyncio shell uses one for all.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import select
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from athena.channel import Channel, open_unix
from athena.config import PRODUCT
from athena.errors import (
    AthenaError,
    CallTimeout,
    InvalidOption,
    NotRunning,
    ProtocolError,
    Refused,
    Unavailable,
    Unresponsive,
    from_wire,
)
from athena.wire import MAX_ANSWER_BYTES, MAX_FRAME_BYTES, PROTOCOL, Frame, Framer, Header, Outbox

T = TypeVar("T")

HELLO_S = 10.0
"""How long a peer has to say hello before it counts as something else than a supervisor."""

RECEIVE_BYTES = 64 * 1024  # more than malloc serves without a mapping of its own costs 20 us a call

_CREDENTIALS = struct.Struct("iII")  # struct ucred of unix(7): pid, uid, gid


class ConnectionLost(Unavailable):
    """The connection ended before the answer came. Calls that can wait for the supervisor to come back do so."""


class Protocol:
    """One connection without its I/O: requests out, frames in, the greeting checked."""

    def __init__(self) -> None:
        self._framer = Framer(max_body_bytes=MAX_ANSWER_BYTES)
        self._ids = itertools.count(1)
        self.hello: Header | None = None
        """What the supervisor said first, once it has."""

    @staticmethod
    def greeting() -> bytes:
        """The first bytes to send."""
        box = Outbox()
        box.put({"kind": "hello", "protocol": PROTOCOL, "product": PRODUCT, "pid": os.getpid()})
        return box.take() or b""

    def request(self, op: str, header: Header, body: bytes) -> tuple[int, bytes]:
        """The id and the bytes of a request. Raises :class:`InvalidOption` if it is too long."""
        check_size(body)
        request_id = next(self._ids)
        box = Outbox()
        box.put({"kind": "request", "id": request_id, "op": op, **header}, body)
        return request_id, b"".join(iter(box.take, None))

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that are complete with ``data``, hello left out.

        Raises :class:`athena.errors.VersionMismatch` or :class:`Refused` if the peer is no supervisor for us.
        """
        try:
            frames = self._framer.feed(data)
        except ProtocolError as error:
            raise Refused(f"what listens there is no Athena supervisor: {error.message}") from None
        if self.hello is None and frames:
            first = frames.pop(0)
            if first.kind != "hello":
                raise Refused(f"what listens there is no Athena supervisor: it sent {first.kind!r} first")
            if first.header.get("refused"):
                raise from_wire(first.json())
            self.hello = first.header
        return frames


def outcome(frame: Frame) -> Frame:
    """The answer in a reply. Raises the error that it is."""
    if not frame.header.get("ok"):
        raise from_wire(frame.json())
    return frame


class SyncConnection:
    """A blocking connection for one call, or one stream, at a time."""

    def __init__(self, path: Path, timeout_s: float | None = None) -> None:
        """Connect and greet. Raises :class:`NotRunning`, :class:`Refused`, :class:`ConnectionLost` if the other end
        goes away meanwhile, as a supervisor does that is being killed, :class:`Unresponsive` if it is silent for
        :data:`HELLO_S`, and ``TimeoutError`` after ``timeout_s``."""
        self.protocol = Protocol()
        self.inbox: deque[Frame] = deque()
        """Frames that are no answer: events, notices."""
        self._path = path
        limit_s = HELLO_S if timeout_s is None else min(timeout_s, HELLO_S)
        self._socket = _connect(path)
        deadline = time.monotonic() + limit_s
        try:
            self._socket.sendall(Protocol.greeting())
            while self.protocol.hello is None:
                self.inbox.extend(self._receive(deadline))
        except AthenaError:
            self.close()
            raise
        except TimeoutError:
            self.close()
            if limit_s < HELLO_S or time.monotonic() < deadline:  # not ours: that of a signal's handler
                raise
            raise _silent(path) from None
        except OSError as error:
            self.close()
            raise _lost(error) from None
        except BaseException:
            self.close()
            raise

    def call(self, op: str, header: Header, body: bytes, timeout_s: float | None) -> Frame:
        """Ask and wait for the answer.

        Raises what was answered, :class:`ConnectionLost`, or ``TimeoutError``; after the last two the connection is
        of no use any more.
        """
        request_id, raw = self.protocol.request(op, header, body)
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._send(raw, timeout_s)
        answer: Frame | None = None
        while answer is None:
            for frame in self._receive(deadline):
                if frame.kind == "reply" and frame.header.get("id") == request_id:
                    answer = frame
                else:
                    self.inbox.append(frame)  # also what came right behind the answer: a stream's first events
        return outcome(answer)

    def tell(self, op: str, header: Header) -> None:
        """Ask for what has no answer. A connection that has ended is found out by who reads from it."""
        box = Outbox()
        box.put({"kind": "request", "op": op, **header})
        with contextlib.suppress(ConnectionLost):
            self._send(b"".join(iter(box.take, None)), None)

    @property
    def is_cut(self) -> bool:
        """Whether the other end has hung up."""
        poll = select.poll()
        poll.register(self._socket, select.POLLRDHUP | select.POLLHUP | select.POLLERR)
        return bool(poll.poll(0))

    def next_frame(self, deadline: float | None = None) -> Frame:
        """The next frame that is no answer. Raises ``TimeoutError`` at the deadline (monotonic)."""
        while not self.inbox:
            self.inbox.extend(self._receive(deadline))
        return self.inbox.popleft()

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def _send(self, raw: bytes, timeout_s: float | None) -> None:
        try:
            self._socket.settimeout(timeout_s)  # sendall counts it for the whole: a frozen peer takes nothing
            self._socket.sendall(raw)
        except TimeoutError:
            raise
        except OSError as error:
            raise _lost(error) from None

    def _receive(self, deadline: float | None) -> list[Frame]:
        try:
            if deadline is None:
                self._socket.settimeout(None)
            else:
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    raise TimeoutError
                self._socket.settimeout(left_s)
            data = self._socket.recv(RECEIVE_BYTES)
        except TimeoutError:
            raise
        except OSError as error:
            raise _lost(error) from None
        if not data:
            raise _lost("closed")
        return self.protocol.feed(data)


class Pool:
    """Idle blocking connections to one supervisor. Thread-safe; a fork starts with none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.supervisor_id: str | None = None
        """Of the supervisor that was last connected to: a restarted one has another."""
        self._idle: list[SyncConnection] = []
        self._lock = threading.Lock()
        self._pid = os.getpid()

    def call(
        self,
        op: str,
        header: Header,
        body: bytes,
        timeout_s: float | None,
        *,
        once: bool = False,
        expect: str | None = None,
    ) -> Frame:
        """One call on a connection of its own. Raises as :meth:`SyncConnection.call`.

        ``once``: the operation must not be repeated, as others may, when an idle connection turns out to be cut.
        ``expect``: the supervisor it is for; another one is as good as none.
        """
        while True:
            connection, is_fresh = self._take(timeout_s)
            if expect is not None and (connection.protocol.hello or {}).get("supervisor") != expect:
                if connection.is_cut:
                    connection.close()
                    continue  # an idle one from before
                self._give_back(connection)
                raise replaced()
            if once and connection.is_cut:
                connection.close()
                continue
            try:
                frame = connection.call(op, header, body, timeout_s)
            except ConnectionLost:
                connection.close()
                if is_fresh or once:
                    raise
                continue  # an idle one that the supervisor's end had cut
            except AthenaError:  # an answer
                self._give_back(connection)
                raise
            except BaseException:  # no answer in time, or an interrupt: what was asked may have been sent in part
                connection.close()
                raise
            self._give_back(connection)
            return frame

    def take(self, header: Header, timeout_s: float | None, read: Callable[[Frame], T]) -> T:
        """Ask for a message, ``read`` it, and confirm it. Raises as :meth:`SyncConnection.call`.

        Whatever comes in between, an interrupt for example, ends the connection: that puts back what is not confirmed.
        From when ``read`` has begun the message may be confirmed or not.
        """
        while True:
            connection, is_fresh = self._take(timeout_s)
            if is_fresh or not connection.is_cut:
                break
            connection.close()
        try:
            frame = connection.call("take", header, b"", timeout_s)
            found = read(frame)
            connection.tell("confirm", {"take": frame.header["id"]})
            self._give_back(connection)
        except BaseException:
            self._drop(connection)
            raise
        return found

    def open(self, timeout_s: float | None = None) -> SyncConnection:
        """A connection of the caller's own, for a stream. Raises as :class:`SyncConnection`."""
        connection = SyncConnection(self.path, timeout_s)
        self.supervisor_id = (connection.protocol.hello or {}).get("supervisor")
        return connection

    def close(self) -> None:
        """Hang up all idle connections."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def __del__(self) -> None:
        if self._pid == os.getpid():
            self.close()

    def _take(self, timeout_s: float | None) -> tuple[SyncConnection, bool]:
        with self._lock:
            if self._pid != os.getpid():
                self._idle, self._pid = [], os.getpid()
            if self._idle:
                return self._idle.pop(), False
        return self.open(timeout_s), True

    def _give_back(self, connection: SyncConnection) -> None:
        with self._lock:
            self._idle.append(connection)

    def _drop(self, connection: SyncConnection) -> None:
        with self._lock:
            self._idle = [one for one in self._idle if one is not connection]
        connection.close()


class AsyncConnection:
    """One asyncio connection that carries any number of calls, and streams by session."""

    def __init__(self) -> None:
        self.hello: Header | None = None
        self.on_notice: Callable[[Frame], None] = lambda _: None
        self._channel: Channel | None = None
        self._ids = itertools.count(1)
        self._calls: dict[int, asyncio.Future[Frame]] = {}
        self._greeted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @classmethod
    async def open(cls, path: Path) -> AsyncConnection:
        """Connect and greet. Raises as :class:`SyncConnection`."""
        self = cls()
        try:
            self._channel = await open_unix(path, self._on_frame, self._on_close)
        except OSError as error:
            raise _not_there(path, error) from None
        if _peer_uid(self._channel.socket) != os.geteuid():
            self.close()
            raise _foreign(path)
        self._channel.send({"kind": "hello", "protocol": PROTOCOL, "product": PRODUCT, "pid": os.getpid()})
        try:
            async with asyncio.timeout(HELLO_S):
                await self._greeted
        except TimeoutError:
            self.close()
            raise _silent(path) from None
        except BaseException:
            self.close()
            raise
        return self

    @property
    def is_open(self) -> bool:
        return self._channel is not None and not self._channel.closed

    async def call(self, op: str, header: Header, body: bytes, timeout_s: float | None) -> Frame:
        """Ask and wait for the answer. Raises what was answered, :class:`ConnectionLost`, ``TimeoutError``."""
        if self._channel is None or self._channel.closed:
            raise ConnectionLost("the connection has ended")
        check_size(body)
        request_id = next(self._ids)
        future = self._calls[request_id] = asyncio.get_running_loop().create_future()
        is_here = False
        try:
            self._channel.send({"kind": "request", "id": request_id, "op": op, **header}, body)
            async with asyncio.timeout(timeout_s):
                answer = await future
                is_here = True
        finally:
            del self._calls[request_id]
            if op in ("call", "take") and not is_here:
                self.tell("give_up", {"call": request_id})
        return outcome(answer)

    def tell(self, op: str, header: Header) -> None:
        """Ask for what has no answer."""
        if self._channel is not None and not self._channel.closed:
            self._channel.send({"kind": "request", "op": op, **header})

    def close(self) -> None:
        """Hang up."""
        if self._channel is not None:
            self._channel.close()

    def pause_reading(self) -> None:
        """Leave what comes in the socket."""
        if self._channel is not None:
            self._channel.pause_reading()

    def resume_reading(self) -> None:
        """Read on."""
        if self._channel is not None:
            self._channel.resume_reading()

    def _on_frame(self, frame: Frame) -> None:
        if self.hello is None:
            self._on_hello(frame)
        elif frame.kind == "reply":
            future = self._calls.get(int(frame.header.get("id") or 0))
            if future is not None and not future.done():
                future.set_result(frame)
        else:
            self.on_notice(frame)

    def _on_hello(self, frame: Frame) -> None:
        if frame.kind != "hello":
            raise Refused(f"what listens there is no Athena supervisor: it sent {frame.kind!r} first")
        if frame.header.get("refused"):
            raise from_wire(frame.json())
        self.hello = frame.header
        if not self._greeted.done():
            self._greeted.set_result(None)

    def _on_close(self, error: BaseException | None) -> None:
        if not self._greeted.done():
            _fail(self._greeted, _ungreeted(error))
        for future in self._calls.values():
            if not future.done():
                _fail(future, _lost(error))
        if not self.lost.done():
            self.lost.set_result(None)


def _fail(future: asyncio.Future[Any], error: Exception) -> None:
    future.set_exception(error)
    future.exception()  # looked at: whoever waits for it may have been cancelled at the same moment


def _connect(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.connect(str(path))
    except TimeoutError:  # of a signal's handler
        sock.close()
        raise
    except OSError as error:
        sock.close()
        raise _not_there(path, error) from None
    if _peer_uid(sock) != os.geteuid():
        sock.close()
        raise _foreign(path)
    return sock


def _foreign(path: Path) -> Refused:
    return Refused(f"the socket {str(path)!r} belongs to another user; set ATHENA_SOCKET or ATHENA_HOME")


def _silent(path: Path) -> Unresponsive:
    return Unresponsive(
        f"what listens at {str(path)!r} does not answer: a supervisor that is stopped (SIGSTOP), or another program"
    )


def check_size(body: bytes) -> None:
    """Raise for what is more than a supervisor takes from a client."""
    if len(body) > MAX_FRAME_BYTES:
        raise InvalidOption(
            f"the request has {len(body)} bytes; the limit is {MAX_FRAME_BYTES}: send less at once",
            option="text",
            value=f"{len(body)} bytes",
            expected=f"at most {MAX_FRAME_BYTES} bytes",
        )


def _lost(error: object) -> ConnectionLost:
    return ConnectionLost(f"the connection to the supervisor ended before it answered ({error or 'closed'})")


def replaced() -> ConnectionLost:
    """For a call that means the supervisor before the one that answers now."""
    return ConnectionLost("another supervisor answers now, which has to be told the start options first")


def _ungreeted(error: BaseException | None) -> AthenaError:
    if isinstance(error, Refused):
        return error
    if isinstance(error, ProtocolError):
        return Refused(f"what listens there is no Athena supervisor: {error.message}")
    return _lost(error)


def _peer_uid(sock: socket.socket) -> int:
    _, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return int(uid)


def _not_there(path: Path, error: OSError) -> Unavailable:
    if isinstance(error, FileNotFoundError | ConnectionRefusedError):
        return NotRunning(
            f"no supervisor listens at {str(path)!r}: it has ended, or was never started "
            "(the daemon is started with: athena-supervisor start)"
        )
    return Unavailable(f"cannot connect to {str(path)!r}: {error.strerror}; check ATHENA_SOCKET and ATHENA_HOME")


def call_timeout(op: str, timeout_s: float | None, message_id: str | None = None) -> CallTimeout:
    """The error for a wait that has ended; what was asked for goes on."""
    data = {} if message_id is None else {"message_id": message_id}
    shown = "its time" if timeout_s is None else f"{round(timeout_s, 3):g} s"
    rest = "; a turn goes on without the wait" if op in ("send", "result", "events") else ""
    return CallTimeout(f"no answer to {op!r} within {shown}{rest}", **data)

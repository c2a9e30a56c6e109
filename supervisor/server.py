"""The supervisor's socket: who may connect, how a connection begins, and what a broken one may cost (itself only)."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import stat
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from athena.channel import Channel
from athena.config import PRODUCT, private_dir
from athena.errors import AthenaError, ProtocolError, Refused, StoreError, VersionMismatch, to_wire
from athena.wire import PROTOCOL, Frame, dumps
from supervisor.calls import reply, reply_error
from supervisor.hub import Subscription

logger = logging.getLogger(__name__)

_CREDENTIALS = struct.Struct("iII")


class Connection:
    """One client connection. A client process may have several: its identity is its process (design 7)."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.channel = Channel(self._on_frame, self._on_close)
        self.subscriptions: dict[str, Subscription] = {}
        self.tasks: set[asyncio.Task[None]] = set()
        self.pid = 0
        self._greeted = False

    def run(self, work: Any, request_id: object) -> None:
        """Carry out an operation that may wait; its failure answers the request and ends nothing else."""
        task = asyncio.create_task(self._guarded(work, request_id))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def answer(self, frame: Frame, value: Any) -> None:
        """Answer a request with JSON."""
        reply(self.channel, frame.header.get("id"), dumps(value))

    async def _guarded(self, work: Any, request_id: object) -> None:
        try:
            await work
        except AthenaError as error:
            reply_error(self.channel, request_id, error)
        except Exception as error:  # the supervisor's one broad handler: log it, tell the client, keep serving
            logger.exception("an operation failed")
            reply_error(self.channel, request_id, AthenaError(f"the supervisor failed: {error!r}; see its log"))

    def _on_frame(self, frame: Frame) -> None:
        if not self._greeted:
            self._greet(frame)
            return
        if frame.kind != "request":
            raise ProtocolError(f"unexpected frame kind {frame.kind!r} from a client")
        try:
            self.server.dispatch(self, frame)
        except AthenaError as error:
            reply_error(self.channel, frame.header.get("id"), error)

    def _greet(self, frame: Frame) -> None:
        if frame.kind != "hello":
            raise ProtocolError(f"the first frame must be hello, not {frame.kind!r}")
        hello = {
            "kind": "hello", "protocol": PROTOCOL, "product": PRODUCT, "pid": os.getpid(),
            "supervisor": self.server.supervisor_id, "mode": self.server.mode,
        }  # fmt: skip
        theirs = (frame.header.get("protocol"), frame.header.get("product"))
        if theirs != (PROTOCOL, PRODUCT):
            error = VersionMismatch(
                f"this supervisor is {PRODUCT} (protocol {PROTOCOL}), the client {theirs[1]} (protocol {theirs[0]}); "
                "install the same release on both sides, then: athena-supervisor restart",
                ours=[PROTOCOL, PRODUCT],
                theirs=list(theirs),
            )
            self.channel.send({**hello, "refused": True}, dumps(to_wire(error)), control=True)
            self.channel.close()
            return
        self._greeted = True
        self.channel.send(hello, control=True)

    def _on_close(self, error: BaseException | None) -> None:
        if error is not None and not isinstance(error, ConnectionError):
            logger.warning("closed the connection of pid=%d: %s", self.pid, error)
        for subscription in self.subscriptions.values():
            subscription.close()
        self.server.closed(self)


class Server:
    """Listens, checks who connects, hands requests to ``dispatch``."""

    def __init__(
        self, path: Path, *, supervisor_id: str, mode: str, dispatch: Callable[[Connection, Frame], None],
        on_closed: Callable[[Connection], None],
    ) -> None:  # fmt: skip
        self.path = path
        self.supervisor_id = supervisor_id
        self.mode = mode
        self.dispatch = dispatch
        self.connections: set[Connection] = set()
        self._on_closed = on_closed
        self._listener: asyncio.AbstractServer | None = None

    async def start(self) -> None:
        """Listen at the path, mode 0600. Raises :class:`Refused` if something else answers or lies there."""
        make_socket_dir(self.path.parent)
        self._clear_stale()
        # Bound under another name and put in place when it listens: nobody, the guard of a supervisor before us
        # included, finds a socket at the path that looks dead.
        staging = self.path.with_name(f".{os.getpid()}")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        before = os.umask(0o177)
        try:
            staging.unlink(missing_ok=True)
            listener.bind(str(staging))
        except OSError as error:
            listener.close()
            raise StoreError(
                f"cannot listen at {str(self.path)!r}: {error.strerror}; set ATHENA_SOCKET or ATHENA_HOME"
            ) from None
        finally:
            os.umask(before)
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_unix_server(self._connected, sock=listener, backlog=1024)
        staging.rename(self.path)

    def _clear_stale(self) -> None:
        """Remove a dead supervisor's socket; never a live one's, and nothing that is no socket of ours."""
        try:
            info = self.path.lstat()
        except FileNotFoundError:
            return
        if not self.path.is_socket() or info.st_uid != os.geteuid():
            raise Refused(
                f"{str(self.path)!r} is in the way and is no socket of this user; remove it or set ATHENA_SOCKET"
            )
        probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        probe.settimeout(1.0)
        try:
            probe.connect(str(self.path))
        except (ConnectionRefusedError, FileNotFoundError):
            self.path.unlink(missing_ok=True)
        except OSError as error:
            raise Refused(
                f"cannot tell whether {str(self.path)!r} is in use: {error}; remove it if it is not"
            ) from None
        else:
            raise Refused(f"another program listens at {str(self.path)!r}; stop it or set ATHENA_SOCKET")
        finally:
            probe.close()

    def _connected(self) -> asyncio.Protocol:
        connection = Connection(self)
        channel = connection.channel
        made = channel.connection_made

        def check_then_make(transport: Any) -> None:
            made(transport)
            if self._listener is None:  # accepted just before; those who wait must not be told that sessions ended
                channel.abort(None)
                return
            pid, uid = _peer(transport.get_extra_info("socket"))
            if uid != os.geteuid():
                logger.warning("refused a connection of uid=%d", uid)
                channel.abort(None)
                return
            connection.pid = pid
            self.connections.add(connection)

        channel.connection_made = check_then_make  # type: ignore[method-assign]  # peer credentials come before any frame
        return channel

    def closed(self, connection: Connection) -> None:
        """A connection has ended."""
        self.connections.discard(connection)
        self._on_closed(connection)

    def stop_listening(self) -> None:
        """No new connections; the socket's file goes."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """End every connection."""
        self.stop_listening()
        for connection in list(self.connections):
            connection.channel.close()


def object_of(frame: Frame) -> Mapping[str, Any]:
    """The body of a request that has fields. Raises :class:`ProtocolError` for another one."""
    value = frame.json() or {}
    if not isinstance(value, dict):
        raise ProtocolError(f"the operation {frame.header.get('op')!r} needs an object, got {value!r}")
    return value


def make_socket_dir(path: Path) -> None:
    """A private directory for the socket, or the one that is there, if others cannot put another socket in its
    place."""
    if not path.exists():
        private_dir(path)
        return
    mode = path.stat().st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        raise Refused(f"{str(path)!r} can be written by everybody: no safe place for a socket; set ATHENA_SOCKET")


def _peer(sock: Any) -> tuple[int, int]:
    """Pid and uid of the process at the other end, from the kernel (``SO_PEERCRED``, unix(7))."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(raw)
    return pid, uid

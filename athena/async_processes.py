"""The functions of :mod:`athena.processes`, awaited: ``acall`` for ``call``, and so on."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from athena import process_calls as calls
from athena.async_connections import has_ended, open_connection, perform
from athena.client import AsyncConnection, ConnectionLost, call_timeout
from athena.errors import AlreadyStarted, AthenaError, NoProcess, NotRunning, ProcessExited, Reason
from athena.mailboxes import CAME_BACK_S, NOTHING, Box, Key
from athena.names import Via
from athena.pid import Pid
from athena.process_calls import Process
from athena.processes import Where, in_handle_info
from athena.recovery import ANSWER_S, RETRY_S
from athena.session_calls import Call, check_timeout
from athena.signals import Down, Exit
from athena.supervisors import Target, resolve
from athena.tree_calls import Ignored, Started, with_pid
from athena.wire import Frame

T = TypeVar("T")


async def acall(server: Process, request: Any, timeout: float | None = 5.0, *, supervisor: Where = None) -> Any:
    """Ask a server, and wait for its answer. See :func:`athena.call`."""
    check_timeout(timeout)
    return await _once(supervisor, calls.call(server, request), timeout)


async def acast(server: Process, message: Any, *, supervisor: Where = None) -> None:
    """Tell a server something. See :func:`athena.cast`."""
    await _once(supervisor, calls.cast(server, message), ANSWER_S)


async def asend(process: Process, message: Any, *, supervisor: Where = None) -> None:
    """Send a plain message. See :func:`athena.send`."""
    await _once(supervisor, calls.send(process, message), ANSWER_S)


async def areceive(timeout: float | None = None, *, supervisor: Where = None) -> Any:
    """The next plain message for this program. See :func:`athena.receive`."""
    if calls.is_server():
        raise in_handle_info("areceive()")
    mailbox = await _mailbox_at(await _target(supervisor))
    message = await mailbox.take(calls.INBOX, timeout, "receive")
    if message is NOTHING:
        raise ProcessExited("the supervisor was lost", reason="noconnection")
    return message


async def astop(
    process: Process, reason: Reason = "normal", timeout: float | None = None, *, supervisor: Where = None
) -> None:
    """End a server or a supervisor. See :func:`athena.stop`."""
    check_timeout(timeout)
    await _once(supervisor, calls.stop(process, reason), timeout)


async def aexit(process: Process, reason: Reason, *, supervisor: Where = None) -> None:
    """Send an exit signal. See :func:`athena.exit`."""
    await _perform(supervisor, calls.exit(process, reason))


async def awhereis(name: str | Via, *, supervisor: Where = None) -> Pid | None:
    """Who has this name now."""
    return await _perform(supervisor, calls.whereis(name))


async def ais_alive(pid: Process, *, supervisor: Where = None) -> bool:
    """Whether it runs."""
    return await _perform(supervisor, calls.is_alive(pid))


async def amonitor(process: Process, *, supervisor: Where = None) -> AsyncMonitor:
    """Watch a process. See :func:`athena.monitor`."""
    return await AsyncMonitor.watch(await _target(supervisor), process)


async def alink(process: Process, *, supervisor: Where = None) -> AsyncLink:
    """Tie this program to a process. See :func:`athena.link`."""
    return await AsyncLink.tie(await _target(supervisor), process)


async def aunlink(process: Process, *, supervisor: Where = None) -> None:
    """Undo :func:`alink`."""
    await _perform(supervisor, calls.unlink(process))


async def astart_server(cls: type, args: Sequence[Any], options: dict[str, Any], *, link: bool) -> Started | Ignored:
    """What :meth:`athena.Server.astart_link` and ``astart`` do."""
    where, call = calls.start_class(cls, args, options, link=link)
    try:
        return await perform(await asyncio.to_thread(resolve, where), call, None)
    except AlreadyStarted as error:
        raise with_pid(error) from None


class AsyncMonitor:
    """A one-way watch on one process. Delivers exactly one :class:`~athena.Down`."""

    def __init__(self, target: Target, watched: Process, mailbox: _Mailbox | None, armed: calls.Armed) -> None:
        self.ref = armed.ref
        self.pid = armed.pid
        self._target = target
        self._watched = watched
        self._mailbox = mailbox
        self._is_over = False

    @classmethod
    async def watch(cls, target: Target, watched: Process) -> AsyncMonitor:
        """Begin. Raises :class:`~athena.errors.Unavailable`."""
        return cls(target, watched, *await _in_mailbox(target, lambda box: calls.monitor(watched, box)))

    async def wait(self, timeout: float | None = None) -> Down | None:
        """Wait for the :class:`~athena.Down`; ``None`` once it was delivered or after :meth:`demonitor`.

        Raises :class:`~athena.errors.CallTimeout`.
        """
        if self._mailbox is None:
            raise in_handle_info("AsyncMonitor.wait()")
        if self._is_over:
            return None
        down = await self._mailbox.take(("down", self.ref), timeout, "monitor")
        self._is_over = True
        if down is NOTHING:
            watched = self._watched if isinstance(self._watched, str | Via) else self.pid
            return Down(self.ref, watched, self.pid, "noconnection")
        found: Down = down
        if found.pid is None and isinstance(self._watched, Pid):  # of a supervisor that this one knows nothing of
            return replace(found, pid=self._watched, target=self._watched)
        return found

    async def demonitor(self, flush: bool = False) -> bool:
        """Stop watching. See :meth:`athena.processes.Monitor.demonitor`."""
        try:
            was_armed = await perform(self._target, calls.demonitor(self.ref), ANSWER_S)
        except (ConnectionLost, NotRunning):
            was_armed = False  # it went with its supervisor
        if was_armed or flush:
            self._is_over = True
            if self._mailbox is not None:
                self._mailbox.box.waiting.pop(("down", self.ref), None)
        return was_armed


class AsyncLink:
    """A tie between this program and a process. See :class:`athena.processes.Link`."""

    def __init__(self, target: Target, mailbox: _Mailbox | None, pid: Pid) -> None:
        self.pid = pid
        self._target = target
        self._mailbox = mailbox
        self._is_over = False

    @classmethod
    async def tie(cls, target: Target, other: Process) -> AsyncLink:
        """Begin. Raises :class:`~athena.errors.NoProcess`."""
        return cls(target, *await _in_mailbox(target, lambda box: calls.link(other, box)))

    async def wait(self, timeout: float | None = None) -> Exit | None:
        """Wait for the other's end; ``None`` once that was delivered or after :meth:`unlink`.

        Raises :class:`~athena.errors.CallTimeout`.
        """
        if self._mailbox is None:
            raise in_handle_info("AsyncLink.wait()")
        if self._is_over:
            return None
        found = await self._mailbox.take(("exit", self.pid.serial or 0), timeout, "link")
        self._is_over = True
        return Exit(self.pid, "noconnection") if found is NOTHING else found

    async def unlink(self) -> None:
        """Undo it. Twice is a no-op."""
        self._is_over = True
        try:
            await perform(self._target, calls.unlink(self.pid), ANSWER_S)
        except (ConnectionLost, NotRunning, NoProcess):
            pass  # it went with its supervisor, or its other end has gone
        if self._mailbox is not None:
            self._mailbox.box.waiting.pop(("exit", self.pid.serial or 0), None)


class _Mailbox:
    """One event loop's boxes at one supervisor; the rules are those of :class:`athena.mailboxes.Mailbox`."""

    def __init__(self, target: Target, box: Box, connection: AsyncConnection) -> None:
        self.is_lost = False
        self.box = box
        self._target = target
        self._boxes = [self.box.name]
        self._waiting: defaultdict[Key, list[asyncio.Future[None]]] = defaultdict(list)
        self._coming_back: asyncio.Task[None] | None = None
        self._connection = connection

    @classmethod
    async def open(cls, target: Target) -> _Mailbox:
        box = Box()
        connection = await open_connection(target, "drop_mailbox", {"box": box.name})
        box.supervisor_id = str((connection.hello or {}).get("supervisor"))
        self = cls(target, box, connection)
        await self._read(connection)
        return self

    async def take(self, key: Key, timeout: float | None, what: str) -> Any:
        """Wait for the next message for ``key``; :data:`NOTHING` when the supervisor is lost."""
        check_timeout(timeout)
        if key == calls.INBOX and calls.DEFAULT_BOX not in self._boxes:
            self._boxes.append(calls.DEFAULT_BOX)
            self._connection.tell("mailbox", calls.mailbox(calls.DEFAULT_BOX, 0))
        try:
            async with asyncio.timeout(timeout):
                while (message := self.box.take(key)) is NOTHING and not self.is_lost:
                    arrival: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                    self._waiting[key].append(arrival)
                    await arrival
        except TimeoutError:
            raise call_timeout(what, timeout) from None
        return message

    async def _read(self, connection: AsyncConnection) -> None:
        """Have what is in our boxes come over this connection."""
        connection.on_notice = self._on_frame
        for name in self._boxes:
            await connection.call("mailbox", calls.mailbox(name, self.box.read_to.get(name, 0)), b"", ANSWER_S)
        self._connection = connection
        connection.lost.add_done_callback(lambda _: self._on_cut())

    def _on_frame(self, frame: Frame) -> None:
        if frame.kind in ("down", "exit", "message"):
            self.box.put(frame)
            self._connection.tell("has_read", {"box": frame.header["box"], "n": frame.header["n"]})
            self._wake(calls.key_of(frame))

    def _on_cut(self) -> None:
        if not has_ended():
            self._coming_back = asyncio.create_task(self._come_back())

    async def _come_back(self) -> None:
        until = asyncio.get_running_loop().time() + CAME_BACK_S
        while asyncio.get_running_loop().time() < until:
            try:
                connection = await open_connection(self._target, "drop_mailbox", {"box": self.box.name})
                if (connection.hello or {}).get("supervisor") == self.box.supervisor_id:
                    await self._read(connection)
                    return
                connection.close()
                break
            except ConnectionLost:
                await asyncio.sleep(RETRY_S)
            except (AthenaError, TimeoutError):
                break
        self.is_lost = True
        for key in list(self._waiting):
            self._wake(key)

    def _wake(self, key: Key) -> None:
        for arrival in self._waiting.pop(key, ()):
            if not arrival.done():
                arrival.set_result(None)


_mailboxes: dict[tuple[asyncio.AbstractEventLoop, str], _Mailbox] = {}


async def _mailbox_at(target: Target) -> _Mailbox:
    """This event loop's mailbox at a supervisor; a new one if that was lost."""
    for key in [key for key in _mailboxes if key[0].is_closed()]:
        del _mailboxes[key]
    key = (asyncio.get_running_loop(), str(target.path))
    found = _mailboxes.get(key)
    if found is None or found.is_lost:
        found = await _Mailbox.open(target)
        _mailboxes[key] = found
    return found


async def _in_mailbox(target: Target, make: Callable[[str | None], Call[Any]]) -> tuple[_Mailbox | None, Any]:
    if calls.is_server():
        return None, await perform(target, make(None), ANSWER_S)
    while True:
        mailbox = await _mailbox_at(target)
        answer = await perform(target, make(mailbox.box.name), ANSWER_S)
        if answer.supervisor == mailbox.box.supervisor_id:
            return mailbox, answer
        mailbox.is_lost = True  # another supervisor has taken its place in between


async def _target(supervisor: Where) -> Target:
    return await asyncio.to_thread(lambda: resolve(supervisor, create=False))


async def _perform(supervisor: Where, call: Call[T]) -> T:
    return await perform(await _target(supervisor), call, ANSWER_S)


async def _once(supervisor: Where, call: Call[T], timeout: float | None) -> T:
    try:
        return await perform(await _target(supervisor), call, timeout)
    except ConnectionLost as error:
        raise ProcessExited(f"the supervisor was lost: {error}", reason="noconnection") from None

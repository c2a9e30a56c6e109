"""The functions of :mod:`athena.processes`, awaited: ``acall`` for ``call``, and so on."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Any, TypeVar

from athena import process_calls as calls
from athena.async_connections import or_undone, perform, take
from athena.client import ConnectionLost
from athena.errors import AthenaError, NoProcess, NotRunning, ProcessExited, Reason
from athena.mailboxes import Arrival, No, leftovers
from athena.names import Via
from athena.pid import Pid
from athena.process_calls import Process
from athena.processes import Where, in_handle_info
from athena.recovery import ANSWER_S, RETRY_S
from athena.session_calls import Call, check_timeout
from athena.signals import Down, Exit
from athena.supervisors import Target, resolve
from athena.tree_calls import Ignored, Started

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
    target = await _target(supervisor)
    check_timeout(timeout)
    message = leftovers.take(target.path)
    if message is No.NEWS:
        message = await _take(target, None, timeout, "receive")
    if message is No.SUPERVISOR:
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
    target = await asyncio.to_thread(resolve, where)
    starting = asyncio.create_task(perform(target, call, None))
    return await or_undone(starting, lambda started: _undo(target, started))


async def _undo(target: Target, started: Started | Ignored) -> None:
    if isinstance(started, Started):
        await perform(target, calls.unlink(started.pid), ANSWER_S)
        await perform(target, calls.stop(started.pid, "shutdown"), None)


class _Awaited:
    """The one message of a monitor or a link of this process."""

    def __init__(self, target: Target, armed: calls.Armed) -> None:
        self.ref = armed.ref
        self._target = target
        self._armed = armed
        self._is_over = False
        self._is_server = calls.is_server()
        self._os_pid = os.getpid()

    async def _take(self, timeout: float | None, what: str) -> Any:
        """See :class:`athena.processes.Monitor`."""
        if self._is_server:
            raise in_handle_info(f"{what}.wait()")
        calls.check_same_process(self._os_pid, what)
        if self._is_over:
            return None
        message = await _take(self._target, self._armed, timeout, what)
        self._is_over = True
        return None if message is No.MORE else message


class AsyncMonitor(_Awaited):
    """A one-way watch on one process. Delivers exactly one :class:`~athena.Down`."""

    def __init__(self, target: Target, watched: Process, armed: calls.Armed) -> None:
        super().__init__(target, armed)
        self.pid = armed.pid
        self._watched = watched

    @classmethod
    async def watch(cls, target: Target, watched: Process) -> AsyncMonitor:
        """Begin. Raises :class:`~athena.errors.Unavailable`."""
        return cls(target, watched, await perform(target, calls.monitor(watched), ANSWER_S))

    async def wait(self, timeout: float | None = None) -> Down | None:
        """Wait for the :class:`~athena.Down`; ``None`` once it was delivered or after :meth:`demonitor`.

        Raises :class:`~athena.errors.CallTimeout`.
        """
        return calls.down_of(await self._take(timeout, "monitor"), self._armed, self._watched)

    async def demonitor(self, flush: bool = False) -> bool:
        """Stop watching. See :meth:`athena.processes.Monitor.demonitor`."""
        calls.check_same_process(self._os_pid, "monitor")
        try:
            was_armed = await perform(self._target, calls.demonitor(self.ref, flush=flush), ANSWER_S)
        except (ConnectionLost, NotRunning):
            was_armed = False  # it went with its supervisor
        self._is_over = self._is_over or was_armed or flush
        return was_armed


class AsyncLink(_Awaited):
    """A tie between this program and a process. See :class:`athena.processes.Link`."""

    def __init__(self, target: Target, armed: calls.Armed) -> None:
        super().__init__(target, armed)
        self.pid: Pid = calls.linked_pid(armed)

    @classmethod
    async def tie(cls, target: Target, other: Process) -> AsyncLink:
        """Begin. Raises :class:`~athena.errors.NoProcess`."""
        return cls(target, await perform(target, calls.link(other), ANSWER_S))

    async def wait(self, timeout: float | None = None) -> Exit | None:
        """Wait for the other's end; ``None`` once that was delivered, and after the link was undone by either side.

        Raises :class:`~athena.errors.CallTimeout`.
        """
        return calls.exit_of(await self._take(timeout, "link"), self.pid)

    async def unlink(self) -> None:
        """Undo it. Twice is a no-op."""
        calls.check_same_process(self._os_pid, "link")
        self._is_over = True
        try:
            await perform(self._target, calls.unlink(self.pid), ANSWER_S)
        except (ConnectionLost, NotRunning, NoProcess):
            pass  # it went with its supervisor, or its other end has gone


# --- the way to the supervisor --------------------------------------------------------------------------------------


async def _take(target: Target, awaited: calls.Armed | None, timeout: float | None, what: str) -> Any:
    """The same as that of :mod:`athena.processes`, awaited."""
    check_timeout(timeout)
    waiting = calls.Waiting(awaited, timeout, what)
    while True:
        try:
            found = Arrival().read(await take(target, waiting.header(), waiting.limit_s()))
        except (ConnectionLost, NotRunning) as error:
            if waiting.is_lost(error):
                return No.SUPERVISOR
            await asyncio.sleep(RETRY_S)
            continue
        except TimeoutError as error:
            if isinstance(error, AthenaError) or not waiting.is_over():
                raise
            found = No.TIME
        if found is No.TIME:
            raise waiting.error()
        if found is not No.NEWS:
            return found


async def _target(supervisor: Where) -> Target:
    return await asyncio.to_thread(lambda: resolve(supervisor, create=False))


async def _perform(supervisor: Where, call: Call[T]) -> T:
    return await perform(await _target(supervisor), call, ANSWER_S)


async def _once(supervisor: Where, call: Call[T], timeout: float | None) -> T:
    try:
        return await perform(await _target(supervisor), call, timeout)
    except ConnectionLost as error:
        raise ProcessExited(f"the supervisor was lost: {error}", reason="noconnection") from None

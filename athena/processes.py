"""Processes and what they say to each other: calls, messages, links, monitors, exit signals, as in OTP.

A process is a child of a supervisor (function, server, program, session), a supervisor, or a program that talks to one,
this one for example. Everything here goes over the supervisor that ``supervisor=`` names (as for
:meth:`athena.Session.start_link`); inside a child that is the child's own. The asyncio twins are in
:mod:`athena.async_processes`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from athena import process_calls as calls
from athena import recovery
from athena.client import ConnectionLost
from athena.errors import InvalidOption, NoProcess, NotRunning, ProcessExited, Reason
from athena.mailboxes import No, leftovers
from athena.names import Via
from athena.pid import Pid
from athena.process_calls import Process
from athena.recovery import ANSWER_S
from athena.session_calls import Call, check_timeout
from athena.signals import Down, Exit
from athena.supervisors import Target, resolve
from athena.tree_calls import Ignored, Started
from athena.waits import take

T = TypeVar("T")

Where = str | Path | Target | None
"""Which supervisor."""


def call(server: Process, request: Any, timeout: float | None = 5.0, *, supervisor: Where = None) -> Any:
    """Ask a server, and wait for its answer.

    Args:
        server: its name, pid or :class:`~athena.Via`.
        request: JSON, for its ``handle_call``.
        timeout: seconds; ``None`` waits until it answers or ends. The server is not told that nobody waits any more,
            and its late answer is dropped.

    Raises :class:`~athena.errors.CallTimeout`; :class:`~athena.errors.NoProcess` if it is not there;
    :class:`~athena.errors.ProcessExited` if it ends before it answers (also with ``normal``), ``noconnection`` if the
    supervisor is lost; :class:`~athena.errors.NotAServer`; :class:`~athena.errors.CallingSelf`;
    :class:`~athena.errors.Busy` while it leaves too much unread.
    """
    check_timeout(timeout)
    return _once(supervisor, calls.call(server, request), timeout)


def cast(server: Process, message: Any, *, supervisor: Where = None) -> None:
    """Tell a server something, for its ``handle_cast``. Ok whether or not it is there.

    Raises :class:`~athena.errors.NotAServer` and :class:`~athena.errors.Busy`.
    """
    _once(supervisor, calls.cast(server, message), ANSWER_S)


def send(process: Process, message: Any, *, supervisor: Where = None) -> None:
    """Send a plain message: to a server's ``handle_info``, to another program's :func:`receive`.

    To a process that is gone it is lost silently; a name that nobody has raises :class:`~athena.errors.NoProcess`.
    """
    _once(supervisor, calls.send(process, message), ANSWER_S)


def receive(timeout: float | None = None, *, supervisor: Where = None) -> Any:
    """The next plain message for this program, or an :class:`~athena.Exit` that did not come over :func:`link`.

    Raises :class:`~athena.errors.CallTimeout`; :class:`~athena.errors.ProcessExited` (``noconnection``) if the
    supervisor is lost. A server gets its messages in ``handle_info`` instead.
    """
    _refuse_in_server("receive()")
    target = resolve(supervisor, create=False)
    check_timeout(timeout)
    message = leftovers.take(target.path)
    if message is No.NEWS:
        message = take(target, None, timeout, "receive", keep=lambda rest: leftovers.put(target.path, rest))
    if message is No.SUPERVISOR:
        raise ProcessExited("the supervisor was lost", reason="noconnection")
    return message


def stop(
    process: Process, reason: Reason = "normal", timeout: float | None = None, *, supervisor: Where = None
) -> None:
    """End a server, which runs its ``terminate``, or a supervisor; return when nothing of it is left.

    ``timeout`` (seconds) ends the wait, not the stop. Raises :class:`~athena.errors.ProcessExited` if it ended for
    another reason, :class:`~athena.errors.NoProcess`, :class:`~athena.errors.CallingSelf`,
    :class:`~athena.errors.CallTimeout`, :class:`~athena.errors.NotAServer`.
    """
    check_timeout(timeout)
    _once(supervisor, calls.stop(process, reason), timeout)


def exit(process: Process, reason: Reason, *, supervisor: Where = None) -> None:
    """Send an exit signal. What it does, the receiver decides by trapping exits or not; ``kill`` is not trapped.

    ``normal`` does nothing to a process that does not trap. To one that is gone every signal is nothing.
    """
    _perform(supervisor, calls.exit(process, reason))


def trap_exit(on: bool = True, *, supervisor: Where = None) -> None:
    """Have exit signals for this process come as messages to :func:`receive`. For functions: a program always traps,
    and a server has an attribute for it."""
    _refuse_in_server("trap_exit()")
    _perform(supervisor, calls.trap_exit(on))


def whereis(name: str | Via, *, supervisor: Where = None) -> Pid | None:
    """Who has this name now; ``None`` if nobody has, also between a death and the next start."""
    return _perform(supervisor, calls.whereis(name))


def is_alive(pid: Process, *, supervisor: Where = None) -> bool:
    """Whether it runs. One that a fatal signal has reached does not, even if it is still being ended."""
    return _perform(supervisor, calls.is_alive(pid))


def self_pid(*, supervisor: Where = None) -> Pid:
    """What this process is to others."""
    return _perform(supervisor, calls.self_pid())


class _Awaited:
    """The one message of a monitor or a link of this process."""

    def __init__(self, target: Target, armed: calls.Armed) -> None:
        self.ref = armed.ref
        self._target = target
        self._armed = armed
        self._is_over = False
        self._rest: Any = No.NEWS
        """The message, if it came when a wait was interrupted; the supervisor may have it still."""
        self._is_server = calls.is_server()
        self._os_pid = os.getpid()

    def _take(self, timeout: float | None, what: str, meaning: Callable[[Any], Any]) -> Any:
        """The message; ``None`` once it was delivered, or if it will not come."""
        if self._is_server:
            raise in_handle_info(f"{what}.wait()")
        calls.check_same_process(self._os_pid, what)
        if self._is_over:
            return None
        message = take(self._target, self._armed, timeout, what, meaning, keep=self._keep)
        # No call from here on: an interrupt comes at a call.
        if message is No.MORE:
            message = None if self._rest is No.NEWS else self._rest
        self._is_over = True
        return message

    def _keep(self, message: Any) -> None:
        self._rest = message


class Monitor(_Awaited):
    """A one-way watch on one process. Delivers exactly one :class:`~athena.Down`."""

    def __init__(self, target: Target, watched: Process) -> None:
        super().__init__(target, recovery.perform(target, calls.monitor(watched), ANSWER_S))
        self.pid = self._armed.pid
        self._watched = watched

    def wait(self, timeout: float | None = None) -> Down | None:
        """Wait for the :class:`~athena.Down`; ``None`` once it was delivered or after :meth:`demonitor`.

        Raises :class:`~athena.errors.CallTimeout`. In a server the ``Down`` comes to ``handle_info``.
        """
        found: Down | None = self._take(timeout, "monitor", self._meaning)
        return found

    def _meaning(self, message: Any) -> Any:
        return calls.down_of(message, self._armed, self._watched)

    def demonitor(self, flush: bool = False) -> bool:
        """Stop watching: no ``Down`` is made from now on. Returns whether it was still to come. Twice is a no-op.

        One that is made already :meth:`wait` still gives, unless ``flush`` drops it.
        """
        calls.check_same_process(self._os_pid, "monitor")
        try:
            was_armed = recovery.perform(self._target, calls.demonitor(self.ref, flush=flush), ANSWER_S)
        except (ConnectionLost, NotRunning):
            was_armed = False  # it went with its supervisor
        self._is_over = self._is_over or was_armed or flush
        return was_armed


class Link(_Awaited):
    """A tie between this program and a process. A program always traps: it gets an :class:`~athena.Exit`, and lives."""

    def __init__(self, target: Target, other: Process) -> None:
        super().__init__(target, recovery.perform(target, calls.link(other), ANSWER_S))
        self.pid: Pid = calls.linked_pid(self._armed)

    def wait(self, timeout: float | None = None) -> Exit | None:
        """Wait for the other's end; ``None`` once that was delivered, and after the link was undone by either side.

        Raises :class:`~athena.errors.CallTimeout`. In a server the ``Exit`` comes to ``handle_info``.
        """
        found: Exit | None = self._take(timeout, "link", self._meaning)
        return found

    def _meaning(self, message: Any) -> Any:
        return calls.exit_of(message, self.pid)

    def unlink(self) -> None:
        """Undo it: nothing comes from it any more. Twice is a no-op."""
        calls.check_same_process(self._os_pid, "link")
        self._is_over = True
        try:
            recovery.perform(self._target, calls.unlink(self.pid), ANSWER_S)
        except (ConnectionLost, NotRunning, NoProcess):
            pass  # it went with its supervisor, or its other end has gone


def monitor(process: Process, *, supervisor: Where = None) -> Monitor:
    """Watch a process. Its :class:`~athena.Down` comes exactly once: with ``noproc`` at once if it is not there, with
    ``noconnection`` if the supervisor is lost. A name is looked up once, now."""
    return Monitor(resolve(supervisor, create=False), process)


def link(process: Process, *, supervisor: Where = None) -> Link:
    """Tie this process to another: the end of one, unless it is ``normal``, ends the other or is told to it.

    Raises :class:`~athena.errors.NoProcess` for a name that nobody has, and in a function that does not trap exits; a
    program gets an ``Exit`` with ``noproc`` for a pid that is gone.
    """
    return Link(resolve(supervisor, create=False), process)


def unlink(process: Process, *, supervisor: Where = None) -> None:
    """Undo :func:`link`."""
    _perform(supervisor, calls.unlink(process))


def start_server(cls: type, args: Sequence[Any], options: dict[str, Any], *, link: bool) -> Started | Ignored:
    """What :meth:`athena.Server.start_link` and ``start`` do."""
    where, call = calls.start_class(cls, args, options, link=link)
    return recovery.perform(resolve(where), call, None)


# --- the way to the supervisor --------------------------------------------------------------------------------------


def _perform(supervisor: Where, call: Call[T]) -> T:
    return recovery.perform(resolve(supervisor, create=False), call, ANSWER_S)


def _once(supervisor: Where, call: Call[T], timeout: float | None) -> T:
    """An operation that must not be done twice: when its connection ends, nobody knows whether it was done."""
    try:
        return recovery.perform(resolve(supervisor, create=False), call, timeout, once=True)
    except ConnectionLost as error:
        raise ProcessExited(f"the supervisor was lost: {error}", reason="noconnection") from None


def _refuse_in_server(what: str) -> None:
    if calls.is_server():
        raise in_handle_info(what)


def in_handle_info(what: str) -> InvalidOption:
    """The error for what a server gets otherwise."""
    text = f"{what} is not for a server, whose messages come to its handle_info"
    return InvalidOption(text, option=what, value="", expected="no server")

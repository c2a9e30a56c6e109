"""The operations on processes that any process, a client or a child, can ask for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

from athena.errors import (
    AlreadyStarted,
    CallingSelf,
    InvalidOption,
    NoProcess,
    NotAServer,
    NotFound,
    ProcessExited,
    ProtocolError,
    Reason,
    Refused,
    StartError,
)
from athena.pid import LOGICAL
from athena.wire import Frame
from supervisor import tree_vocabulary as words
from supervisor.branch import Branch
from supervisor.child_spec import parse_child_spec
from supervisor.keeper import Keeper
from supervisor.mailbox import Taker
from supervisor.member import Caller
from supervisor.processes import Target
from supervisor.restart import bounded
from supervisor.server import Connection
from supervisor.tree_answers import shortened

if TYPE_CHECKING:
    from supervisor.daemon import Daemon

Command = Callable[["Daemon", Connection, Frame], Awaitable[None]]


def resolve(daemon: Daemon, target: object) -> int | None:
    """The process that a request names; ``None`` if there is none now.

    A name (of a process, or the name or id of a session), a ``{"via": ...}``, a pid in wire form, or the bare number of
    a live process. Raises :class:`ProtocolError` for anything else, :class:`NoProcess` for a registry that does not
    run.
    """
    match target:
        case {"via": [*via]}:
            return daemon.processes.whereis({"via": via})
        case {"serial": int(serial), **rest}:
            is_ours = rest.get("supervisor") in (None, daemon.supervisor_id)
            return serial if is_ours and daemon.processes.is_alive(serial) else None
        case int(number) if not isinstance(target, bool):
            found = number - LOGICAL if number > LOGICAL else daemon.processes.by_os_pid(number)
            return found if found is not None and daemon.processes.is_alive(found) else None
        case str(name):
            return daemon.processes.whereis(name) or _session(daemon, name)
    raise ProtocolError(f"a process is named by its name, pid or via-name, not by {target!r}")


def _session(daemon: Daemon, target: str) -> int | None:
    try:
        keeper = daemon.registry.find(target)
    except NotFound:
        return None
    return keeper.serial if daemon.processes.is_alive(keeper.serial) else None


def _required(daemon: Daemon, frame: Frame) -> int:
    target = frame.header.get("target")
    serial = resolve(daemon, target)
    if serial is None:
        raise NoProcess(f"no process {_shown(target)} is running", target=target)
    return serial


def _shown(target: object) -> str:
    if isinstance(target, Mapping) and "via" not in target:
        return f"with the pid {target.get('pid') or target.get('serial')}"
    return shortened(target["via"] if isinstance(target, Mapping) else target)


def _not_self(daemon: Daemon, connection: Connection, frame: Frame) -> tuple[int, int]:
    """Caller and target of a call that a process cannot make to itself."""
    target = _required(daemon, frame)
    caller = daemon.processes.caller(connection)
    if caller == target:
        raise CallingSelf("a process cannot call itself: it would wait for ever", target=frame.header.get("target"))
    return caller, target


async def _whereis(daemon: Daemon, connection: Connection, frame: Frame) -> None:
    serial = resolve(daemon, frame.header.get("target"))
    connection.answer(frame, None if serial is None else daemon.processes.pid_value(serial))


async def _self(daemon: Daemon, connection: Connection, frame: Frame) -> None:
    """The pid of who asks."""
    connection.answer(frame, daemon.processes.pid_value(daemon.processes.caller(connection)))


async def _monitor(daemon: Daemon, connection: Connection, frame: Frame) -> None:
    """Armed, or told ``noproc`` at once, with nothing in between."""
    target = frame.header.get("target")
    serial, watcher, ref = resolve(daemon, target), daemon.processes.caller(connection), daemon.next_reference()
    name = target if isinstance(target, str) or (isinstance(target, dict) and "via" in target) else None
    pid = None if serial is None else daemon.processes.pid_value(serial)
    asks = bool(frame.header.get("asks"))
    daemon.processes.monitor(watcher, _named(daemon, serial, target), ref, name, asks=asks)
    connection.answer(frame, {"ref": ref, "pid": pid, "supervisor": daemon.supervisor_id})


async def _demonitor(daemon: Daemon, connection: Connection, frame: Frame) -> None:
    ref = frame.header.get("ref")
    caller, flush = daemon.processes.caller(connection), bool(frame.header.get("flush"))
    was_armed = isinstance(ref, int) and daemon.processes.demonitor(caller, ref, flush=flush)
    connection.answer(frame, {"was_armed": was_armed})


async def _link(daemon: Daemon, connection: Connection, frame: Frame) -> None:
    other = _linked(daemon, frame)
    ref = daemon.next_reference()
    daemon.processes.link(daemon.processes.caller(connection), other, ref if frame.header.get("asks") else None)
    assert other.serial is not None, "looked up"
    pid = daemon.processes.pid_value(other.serial, other.os_pid)
    connection.answer(frame, {"ref": ref, "pid": pid, "supervisor": daemon.supervisor_id})


async def _unlink(daemon: Daemon, connection: Connection, frame: Frame) -> None:
    other = _linked(daemon, frame).serial
    assert other is not None, "looked up"
    daemon.processes.unlink(daemon.processes.caller(connection), other)
    connection.answer(frame, {})


def _linked(daemon: Daemon, frame: Frame) -> Target:
    """The other end of a link. One that is dead is known by its serial; a name that nobody has is not known at all."""
    target = frame.header.get("target")
    found = _named(daemon, resolve(daemon, target), target)
    if found.serial is None:
        raise NoProcess(f"no process {_shown(target)} is running", target=target)
    return found


def _named(daemon: Daemon, serial: int | None, target: object) -> Target:
    """What a request names, dead or alive. The serials of another supervisor mean nothing here."""
    match target:
        case {"serial": int(known), "pid": number, "supervisor": daemon.supervisor_id} if serial is None:
            return Target(known, number if isinstance(number, int) else None)
        case _:
            return Target(serial)


async def _exit(daemon: Daemon, connection: Connection, frame: Frame) -> None:
    """An exit signal. To a process that is gone it does nothing."""
    serial = resolve(daemon, frame.header.get("target"))
    if serial is not None:
        daemon.processes.exit(daemon.processes.caller(connection), serial, bounded(frame.json()))
    connection.answer(frame, {})


async def _trap_exit(daemon: Daemon, connection: Connection, frame: Frame) -> None:
    daemon.processes.set_trap_exit(daemon.processes.caller(connection), bool(frame.header.get("on")))
    connection.answer(frame, {})


async def _send(daemon: Daemon, connection: Connection, frame: Frame) -> None:
    """A plain message. Raises :class:`NoProcess` for a name that nobody has; a dead pid takes it silently."""
    target = frame.header.get("target")
    serial = resolve(daemon, target)
    if serial is None and not (isinstance(target, dict) and "serial" in target):
        raise NoProcess(f"no process {_shown(target)} is running", target=target)
    if serial is not None:
        process = daemon.processes.get(serial)
        if isinstance(process, Keeper):
            raise NotAServer(f"{process.label} reads no plain messages; use Session.send_message", target=serial)
        daemon.processes.send(serial, frame.json())
    connection.answer(frame, {})


async def _call(daemon: Daemon, connection: Connection, frame: Frame) -> None:
    caller, target = _not_self(daemon, connection, frame)
    sender = daemon.processes.pid_value(caller)
    daemon.processes.calls.call(daemon.processes.server(target), sender, connection.channel, frame)  # which answers


async def _give_up(daemon: Daemon, connection: Connection, frame: Frame) -> None:
    request_id = frame.header.get("call")
    daemon.processes.calls.give_up(connection.channel, request_id)
    daemon.processes.mailbox(daemon.processes.caller(connection)).give_up(connection.channel, request_id)


async def _cast(daemon: Daemon, connection: Connection, frame: Frame) -> None:
    """Always ok for who is not there, as in OTP."""
    try:
        serial = resolve(daemon, frame.header.get("target"))
    except NoProcess:
        serial = None  # not even the registry is there
    if serial is not None:
        daemon.processes.server(serial).ask({"kind": "cast"}, frame.body)
    connection.answer(frame, {})


async def _stop(daemon: Daemon, connection: Connection, frame: Frame) -> None:
    """End a server or a supervisor in order; answered when nothing of it is left."""
    _, target = _not_self(daemon, connection, frame)
    wanted: Reason = bounded(frame.json())
    process = daemon.processes.get(target)
    if isinstance(process, Branch):
        await process.call(lambda ref: words.StopCall(ref, wanted))
    else:
        daemon.processes.server(target).ask({"kind": "stop", "reason": wanted})
        reason = await daemon.processes.end_of(target)
        if reason != wanted:
            raise ProcessExited(f"it ended for another reason: {shortened(reason)}", reason=reason)
    connection.answer(frame, {})


async def _start_server(daemon: Daemon, connection: Connection, frame: Frame) -> None:
    """Start a server on its own, linked to who asks if so wanted. If nobody waits for the answer, it is stopped."""
    if daemon.is_stopping:
        raise Refused("the supervisor is stopping")
    given = frame.json()
    spec = parse_child_spec(given["spec"])
    if not isinstance(spec.start, str):
        raise InvalidOption(
            f"a server is 'package.module:Class', not {spec.start!r}",
            option="start", value=repr(spec.start), expected="'package.module:Class'",
        )  # fmt: skip
    parent = daemon.processes.caller(connection) if given.get("link") else None
    caller = Caller.from_map(given.get("caller") or {})
    leaf, outcome = await daemon.forest.start_server(spec, caller, parent)
    match outcome:
        case words.StartFailed({"already_started": int(serial)}):
            raise AlreadyStarted(
                f"there is a process of the name that {spec.start} is to have", pid=daemon.processes.pid_value(serial)
            )
        case words.StartFailed(reason):
            raise StartError(f"{spec.start} did not start: {shortened(reason)}", reason=reason)
        case words.Ignored():
            connection.answer(frame, {"ignored": True})
        case words.Started() if connection.channel.closed:
            if parent is not None:
                daemon.processes.unlink(leaf.serial, parent)
            solo = daemon.forest.solos.get(leaf.serial)
            if solo is not None:  # else it has ended already
                await solo.stop()
        case words.Started(_, info):
            connection.answer(frame, {"started": leaf.pid_value(), "info": info})


async def _take(daemon: Daemon, connection: Connection, frame: Frame) -> None:
    """The message of a monitor or link (``ref``), or the next plain one; answered when it is there."""
    ref, asked, timeout = (frame.header.get(name) for name in ("ref", "supervisor", "timeout"))
    if not isinstance(ref, int | None) or not isinstance(timeout, int | float | None):
        raise ProtocolError(f"a wait is for a reference and for seconds, not for {ref!r} and {timeout!r}")
    if connection.channel.closed:
        return  # it was cut since it asked, and that has been told; a message for it now would wait for ever
    if asked not in (None, daemon.supervisor_id):
        connection.answer(frame, {"lost": True})  # what was asked for went with the supervisor before this one
        return
    taker = Taker(connection.channel, frame.header.get("id"), ref)
    daemon.processes.mailbox(daemon.processes.caller(connection)).take(taker, timeout)


async def _confirm(daemon: Daemon, connection: Connection, frame: Frame) -> None:
    mailbox = daemon.processes.mailbox(daemon.processes.caller(connection))
    mailbox.confirm(connection.channel, frame.header.get("take"))


PROCESS_COMMANDS: dict[str, Command] = {
    "process_whereis": _whereis,
    "process_self": _self,
    "monitor": _monitor,
    "demonitor": _demonitor,
    "link": _link,
    "unlink": _unlink,
    "exit": _exit,
    "trap_exit": _trap_exit,
    "process_send": _send,
    "call": _call,
    "give_up": _give_up,
    "cast": _cast,
    "process_stop": _stop,
    "start_server": _start_server,
    "take": _take,
    "confirm": _confirm,
}

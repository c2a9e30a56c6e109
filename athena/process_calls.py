"""What each function on processes asks and how its answer reads, without I/O: the blocking and the asyncio shells share
these."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from athena import current, spec_json
from athena.child_specs import ChildSpec, import_name
from athena.errors import REASON_BYTES, CallTimeout, InvalidOption, NotRunning, Reason
from athena.mailboxes import CAME_BACK_S, GRACE_S, REFUSED_S, No
from athena.names import Via, json_value
from athena.pid import Pid
from athena.session_calls import Call
from athena.signals import Down, Exit
from athena.tree_calls import Ignored, Started, caller_map
from athena.wire import Frame, Header, dumps

Process: TypeAlias = str | Pid | int | Via
"""Who is meant: a name (of a process, or the name or id of a session), a pid, the number of a live OS process, or a
:class:`~athena.Via`."""


START_OPTIONS = frozenset({"kwargs", "name", "start_timeout", "shutdown", "env", "cwd", "python_path"})
"""Of a server that no supervisor has."""


@dataclass(frozen=True, slots=True)
class Armed:
    """What the supervisor says of a new monitor or link. ``supervisor`` tells it from one that took its place."""

    ref: int
    pid: Pid | None
    supervisor: str


def whereis(name: str | Via) -> Call[Pid | None]:
    """Who has this name."""
    return Call("process_whereis", _target(name), b"", lambda f: Pid.from_map(f.json()))


def is_alive(pid: Process) -> Call[bool]:
    """Whether it lives."""
    return Call("process_whereis", _target(pid), b"", lambda f: f.json() is not None)


def self_pid() -> Call[Pid]:
    """Who this process is to the supervisor."""
    return Call("process_self", {}, b"", _pid)


def monitor(target: Process) -> Call[Armed]:
    """Watch a process."""
    return Call("monitor", {**_target(target), "asks": not is_server()}, b"", _armed)


def demonitor(ref: int, *, flush: bool) -> Call[bool]:
    """Stop that."""
    return Call("demonitor", {"ref": ref, "flush": flush}, b"", lambda f: bool(f.json()["was_armed"]))


def link(target: Process) -> Call[Armed]:
    """Tie this process to another."""
    return Call("link", {**_target(target), "asks": not is_server()}, b"", _armed)


def unlink(target: Process) -> Call[None]:
    """Undo that."""
    return Call("unlink", _target(target), b"", _none)


def exit(target: Process, reason: Reason) -> Call[None]:
    """Send an exit signal."""
    return Call("exit", _target(target), encoded_reason(reason), _none)


def trap_exit(on: bool) -> Call[None]:
    """Have exit signals come as messages, or not."""
    return Call("trap_exit", {"on": on}, b"", _none)


def send(target: Process, message: Any) -> Call[None]:
    """A plain message."""
    return Call("process_send", _target(target), encoded("message", message), _none)


def call(server: Process, request: Any) -> Call[Any]:
    """Ask a server."""
    return Call("call", _target(server), encoded("request", request), Frame.json)


def cast(server: Process, message: Any) -> Call[None]:
    """Tell a server."""
    return Call("cast", _target(server), encoded("message", message), _none)


def stop(process: Process, reason: Reason) -> Call[None]:
    """End a server or a supervisor in order."""
    return Call("process_stop", _target(process), encoded_reason(reason), _none)


def start_class(
    cls: type, args: Sequence[Any], options: Mapping[str, Any], *, link: bool
) -> tuple[Any, Call[Started | Ignored]]:
    """Start a server that no supervisor has. At which supervisor, and the call. Raises :class:`InvalidSpec`."""
    given = dict(options)
    where = given.pop("supervisor", None)
    unknown = set(given) - START_OPTIONS
    if unknown:
        raise InvalidOption(
            f"{cls.__name__}.start_link has no option {min(unknown)!r}; it has {', '.join(sorted(START_OPTIONS))}",
            option=min(unknown),
            value=repr(given[min(unknown)])[:80],
            expected="absent",
        )
    name = given.get("name")
    spec = ChildSpec(name if isinstance(name, str) else cls.__name__, import_name(cls), list(args), **given)
    body = {"spec": {**spec.to_map(), "restart": "temporary"}, "link": link, "caller": caller_map()}
    return where, Call("start_server", {}, spec_json.encoded(body), _started)


class Waiting:
    """One wait for a message, over any number of connections: how long yet, and when the supervisor is lost."""

    def __init__(self, awaited: Armed | None, timeout: float | None, what: str) -> None:
        self._awaited = awaited
        self._what = what
        self._timeout = timeout
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._cut_at: float | None = None
        self._asked_at = 0.0

    def header(self) -> Header:
        """What to ask now."""
        self._asked_at = time.monotonic()
        left_s = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
        if self._awaited is None:
            return {"ref": None, "timeout": left_s}
        return {"ref": self._awaited.ref, "supervisor": self._awaited.supervisor, "timeout": left_s}

    def limit_s(self) -> float | None:
        """How long to wait for the answer; a supervisor that is later than that is frozen."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic()) + GRACE_S

    def is_lost(self, error: Exception) -> bool:
        """Whether this end of a connection is that of the supervisor: nobody listens, or it will not talk for long."""
        now = time.monotonic()
        if self._cut_at is None or now - self._asked_at > REFUSED_S:  # it was back since, and this is another end
            self._cut_at = now
        return isinstance(error, NotRunning) or now - self._cut_at > CAME_BACK_S

    def is_over(self) -> bool:
        """Whether the time is up; another TimeoutError is one of a signal's handler."""
        return self._deadline is not None and time.monotonic() >= self._deadline

    def error(self) -> CallTimeout:
        """The time is up."""
        return CallTimeout(f"nothing came for {self._what!r} within {self._timeout:g} s")


def down_of(message: Any, armed: Armed, watched: Process) -> Down | None:
    """What a monitor says, from what was taken for it."""
    if message is No.SUPERVISOR:
        return Down(armed.ref, watched if isinstance(watched, str | Via) else armed.pid, armed.pid, "noconnection")
    if isinstance(message, Down) and message.pid is None and isinstance(watched, Pid):
        return replace(message, pid=watched, target=watched)  # of a supervisor that this one knows nothing of
    found: Down | None = message
    return found


def exit_of(message: Any, pid: Pid) -> Exit | None:
    """What a link says, from what was taken for it."""
    found: Exit | None = Exit(pid, "noconnection") if message is No.SUPERVISOR else message
    return found


def linked_pid(armed: Armed) -> Pid:
    """The other end of a link, which always has one."""
    assert armed.pid is not None, "it has one"
    return armed.pid


def check_same_process(os_pid: int, what: str) -> None:
    """Raise :class:`InvalidOption` in a process that a fork has made of the one with that number."""
    if os_pid != os.getpid():
        raise InvalidOption(
            f"this {what} is of process {os_pid}, and this is a fork of it: make one here",
            option=what,
            value=str(os.getpid()),
            expected=str(os_pid),
        )


def encoded(what: str, value: Any) -> bytes:
    """JSON. Raises :class:`InvalidOption` for what is none."""
    return dumps(json_value(what, value))


def encoded_reason(reason: Reason) -> bytes:
    """A reason as JSON. Raises :class:`InvalidOption` for what is none, or no reason but a document."""
    body = encoded("reason", reason)
    if len(body) > REASON_BYTES:
        raise InvalidOption(
            f"a reason has at most {REASON_BYTES} bytes of JSON, this one has {len(body)}",
            option="reason",
            value=f"{len(body)} bytes",
            expected=f"at most {REASON_BYTES} bytes",
        )
    return body


def is_server() -> bool:
    """Whether this process runs a server: what it is told comes to its ``handle_info``."""
    return current.is_server and current.pid is not None and int(current.pid) == os.getpid()


def _target(target: Process) -> Header:
    if isinstance(target, Via):
        json_value("registry", target.registry)
        return {"target": target.to_map()}
    given: object = target
    serial: object = target.serial if isinstance(target, Pid) else None
    if isinstance(given, Pid) and type(serial) is int:
        return {"target": json_value("target", given.to_map())}
    if isinstance(given, bool) or not isinstance(given, str | int) or given == "" or serial is not None:
        raise InvalidOption(
            f"a process is named by a name, a Pid or a Via, not by {repr(target)[:80]}",
            option="target",
            value=repr(target)[:80],
            expected="str | Pid | Via",
        )
    return {"target": json_value("target", int(target) if isinstance(target, Pid) else target)}


def _armed(frame: Frame) -> Armed:
    value = frame.json()
    return Armed(value["ref"], Pid.from_map(value["pid"]), value["supervisor"])


def _started(frame: Frame) -> Started | Ignored:
    value = frame.json()
    return Ignored() if "ignored" in value else Started(_pid_of(value["started"]), value["info"])


def _pid(frame: Frame) -> Pid:
    return _pid_of(frame.json())


def _pid_of(value: dict[str, Any]) -> Pid:
    pid = Pid.from_map(value)
    assert pid is not None, "it has one"
    return pid


def _none(frame: Frame) -> None:
    return None

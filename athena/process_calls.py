"""What each function on processes asks and how its answer reads, without I/O: the blocking and the asyncio shells share
these."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from athena import current
from athena.child_specs import ChildSpec, import_name
from athena.errors import InvalidOption, Reason
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
    """What the supervisor says of a new monitor. ``supervisor`` tells it from one that took its place."""

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


def monitor(target: Process, box: str | None) -> Call[Armed]:
    """Watch a process."""
    return Call("monitor", {**_target(target), **_box(box)}, b"", _armed)


def demonitor(ref: int) -> Call[bool]:
    """Stop that."""
    return Call("demonitor", {"ref": ref}, b"", lambda f: bool(f.json()["was_armed"]))


def link(target: Process, box: str | None) -> Call[Pid]:
    """Tie this process to another."""
    return Call("link", {**_target(target), **_box(box)}, b"", _pid)


def unlink(target: Process) -> Call[None]:
    """Undo that."""
    return Call("unlink", _target(target), b"", _none)


def exit(target: Process, reason: Reason) -> Call[None]:
    """Send an exit signal."""
    return Call("exit", _target(target), encoded("reason", reason), _none)


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
    return Call("process_stop", _target(process), encoded("reason", reason), _none)


def start_class(
    cls: type, args: Sequence[Any], options: Mapping[str, Any], *, link: bool
) -> tuple[Any, Call[Started | Ignored]]:
    """Start a server that no supervisor has. At which supervisor, and the call."""
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
    return where, Call("start_server", {}, encoded("args", body), _started)


def mailbox(box: str, after: int) -> Header:
    """Begin to read a box, behind the message of that number."""
    return {"box": box, "after": after}


def message_of(frame: Frame) -> Down | Exit | Any:
    """What a message from a box says; its key is :func:`key_of`."""
    header = frame.header
    match frame.kind:
        case "down":
            return down(header)
        case "exit":
            return Exit(Pid.from_map(header["from"]), header["reason"])
        case _:
            return frame.json()


def key_of(frame: Frame) -> tuple[str, int]:
    """Which reader a message is for."""
    match frame.kind:
        case "down":
            return "down", int(frame.header["ref"])
        case "exit" if frame.header["box"] != DEFAULT_BOX:
            return "exit", int(frame.header["from"]["serial"])
        case _:
            return INBOX


INBOX = ("message", 0)
"""The key of plain messages, and of exit signals from processes that this one has not linked to by itself."""

DEFAULT_BOX = "inbox"


def down(value: Mapping[str, Any]) -> Down:
    """A :class:`Down` in its wire form."""
    target = value["target"]
    if isinstance(target, Mapping):
        target = Via(*target["via"]) if "via" in target else Pid.from_map(dict(target))
    return Down(value["ref"], target, Pid.from_map(value["pid"]), value["reason"])


def encoded(what: str, value: Any) -> bytes:
    """JSON. Raises :class:`InvalidOption` for what is none."""
    return dumps(json_value(what, value))


def is_server() -> bool:
    """Whether this process runs a server: what it is told comes to its ``handle_info``."""
    return current.is_server and current.pid is not None and int(current.pid) == os.getpid()


def _target(target: Process) -> Header:
    if isinstance(target, Pid) and target.serial is not None:
        return {"target": target.to_map()}
    if isinstance(target, Via):
        return {"target": target.to_map()}
    given: object = target
    if isinstance(given, bool) or not isinstance(given, str | int) or given == "":
        raise InvalidOption(
            f"a process is named by a name, a Pid or a Via, not by {target!r}",
            option="target",
            value=repr(target),
            expected="str | Pid | Via",
        )
    return {"target": target}


def _box(box: str | None) -> Header:
    return {} if box is None else {"box": box}


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

"""The operations on supervision trees that a client can ask for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from athena.child_spec_rules import spec_error
from athena.errors import AlreadyStarted, InvalidOption, ProtocolError, Refused
from athena.wire import Frame
from supervisor import tree_vocabulary as words
from supervisor.branch import Branch
from supervisor.child_spec import ChildSpec, parse_child_spec
from supervisor.member import Caller
from supervisor.node_init import dynamic_node, supervisor_node
from supervisor.restart import bounded
from supervisor.server import Connection, object_of
from supervisor.tree_view import forest_rows
from supervisor.tree_vocabulary import ByPid, Target

if TYPE_CHECKING:
    from supervisor.daemon import Daemon

Command = Callable[["Daemon", Connection, Frame], Awaitable[None]]


async def _start(daemon: Daemon, connection: Connection, frame: Frame) -> None:
    """Start a tree; the answer comes when all of it has started."""
    if daemon.is_stopping:
        raise Refused("the supervisor is stopping")
    given = object_of(frame)
    caller = Caller.from_map(given.get("caller") or {})
    owner = connection.pid if given.get("link") and daemon.mode == "daemon" else None
    if given.get("kind") == "class":
        spec = _class_spec(given.get("spec"))
        named = _free_name(daemon, spec.options.get("name"))
        made = await daemon.forest.start_class(spec, named, caller, lambda one: daemon.link(one, owner))
        await _started(connection, frame, made)
        return
    flags, name = given.get("flags"), _free_name(daemon, given.get("name"))
    node = dynamic_node(flags) if given.get("kind") == "dynamic" else supervisor_node(flags, given.get("children"))
    root = await daemon.forest.start(node, name, caller, lambda one: daemon.link(one, owner))
    await _started(connection, frame, root)


async def _started(connection: Connection, frame: Frame, root: Branch | None) -> None:
    """Answer with a new tree. If nobody waits for the answer, it is stopped."""
    if root is not None and connection.channel.closed:
        await root.stop()
    connection.answer(frame, {"ignored": True} if root is None else _identity(root))


def _class_spec(given: object) -> ChildSpec:
    """The specification of a supervisor's class. Raises :class:`~athena.errors.InvalidSpec`."""
    spec = parse_child_spec(given)
    if not isinstance(spec.start, str):
        raise spec_error("invalid_mfa", spec.start, "a class of supervisors is 'package.module:Class'")
    return spec


def _free_name(daemon: Daemon, name: object) -> str | None:
    """The name for a new tree. Raises :class:`InvalidOption`, and :class:`AlreadyStarted` if a session has it."""
    if name is None:
        return None
    if not isinstance(name, str) or not 1 <= len(name) <= 255 or "\n" in name:
        raise InvalidOption(
            f"name {name!r} is not legal: 1 to 255 characters on one line",
            option="name",
            value=repr(name),
            expected="a string",
        )
    taken = daemon.registry.by_name.get(name) or daemon.registry.by_id.get(name)
    if taken is not None:
        raise AlreadyStarted(f"a session is called {name!r}", pid=taken.pid_value())
    return name


async def _attach(daemon: Daemon, connection: Connection, frame: Frame) -> None:
    connection.answer(frame, _identity(_branch(daemon, frame)))


async def _trees(daemon: Daemon, connection: Connection, frame: Frame) -> None:
    """Every tree as it is now; no supervisor is asked, so a busy one delays nothing."""
    connection.answer(frame, forest_rows(daemon.forest, daemon.registry.by_id.values()))


async def _stop(daemon: Daemon, connection: Connection, frame: Frame) -> None:
    reason = bounded(object_of(frame).get("reason", "normal"))
    await _branch(daemon, frame).call(lambda ref: words.StopCall(ref, reason))
    connection.answer(frame, {"stopped": True})


async def _start_child(daemon: Daemon, connection: Connection, frame: Frame) -> None:
    spec = object_of(frame).get("spec")
    connection.answer(frame, await _branch(daemon, frame).call(lambda ref: words.StartChildCall(ref, spec)))


async def _which_children(daemon: Daemon, connection: Connection, frame: Frame) -> None:
    connection.answer(frame, await _branch(daemon, frame).call(words.WhichChildrenCall))


async def _count_children(daemon: Daemon, connection: Connection, frame: Frame) -> None:
    connection.answer(frame, await _branch(daemon, frame).call(words.CountChildrenCall))


def _of_child(make: Callable[[Any, Target], words.Request]) -> Command:
    """An operation on one child."""

    async def command(daemon: Daemon, connection: Connection, frame: Frame) -> None:
        branch = _branch(daemon, frame)
        target = _target(daemon, branch, object_of(frame))
        connection.answer(frame, await branch.call(lambda ref: make(ref, target)))

    return command


def _branch(daemon: Daemon, frame: Frame) -> Branch:
    """The supervisor that the header names, by ``tree``: its name, or its pid in wire form."""
    target = frame.header.get("tree")
    if isinstance(target, dict):
        is_ours = target.get("supervisor") in (None, daemon.supervisor_id)
        return daemon.forest.find(None, target.get("serial") if is_ours else None)
    if not isinstance(target, str):
        raise ProtocolError(f"the operation {frame.header.get('op')!r} needs a supervisor, got {target!r}")
    return daemon.forest.find(target)


def _target(daemon: Daemon, branch: Branch, given: Mapping[str, Any]) -> Target:
    """The child that a request names: ``id``, or ``pid`` in wire form.

    A bare number is an id where ids have a meaning, else the number of a process.
    """
    pid, name = given.get("pid"), given.get("id")
    if isinstance(pid, dict):
        serial = pid.get("serial")
        if pid.get("supervisor") not in (None, daemon.supervisor_id) or not isinstance(serial, int):
            return ByPid(0, is_alive=False)  # of a supervisor that is gone; serials begin at 1
        return ByPid(serial, is_alive=daemon.processes.is_alive(serial))
    if branch.is_dynamic and isinstance(name, int) and not isinstance(name, bool):
        found = daemon.processes.by_os_pid(name)
        return ByPid(found or 0, is_alive=found is not None)
    return name


def _identity(branch: Branch) -> dict[str, Any]:
    return {"pid": branch.pid_value(), "name": branch.name}


TREE_COMMANDS: dict[str, Command] = {
    "tree_start": _start,
    "tree_attach": _attach,
    "tree_stop": _stop,
    "trees": _trees,
    "start_child": _start_child,
    "terminate_child": _of_child(words.TerminateChildCall),
    "restart_child": _of_child(words.RestartChildCall),
    "delete_child": _of_child(words.DeleteChildCall),
    "get_childspec": _of_child(words.GetChildSpecCall),
    "which_child": _of_child(words.WhichChildCall),
    "which_children": _which_children,
    "count_children": _count_children,
}

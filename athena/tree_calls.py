"""What each method of a supervisor asks and how its answer reads, without I/O: the sync and the async shell share
these."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from athena.child_spec_rules import checked_dynamic_spec
from athena.child_specs import (
    ChildId,
    DynamicFlags,
    Flags,
    Kind,
    Spec,
    class_spec,
    dynamic_flags,
    flags,
    has_init,
    spec_map,
    supervisor_spec,
)
from athena.errors import Reason
from athena.messages import clean_text
from athena.pid import Pid
from athena.session_calls import Call, import_path
from athena.spec_json import encoded
from athena.wire import Frame, Header


@dataclass(frozen=True, slots=True)
class Started:
    """The child runs. ``info`` is what it said with that, if anything."""

    pid: Pid
    info: Any = None


@dataclass(frozen=True, slots=True)
class Ignored:
    """The child did not want to run, and that is no error."""


@dataclass(frozen=True, slots=True)
class ChildInfo:
    """One row of ``which_children``. ``pid`` is ``None`` if it does not run, ``"restarting"`` while it is tried again.

    A dynamic supervisor shows no ids.
    """

    id: ChildId
    pid: Pid | Literal["restarting"] | None
    type: str
    modules: tuple[str, ...] | Literal["dynamic"]


@dataclass(frozen=True, slots=True)
class ChildCounts:
    """How many children: specifications, live ones, and of either type."""

    specs: int
    active: int
    supervisors: int
    workers: int


@dataclass(frozen=True, slots=True)
class TreeIdentity:
    """What names a supervisor."""

    pid: Pid
    name: str | None


# --- calls ------------------------------------------------------------------------------------------------------------


def start(
    kind: Kind, given: Mapping[str, Any], children: object, *, name: str | None, link: bool
) -> Call[TreeIdentity]:
    """Start a supervisor of this kind with these flags; a static one's ``children`` are specifications."""
    specs = [spec_map(one) for one in children] if isinstance(children, list | tuple) else children
    body = {"kind": kind, "flags": dict(given), "children": specs, "name": name, "link": link, "caller": caller_map()}
    return Call("tree_start", {}, encoded(body), _identity)


def begin(cls: Any, given: Sequence[Any], options: dict[str, Any], *, name: str | None, link: bool) -> Call[Any]:
    """Start a supervisor of this class: with the children or flags that are given, or with arguments for its ``init``.

    Raises TypeError for an option that it has not.
    """
    if has_init(cls):
        fields = {"start_timeout": options.pop("start_timeout")} if "start_timeout" in options else {}
        return start_class(class_spec(cls, given, kwargs=options, name=name, **fields), link=link)
    children, made = _plain_start(cls, given, options)
    return start(cls.supervisor_kind, made, children, name=name, link=link)


def supervisor_child(
    cls: Any, given: Sequence[Any], *, id: ChildId, name: str | None, fields: dict[str, Any]
) -> dict[str, Any]:
    """The specification of a supervisor of this class as a child of another."""
    if has_init(cls):
        return class_spec(cls, given, id=id, name=name, **fields)
    accepted = Flags if cls.supervisor_kind == "static" else DynamicFlags
    options = {option: fields.pop(option) for option in accepted.__annotations__ if option in fields}
    children, made = _plain_start(cls, given, options)
    if cls.supervisor_kind == "dynamic":
        return supervisor_spec("dynamic_supervisor", {"flags": made}, name, {"id": id, **fields})
    start = {"flags": made, "children": [spec_map(one) for one in children]}
    return supervisor_spec("supervisor", start, name, {"id": id, **fields})


def static_spec(children: Sequence[Spec], **options: Any) -> tuple[dict[str, Any], list[Any]]:
    """What the ``init`` of a supervisor with children returns."""
    return flags(**options), [spec_map(one) for one in children]


def _plain_start(cls: Any, given: Sequence[Any], options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The children and the flags of a supervisor without ``init``."""
    if cls.supervisor_kind == "dynamic":
        if given:
            raise TypeError(f"{cls.__name__} takes no children when it starts: start_child adds them")
        return None, dynamic_flags(**options)
    if len(given) + ("children" in options) != 1:
        raise TypeError(f"{cls.__name__} takes one list of children, not {len(given)} arguments")
    children = given[0] if given else options["children"]
    return children, flags(**{name: value for name, value in options.items() if name != "children"})


def start_class(spec: Mapping[str, Any], *, link: bool) -> Call[TreeIdentity | Ignored]:
    """Start a supervisor of a class that says itself what it supervises; ``spec`` is that of a child."""
    body = {"kind": "class", "spec": spec, "link": link, "caller": caller_map()}
    return Call("tree_start", {}, encoded(body), _identity_or_ignored)


def attach(target: str | Pid) -> Call[TreeIdentity]:
    """The supervisor of this name or pid."""
    return Call("tree_attach", _header(target), b"", _identity)


def stop(tree: str | Pid, reason: Reason) -> Call[None]:
    """End it."""
    return Call("tree_stop", _header(tree), encoded({"reason": reason}), _none)


def list_trees() -> Call[list[dict[str, Any]]]:
    """All trees as they are now."""
    return Call("trees", {}, b"", lambda f: list(f.json()))


def start_child(tree: str | Pid, spec: object) -> Call[Started | Ignored]:
    """Start one more child."""
    given = spec_map(spec)
    if isinstance(given, Mapping) and isinstance(given.get("options", {}), Mapping):
        # Its code is found where this program finds it; the environment stays that of the tree.
        options = {"cwd": os.getcwd(), "python_path": import_path(), **given.get("options", {})}
        given = {**given, "options": options}
    return Call("start_child", _header(tree), encoded({"spec": given}), _started)


def start_dynamic_child(tree: str | Pid, spec: object) -> Call[Started | Ignored]:
    """Start a child of a dynamic supervisor. What is wrong with it is seen here, before anybody is asked (otp.md 11).

    Raises :class:`~athena.errors.InvalidSpec`.
    """
    checked_dynamic_spec(spec_map(spec))
    return start_child(tree, spec)


def restart_child(tree: str | Pid, child: object) -> Call[Started | Ignored]:
    """Start a child that does not run."""
    return Call("restart_child", _header(tree), _child(child), _started)


def terminate_child(tree: str | Pid, child: object) -> Call[None]:
    """End a child."""
    return Call("terminate_child", _header(tree), _child(child), _none)


def delete_child(tree: str | Pid, child: object) -> Call[None]:
    """Forget a child that does not run."""
    return Call("delete_child", _header(tree), _child(child), _none)


def get_childspec(tree: str | Pid, child: object) -> Call[dict[str, Any]]:
    """A child's specification, every default filled in."""
    return Call("get_childspec", _header(tree), _child(child), lambda f: dict(f.json()))


def which_child(tree: str | Pid, child: object) -> Call[ChildInfo]:
    """One child."""
    return Call("which_child", _header(tree), _child(child), lambda f: _info(f.json()))


def which_children(tree: str | Pid) -> Call[list[ChildInfo]]:
    """All children, newest first."""
    return Call("which_children", _header(tree), b"", lambda f: [_info(row) for row in f.json()])


def count_children(tree: str | Pid) -> Call[ChildCounts]:
    """How many."""
    return Call("count_children", _header(tree), b"", lambda f: ChildCounts(**f.json()))


def caller_map() -> dict[str, Any]:
    """What this program's children get from it."""
    env = {clean_text(k): clean_text(v) for k, v in os.environ.items()}
    return {"env": env, "cwd": os.getcwd(), "python_path": import_path()}


# --- reading and writing ----------------------------------------------------------------------------------------------


def _header(tree: str | Pid) -> Header:
    return {"tree": tree.to_map() if isinstance(tree, Pid) else tree}


def _child(child: object) -> bytes:
    return encoded({"pid": child.to_map()} if isinstance(child, Pid) else {"id": child})


def _pid(value: dict[str, Any]) -> Pid:
    pid = Pid.from_map(value)
    assert pid is not None, "it has one"
    return pid


def _identity(frame: Frame) -> TreeIdentity:
    value = frame.json()
    return TreeIdentity(_pid(value["pid"]), value["name"])


def _identity_or_ignored(frame: Frame) -> TreeIdentity | Ignored:
    return Ignored() if "ignored" in frame.json() else _identity(frame)


def _started(frame: Frame) -> Started | Ignored:
    value = frame.json()
    return Ignored() if "ignored" in value else Started(_pid(value["started"]), value["info"])


def _info(row: dict[str, Any]) -> ChildInfo:
    pid = row["pid"]
    modules = row["modules"]
    return ChildInfo(
        row["id"],
        Pid.from_map(pid) if isinstance(pid, dict) else pid,
        row["type"],
        "dynamic" if isinstance(modules, str) else tuple(modules),
    )


def _none(frame: Frame) -> None:
    return None

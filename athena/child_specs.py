"""What users say of the children of a supervisor, and of supervisors: values on their way to the daemon, which checks
them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from athena.errors import InvalidOption
from athena.session_calls import start_options

ChildId: TypeAlias = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """One child of a supervisor. Checked by the supervisor when it gets it.

    Args:
        id: unique in a :class:`Supervisor`; without meaning in a :class:`DynamicSupervisor`.
        start: ``"package.module:function"``, or a program with its arguments as a list.
        args, kwargs: what the function is called with, as JSON; a program gets ``args`` behind its own.
        restart: ``"permanent"``, ``"transient"`` (only after an abnormal end) or ``"temporary"`` (never).
        shutdown: seconds between the polite signal and the kill, ``"brutal_kill"`` or ``"infinity"``; default 5.
        significant: whether its end may end the supervisor (``auto_shutdown``).
        start_timeout: seconds until a function must be entered, or ``"infinity"``.
        modules: informational.
        env, cwd, python_path: instead of those of the program that started the supervisor.
    """

    id: ChildId
    start: str | Sequence[str] | Mapping[str, Any]
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    restart: str = "permanent"
    shutdown: float | str | None = None
    type: str = "worker"
    significant: bool = False
    start_timeout: float | str = 30.0
    modules: Sequence[str] | Literal["dynamic"] | None = None
    env: Mapping[str, str] | None = field(default=None, repr=False)
    cwd: str | Path | None = None
    python_path: Sequence[str] | None = None

    def to_map(self) -> dict[str, Any]:
        """The specification as a mapping."""
        names = ("id", "start", "args", "kwargs", "restart", "type", "significant", "start_timeout")
        found = {name: getattr(self, name) for name in names}
        found |= {name: getattr(self, name) for name in ("shutdown", "modules") if getattr(self, name) is not None}
        options: dict[str, Any] = {"env": self.env, "python_path": self.python_path}
        options["cwd"] = None if self.cwd is None else os.path.abspath(self.cwd)
        return {**found, "options": {name: value for name, value in options.items() if value is not None}}


Spec: TypeAlias = ChildSpec | Mapping[str, Any]


def flags(strategy: str, max_restarts: int, max_seconds: float, auto_shutdown: str) -> dict[str, Any]:
    """The flags of a supervisor with a list of children."""
    limits = {"max_restarts": max_restarts, "max_seconds": max_seconds}
    return {"strategy": strategy, **limits, "auto_shutdown": auto_shutdown}


def dynamic_flags(
    max_children: int | None, extra_arguments: Sequence[Any], max_restarts: int, max_seconds: float
) -> dict[str, Any]:
    """The flags of a dynamic supervisor."""
    limits = {"max_restarts": max_restarts, "max_seconds": max_seconds}
    return {"max_children": max_children, "extra_arguments": extra_arguments, **limits}


def spec_map(spec: object) -> Any:
    """A specification as it travels. What is none is left to the supervisor, which says what is wrong with it."""
    return spec.to_map() if isinstance(spec, ChildSpec) else spec


def supervisor_spec(
    kind: Literal["supervisor", "dynamic_supervisor"],
    start: Mapping[str, Any],
    name: str | None,
    fields: Mapping[str, Any],
) -> dict[str, Any]:
    """The specification of a supervisor as a child of another."""
    spec = {"id": name or kind, **fields, "type": "supervisor", "start": {kind: {**start, "name": name}}}
    return {key: value for key, value in spec.items() if value is not None or key == "id"}


def session_spec(given: dict[str, Any]) -> dict[str, Any]:
    """The specification of a session as a child of a supervisor. Raises the error that names the option."""
    for name in ("max_restarts", "max_seconds", "messages"):
        if name in given:
            raise InvalidOption(
                f"option {name!r} is not for a session under a supervisor: "
                + ("a restart begins with its log" if name == "messages" else "its supervisor has the limit"),
                option=name,
                value=repr(given[name])[:80],
                expected="absent",
            )
    checked = start_options(given, link=False)
    fields = {"restart": "transient", "shutdown": 5.0, "start_timeout": 30.0}
    found = {name: given.get(name, default) for name, default in fields.items()}
    spec = {k: v for k, v in checked.spec.items() if k not in (*fields, "link")}
    start = {"session": {"spec": spec, "init": checked.body.decode()}}
    return {"id": checked.spec.get("name") or checked.session_id, "start": start, **found}

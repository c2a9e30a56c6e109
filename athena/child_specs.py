"""What users say of the children of a supervisor, and of supervisors: values on their way to the daemon, which checks
them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypedDict, cast

from athena.child_spec_rules import ChildId as ChildId
from athena.child_spec_rules import spec_error
from athena.errors import InvalidOption
from athena.names import Name, name_form
from athena.session_calls import start_options


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """One child of a supervisor. Checked by the supervisor when it gets it.

    Args:
        id: unique in a :class:`Supervisor`; without meaning in a :class:`DynamicSupervisor`.
        start: ``"package.module:function"``, ``"package.module:ServerClass"``, ``"package.module:SupervisorClass"``
            (with ``type="supervisor"``), a program with its arguments as a list, or what
            :meth:`athena.Session.child_spec` returns, of which the start counts and the other fields are these here.
        args, kwargs: what the function or the class's ``init`` is called with, as JSON; a program gets ``args`` behind
            its own.
        name: what the process is called while it runs.
        restart: ``"permanent"``, ``"transient"`` (only after an abnormal end) or ``"temporary"`` (never).
        shutdown: seconds between the polite signal and the kill, ``"brutal_kill"`` or ``"infinity"``; default 5.
        significant: whether its end may end the supervisor (``auto_shutdown``).
        start_timeout: seconds until it must be ready, or ``"infinity"``.
        ready: of a program: ``"exec"`` (the default), ready when it runs; ``"notify"``: when it has sent ``READY=1`` to
            the socket in ``NOTIFY_SOCKET``, as sd_notify(3) does.
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
    ready: Literal["exec", "notify"] | None = None
    name: Name | None = None
    modules: Sequence[str] | Literal["dynamic"] | None = None
    env: Mapping[str, str] | None = field(default=None, repr=False)
    cwd: str | Path | None = None
    python_path: Sequence[str] | None = None

    def to_map(self) -> dict[str, Any]:
        """The specification as a mapping. Raises :class:`~athena.errors.InvalidSpec` for what cannot be a place to
        run in."""
        self._check_place()
        names = ("id", "start", "args", "kwargs", "restart", "type", "significant", "start_timeout")
        found = {name: getattr(self, name) for name in names}
        if isinstance(self.start, Mapping) and "start" in self.start:  # a whole one, as Session.child_spec makes it
            found["start"] = self.start["start"]
        optional = ("shutdown", "modules", "ready")
        found |= {name: getattr(self, name) for name in optional if getattr(self, name) is not None}
        options: dict[str, Any] = {"env": self.env, "python_path": self.python_path, "name": name_form(self.name)}
        options["cwd"] = None if self.cwd is None else os.path.abspath(self.cwd)
        return {**found, "options": {name: value for name, value in options.items() if value is not None}}

    def _check_place(self) -> None:
        env, cwd, path = (cast("object", value) for value in (self.env, self.cwd, self.python_path))
        if env is not None and not isinstance(env, Mapping):
            raise spec_error("invalid_child_spec", type(env).__name__, "env is a mapping of texts to texts")
        for name, value in (env or {}).items():  # an environment has secrets: not shown
            if not (isinstance(name, str) and isinstance(value, str)):
                wrong = {name: type(value).__name__}
                raise spec_error("invalid_child_spec", wrong, "env is a mapping of texts to texts")
        if cwd is not None and not isinstance(cwd, str | os.PathLike):
            raise spec_error("invalid_child_spec", cwd, "cwd is the path of a directory")
        if path is not None and not (isinstance(path, list | tuple) and all(isinstance(text, str) for text in path)):
            raise spec_error("invalid_child_spec", path, "python_path is a list of texts")


Spec: TypeAlias = ChildSpec | Mapping[str, Any]

Kind: TypeAlias = Literal["static", "dynamic"]
"""Of supervisors: with a list of children, or with children that come and go."""


class Flags(TypedDict, total=False):
    """What a supervisor with a list of children may be told about them as a group."""

    strategy: str
    max_restarts: int
    max_seconds: float
    auto_shutdown: str


class DynamicFlags(TypedDict, total=False):
    """What a dynamic supervisor may be told about its children as a group."""

    max_children: int | None
    extra_arguments: Sequence[Any]
    max_restarts: int
    max_seconds: float


def flags(
    *, strategy: str = "one_for_one", max_restarts: int = 3, max_seconds: float = 5, auto_shutdown: str = "never"
) -> dict[str, Any]:
    """The flags of a supervisor with a list of children."""
    limits = {"max_restarts": max_restarts, "max_seconds": max_seconds}
    return {"strategy": strategy, **limits, "auto_shutdown": auto_shutdown}


def dynamic_flags(
    *,
    max_children: int | None = None,
    extra_arguments: Sequence[Any] = (),
    max_restarts: int = 3,
    max_seconds: float = 5,
) -> dict[str, Any]:
    """The flags of a dynamic supervisor."""
    limits = {"max_restarts": max_restarts, "max_seconds": max_seconds}
    return {"max_children": max_children, "extra_arguments": extra_arguments, **limits}


def has_init(cls: type) -> bool:
    """Whether this class of supervisors says itself what it supervises."""
    return hasattr(cls, "init")


def import_name(cls: type) -> str:
    """The name under which a process of its own finds a class. Raises :class:`~athena.errors.InvalidSpec`."""
    if cls.__module__ == "__main__" or "<locals>" in cls.__qualname__:
        where = "the program that is run" if cls.__module__ == "__main__" else "a function"
        raise spec_error(
            "invalid_mfa",
            f"{cls.__module__}:{cls.__qualname__}",
            f"its init runs in a process of its own, which cannot import what is defined in {where}; move the class to "
            "the top level of a module",
        )
    return f"{cls.__module__}:{cls.__qualname__}"


def class_spec(cls: type, args: Sequence[Any], *, id: ChildId = None, **fields: Any) -> dict[str, Any]:
    """The specification of a supervisor of this class; ``fields`` are those of :class:`ChildSpec`."""
    name = fields.get("name")
    given = id if id is not None else name if isinstance(name, str) else cls.__name__
    return ChildSpec(given, import_name(cls), args, type="supervisor", **fields).to_map()


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

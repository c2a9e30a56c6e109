"""Child specifications as a supervisor holds them, every default filled in.

The rules by which they are checked are :mod:`athena.child_spec_rules`, which callers share. Numbers in comments are
sections of `reference/otp.md`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from athena.child_spec_rules import (
    AutoShutdown,
    ChildId,
    ChildType,
    Modules,
    Readiness,
    Start,
    checked_dynamic_spec,
    checked_spec,
    checked_specs,
    id_key,
)
from athena.spec_checks import Shutdown, Timeout
from supervisor.restart import Restart


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSpec:
    """One child, every default filled in. Made by :func:`parse_child_spec`, which checks it.

    Args:
        id: unique in a static supervisor; without meaning in a dynamic one.
        start: ``"package.module:function"`` or a server class, a program with its arguments, or a mapping that the
            launcher understands (a session, a supervisor's own children).
        args, kwargs: what the function or ``init`` is called with. ``args`` is ``None`` once a temporary child was
            started: they are kept for restarts only, and it has none (2).
        restart: when a child that ended by itself is started again.
        shutdown: what a termination does before it kills. 0 signals politely and kills with no wait.
        type: decides the default of ``shutdown`` and how it is counted, nothing else.
        significant: whether its end may end the supervisor (12).
        modules: informational.
        start_timeout: seconds until it must be ready; OTP has none, an OS process can hang before it can speak.
        ready: when a program is; everything else says so by itself.
        options: what the launcher needs besides; carried, never read here.
    """

    id: ChildId
    start: Start
    args: tuple[Any, ...] | None = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    restart: Restart = Restart.PERMANENT
    shutdown: Shutdown = 5.0
    type: ChildType = "worker"
    significant: bool = False
    modules: Modules = "dynamic"
    start_timeout: Timeout = 30.0
    ready: Readiness = "exec"
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, ChildId]:
        """The id as a dictionary key."""
        return id_key(self.id)

    @property
    def is_temporary(self) -> bool:
        """Whether it is never started again, so that its spec lives as long as its process (19.8)."""
        return self.restart is Restart.TEMPORARY

    def to_keep(self) -> ChildSpec:
        """The spec that is kept while the child runs: a temporary one's arguments are not (2)."""
        return replace(self, args=None, kwargs={}) if self.is_temporary else self

    def to_map(self) -> dict[str, Any]:
        """Every field as JSON: what ``get_childspec`` answers."""
        ready = {"ready": self.ready} if isinstance(self.start, tuple) else {}
        return {
            "id": self.id,
            "start": self._start_as_json(),
            "args": None if self.args is None else list(self.args),
            "kwargs": dict(self.kwargs),
            "restart": self.restart.value,
            "shutdown": self.shutdown,
            "type": self.type,
            "significant": self.significant,
            "modules": self.modules if isinstance(self.modules, str) else list(self.modules),
            "start_timeout": self.start_timeout,
            **ready,
            "options": dict(self.options),
        }

    def _start_as_json(self) -> str | list[str] | dict[str, Any]:
        if isinstance(self.start, str):
            return self.start
        return list(self.start) if isinstance(self.start, tuple) else dict(self.start)


def parse_child_spec(value: object, auto_shutdown: AutoShutdown | None = None) -> ChildSpec:
    """The spec that ``value`` describes. Raises as :func:`~athena.child_spec_rules.checked_spec`."""
    return _made(checked_spec(value, auto_shutdown))


def parse_dynamic_spec(value: object) -> ChildSpec:
    """The same for a dynamic supervisor. Raises as :func:`~athena.child_spec_rules.checked_dynamic_spec`."""
    return _made(checked_dynamic_spec(value))


def parse_child_specs(value: object, auto_shutdown: AutoShutdown | None = None) -> tuple[ChildSpec, ...]:
    """All specs of a list, in order. Raises as :func:`~athena.child_spec_rules.checked_specs`."""
    return tuple(map(_made, checked_specs(value, auto_shutdown)))


def _made(fields: dict[str, Any]) -> ChildSpec:
    return ChildSpec(**{**fields, "restart": Restart(fields["restart"])})

"""What the supervisor tells a process about others: exit signals and the ends of what it monitors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from athena.errors import Reason
from athena.names import Via
from athena.pid import Pid


@dataclass(frozen=True, slots=True)
class Exit:
    """An exit signal that was trapped: a linked process has ended, or ``exit(pid, reason)`` was called for this one.

    ``sender`` is that process, or the one that called; ``reason`` is ``noproc`` if it was gone before it was linked,
    ``noconnection`` if the supervisor was lost.
    """

    sender: Pid | None
    reason: Reason


@dataclass(frozen=True, slots=True)
class Down:
    """A monitored process has ended. ``reason`` is why; ``noproc`` if it was gone before, ``noconnection`` if the
    supervisor was lost."""

    ref: int
    target: str | Pid | Via | None
    pid: Pid | None
    reason: Reason


def message_of(value: Mapping[str, Any]) -> Exit | Down | Any:
    """What is told in wire form: ``{"exit": ...}``, ``{"down": ...}``, or a plain ``{"message": ...}``."""
    match value:
        case {"exit": told}:
            return Exit(Pid.from_map(told["from"]), told["reason"])
        case {"down": told}:
            target = told["target"]
            if isinstance(target, Mapping):
                target = Via(*target["via"]) if "via" in target else Pid.from_map(dict(target))
            return Down(told["ref"], target, Pid.from_map(told["pid"]), told["reason"])
        case _:
            return value["message"]

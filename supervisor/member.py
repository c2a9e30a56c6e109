"""What a supervisor of a tree supervises, as its driver sees it: a process or another supervisor."""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from athena.child_spec_rules import ChildId
from athena.errors import AthenaError, Reason
from supervisor.tree_vocabulary import StartOutcome

LABEL_CHARS = 120

_SPECIAL = re.compile(r"[^A-Za-z0-9_-]")


@dataclass(frozen=True, slots=True)
class Caller:
    """The program that started a tree, whose environment, directory and import path its children get."""

    env: dict[str, str] = field(default_factory=dict, repr=False)
    cwd: str = "/"
    python_path: tuple[str, ...] = ()

    @staticmethod
    def from_map(value: Mapping[str, Any]) -> Caller:
        """Of the wire form; what is missing is empty."""
        env = {str(k): str(v) for k, v in (value.get("env") or {}).items()}
        return Caller(env, str(value.get("cwd") or "/"), tuple(map(str, value.get("python_path") or ())))

    def for_child(self, options: Mapping[str, Any]) -> Caller:
        """With what the options of a child's specification say instead."""
        given = Caller.from_map(options)
        return Caller(
            given.env if "env" in options else self.env,
            given.cwd if "cwd" in options else self.cwd,
            given.python_path if "python_path" in options else self.python_path,
        )


class Member(ABC):
    """One child of a supervisor node, from its start to its end. ``serial`` is its logical pid, for ever its own."""

    def __init__(self, serial: int, label: str, supervisor_id: str) -> None:
        self.serial = serial
        self.label = label
        self._supervisor_id = supervisor_id
        self.on_gone: Callable[[Reason], None] = lambda _: None
        """Called when it is gone, behind what its monitors are told and before anything else happens. A kind of member
        that does not call it is known by :meth:`wait` alone."""

    @abstractmethod
    async def start(self) -> StartOutcome:
        """Start it; returns when it is ready, or when nothing of it is left."""

    @abstractmethod
    async def wait(self) -> Reason:
        """Wait until it is gone with all that is below it. Why it ended."""

    @abstractmethod
    def shut_down(self) -> None:
        """Ask it to end with reason ``shutdown``."""

    @abstractmethod
    def kill(self) -> None:
        """End it now."""

    @abstractmethod
    def exit(self, reason: Reason) -> None:
        """Give it the exit signal of its supervisor, which has ended (14)."""

    @property
    def os_pid(self) -> int | None:
        """The number of its process; a supervisor has none of its own."""
        return None

    @property
    def status_text(self) -> str | None:
        """What it says of itself, if it does (sd_notify(3))."""
        return None

    def pid_value(self) -> dict[str, Any]:
        """Its pid as it travels."""
        return {"pid": self.os_pid, "serial": self.serial, "supervisor": self._supervisor_id}


def failure(error: AthenaError) -> Reason:
    """The reason of a start that this error ended."""
    if "reason" in error.data:
        return error.data["reason"]
    return {"error": {"type": type(error).__name__, "message": error.message}}


def label_of(parent: str | None, name: ChildId) -> str:
    """The name of a supervisor or a child in logs and of its log file: stable over restarts, harmless as a file's."""
    text = name if isinstance(name, str) else repr(name)
    plain = _SPECIAL.sub("_", text)
    return _short(plain if plain == text else f"{plain[:LABEL_CHARS]}-{_digest(text)}", parent)


def _short(own: str, parent: str | None) -> str:
    label = own if parent is None else f"{parent}.{own}"
    return label if len(label) <= LABEL_CHARS else f"{label[:LABEL_CHARS]}-{_digest(label)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()[:8]

"""Who is who: sessions by id, by name, by OS pid and by serial. Pure bookkeeping.

A serial names one incarnation for ever; the OS pid is only an attribute of it, and a plain int is looked up among live
children (design: processes, Pid).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from athena.errors import AlreadyStarted, InvalidOption, NoProcess, NotFound

if TYPE_CHECKING:
    from supervisor.keeper import Keeper


@dataclass(slots=True)
class Registry:
    """The sessions of one supervisor."""

    by_id: dict[str, Keeper] = field(default_factory=dict)
    by_name: dict[str, Keeper] = field(default_factory=dict)
    by_pid: dict[int, Keeper] = field(default_factory=dict)

    def add(self, keeper: Keeper) -> None:
        """Register a session under its id and name.

        Raises :class:`AlreadyStarted` if one of them is taken, :class:`InvalidOption` if the name equals a session id.
        """
        session_id, name = keeper.session_id, keeper.name
        taken = self.by_id.get(session_id) or (self.by_name.get(name) if name else None)
        if taken is not None:
            where = f"is already running (pid {taken.os_pid})" if taken.os_pid else "is already being started"
            raise AlreadyStarted(
                f"{taken.label} {where}; attach to it or stop it",
                pid=taken.pid_value(),
                session_id=taken.session_id,
            )
        if name and name in self.by_id:
            raise InvalidOption(
                f"name {name!r} is the id of a session; choose another",
                option="name",
                value=repr(name),
                expected="no id",
            )
        if session_id in self.by_name:
            raise InvalidOption(
                f"session id {session_id!r} is the name of a session; choose another",
                option="session_id",
                value=repr(session_id),
                expected="no name",
            )
        self.by_id[session_id] = keeper
        if name:
            self.by_name[name] = keeper

    def remove(self, keeper: Keeper) -> None:
        """Release id, name and pid."""
        if self.by_id.get(keeper.session_id) is keeper:
            del self.by_id[keeper.session_id]
        if keeper.name and self.by_name.get(keeper.name) is keeper:
            del self.by_name[keeper.name]

    def bind_pid(self, keeper: Keeper, pid: int) -> None:
        """An incarnation has begun under this OS pid."""
        self.by_pid[pid] = keeper

    def release_pid(self, keeper: Keeper, pid: int) -> None:
        """The incarnation is over and reaped: the number may be anybody's."""
        if self.by_pid.get(pid) is keeper:
            del self.by_pid[pid]

    def find(self, target: str | int, serial: int | None = None) -> Keeper:
        """The session with this name, id or pid. With ``serial`` it must be that very incarnation.

        Raises :class:`NoProcess` for a pid that is no live child's, :class:`NotFound` for an unknown name or id.
        """
        if isinstance(target, int):
            keeper = self.by_pid.get(target)
            if keeper is None or (serial is not None and keeper.serial != serial):
                raise NoProcess(f"no live session has pid {target}", target=target)
            return keeper
        keeper = self.by_id.get(target) or self.by_name.get(target)
        if keeper is None:
            raise NotFound(f"no live session has the name or id {target!r}", target=target)
        return keeper

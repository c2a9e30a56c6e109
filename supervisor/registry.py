"""Who is who: sessions by id, by name, by OS pid and by serial. Pure bookkeeping.

A serial names one incarnation for ever; the OS pid is only an attribute of it, and a plain int is looked up among live
children (design: processes, Pid).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from athena.errors import AlreadyStarted, InvalidOption, MaxChildren, NoProcess, NotFound

if TYPE_CHECKING:
    from supervisor.keeper import Keeper


@dataclass(slots=True)
class Registry:
    """The sessions of one supervisor."""

    by_id: dict[str, Keeper] = field(default_factory=dict)
    by_name: dict[str, Keeper] = field(default_factory=dict)
    by_pid: dict[int, Keeper] = field(default_factory=dict)
    awake: set[Keeper] = field(default_factory=set)
    """Those that have not hibernated: calls wait for these only."""
    max_sessions: int | None = None
    """How many there may be, in whatever state; ``None`` for any number."""
    max_live: int | None = None
    """Above how many processes the longest idle ones are hibernated before their time; ``None`` for any number."""

    def add(self, keeper: Keeper) -> None:
        """Register a session under its id and name.

        Raises :class:`AlreadyStarted` if one of them is taken, :class:`InvalidOption` if the name equals a session id,
        :class:`MaxChildren` if there are as many sessions as there may be.
        """
        session_id, name = keeper.session_id, keeper.name
        taken = self.by_id.get(session_id) or (self.by_name.get(name) if name else None)
        if taken is not None:
            where = f"is already running (pid {taken.os_pid})" if taken.os_pid else f"is already there ({taken.state})"
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
        if self.max_sessions is not None and len(self.by_id) >= self.max_sessions:
            raise MaxChildren(
                f"there are {len(self.by_id)} sessions already, hibernated and failed ones included, and no more are"
                " allowed; stop some, or start the supervisor with a larger ATHENA_MAX_SESSIONS",
                limit=self.max_sessions,
            )
        self.by_id[session_id] = keeper
        self.awake.add(keeper)
        if name:
            self.by_name[name] = keeper

    def holder(self, name: str) -> Keeper | None:
        """The session that has this name or id."""
        return self.by_name.get(name) or self.by_id.get(name)

    def remove(self, keeper: Keeper) -> None:
        """Release id, name and pid."""
        self.awake.discard(keeper)
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

    def make_room(self) -> None:
        """Before one more process starts: hibernate those that have been idle longest, if there are too many.

        No limit that anybody waits for: what works is never ended, and a session that may not sleep does not.
        """
        excess = 0 if self.max_live is None else len(self.by_pid) + 1 - self.max_live
        if excess <= 0:
            return
        idle = {keeper: keeper.idle_s for keeper in self.by_pid.values() if keeper.may_hibernate}
        for keeper in sorted(idle, key=lambda one: idle[one], reverse=True):
            if excess <= 0 or not idle[keeper]:
                return
            excess -= keeper.hibernate()

    def find(self, target: str | int) -> Keeper:
        """The session with this name, id or OS pid.

        Raises :class:`NoProcess` for a pid that is no live child's, :class:`NotFound` for an unknown name or id.
        """
        if isinstance(target, int):
            keeper = self.by_pid.get(target)
            if keeper is None:
                raise NoProcess(f"no live session has pid {target}", target=target)
            return keeper
        keeper = self.by_id.get(target) or self.by_name.get(target)
        if keeper is None:
            raise NotFound(f"no live session has the name or id {target!r}", target=target)
        return keeper

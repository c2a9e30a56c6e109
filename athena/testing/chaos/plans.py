"""Which process dies where, in which trial. Pure: a seed and a number in, a plan out.

Plans of one seed go through all points of a victim before they come to one again, in an order of the seed's.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

Victim = Literal["child", "zygote", "supervisor", "guard", "client"]
Home = Literal["harness", "daemon", "client"]
"""Whose the supervisor is: one embedded in the harness, the user's daemon, or one embedded in the client that dies, and
dies with it. To the harness's a client that dies is not linked, to the others it is."""

_HARMLESS = frozenset({"child", "client"})

DURABILITIES = ("turn", "os", "event")
PROVIDERS = ("openai", "ollama")


def _points(prefix: str, **counts: int) -> list[str]:
    return [f"{prefix}:{name}@{n}" for name, count in counts.items() for n in range(1, count + 1)]


_EVENTS = {
    "session_start": 1, "message_accepted": 3, "turn_start": 3, "user_message": 3, "assistant_message": 6,
    "tool_call": 8, "tool_result": 8, "turn_end": 3, "session_end": 1,
}  # fmt: skip
_EFFECTS = {"charge": 2, "post": 2, "look": 1, "draw": 1, "draw_keyed": 1, "linger": 1}
_SYNCS, _TURN_SYNCS = 36, 12
"""With durability ``event``, which syncs each, and with ``turn``; with ``os`` there are none."""

CHILD_POINTS: tuple[str, ...] = (
    *_points("append", **_EVENTS), *_points("appended", **_EVENTS),
    *_points("effect", **_EFFECTS), *_points("inside", **_EFFECTS), *_points("effected", **_EFFECTS),
    *(f"{name}@{n}" for name in ("sync", "synced") for n in range(1, _SYNCS + 1)),
    *_points("frame_in", send=3, result=2, shutdown=1), *_points("frame_out", ready=1, reply=5, event=36),
)  # fmt: skip
"""What a session's process passes in an undisturbed trial."""

RECOVERY_POINTS: tuple[str, ...] = (
    *_points("append", session_resume=1, turn_resumed=1, tool_call=1, tool_result=1, assistant_message=1, turn_end=1),
    *_points("appended", session_resume=1, turn_resumed=1, tool_result=2, assistant_message=1),
    *_points("effect", charge=1, post=1, draw_keyed=1), *_points("effected", post=1, look=1), "sync@1", "synced@1",
    *_points("frame_out", ready=1, event=3),
)  # fmt: skip
"""Where the second of two kills hits: in the life that goes on after the first."""

SUPERVISOR_POINTS: tuple[str, ...] = (
    "keeper:launched@1", "keeper:ready@1", "keeper:died@1",
    *_points("frame_in", hello=2, start=1, subscribe=1, send=3, result=2, stop=1),
    *_points("frame_in", trap_exit=1, ready=1, delta=3, event=36, reply=5, exiting=1),
    *_points("frame_out", hello=2, init=1, send=3, result=2, shutdown=1),
    *_points("frame_out", state=2, live=1, relayed=35, reply=10, ended=1),
)  # fmt: skip
"""What a supervisor passes in an undisturbed trial."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One trial. ``point`` is one of ``at``'s process; without one the victims die at ``moment``, a fraction of the
    time that a conversation takes."""

    number: int
    victims: tuple[Victim, ...]
    at: Literal["child", "supervisor"] = "child"
    point: str | None = None
    second: str | None = None
    """A point at which the next life of the child is killed too."""
    moment: float = 0.0
    durability: str = "turn"
    provider: str = "openai"
    supervisor: Home = "harness"

    @property
    def harms_supervisor(self) -> bool:
        """Whether it needs a supervisor of its own: because that dies, or because it is a daemon."""
        return self.supervisor == "daemon" or not _HARMLESS.issuperset(self.victims)

    @property
    def kills_itself(self) -> bool:
        """Whether the process that passes the point is the only one to die."""
        return self.point is not None and self.victims == (self.at,)

    @property
    def row(self) -> tuple[str, str]:
        """What the table counts together: who dies, and where."""
        where = "a random time" if self.point is None else self.point.rpartition("@")[0]
        if self.second is not None:
            where = "two points"
        elif self.point is not None and not self.kills_itself:
            where = f"a point of the {self.at}"
        elif where.startswith(("frame_in", "frame_out")):
            where = f"{where.partition(':')[0]}: any"
        return " + ".join(self.victims), where


@dataclass(frozen=True, slots=True)
class _Share:
    """A kind of trial: how many of each round, who dies, and at whose points."""

    slots: int
    victims: tuple[Victim, ...]
    points: Sequence[str] = ()
    at: Literal["child", "supervisor"] = "child"
    seconds: Sequence[str] = ()


SHARES: tuple[_Share, ...] = (
    _Share(20, ("child",), CHILD_POINTS),
    _Share(3, ("child",), CHILD_POINTS, seconds=RECOVERY_POINTS),
    _Share(2, ("child",)),
    _Share(4, ("supervisor",), SUPERVISOR_POINTS, "supervisor"),
    _Share(1, ("supervisor",), CHILD_POINTS),
    _Share(1, ("supervisor",)),
    _Share(1, ("zygote",), CHILD_POINTS),
    _Share(1, ("zygote", "child"), CHILD_POINTS),
    _Share(1, ("guard",), CHILD_POINTS),
    _Share(1, ("guard", "supervisor"), CHILD_POINTS),
    _Share(1, ("client",), CHILD_POINTS),
    _Share(1, ("client", "child"), CHILD_POINTS),
    _Share(1, ("supervisor", "child"), CHILD_POINTS),
    _Share(1, ("zygote", "supervisor"), CHILD_POINTS),
    _Share(1, ("client", "supervisor"), CHILD_POINTS),
)
_SLOTS = tuple((index, slot) for index, share in enumerate(SHARES) for slot in range(share.slots))
RANDOM_TIMES = 0.3
"""How many of the trials in which others die while a process stands at a point, are at a random time instead."""

ROUND = len(_SLOTS)
"""So many trials have every kind in its share."""


def plan(seed: int, number: int) -> Plan:
    """The plan of a trial, the first of which is 0."""
    index, slot = _order(seed)[number % ROUND]
    share = SHARES[index]
    draw = random.Random(f"{seed}:{number}")
    point = second = None
    may_be_random = share.victims not in (("child",), (share.at,))
    if share.points and not (may_be_random and draw.random() < RANDOM_TIMES):
        turn = number // ROUND * share.slots + slot
        order = _shuffled(seed, index)
        point = order[turn % len(order)]
    if share.seconds:
        second = draw.choice(share.seconds)
    return Plan(
        number, share.victims, share.at, point, second, draw.random(),
        draw.choice(_durabilities(point)), draw.choice(PROVIDERS), draw.choice(_homes(share.victims)),
    )  # fmt: skip


def _homes(victims: tuple[Victim, ...]) -> Sequence[Home]:
    if victims == ("child",):
        return ("harness",)
    return ("harness", "daemon", "client") if "client" in victims and "supervisor" not in victims else _NOT_CLIENTS


_NOT_CLIENTS: Sequence[Home] = ("harness", "daemon")


def _durabilities(point: str | None) -> Sequence[str]:
    """Those with which the point is passed."""
    name, _, count = (point or "").rpartition("@")
    if name not in ("sync", "synced"):
        return DURABILITIES
    return ("turn", "event") if int(count) <= _TURN_SYNCS else ("event",)


@cache
def _order(seed: int) -> list[tuple[int, int]]:
    slots = list(_SLOTS)
    random.Random(seed).shuffle(slots)
    return slots


@cache
def _shuffled(seed: int, index: int) -> list[str]:
    points = list(SHARES[index].points)
    random.Random(f"{seed}/{index}").shuffle(points)
    return points

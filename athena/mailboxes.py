"""Asking a supervisor for what this process is told: the messages of its monitors and links, and those sent to it.

A message waits at the supervisor until it is asked for, and is confirmed when it has arrived; so a connection that is
cut, an interrupt, a cancelled wait or the end of an event loop loses none. What is left to this side is to know one
again whose confirmation got lost. Without I/O: the blocking and the asyncio shells share it.
"""

from __future__ import annotations

import enum
import threading
from collections import OrderedDict
from typing import Any

from athena.signals import message_of
from athena.wire import Frame

CAME_BACK_S = 1.0
"""How long a supervisor that still listens may refuse to talk before it counts as lost."""

GRACE_S = 0.5
"""By so much the supervisor may be late with saying that the time is up; it is frozen then."""

SEEN_MAX = 4096


class No(enum.Enum):
    """Answers that are no message."""

    TIME = "the time is up"
    SUPERVISOR = "it went with its supervisor"
    MORE = "it was taken, or will never come"
    NEWS = "it was taken before, and its confirmation was lost"


class Seen:
    """Which plain messages this process has taken of late, by supervisor and number. Of any thread."""

    def __init__(self) -> None:
        self._numbers: OrderedDict[tuple[str, int], None] = OrderedDict()
        self._lock = threading.Lock()

    def is_new(self, supervisor: str, number: int) -> bool:
        """Whether this is the first time; it is not from now on."""
        with self._lock:
            if (supervisor, number) in self._numbers:
                return False
            self._numbers[supervisor, number] = None
            while len(self._numbers) > SEEN_MAX:
                self._numbers.popitem(last=False)
            return True


_seen = Seen()


def outcome(answer: Frame) -> Any:
    """The message in the answer to a ``take``, or the :class:`No` that it is."""
    value = answer.json()
    if "number" in value and not _seen.is_new(value["supervisor"], value["number"]):
        return No.NEWS
    match value:
        case {"timeout": True}:
            return No.TIME
        case {"lost": True}:
            return No.SUPERVISOR
        case {"gone": True}:
            return No.MORE
        case _:
            return message_of(value)

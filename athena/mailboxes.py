"""Asking a supervisor for what this process is told: the messages of its monitors and links, and those sent to it.

A message waits at the supervisor until it is asked for, and is confirmed when it has arrived; so a connection that is
cut, an interrupt, a cancelled wait or the end of an event loop loses none. What is left to this side is to know one
again whose confirmation got lost. Without I/O: the blocking and the asyncio shells share it.
"""

from __future__ import annotations

import enum
import os
import threading
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from athena.signals import message_of
from athena.wire import Frame

CAME_BACK_S = 1.0
"""How long a supervisor that still listens may refuse to talk before it counts as lost."""

REFUSED_S = 0.2
"""A connection that ended sooner was never one: who will not talk hangs up at once."""

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
        self.clear()

    def clear(self) -> None:
        """Begin anew, as a fork does: it has a mailbox of its own, whose numbers begin anew too."""
        self._takers: dict[tuple[str, int], object] = {}
        self._lock = threading.RLock()

    def claim(self, key: tuple[str, int], taker: object) -> bool:
        """Whether that message is this taker's. To ask again, after an interrupt for example, changes nothing."""
        with self._lock:
            is_ours = self._takers.setdefault(key, taker) is taker
            while len(self._takers) > SEEN_MAX:
                del self._takers[next(iter(self._takers))]
            return is_ours


class Leftovers:
    """Plain messages that have come, and whose wait was interrupted just then; by the socket of the supervisor."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Begin anew, as a fork does."""
        self._messages: defaultdict[Path, list[Any]] = defaultdict(list)

    def put(self, path: Path, message: Any) -> None:
        """Keep it for the next who waits."""
        self._messages[path].append(message)

    def take(self, path: Path) -> Any:
        """The oldest, or :data:`No.NEWS`."""
        found = self._messages[path]
        message: Any = No.NEWS
        if found:
            message = found[0]
            del found[0]  # without a call in between or behind: that is where interrupts come, and other threads
        return message


_seen = Seen()
leftovers = Leftovers()
os.register_at_fork(after_in_child=_seen.clear)
os.register_at_fork(after_in_child=leftovers.clear)


class Arrival:
    """One answer to a ``take``, until whoever waits has what is in it."""

    def __init__(self, meaning: Callable[[Any], Any] = lambda message: message) -> None:
        """``meaning`` makes of the message, or of a :class:`No`, what whoever waits gets."""
        self._meaning = meaning
        self._token = object()  # not this object itself, which holds the message
        self._key: tuple[str, int] | None = None
        self._message: Any = No.NEWS

    def read(self, answer: Frame) -> Any:
        """The message, or the :class:`No` that it is. After an interrupt :meth:`rest` has it."""
        value = answer.json()
        key = (value["supervisor"], value["number"]) if "number" in value else None
        message = self._meaning(_told(value))
        self._key, self._message = key, message
        return self.rest()

    def rest(self) -> Any:
        """The message if it has come and is nobody else's; otherwise :data:`No.NEWS`."""
        is_ours = self._key is None or _seen.claim(self._key, self._token)
        return self._message if is_ours else No.NEWS


def _told(value: dict[str, Any]) -> Any:
    match value:
        case {"timeout": True}:
            return No.TIME
        case {"lost": True}:
            return No.SUPERVISOR
        case {"gone": True}:
            return No.MORE
        case _:
            return message_of(value)

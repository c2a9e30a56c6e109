"""What the supervisor tells a process about others: exit signals and the ends of what it monitors."""

from __future__ import annotations

from dataclasses import dataclass

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

"""What a store is: the append-only log of one session at a time, for one writer.

Everything is synchronous: an append is a ``write(2)``, not a wait. ``sync`` may take milliseconds and runs in a thread.
A custom store is a class with these methods, named ``"module:Class"`` and made with ``store_options``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from athena.events import Cursor, Event

RESERVE_BYTES = 256 * 1024
"""What a log may have above its quota for what is :data:`ESSENTIAL`."""

ESSENTIAL = frozenset(
    {
        "file_edit", "files_restored", "interrupted", "message_cancelled", "session_end", "session_resume",
        "session_start", "tool_result", "turn_end", "turn_resumed",
    }
)  # fmt: skip
"""What begins or ends a session's life or a turn, or says what a tool has done already."""


@dataclass(frozen=True, slots=True)
class Damage:
    """What is wrong with a log: lines that are no events, bytes of a torn last line that were moved to a file,
    numbers between its events that no event has, and a session that it was forked from whose log is gone. An event
    that became unreadable counts as a line and as a number."""

    bad_lines: int = 0
    torn_bytes: int = 0
    torn_file: str | None = None
    missing_events: int = 0
    lost_parent: str | None = None

    def __bool__(self) -> bool:
        return bool(self.bad_lines or self.torn_bytes or self.missing_events or self.lost_parent)


class Log(Protocol):
    """One session's log, opened for writing: holds the lock until :meth:`close`."""

    @property
    def damage(self) -> Damage:
        """What opening and reading found so far. Bad lines and missing events are complete after ``read()`` ran to its
        end: opening looks at the ends of a log only, so that it costs the same for a long log and a short one."""
        ...

    @property
    def last_seq(self) -> int:
        """The seq of the last event, 0 for none. The next event to append has the number after it."""
        ...

    def append(self, event: Event) -> None:
        """Hand ``event.line`` to the kernel (or its equal): when this returns, no crash of this process loses it.

        Raises :class:`athena.errors.DiskError` if it can't be written and :class:`athena.errors.StoreError` if
        ``event.seq`` is not ``last_seq + 1`` or the log is closed; then the log is as it was before.
        """
        ...

    def sync(self) -> None:
        """Make every appended event survive a power cut. Blocks; may be called from another thread than append.

        Raises :class:`athena.errors.DiskError`; the next sync then covers the same events again.
        """
        ...

    def read(self, after: int = 0) -> Iterator[Event]:
        """The events with ``seq > after``, in order."""
        ...

    def close(self) -> None:
        """Give the lock back. Safe to call twice."""
        ...


class Store(Protocol):
    """A place that holds logs by session id."""

    def open(self, session_id: str) -> Log:
        """Open for writing; made when it isn't there.

        Raises :class:`athena.errors.LogLocked` if another process writes it, :class:`athena.errors.StoreError` if it
        can't be made (names the path and the reason) or is another session's.
        """
        ...

    def read(self, session_id: str, after: int = 0) -> Iterator[Event]:
        """The events with ``seq > after`` without a lock; an unfinished last line is ignored; an unknown id has
        none."""
        ...

    def tail(self, session_id: str, count: int) -> list[Event]:
        """The last ``count`` events."""
        ...

    def list(self) -> list[str]:
        """All session ids, sorted."""
        ...


@runtime_checkable
class DeletingStore(Store, Protocol):
    """A store that can forget a session. This is optional: of one that cannot, ``Session.delete`` says so by
    :class:`athena.errors.UnsupportedStore`."""

    def delete(self, session_id: str) -> bool:
        """Remove a log and all that belongs to it, for good. ``False`` if there is none.

        Raises :class:`athena.errors.LogLocked` while somebody writes it; then it is as it was.
        """
        ...


@runtime_checkable
class ForkingStore(Store, Protocol):
    """A store in which a log may go on from a point of another one. This is optional, as above."""

    def fork(self, session_id: str, new_id: str, at: Cursor, *, is_writer: bool = False) -> None:
        """Make the log of ``new_id``, whose events follow those of ``session_id`` up to ``at``, with the seqs after it.
        It is on disk when this returns. Again with the same arguments is a no-op.

        ``is_writer``: this process has the log of ``session_id`` open. Raises :class:`athena.errors.NotFound` if there
        is no such event, :class:`athena.errors.LogLocked` if another process writes that log,
        :class:`athena.errors.StoreError` if ``new_id`` has a log.
        """
        ...

    def forks(self, session_id: str) -> list[str]:
        """The sessions whose logs go on from this one's, sorted."""
        ...

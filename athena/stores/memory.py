"""Logs in this process's memory: the reference for the store contract, and ``store="in_memory"``.

In a supervised child the truth is with the supervisor: there ``sink`` sends each event up before it counts as appended,
and :meth:`MemoryStore.preload` puts back what a predecessor sent.
"""

from __future__ import annotations

import errno
import os
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from athena.errors import DiskError, LogLocked, StoreError
from athena.events import Event, check_session_id, decode
from athena.stores.base import ESSENTIAL, RESERVE_BYTES, Damage
from athena.stores.lines import Tally, number_events

MAX_BYTES = 64 * 1024 * 1024
"""What one store holds, all its logs together: memory is not given back while a log lives, so it must have an end."""


@dataclass(slots=True)
class _Lines:
    """A log as its lines, not as events: a reader's events share nothing that a writer could still change."""

    lines: list[bytes] = field(default_factory=list)
    seqs: list[int] = field(default_factory=list)
    damage: Damage = field(default_factory=Damage)

    @property
    def last_seq(self) -> int:
        return self.seqs[-1] if self.seqs else 0

    def add(self, line: bytes, seq: int) -> None:
        self.lines.append(line)
        self.seqs.append(seq)  # last: a reader in another thread goes by the seqs

    def read(self, start: int) -> Iterator[Event]:
        for index in range(start, len(self.seqs)):
            yield decode(self.lines[index], self.seqs[index])


class MemoryStore:
    """Logs that live as long as this object. ``sink`` is called with each event before it is kept; what it raises comes
    out of ``append``, and the event is not kept. Over ``max_bytes`` an append raises :class:`DiskError`, as a full
    disk."""

    def __init__(self, *, max_bytes: int = MAX_BYTES, sink: Callable[[Event], None] | None = None) -> None:
        self.max_bytes = max_bytes
        self.size_bytes = 0
        self.sink = sink
        self._logs: dict[str, _Lines] = {}
        self._open: dict[str, MemoryLog] = {}

    def open(self, session_id: str) -> MemoryLog:
        """See :class:`athena.stores.base.Store`. The lock holds within this object."""
        log = MemoryLog(self, check_session_id(session_id), self._logs.setdefault(session_id, _Lines()))
        if self._open.setdefault(session_id, log) is not log:
            raise _locked(session_id)
        return log

    def read(self, session_id: str, after: int = 0) -> Iterator[Event]:
        """See :class:`athena.stores.base.Store`."""
        found = self._logs.get(check_session_id(session_id), _Lines())
        return found.read(bisect_right(found.seqs, after))

    def tail(self, session_id: str, count: int) -> list[Event]:
        """The last ``count`` events."""
        found = self._logs.get(check_session_id(session_id), _Lines())
        return list(found.read(max(0, len(found.seqs) - max(0, count))))

    def list(self) -> list[str]:
        """All session ids, sorted."""
        return sorted(self._logs)

    def preload(self, session_id: str, lines: Iterable[bytes]) -> Damage:
        """Make the log consist of ``lines``, with or without their newline; the sink is not told.

        Raises :class:`StoreError` if the log is open, has events, or would not fit.
        """
        if check_session_id(session_id) in self._open or self._logs.get(session_id, _Lines()).seqs:
            raise StoreError(f"the log of session {session_id!r} is in use", session_id=session_id)
        tally, fresh = Tally(), _Lines()
        for event in number_events((line.removesuffix(b"\n") for line in lines), tally):
            self.reserve(session_id, len(event.line), is_essential=True)
            fresh.add(event.line, event.seq)
        fresh.damage = Damage(bad_lines=tally.bad_lines, missing_events=tally.missing_events)
        self._logs[session_id] = fresh
        return fresh.damage

    def delete(self, session_id: str) -> bool:
        """See :class:`athena.stores.base.DeletingStore`."""
        if check_session_id(session_id) in self._open:
            raise _locked(session_id)
        found = self._logs.pop(session_id, None)
        if found is None:
            return False
        self.size_bytes -= sum(map(len, found.lines))
        return True

    def reserve(self, session_id: str, more_bytes: int, *, is_essential: bool = False) -> None:
        """Count ``more_bytes``, or raise :class:`DiskError` if they do not fit. An eighth at most is kept for what is
        essential: a turn in a full store can be ended."""
        kept_bytes = 0 if is_essential else min(RESERVE_BYTES, self.max_bytes // 8)
        if self.size_bytes + more_bytes > self.max_bytes - kept_bytes:
            raise DiskError(
                f"the in-memory store is full ({self.max_bytes} bytes); use store='jsonl' for long sessions",
                session_id=session_id,
                errno=errno.EDQUOT,
                max_log_bytes=self.max_bytes,
            )
        self.size_bytes += more_bytes

    def release(self, log: MemoryLog) -> None:
        """Give the lock of ``log`` back, if it has it."""
        if self._open.get(log.session_id) is log:
            del self._open[log.session_id]


class MemoryLog:
    """See :class:`athena.stores.base.Log`. Made by :meth:`MemoryStore.open`."""

    def __init__(self, store: MemoryStore, session_id: str, lines: _Lines) -> None:
        self.session_id = session_id
        self._store = store
        self._lines = lines
        self._closed = False

    @property
    def damage(self) -> Damage:
        """What was wrong with the lines that were preloaded."""
        return self._lines.damage

    @property
    def last_seq(self) -> int:
        """The seq of the last event, 0 for none."""
        return self._lines.last_seq

    def append(self, event: Event) -> None:
        """Hand ``event`` to the sink, then keep its line. Raises :class:`StoreError`, and what the sink raises."""
        if self._closed:
            raise StoreError(f"the log of session {self.session_id!r} is closed", session_id=self.session_id)
        if event.seq != self.last_seq + 1 or not event.line:
            raise StoreError(
                f"the next event of {self.session_id!r} has seq {self.last_seq + 1} and its line, not {event!r}",
                session_id=self.session_id,
            )
        self._store.reserve(self.session_id, len(event.line), is_essential=event.event in ESSENTIAL)
        if self._store.sink is not None:
            try:
                self._store.sink(event)
            except BaseException:
                self._store.size_bytes -= len(event.line)
                raise
        self._lines.add(event.line, event.seq)

    def sync(self) -> None:
        """Nothing here survives a power cut, so there is nothing to wait for."""

    def read(self, after: int = 0) -> Iterator[Event]:
        """See :class:`athena.stores.base.Log`."""
        return self._store.read(self.session_id, after)

    def close(self) -> None:
        """Give the lock back. Safe to call twice."""
        self._closed = True
        self._store.release(self)


def _locked(session_id: str) -> LogLocked:
    return LogLocked(
        f"the log of session {session_id!r} is open for writing in this process",
        session_id=session_id,
        path=None,
        pid=os.getpid(),
    )

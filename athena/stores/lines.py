"""From the bytes of a log to its events, forward, backward and from a place in the middle, in constant memory.

Three rules bind every reader. Lines end with ``\\n`` and nothing else (U+2028 is text). What follows the last ``\\n``
is unfinished and ignored: its writer may be at work. A line that is no event, or whose seq does not fit, is counted
and skipped, and never stops the reading of the rest.
"""

from __future__ import annotations

import os
from codecs import BOM_UTF8
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from athena.events import MAX_RECORD_BYTES, Event, decode

SLICE_BYTES = 1 << 20
"""How much is read at once."""

MAX_LINE_BYTES = 2 * MAX_RECORD_BYTES
"""A longer line is a bad line: lost newlines must not fill the memory. Twice our own limit, as ExAthena has none."""

PROBE_BYTES = 64 * 1024
"""How much is read where one line is looked for."""

_TAIL_BYTES_PER_EVENT = 1024  # a guess that is usually enough; the window grows when it was not


@dataclass(slots=True)
class Tally:
    """What reading goes by and finds: the last seq before the first line (or of the last event), bad lines, numbers
    that no event has, and a log that this one was forked from and that is not there."""

    last_seq: int = 0
    bad_lines: int = 0
    missing_events: int = 0
    lost_parent: str | None = None

    def take(self, event: Event) -> Event:
        """Count ``event``, which is the next. What a repair has dealt with is no damage any more."""
        self.missing_events += event.seq - self.last_seq - 1
        self.last_seq = event.seq
        if event.event == "repaired":
            self.bad_lines = self.missing_events = 0
        return event


def split_lines(fd: int, start: int, end: int, slice_bytes: int = SLICE_BYTES) -> Iterator[bytes | None]:
    """The lines in ``[start, end)`` without their newline; ``None`` for one over :data:`MAX_LINE_BYTES`."""
    parts: list[bytes] = []
    pending_bytes = 0
    while start < end:
        chunk = os.pread(fd, min(slice_bytes, end - start), start)
        if not chunk:
            return
        start += len(chunk)
        first, *rest = chunk.split(b"\n")
        pending_bytes += len(first)
        if pending_bytes > MAX_LINE_BYTES:
            parts.clear()
        else:
            parts.append(first)
        if not rest:
            continue
        yield None if pending_bytes > MAX_LINE_BYTES else b"".join(parts)
        last = rest.pop()
        yield from rest
        parts, pending_bytes = [last], len(last)


def number_events(lines: Iterable[bytes | None], tally: Tally) -> Iterator[Event]:
    """The events in ``lines``, their seqs strictly increasing. A line without a seq has the number after the one
    before it.

    A seq that jumps ahead is held back until the next event shows which of them is wrong. So one damaged number costs
    its own line, where "anything not above the last one is bad" would cost every line after it.
    """
    held: Event | None = None
    for line in lines:
        try:
            if line is None:
                raise ValueError("line too long")
            event = _decode(line, (held.seq if held else tally.last_seq) + 1)
        except ValueError:
            tally.bad_lines += 1
            continue
        if held is not None and event.seq > tally.last_seq:
            if event.seq > held.seq:
                yield tally.take(held)
            else:
                tally.bad_lines += 1
            held = None
        if event.seq == tally.last_seq + 1:
            yield tally.take(event)
        elif event.seq > tally.last_seq:
            held = event
        else:
            tally.bad_lines += 1
    if held is not None:
        yield tally.take(held)


def read_events(fd: int, end: int, after: int, tally: Tally) -> Iterator[Event]:
    """The events with ``seq > after`` in the first ``end`` bytes. What is before the place where it starts to read is
    not looked at, so the damage in ``tally`` is right for ``after=0`` only."""
    for event in number_events(split_lines(fd, _seek(fd, end, after), end), tally):
        if event.seq > after:
            yield event


def tail_events(fd: int, end: int, count: int) -> list[Event]:
    """The last ``count`` events, read from the end.

    Only a log whose last lines carry no seq (ExAthena wrote them) is read from its start, because its numbers are
    counted.
    """
    if count <= 0:
        return []
    window_bytes = max(4096, count * _TAIL_BYTES_PER_EVENT)
    while window_bytes < end:
        start = end - window_bytes
        lines = split_lines(fd, start, end)
        next(lines, None)  # most likely the rest of a line that begins before the window
        events = list(number_events(lines, Tally(last_seq=-1)))  # so an event that must be counted shows as number 0
        if events and events[0].seq == 0:
            break
        if len(events) >= count:
            return events[-count:]
        window_bytes *= 4
    return list(deque(read_events(fd, end, 0, Tally()), maxlen=count))


def end_of_lines(fd: int, size_bytes: int) -> int:
    """The offset after the last newline in the first ``size_bytes``, 0 if there is none."""
    while size_bytes > 0:
        start = max(0, size_bytes - PROBE_BYTES)
        found = os.pread(fd, size_bytes - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        size_bytes = start
    return 0


def is_event(line: bytes) -> bool:
    """Whether ``line`` is a whole event."""
    try:
        decode(line, 1)
    except ValueError:
        return False
    return True


def begun_by(line: bytes | None) -> str | None:
    """The session that ``line`` says it is the beginning of, if it is one and says so (ExAthena's does not)."""
    try:
        event = _decode(line or b"", 1)
    except ValueError:
        return None
    owner = event.data.get("session_id") if event.event in ("session_start", "fork") else None
    return owner if isinstance(owner, str) else None


def _decode(line: bytes, seq: int) -> Event:
    """As :func:`decode`, of a line that an editor may have begun with a byte order mark."""
    try:
        return decode(line, seq)
    except ValueError:
        if not line.startswith(BOM_UTF8):
            raise
    return replace(decode(line.removeprefix(BOM_UTF8), seq), line=line)


def _seek(fd: int, end: int, after: int) -> int:
    """The offset of a line at or before the event ``after + 1``: a binary search over the seqs in the lines.

    It goes right only on proof (:func:`_anchor`), so where lines have no seq, or are damaged, it starts too early and
    never too late.
    """
    low, high = 0, end if after > 0 else 0
    while high - low > 2 * PROBE_BYTES:
        middle = (low + high) // 2
        anchor = _anchor(fd, middle, high)
        if anchor is not None and anchor[1] <= after:
            low = anchor[0]
        else:
            high = middle
    return low


def _anchor(fd: int, start: int, end: int) -> tuple[int, int] | None:
    """Offset and seq of the first event after ``start`` that the next line confirms by having the next number."""
    lines = split_lines(fd, start, end, PROBE_BYTES)
    first = next(lines, None)  # the rest of a line that begins before
    if first is None:
        return None
    offset, previous = start + len(first) + 1, (0, 0)
    for line in lines:
        if line is None:
            return None
        seq = _own_seq(line)
        if previous[1] and seq == previous[1] + 1:
            return previous
        previous = (offset, seq)
        offset += len(line) + 1
    return None


def _own_seq(line: bytes) -> int:
    try:
        return decode(line, 0).seq
    except ValueError:
        return 0

"""Logs that go on from a point of another log: by reference, so that a fork costs one line however long its past is.

The first line of such a log is a ``fork`` event that names its parent and the last of its events that count, and has
the seq after that one. Whoever reads the fork reads the parent's part first, to any depth. The parent is told from
another log under its id by the uuids of two of its events, and it is kept while it has forks
(:class:`athena.errors.HasForks`), or until they have been given a copy (:mod:`athena.stores.materialise`).
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from athena.config import PRODUCT
from athena.errors import HasForks, LogLocked, NotFound, StoreError
from athena.events import FORMAT, Cursor, Event, check_session_id, decode, encode
from athena.stores.files import (
    open_log_to_read,
    open_log_to_write,
    read_log,
    read_log_tail,
    store_error,
    sync_dir,
)
from athena.stores.lines import PROBE_BYTES, Tally, split_lines

HEAD_BYTES = 4096
"""The first line of a fork is shorter than that."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a log goes on from: the event ``at`` of the session ``parent``, in the log that began with the event
    ``log``."""

    parent: str
    at: Cursor
    log: str


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a fork's past: the events of a log up to ``upto``."""

    session_id: str
    path: Path
    base: int
    upto: int


def origin_of(path: Path) -> Origin | None:
    """Where the log at ``path`` goes on from; ``None`` for one with a beginning of its own, or that is not there.

    Raises ``OSError``.
    """
    try:
        fd = open_log_to_read(path)
    except FileNotFoundError:
        return None
    try:
        head = os.pread(fd, HEAD_BYTES, 0)
    finally:
        os.close(fd)
    return _origin_in(head)


def _origin_in(head: bytes) -> Origin | None:
    line, newline, _ = head.partition(b"\n")
    if not newline or b'"fork"' not in line:
        return None
    try:
        event = decode(line, 1)
        data = event.data
        if event.event != "fork":
            return None
        return Origin(check_session_id(data["parent"]), Cursor(int(data["seq"]), str(data["uuid"])), str(data["log"]))
    except (KeyError, TypeError, ValueError):
        return None


def past_of(path: Path, tally: Tally) -> list[Segment]:
    """The parts of other logs that a fork goes on from, the oldest first; a parent that is not there is said in
    ``tally``, and what it went on from is lost with it. Raises ``OSError``."""
    found: list[Segment] = []
    seen = {path.stem}
    origin, upto = origin_of(path), None
    while origin is not None:
        parent = path.with_name(f"{origin.parent}.jsonl")
        upto = origin.at.seq if upto is None else min(upto, origin.at.seq)
        if origin.parent in seen or not _is_it(parent, origin):
            tally.lost_parent = origin.parent
            break
        seen.add(origin.parent)
        further = origin_of(parent)
        found.append(Segment(origin.parent, parent, further.at.seq if further else 0, upto))
        origin = further
    return found[::-1]


def read_forked(path: Path, session_id: str, after: int, tally: Tally) -> Iterator[Event]:
    """As :func:`athena.stores.files.read_log`, with the part of its parents before the log's own."""
    try:
        origin = origin_of(path)
    except OSError as error:
        raise store_error(error, "read the log", path, session_id) from error
    if origin is not None and after < origin.at.seq:
        yield from read_past(path, session_id, after, tally)
        tally.missing_events += origin.at.seq - tally.last_seq
        tally.last_seq = origin.at.seq
    yield from read_log(path, session_id, after, tally)


def tail_forked(path: Path, session_id: str, count: int) -> list[Event]:
    """The last ``count`` events, some of which may be a parent's."""
    own = read_log_tail(path, session_id, count)
    if len(own) >= count or not own:
        return own
    past = deque(read_past(path, session_id, 0, Tally()), maxlen=count - len(own))
    return [*past, *own]


def make_fork(path: Path, new_path: Path, at: Cursor, *, is_writer: bool) -> None:
    """See :meth:`athena.stores.base.ForkingStore.fork`."""
    session_id, new_id = path.stem, new_path.stem
    path, is_writer = _owner(path, at.seq, is_writer=is_writer)
    try:
        with _kept(path, session_id, is_writer=is_writer) as fd:
            found = next(read_forked(path, path.stem, at.seq - 1, Tally()), None)
            if found is None or found.seq != at.seq or at.uuid not in (None, found.uuid):
                raise NotFound(f"session {session_id!r} has no event {at.seq} as it was named", target=at.seq)
            os.fdatasync(fd)  # a fork must not outlive what it goes on from
            first = next(read_log(path, path.stem, 0, Tally()))
            data = {
                "format": FORMAT, "session_id": new_id, "product": PRODUCT, "parent": path.stem, "seq": at.seq,
                "uuid": found.uuid, "log": first.uuid,
            }  # fmt: skip
            _make_log(new_path, encode(at.seq + 1, "fork", data).line, found.cursor)
            os.utime(fd)  # a log that somebody goes on from is not old
    except OSError as error:
        raise store_error(error, "fork the log", path, session_id) from error


def forks_of(root: Path) -> dict[str, list[str]]:
    """For each session in ``root`` that has forks their ids, sorted. Reads the beginning of every log there.

    Raises ``OSError``.
    """
    found: dict[str, list[str]] = {}
    for name in sorted(os.listdir(root)):
        if not name.endswith(".jsonl"):
            continue
        try:
            fd = os.open(f"{root}/{name}", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                origin = _origin_in(os.pread(fd, HEAD_BYTES, 0))
            finally:
                os.close(fd)
        except OSError:
            continue  # one that is no log, or that somebody removes, is nobody's fork
        if origin is not None:
            found.setdefault(origin.parent, []).append(name.removesuffix(".jsonl"))
    return found


def forks_first(session_ids: Iterable[str], forks: Mapping[str, Iterable[str]]) -> list[str]:
    """``session_ids`` so that each comes behind its forks."""
    wanted, seen, found = list(session_ids), set(), []
    todo = [(one, False) for one in wanted]
    while todo:
        one, is_behind = todo.pop()
        if is_behind:
            found.append(one)
        elif one not in seen:
            seen.add(one)
            todo += [(one, True), *((fork, False) for fork in forks.get(one, ()))]
    known = set(wanted)
    return [one for one in found if one in known]


def refuse_with_forks(path: Path) -> None:
    """Raise :class:`HasForks` if another log goes on from this one. Raises ``OSError``."""
    forks = forks_of(path.parent).get(path.stem)
    if forks:
        shown = ", ".join(forks[:5]) + (f" and {len(forks) - 5} more" if len(forks) > 5 else "")
        raise HasForks(
            f"session {path.stem!r} has forks that read its log ({shown}); remove them first, or give each a copy:"
            f" athena store materialise {forks[0]}",
            session_id=path.stem,
            forks=forks,
        )


def read_past(path: Path, session_id: str, after: int, tally: Tally) -> Iterator[Event]:
    """The part of a fork's parents alone."""
    try:
        segments = past_of(path, tally)
    except OSError as error:
        raise store_error(error, "read the log", path, session_id) from error
    for segment in segments:
        base = min(segment.base, segment.upto)
        tally.missing_events += max(0, base - tally.last_seq)
        tally.last_seq = max(base, tally.last_seq)
        own = Tally(last_seq=base)
        bad_lines, missing = 0, 0
        for event in read_log(segment.path, segment.session_id, max(after, base), own):
            if event.seq > segment.upto:
                break
            bad_lines, missing, tally.last_seq = own.bad_lines, own.missing_events, event.seq
            yield event
        tally.bad_lines += bad_lines
        tally.missing_events += missing


def _is_it(path: Path, origin: Origin) -> bool:
    """Whether this is the log that was forked, and no other one of that name; one damaged line does not hide it."""
    try:
        fd = open_log_to_read(path)
    except FileNotFoundError:
        return False
    try:
        line = next(split_lines(fd, 0, os.fstat(fd).st_size, PROBE_BYTES), None)
    finally:
        os.close(fd)
    with suppress(ValueError):
        if line is not None and decode(line, 1).uuid == origin.log:
            return True
    found = next(read_log(path, origin.parent, origin.at.seq - 1, Tally()), None)
    return found is not None and found.cursor == origin.at


def _owner(path: Path, seq: int, *, is_writer: bool) -> tuple[Path, bool]:
    """Which log has the event ``seq``: a fork at a point of a fork's past needs that past and not the fork. Where
    another process writes that one, the fork itself is what we can keep."""
    owner, origin = path, origin_of(path)
    while origin is not None and seq <= origin.at.seq:
        parent = path.with_name(f"{origin.parent}.jsonl")
        if not _is_it(parent, origin):
            raise StoreError(f"the log of {origin.parent!r} is gone, which {owner.stem!r} goes on from")
        owner, origin = parent, origin_of(parent)
    if owner == path:
        return path, is_writer
    try:
        os.close(open_log_to_write(owner, owner.stem, make=False))
    except LogLocked:
        return path, is_writer
    return owner, False


@contextmanager
def _kept(path: Path, session_id: str, *, is_writer: bool) -> Iterator[int]:
    """A descriptor of a log that nobody removes meanwhile, as whoever removes one takes the lock."""
    try:
        fd = open_log_to_read(path) if is_writer else open_log_to_write(path, path.stem, make=False)
    except FileNotFoundError:
        raise NotFound(f"there is no log of session {session_id!r} ({str(path)!r})", target=session_id) from None
    try:
        yield fd
    finally:
        os.close(fd)


def _make_log(path: Path, line: bytes, at: Cursor) -> None:
    """Put a log of one line where none is but one that goes on from the same event. It is whole and on disk before it
    has its name."""
    part = path.with_name(f"{path.stem}.forking")
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(fd, 0o600)
        os.write(fd, line + b"\n")
        os.fsync(fd)
        os.link(part, path)
    except FileExistsError:
        there = origin_of(path)
        if there is None or there.at != at:
            raise StoreError(
                f"session {path.stem!r} has a log already; fork under another id", session_id=path.stem
            ) from None
    finally:
        os.close(fd)
        part.unlink(missing_ok=True)
    sync_dir(path.parent)

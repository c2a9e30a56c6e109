"""Looking after logs: what is wrong with one, its repair, its removal.

A session never does any of this by itself. What changes a log holds its lock, so a log in use is left alone.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from athena.errors import NotFound
from athena.events import Event, encode
from athena.stores.base import Damage
from athena.stores.blob_upkeep import Named
from athena.stores.blobs import Blobs
from athena.stores.files import (
    copy_aside,
    lock_holder,
    mend_tail,
    open_log_to_read,
    open_log_to_write,
    refuse_foreign,
    store_error,
    sync_dir,
)
from athena.stores.forks import Origin, origin_of, past_of, refuse_with_forks
from athena.stores.lines import Tally, begun_by, end_of_lines, read_events

GAPS_SHOWN = 20
"""Ranges of missing numbers that a report has; more than that is told by their count."""

_BESIDE = re.compile(r"([A-Za-z0-9_-]{1,128})\.(?:torn-\d+|backup-\d+|repairing|forking|blobs)")
"""Files that belong to a log, and the directory of its blobs."""


@dataclass(frozen=True, slots=True)
class LogReport:
    """What a look at a whole log found."""

    session_id: str
    size_bytes: int
    events: int
    last_seq: int
    damage: Damage
    gaps: tuple[tuple[int, int], ...]
    """The first and the last number of what is missing; the first :data:`GAPS_SHOWN` of them."""
    unfinished_bytes: int
    """After the last newline: a write that goes on, or one that a crash has cut off."""
    belongs_to: str | None
    """Another session, as which the log begins."""
    writer: int | None
    """The process that holds the lock, if one does and the kernel tells."""
    missing_blobs: tuple[str, ...] = ()
    """References to what is gone, or has other bytes than it had."""
    orphan_blobs: tuple[str, ...] = ()
    """Files among the blobs that no event names: a crash came before the line. They cost room and nothing else."""
    origin: Origin | None = None
    """What it goes on from, if it is a fork."""

    @property
    def is_damaged(self) -> bool:
        """Whether something should be looked at."""
        is_torn = bool(self.unfinished_bytes) and not self.writer
        return bool(self.damage) or bool(self.missing_blobs) or self.belongs_to is not None or is_torn


@dataclass(frozen=True, slots=True)
class Repair:
    """What a repair found, and where the log as it was is now; ``None`` if nothing was wrong, and nothing changed."""

    found: LogReport
    backup: Path | None


def inspect_log(path: Path, session_id: str) -> LogReport:
    """Read a log from its first byte to its last, without a lock and in constant memory. Nothing is changed.

    Raises :class:`NotFound`, :class:`athena.errors.StoreError`.
    """
    try:
        fd = open_log_to_read(path)
    except FileNotFoundError:
        raise _not_found(path, session_id) from None
    except OSError as error:
        raise store_error(error, "read the log", path, session_id) from error
    try:
        return _inspect(fd, path, session_id, lock_holder(fd))
    except OSError as error:
        raise store_error(error, "read the log", path, session_id) from error
    finally:
        os.close(fd)


def repair_log(path: Path, session_id: str) -> Repair:
    """Take what is no event out of a log, and note in it what is missing, after a copy to ``<id>.backup-<n>``.

    The lines of its events stay as they are, byte for byte. Raises :class:`NotFound`, :class:`LogLocked`,
    :class:`athena.errors.StoreError`; then the log is as it was.
    """
    try:
        fd = open_log_to_write(path, session_id, make=False)
    except FileNotFoundError:
        raise _not_found(path, session_id) from None
    except OSError as error:
        raise store_error(error, "open the log", path, session_id) from error
    try:
        refuse_foreign(fd, path, session_id)
        found = _inspect(fd, path, session_id, None)
        if not replace(found, damage=replace(found.damage, lost_parent=None)).is_damaged:  # that is no file of ours
            return Repair(found, None)
        backup = copy_aside(fd, 0, found.size_bytes, path, "backup")
        mend_tail(fd, path)
        if found.damage or found.missing_blobs:
            _rewrite(fd, path, found, backup)
        return Repair(found, backup)
    except OSError as error:
        raise store_error(error, "repair the log", path, session_id) from error
    finally:
        os.close(fd)


def files_beside(root: Path) -> dict[str, list[Path]]:
    """What lies beside the logs in ``root`` and belongs to them, by session id."""
    found: dict[str, list[Path]] = {}
    try:
        with os.scandir(root) as entries:
            for entry in entries:
                match = _BESIDE.fullmatch(entry.name)
                if match is not None:
                    found.setdefault(match[1], []).append(root / entry.name)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise store_error(error, "list the logs in", root) from error
    return found


def delete_log(
    path: Path,
    session_id: str,
    beside: Iterable[Path],
    *,
    unless_after: float | None = None,
    knows_forks: bool = False,
) -> bool:
    """Remove a log, and before it what is ``beside``, so that what a crash leaves is still a log that can be removed.

    ``False``, and nothing is removed, if there is none or if it was written after ``unless_after`` (seconds since the
    epoch). ``knows_forks`` is of who has looked that there are none: a log that was forked since then counts as
    written. Raises :class:`LogLocked`, :class:`athena.errors.HasForks`, :class:`athena.errors.StoreError`.
    """
    try:
        fd = open_log_to_write(path, session_id, make=False)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise store_error(error, "open the log", path, session_id) from error
    try:
        if unless_after is not None and os.fstat(fd).st_mtime > unless_after:
            return False
        if not knows_forks:
            refuse_with_forks(path)
        for file in beside:
            _remove(file)
        path.unlink()
        sync_dir(path.parent)
        return True
    except OSError as error:
        raise store_error(error, "remove the log", path, session_id) from error
    finally:
        os.close(fd)


def disk_bytes(paths: Iterable[Path]) -> int:
    """What these files, and the files in these directories, have; what is not there has nothing."""
    total = 0
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            total += disk_bytes(path.iterdir())
        elif path.is_file():
            total += path.stat().st_size
    return total


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _not_found(path: Path, session_id: str) -> NotFound:
    return NotFound(f"there is no log of session {session_id!r} ({str(path)!r})", target=session_id)


def _inspect(fd: int, path: Path, session_id: str, writer: int | None) -> LogReport:
    size_bytes = os.fstat(fd).st_size
    origin = origin_of(path)
    previous = 0 if origin is None else origin.at.seq
    tally, count, foreign = Tally(last_seq=previous), 0, None
    past_of(path, tally)
    gaps: list[tuple[int, int]] = []
    named = Named(path, session_id)
    for event in read_events(fd, size_bytes, 0, tally):
        named.take(event)
        count += 1
        if event.seq > previous + 1 and len(gaps) < GAPS_SHOWN:
            gaps.append((previous + 1, event.seq - 1))
        previous = event.seq
        if event.event == "repaired":
            gaps.clear()
        foreign = foreign or _foreign(event, session_id)
    return LogReport(
        session_id=session_id,
        size_bytes=size_bytes,
        events=count,
        last_seq=previous,
        damage=Damage(bad_lines=tally.bad_lines, missing_events=tally.missing_events, lost_parent=tally.lost_parent),
        gaps=tuple(gaps),
        unfinished_bytes=size_bytes - end_of_lines(fd, size_bytes),
        belongs_to=foreign,
        writer=writer,
        missing_blobs=tuple(named.missing),
        orphan_blobs=tuple(sorted(Blobs(path).sizes().keys() - named.names)),
        origin=origin,
    )


def _foreign(event: Event, session_id: str) -> str | None:
    owner = begun_by(event.line) if event.event == "session_start" else None
    return owner if owner != session_id else None


def _rewrite(fd: int, path: Path, found: LogReport, backup: Path) -> None:
    """Put a log of the events alone in the place of the one behind ``fd``. It is whole and on disk before it gets the
    name, and locked until then: a session that starts meanwhile finds a log in use, or the new one."""
    fresh = path.with_name(f"{path.stem}.repairing")
    with open(fresh, "wb", opener=_private) as out:
        try:
            os.fchmod(out.fileno(), 0o600)
            fcntl.flock(out.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            last_seq = 0
            for event in read_events(fd, os.fstat(fd).st_size, 0, Tally()):
                out.write(event.line + b"\n")
                last_seq = event.seq
            out.write(encode(last_seq + 1, "repaired", _account(found, backup)).line + b"\n")
            out.flush()
            os.fsync(out.fileno())
            fresh.replace(path)
        except BaseException:
            fresh.unlink(missing_ok=True)
            raise
    sync_dir(path.parent)


def _account(found: LogReport, backup: Path) -> dict[str, object]:
    return {
        "bad_lines": found.damage.bad_lines,
        "missing_events": found.damage.missing_events,
        "gaps": found.gaps,
        "missing_blobs": found.missing_blobs,
        "backup": backup.name,
    }


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)

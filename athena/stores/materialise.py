"""Giving a fork a copy of its past: it reads as before, and needs its parent no more."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

import orjson

from athena.errors import NotFound, StoreError
from athena.events import Event
from athena.stores.blobs import Blobs, refs_in, split_ref
from athena.stores.files import open_log_to_write, read_log, refuse_foreign, store_error, sync_dir
from athena.stores.forks import origin_of, past_of, read_past
from athena.stores.lines import Tally


def materialise(path: Path, session_id: str) -> int:
    """Give a fork a copy of its past, so that it needs its parent no more. Events read as before. Returns the bytes
    that were copied, 0 if it is no fork.

    Raises :class:`NotFound`, :class:`LogLocked` while it is written, :class:`StoreError` if a parent is gone.
    """
    try:
        fd = open_log_to_write(path, session_id, make=False)
    except FileNotFoundError:
        raise NotFound(f"there is no log of session {session_id!r} ({str(path)!r})", target=session_id) from None
    except OSError as error:
        raise store_error(error, "open the log", path, session_id) from error
    try:
        refuse_foreign(fd, path, session_id)
        if origin_of(path) is None:
            return 0
        tally = Tally()
        past_of(path, tally)
        if tally.lost_parent is not None:
            raise StoreError(
                f"session {session_id!r} goes on from {tally.lost_parent!r}, whose log is gone: there is nothing to"
                " copy",
                session_id=session_id,
            )
        return _copy_past(fd, path, session_id)
    except OSError as error:
        raise store_error(error, "materialise the log", path, session_id) from error
    finally:
        os.close(fd)


def _copy_past(fd: int, path: Path, session_id: str) -> int:
    """Put a log with its past in the place of the one behind ``fd``, as :func:`athena.stores.upkeep.repair_log`
    does."""
    fresh, blobs = path.with_name(f"{session_id}.repairing"), Blobs(path)
    with open(fresh, "wb", opener=_private) as out:
        try:
            os.fchmod(out.fileno(), 0o600)
            fcntl.flock(out.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            for event in read_past(path, session_id, 0, Tally()):
                out.write(_as_own(event, session_id, blobs) + b"\n")
            copied_bytes = out.tell()
            for event in read_log(path, session_id, 0, Tally()):
                out.write(_as_own(event, session_id, blobs) + b"\n")
            out.flush()
            os.fsync(out.fileno())
            fresh.replace(path)
        except BaseException:
            fresh.unlink(missing_ok=True)
            raise
    sync_dir(path.parent)
    return copied_bytes


def _as_own(event: Event, session_id: str, blobs: Blobs) -> bytes:
    """The line of an event in another session's log: what it has out of line is beside that log, too."""
    line = event.line
    for ref in refs_in(event):
        with suppress(NotFound):
            owner, name = split_ref(ref)
            if owner != session_id:
                data = Blobs(blobs.path.with_name(f"{owner}.jsonl")).read(name)
                line = line.replace(ref.encode(), blobs.put(data, durable=True).encode())
    if event.event in ("session_start", "fork") and event.data.get("session_id") != session_id:
        record = orjson.loads(line)
        record["data"]["session_id"] = session_id
        line = orjson.dumps(record)
    return line


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)

"""Which sessions the daemon has, on disk, so that the next one brings them back (design 6).

One append-only file of JSON lines below the state directory: a line for each start, stop and failure of a session that
is not temporary. A start holds what a client said may be written down: never a grant, a key or an environment. Only the
holder of the daemon's lock opens it. What it means for a new daemon is :mod:`supervisor.respawn`'s.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from athena import proctree
from athena.errors import DiskError, Reason, StoreError
from athena.proctree import Identity
from supervisor.process_roster import boot_id
from supervisor.session_request import SessionRequest

logger = logging.getLogger(__name__)

FILE = "roster.jsonl"
"""Below the state directory."""

SPARE_LINES = 1000
"""How many more lines than twice the sessions the file may have before it is written anew."""


@dataclass(frozen=True, slots=True)
class Owner:
    """The process that a session is linked to. It is told by its start and boot, as its number may be another's."""

    identity: Identity
    boot: str

    @staticmethod
    def of(pid: int) -> Owner | None:
        """The process that has this number now."""
        known = proctree.identity(pid)
        return None if known is None else Owner(known, boot_id())

    @property
    def is_alive(self) -> bool:
        """Whether it still runs."""
        row = proctree.stat(self.identity.pid) if self.boot == boot_id() else None
        return row is not None and row.starttime == self.identity.starttime and row.state not in "ZX"


@dataclass(frozen=True, slots=True)
class Entry:
    """One session that was started and not stopped."""

    session_id: str
    spec: Mapping[str, Any]
    """As :meth:`SessionRequest.from_map` takes it."""
    init: str
    """The public line of its start options."""
    owner: Owner | None = None
    has_failed: bool = False
    reason: Reason = None
    """Why it has failed."""


class Contents(NamedTuple):
    """What could be read of a file: the last daemon's boot, the sessions, and which lines make no sense."""

    boot: str
    entries: dict[str, Entry]
    problems: list[str]


class Roster:
    """The file of this daemon. Raises :class:`StoreError` if it cannot be opened: sessions must not be forgotten."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = _open(path)
        found = parse(_read_all(self._fd))
        if found.problems:
            logger.warning("the roster %s: %d lines are no records: %s", path, len(found.problems), found.problems[0])
        self.boot = found.boot
        """Of the daemon that wrote it last; empty if none did."""
        self.entries = found.entries
        """What it was opened with."""
        self._ids = set(found.entries)
        self._failed = {name for name, entry in found.entries.items() if entry.has_failed}
        self._lines = 0
        self._unwritten: list[bytes] = []
        """What could not be written, and what follows it."""
        self._is_torn = True
        self._noted = self._synced = 0
        self._syncing: asyncio.Task[None] | None = None
        try:
            self._write_anew()
        except OSError as error:  # the disk is full: the file as it is holds all
            logger.error("the roster %s cannot be written anew: %s", path, error)

    # --- what happens to sessions

    def started(self, request: SessionRequest, owner: Owner | None) -> None:
        """A session begins, or goes on under other options. Raises :class:`DiskError` if that cannot be written."""
        entry = Entry(request.session_id, request.recorded, request.public_init.decode(), owner)
        if not self._append(_start_line(entry)):
            self._unwritten.pop()
            if request.session_id not in self._ids:  # else it goes on under the options that are noted
                self._unwritten.append(_dumps({"stop": request.session_id}))  # it may be there but for its end
            raise DiskError(
                f"the session cannot be noted in {str(self._path)!r}, so it would be lost with its supervisor; "
                "is the disk full?",
                session_id=request.session_id,
                path=str(self._path),
            )
        self._ids.add(request.session_id)
        self._failed.discard(request.session_id)

    def stopped(self, session_id: str) -> None:
        """It ends, and will not come back."""
        if session_id in self._ids:
            self._ids.discard(session_id)
            self._failed.discard(session_id)
            self._append(_dumps({"stop": session_id}))

    def failed(self, session_id: str, reason: Reason) -> None:
        """Its restarts are used up."""
        if session_id in self._ids:
            self._failed.add(session_id)
            self._append(_dumps({"failed": session_id, "reason": reason}))

    def restarted(self, session_id: str) -> None:
        """It is started; only of interest after it has failed."""
        if session_id in self._failed:
            self._failed.discard(session_id)
            self._append(_dumps({"restarted": session_id}))

    async def synced(self) -> None:
        """Return when all that was noted so far survives a power cut. Raises :class:`DiskError`."""
        wanted = self._noted
        while self._synced < wanted:
            if self._syncing is None or self._syncing.done():
                self._syncing = asyncio.create_task(self._sync())
            await asyncio.shield(self._syncing)

    def close(self) -> None:
        """The daemon ends; the file stays."""
        os.close(self._fd)
        self._fd = -1

    # --- the file

    def _append(self, line: bytes) -> bool:
        """Whether it was written; else it is kept for the next try."""
        if self._fd < 0:
            return False
        self._unwritten.append(line)
        data = (b"\n" if self._is_torn else b"") + b"".join(self._unwritten)
        try:
            written = os.write(self._fd, data)
        except OSError as error:
            self._is_torn = True
            logger.error("the roster %s cannot be written: %s", self._path, error)
            return False
        self._is_torn = written < len(data)
        if self._is_torn:
            return False
        self._noted += 1
        self._lines += len(self._unwritten)
        self._unwritten.clear()
        if self._lines > SPARE_LINES + 2 * len(self._ids):
            try:
                self._write_anew()
            except OSError as error:
                self._lines = 0  # the next try has time
                logger.error("the roster %s cannot be written anew: %s", self._path, error)
        return True

    def _write_anew(self) -> None:
        """Replace the file by one that holds what counts. Whatever happens meanwhile, one of the two is there."""
        found = parse(_read_all(self._fd))
        lines = [_dumps({"format": 1, "boot": boot_id()})]
        for entry in found.entries.values():
            lines.append(_start_line(entry))
            if entry.has_failed:
                lines.append(_dumps({"failed": entry.session_id, "reason": entry.reason}))
        path = self._path.with_suffix(".new")
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(path, flags, 0o600)
        try:
            data = b"".join(lines)
            if os.write(fd, data) < len(data):
                raise OSError("it could not be written whole")
            os.fsync(fd)
            os.rename(path, self._path)
        except BaseException:
            os.close(fd)
            raise
        os.close(self._fd)
        self._fd, self._lines, self._is_torn = fd, len(lines), False
        _sync_directory(self._path.parent)
        self._synced = self._noted

    async def _sync(self) -> None:
        upto, fd = self._noted, os.dup(self._fd)  # this one may be replaced meanwhile
        try:
            await asyncio.to_thread(os.fdatasync, fd)
        except OSError as error:
            raise DiskError(
                f"the roster {str(self._path)!r} cannot be synced: {error.strerror}", path=str(self._path)
            ) from error
        finally:
            os.close(fd)
        self._synced = max(self._synced, upto)


def _open(path: Path) -> int:
    try:
        fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        os.fchmod(fd, 0o600)
    except OSError as error:
        raise StoreError(
            f"the roster of sessions {str(path)!r} cannot be opened: {error.strerror}; mend that, or move it away to "
            "start without the sessions that it names",
            path=str(path),
        ) from None
    return fd


def _read_all(fd: int) -> bytes:
    with open(fd, "rb", closefd=False) as file:
        file.seek(0)
        return file.read()


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# --- what a file says -------------------------------------------------------------------------------------------------


def parse(data: bytes) -> Contents:
    """Read a file. Nothing in it raises; a line that is no record is a problem and counts for nothing."""
    boot, problems = "", []
    entries: dict[str, Entry] = {}
    for number, line in enumerate(data.split(b"\n"), 1):
        match _value(line):
            case None:
                pass
            case {"format": 1, "boot": str(named)}:
                boot = named
            case {"start": str(name), "spec": dict(spec), "init": str(init), **rest}:
                entries.pop(name, None)  # in the order of their last starts
                entries[name] = Entry(name, spec, init, _owner(rest.get("owner")))
            case {"stop": str(name)}:
                entries.pop(name, None)
            case {"failed": str(name), "reason": reason}:
                if name in entries:
                    entries[name] = replace(entries[name], has_failed=True, reason=reason)
            case {"restarted": str(name)}:
                if name in entries:
                    entries[name] = replace(entries[name], has_failed=False, reason=None)
            case _:
                problems.append(f"line {number} is no record: {line[:80]!r}")
    return Contents(boot, entries, problems)


def _value(line: bytes) -> Any:
    """The JSON of a line, ``None`` for an empty one, a value that matches nothing for what is no JSON."""
    try:
        return json.loads(line) if line else None
    except (ValueError, RecursionError):
        return False


def _owner(given: object) -> Owner | None:
    match given:
        case {"pid": int(pid), "start": int(start), "boot": str(boot)}:
            return Owner(Identity(pid, start), boot)
        case None:
            return None
        case _:
            return Owner(Identity(0, 0), "")  # it had one, and nobody can be that


def _start_line(entry: Entry) -> bytes:
    line: dict[str, Any] = {"start": entry.session_id, "spec": dict(entry.spec), "init": entry.init}
    if entry.owner is not None:
        known = entry.owner.identity
        line["owner"] = {"pid": known.pid, "start": known.starttime, "boot": entry.owner.boot}
    return _dumps(line)


def _dumps(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"

"""Which processes a supervisor has launched, on disk, so that the next one ends what outlived it (otp.md 18.2, 18.5).

Each supervisor has a file of its own, which it keeps locked as long as it lives: a line that says who it is, one for
each launched process, one for each that is over. Who reads it, and what for, is :mod:`supervisor.left_behind`. The file
is not synced: after a power cut the boot is another one, and nothing of it runs.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import secrets
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from athena import proctree
from athena.config import private_dir
from athena.errors import AthenaError
from athena.proctree import Identity

logger = logging.getLogger(__name__)

DIRECTORY = "processes"
"""Below the state directory."""

SHARED_COOKIE = "-" * 64
"""What every zygote carries until it forks. It tells that a process is one, and not whose."""

SPARE_LINES = 1000
"""How many more lines than twice the living processes a file may have before its supervisor moves on to a new one."""

_PID_LIMIT = 2**22  # PID_MAX_LIMIT of 64-bit Linux; pidfd_open refuses more
_COOKIE = re.compile(r"[A-Za-z0-9_-]{8,64}")


class Entry(NamedTuple):
    """One launched process, and the mark of everything that it started."""

    identity: Identity
    cookie: str


class Launched(Protocol):
    """What is noted of a launched process."""

    @property
    def pid(self) -> int: ...

    @property
    def start_time(self) -> int: ...

    @property
    def cookie(self) -> str: ...


# --- the file of a supervisor that lives ------------------------------------------------------------------------------


class ProcessRoster:
    """The file of this supervisor. It never raises: without it sessions run as well, so trouble is logged, once."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lines: dict[Identity, bytes] = {}
        self._written = 0
        self._is_whole = False
        self._is_in_trouble = False
        self._is_closed = False
        self._fd: int | None = None
        self._path: Path | None = None
        self._move_on()

    def add(self, process: Launched) -> None:
        """A process was launched."""
        line = dumps({"pid": process.pid, "start": process.start_time, "cookie": process.cookie or SHARED_COOKIE})
        self._lines[Identity(process.pid, process.start_time)] = line
        self._append(line)

    def end(self, process: Launched) -> None:
        """It is over, with everything that it started."""
        if self._lines.pop(Identity(process.pid, process.start_time), None) is not None:
            self._append(dumps({"end": process.pid, "start": process.start_time}))

    def close(self) -> None:
        """The supervisor ends. A file in which a process still lives stays, for whoever comes next."""
        if not self._is_closed:
            self._is_closed = True
            self._let_go(is_over=not self._lines)

    def _append(self, line: bytes) -> None:
        if self._is_closed:
            return
        self._written += 1
        if self._fd is not None:
            self._is_whole = self._write(self._fd, line if self._is_whole else b"\n" + line) and self._is_whole
        if not self._is_whole or self._written > SPARE_LINES + 2 * len(self._lines):
            self._move_on()

    def _write(self, fd: int, data: bytes) -> bool:
        """Whether it was written, all of it."""
        try:
            is_whole = os.write(fd, data) == len(data)
        except OSError as error:
            self._report(error)
            return False
        if not is_whole:
            self._report("a line could not be written whole")
        return is_whole

    def _move_on(self) -> None:
        """Go on in a new file that holds what lives. At every moment one of the two has all that, and is locked."""
        self._written = len(self._lines)  # also if this fails: the next try has time
        try:
            path, fd = _new_file(private_dir(self._directory))
        except (OSError, AthenaError) as error:
            self._report(error)
            return
        if self._write(fd, b"".join([_header(), *self._lines.values()])):
            self._let_go(is_over=True)
            self._path, self._fd, self._is_whole = path, fd, True
        else:  # the disk is full: the one that there is holds more
            self._remove(path)
            os.close(fd)

    def _let_go(self, *, is_over: bool) -> None:
        if self._fd is None or self._path is None:
            return
        if is_over:  # before its lock is free: who gets that sees that the file is gone
            self._remove(self._path)
        os.close(self._fd)
        self._fd = None

    def _remove(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            self._report(error)

    def _report(self, error: object) -> None:
        if not self._is_in_trouble:
            logger.error("launched processes are not noted, and may outlive guard and supervisor: %s", error)
        self._is_in_trouble = True


def _new_file(directory: Path) -> tuple[Path, int]:
    """A new file, locked. Raises OSError."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    while True:
        path = directory / f"{os.getpid()}-{secrets.token_hex(4)}.jsonl"
        fd = os.open(path, flags, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(fd).st_nlink:
                return path, fd
        except BlockingIOError:
            pass  # somebody sweeps, and found it before it was locked; likewise if it is removed already
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _header() -> bytes:
    me = proctree.identity(os.getpid())
    return dumps({"boot": boot_id(), "supervisor": os.getpid(), "start": me.starttime if me else 0})


def dumps(value: dict[str, Any]) -> bytes:
    """One line."""
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def boot_id() -> str:
    """Of this boot of the machine; empty if the kernel does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


# --- what a file says -------------------------------------------------------------------------------------------------


class Contents(NamedTuple):
    """What could be read of a file: the supervisor that wrote it, what had not ended, and which lines make no sense."""

    boot: str
    supervisor: Identity | None
    entries: list[Entry]
    problems: list[str]


def parse(data: bytes) -> Contents:
    """Read a file. Nothing in it raises; a line that is not as it was written is a problem and counts for nothing."""
    boot, supervisor, problems = "", None, []
    entries: dict[Identity, Entry] = {}
    for number, line in enumerate(data.split(b"\n"), 1):
        match _value(line):
            case None:
                pass
            case {"boot": str(named), "supervisor": pid, "start": start} if supervisor is None and (
                found := _identity(pid, start)
            ):
                boot, supervisor = named, found
            case {"pid": pid, "start": start, "cookie": str(cookie)} if (
                found := _identity(pid, start)
            ) and _COOKIE.fullmatch(cookie):
                entries[found] = Entry(found, cookie)
            case {"end": pid, "start": start} if found := _identity(pid, start):
                entries.pop(found, None)
            case _:
                problems.append(f"line {number} is no record: {line[:80]!r}")
    return Contents(boot, supervisor, list(entries.values()), problems)


def _value(line: bytes) -> Any:
    """The JSON of a line, ``None`` for an empty one, a value that matches nothing for what is no JSON."""
    try:
        return json.loads(line) if line else None
    except (ValueError, RecursionError):
        return False


def _identity(pid: object, start: object) -> Identity | None:
    """The process that was meant, if there can be one: 1 is nobody's child."""
    if type(pid) is int and type(start) is int and 1 < pid <= _PID_LIMIT and 0 <= start < 2**63:
        return Identity(pid, start)
    return None

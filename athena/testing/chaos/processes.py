"""Finding processes: those of a supervisor, and those that somebody has left behind."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Collection, Iterable
from pathlib import Path

from athena import proctree
from athena.client import ConnectionLost
from athena.errors import NotRunning
from athena.supervisors import Target

POLL_S = 0.002


def marked(roots: Iterable[Path]) -> list[proctree.Identity]:
    """The live processes that belong to these directories, besides this one and those above it.

    They name one in their command line, environment or working directory, or are below one that does. One that shed
    every mark and was adopted by init cannot be told from anybody's.
    """
    marks = [re.compile(re.escape(os.fsencode(root)) + rb"(?![\w-])") for root in roots]  # /tmp/t1 is not /tmp/t12
    table = {pid: row for pid in _pids() if (row := proctree.stat(pid)) is not None and row.state not in "ZX"}
    spared = _above(table)
    found = {pid for pid in table if pid not in spared and _names(pid, marks)}
    grown = True
    while grown:
        below = {pid for pid, row in table.items() if row.ppid in found and pid not in spared} - found
        grown = bool(below)
        found |= below
    return [proctree.Identity(pid, table[pid].starttime) for pid in sorted(found)]


def wait_unmarked(roots: Collection[Path], limit_s: float) -> list[str]:
    """Wait until no process belongs to these directories, at most so long. What is left then is killed, and told."""
    deadline = time.monotonic() + limit_s
    while left := marked(roots):
        if time.monotonic() > deadline:
            return [_ended(one) for one in left]
        time.sleep(10 * POLL_S)
    return []


def kill(pid: int, number: int = signal.SIGKILL) -> bool:
    """Send a signal. ``False`` if the process has ended already."""
    row = proctree.stat(pid)
    if row is None or row.state in "ZX":
        return False
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def supervisor_of(target: Target) -> int | None:
    """The pid of the supervisor that answers there now."""
    try:
        connection = target.pool.open()
    except (ConnectionLost, NotRunning):
        return None
    try:
        return int((connection.protocol.hello or {})["pid"])
    finally:
        connection.close()


def guard_of(supervisor: int) -> int | None:
    """The pid of the guard above a supervisor."""
    row = proctree.stat(supervisor)
    return None if row is None else row.ppid


def zygote_of(supervisor: int) -> int | None:
    """The pid of the zygote of a supervisor that has no session yet: what it forks looks like itself."""
    return next((pid for pid in proctree.children_of(supervisor) if is_fork(pid)), None)


def is_fork(pid: int) -> bool:
    """Whether it shows the zygote's command line, as the zygote does and what it has forked."""
    return b"athena.zygote" in _read(f"/proc/{pid}/cmdline")


def directory_of(pid: int) -> str | None:
    """The working directory of a process of this user's that lives."""
    try:
        return os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        return None


def _ended(one: proctree.Identity) -> str:
    command = _read(f"/proc/{one.pid}/cmdline").replace(b"\0", b" ").decode(errors="replace").strip()
    if proctree.identity(one.pid) == one:
        kill(one.pid)
    return f"{one.pid}: {command[:200]}"


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _above(table: dict[int, proctree.Stat]) -> set[int]:
    found, pid = {os.getpid()}, os.getppid()
    while pid in table and pid not in found:
        found.add(pid)
        pid = table[pid].ppid
    return found


def _names(pid: int, marks: list[re.Pattern[bytes]]) -> bool:
    texts = [_read(f"/proc/{pid}/cmdline"), _read(f"/proc/{pid}/environ"), os.fsencode(directory_of(pid) or "")]
    return any(mark.search(text) for mark in marks for text in texts)


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""

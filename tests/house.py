"""What :mod:`tests.conftest` enforces, apart from pytest: who may be connected to, and which processes are left."""

from __future__ import annotations

import ipaddress
import os
import re
import signal
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from athena import proctree

POLL_S = 0.02


class NetworkForbidden(BaseException):
    """A test wanted to leave this machine. No ``Exception``: nobody's handler for a failed connection may hide it."""


def is_loopback(address: Any) -> bool:
    """Whether a socket address is local: a unix path, a loopback IP, or a name that can mean nothing else."""
    if not isinstance(address, tuple):
        return True  # AF_UNIX, netlink
    host = address[0]
    if isinstance(host, bytes):
        host = host.decode(errors="replace")
    if host in (None, "", "localhost"):
        return True
    try:
        return ipaddress.ip_address(str(host).partition("%")[0]).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, slots=True)
class Left:
    """A process of this test run that still lives."""

    pid: int
    start_time: int
    command: str

    @property
    def identity(self) -> tuple[int, int]:
        """What no later process has too."""
        return (self.pid, self.start_time)

    def __str__(self) -> str:
        return f"  pid {self.pid}: {self.command}"


def leftovers(roots: Iterable[Path]) -> list[Left]:
    """The live processes of this test run besides itself.

    They are those that name one of its directories in command line, environment or working directory (a scrubbed
    environment keeps ``ATHENA_HOME``), this process's descendants, and the descendants of all of these. A tool that
    shed every mark is still below its guard; below none, it cannot be told from anybody's.
    """
    table = {pid: row for pid, row in _processes() if row.state not in "ZX"}
    ancestors = _ancestors(table)
    # .../pytest-1 is not .../pytest-12
    marks = [re.compile(re.escape(os.fsencode(root)) + rb"(?![\w-])") for root in roots]
    ours = {pid for pid in table if pid == os.getpid() or (pid not in ancestors and _is_marked(pid, marks))}
    grown = True
    while grown:
        below = {pid for pid, row in table.items() if row.ppid in ours and pid not in ancestors} - ours
        grown = bool(below)
        ours |= below
    return [Left(pid, table[pid].starttime, _command(pid)) for pid in sorted(ours - {os.getpid()})]


def wait_gone(roots: Collection[Path], limit_s: float, known: Collection[tuple[int, int]] = ()) -> list[Left]:
    """Wait until nothing but ``known`` is left, at most ``limit_s`` seconds; what is left then."""
    deadline = time.monotonic() + limit_s
    while left := [process for process in leftovers(roots) if process.identity not in known]:
        if time.monotonic() >= deadline:
            break
        time.sleep(POLL_S)
    return left


def end(left: Iterable[Left]) -> None:
    """Kill them, so that one leak does not fail every later test file too."""
    for process in left:
        row = proctree.stat(process.pid)
        if row is not None and row.starttime == process.start_time:
            try:
                os.kill(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # it has just ended by itself


def _processes() -> Iterable[tuple[int, proctree.Stat]]:
    for name in os.listdir("/proc"):
        if name.isdigit() and (row := proctree.stat(int(name))) is not None:
            yield int(name), row


def _ancestors(table: dict[int, proctree.Stat]) -> set[int]:
    found: set[int] = set()
    pid = os.getppid()
    while pid in table and pid not in found:
        found.add(pid)
        pid = table[pid].ppid
    return found


def _is_marked(pid: int, marks: list[re.Pattern[bytes]]) -> bool:
    texts = [_read(f"/proc/{pid}/cmdline"), _read(f"/proc/{pid}/environ")]
    try:
        texts.append(os.fsencode(os.readlink(f"/proc/{pid}/cwd")))
    except OSError:
        pass  # gone, or another user's
    return any(mark.search(text) for mark in marks for text in texts)


def _command(pid: int) -> str:
    return _read(f"/proc/{pid}/cmdline").replace(b"\0", b" ").decode(errors="replace").strip()[:300] or "?"


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""

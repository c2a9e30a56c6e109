"""Fixtures and helpers for tests that start real processes."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from athena import proctree
from athena.environment import scrubbed_environment
from supervisor.launcher import Launched, LaunchRequest, own, spawn
from supervisor.process import OsProcess, ProcessTable, wait_readable
from tests.helpers import TIME_UNIT

_serial = itertools.count()


@pytest.fixture
def table() -> Iterator[ProcessTable]:
    """A process table in a test process that adopts orphans; the test leaves no process below it."""
    was_subreaper = proctree.is_subreaper()
    before = {proctree.identity(pid) for pid in proctree.children_of(os.getpid())}
    proctree.become_subreaper()
    yield ProcessTable()
    after = [pid for pid in proctree.children_of(os.getpid()) if proctree.identity(pid) not in before]
    for pid in after:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    proctree.become_subreaper(was_subreaper)
    assert after == [], "the test left processes behind"


def session(tmp_path: Path, **options: Any) -> LaunchRequest:
    """A request for a session child with a cookie of its own."""
    cookie = f"cookie-{os.getpid()}-{next(_serial)}"
    return LaunchRequest(kind="session", cookie=cookie, log_path=tmp_path / "logs" / f"{cookie}.log", **options)


def program(tmp_path: Path, argv: Sequence[str], **options: Any) -> LaunchRequest:
    """A request for a program."""
    cookie = f"cookie-{os.getpid()}-{next(_serial)}"
    return LaunchRequest(kind="program", argv=argv, cookie=cookie, log_path=tmp_path / f"{cookie}.log", **options)


def start_python(code: str, table: ProcessTable, cookie: str = "") -> OsProcess:
    """A child that runs `code` in a bare interpreter."""
    null_fd = os.open(os.devnull, os.O_RDWR)
    try:
        pid = spawn([sys.executable, "-I", "-S", "-c", code], scrubbed_environment(os.environ), {0: null_fd})
        return own(pid, cookie=cookie, table=table)
    finally:
        os.close(null_fd)


async def read_line(launched: Launched) -> Any:
    """The child's next answer."""
    line = b""
    async with asyncio.timeout(10 * TIME_UNIT):
        while not line.endswith(b"\n"):
            await wait_readable(launched.read_fd)
            part = os.read(launched.read_fd, 65536)
            assert part, f"the child ended after {line!r}"
            line += part
    return json.loads(line)


async def ask(launched: Launched, command: str) -> Any:
    """Give a served child a command; its answer."""
    os.write(launched.write_fd, command.encode() + b"\n")
    return await read_line(launched)


def close(launched: Launched) -> None:
    """Close the supervisor's ends."""
    os.close(launched.read_fd)
    os.close(launched.write_fd)


def is_gone(pid: int) -> bool:
    """Whether nothing runs under this number: at most a zombie."""
    row = proctree.stat(pid)
    return row is None or row.state in "ZX"

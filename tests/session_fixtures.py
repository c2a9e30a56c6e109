"""What the tests of sessions under faults share: a supervisor, sessions that end with the test, files to steer by.

A test imports the fixtures that it uses by name. Nothing here sleeps to wait; every wait has a bound in the suite's
time unit.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest

from athena import Session, proctree
from athena.config import default_paths
from athena.environment import ROOT
from athena.events import Event
from athena.stores.jsonl import JsonlStore
from athena.supervisors import EmbeddedSupervisor, Target, start_daemon, stop_supervisor
from tests.helpers import TIME_UNIT, wait_until
from tests.house import leftovers

T = TypeVar("T")

ANSWER_S = 20.0
"""Within this every turn of these tests ends once nothing holds it up; only a lost answer takes as long."""


@dataclass(slots=True)
class Files:
    """The test's directory: gates that a mock or a tool waits at, and files in which effects are counted."""

    root: Path

    def path(self, name: str) -> str:
        """For a script."""
        return str(self.root / name)

    def open(self, name: str) -> None:
        """Let through what waits for this file."""
        (self.root / name).touch()

    def lines(self, name: str) -> list[str]:
        """What was appended so far; whole lines only."""
        try:
            return [line for line in (self.root / name).read_text().split("\n")[:-1] if line]
        except FileNotFoundError:
            return []

    def wait_lines(self, name: str, count: int = 1, timeout_s: float = ANSWER_S) -> list[str]:
        """Wait until there are at least ``count`` lines."""
        wait_until(lambda: len(self.lines(name)) >= count, timeout_s)
        return self.lines(name)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """The test's own files."""
    return Files(tmp_path)


@pytest.fixture(scope="module")
def shared_supervisor() -> Iterator[EmbeddedSupervisor]:
    """One embedded supervisor for all tests of a file that don't harm it."""
    supervisor = EmbeddedSupervisor()
    yield supervisor
    supervisor.stop()


@dataclass(slots=True)
class Sessions:
    """Starts sessions with a mock provider; they are stopped at the end of the test."""

    supervisor: Target
    cwd: Path
    started: list[Session] = field(default_factory=list)

    def start(self, mock: list[Any] | None = None, **options: Any) -> Session:
        """``Session.start_link`` with defaults for tests: mock provider, the test's directory, a short shutdown."""
        session = Session.start_link(**self.options(mock, **options))
        self.started.append(session)
        return session

    def options(self, mock: list[Any] | None = None, **options: Any) -> dict[str, Any]:
        """What :meth:`start` passes on."""
        defaults: dict[str, Any] = {
            "supervisor": self.supervisor, "cwd": str(self.cwd), "shutdown": 1.0, "python_path": [str(ROOT)],
        }  # fmt: skip
        if "provider" not in options:
            defaults |= {"provider": "mock", "mock": mock}
        return {k: v for k, v in {**defaults, **options}.items() if v is not None}

    def stop_all(self) -> None:
        """End what runs still."""
        for session in self.started:
            session.stop()


def _begin_background(request: pytest.FixtureRequest) -> None:
    """Have the test's threads, if it uses any, end after the fixture that asks: they are answered by its end."""
    if "background" in request.fixturenames:
        request.getfixturevalue("background")


@pytest.fixture
def sessions(
    shared_supervisor: EmbeddedSupervisor, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Sessions]:
    """Sessions below the file's supervisor."""
    _begin_background(request)
    found = Sessions(shared_supervisor, tmp_path)
    yield found
    found.stop_all()


@pytest.fixture
def own_supervisor(request: pytest.FixtureRequest) -> Iterator[EmbeddedSupervisor]:
    """An embedded supervisor that a test may harm."""
    _begin_background(request)
    supervisor = EmbeddedSupervisor()
    yield supervisor
    supervisor.stop()


@pytest.fixture
def own_sessions(own_supervisor: EmbeddedSupervisor, tmp_path: Path) -> Sessions:
    """Sessions below a supervisor that the test may harm."""
    return Sessions(own_supervisor, tmp_path)


@pytest.fixture
def daemon(request: pytest.FixtureRequest) -> Iterator[Path]:
    """The socket of a running daemon in the test's home."""
    _begin_background(request)
    start_daemon()
    path = default_paths().socket
    yield path
    stop_supervisor(path, 20 * TIME_UNIT)


# --- doing two things at once -----------------------------------------------------------------------------------------


@pytest.fixture
def background() -> Iterator[Callable[[Callable[[], T]], Future[T]]]:
    """Runs functions in threads. What still runs at the end of the test has lost its answer, and fails the test."""
    pool = ThreadPoolExecutor(40)
    futures: list[Future[Any]] = []

    def run(function: Callable[[], T]) -> Future[T]:
        future = pool.submit(function)
        futures.append(future)
        return future

    yield run
    pool.shutdown(wait=False)
    for future in futures:
        if not future.done():
            future.exception(ANSWER_S * TIME_UNIT)


def result(future: Future[T], timeout_s: float = ANSWER_S) -> T:
    """The future's result, within the scaled time."""
    return future.result(timeout_s * TIME_UNIT)


# --- looking at and harming processes ---------------------------------------------------------------------------------


def kill(session: Session) -> int:
    """``kill -9`` the session's process; its number. Returns when it has ended."""
    pid = session.pid
    assert pid is not None
    kill_pid(int(pid))
    return int(pid)


def kill_pid(pid: int, number: int = signal.SIGKILL) -> None:
    """Signal a process; for a deadly one return when it has ended."""
    os.kill(pid, number)
    if number == signal.SIGKILL:
        wait_until(lambda: is_gone(pid))


def is_gone(pid: int) -> bool:
    """Whether nothing runs under this number: at most a zombie."""
    row = proctree.stat(pid)
    return row is None or row.state in "ZX"


def is_stopped(pid: int) -> bool:
    """Whether SIGSTOP has taken effect."""
    row = proctree.stat(pid)
    return row is not None and row.state == "T"


def freeze(session: Session) -> int:
    """SIGSTOP the session's process; its number. Returns when it is stopped."""
    pid = session.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: is_stopped(int(pid)))
    return int(pid)


def supervisor_pid(target: Target) -> int:
    """The pid of the supervisor that answers there."""
    connection = target.pool.open()
    try:
        return int((connection.protocol.hello or {})["pid"])
    finally:
        connection.close()


def guard_pid(target: Target) -> int:
    """The pid of the guard above it."""
    row = proctree.stat(supervisor_pid(target))
    assert row is not None
    return row.ppid


def zygote_pid(target: Target) -> int:
    """The pid of the supervisor's zygote."""
    forked = {int(row["pid"]) for row in Session.list(supervisor=target) if row["pid"]}
    for pid in proctree.children_of(supervisor_pid(target)):
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            if b"athena.zygote" in file.read() and pid not in forked:  # what it forked shows its command line
                return pid
    raise AssertionError("the supervisor has no zygote")


def below(*roots: Path) -> list[str]:
    """Live processes that belong to these directories, as text."""
    return [str(left) for left in leftovers(roots)]


def wait_nothing_below(*roots: Path, timeout_s: float = 10.0) -> None:
    """Wait until no process of these directories is left."""
    left: list[str] = []

    def none_left() -> bool:
        left[:] = below(*roots)
        return not left

    try:
        wait_until(none_left, timeout_s)
    except AssertionError:
        raise AssertionError("still running:\n" + "\n".join(left)) from None


def unix_sockets(part: str) -> list[str]:
    """Unix sockets in use, of whichever process, whose path has ``part`` in it."""
    with open("/proc/net/unix") as file:
        return [line.split()[7] for line in file.readlines()[1:] if part in line and len(line.split()) > 7]


def stubborn(files: Files, *, then: str = "sleep 1000", name: str = "pids") -> str:
    """A shell command with tools that left its group, by ``setsid`` and by a double fork, and ignore polite signals.

    Each writes its pid to the file ``name``: three lines when all are up. Then ``then`` runs.
    """
    pids = files.path(name)
    tool = f'trap "" TERM HUP INT; echo $$ >> {pids}; while :; do sleep 1000; done'
    return (
        f"setsid sh -c '{tool}' >/dev/null 2>&1 &\n"
        f"(setsid sh -c '{tool}' >/dev/null 2>&1 &)\n"
        f'trap "" TERM HUP INT; echo $$ >> {pids}; {then}'
    )


# --- logs -------------------------------------------------------------------------------------------------------------


def log(session_id: str) -> list[Event]:
    """The events in a session's log now."""
    return list(JsonlStore(default_paths().sessions, allow_network=True).read(session_id, 0))


def kinds(session_id: str) -> list[str]:
    """The kinds of the events in a session's log."""
    return [event.event for event in log(session_id)]


# --- client programs --------------------------------------------------------------------------------------------------


class Program:
    """A Python program in a process of its own, which can be killed. It talks by lines on its standard output."""

    def __init__(self, code: str, cwd: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            cwd=cwd,
            text=True,
        )

    def line(self) -> str:
        """Its next line. A program that hangs is ended by the test's timeout."""
        assert self.process.stdout is not None
        text = self.process.stdout.readline().rstrip("\n")
        assert text, f"the program ended with {self.process.wait(10 * TIME_UNIT)}"
        return text

    def kill(self) -> None:
        """``kill -9``."""
        self.process.kill()
        self.process.wait(10 * TIME_UNIT)

    def close(self) -> None:
        """End it if it runs."""
        self.kill()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Callable[[str], Program]]:
    """Starts client programs; they are killed at the end of the test."""
    started: list[Program] = []

    def start(code: str) -> Program:
        started.append(Program(code, tmp_path))
        return started[-1]

    yield start
    for one in started:
        one.close()

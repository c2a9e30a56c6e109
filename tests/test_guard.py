from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import supervisor.guard
from athena import proctree
from athena.environment import scrubbed_environment
from supervisor.process import ProcessTable
from tests.helpers import TIME_UNIT, wait_until
from tests.process_fixtures import is_gone, table

__all__ = ["table"]

GUARD = [sys.executable, "-I", "-S", supervisor.guard.__file__]


def start_guard(*arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen([*GUARD, *arguments], env=scrubbed_environment(os.environ), **options)


class Guarded:
    """A guard over the stand-in supervisor of ``process_children``, up and with nasty tools below it."""

    def __init__(self, tmp_path: Path) -> None:
        self.socket = tmp_path / "s"
        report = tmp_path / "report"
        argv = [sys.executable, "-P", "-m", "tests.process_children", "supervise", str(self.socket), str(report)]
        self.guard = start_guard("--socket", str(self.socket), "--", *argv)
        wait_until(report.exists)
        self.report = json.loads(report.read_text())
        self.tools: list[int] = self.report["tools"]

    def left(self) -> list[int]:
        return [pid for pid in (*self.tools, self.report["pid"]) if not is_gone(pid)]


@pytest.mark.slow
def test_killed_supervisor_leaves_nothing(tmp_path: Path, table: ProcessTable) -> None:
    guarded = Guarded(tmp_path)
    assert guarded.report["guard"] == guarded.guard.pid
    assert guarded.left() == [*guarded.tools, guarded.report["pid"]]
    began = time.monotonic()
    os.kill(guarded.report["pid"], signal.SIGKILL)
    assert guarded.guard.wait(10 * TIME_UNIT) == 128 + 9
    assert time.monotonic() - began < 2.0 * TIME_UNIT
    assert guarded.left() == []
    assert not guarded.socket.exists()


@pytest.mark.slow
def test_terminated_guard_passes_it_on_and_the_status_back(tmp_path: Path, table: ProcessTable) -> None:
    guarded = Guarded(tmp_path)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        guarded.guard.send_signal(number)
    assert guarded.guard.wait(10 * TIME_UNIT) == 5
    assert guarded.left() == []
    assert not guarded.socket.exists()


@pytest.mark.slow
def test_supervisor_stops_in_order_when_its_guard_dies(tmp_path: Path, table: ProcessTable) -> None:
    guarded = Guarded(tmp_path)
    guarded.guard.kill()
    guarded.guard.wait()
    pid = guarded.report["pid"]  # ours now: the test process is a subreaper
    wait_until(lambda: is_gone(pid))
    assert os.waitpid(pid, 0) == (pid, 0)
    assert guarded.left() == []
    assert not guarded.socket.exists()


@pytest.mark.slow
def test_socket_of_another_supervisor_stays(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        assert start_guard("--socket", str(path), "--", "true").wait() == 0
        assert path.exists()
    assert start_guard("--socket", str(path), "--", "true").wait() == 0
    assert not path.exists()
    path.write_text("a file")
    assert start_guard("--socket", str(path), "--", "true").wait() == 0
    assert path.exists()


@pytest.mark.slow
def test_only_named_descriptors_are_passed_and_the_guard_keeps_none(tmp_path: Path) -> None:
    read_fd, write_fd = os.pipe()
    other_fd = os.open(os.devnull, os.O_RDONLY)
    # The supervisor closes its copy and lives on: the pipe ends then, unless the guard has kept one.
    code = f"""if True:
        import os
        os.write({write_fd}, " ".join(os.listdir("/proc/self/fd")).encode())
        os.close({write_fd})
        input()"""
    argv = ["--fds", str(write_fd), "--", sys.executable, "-c", code]
    guard = start_guard(*argv, pass_fds=(write_fd, other_fd), stdin=subprocess.PIPE)
    os.close(write_fd)
    os.close(other_fd)
    with open(read_fd) as pipe:
        names = pipe.read().split()
    assert str(write_fd) in names
    assert str(other_fd) not in names
    assert guard.poll() is None
    guard.communicate(b"\n")
    assert guard.returncode == 0


@pytest.mark.parametrize("arguments", [[], ["--"], ["--socket"], ["--what", "--", "true"]])
def test_wrong_command_line_is_refused(arguments: Sequence[str]) -> None:
    with pytest.raises(SystemExit, match="usage"):
        supervisor.guard.parse(arguments)


async def test_watch_without_a_guard_is_none() -> None:
    loop = asyncio.get_running_loop()
    assert supervisor.guard.watch_guard(loop, lambda: None, environ={}) is None


async def test_guard_that_died_before_the_watch_is_noticed() -> None:
    died = asyncio.Event()
    environ = {supervisor.guard.GUARD_VARIABLE: str(os.getpid())}  # alive, and not our parent (any more)
    stop = supervisor.guard.watch_guard(asyncio.get_running_loop(), died.set, environ=environ)
    async with asyncio.timeout(5 * TIME_UNIT):
        await died.wait()
    assert stop is not None
    stop()
    assert environ == {}


async def test_stopped_watch_holds_no_descriptor() -> None:
    before = set(os.listdir("/proc/self/fd"))
    environ = {supervisor.guard.GUARD_VARIABLE: str(os.getppid())}
    stop = supervisor.guard.watch_guard(asyncio.get_running_loop(), lambda: None, environ=environ)
    assert stop is not None
    stop()
    stop()
    assert set(os.listdir("/proc/self/fd")) == before


@pytest.mark.slow
def test_guard_is_small_and_waits_idle() -> None:
    guard = start_guard("--", "sleep", "1000")
    wait_until(lambda: proctree.children_of(guard.pid))
    rows = dict(line.split(":", 1) for line in Path(f"/proc/{guard.pid}/status").read_text().splitlines())
    guard.terminate()
    assert guard.wait(10 * TIME_UNIT) == 128 + 15
    assert int(rows["VmRSS"].split()[0]) < 20_000, "KiB, most of it shared with other interpreters"
    assert int(rows["Threads"]) == 1

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import stat
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from athena import proctree, zygote
from athena.environment import scrubbed_environment
from athena.errors import InvalidOption, StartError
from supervisor.launcher import Launcher, LaunchRequest, PlainLauncher
from supervisor.logfile import KEEP_BYTES, ROTATE_AT_START_BYTES, TRIM_BYTES, LogFile
from supervisor.process import ExitStatus, ProcessTable
from supervisor.reaper import Reaper
from supervisor.zygote_launcher import ZygoteLauncher
from tests.helpers import wait_until_async
from tests.process_fixtures import ask, close, program, read_line, session, table

__all__ = ["table"]


def zygote_launcher(table: ProcessTable, tmp_path: Path, entry: str = "serve") -> ZygoteLauncher:
    entry = f"tests.process_children:{entry}"
    return ZygoteLauncher(table, entry=entry, preload=(), log_path=tmp_path / "zygote.log")


@pytest.fixture
async def launcher(table: ProcessTable, tmp_path: Path) -> AsyncIterator[ZygoteLauncher]:
    launcher = zygote_launcher(table, tmp_path)
    reaper = Reaper(table)
    reaper.start()
    await launcher.start()
    yield launcher
    await launcher.close()
    reaper.close()


def test_request_without_sense_is_refused(tmp_path: Path) -> None:
    for options in ({"cookie": "x y z no cookie"}, {"argv": ["true"]}, {"kind": "program"}):
        base: dict[str, Any] = {"kind": "session", "cookie": "cookie-1", "log_path": tmp_path / "log"}
        with pytest.raises(InvalidOption):
            LaunchRequest(**(base | options))


def test_scrubbed_environment_keeps_no_secret() -> None:
    source = {"OPENAI_API_KEY": "k", "PATH": "/bin", "LC_ALL": "C", "PYTHONSTARTUP": "x", "LD_PRELOAD": "y"}
    assert set(scrubbed_environment(source, A="b")) - {"PYTHONPATH"} == {"PATH", "LC_ALL", "A"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["zygote", "plain"])
async def test_child_is_as_promised(table: ProcessTable, tmp_path: Path, kind: str) -> None:
    launcher: Launcher = (
        zygote_launcher(table, tmp_path) if kind == "zygote" else PlainLauncher(table, module="tests.process_children")
    )
    await launcher.start()
    request = session(tmp_path, cwd=str(tmp_path))
    child = await launcher.launch(request)
    assert await read_line(child) == "ready"
    seen = await ask(child, "describe")
    pid = child.process.pid
    assert (seen["pid"], seen["ppid"], seen["sid"], seen["pgid"]) == (pid, os.getpid(), pid, pid)
    assert seen["subreaper"]
    assert seen["cwd"] == str(tmp_path)
    assert seen["blocked"] == []
    assert seen["sigterm"]
    assert seen["cookie"] == seen["environ"]["ATHENA_COOKIE"] == request.cookie
    fds = {int(fd): target for fd, target in seen["fds"].items()}
    assert fds.pop(0) == os.devnull
    assert fds.pop(1) == fds.pop(2) == str(request.log_path)
    assert sorted(target.partition(":")[0] for target in fds.values()) == ["pipe", "pipe"]
    assert stat.S_IMODE(os.stat(request.log_path).st_mode) == 0o600
    row = proctree.stat(pid)
    assert row is not None
    assert row.starttime == child.process.start_time
    await ask(child, "print hello")
    for fd in (child.read_fd, child.write_fd):
        assert not os.get_inheritable(fd)
        assert not os.get_blocking(fd)
    close(child)  # the end of its pipe is the end of a child
    assert await child.process.wait() == ExitStatus(os.CLD_EXITED, 0)
    if kind == "zygote":  # the other's stdout is a block-buffered file, which _exit leaves unwritten
        assert Path(request.log_path).read_text() == "hello\n"
    await launcher.close()
    assert table.busy == 0


@pytest.mark.slow
async def test_child_that_dies_at_once_keeps_its_status(table: ProcessTable, tmp_path: Path) -> None:
    launcher = zygote_launcher(table, tmp_path, entry="exit_seven")
    await launcher.start()

    async def one() -> ExitStatus:
        child = await launcher.launch(session(tmp_path))
        close(child)
        return await child.process.wait()

    for _ in range(10):
        statuses = await asyncio.gather(*(one() for _ in range(20)))
        assert set(statuses) == {ExitStatus(os.CLD_EXITED, 7)}
    await launcher.close()


@pytest.mark.slow
async def test_program_talks_over_its_stdio(launcher: ZygoteLauncher, tmp_path: Path) -> None:
    code = 'read line; echo "\\"$line $A $ATHENA_COOKIE $(pwd)\\""; echo oops >&2; exit 4'
    request = program(tmp_path, ["sh", "-c", code], env={"A": "b", "PATH": os.environ["PATH"]}, cwd=str(tmp_path))
    child = await launcher.launch(request)
    assert await ask(child, "hi") == f"hi b {request.cookie} {tmp_path}"
    assert await child.process.wait() == ExitStatus(os.CLD_EXITED, 4)
    assert Path(request.log_path).read_text() == "oops\n"
    close(child)


@pytest.mark.slow
async def test_program_that_cannot_be_executed_is_a_start_error(table: ProcessTable, tmp_path: Path) -> None:
    launcher = PlainLauncher(table)
    for options in ({"argv": ["no-such-program"]}, {"argv": ["true"], "cwd": "/no/such/directory"}):
        with pytest.raises(StartError, match="No such file"):
            await launcher.launch(program(tmp_path, **options))
    await launcher.close()
    assert len(table) == 0


@pytest.mark.slow
async def test_zygote_killed_between_launches_hurts_nobody(launcher: ZygoteLauncher, tmp_path: Path) -> None:
    first = await launcher.launch(session(tmp_path))
    await read_line(first)
    before = launcher.zygote
    assert before is not None
    os.kill(before.pid, signal.SIGKILL)
    second = await launcher.launch(session(tmp_path))
    await read_line(second)
    assert launcher.zygote is not before
    assert (await ask(first, "describe"))["ppid"] == os.getpid()
    for child in (first, second):
        close(child)
        assert await child.process.wait() == ExitStatus(os.CLD_EXITED, 0)


@pytest.mark.slow
async def test_launches_fail_over_from_a_killed_zygote(
    launcher: ZygoteLauncher, table: ProcessTable, tmp_path: Path
) -> None:
    before = launcher.zygote
    assert before is not None
    os.kill(before.pid, signal.SIGSTOP)
    launches = [asyncio.create_task(launcher.launch(session(tmp_path))) for _ in range(12)]
    await wait_until_async(lambda: launcher.outstanding == 8)
    os.kill(before.pid, signal.SIGCONT)
    await asyncio.wait(launches, return_when=asyncio.FIRST_COMPLETED)
    os.kill(before.pid, signal.SIGKILL)  # in the middle of serving
    children = await asyncio.gather(*launches)
    for child in children:
        assert await read_line(child) == "ready"
    mine = {child.process.pid for child in children} | {launcher.zygote.pid if launcher.zygote else 0}
    await wait_until_async(lambda: set(proctree.children_of(os.getpid())) == mine)  # no half-made child is left
    for child in children:
        child.process.kill()
        await child.process.wait()
        close(child)


@pytest.mark.slow
async def test_cancelled_launch_leaves_no_process(
    launcher: ZygoteLauncher, table: ProcessTable, tmp_path: Path
) -> None:
    assert launcher.zygote is not None
    os.kill(launcher.zygote.pid, signal.SIGSTOP)
    launch = asyncio.create_task(launcher.launch(session(tmp_path)))
    await wait_until_async(lambda: launcher.outstanding == 1)
    launch.cancel()
    with pytest.raises(asyncio.CancelledError):
        await launch
    assert launcher.outstanding == 1, "the zygote may still answer"
    os.kill(launcher.zygote.pid, signal.SIGCONT)
    await wait_until_async(lambda: launcher.outstanding == 0 and len(table) == 1)
    assert proctree.children_of(os.getpid()) == [launcher.zygote.pid]


@pytest.mark.slow
async def test_zygote_that_cannot_start_is_a_start_error(
    table: ProcessTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("supervisor.zygote_launcher.BACKOFF_S", 0.001)
    launcher = zygote_launcher(table, tmp_path, entry="no_such_function")
    with pytest.raises(StartError, match="see its log"):
        await launcher.start()
    assert "no_such_function" in (tmp_path / "zygote.log").read_text()
    await launcher.close()
    with pytest.raises(StartError, match="closed"):
        await launcher.launch(session(tmp_path))
    assert len(table) == 0


def test_zygote_refuses_to_fork_with_two_threads() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server = threading.Thread(target=zygote.Server(theirs, print).serve)
    server.start()  # this process now has the test's thread and the server's
    with ours, theirs:
        socket.send_fds(ours, [json.dumps({"id": 1, "cookie": "cookie-1"}).encode()], [0, 1, 2])
        reply = json.loads(ours.recv(4096))
        ours.shutdown(socket.SHUT_RDWR)
        server.join()
    assert reply["id"] == 1
    assert "threads" in reply["error"]
    assert "pid" not in reply


def test_log_rotates_at_a_start_and_not_before_it_is_long(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "new" / "x.log")
    for expected in (b"a", b"ab"):
        fd = log.open()
        os.write(fd, expected[-1:])
        os.close(fd)
        assert log.path.read_bytes() == expected
    log.path.write_bytes(b"x" * (ROTATE_AT_START_BYTES + 1))
    os.close(log.open())
    assert log.path.read_bytes() == b""
    assert log.previous.stat().st_size == ROTATE_AT_START_BYTES + 1


def test_log_is_cut_under_its_writer(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "x.log")
    fd = log.open()
    assert not log.trim()
    os.write(fd, b"x" * TRIM_BYTES + b"last")
    assert log.trim()
    os.write(fd, b"next")
    os.close(fd)
    assert log.path.read_bytes() == b"next"
    assert log.previous.read_bytes() == b"x" * (KEEP_BYTES - 4) + b"last"
    assert stat.S_IMODE(log.previous.stat().st_mode) == 0o600


def test_log_refuses_a_symbolic_link(tmp_path: Path) -> None:
    (tmp_path / "x.log").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic link"):
        LogFile(tmp_path / "x.log").open()

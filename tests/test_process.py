from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from athena import proctree
from supervisor.launcher import PlainLauncher
from supervisor.process import UNKNOWN, ExitStatus, OsProcess, ProcessTable, exit_reason
from supervisor.reaper import Reaper
from supervisor.zygote_launcher import ZygoteLauncher
from tests.helpers import TIME_UNIT, wait_until, wait_until_async
from tests.process_fixtures import ask, close, is_gone, program, read_line, session, start_python, table

__all__ = ["table"]

ERROR = {"error": {"type": "ValueError", "message": "no", "traceback": ""}}
EXITED, KILLED, DUMPED = os.CLD_EXITED, os.CLD_KILLED, os.CLD_DUMPED


@pytest.mark.parametrize(
    ("code", "status", "announced", "intended", "reason"),
    [
        (EXITED, 0, None, None, "normal"),
        (EXITED, 3, None, None, {"exit": 3}),
        (EXITED, 255, None, None, {"exit": 255}),
        (KILLED, signal.SIGKILL, None, None, "killed"),
        (KILLED, signal.SIGTERM, None, None, "shutdown"),
        (KILLED, signal.SIGINT, None, None, {"signal": "SIGINT"}),
        (DUMPED, signal.SIGSEGV, None, None, {"signal": "SIGSEGV"}),
        (KILLED, signal.SIGRTMIN + 3, None, None, {"signal": "SIGRTMIN+3"}),
        (UNKNOWN, 0, None, None, "unknown"),
        # A clean announcement is believed with status 0 only, an abnormal one always, and neither over a signal.
        (EXITED, 0, "shutdown", None, "shutdown"),
        (EXITED, 0, {"shutdown": "x"}, None, {"shutdown": "x"}),
        (EXITED, 1, "normal", None, {"exit": 1}),
        (EXITED, 1, {"shutdown": "x"}, None, {"exit": 1}),
        (EXITED, 0, ERROR, None, ERROR),
        (EXITED, 1, ERROR, None, ERROR),
        (KILLED, signal.SIGKILL, "normal", None, "killed"),
        (UNKNOWN, 0, "normal", None, "unknown"),
        # What we intended wins over all.
        (KILLED, signal.SIGKILL, None, "hung", "hung"),
        (KILLED, signal.SIGKILL, ERROR, {"limit": "memory"}, {"limit": "memory"}),
        (EXITED, 0, "normal", "boom", "boom"),
    ],
)
def test_reason_follows_the_table(code: int, status: int, announced: Any, intended: Any, reason: Any) -> None:
    assert exit_reason(code, status, announced, intended) == reason


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("", "normal"),
        ("raise SystemExit(3)", {"exit": 3}),
        ("import os; os.kill(os.getpid(), 9)", "killed"),
        ("import os; os.kill(os.getpid(), 15)", "shutdown"),
        ("import os; os.kill(os.getpid(), 11)", {"signal": "SIGSEGV"}),
        ("import os; os.abort()", {"signal": "SIGABRT"}),
    ],
)
async def test_real_end_gives_its_reason(table: ProcessTable, code: str, reason: Any) -> None:
    process = start_python(code, table)
    status = await process.wait()
    assert exit_reason(status.si_code, status.si_status) == reason
    assert await process.wait() == status
    assert len(table) == 0
    assert table.busy == 0


@pytest.mark.slow
async def test_terminate_reaches_a_frozen_child(table: ProcessTable) -> None:
    process = start_python("import signal; signal.pause()", table)
    proctree.send_signal(process.pidfd, signal.SIGSTOP)
    process.terminate()
    assert await process.wait() == ExitStatus(os.CLD_KILLED, signal.SIGTERM)


@pytest.mark.slow
async def test_end_of_another_ones_child_is_unknown(table: ProcessTable, tmp_path: Path) -> None:
    code = "import os, time\npid = os.fork()\nif pid: print(pid, flush=True); os.read(0, 1)\nelse: time.sleep(1000)"
    launcher = PlainLauncher(table)
    parent = await launcher.launch(program(tmp_path, ["python3", "-I", "-S", "-c", code]))
    pid = await read_line(parent)
    row = proctree.stat(pid)
    assert row is not None
    stranger = OsProcess(pid, os.pidfd_open(pid), row.starttime, cookie="", table=ProcessTable())
    stranger.kill()
    assert await stranger.wait() == ExitStatus(UNKNOWN, 0)
    close(parent)
    assert await parent.process.wait() == ExitStatus(os.CLD_EXITED, 0)


@pytest.fixture
async def launcher(table: ProcessTable, tmp_path: Path) -> AsyncIterator[ZygoteLauncher]:
    launcher = ZygoteLauncher(table, log_path=tmp_path / "zygote.log", entry="tests.process_children:serve", preload=())
    await launcher.start()
    yield launcher
    await launcher.close()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["die 9", "die 11", "exit 0", "kill"])
async def test_escaped_tools_die_with_their_child_and_nobody_else_does(
    launcher: ZygoteLauncher, tmp_path: Path, how: str
) -> None:
    child = await launcher.launch(session(tmp_path))
    neighbour = await launcher.launch(session(tmp_path))
    for launched in (child, neighbour):
        assert await read_line(launched) == "ready"
    tools = await ask(child, "tools")
    others = await ask(neighbour, "tools")
    began = time.monotonic()
    if how == "kill":
        child.process.kill()
    else:
        os.write(child.write_fd, how.encode() + b"\n")
    await child.process.wait()
    assert time.monotonic() - began < 1.0 * TIME_UNIT
    assert [pid for pid in tools if proctree.stat(pid)] == []  # reaped, too
    assert [pid for pid in others if is_gone(pid)] == []
    assert (await ask(neighbour, "describe"))["pid"] == neighbour.process.pid
    neighbour.process.kill()
    await neighbour.process.wait()
    assert [pid for pid in others if proctree.stat(pid)] == []
    close(child)
    close(neighbour)


@pytest.mark.slow
async def test_tool_without_any_mark_dies_if_it_was_seen(launcher: ZygoteLauncher, tmp_path: Path) -> None:
    child = await launcher.launch(session(tmp_path))
    await read_line(child)
    (tool,) = await ask(child, "unmarked")
    wait_until(lambda: proctree.read_environ(tool) == {})
    child.process.observe()
    os.write(child.write_fd, b"die 9\n")
    await child.process.wait()
    assert proctree.stat(tool) is None
    close(child)


FREES_LONG = """
import os, subprocess, sys
memory = bytearray(400 << 20)  # its memory goes before its children do, and that takes a while
child = subprocess.Popen(["sleep", "1000"], env={"ATHENA_COOKIE": "cookie-1", "PATH": os.environ["PATH"]})
print(child.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_hunt_waits_for_what_an_exiting_process_has_below_it(table: ProcessTable) -> None:
    parent = subprocess.Popen([sys.executable, "-c", FREES_LONG], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert parent.stdin
    assert parent.stdout
    with parent.stdin, parent.stdout:
        child = int(parent.stdout.readline())
        wait_until(lambda: proctree.read_environ(child).get("ATHENA_COOKIE"))
        parent.kill()
        wait_until(lambda: (row := proctree.stat(parent.pid)) is None or row.is_exiting or row.state == "Z")
        with proctree.Hunt(None, None, cookie=("ATHENA_COOKIE", "cookie-1")) as hunt:
            assert hunt.run(10 * TIME_UNIT)
        assert proctree.stat(child) is None
        parent.wait()


@pytest.mark.slow
async def test_cancelled_wait_leaves_the_death_to_its_end(launcher: ZygoteLauncher, tmp_path: Path) -> None:
    child = await launcher.launch(session(tmp_path))
    await read_line(child)
    tools = await ask(child, "tools")
    waiting = asyncio.create_task(child.process.wait())
    await asyncio.sleep(0)
    child.process.kill()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await wait_until_async(lambda: child.process.is_over)
    assert [pid for pid in tools if proctree.stat(pid)] == []
    close(child)


@pytest.mark.slow
async def test_process_that_is_over_never_reaches_who_has_its_number_now(table: ProcessTable) -> None:
    old = start_python("", table)
    await old.wait()
    bystander = start_python("import signal; signal.pause()", table)
    old.pid = bystander.pid  # as if the kernel had given the number again
    old.kill()
    old.terminate()
    old.observe()
    table.discard(old)
    assert bystander.pid in table
    assert not is_gone(bystander.pid)
    bystander.kill()
    assert await bystander.wait() == ExitStatus(os.CLD_KILLED, signal.SIGKILL)


@pytest.mark.slow
async def test_orphans_are_reaped_when_they_end_and_not_while_a_launch_is_out(
    launcher: ZygoteLauncher, table: ProcessTable, tmp_path: Path
) -> None:
    reaper = Reaper(table)
    reaper.start()
    child = await launcher.launch(session(tmp_path))
    await read_line(child)
    (tool,) = await ask(child, "unmarked")
    wait_until(lambda: proctree.read_environ(tool) == {})
    os.write(child.write_fd, b"exit 0\n")
    await child.process.wait()
    assert reaper.adopted == {tool}  # without a mark it is nobody's to kill
    table.begin()
    os.kill(tool, signal.SIGKILL)
    await wait_until_async(lambda: reaper.adopted == frozenset())
    assert proctree.stat(tool) is not None, "a zombie until no launch is out"
    table.end()
    await wait_until_async(lambda: proctree.stat(tool) is None)
    reaper.close()
    close(child)


@pytest.mark.slow
async def test_reaper_leaves_registered_children_alone(table: ProcessTable) -> None:
    process = start_python("raise SystemExit(3)", table)
    wait_until(lambda: is_gone(process.pid))
    reaper = Reaper(table)
    reaper.start()
    await asyncio.sleep(0)
    assert await process.wait() == ExitStatus(os.CLD_EXITED, 3)
    reaper.close()

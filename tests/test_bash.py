from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from athena import proctree
from athena.messages import ToolCall
from athena.tools import bash, process
from athena.tools.base import ToolContext, ToolFailure, ToolOutput, ToolTimeout
from athena.tools.execute import run_tool
from tests.helpers import TIME_UNIT, wait_until, wait_until_async
from tests.tool_calls import ctx

__all__ = ["ctx"]

ESCAPEE = textwrap.dedent(
    """
    import os, signal, sys, time
    def escape():
        if os.fork():
            os._exit(0)
        os.setsid()
        if os.fork():
            os._exit(0)
        for name in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(name, signal.SIG_IGN)
        with open(sys.argv[1], "a") as file:
            file.write(f"{os.getpid()}\\n")
        if "stop" in sys.argv:
            os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(600)
    if os.fork() == 0:
        escape()
    os.wait()
    """
)
"""Forks twice, leaves the session, ignores polite signals, writes its pid to a file; with `stop` freezes itself."""


@pytest.fixture(autouse=True)
def leaves_no_process() -> Iterator[None]:
    """The test process adopts orphans meanwhile, and no child is left at the end, running or zombie."""
    was = proctree.is_subreaper()
    before = set(proctree.children_of(os.getpid()))
    assert proctree.become_subreaper()
    yield
    proctree.become_subreaper(was)
    assert set(proctree.children_of(os.getpid())) <= before


@pytest.fixture
def escapee(tmp_path: Path) -> Callable[..., str]:
    """A command line that starts an escapee; its pid is appended to the file `pids`."""
    script = tmp_path / "escapee.py"
    script.write_text(ESCAPEE)
    return lambda *flags: " ".join([sys.executable, "-S", str(script), str(tmp_path / "pids"), *flags])


async def run(ctx: ToolContext, command: str, timeout_s: float = 30) -> ToolOutput:
    milliseconds = max(1, round(timeout_s * 1000 * TIME_UNIT))
    return await bash.run(bash.BashParameters(command=command, timeout_ms=milliseconds), ctx)


def pids(ctx: ToolContext) -> list[int]:
    file = ctx.cwd / "pids"
    return [int(line) for line in file.read_text().split()] if file.exists() else []


def start(argv: list[str], *, start_new_session: bool = False) -> subprocess.Popen[bytes]:
    """A child that the tools know nothing of."""
    return subprocess.Popen(argv, start_new_session=start_new_session)


def is_alive(pid: int) -> bool:
    row = proctree.stat(pid)
    return row is not None and row.state != "Z"


async def test_exit_code_and_merged_output_are_the_result(ctx: ToolContext) -> None:
    output = await run(ctx, "echo out; echo err >&2; exit 3")
    assert (output.text, output.is_error) == ("exit 3\nout\nerr\n", False)
    assert output.ui_kind == "process"
    assert output.ui_payload is not None
    assert output.ui_payload["exit_code"] == 3


async def test_command_ended_by_a_signal_reports_it_as_a_shell_does(ctx: ToolContext) -> None:
    assert (await run(ctx, "kill -9 $$")).text == "exit 137\n"


async def test_runs_in_cwd_with_only_the_given_environment_and_no_input(
    ctx: ToolContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATHENA_TEST_SECRET", "x")
    output = await run(ctx, "pwd; cat; env | cut -d= -f1 | sort")
    lines = output.text.splitlines()
    assert lines[1] == str(ctx.cwd)
    assert "ATHENA_TEST_SECRET" not in lines
    assert {"PATH", process.COOKIE} <= set(lines)


async def test_output_that_is_no_utf8_is_shown_with_replacement_characters(ctx: ToolContext) -> None:
    assert (await run(ctx, r"printf 'a\377b'")).text == "exit 0\na\ufffdb"


@pytest.mark.parametrize("command", ["", " \n"])
async def test_empty_command_is_refused(ctx: ToolContext, command: str) -> None:
    with pytest.raises(ToolFailure, match="empty"):
        await run(ctx, command)


@pytest.mark.parametrize("command", ["echo \0", "echo " + "x" * 200_000])
async def test_command_that_cannot_start_is_a_failure(ctx: ToolContext, command: str) -> None:
    with pytest.raises(ToolFailure, match="could not start"):
        await run(ctx, command)


async def test_working_directory_that_is_gone_is_a_failure(ctx: ToolContext) -> None:
    ctx.cwd = ctx.cwd / "gone"
    with pytest.raises(ToolFailure, match="gone"):
        await run(ctx, "true")


async def test_long_output_keeps_head_and_tail(ctx: ToolContext) -> None:
    output = await run(ctx, "seq 1 100000")
    assert output.text.startswith("exit 0\n1\n2\n")
    assert output.text.endswith("\n99999\n100000\n")
    assert "bytes omitted" in output.text
    assert len(output.text.encode()) < bash.OUTPUT_CAP_BYTES + 100


async def test_timeout_ends_an_endless_writer_in_bounded_memory(ctx: ToolContext) -> None:
    with pytest.raises(ToolTimeout, match="timeout") as caught:
        await run(ctx, "yes", timeout_s=0.2)
    assert len(str(caught.value)) < bash.OUTPUT_CAP_BYTES + 500
    assert caught.value.ui is not None
    assert caught.value.ui["payload"]["timed_out"] is True


def test_timeout_argument_is_clamped() -> None:
    assert bash.limit_s(bash.BashParameters(command="true", timeout_ms=10**9)) == 600
    assert bash.limit_s(bash.BashParameters(command="true")) == 120


@given(st.lists(st.binary(max_size=40)), st.integers(1, 40), st.integers(1, 40))
def test_head_and_tail_of_any_stream(chunks: list[bytes], head_bytes: int, tail_bytes: int) -> None:
    buffer = bash.HeadTail(head_bytes, head_bytes + tail_bytes)
    for chunk in chunks:
        assert buffer.add(chunk)
    whole = b"".join(chunks)
    if len(whole) <= head_bytes + tail_bytes:
        assert buffer.text() == whole.decode("utf-8", "replace")
    else:
        assert f"[{len(whole) - head_bytes - tail_bytes} bytes omitted]" in buffer.text()


@given(st.text(min_size=30, max_size=60), st.integers(1, 10), st.integers(1, 10))
def test_cuts_never_split_a_character(text: str, head_bytes: int, tail_bytes: int) -> None:
    buffer = bash.HeadTail(head_bytes, head_bytes + tail_bytes)
    buffer.add(text.encode())
    assert buffer.text().count("\ufffd") <= text.count("\ufffd")


# --- nothing is left behind ------------------------------------------------------------------------------------------


async def test_background_process_with_the_pipe_open_neither_delays_nor_survives(ctx: ToolContext) -> None:
    started_at = time.monotonic()
    output = await run(ctx, "sleep 600 & echo $! > pids; echo done")
    assert output.text == "exit 0\ndone\n"
    assert time.monotonic() - started_at < 2 * TIME_UNIT
    assert not is_alive(pids(ctx)[0])


async def test_output_written_just_before_the_end_is_not_lost(ctx: ToolContext) -> None:
    for _ in range(20):
        assert (await run(ctx, "head -c 15000 /dev/zero | tr '\\0' x; echo end")).text.endswith("xend\n")


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("stop",)])
async def test_escapee_is_killed_after_normal_end(
    ctx: ToolContext, escapee: Callable[..., str], flags: tuple[str, ...]
) -> None:
    output = await run(ctx, f"{escapee(*flags)} & until [ -s pids ]; do sleep 0.01; done; echo ok")
    assert output.text == "exit 0\nok\n"
    assert not is_alive(pids(ctx)[0])


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("stop",)])
async def test_escapee_is_killed_at_timeout(
    ctx: ToolContext, escapee: Callable[..., str], flags: tuple[str, ...]
) -> None:
    with pytest.raises(ToolTimeout):
        await run(ctx, f"{escapee(*flags)} & {escapee(*flags)} & trap '' TERM; sleep 600", timeout_s=1)
    assert len(pids(ctx)) == 2
    assert not any(map(is_alive, pids(ctx)))


@pytest.mark.slow
async def test_interrupt_kills_the_tree_within_a_second(ctx: ToolContext, escapee: Callable[..., str]) -> None:
    call = asyncio.create_task(run(ctx, f"{escapee()} & {escapee('stop')} & sleep 600", timeout_s=600))
    await wait_until_async(lambda: len(pids(ctx)) == 2)
    began_at = time.monotonic()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert time.monotonic() - began_at < 1 * TIME_UNIT
    assert not any(map(is_alive, pids(ctx)))


async def test_second_cancel_during_the_kill_does_not_leave_the_tree(ctx: ToolContext) -> None:
    call = asyncio.create_task(run(ctx, "sleep 600 & echo $! > pids; sleep 600"))
    await wait_until_async(lambda: pids(ctx))
    call.cancel()
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert not is_alive(pids(ctx)[0])


async def test_daemon_that_hides_its_environment_is_known_by_having_been_seen(ctx: ToolContext) -> None:
    # Without its environment and in another session: only its time below the shell tells whose it is.
    command = "env -i setsid sh -c 'echo $$ > pids; sleep 600' & until [ -s pids ]; do sleep 0.01; done; sleep 0.2"
    await run(ctx, command)
    assert not is_alive(pids(ctx)[0])


@pytest.mark.slow
async def test_fork_storm_of_sessions_is_ended(ctx: ToolContext) -> None:
    storm = ctx.cwd / "storm.py"
    storm.write_text("import os, time\nfor _ in range(300):\n  if os.fork() == 0: os.setsid(); time.sleep(600)\n")
    output = await run(ctx, f"{sys.executable} -S {storm}; echo done")
    assert output.text == "exit 0\ndone\n"


@pytest.mark.slow
async def test_parallel_calls_do_not_kill_each_others_processes(ctx: ToolContext, escapee: Callable[..., str]) -> None:
    long = asyncio.create_task(run(ctx, f"{escapee()} & until [ -e release ]; do sleep 0.01; done; echo long"))
    await wait_until_async(lambda: pids(ctx))
    for number in range(3):
        assert (await run(ctx, f"(setsid sleep 600 &) ; echo {number}")).text == f"exit 0\n{number}\n"
    assert is_alive(pids(ctx)[0])
    (ctx.cwd / "release").touch()
    assert (await long).text == "exit 0\nlong\n"
    assert not is_alive(pids(ctx)[0])


async def test_processes_of_others_are_left_alone(ctx: ToolContext) -> None:
    with start(["sleep", "600"], start_new_session=True) as other:
        await run(ctx, "sleep 600 & true")
        assert other.poll() is None
        other.kill()


async def test_exit_status_of_another_child_is_not_stolen(ctx: ToolContext) -> None:
    other = start(["sh", "-c", "exit 7"])
    wait_until(lambda: (row := proctree.stat(other.pid)) is not None and row.state == "Z")
    await run(ctx, "true")
    assert other.wait() == 7


async def test_group_is_killed_where_orphans_are_not_adopted(ctx: ToolContext) -> None:
    proctree.become_subreaper(False)
    await run(ctx, "(sleep 600 & echo $! > pids); true")
    wait_until(lambda: not is_alive(pids(ctx)[0]))


async def test_no_descriptor_is_left_open(ctx: ToolContext) -> None:
    await run(ctx, "true")
    before = os.listdir("/proc/self/fd")
    for _ in range(5):
        await run(ctx, "sleep 600 & true")
    assert os.listdir("/proc/self/fd") == before


def test_works_on_uvloop(ctx: ToolContext) -> None:
    uvloop = pytest.importorskip("uvloop")

    async def calls() -> list[str]:
        return [output.text for output in await asyncio.gather(*(run(ctx, f"echo {n}; sleep 600 &") for n in range(4)))]

    assert uvloop.run(calls()) == [f"exit 0\n{n}\n" for n in range(4)]


async def test_time_limit_of_the_tool_itself_counts_and_not_the_loops(ctx: ToolContext) -> None:
    call = ToolCall("c1", "bash", {"command": "sleep 0.2; echo late"})
    outcome = await run_tool(bash.TOOL, call, ctx, 0.01)
    assert (outcome.status, outcome.result.content) == ("ok", "exit 0\nlate\n")
    outcome = await run_tool(bash.TOOL, ToolCall("c1", "bash", {"command": "sleep 600", "timeout_ms": 50}), ctx)
    assert outcome.status == "timeout"
    assert outcome.result.is_error
    assert outcome.result.ui_payload is not None


# --- proctree by itself --------------------------------------------------------------------------------------------


def test_stat_reads_rows_whose_name_has_parentheses_and_blanks(tmp_path: Path) -> None:
    program = tmp_path / "a) R (b"
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([str(program), "600"], start_new_session=True) as child:
        row = proctree.stat(child.pid)
        assert row is not None
        assert (row.ppid, row.pgid, row.sid) == (os.getpid(), child.pid, child.pid)
        assert child.pid in proctree.children_of(os.getpid())
        child.kill()
    assert proctree.stat(child.pid) is None
    assert proctree.identity(child.pid) is None


def test_environment_is_the_one_at_the_start() -> None:
    with subprocess.Popen(["sleep", "600"], env={"A": "1=2", "B": ""}) as child:
        try:  # while its exec is under way, the kernel shows no environment
            wait_until(lambda: proctree.read_environ(child.pid) == {"A": "1=2", "B": ""})
        finally:
            child.kill()


def test_exit_status_peeks_and_reaps() -> None:
    child = subprocess.Popen(["sh", "-c", "kill -TERM $$"])
    pidfd = os.pidfd_open(child.pid)
    wait_until(lambda: proctree.has_ended(pidfd))
    assert proctree.exit_status(pidfd, reap=False) == -signal.SIGTERM
    assert proctree.is_unreaped(pidfd)
    assert proctree.exit_status(pidfd) == -signal.SIGTERM
    assert not proctree.is_unreaped(pidfd)
    assert not proctree.send_signal(pidfd, signal.SIGKILL)
    child.returncode = 0
    os.close(pidfd)


@pytest.mark.slow
def test_kill_tree_takes_descendants_and_leaves_the_root_to_its_owner(
    tmp_path: Path, escapee: Callable[..., str]
) -> None:
    command = f"{escapee()} & {escapee('stop')} & sleep 600"
    child = subprocess.Popen(["sh", "-c", command], env={**os.environ, "MARK": "m1"}, start_new_session=True)
    wait_until(lambda: (tmp_path / "pids").exists() and len((tmp_path / "pids").read_text().split()) == 2)
    pidfd = os.pidfd_open(child.pid)
    assert proctree.kill_tree(child.pid, pidfd, cookie=("MARK", "m1"), limit_s=TIME_UNIT) == []
    assert child.wait() == -signal.SIGKILL
    os.close(pidfd)


def test_kill_descendants_keeps_what_it_is_told_to_keep() -> None:
    before = proctree.children_of(os.getpid())
    kept = subprocess.Popen(["sh", "-c", "sleep 600 & wait"])
    gone = subprocess.Popen(["sh", "-c", "sleep 600 & wait"])
    gone.returncode = 0
    wait_until(lambda: proctree.descendants(kept.pid) and proctree.descendants(gone.pid))
    assert proctree.kill_descendants(keep=[*before, kept.pid]) == []
    assert proctree.identity(gone.pid) is None
    assert kept.poll() is None
    pidfd = os.pidfd_open(kept.pid)
    assert proctree.kill_tree(kept.pid, pidfd, seen=proctree.family(kept.pid)) == []
    kept.wait()
    os.close(pidfd)

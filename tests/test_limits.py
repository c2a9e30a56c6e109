"""What a session's process tree may use: who is ended for using more, for which reason, and who is left alone."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from athena import Session
from athena.errors import InvalidSpec, SessionFailed
from athena.supervisors import EmbeddedSupervisor
from supervisor.limits import Limits
from supervisor.process import ExitStatus
from tests.helpers import TIME_UNIT, wait_until
from tests.limit_tools import ALL, HOG
from tests.session_fixtures import (
    Files,
    Sessions,
    background,
    files,
    is_gone,
    log,
    own_sessions,
    own_supervisor,
    result,
    sessions,
    shared_supervisor,
)
from tests.tree_fixtures import shared, yard

__all__ = ["background", "files", "own_sessions", "own_supervisor", "sessions", "shared", "shared_supervisor", "yard"]

Background = Callable[[Callable[[], Any]], Future[Any]]

MIB = 1024 * 1024
LIMIT = 160 * MIB
NEAR = 64 * MIB
"""By so much the programs of these tests tell early: what else is in their trees counts too."""
DEATH_S = 3.0
"""From crossing a memory limit to the end of the whole tree (issue: limits)."""


def bash(command: str) -> dict[str, Any]:
    return {"tool_calls": [{"name": "bash", "arguments": {"command": command}}]}


def tool(name: str, **arguments: Any) -> dict[str, Any]:
    return {"tool_calls": [{"name": name, "arguments": arguments}]}


def hog(files: Files, limit: int = LIMIT, pause_s: float = 0.01) -> str:
    """A command that allocates without end; the file ``crossed`` says when it came near the ``limit``."""
    crossing = limit - NEAR
    files.root.joinpath("hog.py").write_text(HOG)
    return f"{sys.executable} {files.path('hog.py')} {files.path('crossed')} {crossing} {pause_s}"


def reason_of(monitor: Any) -> Any:
    down = monitor.wait(60 * TIME_UNIT)
    assert down is not None
    return down.reason


def resumed_because(session: Session) -> list[Any]:
    return [event.data["reason"] for event in log(session.session_id) if event.event == "turn_resumed"]


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_command_that_allocates_without_end_is_the_end_of_its_session_alone_and_the_turn_goes_on(
    sessions: Sessions, files: Files, background: Background
) -> None:
    session = sessions.start([bash(hog(files)), "next"], phase="trusted", max_memory=LIMIT)
    other = sessions.start(["fine"], max_memory=LIMIT)
    monitor, answer = session.monitor(), background(lambda: session.send_message("go"))
    assert reason_of(monitor) == {"limit": "memory"}
    crossed, pid = files.wait_lines("crossed")[0].split()
    assert time.monotonic() - float(crossed) < DEATH_S * TIME_UNIT
    assert is_gone(int(pid))
    assert result(answer).text == "next"
    assert resumed_because(session) == [{"limit": "memory"}]
    assert session.status()["last_reason"] == {"limit": "memory"}
    assert session.status()["incarnation"] == 2
    assert other.send_message("go").text == "fine"
    assert other.status()["incarnation"] == 1


@pytest.mark.slow
def test_a_tool_in_the_sessions_own_process_counts_and_a_turn_that_always_takes_too_much_ends(
    sessions: Sessions, files: Files
) -> None:
    step = tool("allocate", effects=files.path("effects"))
    session = sessions.start([step, "next"], tools=ALL, max_memory=LIMIT, max_restarts=10)
    assert session.send_message("go", timeout=60 * TIME_UNIT).finish_reason == "error_crashed"
    assert len(files.lines("effects")) == 3
    assert resumed_because(session) == [{"limit": "memory"}] * 3
    assert session.send_message("and now").text == "next"


@pytest.mark.slow
def test_memory_is_that_of_all_processes_together(sessions: Sessions, files: Files) -> None:
    part = f"{sys.executable} -c 'import time; held = bytes(1) * {60 * MIB}; time.sleep(1000)'"
    session = sessions.start([bash(f"{part} & {part} & {part} & wait"), "next"], phase="trusted", max_memory=LIMIT)
    assert session.send_message("go", timeout=60 * TIME_UNIT).text == "next"
    assert resumed_because(session) == [{"limit": "memory"}]


@pytest.mark.slow
def test_pages_that_processes_share_count_once(sessions: Sessions, files: Files, background: Background) -> None:
    program = f"""
import os, sys, time
held = bytearray(b"x") * {100 * MIB}
for _ in range(4):
    if os.fork() == 0:
        break
time.sleep(1000)
"""
    files.root.joinpath("fork.py").write_text(program)
    step = bash(f"{sys.executable} {files.path('fork.py')} & while [ ! -e {files.path('gate')} ]; do sleep 0.05; done")
    session = sessions.start([step, "next"], phase="trusted", max_memory=LIMIT)
    answer = background(lambda: session.send_message("go"))

    def forks_count() -> bool:
        """All are seen, and old enough to count; each has its part of the 100 MiB."""
        found = session.status()["limits"]
        return (found["processes"]["used"] or 0) >= 7 and found["memory"]["used"] > 100 * MIB

    wait_until(forks_count, 20)
    assert session.status()["limits"]["memory"]["used"] < LIMIT
    files.open("gate")
    assert result(answer).text == "next"
    assert session.status()["incarnation"] == 1


@pytest.mark.slow
def test_what_a_tool_left_behind_counts_after_its_turn(sessions: Sessions, files: Files) -> None:
    step = tool("leave", effects=files.path("crossed"), crossing=LIMIT - NEAR)
    session = sessions.start([step, "next"], tools=ALL, max_memory=LIMIT)
    monitor = session.monitor()
    assert session.send_message("go").text == "next"
    assert reason_of(monitor) == {"limit": "memory"}
    crossed, pid = files.wait_lines("crossed")[0].split()
    assert time.monotonic() - float(crossed) < DEATH_S * TIME_UNIT
    assert is_gone(int(pid))
    assert session.send_message("go on").text


@pytest.mark.slow
def test_a_temporary_session_is_over_and_its_caller_is_told_the_limit(
    sessions: Sessions, files: Files, background: Background
) -> None:
    step = tool("allocate_once", effects=files.path("effects"))
    session = sessions.start([step, "next"], tools=ALL, max_memory=LIMIT, restart="temporary")
    answer = background(lambda: session.send_message("go"))
    with pytest.raises(SessionFailed) as caught:
        result(answer, 60)
    assert caught.value.reason == {"limit": "memory"}


@pytest.mark.slow
def test_a_session_of_a_tree_has_the_limit_too(yard: Any, files: Files) -> None:
    options = {"provider": "mock", "mock": [bash(hog(files)), "next"], "cwd": str(files.root), "phase": "trusted"}
    yard.start(Session.child_spec(name="agent", max_memory=LIMIT, **options))
    session = Session.attach("agent", supervisor=yard.at)
    assert session.send_message("go", timeout=60 * TIME_UNIT).text == "next"
    assert session.status()["last_reason"] == {"limit": "memory"}


def latency_s(quiet: list[Session]) -> float:
    """The median time of a call to each of them."""
    taken = []
    for session in quiet:
        began = time.perf_counter()
        session.usage()
        taken.append(time.perf_counter() - began)
    return median(taken)


@pytest.mark.slow
def test_a_hog_next_to_twenty_quiet_sessions_dies_alone_and_slows_nobody_down(
    sessions: Sessions, files: Files, background: Background
) -> None:
    quiet = [sessions.start(["fine"]) for _ in range(20)]
    hungry = sessions.start([bash(hog(files, 400 * MIB)), "next"], phase="trusted", max_memory=400 * MIB)
    before = median(latency_s(quiet) for _ in range(20))
    monitor, answer = hungry.monitor(), background(lambda: hungry.send_message("go"))
    ended = background(lambda: (reason_of(monitor), time.monotonic()))
    during = []
    while not ended.done():
        during.append(latency_s(quiet))
    reason, ended_at = ended.result()
    assert reason == {"limit": "memory"}
    assert ended_at - float(files.wait_lines("crossed")[0].split()[0]) < DEATH_S * TIME_UNIT
    assert len(during) >= 10
    assert median(during) < 2 * before
    assert result(answer).text == "next"
    assert {session.status()["incarnation"] for session in quiet} == {1}


# --- processes, files, time -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_too_many_processes_are_the_end_of_their_session(sessions: Sessions, files: Files) -> None:
    step = bash(f"for i in $(seq 40); do setsid sleep 1000 & echo $! >> {files.path('pids')}; done; wait")
    session = sessions.start([step, "next"], phase="trusted", max_processes=20)
    assert session.send_message("go", timeout=60 * TIME_UNIT).text == "next"
    assert resumed_because(session) == [{"limit": "processes"}]
    assert all(is_gone(int(pid)) for pid in files.lines("pids"))


@pytest.mark.slow
def test_as_many_processes_as_allowed_are_no_reason_to_die(sessions: Sessions) -> None:
    session = sessions.start([bash("sleep 0.6 & sleep 0.6 & wait"), "next"], phase="trusted", max_processes=4)
    assert session.send_message("go").text == "next"
    assert session.status()["incarnation"] == 1


def test_a_process_that_opens_too_many_files_gets_an_error_and_nothing_dies(sessions: Sessions) -> None:
    script = [tool("open", count=300), bash("ulimit -n; ulimit -n 5000 2>/dev/null; ulimit -Hn"), "next"]
    session = sessions.start(script, tools=[*ALL, "bash"], phase="trusted", max_files=100)
    session.send_message("go")
    found = [r.content for m in session.messages() for r in m.tool_results]
    assert found[0].startswith("Too many open files after ")
    assert "100\n" in found[1]
    assert session.status()["limits"]["files"] == {"max": 100, "by": "rlimit"}
    assert session.status()["incarnation"] == 1


@pytest.mark.slow
def test_a_turn_that_has_had_its_time_ends_and_the_next_one_runs(sessions: Sessions, background: Background) -> None:
    session = sessions.start([bash("sleep 1000"), "next"], phase="trusted", turn_timeout=1)
    monitor = session.monitor()
    first = background(lambda: session.send_message("go"))
    wait_until(lambda: session.status()["turn"])
    second = session.submit("then this")
    assert session.status()["limits"]["turn_time"]["max"] == 1
    assert reason_of(monitor) == {"limit": "turn_time"}
    assert result(first).finish_reason == "interrupted"
    assert resumed_because(session) == [{"limit": "turn_time"}]
    assert second.result(20 * TIME_UNIT).text == "next"
    assert session.status()["incarnation"] == 2


@pytest.mark.slow
def test_the_time_of_a_turn_goes_on_over_a_death(sessions: Sessions, files: Files, background: Background) -> None:
    session = sessions.start(
        [bash(f"echo x >> {files.path('began')}; sleep 1000")] * 2, phase="trusted", turn_timeout=4
    )
    began = time.monotonic()
    answer = background(lambda: session.send_message("go"))
    files.wait_lines("began")
    wait_until(lambda: session.status()["limits"]["turn_time"]["used"] > 1.5)
    os.kill(int(session.pid or 0), 9)
    assert result(answer).finish_reason == "interrupted"
    assert 3.9 < time.monotonic() - began < 5.4 * TIME_UNIT
    assert resumed_because(session) == ["killed", {"limit": "turn_time"}]


# --- the kernel's own killing -----------------------------------------------------------------------------------------


@pytest.fixture
def small_cgroup() -> Iterator[Path]:
    """A memory cgroup of 100 MiB, of whichever version there is."""
    for root, name in (
        (Path("/sys/fs/cgroup"), "memory.max"),
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
    ):
        path = root / f"athena-test-{os.getpid()}"
        try:
            path.mkdir()
        except OSError:
            continue
        if (path / name).exists():
            (path / name).write_text(str(100 * MIB))
            yield path
            wait_until(lambda path=path: not (path / "cgroup.procs").read_text())  # type: ignore[misc]  # bound early
            path.rmdir()
            return
        path.rmdir()
    pytest.skip("no memory cgroup can be made here")


@pytest.mark.slow
def test_a_process_that_the_kernel_killed_for_memory_died_of_oom(
    sessions: Sessions, files: Files, background: Background, small_cgroup: Path
) -> None:
    step = tool("allocate_once", effects=files.path("effects"))
    session = sessions.start([step, "next"], tools=ALL, max_memory="infinity")
    (small_cgroup / "cgroup.procs").write_text(str(int(session.pid or 0)))
    monitor, answer = session.monitor(), background(lambda: session.send_message("go"))
    assert reason_of(monitor) == "oom"
    assert result(answer, 60).text == "next"
    assert resumed_because(session) == ["oom"]


def test_only_a_kill_can_be_the_kernels_doing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Limits(None)  # type: ignore[arg-type]  # nobody is looked at here
    process: Any = type("Process", (), {"cgroup": None})()
    monkeypatch.setattr(found._oom, "has_risen", lambda _: True)
    assert found.was_oom(process, ExitStatus(os.CLD_KILLED, 9))
    assert not found.was_oom(process, ExitStatus(os.CLD_KILLED, 15))
    assert not found.was_oom(process, ExitStatus(os.CLD_EXITED, 9))
    process.cgroup = type("Leaf", (), {"oom_kills": 0})()  # the leaf's own count is of this tree, the kernel's of all
    assert not found.was_oom(process, ExitStatus(os.CLD_KILLED, 9))
    process.cgroup.oom_kills = 1
    assert found.was_oom(process, ExitStatus(os.CLD_KILLED, 9))
    found.close()


# --- options ----------------------------------------------------------------------------------------------------------

BAD = {
    "max_memory": [0, -1, 512, 2e9, True, "2GB", "none", [1]],
    "max_processes": [0, -1, 1.5, True, "many", "half"],
    "max_files": [0, 63, 100.0, False, "1024"],
    "turn_timeout": [0, -1, True, "never", [1]],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_a_value_that_makes_no_sense_is_refused_by_name(name: str, value: Any, sessions: Sessions) -> None:
    with pytest.raises(InvalidSpec, match=name) as caught:
        sessions.start(["hi"], **{name: value})
    assert caught.value.tag == f"invalid_{name}"
    assert "expected" in caught.value.message


def test_status_says_what_is_allowed_what_is_used_and_who_sees_to_it(sessions: Sessions) -> None:
    session = sessions.start(["hi"], max_memory="infinity", max_processes="infinity")
    found = session.status()["limits"]
    assert found["memory"]["max"] == found["processes"]["max"] == found["files"]["max"] == "infinity"
    assert found["turn_time"] == {"max": "infinity", "used": None, "by": "supervisor"}
    assert (found["memory"]["by"], found["processes"]["by"]) == ("sampled", "sampled")
    wait_until(lambda: session.status()["limits"]["processes"]["used"] == 1)
    assert 0 < session.status()["limits"]["memory"]["used"] < 200 * MIB
    half = sessions.start(["hi"]).status()["limits"]["memory"]["max"]
    assert LIMIT < half <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def test_the_supervisor_says_how_limits_are_applied(own_supervisor: EmbeddedSupervisor) -> None:
    own_supervisor.ensure()
    found = own_supervisor.pool.call("info", {}, b"", 10 * TIME_UNIT).json()
    assert found["limits"] == {"memory": "sampled", "processes": "sampled"}

"""Calls always answer: in bounded time while a turn runs, while the child is frozen, and when something has run out."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from athena import AsyncSession, Session
from athena.environment import ROOT
from athena.errors import CallTimeout, Cancelled, InvalidOption, NoProcess, NotFound
from tests.helpers import TIME_UNIT, wait_until, wait_until_async
from tests.session_fixtures import (
    ANSWER_S,
    Files,
    Sessions,
    background,
    files,
    freeze,
    kill,
    result,
    sessions,
    shared_supervisor,
)
from tests.session_tools import ALL

__all__ = ["background", "files", "sessions", "shared_supervisor"]

pytestmark = pytest.mark.slow

Background = Callable[[Callable[[], Any]], Future[Any]]

PROMPT_S = 0.2
"""Within this a live child or the supervisor answers; the median of several, so that one hiccup of the machine counts
for nothing."""

FROM_LOG_S = 0.150 + 0.2
"""Within this a frozen child's log does."""


def call(name: str, files: Files) -> dict[str, Any]:
    """A step that calls one of :mod:`tests.session_tools`."""
    return {"tool_calls": [{"name": name, "arguments": {"gate": files.path("gate"), "effects": files.path("effects")}}]}


def median_s(ask: Callable[[], object], times: int = 5) -> float:
    """How long it takes."""
    taken = []
    for _ in range(times):
        started = time.monotonic()
        ask()
        taken.append(time.monotonic() - started)
    return sorted(taken)[times // 2]


def questions(session: Session) -> dict[str, Callable[[], Any]]:
    """Every call that has an answer at once."""
    return {
        "messages": session.messages,
        "status": session.status,
        "usage": session.usage,
        "queue": session.queue,
        "pid": lambda: session.pid,
    }


@pytest.mark.parametrize("state", ["in a model call", "in a tool", "in a blocking tool", "frozen", "frozen and idle"])
def test_questions_are_answered_at_once_whatever_the_child_does(
    state: str, sessions: Sessions, files: Files, background: Background
) -> None:
    step = {"touch": files.path("effects"), "wait_for": files.path("gate"), "text": "second"}
    if "tool" in state:
        step = call("block" if "blocking" in state else "wait", files)
    session = sessions.start(["first", step, "third"], tools=ALL)
    session.send_message("one")
    if state != "frozen and idle":
        background(lambda: session.submit("two"))  # a tool that blocks at once may hold up even this answer
        files.wait_lines("effects")
        if "blocking" not in state:  # only the child can accept a message
            session.submit("three")
    stuck = "frozen" in state or "blocking" in state
    if "frozen" in state:
        freeze(session)
    limit_s = (FROM_LOG_S if stuck else PROMPT_S) * TIME_UNIT
    slow = {name: taken for name, ask in questions(session).items() if (taken := median_s(ask)) > limit_s}
    assert slow == {}
    assert [m.text for m in session.messages()][:2] == ["one", "first"]
    if state != "frozen and idle":
        assert session.messages()[2].text == "two"
        expected = [] if "blocking" in state else ["three"]
        assert [row["text"] for row in session.queue()] == expected
        assert session.status()["queue"] == len(expected)
        assert session.status()["turn"] == "t2"
    assert session.status()["state"] == "running"


def test_a_frozen_child_that_thaws_goes_on_as_if_nothing_had_been(
    sessions: Sessions, files: Files, background: Background
) -> None:
    session = sessions.start([{"touch": files.path("asked"), "wait_for": files.path("gate"), "text": "one"}, "two"])
    answer = background(lambda: session.send_message("go"))
    files.wait_lines("asked")
    pid = freeze(session)
    assert len(session.messages()) == 1
    files.open("gate")
    os.kill(pid, signal.SIGCONT)
    assert result(answer).text == "one"
    assert [m.text for m in session.messages()] == ["go", "one"]
    assert session.pid == pid


def test_a_wait_that_ends_carries_the_message_id_and_the_turn_goes_on(sessions: Sessions, files: Files) -> None:
    session = sessions.start([{"wait_for": files.path("gate"), "text": "late"}])
    with pytest.raises(CallTimeout) as caught:
        session.send_message("go", timeout=0.05)
    files.open("gate")
    again = session.send_message("go", message_id=caught.value.message_id, timeout=ANSWER_S * TIME_UNIT)
    assert again.text == "late"
    assert len(session.messages()) == 2


def test_a_wait_on_a_frozen_child_ends_in_time_and_the_message_is_not_lost(sessions: Sessions) -> None:
    session = sessions.start(["late"])
    pid = freeze(session)
    with pytest.raises(CallTimeout):
        session.send_message("go", message_id="m", timeout=0.05)
    os.kill(pid, signal.SIGCONT)
    assert session.send_message("go", message_id="m", timeout=ANSWER_S * TIME_UNIT).text == "late"
    assert len(session.messages()) == 2


def test_a_queued_message_can_be_taken_back_and_a_running_one_cannot(
    sessions: Sessions, files: Files, background: Background
) -> None:
    session = sessions.start([{"touch": files.path("asked"), "wait_for": files.path("gate")}, "second"])
    running = session.submit("one")
    files.wait_lines("asked")
    queued = session.submit("two")
    answer = background(queued.result)
    assert queued.cancel() is True
    assert queued.cancel() is False
    assert running.cancel() is False
    with pytest.raises(Cancelled):
        result(answer)
    kill(session)
    with pytest.raises(Cancelled):
        queued.result(ANSWER_S * TIME_UNIT)
    files.open("gate")
    assert running.result(ANSWER_S * TIME_UNIT).ok
    assert [m.text for m in session.messages() if m.role == "user"] == ["one"]


def test_many_threads_share_one_handle(sessions: Sessions, files: Files, background: Background) -> None:
    session = sessions.start([{"text": "x", "wait_for": files.path("gate")}], mock_loop=True)
    answers = [background(partial(session.send_message, f"{n}")) for n in range(20)]
    wait_until(lambda: session.status()["queue"] == 19)
    looks = [background(session.messages) for _ in range(15)]
    assert all(len(result(look)) == 1 for look in looks)
    files.open("gate")
    assert len({result(answer).message_id for answer in answers}) == 20
    users = [m.text for m in session.messages() if m.role == "user"]
    assert sorted(users, key=int) == [f"{n}" for n in range(20)]


def test_a_stopped_session_answers_that_it_has_no_process(sessions: Sessions) -> None:
    session = sessions.start(["x"])
    session.stop()
    for ask in (session.messages, session.status, session.queue, session.usage, session.interrupt):
        with pytest.raises(NoProcess):
            ask()
    assert session.pid is None
    with pytest.raises(NoProcess):
        session.send_message("go")
    with pytest.raises((NoProcess, NotFound)):
        session.events()


def test_a_large_answer_does_not_hold_up_a_small_one(
    sessions: Sessions, background: Background, tmp_path: Path
) -> None:
    (tmp_path / "large").write_text("y" * 100 + "\n" * 5)
    session = sessions.start(["ok"], messages=[{"role": "user", "content": "x" * 12_000_000}])
    looks = [background(session.messages) for _ in range(3)]
    assert median_s(session.status) < PROMPT_S * TIME_UNIT
    assert all(len(result(look)[0].text) == 12_000_000 for look in looks)


# --- the asyncio client -----------------------------------------------------------------------------------------------


async def test_the_asyncio_client_survives_a_kill_with_many_calls_waiting(sessions: Sessions, files: Files) -> None:
    options = sessions.options(
        [{"text": "x", "touch": files.path("asked"), "wait_for": files.path("gate")}], mock_loop=True
    )
    async with await AsyncSession.start_link(**options) as session:
        answers = [asyncio.ensure_future(session.send_message(f"{n}")) for n in range(10)]
        await wait_until_async(lambda: files.lines("asked"))
        pid = await session.pid()
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await wait_until_async(lambda: len(files.lines("asked")) == 2)
        async with asyncio.timeout(5 * TIME_UNIT):
            assert len(await session.messages()) == 1
            assert (await session.status())["incarnation"] == 2
            assert len(await session.queue()) == 9
        files.open("gate")
        async with asyncio.timeout(ANSWER_S * TIME_UNIT):
            results = await asyncio.gather(*answers)
        assert len({r.message_id for r in results}) == 10


async def test_a_cancelled_asyncio_call_leaves_the_turn_and_the_client_alone(sessions: Sessions, files: Files) -> None:
    options = sessions.options([{"text": "one", "touch": files.path("asked"), "wait_for": files.path("gate")}, "two"])
    async with await AsyncSession.start_link(**options) as session:
        waiting = asyncio.ensure_future(session.send_message("go", message_id="m"))
        await wait_until_async(lambda: files.lines("asked"))
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        files.open("gate")
        assert (await session.send_message("go", message_id="m", timeout=ANSWER_S * TIME_UNIT)).text == "one"


async def test_many_first_calls_at_once_share_one_connection(sessions: Sessions) -> None:
    starts = [AsyncSession.start_link(**sessions.options([f"answer {n}"])) for n in range(5)]
    started = await asyncio.gather(*starts)
    results = await asyncio.gather(*(session.send_message("go") for session in started))
    assert [r.text for r in results] == [f"answer {n}" for n in range(5)]
    await asyncio.gather(*(session.stop() for session in started))


# --- an ordinary user, and what has run out ---------------------------------------------------------------------------

SCENARIO = """
import os, resource, signal, sys
limit = int(sys.argv[1])
if limit:
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
from athena import Session
from athena.errors import AthenaError
from athena.supervisors import EmbeddedSupervisor

supervisor = EmbeddedSupervisor()
options = dict(supervisor=supervisor, provider="mock", cwd=os.getcwd(), start_timeout=20)
try:
    if not limit:
        session = Session.start_link(mock=["one", "two"], **options)
        print(session.send_message("x" * 3_000_000).text, flush=True)
        os.kill(session.pid, signal.SIGKILL)
        result = session.send_message("y" * 3_000_000)
        print(result.text, len(result.messages), flush=True)
    else:
        started = []
        try:
            for n in range(64):
                started.append(Session.start_link(mock=["fine", "still"], **options))
        except (AthenaError, OSError) as error:
            print("error", type(error).__name__, error, flush=True)
        else:
            print("no error", flush=True)
        for one in started[:3]:
            print(one.send_message("go", timeout=30).text, flush=True)
        started[0].stop()
        print(started[1].send_message("go", timeout=30).text, flush=True)
finally:
    supervisor.stop()
print("end", flush=True)
"""


def run_scenario(cwd: Path, limit: int, prefix: list[str]) -> list[str]:
    """What the program printed, without its errors' texts."""
    script = cwd / "scenario.py"
    script.write_text(SCENARIO)
    done = subprocess.run(
        [*prefix, sys.executable, str(script), str(limit)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "ATHENA_HOME": str(cwd / "h")},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def test_with_few_descriptors_a_start_too_many_is_a_clear_error_and_the_others_live(tmp_path: Path) -> None:
    lines = run_scenario(tmp_path, 64, [])
    assert lines[0].startswith("error"), lines
    assert any(word in lines[0].lower() for word in ("open files", "descriptor")), lines
    assert lines[1:] == ["fine", "fine", "fine", "still", "end"]


USER = 54_321
"""Nobody has this number, so nobody's limits are touched."""

ORDINARY = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
READER = [*ORDINARY, "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
"""The same, where the interpreter is in root's home: may read everything, and write and exceed no more than others."""

CAPPED = ["setpriv", "--bounding-set=-sys_resource,-sys_admin"]
"""Root without the rights that exempt it from the limit on pipe pages."""


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root, to give up rights")
@pytest.mark.parametrize("prefix", [ORDINARY, CAPPED], ids=["an ordinary user", "root without large pipes"])
def test_a_session_runs_and_resumes_with_the_smallest_pipes_that_the_kernel_gives(prefix: list[str]) -> None:
    twice = "import subprocess, sys; subprocess.run([sys.executable, '-c', ''], check=True)"  # a first exec still may
    runs = [
        p for p in (prefix, READER) if subprocess.run([*p, sys.executable, "-c", twice], check=False).returncode == 0
    ]
    prefix = runs[0]
    with tempfile.TemporaryDirectory(prefix="at-user-") as name:
        home = Path(name)
        if prefix is not CAPPED:
            os.chown(home, USER, USER)
        with PipePagesUsedUp(prefix, home):
            lines = run_scenario(home, 0, prefix)
    assert lines == ["one", "two 4", "end"]


HOLD_PIPES = """
import fcntl, os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (hard := resource.getrlimit(resource.RLIMIT_NOFILE)[1], hard))
size, pipes = 1 << 16, []
while size > 8192 and len(pipes) < 4000:
    pipes.append(os.pipe())
    size = fcntl.fcntl(pipes[-1][0], fcntl.F_GETPIPE_SZ)
print(size, flush=True)
sys.stdin.read()
"""


class PipePagesUsedUp:
    """Another process of the user holds so many pipe pages that each further pipe gets the least the kernel gives."""

    def __init__(self, prefix: list[str], cwd: Path) -> None:
        self._process = subprocess.Popen(
            [*prefix, sys.executable, "-I", "-S", "-c", HOLD_PIPES],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=cwd,
            text=True,
        )

    def __enter__(self) -> None:
        assert self._process.stdout is not None
        if (size := int(self._process.stdout.readline())) > 8192:
            self.__exit__()
            pytest.skip(f"pipes are still {size} bytes: this kernel or its limits don't shrink them")

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=10 * TIME_UNIT)


def test_an_illegal_option_is_an_error_at_the_call(sessions: Sessions) -> None:
    session = sessions.start(["x"])
    with pytest.raises(InvalidOption, match="temperature"):
        session.send_message("go", temperature=9.0)
    assert session.send_message("go").text == "x"

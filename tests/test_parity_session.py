"""Rows S1 to S21 of the parity table (docs/parity.md): what a session of ExAthena does wrong, ours must not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from athena import Event, Session, StreamDelta
from athena.environment import ROOT
from athena.errors import AlreadyStarted, InvalidOption, LogLocked
from athena.supervisors import EmbeddedSupervisor
from athena.testing import FakeOpenAI
from tests.engine import calls
from tests.helpers import TIME_UNIT, wait_until
from tests.session_fixtures import Files, Sessions, is_gone, kill, log, result, wait_nothing_below
from tests.session_fixtures import background as background
from tests.session_fixtures import files as files
from tests.session_fixtures import own_sessions as own_sessions
from tests.session_fixtures import own_supervisor as own_supervisor
from tests.session_fixtures import sessions as sessions
from tests.session_fixtures import shared_supervisor as shared_supervisor


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def wait_gone(pids: list[int]) -> None:
    wait_until(lambda: all(is_gone(pid) for pid in pids), 10)


def bash(command: str) -> dict[str, Any]:
    return calls(("bash", {"command": command}))


def test_s1_every_call_is_answered_and_a_stop_is_bounded_while_a_turn_runs(sessions: Sessions, files: Files) -> None:
    session = sessions.start([{"wait_for": files.path("never"), "touch": files.path("begun")}])
    running, waiting = session.submit("a"), session.submit("b", message_id="m2")
    files.wait_lines("begun")
    started = time.monotonic()
    assert [m.text for m in session.messages()] == ["a"]
    assert (session.status()["turn"], session.status()["queue"]) == ("t1", 1)
    assert [row["message_id"] for row in session.queue()] == ["m2"]
    assert session.session_id
    assert session.usage().total_tokens == 0
    assert waiting.cancel()
    assert session.interrupt()
    assert running.result().finish_reason == "interrupted"
    session.submit("c")
    session.stop()
    assert time.monotonic() - started < 4 * TIME_UNIT  # ExAthena: 5 s for each call, and no end for stop


def test_s2_what_was_done_before_a_kill_in_a_turn_is_kept_and_not_done_again(sessions: Sessions, files: Files) -> None:
    effect = files.path("effects")
    script = [
        bash(f"echo x >> {effect}"),
        {"text": "after", "wait_for": files.path("go"), "touch": files.path("second")},
    ]
    session = sessions.start(script, phase="trusted")
    turn = session.submit("do it")
    files.wait_lines("second")
    kill(session)
    kinds = [e.event for e in log(session.session_id)]
    assert [k for k in kinds if k in ("assistant_message", "tool_call", "tool_result")] == [
        "assistant_message", "tool_call", "tool_result",
    ]  # fmt: skip
    files.open("go")
    result = turn.result()
    assert (result.text, result.tool_calls_made) == ("after", 1)
    assert files.lines("effects") == ["x"]


def test_s3_each_event_carries_the_time_it_happened(sessions: Sessions, files: Files) -> None:
    session = sessions.start([calls("glob"), {"text": "done", "wait_for": files.path("go"), "touch": files.path("at")}])
    turn = session.submit("x")
    files.wait_lines("at")
    between = now()
    files.open("go")
    turn.result()
    times = {e.event: e.ts for e in log(session.session_id)}
    assert times["user_message"] <= times["tool_call"] <= times["tool_result"] <= between <= times["turn_end"]
    assert times["tool_result"] != times["turn_end"]


def test_s6_a_restarted_session_has_its_id_its_name_and_its_memory(sessions: Sessions) -> None:
    session = sessions.start(["one", "two", "three"], name="elephant")
    session.send_message("a")
    before = session.session_id
    kill(session)
    assert [m.text for m in session.send_message("b").messages] == ["a", "one", "b", "two"]
    assert session.session_id == before
    assert Session.attach("elephant", supervisor=sessions.supervisor).session_id == before
    session.stop()
    again = sessions.start(session_id=before, provider=None)  # the id alone: the log knows the rest
    assert [m.text for m in again.send_message("c").messages][-2:] == ["c", "three"]


def test_s7_what_is_wrong_with_the_options_is_known_at_the_start(sessions: Sessions) -> None:
    for wrong in ({"provider": "nobody"}, {"provider": "tests.parity_parts:nothing"}, {"tools": ["nothing"]}):
        with pytest.raises(InvalidOption):
            sessions.start(**wrong)


def test_s7_an_exception_in_a_provider_or_a_tool_ends_no_session(sessions: Sessions) -> None:
    session = sessions.start(provider="tests.parity_parts:moody", tools=["tests.parity_parts:RAISE"])
    pid = session.pid
    assert session.send_message("hello").text == "heard hello"
    for kind in ("KeyError", "RuntimeError"):
        result = session.send_message(f"raise {kind}")
        assert result.finish_reason == "error_during_execution"
        assert kind in str(result.halted_reason)
    assert session.send_message("call raise").text == "heard"  # a tool's failure is the model's to read
    assert (session.pid, session.status()["incarnation"]) == (pid, 1)
    assert "the tool broke" in session.messages()[-2].tool_results[0].content


def test_s8_after_a_turn_that_was_cut_short_the_next_one_is_valid_for_a_strict_provider(
    sessions: Sessions, files: Files
) -> None:
    slow = f"touch {files.path('running')}; sleep 1000"
    with FakeOpenAI([calls(("bash", {"command": slow}), "glob"), "fine"], loop=True).in_thread() as fake:
        session = sessions.start(
            provider="openai_compatible", base_url=fake.api_url, model="fake", api_key="k", phase="trusted"
        )
        turn = session.submit("go")
        wait_until(lambda: Path(files.path("running")).exists())
        assert session.interrupt()
        assert turn.result().finish_reason == "interrupted"
        assert session.send_message("and now?").text == "fine"  # it refuses a request with an unanswered call
        history = fake.requests[-1].json["messages"]
    assert [m["role"] for m in history] == ["user", "assistant", "tool", "tool", "user"]


def test_s11_any_number_of_subscribers_get_the_deltas_and_none_holds_up_the_session(
    sessions: Sessions, files: Files, background: Callable[[Callable[[], list[Any]]], Future[list[Any]]]
) -> None:
    session = sessions.start([{"chunks": ["a", "b", "c"], "wait_for": files.path("go")}, "second"])
    with ExitStack() as stack:
        streams = [stack.enter_context(session.events(0)) for _ in range(4)]  # the last one is never read

        def follow(number: int) -> list[Any]:
            seen: list[Any] = []
            for item in streams[number]:
                seen.append(item)
                if isinstance(item, Event) and item.event == "turn_end":
                    break
            return seen

        following = [background(partial(follow, number)) for number in range(2)]
        turn = session.submit("x")
        streams[2].next(10 * TIME_UNIT)
        streams[2].close()  # one that goes away in between
        files.open("go")
        assert turn.result().text == "abc"
        for items in map(result, following):
            assert [i.seq for i in items if isinstance(i, Event)] == [1, 2, 3, 4, 5, 6]
            assert "".join(i.text for i in items if isinstance(i, StreamDelta)) == "abc"
        assert session.send_message("y").text == "second"


def test_s12_calls_usage_and_the_end_of_a_session_are_in_its_log(sessions: Sessions) -> None:
    session = sessions.start([calls("glob", "write"), {"text": "done", "usage": {"input_tokens": 7, "cost_usd": 0.5}}])
    session.send_message("x")
    session.stop()
    rows = {e.event: e.data for e in log(session.session_id)}
    assert rows["tool_call"]["name"] == "glob"
    denied = [e.data for e in log(session.session_id) if e.event == "tool_result" and e.data["status"] == "denied"]
    assert [d["code"] for d in denied] == ["no_approver"]
    assert (rows["turn_end"]["cost_usd"], rows["turn_end"]["usage"]["input_tokens"] >= 7) == (0.5, True)
    assert rows["session_end"]["reason"] == "normal"


def test_s15_reasoning_payloads_and_pins_survive_the_log(sessions: Sessions, files: Files) -> None:
    files.open("found")
    history = [{"role": "user", "content": [{"type": "text", "text": "see"}], "pin": True}]
    session = sessions.start([{**calls(("glob", {"pattern": "*"})), "thinking": "hm"}, "done"], messages=history)
    live = session.send_message("x").messages
    session.stop()
    stored = Session.resume(session.session_id)
    assert stored == list(live)
    assert stored[0].pin
    assert stored[2].reasoning == "hm"
    assert stored[3].tool_results[0].ui_payload["kind"] == "matches"


def test_s18_a_session_of_the_command_line_is_a_session() -> None:
    command = Path(ROOT, "athena", "cli")
    source = "\n".join(path.read_text() for path in command.glob("*.py"))
    assert "from athena.session import" in source or "from athena import Session" in source
    for around in ("athena.inprocess", "athena.runner", "athena.loop.step", "import arun", "import run,"):
        assert around not in source, f"the command line goes around Session by {around}"


@pytest.mark.slow
def test_s18_athena_run_leaves_a_log_that_a_session_continues(home: Path, tmp_path: Path) -> None:
    from athena.config import default_paths
    from athena.supervisors import stop_supervisor

    try:
        ended = subprocess.run(
            [sys.executable, "-m", "athena.cli", "run", "hello", "--provider", "mock"],
            env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=tmp_path, capture_output=True, text=True,
            timeout=60 * TIME_UNIT, check=False,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr
        assert "hello" in ended.stdout
        (row,) = [r for r in Session.list(supervisor="daemon")]
        with Session.start(supervisor="daemon", session_id=row["session_id"], provider="mock") as session:
            assert [m.text for m in session.messages()] == ["hello", "hello"]
            assert Session.attach(row["session_id"], supervisor="daemon").session_id == session.session_id
    finally:
        stop_supervisor(default_paths().socket, 20 * TIME_UNIT)


def test_s19_a_second_process_on_one_id_is_refused_and_told_who_has_it(
    sessions: Sessions, own_supervisor: EmbeddedSupervisor, home: Path
) -> None:
    session = sessions.start(["one"], session_id="single")
    with pytest.raises(AlreadyStarted):
        sessions.start(["one"], session_id="single")
    with pytest.raises(LogLocked) as caught:
        Session.start_link(supervisor=own_supervisor, provider="mock", session_id="single")
    assert caught.value.pid in (None, session.pid)
    assert session.send_message("x").text == "one"


def test_s20_nothing_that_a_tool_started_outlives_the_session(
    own_sessions: Sessions, own_supervisor: EmbeddedSupervisor, files: Files, home: Path, tmp_path: Path
) -> None:
    escape = f"setsid sh -c 'echo $$ >> {files.path('pids')}; trap \"\" TERM HUP; sleep 1000' & "
    script = [bash(escape * 2 + f"echo $$ >> {files.path('pids')}; sleep 1000")]
    for end in ("kill", "stop"):
        session = own_sessions.start(script, phase="trusted", restart="temporary")
        session.submit("x")
        pids = [int(line) for line in files.wait_lines("pids", 3)]
        if end == "kill":
            os.kill(int(session.pid or 0), signal.SIGKILL)
        else:
            session.stop()
        wait_gone(pids)
        Path(files.path("pids")).unlink()
    own_supervisor.stop()
    wait_nothing_below(home, tmp_path)


def test_s20_nothing_that_a_command_started_outlives_its_time_limit(sessions: Sessions, files: Files) -> None:
    command = f"setsid sh -c 'echo $$ >> {files.path('pids')}; sleep 1000' & wait"
    script = [calls(("bash", {"command": command, "timeout_ms": 300})), "done"]
    session = sessions.start(script, phase="trusted")
    assert session.send_message("x").text == "done"
    assert "timeout" in session.messages()[2].tool_results[0].content
    assert all(is_gone(int(pid)) for pid in files.wait_lines("pids"))

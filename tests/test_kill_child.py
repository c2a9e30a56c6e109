"""What ``kill -9`` of a session's process costs: nothing that was accepted, nothing done twice, no caller's answer."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from athena import Session
from athena.errors import (
    AlreadyStarted,
    Busy,
    CallTimeout,
    MessageIdConflict,
    NoProcess,
    SessionFailed,
    SessionStopped,
    StartError,
    StoreError,
)
from athena.supervisors import EmbeddedSupervisor
from athena.testing import FakeOllama, FakeOpenAI
from tests.helpers import TIME_UNIT, wait_until
from tests.session_fixtures import (
    Files,
    Sessions,
    background,
    below,
    files,
    freeze,
    is_gone,
    kill,
    kill_pid,
    kinds,
    log,
    result,
    sessions,
    shared_supervisor,
    stubborn,
    wait_nothing_below,
)
from tests.session_tools import ALL

__all__ = ["background", "files", "sessions", "shared_supervisor"]

pytestmark = pytest.mark.slow

Background = Callable[[Callable[[], Any]], Future[Any]]


def call(name: str, files: Files, *, gate: str = "gate", effects: str = "effects", **more: Any) -> dict[str, Any]:
    """A step that calls one of :mod:`tests.session_tools`."""
    arguments = {"gate": files.path(gate), "effects": files.path(effects), **more}
    return {"tool_calls": [{"name": name, "arguments": arguments}]}


def bash(command: str) -> dict[str, Any]:
    """A step that calls bash."""
    return {"tool_calls": [{"name": "bash", "arguments": {"command": command}}]}


def tool_results(session: Session) -> list[str]:
    """The text of every tool result in the history."""
    return [r.content for m in session.messages() for r in m.tool_results]


# --- two turns --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fake_class", [FakeOpenAI, FakeOllama])
def test_the_second_request_carries_the_whole_first_turn(fake_class: Any, sessions: Sessions, tmp_path: Path) -> None:
    (tmp_path / "note").write_text("what the file says")
    script = [{"tool_calls": [{"name": "read", "arguments": {"path": "note"}}]}, "first answer", "second answer"]
    provider = "openai" if fake_class is FakeOpenAI else "ollama"
    with fake_class(script).in_thread() as fake:
        base = fake.api_url if fake_class is FakeOpenAI else fake.base_url
        session = sessions.start(provider=provider, base_url=base, model="fake", api_key="k", system_prompt="be brief")
        assert session.send_message("first question").text == "first answer"
        kill(session)
        assert session.send_message("second question").text == "second answer"
        asked = [r.json["messages"] for r in fake.requests if r.method == "POST" and "messages" in (r.json or {})]
    assert [m["role"] for m in asked[-1]] == ["system", "user", "assistant", "tool", "assistant", "user"]
    assert [m["content"] for m in asked[-1] if m["role"] in ("system", "user")] == [
        "be brief", "first question", "second question",
    ]  # fmt: skip
    assert "what the file says" in asked[-1][3]["content"]
    assert asked[-1][4]["content"] == "first answer"


# --- killed while idle ------------------------------------------------------------------------------------------------


def test_an_idle_session_that_is_killed_comes_back_under_its_name_with_its_messages(sessions: Sessions) -> None:
    session = sessions.start(["one", "two"], name="phoenix")
    session.send_message("hello")
    before, old_pid, session_id = session.messages(), session.pid, session.session_id
    kill(session)
    wait_until(lambda: session.pid not in (None, old_pid))
    assert (session.name, session.session_id) == ("phoenix", session_id)
    assert session.messages() == before
    again = Session.attach("phoenix", supervisor=sessions.supervisor)
    assert again.session_id == session_id
    assert again.pid == session.pid != old_pid
    assert session.send_message("again").text == "two"
    assert session.status()["last_reason"] == "killed"
    assert session.status()["incarnation"] == 2


def test_a_call_made_right_after_the_kill_waits_for_the_next_incarnation(sessions: Sessions) -> None:
    session = sessions.start(["one", "two", "three", "four"], max_restarts=10)
    for expected in ("one", "two", "three", "four"):
        pid = session.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        assert session.send_message("go").text == expected


def test_a_monitor_tells_of_a_killed_process_exactly_once(sessions: Sessions) -> None:
    session = sessions.start(["one"])
    monitor = session.monitor()
    pid = kill(session)
    down = monitor.wait(10 * TIME_UNIT)
    assert down is not None
    assert (down.pid, down.reason) == (pid, "killed")
    assert monitor.wait(0.1) is None
    wait_until(lambda: session.pid is not None)
    second = session.monitor()
    with pytest.raises(CallTimeout):
        second.wait(0.05)  # the first death is not the second process's
    second.demonitor()


def test_a_pid_of_an_earlier_life_reaches_nobody(sessions: Sessions) -> None:
    session = sessions.start(["one"])
    stale = session.pid
    assert stale is not None
    assert Session.attach(stale, supervisor=sessions.supervisor).session_id == session.session_id
    kill(session)
    wait_until(lambda: session.pid not in (None, stale))
    with pytest.raises(NoProcess):
        Session.attach(stale, supervisor=sessions.supervisor)
    with pytest.raises(NoProcess):
        Session.attach(int(stale), supervisor=sessions.supervisor)


# --- killed in the middle of a turn -----------------------------------------------------------------------------------


def test_a_caller_gets_its_answer_once_when_the_child_dies_in_mid_stream(
    sessions: Sessions, files: Files, background: Background
) -> None:
    session = sessions.start(
        [{"text": "a long answer", "chunks": 4, "touch": files.path("asked"), "wait_before_end": files.path("gate")}]
    )
    with session.events() as events:
        answer = background(lambda: session.send_message("go"))
        item = events.next(10 * TIME_UNIT)
        while not hasattr(item, "offset"):
            item = events.next(10 * TIME_UNIT)
        kill(session)
        files.wait_lines("asked", 2)
        files.open("gate")
        assert result(answer).text == "a long answer"
    assert kinds(session.session_id).count("turn_end") == 1
    assert kinds(session.session_id).count("assistant_message") == 1
    assert kinds(session.session_id).count("turn_resumed") == 1


def test_an_interrupted_bash_is_reported_in_doubt_and_not_run_again(
    sessions: Sessions, files: Files, background: Background
) -> None:
    command = stubborn(files, then=f"echo ran >> {files.path('effects')}; sleep 1000")
    session = sessions.start([bash(command), {"text": "checked"}], phase="trusted")
    answer = background(lambda: session.send_message("go"))
    files.wait_lines("effects")
    tools = [int(pid) for pid in files.wait_lines("pids", 3)]
    kill(session)
    assert result(answer).text == "checked"
    assert files.lines("effects") == ["ran"]
    (told,) = tool_results(session)
    assert "unknown" in told
    assert [e.data["status"] for e in log(session.session_id) if e.event == "tool_result"] == ["in_doubt"]
    assert all(is_gone(pid) for pid in tools)
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in tools))


def test_the_plain_launchers_children_survive_a_kill_as_well(
    monkeypatch: pytest.MonkeyPatch, files: Files, background: Background
) -> None:
    monkeypatch.setenv("ATHENA_LAUNCHER", "plain")
    supervisor = EmbeddedSupervisor()
    try:
        command = stubborn(files, then=f"echo ran >> {files.path('effects')}; sleep 1000")
        session = Sessions(supervisor, files.root).start([bash(command), "checked"], phase="trusted")
        answer = background(lambda: session.send_message("go"))
        files.wait_lines("effects")
        tools = [int(pid) for pid in files.wait_lines("pids", 3)]
        kill(session)
        assert result(answer).text == "checked"
        assert files.lines("effects") == ["ran"]
        assert all(is_gone(pid) for pid in tools)
    finally:
        supervisor.stop()


def test_nothing_of_the_old_tree_lives_when_the_next_incarnation_begins(
    sessions: Sessions, files: Files, background: Background
) -> None:
    tool = f'trap "" TERM HUP; echo $$ >> {files.path("pids")}; while :; do sleep 0.01; done'
    steps = [bash(f"(setsid sh -c '{tool}' &)\nsleep 1000"), {"touch": files.path("asked")}]
    session = sessions.start(steps, phase="trusted")
    answer = background(lambda: session.send_message("go"))
    (pid,) = files.wait_lines("pids")
    kill(session)
    files.wait_lines("asked")
    assert is_gone(int(pid))  # the model is asked, so nothing that is older may act any more
    result(answer)


def test_an_interrupted_safe_tool_simply_runs_again(sessions: Sessions, files: Files, background: Background) -> None:
    session = sessions.start([call("wait", files, text="what was read"), "done"], tools=ALL)
    answer = background(lambda: session.send_message("go"))
    files.wait_lines("effects")
    kill(session)
    files.wait_lines("effects", 2)
    files.open("gate")
    assert result(answer).text == "done"
    assert tool_results(session) == ["what was read"]
    assert len(set(files.lines("effects"))) == 2
    assert kinds(session.session_id).count("tool_call") == 1


def test_an_interrupted_keyed_tool_runs_again_with_its_recorded_key(
    sessions: Sessions, files: Files, background: Background
) -> None:
    session = sessions.start([call("wait_keyed", files), "done"], tools=ALL)
    answer = background(lambda: session.send_message("go"))
    files.wait_lines("effects")
    kill(session)
    files.wait_lines("effects", 2)
    files.open("gate")
    assert result(answer).text == "done"
    assert len(files.lines("effects")) == 2
    assert len(set(files.lines("effects"))) == 1


def test_a_finished_effect_is_not_repeated_when_a_later_call_of_the_same_step_dies(
    sessions: Sessions, files: Files, background: Background
) -> None:
    first = bash(f"echo ran >> {files.path('first')}")["tool_calls"][0]
    second = call("wait", files)["tool_calls"][0]
    third = bash(f"echo ran >> {files.path('third')}")["tool_calls"][0]
    session = sessions.start([{"tool_calls": [first, second, third]}, "done"], tools=["bash", *ALL], phase="trusted")
    answer = background(lambda: session.send_message("go"))
    files.wait_lines("effects")
    kill(session)
    files.wait_lines("effects", 2)
    files.open("gate")
    assert result(answer).text == "done"
    assert files.lines("first") == files.lines("third") == ["ran"]
    statuses = [e.data["status"] for e in log(session.session_id) if e.event == "tool_result"]
    assert statuses == ["ok", "ok", "ok"]


@pytest.mark.parametrize("per_message", [False, True])
def test_grants_hold_after_a_restart_of_the_child(
    per_message: bool, sessions: Sessions, files: Files, background: Background
) -> None:
    effect = bash(f"echo ran >> {files.path('effects')}")
    grant: dict[str, Any] = {"phase": "trusted"}
    session = sessions.start(
        [{**effect, "wait_for": files.path("gate"), "touch": files.path("asked")}, "done"],
        **({} if per_message else grant),
    )
    answer = background(lambda: session.send_message("go", **(grant if per_message else {})))
    files.wait_lines("asked")
    kill(session)
    files.wait_lines("asked", 2)
    files.open("gate")
    assert result(answer).text == "done"
    assert files.lines("effects") == ["ran"]
    assert "trusted" not in Path(default_log(session)).read_text()


def default_log(session: Session) -> str:
    """The session's log file."""
    from athena.config import default_paths

    return str(default_paths().sessions / f"{session.session_id}.jsonl")


def test_a_grant_for_one_message_is_not_the_next_ones(sessions: Sessions, files: Files) -> None:
    effect = bash(f"echo ran >> {files.path('effects')}")
    session = sessions.start([effect, "one", effect, "two"])
    session.send_message("go", phase="trusted")
    kill(session)
    session.send_message("go")
    assert files.lines("effects") == ["ran"]
    assert [e.data["status"] for e in log(session.session_id) if e.event == "tool_result"] == ["ok", "denied"]


# --- the queue --------------------------------------------------------------------------------------------------------


def test_a_submitted_message_survives_a_kill_before_its_turn(sessions: Sessions, files: Files) -> None:
    session = sessions.start([{"text": "one", "wait_for": files.path("gate")}, "two"])
    first, second = session.submit("a"), session.submit("b")
    kill(session)
    assert [row["text"] for row in session.queue()] == ["b"]
    files.open("gate")
    assert first.result(ANSWER).text == "one"
    assert second.result(ANSWER).text == "two"


ANSWER = 20.0 * TIME_UNIT


def test_a_queue_survives_two_kills_in_its_order(sessions: Sessions, files: Files, background: Background) -> None:
    gates = [files.path(f"gate{n}") for n in range(6)]
    session = sessions.start(
        [{"text": f"answer {n}", "wait_for": gates[n], "touch": files.path("asked")} for n in range(6)]
    )
    turns = [session.submit(f"message {n}") for n in range(5)]
    blocked = background(lambda: session.send_message("message 5"))
    wait_until(lambda: len(session.queue()) == 5)
    kill(session)
    files.open("gate0")
    assert turns[0].result(ANSWER).text == "answer 0"
    files.open("gate1")
    assert turns[1].result(ANSWER).text == "answer 1"
    kill(session)
    for n in range(2, 6):
        files.open(f"gate{n}")
    assert [turn.result(ANSWER).text for turn in turns] == [f"answer {n}" for n in range(5)]
    assert result(blocked).text == "answer 5"
    users = [m.text for m in session.messages() if m.role == "user"]
    assert users == [f"message {n}" for n in range(6)]


def test_the_same_message_id_is_one_turn_over_a_kill(sessions: Sessions, files: Files, background: Background) -> None:
    session = sessions.start([{"text": "one", "wait_for": files.path("gate"), "touch": files.path("asked")}, "two"])
    first = background(lambda: session.send_message("go", message_id="m1"))
    files.wait_lines("asked")
    second = background(lambda: session.send_message("go", message_id="m1"))
    kill(session)
    files.wait_lines("asked", 2)
    files.open("gate")
    assert result(first).text == result(second).text == "one"
    kill(session)
    assert session.send_message("go", message_id="m1").text == "one"
    assert kinds(session.session_id).count("turn_start") == 1
    with pytest.raises(MessageIdConflict, match="m1"):
        session.send_message("other", message_id="m1")


def test_the_sixty_fifth_waiting_message_is_refused_and_the_others_keep_their_turns(
    sessions: Sessions, files: Files
) -> None:
    session = sessions.start([{"text": "x", "wait_for": files.path("gate")}], mock_loop=True)
    turns = [session.submit("running")]
    wait_until(lambda: session.status()["queue"] == 0 and session.status()["turn"] is not None)
    turns += [session.submit(f"{n}") for n in range(64)]
    with pytest.raises(Busy) as caught:
        session.submit("one too many")
    assert caught.value.limit == 64
    kill(session)
    with pytest.raises(Busy):
        session.submit("one too many")
    files.open("gate")
    assert turns[-1].result(ANSWER).text == "x"
    assert kinds(session.session_id).count("turn_end") == 65


# --- children that die by themselves ----------------------------------------------------------------------------------


def test_a_turn_that_brings_its_child_down_three_times_ends_as_crashed_and_the_session_lives_on(
    sessions: Sessions, files: Files
) -> None:
    session = sessions.start([call("crash", files), "fine"], tools=ALL, max_restarts=5)
    crashed = session.send_message("go")
    assert crashed.finish_reason == "error_crashed"
    assert len(files.lines("effects")) == 3
    assert session.send_message("and now").text == "fine"
    assert session.status()["state"] == "running"


def test_a_child_that_quits_in_a_tool_counts_as_crashed_too(sessions: Sessions, files: Files) -> None:
    session = sessions.start([call("quit", files), "fine"], tools=ALL, max_restarts=5)
    assert session.send_message("go").finish_reason == "error_crashed"
    assert session.status()["last_reason"] == {"exit": 3}


def test_a_tool_that_took_the_process_along_is_in_doubt_and_not_called_again(sessions: Sessions, files: Files) -> None:
    session = sessions.start([call("crash_once", files), "fine"], tools=ALL)
    assert session.send_message("go").text == "fine"
    assert len(files.lines("effects")) == 1


def test_too_many_deaths_fail_the_session_and_a_new_start_under_its_id_goes_on(
    sessions: Sessions, files: Files, background: Background
) -> None:
    session = sessions.start(["one", {"text": "two", "wait_for": files.path("gate")}], name="mortal", max_restarts=1)
    session.send_message("first")
    answer = background(lambda: session.send_message("second"))
    wait_until(lambda: session.status()["turn"] is not None)
    kill(session)
    wait_until(lambda: session.status()["incarnation"] == 2 and session.pid is not None)
    kill(session)
    with pytest.raises(SessionFailed) as caught:
        result(answer)
    assert caught.value.reason == "killed"
    status = session.status()
    assert (status["state"], status["pid"], status["last_reason"]) == ("failed", None, "killed")
    with pytest.raises(SessionFailed):
        session.send_message("third")
    files.open("gate")
    again = sessions.start(["one", "two"], name="mortal", session_id=session.session_id)
    wait_until(lambda: "turn_end" in kinds(session.session_id)[-3:])
    assert [m.text for m in again.messages()] == ["first", "one", "second", "two"]


def test_a_temporary_session_is_not_started_again(sessions: Sessions, background: Background, files: Files) -> None:
    session = sessions.start([{"wait_for": files.path("gate")}], restart="temporary")
    answer = background(lambda: session.send_message("go"))
    wait_until(lambda: session.status()["turn"] is not None)
    kill(session)
    with pytest.raises((SessionFailed, SessionStopped)) as caught:
        result(answer)
    assert caught.value.reason == "killed"
    with pytest.raises(NoProcess):
        session.send_message("more")


def test_a_transient_session_stays_down_after_a_clean_end_and_comes_back_after_a_crash(sessions: Sessions) -> None:
    clean, crashed = sessions.start(["x"]), sessions.start(["x"])
    monitors = clean.monitor(), crashed.monitor()
    kill_pid(int(clean.pid or 0), signal.SIGTERM)
    kill_pid(int(crashed.pid or 0), signal.SIGSEGV)
    downs = [monitor.wait(10 * TIME_UNIT) for monitor in monitors]
    assert [down.reason for down in downs if down] == ["shutdown", {"signal": "SIGSEGV"}]
    wait_until(lambda: crashed.pid is not None)
    assert crashed.send_message("go").text == "x"
    with pytest.raises(NoProcess):
        clean.status()


def test_a_permanent_session_comes_back_after_a_clean_end_and_not_after_stop(sessions: Sessions) -> None:
    session = sessions.start(["one", "two"], restart="permanent")
    monitor = session.monitor()
    kill_pid(int(session.pid or 0), signal.SIGTERM)
    down = monitor.wait(10 * TIME_UNIT)
    assert down is not None
    assert down.reason == "shutdown"
    assert session.send_message("go").text == "one"
    session.stop()
    with pytest.raises(NoProcess):
        session.status()


def test_a_log_that_cannot_be_written_is_an_error_at_start_and_leaves_nothing(
    sessions: Sessions, files: Files, tmp_path: Path
) -> None:
    (tmp_path / "in the way").touch()
    with pytest.raises(StoreError, match="in the way"):
        sessions.start(["x"], root=str(tmp_path / "in the way" / "logs"), session_id="unlucky")
    wait_nothing_below(tmp_path)
    assert Session.whereis("unlucky", supervisor=sessions.supervisor) is None
    assert sessions.start(["fine"], session_id="unlucky").send_message("go").text == "fine"


def test_a_tool_that_cannot_be_imported_is_an_error_at_start_that_names_it(sessions: Sessions, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere"):
        sessions.start(["x"], tools=["nowhere:TOOL"])
    wait_nothing_below(tmp_path)


def test_a_child_that_dies_while_it_starts_is_an_error_at_start(sessions: Sessions, tmp_path: Path) -> None:
    (tmp_path / "deadly.py").write_text("import os\nos._exit(7)\n")
    with pytest.raises(StartError) as caught:
        sessions.start(["x"], tools=["deadly:TOOL"], python_path=[str(tmp_path)], session_id="stillborn")
    assert caught.value.reason == {"exit": 7}
    assert Session.whereis("stillborn", supervisor=sessions.supervisor) is None
    wait_nothing_below(tmp_path)


def test_a_live_session_cannot_be_started_twice(sessions: Sessions) -> None:
    session = sessions.start(["x"], session_id="only-one")
    with pytest.raises(AlreadyStarted) as caught:
        sessions.start(["x"], session_id="only-one")
    assert repr(caught.value.pid) == repr(session.pid)
    assert session.send_message("go").text == "x"


# --- interrupts -------------------------------------------------------------------------------------------------------


def test_an_interrupt_ends_a_model_call_in_mid_stream(sessions: Sessions, files: Files, background: Background) -> None:
    session = sessions.start(
        [{"text": "abc", "touch": files.path("asked"), "wait_before_end": files.path("gate")}, "next"]
    )
    answer = background(lambda: session.send_message("go"))
    files.wait_lines("asked")
    assert session.interrupt() is True
    assert result(answer, 2).finish_reason == "interrupted"
    assert session.interrupt() is False
    assert session.status()["incarnation"] == 1
    files.open("gate")
    assert session.send_message("again").text == "abc"


def test_an_interrupt_ends_bash_with_its_whole_tree(
    sessions: Sessions, files: Files, background: Background, tmp_path: Path
) -> None:
    session = sessions.start([bash(stubborn(files)), "next"], phase="trusted")
    answer = background(lambda: session.send_message("go"))
    tools = [int(pid) for pid in files.wait_lines("pids", 3)]
    assert session.interrupt() is True
    assert result(answer, 2).finish_reason == "interrupted"
    assert not [pid for pid in tools if Path(f"/proc/{pid}").exists()]
    assert len(below(tmp_path)) == 1  # the child itself
    assert "Interrupted" in tool_results(session)[0]


@pytest.mark.parametrize("how", ["frozen", "stuck"])
def test_a_child_that_does_not_manage_an_interrupt_is_killed_and_its_next_life_records_it(
    how: str, sessions: Sessions, files: Files, background: Background
) -> None:
    step = call("wait" if how == "frozen" else "block", files)
    session = sessions.start([step, "next"], tools=ALL)
    answer = background(lambda: session.send_message("go"))
    files.wait_lines("effects")
    if how == "frozen":
        freeze(session)
    assert session.interrupt() is True
    assert result(answer).finish_reason == "interrupted"
    assert session.status()["last_reason"] == "interrupt"
    assert session.status()["incarnation"] == 2
    assert len(files.lines("effects")) == 1
    assert kinds(session.session_id).count("interrupted") == 1
    assert session.send_message("again").text == "next"


def test_an_interrupt_leaves_the_queue_alone_unless_told_to_clear_it(
    sessions: Sessions, files: Files, background: Background
) -> None:
    from athena.errors import Cancelled

    session = sessions.start(
        [{"text": "x", "touch": files.path("asked"), "wait_for": files.path("gate")}], mock_loop=True
    )
    first, second, third = (background(partial(session.send_message, f"{n}")) for n in range(3))
    wait_until(lambda: len(session.queue()) == 2)
    assert session.interrupt() is True
    wait_until(lambda: len(session.queue()) == 1)
    assert session.interrupt(clear_queue=True) is True
    ends = []
    for one in (first, second, third):
        with contextlib.suppress(Cancelled):
            ends.append(result(one).finish_reason)
    assert ends == ["interrupted", "interrupted"]
    assert session.queue() == []


# --- hangs ------------------------------------------------------------------------------------------------------------


def test_a_stuck_child_is_killed_as_hung_with_its_stacks_in_its_log_and_the_turn_goes_on(
    sessions: Sessions, files: Files, background: Background
) -> None:
    session = sessions.start([call("block_once", files), "next"], tools=ALL, hang_timeout=2)
    monitor = session.monitor()
    answer = background(lambda: session.send_message("go"))
    files.wait_lines("effects")
    down = monitor.wait(30 * TIME_UNIT)
    assert down is not None
    assert down.reason == "hung"
    assert result(answer).text == "next"
    assert len(files.lines("effects")) == 1
    dump = Path(session.status()["log_file"]).read_text()
    assert "session_tools.py" in dump
    assert "_block" in dump


def test_a_frozen_child_counts_as_hung(sessions: Sessions, files: Files, background: Background) -> None:
    session = sessions.start([{"touch": files.path("asked"), "wait_for": files.path("gate")}], hang_timeout=2)
    monitor = session.monitor()
    answer = background(lambda: session.send_message("go"))
    files.wait_lines("asked")
    freeze(session)
    files.open("gate")
    down = monitor.wait(30 * TIME_UNIT)
    assert down is not None
    assert down.reason == "hung"
    assert result(answer).ok


def test_a_turn_that_hangs_every_time_ends_as_crashed(sessions: Sessions, files: Files) -> None:
    session = sessions.start([call("block", files), "next"], tools=ALL, hang_timeout=1)
    assert session.send_message("go", timeout=60 * TIME_UNIT).finish_reason == "error_crashed"
    assert len(files.lines("effects")) == 3
    assert session.send_message("and now").text == "next"


# --- stop -------------------------------------------------------------------------------------------------------------


def test_a_stop_is_polite_and_twice_is_a_no_op(sessions: Sessions) -> None:
    session = sessions.start(["x"])
    session.send_message("go")
    monitor = session.monitor()
    session.stop()
    down = monitor.wait(5 * TIME_UNIT)
    assert down is not None
    assert down.reason == "normal"
    assert kinds(session.session_id)[-1] == "session_end"
    session.stop()
    assert Session.whereis(session.session_id, supervisor=sessions.supervisor) is None


@pytest.mark.parametrize("how", ["frozen", "stuck"])
def test_a_stop_is_firm_with_a_child_that_cannot_end_itself(
    how: str, sessions: Sessions, files: Files, background: Background, tmp_path: Path
) -> None:
    session = sessions.start([call("wait" if how == "frozen" else "block", files), "x"], tools=ALL, shutdown=0.5)
    answer = background(lambda: session.send_message("go"))
    files.wait_lines("effects")
    if how == "frozen":
        freeze(session)
    background(session.stop).result(5 * TIME_UNIT)
    assert below(tmp_path) == []
    with pytest.raises(SessionStopped) as caught:
        result(answer)
    assert caught.value.reason == "normal"


def test_callers_that_wait_or_queue_are_told_that_the_session_was_stopped_and_its_tools_are_gone(
    sessions: Sessions, files: Files, background: Background, tmp_path: Path
) -> None:
    session = sessions.start([bash(stubborn(files)), "x"], phase="trusted")
    answers = [background(partial(session.send_message, f"{n}")) for n in range(3)]
    files.wait_lines("pids", 3)
    wait_until(lambda: len(session.queue()) == 2)
    session.stop()
    assert below(tmp_path) == []
    for answer in answers:
        with pytest.raises(SessionStopped):
            result(answer)


def test_a_session_that_was_stopped_in_a_turn_goes_on_with_it_when_it_is_started_again(
    sessions: Sessions, files: Files
) -> None:
    session = sessions.start([{"text": "late", "touch": files.path("asked"), "wait_for": files.path("gate")}])
    session.submit("go", message_id="m")
    files.wait_lines("asked")
    session.stop()
    files.open("gate")
    again = sessions.start(["late"], session_id=session.session_id)
    assert again.send_message("go", message_id="m").text == "late"
    assert kinds(session.session_id).count("turn_end") == 1


def test_a_session_that_was_given_messages_comes_back_with_them(sessions: Sessions) -> None:
    given = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    session = sessions.start(["not asked for: an answer is given", "again"], messages=given)
    kill(session)
    assert session.send_message("and now").text == "again"
    assert [message.text for message in session.messages()] == ["hi", "hello", "and now", "again"]
    assert session.status()["incarnation"] == 2

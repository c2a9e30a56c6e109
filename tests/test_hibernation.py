"""Sessions that sleep: no process while nothing is to be done, and nobody outside can tell but by the pid."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

import athena
from athena import Session, Supervisor
from athena.channel import Channel
from athena.config import default_paths
from athena.errors import AlreadyStarted, Busy, InvalidOption, MaxChildren, NoProcess, SessionFailed
from athena.events import Event
from athena.pid import Pid
from athena.stores.jsonl import JsonlStore
from athena.supervisors import EmbeddedSupervisor
from athena.wire import Frame
from supervisor import calls
from supervisor.calls import Calls
from supervisor.partial import Partial
from tests.helpers import wait_until
from tests.session_fixtures import (
    Files,
    Program,
    Sessions,
    background,
    daemon,
    files,
    is_gone,
    kill,
    kill_pid,
    kinds,
    program,
    result,
    sessions,
    shared_supervisor,
)
from tests.tree_fixtures import Yard, shared, yard

__all__ = ["background", "daemon", "files", "program", "sessions", "shared", "shared_supervisor", "yard"]

Background = Callable[[Callable[[], Any]], Future[Any]]

SOON_S = 0.1
"""After so much idle time the sessions of these tests hibernate."""


def wait_state(session: Session, state: str) -> None:
    """Wait until it is there."""
    wait_until(lambda: session.status()["state"] == state, 20)


def wait_asleep(session: Session) -> None:
    """Wait until it has no process."""
    wait_state(session, "hibernated")


def asleep(sessions: Sessions, mock: list[Any] | None = None, **options: Any) -> Session:
    """A session that has had one turn and hibernates."""
    session = sessions.start(mock or ["one", "two", "three", "four"], **{"hibernate_after": SOON_S, **options})
    assert session.send_message("first").text == "one"
    wait_asleep(session)
    return session


def texts(session: Session) -> list[str]:
    return [str(message.content) for message in session.messages()]


# --- asleep -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_idle_session_has_no_process_and_answers_without_one(sessions: Sessions) -> None:
    session = sessions.start(["one"], name="sleeper", hibernate_after=SOON_S)
    awake = session.pid
    assert awake is not None
    session.send_message("first")
    wait_asleep(session)
    assert is_gone(int(awake))
    at = sessions.supervisor
    asleep = session.pid
    assert asleep is not None
    assert (asleep.is_logical, asleep.serial, asleep.supervisor) == (True, awake.serial, awake.supervisor)
    assert Session.whereis("sleeper", supervisor=at) == asleep
    assert Session.attach("sleeper", supervisor=at).session_id == session.session_id
    assert Session.attach(awake, supervisor=at).session_id == session.session_id  # the pid it was given while it ran
    with pytest.raises(NoProcess):  # another supervisor's process of this serial
        Session.attach(Pid(int(awake), awake.serial, "another"), supervisor=at)
    assert athena.is_alive(awake, supervisor=at)
    (row,) = [row for row in Session.list(supervisor=at) if row["session_id"] == session.session_id]
    assert (row["state"], row["pid"]) == ("hibernated", asleep)
    assert texts(session) == ["first", "one"]
    assert session.usage().output_tokens > 0
    assert session.queue() == []
    assert session.interrupt() is False
    with session.events(0, deltas=False) as stream:
        seen = [stream.next(10) for _ in range(session.status()["events"])]
    assert [event.event for event in seen if isinstance(event, Event)] == kinds(session.session_id)
    status = session.status()
    assert (status["state"], status["incarnation"], status["last_reason"]) == ("hibernated", 1, None)
    assert {"session_end", "session_resume"}.isdisjoint(kinds(session.session_id))


def test_a_session_that_may_not_hibernate_stays(sessions: Sessions) -> None:
    session = sessions.start(["one"], hibernate_after="infinity")
    sleeper = asleep(sessions)  # as long as this takes
    assert (session.status()["state"], sleeper.status()["state"]) == ("running", "hibernated")


@pytest.mark.slow
def test_what_works_waits_or_left_something_running_does_not_sleep(sessions: Sessions, files: Files) -> None:
    step = {"tool_calls": [{"name": "leave_behind", "arguments": {}}]}
    left = sessions.start([step, "done"], tools=["tests.hibernation_parts:LEAVE_BEHIND"], hibernate_after=SOON_S)
    left.send_message("go")
    busy = sessions.start([{"wait_for": files.path("gate"), "text": "at last"}], hibernate_after=SOON_S)
    turn = busy.submit("go")
    asleep(sessions, hibernate_after=5 * SOON_S)
    assert (left.status()["state"], busy.status()["state"]) == ("running", "running")
    (tool,) = [int(one.content) for message in left.messages() for one in message.tool_results]
    kill_pid(tool)
    files.open("gate")
    assert turn.result().text == "at last"
    wait_asleep(left)
    wait_asleep(busy)
    assert busy.status()["incarnation"] == 1


def test_a_name_stays_taken(sessions: Sessions) -> None:
    session = asleep(sessions, name="mine")
    with pytest.raises(AlreadyStarted, match="hibernated") as caught:
        sessions.start(["x"], name="mine")
    assert caught.value.data["session_id"] == session.session_id


# --- awake again ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_message_wakes_it_and_the_conversation_goes_on(sessions: Sessions) -> None:
    session = asleep(sessions)
    before = session.pid
    for number, text in enumerate(["two", "three"], 2):
        answer = session.send_message(f"message {number}")
        assert (answer.text, len(answer.messages)) == (text, 2 * number)
        awake = session.pid
        assert before is not None
        assert awake is not None
        assert (awake.is_logical, awake.serial) == (False, before.serial)
        wait_asleep(session)
    status = session.status()
    assert (status["incarnation"], status["restarts_in_window"], status["last_reason"]) == (3, 0, None)
    assert kinds(session.session_id).count("turn_end") == 3
    assert {"session_end", "session_resume", "turn_resumed"}.isdisjoint(kinds(session.session_id))


@pytest.mark.slow
def test_grants_and_the_environment_outlive_a_sleep(sessions: Sessions) -> None:
    step = {"tool_calls": [{"name": "bash", "arguments": {"command": "echo $PLAIN_WORD"}}]}
    env = {**os.environ, "PLAIN_WORD": "owl"}
    session = asleep(sessions, ["one", step, "done"], phase="trusted", env=env)
    (found,) = [one for message in session.send_message("go").messages for one in message.tool_results]
    assert (found.is_error, "owl" in found.content) == (False, True)


@pytest.mark.slow
def test_the_result_of_an_old_message_is_answered_after_a_sleep(sessions: Sessions) -> None:
    session = sessions.start(["one"], hibernate_after=SOON_S)
    turn = session.submit("first", message_id="m1")
    assert turn.result().text == "one"
    wait_asleep(session)
    assert turn.result().text == "one"
    assert session.send_message("first", message_id="m1").text == "one"
    wait_asleep(session)  # although the message came again, nothing of it is left to be told


@pytest.mark.slow
def test_an_in_memory_session_sleeps_and_keeps_its_memory(sessions: Sessions) -> None:
    session = asleep(sessions, store="in_memory")
    assert texts(session) == ["first", "one"]
    assert session.status()["state"] == "hibernated"
    assert len(session.send_message("again").messages) == 4


@pytest.mark.slow
def test_a_custom_store_is_read_by_its_child_which_wakes_for_that(sessions: Sessions, files: Files) -> None:
    files.open("gate")
    options = {"root": files.path("logs"), "steer": str(files.root)}
    session = asleep(sessions, store="tests.hibernation_parts:SlowStore", store_options=options)
    assert texts(session) == ["first", "one"]
    assert session.status()["incarnation"] == 2
    assert session.interrupt() is False


@pytest.mark.slow
def test_a_monitor_survives_sleeps_and_fires_once_for_the_real_end(sessions: Sessions) -> None:
    session = asleep(sessions)
    early, late = session.monitor(), None
    for text in ("two", "three"):
        assert session.send_message("go").text == text
        late = late or session.monitor()
        wait_asleep(session)
    session.send_message("go")
    serial = (session.pid or Pid(0)).serial
    kill(session)
    for monitor in (early, late):
        assert monitor is not None
        down = monitor.wait(20)
        assert down is not None
        assert (down.reason, down.pid.serial if down.pid else None) == ("killed", serial)
        assert monitor.wait(0.1) is None
    wait_until(lambda: session.status()["state"] == "running")
    assert (session.pid or Pid(0)).serial != serial
    assert session.status()["restarts_in_window"] == 1


@pytest.mark.slow
def test_a_subscriber_sees_no_gap_over_a_sleep(sessions: Sessions) -> None:
    session = sessions.start(["one", "two", "three"], hibernate_after=SOON_S)
    with session.events(0, deltas=False) as stream:
        for number in range(3):
            session.send_message(f"{number}")
            wait_asleep(session)
        last = session.status()["events"]
        seen = [stream.next(10) for _ in range(last)]
    assert [event.seq for event in seen if isinstance(event, Event)] == list(range(1, last + 1))


# --- on the way -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_calls_that_meet_the_session_on_its_way_to_sleep_are_all_answered(sessions: Sessions) -> None:
    session = sessions.start(hibernate_after=0.001)
    for number in range(60):
        assert len(session.send_message(f"message {number}").messages) == 2 * number + 2
    assert kinds(session.session_id).count("message_accepted") == 60
    assert session.status()["restarts_in_window"] == 0


def falling_asleep(sessions: Sessions, files: Files) -> Session:
    """A session whose process was asked to end, and waits for the file ``gate``."""
    options = {"root": files.path("logs"), "steer": str(files.root)}
    session = sessions.start(
        ["one", "two"],
        store="tests.hibernation_parts:SlowStore",
        store_options=options,
        hibernate_after=SOON_S,
        shutdown=20.0,
    )
    assert session.send_message("first").text == "one"
    files.wait_lines("closing")
    assert session.status()["state"] == "hibernating"
    return session


@pytest.mark.slow
def test_a_call_waits_for_the_next_life_and_is_neither_lost_nor_failed(
    sessions: Sessions, files: Files, background: Background
) -> None:
    session = falling_asleep(sessions, files)
    first, again = background(lambda: session.send_message("go")), background(session.messages)
    assert session.status()["state"] == "hibernating"
    files.open("gate")
    assert result(first).text == "two"
    assert len(result(again)) in (2, 3, 4)
    assert session.status()["incarnation"] == 2


@pytest.mark.slow
def test_a_kill_while_it_falls_asleep_is_a_sleep_that_succeeded(sessions: Sessions, files: Files) -> None:
    session = falling_asleep(sessions, files)
    monitor = session.monitor()
    kill(session)
    wait_asleep(session)
    files.open("gate")
    assert session.send_message("go").text == "two"
    status = session.status()
    assert (status["last_reason"], status["restarts_in_window"]) == (None, 0)
    session.stop("done")
    down = monitor.wait(20)
    assert down is not None
    assert down.reason == "done"


@pytest.mark.slow
def test_a_stop_while_it_falls_asleep_ends_it_with_the_reason_of_the_stop(
    sessions: Sessions, files: Files, background: Background
) -> None:
    session = falling_asleep(sessions, files)
    monitor = session.monitor()
    stopped = background(lambda: session.stop("enough"))
    wait_state(session, "stopping")
    files.open("gate")
    result(stopped)
    down = monitor.wait(20)
    assert down is not None
    assert down.reason == "enough"


@pytest.mark.slow
def test_a_wake_that_fails_is_a_restart_that_failed(sessions: Sessions, background: Background) -> None:
    session = asleep(sessions, max_restarts=9)
    monitor = session.monitor()
    log = JsonlStore(default_paths().sessions).open(session.session_id)  # another program's lock
    try:
        with pytest.raises(SessionFailed, match="LogLocked"):
            session.send_message("go")
    finally:
        log.close()
    assert session.status()["state"].startswith("failed")
    down = monitor.wait(20)
    assert down is not None
    assert down.reason["error"] == "LogLocked"
    again = sessions.start(["one", "two"], session_id=session.session_id)
    assert again.send_message("go").text == "two"


# --- the end of a sleeper ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_stop_of_a_sleeper_ends_it_at_once_and_its_monitors_are_told(sessions: Sessions) -> None:
    session = asleep(sessions, name="stopped")
    monitor, pid = session.monitor(), session.pid
    with session.events() as stream:
        session.stop("bye")
        assert stream.next(10) is None
    down = monitor.wait(20)
    assert down is not None
    assert (down.reason, down.pid) == ("bye", pid)
    assert Session.whereis("stopped", supervisor=sessions.supervisor) is None
    with pytest.raises(NoProcess):
        session.messages()
    again = sessions.start(["one", "two"], session_id=session.session_id, name="stopped")
    assert len(again.send_message("go on").messages) == 4


@pytest.mark.slow
@pytest.mark.parametrize(("reason", "is_restarted"), [("kill", True), ("shutdown", False)])
def test_an_exit_signal_to_a_sleeper_is_its_death(sessions: Sessions, reason: str, is_restarted: bool) -> None:
    session = asleep(sessions)
    monitor, pid = session.monitor(), session.pid
    assert pid is not None
    athena.exit(pid, reason, supervisor=sessions.supervisor)
    down = monitor.wait(20)
    assert down is not None
    assert (down.reason, down.pid) == ({"kill": "killed"}.get(reason, reason), pid)
    if is_restarted:
        wait_state(session, "running")
        assert (session.pid or pid).serial != pid.serial
        assert session.status()["restarts_in_window"] == 1
    else:
        with pytest.raises(NoProcess):
            session.status()


@pytest.mark.slow
def test_a_sleeper_ends_with_the_program_it_is_linked_to(daemon: Path, program: Callable[[str], Program]) -> None:
    code = (
        "import time\nfrom athena import Session\n"
        "session = Session.start_link(provider='mock', mock=['one'], name='linked', hibernate_after=0.05)\n"
        "while session.status()['state'] != 'hibernated': time.sleep(0.005)\n"
        "print('asleep', flush=True)\ntime.sleep(1000)\n"
    )
    owner = program(code)
    assert owner.line() == "asleep"
    assert Session.whereis("linked") is not None
    owner.kill()
    wait_until(lambda: Session.whereis("linked") is None, 20)


@pytest.mark.slow
def test_a_session_of_a_tree_sleeps_and_its_tree_sees_no_exit(yard: Yard) -> None:
    spec = Session.child_spec(
        provider="mock", mock=["one", "two"], cwd=str(yard.directory), name="agent", hibernate_after=SOON_S
    )
    tree: Supervisor = yard.start(spec)
    session = Session.attach("agent", supervisor=yard.at)
    assert session.send_message("first").text == "one"
    wait_asleep(session)
    serial = (session.pid or Pid(0)).serial
    assert session.send_message("again").text == "two"
    wait_asleep(session)
    assert (session.pid or Pid(0)).serial == serial
    assert (tree.count_children().active, yard.row(tree, "agent")["restarts"]) == (1, 0)
    monitor = session.monitor()
    tree.terminate_child("agent")
    down = monitor.wait(20)
    assert down is not None
    assert down.reason == "shutdown"
    tree.restart_child("agent")
    assert len(session.messages()) == 4


# --- bounds (S17) -----------------------------------------------------------------------------------------------------


@pytest.fixture
def limited(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[tuple[Sessions, EmbeddedSupervisor]]:
    """Sessions below a supervisor with the limits of the test's parameter."""
    for name, value in request.param.items():
        monkeypatch.setenv(name, value)
    supervisor = EmbeddedSupervisor()
    yield Sessions(supervisor, tmp_path), supervisor
    supervisor.stop()


@pytest.mark.slow
@pytest.mark.parametrize("limited", [{"ATHENA_MAX_SESSIONS": "2"}], indirect=True)
def test_a_supervisor_takes_no_more_sessions_than_it_may(limited: tuple[Sessions, EmbeddedSupervisor]) -> None:
    sessions, _ = limited
    sleeper, other = asleep(sessions), sessions.start(["x"])
    with pytest.raises(MaxChildren, match="ATHENA_MAX_SESSIONS") as caught:
        sessions.start(["x"])
    assert caught.value.data["limit"] == 2
    assert sleeper.send_message("go").text == "two"  # a wake is no start
    other.stop()
    sessions.start(["x"])


@pytest.mark.slow
@pytest.mark.parametrize("limited", [{"ATHENA_MAX_LIVE": "2"}], indirect=True)
def test_above_its_limit_of_processes_the_longest_idle_one_sleeps(
    limited: tuple[Sessions, EmbeddedSupervisor],
) -> None:
    sessions, _ = limited
    awake = sessions.start(["one"], hibernate_after="infinity")
    first, second = (sessions.start(["one"]) for _ in range(2))
    wait_asleep(first)
    assert [one.status()["state"] for one in (awake, second)] == ["running", "running"]
    assert first.send_message("go").text == "one"
    wait_asleep(second)


def test_a_limit_that_is_no_count_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATHENA_MAX_SESSIONS", "many")
    with pytest.raises(InvalidOption, match="ATHENA_MAX_SESSIONS is 'many': expected an integer >= 1"):
        EmbeddedSupervisor().ensure()


def request(number: int, op: str = "send", size_bytes: int = 10) -> Frame:
    return Frame({"kind": "request", "op": op, "id": number, "message_id": f"m{number}"}, b"x" * size_bytes)


def test_the_requests_that_wait_for_one_session_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "WAITING_LIMIT", 3)
    monkeypatch.setattr(calls, "HELD_BYTES", 100)
    found, channel = Calls(), Channel(lambda _: None, lambda _: None)
    for number in range(3):
        found.add(channel, request(number))
    with pytest.raises(Busy, match="3 requests"):
        found.add(channel, request(4))
    found.drop_client(channel)
    assert len(found.sends) == 3  # their turns go on
    with pytest.raises(Busy, match="100 bytes"):
        found.add(channel, request(5, size_bytes=71))
    found.add(channel, request(6, size_bytes=70))
    found.settled("m0", "m1", "m2", "m6")
    assert not found.sends


def delta(offset: int, text: str, kind: str = "text") -> Frame:
    return Frame({"turn": "t1", "step": 1, "attempt": 1, "type": kind, "offset": offset}, text.encode())


def test_the_partial_text_of_many_small_deltas_is_kept_as_few_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("supervisor.partial.JOIN_PIECES", 8)
    partial = Partial()
    for number in range(1000):
        partial.add(delta(number, "abcdefghij"[number % 10]))
        partial.add(delta(number, "?", "thinking"))
    assert all(len(pieces) < 300 for pieces in partial.pieces.values())
    frames = {str(header["type"]): (header["offset"], body) for header, body in partial.frames("s", None)}
    assert frames == {"text": (0, b"abcdefghij" * 100), "thinking": (0, b"?" * 1000)}
    partial.add(delta(1000, "z"))
    (found,) = [body for header, body in partial.frames("s", {"text": 1000}) if header["type"] == "text"]
    assert found.endswith(b"z")


def test_a_partial_text_beyond_its_bound_loses_its_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("supervisor.partial.PARTIAL_BYTES", 100)
    partial = Partial()
    for number in range(50):
        partial.add(delta(number * 10, "0123456789"))
    assert partial.size_bytes == 100
    ((header, body),) = partial.frames("s", None)
    assert (header["offset"], body) == (400, b"0123456789" * 10)
    partial.clear()
    assert partial.size_bytes == 0

"""What an attack on the whole found, each as a test: sizes, frozen processes, orderly deaths, things left behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from athena import Session
from athena.config import default_paths
from athena.environment import COOKIE_VARIABLE
from athena.errors import CallTimeout, DiskError, InvalidOption, Refused, Unresponsive
from athena.events import encode
from athena.loop.state import fold
from athena.stores.jsonl import JsonlStore
from athena.supervisors import EmbeddedSupervisor, start_daemon
from tests.helpers import TIME_UNIT, wait_until
from tests.session_fixtures import (
    Files,
    Sessions,
    freeze,
    guard_pid,
    result,
    supervisor_pid,
)
from tests.session_fixtures import background as background
from tests.session_fixtures import files as files
from tests.session_fixtures import own_sessions as own_sessions
from tests.session_fixtures import own_supervisor as own_supervisor
from tests.session_fixtures import sessions as sessions
from tests.session_fixtures import shared_supervisor as shared_supervisor

Background = Callable[[Callable[[], Any]], Future[Any]]


@pytest.mark.slow
def test_a_history_larger_than_a_frame_is_answered(sessions: Sessions) -> None:
    session = sessions.start(["short"] * 9)
    for _ in range(3):
        answer = session.send_message("x" * 25_000_000, timeout=60 * TIME_UNIT)
    assert len(answer.messages) == 6
    assert sum(len(message.text) for message in session.messages()) > 75_000_000


def test_a_request_that_is_too_long_is_refused_where_it_is_made(sessions: Sessions) -> None:
    session = sessions.start(["short"])
    with pytest.raises(InvalidOption, match="limit is"):
        session.send_message("x" * (64 * 1024 * 1024 + 1))
    assert session.send_message("y").text == "short"


@pytest.mark.parametrize("victim", [guard_pid, supervisor_pid])
def test_an_ordered_end_that_nobody_asked_for_is_a_lost_supervisor_and_no_stop(
    victim: Callable[[EmbeddedSupervisor], int],
    own_sessions: Sessions,
    own_supervisor: EmbeddedSupervisor,
    files: Files,
    background: Background,
) -> None:
    waits = {"text": "and back", "touch": files.path("asked"), "wait_for": files.path("go")}
    session = own_sessions.start([waits])
    waiting = background(lambda: session.send_message("go"))
    files.wait_lines("asked")
    os.kill(victim(own_supervisor), signal.SIGKILL if victim is guard_pid else signal.SIGTERM)
    files.wait_lines("asked", 2)
    files.open("go")
    assert result(waiting).text == "and back"


def test_calls_to_a_frozen_supervisor_end_in_time_and_say_so(
    own_sessions: Sessions, own_supervisor: EmbeddedSupervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = own_sessions.start(["x"])
    for module in ("session", "recovery"):
        monkeypatch.setattr(f"athena.{module}.ANSWER_S", 0.2)
    pid = supervisor_pid(own_supervisor)
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(Unresponsive):
            session.status()
        with pytest.raises(CallTimeout) as caught:
            session.send_message("go", timeout=0.3, message_id="m")
        assert caught.value.message_id == "m"
    finally:
        os.kill(pid, signal.SIGCONT)
    assert session.send_message("go", message_id="m").text == "x"


def test_an_interrupt_of_an_idle_frozen_child_is_answered(sessions: Sessions) -> None:
    session = sessions.start(["x"])
    pid = freeze(session)
    try:
        with pytest.raises(Unresponsive, match="no turn"):
            session.interrupt()
    finally:
        os.kill(pid, signal.SIGCONT)
    assert session.interrupt() is False


def test_an_embedded_supervisor_that_was_killed_leaves_no_directory(
    own_sessions: Sessions, own_supervisor: EmbeddedSupervisor
) -> None:
    own_sessions.start(["x"])
    runtime = own_supervisor.path.parent
    os.kill(supervisor_pid(own_supervisor), signal.SIGKILL)
    wait_until(lambda: not runtime.exists())


def test_no_daemon_is_started_inside_a_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(COOKIE_VARIABLE, "c" * 24)
    with pytest.raises(Refused, match="inside a session"):
        start_daemon()
    assert not default_paths().socket.exists()


def test_a_turn_that_ended_is_not_run_again_when_the_line_of_its_start_is_bad() -> None:
    message: dict[str, Any] = {"message_id": "m", "text": "go"}
    accepted = encode(1, "message_accepted", message)
    ended = encode(3, "turn_end", {"message_id": "m", "finish_reason": "stop"}, "t1")
    assert not fold([accepted, ended]).queue


def test_a_log_that_was_deleted_takes_no_more_events(tmp_path: Path) -> None:
    log = JsonlStore(tmp_path).open("s")
    log.append(encode(1, "session_start", {}))
    (tmp_path / "s.jsonl").unlink()
    with pytest.raises(DiskError, match="deleted"):
        log.append(encode(2, "session_resume", {}))
    log.close()


@pytest.mark.parametrize("timeout", [float("inf"), float("nan"), -1, "5", 1e12, True])
def test_a_timeout_that_no_timer_can_hold_is_refused(timeout: Any, sessions: Sessions) -> None:
    session = sessions.start(["x"])
    with pytest.raises(InvalidOption, match="timeout"):
        session.send_message("go", timeout=timeout)


def test_names_that_no_wire_can_carry_are_refused(sessions: Sessions) -> None:
    session = sessions.start(["x"])
    with pytest.raises(InvalidOption, match="message_id"):
        session.send_message("go", message_id="\ud800")
    with pytest.raises(InvalidOption, match="names no session"):
        Session.attach(10**30)
    with pytest.raises(InvalidOption, match="reason"):
        session.stop(reason={"a": object()})

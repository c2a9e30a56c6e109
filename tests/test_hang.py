"""Who is silent is killed as hung; who is only slow is not (design 7.5)."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import TIME_UNIT, wait_until
from tests.session_fixtures import Files, Sessions, background, files, sessions, shared_supervisor
from tests.session_tools import ALL

__all__ = ["background", "files", "sessions", "shared_supervisor"]

pytestmark = pytest.mark.slow

Background = Callable[[Callable[[], Any]], "Future[Any]"]

BUSY = 40
BUSY_S = 60


def call(name: str, files: Files, effects: str = "effects") -> dict[str, Any]:
    arguments = {"gate": files.path("gate"), "effects": files.path(effects)}
    return {"tool_calls": [{"name": name, "arguments": arguments}]}


def test_a_child_that_spins_in_c_with_the_interpreters_lock_is_dumped_killed_and_restarted(
    sessions: Sessions, files: Files, background: Background
) -> None:
    session = sessions.start([call("spin_once", files), "next"], tools=ALL, hang_timeout=2)
    monitor = session.monitor()
    answer = background(lambda: session.send_message("go"))
    files.wait_lines("effects")
    down = monitor.wait(30 * TIME_UNIT)
    assert down is not None
    assert down.reason == "hung"
    assert answer.result(30 * TIME_UNIT).text == "next"
    assert session.status()["incarnation"] == 2
    dump = Path(session.status()["log_file"]).read_text()
    assert "_spin" in dump, "written by a signal handler in C, which needs no lock"


def test_a_child_that_is_frozen_before_its_turn_is_restarted_and_takes_the_message(sessions: Sessions) -> None:
    session = sessions.start(["one"], hang_timeout=2)
    monitor = session.monitor()
    os.kill(int(session.pid or 0), signal.SIGSTOP)
    assert session.send_message("go", timeout=60 * TIME_UNIT).text == "one"
    down = monitor.wait(1 * TIME_UNIT)
    assert down is not None
    assert down.reason == "hung"


def test_forty_busy_children_on_a_small_machine_are_only_slow(
    sessions: Sessions, files: Files, background: Background
) -> None:
    busy = [sessions.start([call("burn", files), "done"], tools=ALL, hang_timeout=10) for _ in range(BUSY)]
    answers = [background(lambda one=session: one.send_message("go")) for session in busy]  # type: ignore[misc]
    files.wait_lines("effects", BUSY, 60)
    until = time.monotonic() + BUSY_S
    wait_until(lambda: time.monotonic() > until, BUSY_S + 10)
    files.open("gate")
    assert [answer.result(120 * TIME_UNIT).text for answer in answers] == ["done"] * BUSY
    assert {session.status()["incarnation"] for session in busy} == {1}

"""``kill -9`` right after each acknowledgement: what was acknowledged is in the log, once, and its turn ends."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

import pytest

from athena import Session
from athena.session import Turn
from tests.helpers import wait_until
from tests.session_fixtures import Sessions, background, log, result, sessions, shared_supervisor

__all__ = ["background", "sessions", "shared_supervisor"]

Background = Callable[[Callable[[], Any]], Future[Any]]

KILLS = 1000
SESSIONS = 5


def running_pid(session: Session, other_than: int) -> int:
    """The number of its process, once it is a new one and ready."""
    found = [0]

    def is_up() -> bool:
        row = session.status()
        found[0] = int(row["pid"] or 0)
        return row["state"] == "running" and found[0] not in (0, other_than)

    wait_until(is_up, 30)
    return found[0]


def accept_and_kill(session: Session, count: int) -> list[Turn]:
    """The turns of messages whose acceptance was the last thing that the process said."""
    pid = 0
    accepted: list[Turn] = []
    for number in range(count):
        pid = running_pid(session, pid)
        accepted.append(session.submit(f"message {number}"))
        os.kill(pid, signal.SIGKILL)
    return accepted


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_of_a_thousand_acknowledged_messages_none_is_lost(sessions: Sessions, background: Background) -> None:
    started = [
        sessions.start([{"echo": True}], mock_loop=True, max_restarts=10**6, max_seconds=1, session_id=f"s{n}")
        for n in range(SESSIONS)
    ]
    runs = [background(partial(accept_and_kill, one, KILLS // SESSIONS)) for one in started]
    accepted = [result(run, 800) for run in runs]
    assert sum(map(len, accepted)) == KILLS
    for session, turns in zip(started, accepted, strict=True):
        finished = Counter(turn.result(60).finish_reason for turn in turns)
        assert set(finished) <= {"stop", "error_crashed"}
        events = log(session.session_id)
        recorded = Counter(event.data["message_id"] for event in events if event.event == "message_accepted")
        ended = Counter(event.data["message_id"] for event in events if event.event == "turn_end")
        assert recorded == ended == Counter(turn.message_id for turn in turns)
        assert [event.seq for event in events] == list(range(1, len(events) + 1))

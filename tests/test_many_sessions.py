"""Twenty sessions at once, each killed in mid-turn: every caller gets exactly one right answer."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

import pytest

from athena import AsyncSession
from tests.helpers import TIME_UNIT, wait_until_async
from tests.session_fixtures import (
    Files,
    Sessions,
    background,
    files,
    kill_pid,
    log,
    own_sessions,
    own_supervisor,
    result,
    sessions,
    shared_supervisor,
    supervisor_pid,
    wait_nothing_below,
)

__all__ = ["background", "files", "own_sessions", "own_supervisor", "sessions", "shared_supervisor"]

pytestmark = pytest.mark.slow

Background = Callable[[Callable[[], Any]], Future[Any]]

COUNT = 20
ALL_S = 60.0


def script(n: int, files: Files) -> list[Any]:
    """Session ``n``'s turn: an effect, then an answer that is held back, with text of its own."""
    command = f"echo ran >> {files.path(f'effects{n}')}; echo out {n}"
    return [
        {"tool_calls": [{"name": "bash", "arguments": {"command": command}}]},
        {"text": f"answer of {n}", "touch": files.path(f"asked{n}"), "wait_for": files.path("gate"), "chunks": 3},
    ]


def test_twenty_sessions_killed_in_mid_turn_give_each_caller_its_own_answer_once(
    sessions: Sessions, files: Files, background: Background
) -> None:
    started = [sessions.start(script(n, files), phase="trusted") for n in range(COUNT)]
    answers = [background(partial(s.send_message, f"question {n}")) for n, s in enumerate(started)]
    for n in range(COUNT):
        files.wait_lines(f"asked{n}", 1, ALL_S)
    for session in started:
        os.kill(int(session.pid or 0), signal.SIGKILL)
    for n in range(COUNT):
        files.wait_lines(f"asked{n}", 2, ALL_S)
    files.open("gate")
    for n, (session, answer) in enumerate(zip(started, answers, strict=True)):
        assert result(answer, ALL_S).text == f"answer of {n}"
        assert files.lines(f"effects{n}") == ["ran"]
        events = [event.event for event in log(session.session_id)]
        assert [events.count(kind) for kind in ("turn_start", "turn_resumed", "turn_end")] == [1, 1, 1]
        assert [m.text for m in session.messages() if m.role == "user"] == [f"question {n}"]


async def test_twenty_sessions_killed_at_any_moment_answer_the_asyncio_client_rightly(
    sessions: Sessions, files: Files
) -> None:
    files.open("gate")
    options = [sessions.options(script(n, files), phase="trusted", max_restarts=10) for n in range(COUNT)]
    started = await asyncio.gather(*(AsyncSession.start_link(**one) for one in options))
    chance = random.Random(4)
    async with asyncio.timeout(ALL_S * TIME_UNIT):
        answers = [asyncio.ensure_future(s.send_message(f"question {n}")) for n, s in enumerate(started)]
        for session in chance.sample(started, COUNT):
            pid = await session.pid()
            if pid is not None:
                os.kill(pid, signal.SIGKILL)
        results = await asyncio.gather(*answers)
    assert [r.text for r in results] == [f"answer of {n}" for n in range(COUNT)]
    for n, session in enumerate(started):
        statuses = [e.data["status"] for e in log(session.session_id) if e.event == "tool_result"]
        ran = files.lines(f"effects{n}")
        assert statuses in (["ok"], ["in_doubt"])
        assert len(ran) == 1 or (statuses == ["in_doubt"] and ran == [])
    await asyncio.gather(*(session.stop() for session in started))


async def test_twenty_sessions_survive_their_supervisor(own_sessions: Sessions, files: Files) -> None:
    options = [own_sessions.options(script(n, files), phase="trusted") for n in range(COUNT)]
    started = await asyncio.gather(*(AsyncSession.start_link(**one) for one in options))
    async with asyncio.timeout(ALL_S * TIME_UNIT):
        answers = [asyncio.ensure_future(s.send_message(f"question {n}")) for n, s in enumerate(started)]
        await wait_until_async(lambda: all(files.lines(f"asked{n}") for n in range(COUNT)), ALL_S)
        pid = await asyncio.to_thread(supervisor_pid, own_sessions.supervisor)
        os.kill(pid, signal.SIGKILL)
        await wait_until_async(lambda: all(len(files.lines(f"asked{n}")) == 2 for n in range(COUNT)), ALL_S)
        files.open("gate")
        results = await asyncio.gather(*answers)
    assert [r.text for r in results] == [f"answer of {n}" for n in range(COUNT)]
    assert all(files.lines(f"effects{n}") == ["ran"] for n in range(COUNT))


def test_twenty_sessions_with_stuck_and_frozen_children_stop_together(
    sessions: Sessions, files: Files, background: Background
) -> None:
    started = [sessions.start(script(n, files), phase="trusted", shutdown=0.5) for n in range(COUNT)]
    for n, session in enumerate(started):
        session.submit("go")
        files.wait_lines(f"asked{n}", 1, ALL_S)
        if n % 2:
            os.kill(int(session.pid or 0), signal.SIGSTOP)
    for stop in [background(session.stop) for session in started]:
        result(stop, ALL_S)
    wait_nothing_below(files.root)


def test_the_same_session_killed_twenty_times_loses_nothing(sessions: Sessions) -> None:
    session = sessions.start([f"{n}" for n in range(COUNT)], max_restarts=COUNT + 1)
    for n in range(COUNT):
        assert session.send_message(f"q{n}").text == f"{n}"
        kill_pid(int(session.pid or 0))
    assert [m.text for m in session.messages()] == [text for n in range(COUNT) for text in (f"q{n}", f"{n}")]

"""A session's process is a server, and what is its own about that: it outlives what its tools get wrong."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from athena.events import Event
from tests.session_bugs import ALL
from tests.session_fixtures import (
    Files,
    Sessions,
    files,
    sessions,
    shared_supervisor,
)

__all__ = ["files", "sessions", "shared_supervisor"]

pytestmark = pytest.mark.slow


def one_call(name: str, files: Files) -> list[Any]:
    """A turn with one call of a tool of :mod:`tests.session_bugs`."""
    return [{"tool_calls": [{"name": name, "arguments": {"done": files.path("done")}}]}, "fine"]


def test_a_task_that_a_tool_forgot_is_no_end(sessions: Sessions, files: Files) -> None:
    session = sessions.start(one_call("litter", files), tools=ALL)
    assert session.send_message("go").text == "fine"
    assert session.status()["incarnation"] == 1


@pytest.mark.parametrize("name", ["leave", "escape"])
def test_what_ends_the_engine_is_told_and_the_next_life_goes_on(sessions: Sessions, files: Files, name: str) -> None:
    session = sessions.start(one_call(name, files), tools=ALL)
    assert session.send_message("go").text == "fine"
    status = session.status()
    assert status["incarnation"] == 2
    if name == "leave":
        assert status["last_reason"] == {"exit": 1}  # sys.exit(0) in a tool is no end in order
    else:
        error = status["last_reason"]["error"]
        assert (error["type"], error["message"]) == ("Bug", "out of the engine")
        assert "session_bugs" in error["traceback"]
    with session.events(0, deltas=False) as stream:
        events = (item.event for item in stream if isinstance(item, Event))
        kinds = list(itertools.takewhile(lambda kind: kind != "turn_end", events))
    assert "turn_resumed" in kinds
    assert "session_end" not in kinds

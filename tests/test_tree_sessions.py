"""Sessions as children of supervision trees: the tree restarts them, and what belongs to the session stays."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from athena import AsyncSession, ChildSpec, Session, Supervisor
from athena.errors import (
    AlreadyStarted,
    InvalidOption,
    NoProcess,
    NotFound,
    SessionFailed,
    SessionStopped,
    StartError,
)
from athena.supervisors import EmbeddedSupervisor
from tests.helpers import wait_until
from tests.session_fixtures import Files, background, files, is_gone, kinds, own_supervisor, result
from tests.tree_fixtures import CHILD_S, Yard, counts, pid, shared, start_child, wait_gone, wait_new, yard

__all__ = ["background", "files", "own_supervisor", "shared", "yard"]

Background = Callable[[Callable[[], Any]], Future[Any]]


def agent(yard: Yard, mock: list[Any], **options: Any) -> dict[str, Any]:
    """A session's specification with defaults for tests."""
    return Session.child_spec(
        **{"provider": "mock", "mock": mock, "cwd": str(yard.directory), "name": "agent", **options}
    )


def attach(yard: Yard) -> Session:
    """The session of the test."""
    return Session.attach("agent", supervisor=yard.at)


def slow_turn(files: Files) -> list[Any]:
    """A turn whose tool waits; its start is noted in the file ``began``."""
    command = f"echo x >> {files.path('began')}; sleep 60"
    return [{"tool_calls": [{"name": "bash", "arguments": {"command": command}}]}, "I am back."]


def test_a_caller_waits_over_the_restart_by_the_tree(yard: Yard, files: Files, background: Background) -> None:
    tree = yard.start(agent(yard, slow_turn(files), phase="trusted"))
    session = attach(yard)
    old = pid(tree, "agent")
    assert session.pid is not None
    assert (session.pid, session.pid.serial) == (old, old.serial)
    answer = background(lambda: session.send_message("go"))
    files.wait_lines("began")
    os.kill(old, signal.SIGKILL)
    assert result(answer).text == "I am back."
    new = wait_new(tree, "agent", old)
    status = session.status()
    assert (status["incarnation"], status["last_reason"], status["pid"].serial) == (2, "killed", new.serial)
    assert "turn_resumed" in kinds(session.session_id)
    assert yard.row(tree, "agent")["restarts"] == 1


def test_a_restart_for_a_sibling_is_no_fault_of_the_turn_and_loses_no_subscriber(
    yard: Yard, files: Files, background: Background
) -> None:
    specs = [agent(yard, slow_turn(files), phase="trusted"), ChildSpec("other", ["sleep", "1000"])]
    tree = yard.start(*specs, strategy="one_for_all")
    session = attach(yard)
    answer = background(lambda: session.send_message("go"))
    files.wait_lines("began")
    with session.events(0, deltas=False) as stream:
        for count in range(1, 5):  # more often than a turn may bring its process down by itself
            os.kill(pid(tree, "other"), signal.SIGKILL)
            wait_until(lambda count=count: session.status()["incarnation"] > count, CHILD_S)  # type: ignore[misc]  # bound early
            wait_until(lambda: counts(tree) == [2, 2, 0, 2], CHILD_S)
        assert result(answer).text == "I am back."
        seen = []
        for item in stream:
            seen.append(item.seq)  # type: ignore[union-attr]  # events only
            if item.event == "turn_end":  # type: ignore[union-attr]
                break
    assert seen == list(range(1, len(seen) + 1))
    assert session.status()["last_reason"] == "shutdown"


def test_one_that_ends_by_itself_stays_ended_and_goes_on_when_it_is_asked_for(yard: Yard) -> None:
    tree = yard.start(agent(yard, ["one", "two"]))
    session = attach(yard)
    assert session.send_message("1").text == "one"
    session.stop()
    wait_until(lambda: counts(tree) == [1, 0, 0, 1], CHILD_S)
    with pytest.raises(NotFound):
        attach(yard)
    with pytest.raises(NoProcess):
        session.status()
    tree.restart_child("agent")
    assert attach(yard).session_id == session.session_id
    assert [message.text for message in attach(yard).messages()] == ["1", "one"]


@pytest.mark.parametrize("how", ["terminate", "give up"])
def test_who_waits_is_told_when_it_is_not_started_again(
    yard: Yard, files: Files, background: Background, how: str
) -> None:
    tree = yard.start(agent(yard, slow_turn(files), phase="trusted"), max_restarts=0)
    session, child = attach(yard), pid(tree, "agent")
    answer = background(lambda: session.send_message("go"))
    files.wait_lines("began")
    if how == "terminate":
        tree.terminate_child("agent")
    else:
        os.kill(child, signal.SIGKILL)
        wait_gone(tree)
    error = answer.exception(CHILD_S)
    assert isinstance(error, SessionStopped if how == "terminate" else SessionFailed)
    assert Session.whereis("agent", supervisor=yard.at) is None
    assert is_gone(child)


def test_a_session_that_cannot_start_leaves_nothing(yard: Yard) -> None:
    tree = yard.start()
    spec = agent(yard, ["x"], cwd=str(yard.directory / "missing"))
    with pytest.raises(StartError, match="cwd") as raised:
        tree.start_child(spec)
    assert "error" in raised.value.reason
    assert "init" not in raised.value.spec["start"]["session"]
    wait_until(lambda: Session.whereis("agent", supervisor=yard.at) is None, CHILD_S)
    (yard.directory / "missing").mkdir()
    start_child(tree, spec)
    assert attach(yard).send_message("1").text == "x"


def test_names_and_ids_are_taken_once(yard: Yard, shared: EmbeddedSupervisor) -> None:
    tree = yard.start(agent(yard, ["x"]))
    with pytest.raises(AlreadyStarted):
        Session.start_link(provider="mock", mock=["x"], name="agent", supervisor=shared)
    with pytest.raises(StartError) as raised:
        tree.start_child({**agent(yard, ["x"]), "id": "second"})
    assert raised.value.reason["error"]["type"] == "AlreadyStarted"
    assert counts(tree) == [1, 1, 0, 1]


def test_a_dynamic_supervisor_has_sessions_too(yard: Yard) -> None:
    pool = yard.start_dynamic(max_children=1)
    child = start_child(pool, agent(yard, ["one", "two"]))
    session = attach(yard)
    assert session.send_message("1").text == "one"
    os.kill(child, signal.SIGKILL)
    assert session.send_message("2").text == "two"
    assert session.status()["incarnation"] == 2
    (row,) = pool.which_children()
    pool.terminate_child(row.pid)
    assert Session.whereis("agent", supervisor=yard.at) is None


@pytest.mark.parametrize("option", [{"max_restarts": 1}, {"max_seconds": 1}, {"messages": []}, {"nonsense": 1}])
def test_options_that_a_tree_decides_are_refused(option: dict[str, Any]) -> None:
    for kind in (Session, AsyncSession):
        with pytest.raises(InvalidOption, match=next(iter(option))):
            kind.child_spec(provider="mock", mock=["x"], **option)


def test_the_specification_that_is_shown_has_no_environment_in_it(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANARY", "sk-canary-7")
    tree = yard.start(agent(yard, ["x"], api_key="sk-canary-8"))
    shown = tree.get_childspec("agent")
    assert (shown["restart"], shown["shutdown"]) == ("transient", 5.0)
    assert "sk-canary" not in repr(shown)
    assert "sk-canary" not in (yard.at._paths.logs / "embedded.log").read_text()


def test_a_session_may_have_another_id_and_restart_in_a_tree(yard: Yard) -> None:
    given = Session.child_spec(provider="mock", mock=["hi"], name="inner")
    with Supervisor.start_link([ChildSpec("outer", given, restart="temporary")], supervisor=yard.at) as tree:
        assert (tree.get_childspec("outer")["restart"], tree.which_children()[0].id) == ("temporary", "outer")
        assert Session.attach("inner", supervisor=yard.at).send_message("?").text == "hi"


def test_a_start_that_is_unknown_shows_nothing_of_what_is_in_it(yard: Yard) -> None:
    given = {"id": "x", "start": {"session": {"spec": {}, "init": "sk-canary"}}}
    with pytest.raises(StartError) as caught:
        Supervisor.start_link([given], supervisor=yard.at)
    assert "sk-canary" not in f"{caught.value} {caught.value.data}"


def test_the_end_of_the_daemon_ends_a_permanent_one_once(own_supervisor: EmbeddedSupervisor, tmp_path: Path) -> None:
    spec = Session.child_spec(provider="mock", mock=["x"], cwd=str(tmp_path), name="agent", restart="permanent")
    tree = Supervisor.start_link([spec], supervisor=own_supervisor)
    session_id, child = Session.attach("agent", supervisor=own_supervisor).session_id, pid(tree, "agent")
    own_supervisor.stop()
    assert is_gone(child)
    assert kinds(session_id) == ["session_start", "session_end"]

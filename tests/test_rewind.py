"""Checkpoints and rewinds of real sessions: what goes back, what stays, and what a kill in the middle changes."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from athena import Cursor, Session
from athena.config import default_paths
from athena.errors import Busy, InvalidOption, LogLocked, NotFound, UnsupportedStore
from athena.events import Event
from athena.points import Checkpoint
from athena.stored_branches import rewind_stored
from athena.testing import FakeOpenAI
from tests.cli_fixtures import assert_one_line, athena
from tests.helpers import wait_until
from tests.session_fixtures import (
    Files,
    Sessions,
    background,
    files,
    kill,
    kill_pid,
    kinds,
    log,
    own_sessions,
    own_supervisor,
    result,
    sessions,
    shared_supervisor,
    supervisor_pid,
)

__all__ = ["background", "files", "own_sessions", "own_supervisor", "sessions", "shared_supervisor"]


def write(path: str, content: str) -> dict[str, Any]:
    return {"tool_calls": [{"name": "write", "arguments": {"path": path, "content": content}}]}


def texts(session: Session) -> list[str]:
    return [message.text for message in session.messages()]


def bytes_of(root: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in root.iterdir() if path.is_file()}


# --- points -----------------------------------------------------------------------------------------------------------


def test_every_way_to_name_a_point_leads_there(sessions: Sessions) -> None:
    session = sessions.start(["1", "2", "3"])
    first = session.send_message("a")
    point = session.checkpoint("one")
    assert isinstance(point, Checkpoint)
    assert (point.label, point.seq) == ("one", log(session.session_id)[-1].seq)
    event = next(e for e in log(session.session_id) if e.event == "turn_end")
    ways: list[Any] = ["one", point.seq, point, Cursor(point.seq, point.uuid), event, event.seq, first.message_id]
    for way in ways:
        session.send_message("b")
        done = session.rewind(way)
        assert texts(session) == ["a", "1"], way
        assert done.to in (point.seq, event.seq)
        assert done.files == ()
    assert session.send_message("c").text == "2"  # the model is asked with the history as it is now


def test_a_checkpoint_is_a_cursor_and_moves_with_its_label(sessions: Sessions) -> None:
    session = sessions.start(["1", "2"])
    first = session.checkpoint("here")
    assert session.checkpoint("here") == first  # nothing has happened since
    session.send_message("a")
    second = session.checkpoint("here")
    assert second.seq > first.seq
    with session.events(after=first, deltas=False) as stream:
        item = next(stream)
        assert isinstance(item, Event)
        assert item.seq == first.seq + 1
    session.rewind("here")
    assert texts(session) == ["a", "1"]
    session.rewind(first)
    assert texts(session) == []
    assert session.checkpoint().label is None


def test_what_names_no_point_is_refused_and_changes_nothing(sessions: Sessions) -> None:
    session = sessions.start(["1"])
    session.checkpoint("first")
    point = session.checkpoint("second")
    before = len(log(session.session_id))
    with pytest.raises(NotFound, match="checkpoints: first, second"):
        session.rewind("third")
    with pytest.raises(NotFound, match="no event 99; its last one is"):
        session.rewind(99)
    with pytest.raises(NotFound, match="another log"):
        session.rewind(Cursor(point.seq, "another"))
    for to in (0, -1, True, None, 1.0, "", b"x", Cursor(0)):
        with pytest.raises(InvalidOption, match="'to'"):
            session.rewind(to)  # type: ignore[arg-type]
    for label in ("", "12", "a\nb", 5, "x" * 257, "\ud800"):
        with pytest.raises(InvalidOption, match="'label'"):
            session.checkpoint(label)  # type: ignore[arg-type]
    with pytest.raises(InvalidOption, match="'files'"):
        session.rewind("first", files=1)  # type: ignore[arg-type]
    assert len(log(session.session_id)) == before


# --- what goes back, and what stays -----------------------------------------------------------------------------------


def test_what_was_answered_and_spent_stays_and_the_log_only_grows(sessions: Sessions) -> None:
    session = sessions.start(["1", "2", "3"])
    session.send_message("a")
    point = session.checkpoint()
    second = session.send_message("b", message_id="mb")
    usage, lines = session.usage(), [event.line for event in log(session.session_id)]
    done = session.rewind(point)
    assert texts(session) == ["a", "1"]
    assert session.usage() == usage
    assert [event.line for event in log(session.session_id)][: len(lines)] == lines
    again = session.send_message("b", message_id="mb")
    assert (again.text, again.messages) == (second.text, second.messages)  # its one answer, with the history it had
    assert session.send_message("c").text == "2"
    session.rewind(done.undo)
    assert texts(session) == ["a", "1", "b", "2"]
    session.rewind(done.seq)
    assert texts(session) == ["a", "1"]
    assert [m.text for m in Session.resume(session.session_id)] == ["a", "1"]


def test_a_strict_endpoint_takes_what_is_sent_after_a_rewind_into_a_step(sessions: Sessions, files: Files) -> None:
    (files.root / "x").write_text("text")
    both = [{"name": "read", "arguments": {"path": "x"}}, {"name": "glob", "arguments": {"pattern": "*"}}]
    with FakeOpenAI([{"tool_calls": both}, "fine"], loop=True).in_thread() as fake:
        session = sessions.start(provider="openai_compatible", base_url=fake.api_url, model="fake", api_key="k")
        assert session.send_message("go").text == "fine"
        results = [e.seq for e in log(session.session_id) if e.event == "tool_result"]
        calls = [e.seq for e in log(session.session_id) if e.event == "tool_call"]
        for inside in (*calls, results[0]):
            session.rewind(inside)
            assert texts(session) == ["go"], inside  # a call is never cut from its result: this is the step's start
            assert session.send_message("on").ok  # the endpoint refuses a request that is not whole
        session.rewind(results[1])
        assert [m.role for m in session.messages()] == ["user", "assistant", "tool", "tool"]
        assert session.send_message("on").ok


def test_a_running_turn_is_not_gone_back_in_until_it_is_interrupted(sessions: Sessions, files: Files) -> None:
    slow = {"text": "late", "touch": files.path("asked"), "wait_for": files.path("gate")}
    session = sessions.start(["1", slow, "3"])
    session.send_message("a")
    session.checkpoint("one")
    turn = session.submit("b")
    files.wait_lines("asked")
    inside = session.checkpoint("inside")
    with pytest.raises(Busy, match="interrupt it"):
        session.rewind("one")
    with pytest.raises(NotFound, match="has not ended"):
        session.fork(at=turn.message_id)
    assert session.interrupt()
    assert turn.result().finish_reason == "interrupted"
    session.rewind("one")
    assert texts(session) == ["a", "1"]
    session.rewind(inside)
    assert texts(session) == ["a", "1", "b"]


def test_the_queue_stays_and_goes_on_from_the_new_history(sessions: Sessions, files: Files) -> None:
    slow = {"text": "late", "touch": files.path("asked"), "wait_for": files.path("gate")}
    session = sessions.start(["1", slow, "3"])
    session.send_message("a")
    point = session.checkpoint()
    first = session.submit("b")
    files.wait_lines("asked")
    second = session.submit("c")
    files.open("gate")
    first.result()
    second.result()
    session.rewind(point)
    assert second.result().text == "3"  # asked for again, it has its answer
    assert session.send_message("d").text == "late"


def test_rewinds_beside_turns_never_cut_one(
    sessions: Sessions, background: Callable[[Callable[[], Any]], Future[Any]]
) -> None:
    session = sessions.start([{"echo": True}] * 300)
    point = session.checkpoint("begin")

    def talk(name: str) -> list[str | None]:
        return [session.send_message(f"{name}{number}").text for number in range(20)]

    def go_back() -> int:
        done = 0
        for _ in range(40):
            try:
                session.rewind("begin")
                done += 1
            except Busy:
                pass
        return done

    talking, going = [background(lambda n=n: talk(n)) for n in "xy"], background(go_back)  # type: ignore[misc]
    assert [result(one) for one in talking] == [[f"{n}{number}" for number in range(20)] for n in "xy"]
    assert result(going) > 0
    state = Session.resume(session.session_id, as_="state")
    assert state.misfits == 0
    rewinds = [e for e in log(session.session_id) if e.event == "rewind"]
    open_turn = False
    for event in log(session.session_id):
        open_turn = {"turn_start": True, "turn_end": False}.get(event.event, open_turn)
        assert not (open_turn and event.event == "rewind")
    assert {e.data["to"] for e in rewinds} == {point.seq}


# --- lives ------------------------------------------------------------------------------------------------------------


def test_a_rewound_history_is_that_of_the_next_life_too(sessions: Sessions) -> None:
    session = sessions.start(["1", "2", "3"])
    session.send_message("a")
    session.checkpoint("one")
    session.send_message("b")
    session.rewind("one")
    kill(session)
    assert texts(session) == ["a", "1"]
    assert session.send_message("c").text == "2"
    session.rewind("one")
    assert texts(session) == ["a", "1"]


def test_a_hibernated_session_wakes_for_a_checkpoint_and_a_rewind(sessions: Sessions) -> None:
    session = sessions.start(["1", "2"], hibernate_after=0.05)
    session.send_message("a")

    def sleep() -> None:
        wait_until(lambda: session.status()["state"] == "hibernated", 20)

    sleep()
    session.checkpoint("one")
    session.send_message("b")
    sleep()
    session.rewind("one")
    assert texts(session) == ["a", "1"]


POINTS = (
    "appended:rewind@1", "append:file_edit@6", "appended:file_edit@6", "append:file_edit@7", "appended:file_edit@7",
    "appended:file_edit@8", "append:files_restored@1", "appended:files_restored@1",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
def test_a_kill_in_the_middle_of_a_rewind_with_files(sessions: Sessions, files: Files, point: str) -> None:
    """The caller gets its one answer, from the life that has finished it."""
    work = files.root / "work"
    work.mkdir()
    (work / "a").write_text("old a")
    script = [write("a", "1"), write("b", "1"), "one", write("a", "2"), write("b", "2"), write("c", "2"), "two"]
    env = {**os.environ, "ATHENA_FAILPOINT": f"{point}=kill; log={files.path('fired')}"}
    session = sessions.start(script, cwd=str(work), phase="accept_edits", env=env)
    session.send_message("first")
    session.checkpoint("one")
    session.send_message("second")
    assert bytes_of(work) == {"a": "2", "b": "2", "c": "2"}
    done = session.rewind("one")
    assert len(files.wait_lines("fired")) == 1
    assert [os.path.basename(f.path) + " " + f.outcome for f in done.files] == ["a restored", "b restored", "c deleted"]
    assert bytes_of(work) == {"a": "1", "b": "1"}
    assert kinds(session.session_id).count("rewind") == 1
    assert kinds(session.session_id).count("files_restored") == 1
    assert texts(session)[0] == "first"
    session.rewind(done.undo)
    assert bytes_of(work) == {"a": "2", "b": "2", "c": "2"}


@pytest.mark.slow
def test_a_rewind_that_nobody_waits_for_is_finished_by_the_next_session(own_sessions: Sessions, files: Files) -> None:
    env = {**os.environ, "ATHENA_FAILPOINT": f"appended:file_edit@3=freeze; log={files.path('fired')}"}
    work = files.root / "work"
    work.mkdir()
    session = own_sessions.start(
        [write("a", "1"), write("b", "1"), "one"], cwd=str(work), phase="accept_edits", env=env
    )
    session.checkpoint("begin")
    session.send_message("go")
    client = Session.attach(session.session_id, supervisor=own_sessions.supervisor)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "_until_answered", lambda self, call, timeout: self._target.pool.call(
            call.op, call.header, call.body, 0.5))  # fmt: skip
        with pytest.raises(TimeoutError):
            client.rewind("begin")
    files.wait_lines("fired")
    session.stop()
    assert bytes_of(work) != {}
    with own_sessions.start(mock=None, provider=None, session_id=session.session_id):
        wait_until(lambda: "files_restored" in kinds(session.session_id))
    assert bytes_of(work) == {}


@pytest.mark.slow
def test_a_rewind_goes_on_over_the_death_of_its_supervisor(
    own_sessions: Sessions, files: Files, background: Callable[[Callable[[], Any]], Future[Any]]
) -> None:
    env = {**os.environ, "ATHENA_FAILPOINT": f"appended:file_edit@3=freeze; log={files.path('fired')}"}
    work = files.root / "work"
    work.mkdir()
    script = [write("a", "1"), write("b", "1"), "one"]
    session = own_sessions.start(script, cwd=str(work), phase="accept_edits", env=env)
    session.checkpoint("begin")
    session.send_message("go")
    going = background(lambda: session.rewind("begin"))
    files.wait_lines("fired")
    kill_pid(supervisor_pid(own_sessions.supervisor))
    assert [file.outcome for file in result(going).files] == ["deleted", "deleted"]
    assert bytes_of(work) == {}
    assert kinds(session.session_id).count("rewind") == 1
    assert texts(session) == []
    session.stop()


# --- stores -----------------------------------------------------------------------------------------------------------


def test_an_in_memory_session_goes_back_but_keeps_no_files(sessions: Sessions, files: Files) -> None:
    session = sessions.start(["1", write("a", "x"), "3"], store="in_memory", phase="accept_edits")
    session.send_message("a")
    session.checkpoint("one")
    session.rewind("one")
    session.send_message("b")
    kill(session)
    with pytest.raises(UnsupportedStore, match="files=False"):
        session.rewind("one")
    assert session.rewind("one", files=False).files == ()
    assert texts(session) == ["a", "1"]
    assert (files.root / "a").read_text() == "x"


def test_without_files_they_stay_as_they_are(sessions: Sessions, files: Files) -> None:
    session = sessions.start([write("a", "x"), "1"], phase="accept_edits")
    session.checkpoint("begin")
    session.send_message("a")
    session.rewind("begin", files=False)
    assert (texts(session), (files.root / "a").read_text()) == ([], "x")


def test_a_fork_goes_back_over_its_parents_edits(sessions: Sessions, files: Files) -> None:
    (files.root / "a").write_text("old")
    parent = sessions.start([write("a", "x"), "1"], phase="accept_edits")
    parent.checkpoint("begin")
    parent.send_message("a")
    with parent.fork() as branch:
        (outcome,) = branch.rewind("begin").files
        assert outcome.outcome == "restored"
    assert (files.root / "a").read_text() == "old"
    assert "file_edit" not in kinds(parent.session_id)[kinds(parent.session_id).index("turn_end") :]


# --- the command line -------------------------------------------------------------------------------------------------


def test_the_command_on_a_stored_session(sessions: Sessions, files: Files) -> None:
    session = sessions.start(["1", write("a", "x"), "2"], phase="accept_edits")
    session.send_message("a")
    session.checkpoint("one")
    session.send_message("b")
    with pytest.raises(LogLocked):
        rewind_stored(session.session_id, "one")
    session.stop()
    target = session.session_id
    assert_one_line(athena("rewind", target, "two"), 1, "one", "two")
    assert_one_line(athena("rewind", target, "99"), 1, "no event 99")
    assert_one_line(athena("rewind", "nobody", "1"), 1, "nobody")
    ran = athena("rewind", target, "one", "--json").json
    assert [(os.path.basename(f["path"]), f["outcome"]) for f in ran["files"]] == [("a", "deleted")]
    assert not (files.root / "a").exists()
    told = athena("rewind", target, str(ran["undo"]))
    assert "restored" in told.out
    assert "undo it with" in told.err
    assert (files.root / "a").read_text() == "x"
    assert athena("rewind", target, "one", "--no-files").code == 0
    assert (files.root / "a").read_text() == "x"
    rows = athena("store", "export", target, "--format", "exathena").lines
    assert [row["data"]["message"]["content"] for row in rows if "message" in row["data"]] == ["a", "1"]
    assert default_paths().sessions.joinpath(f"{target}.jsonl").exists()

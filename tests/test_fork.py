"""Forks: sessions that go on from a point of another one, by reference, to any depth; and what becomes of a parent."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from athena import AsyncSession, Session
from athena.branches import Branches
from athena.config import default_paths
from athena.errors import (
    HasForks,
    InvalidOption,
    LogLocked,
    NotFound,
    Running,
    StoreError,
    UnsupportedStore,
)
from athena.events import Cursor, Event, encode
from athena.loop.state import fold
from athena.messages import Message
from athena.recorder import Recorder
from athena.redact import Redactor
from athena.removal import collect
from athena.stores.base import Damage
from athena.stores.forks import forks_first
from athena.stores.jsonl import JsonlStore
from athena.testing.store_contract import append_events
from supervisor.respawn import has_work
from tests.cli_fixtures import assert_one_line, athena
from tests.helpers import wait_until
from tests.session_fixtures import (
    Files,
    Sessions,
    background,
    daemon,
    files,
    kinds,
    log,
    result,
    sessions,
    shared_supervisor,
)

__all__ = ["background", "daemon", "files", "sessions", "shared_supervisor"]


@pytest.fixture
def store(tmp_path: Path) -> JsonlStore:
    return JsonlStore(tmp_path)


def make(store: JsonlStore, session_id: str, events: int = 9) -> None:
    """A stored session with a beginning and some events."""
    log = store.open(session_id)
    log.append(encode(1, "session_start", {"format": 1, "session_id": session_id, "options": {"model": "m"}}))
    append_events(log, events)
    log.close()


def append(store: JsonlStore, session_id: str, count: int) -> None:
    log = store.open(session_id)
    append_events(log, count)
    log.close()


def seqs(events: list[Event]) -> list[int]:
    return [event.seq for event in events]


# --- the log ----------------------------------------------------------------------------------------------------------


def test_a_fork_has_its_parents_events_and_goes_on_with_their_numbers(store: JsonlStore) -> None:
    make(store, "a")
    size_bytes = store.path("a").stat().st_size
    store.fork("a", "b", Cursor(6))
    append(store, "a", 5)
    append(store, "b", 3)
    whole = list(store.read("b"))
    assert whole[:6] == list(store.read("a"))[:6]
    assert [(e.seq, e.event) for e in whole[6:8]] == [(7, "fork"), (8, "user_message")]
    assert seqs(whole) == list(range(1, 11))
    assert store.path("a").stat().st_size > size_bytes > store.path("b").stat().st_size
    for after in range(12):
        assert list(store.read("b", after)) == whole[after:]
        assert store.tail("b", after) == whole[len(whole) - after :] if 0 < after <= 10 else True
    opened = store.open("b")
    assert (list(opened.read()), opened.damage, opened.last_seq) == (whole, Damage(), 10)
    opened.close()
    assert not store.inspect("b").is_damaged


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 50), st.integers(0, 4)), min_size=1, max_size=8))
def test_forks_of_forks_read_as_copies_would(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, int, int]]
) -> None:
    store = JsonlStore(tmp_path_factory.mktemp("logs"))
    make(store, "s0", 4)
    copies = {"s0": list(store.read("s0"))}
    for number, (parent, at, more) in enumerate(steps, 1):
        name, source = f"s{number}", f"s{parent % len(copies)}"
        seq = 1 + at % len(copies[source])
        store.fork(source, name, Cursor(seq, copies[source][seq - 1].uuid))
        append(store, name, more)
        append(store, source, 1)
        own = [e for e in store.read(name) if e.seq > seq]
        copies[name] = [*copies[source][:seq], *own]
        copies[source].append(store.tail(source, 1)[0])
    for name, events in copies.items():
        assert list(store.read(name)) == events
        assert list(store.read(name, len(events) // 2)) == events[len(events) // 2 :]
        assert store.tail(name, 3) == events[-3:]
        assert not store.inspect(name).is_damaged
    for name in forks_first(copies, {p: store.forks(p) for p in copies}):
        assert store.delete(name)
    assert list(store.root.iterdir()) == []


def test_a_fork_of_a_forks_past_needs_the_past_alone(store: JsonlStore) -> None:
    make(store, "a")
    store.fork("a", "b", Cursor(6))
    store.fork("b", "c", Cursor(3))
    assert (store.forks("a"), store.forks("b")) == (["b", "c"], [])
    assert store.delete("b")
    assert seqs(list(store.read("c"))) == [1, 2, 3, 4]


def test_while_another_process_writes_the_past_the_fork_itself_is_the_parent(store: JsonlStore) -> None:
    make(store, "a")
    store.fork("a", "b", Cursor(6))
    held = store.open("a")
    store.fork("b", "c", Cursor(3))
    held.close()
    assert store.forks("b") == ["c"]
    assert seqs(list(store.read("c"))) == [1, 2, 3, 4]
    assert not store.inspect("c").is_damaged


def test_the_same_fork_again_is_a_no_op_and_another_one_is_refused(store: JsonlStore) -> None:
    make(store, "a")
    make(store, "other")
    store.fork("a", "b", Cursor(6))
    line = store.path("b").read_bytes()
    store.fork("a", "b", Cursor(6))
    assert store.path("b").read_bytes() == line
    for source, seq in (("a", 5), ("other", 6)):
        with pytest.raises(StoreError, match="has a log already"):
            store.fork(source, "b", Cursor(seq))
    with pytest.raises(StoreError, match="has a log already"):
        store.fork("a", "other", Cursor(5))
    assert sorted(file.name for file in store.root.iterdir()) == ["a.jsonl", "b.jsonl", "other.jsonl"]


def test_an_unknown_point_or_parent_is_an_error_that_leaves_nothing(store: JsonlStore) -> None:
    make(store, "a")
    for at in (Cursor(11), Cursor(3, "another")):
        with pytest.raises(NotFound):
            store.fork("a", "b", at)
    with pytest.raises(NotFound):
        store.fork("nobody", "b", Cursor(1))
    held = store.open("a")
    with pytest.raises(LogLocked):
        store.fork("a", "b", Cursor(3))
    held.close()
    assert store.list() == ["a"]
    assert store.forks("a") == []


def test_a_lost_parent_is_damage_and_the_forks_own_events_are_all_there(store: JsonlStore) -> None:
    make(store, "a")
    store.fork("a", "b", Cursor(6))
    append(store, "b", 3)
    store.fork("b", "c", Cursor(9))
    store.path("a").unlink()
    assert seqs(list(store.read("b"))) == [7, 8, 9, 10]
    assert seqs(list(store.read("c"))) == [7, 8, 9, 10]
    opened = store.open("b")
    list(opened.read())
    assert opened.damage == Damage(missing_events=6, lost_parent="a")
    append_events(opened, 1)
    opened.close()
    assert store.inspect("b").damage.lost_parent == "a"
    assert store.inspect("c").is_damaged
    with pytest.raises(StoreError, match="log is gone"):
        store.materialise("b")
    assert store.repair("b").backup is None  # what is gone is in no file of ours


def test_another_log_under_the_parents_id_is_not_the_parent(store: JsonlStore) -> None:
    make(store, "a")
    store.fork("a", "b", Cursor(6))
    store.path("a").unlink()
    make(store, "a")
    assert seqs(list(store.read("b"))) == [7]
    assert store.inspect("b").damage.lost_parent == "a"


def test_a_damaged_line_of_the_parent_costs_that_event_alone(store: JsonlStore) -> None:
    for bad in (1, 4, 6):
        make(store, f"a{bad}")
        store.fork(f"a{bad}", f"b{bad}", Cursor(6))
        lines = store.path(f"a{bad}").read_bytes().split(b"\n")
        lines[bad - 1] = b"rubbish"
        store.path(f"a{bad}").write_bytes(b"\n".join(lines))
        opened = store.open(f"b{bad}")
        assert seqs(list(opened.read())) == [n for n in range(1, 8) if n != bad]
        found = opened.damage
        opened.close()
        assert (found.lost_parent, found.missing_events) == (None, 1), bad


def test_logs_that_go_on_from_each_other_are_damage_and_no_endless_loop(store: JsonlStore) -> None:
    make(store, "a")
    store.fork("a", "b", Cursor(6))
    event = next(e for e in store.read("b") if e.event == "fork")
    line = encode(7, "fork", {**event.data, "session_id": "a", "parent": "b", "log": event.uuid}).line
    store.path("a").write_bytes(line + b"\n")
    assert store.inspect("b").damage.lost_parent in ("a", "b")
    assert list(store.read("b"))
    assert list(forks_first(["a", "b"], {"a": ["b"], "b": ["a"]}))


def test_a_crash_while_a_fork_is_made_leaves_no_session(store: JsonlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    make(store, "a")

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "link", die)
    with pytest.raises(KeyboardInterrupt):
        store.fork("a", "b", Cursor(6))
    assert store.list() == ["a"]


# --- removal and materialise ------------------------------------------------------------------------------------------


def test_a_parent_is_kept_until_its_forks_are_gone_or_have_a_copy(store: JsonlStore) -> None:
    make(store, "a")
    for name in ("b", "c"):
        store.fork("a", name, Cursor(6))
    before = list(store.read("b"))
    with pytest.raises(HasForks) as error:
        store.delete("a")
    assert error.value.forks == ["b", "c"]
    assert "b, c" in error.value.message
    assert store.materialise("b") > 0
    assert store.materialise("b") == 0
    assert store.delete("c")
    assert store.delete("a")
    after = list(store.read("b"))
    assert [(e.seq, e.uuid, e.ts, e.event, e.turn) for e in after] == [
        (e.seq, e.uuid, e.ts, e.event, e.turn) for e in before
    ]
    assert fold(after).messages == fold(before).messages
    assert not store.inspect("b").is_damaged
    append(store, "b", 1)


def test_a_copy_has_the_blobs_too_and_its_own_forks_still_find_it(store: JsonlStore) -> None:
    log = store.open("a")
    log.append(encode(1, "session_start", {"format": 1, "session_id": "a"}))
    ref = log.put_blob(b"what it was", durable=True)
    before = {"mode": 420, "ref": ref, "sha256": "x"}
    log.append(encode(2, "file_edit", {"call": "c", "path": "/x", "before": before, "after": None}))
    log.close()
    store.fork("a", "b", Cursor(2))
    append(store, "b", 2)
    store.fork("b", "c", Cursor(4))
    whole = seqs(list(store.read("c")))
    assert store.materialise("b") > 0
    assert store.delete("a")
    (edit,) = fold(store.read("b")).edits
    assert edit.before is not None
    assert store.read_blob(str(edit.before.ref)) == b"what it was"
    report = store.inspect("b")
    assert (report.missing_blobs, report.orphan_blobs, report.belongs_to) == ((), (), None)
    assert seqs(list(store.read("c"))) == whole
    assert not store.inspect("c").is_damaged


def test_old_forks_go_before_their_parents_and_a_young_one_keeps_them(home: Path) -> None:
    store = JsonlStore(default_paths().sessions)
    for name in ("a", "x"):
        make(store, name)
        store.fork(name, f"{name}-fork", Cursor(6))
        store.fork(f"{name}-fork", f"{name}-leaf", Cursor(7))
    old = time.time() - 1000
    for name in store.list():
        if name != "x-leaf":
            os.utime(store.path(name), (old, old))
    for dry_run in (True, False):
        rows = {row["session_id"]: row for row in collect(500, dry_run=dry_run)}
        assert [name for name, row in rows.items() if row["removed"]] == ["a", "a-fork", "a-leaf"]
        assert rows["x-fork"]["kept"] == "it has forks: x-leaf"
    assert store.list() == ["x", "x-fork", "x-leaf"]


def test_a_log_that_was_forked_just_now_is_not_old(home: Path) -> None:
    store = JsonlStore(default_paths().sessions)
    make(store, "a")
    os.utime(store.path("a"), (1, 1))
    store.fork("a", "b", Cursor(6))
    assert store.path("a").stat().st_mtime > time.time() - 100


# --- sessions ---------------------------------------------------------------------------------------------------------


def test_a_fork_of_a_live_session_goes_its_own_way(sessions: Sessions) -> None:
    parent = sessions.start(["one", "two", "three"], phase="accept_edits", name="parent")
    first = parent.send_message("1")
    point = parent.checkpoint("after one")
    parent.send_message("2")
    with parent.fork(at="after one") as branch:
        assert branch.session_id != parent.session_id
        assert branch.name is None
        assert branch.messages() == list(first.messages)
        assert branch.usage().total_tokens == 0
        assert branch.send_message("other").text == "two"
        assert parent.send_message("3").text == "three"
        texts = [message.text for message in branch.messages()]
        assert texts == ["1", "one", "other", "two"]
        assert [message.text for message in parent.messages()] == ["1", "one", "2", "two", "3", "three"]
        assert log(branch.session_id)[: point.seq] == log(parent.session_id)[: point.seq]
        assert kinds(branch.session_id)[point.seq : point.seq + 2] == ["fork", "session_resume"]
        assert branch.send_message("1", message_id=first.message_id).text == "one"  # the history has its answers
        assert branch.status()["damage"] is None
        with branch.events(after=0, deltas=False) as stream:
            assert [next(stream) for _ in range(point.seq)] == log(parent.session_id)[: point.seq]


def test_a_fork_in_a_turn_begins_behind_the_last_whole_step(sessions: Sessions, files: Files) -> None:
    step = {"tool_calls": [{"name": "glob", "arguments": {"pattern": "*"}}]}
    slow = {"text": "late", "touch": files.path("asked"), "wait_for": files.path("gate")}
    parent = sessions.start([step, slow, "again"])
    turn = parent.submit("go", message_id="m1")
    waiting = parent.submit("behind", message_id="m2")
    files.wait_lines("asked")
    with parent.fork() as branch:
        assert [m.role for m in branch.messages()] == ["user", "assistant", "tool"]
        assert branch.queue() == []
        assert branch.status()["turn"] is None
        assert Session.resume(branch.session_id, as_="state").turn is None
        files.open("gate")
        assert branch.send_message("go", message_id="m1").ok  # it is no message of the fork's yet
        assert branch.send_message("behind", message_id="m2").ok
    assert turn.result().text == "late"
    assert waiting.result().text == "again"


def test_a_fork_has_its_parents_options_and_grants_and_its_own_over_them(sessions: Sessions, files: Files) -> None:
    write = {"tool_calls": [{"name": "write", "arguments": {"path": "a.txt", "content": "x"}}]}
    parent = sessions.start([write, "done"], phase="accept_edits", system_prompt="parent")
    with parent.fork(at=1) as same, parent.fork(at=1, phase="plan", name="planner", session_id="planner-id") as other:
        assert same.send_message("go").tool_calls_made == 1
        assert (files.root / "a.txt").exists()
        (files.root / "a.txt").unlink()
        assert other.send_message("go").messages[2].tool_results[0].is_error
        assert (other.name, other.session_id) == ("planner", "planner-id")
        assert not (files.root / "a.txt").exists()


def test_a_fork_of_a_fork_and_of_one_that_is_attached(sessions: Sessions) -> None:
    parent = sessions.start(["1", "2", "3"])
    parent.send_message("a")
    with parent.fork() as child:
        child.send_message("b")
        attached = Session.attach(child.session_id, supervisor=sessions.supervisor)
        with attached.fork(provider="mock", mock=["1", "2", "3"]) as leaf:
            assert leaf.send_message("c").text == "3"
            assert [m.text for m in leaf.messages()] == ["a", "1", "b", "2", "c", "3"]
            with pytest.raises(Running):
                Session.delete(leaf.session_id, supervisor=sessions.supervisor)
    parent.stop()
    with pytest.raises(HasForks):
        Session.delete(parent.session_id)
    for one in (leaf, child, parent):
        Session.delete(one.session_id)
    assert Session.resume(leaf.session_id) == []


def test_bad_options_and_points_leave_no_log(sessions: Sessions) -> None:
    parent = sessions.start(["1"])
    parent.checkpoint("here")
    before = JsonlStore(default_paths().sessions).list()
    wrong_options: list[dict[str, Any]] = [
        {"store": "jsonl"}, {"root": "/x"}, {"messages": []}, {"temperature": 9}, {"nonsense": 1}, {"session_id": "a/b"}
    ]  # fmt: skip
    for wrong in wrong_options:
        with pytest.raises(InvalidOption):
            parent.fork(**wrong)
    for at in (0, -1, True, 1.5, "", b"x"):
        with pytest.raises(InvalidOption):
            parent.fork(at)  # type: ignore[arg-type]
    with pytest.raises(NotFound, match="checkpoints: here"):
        parent.fork("nowhere")
    with pytest.raises(NotFound, match="no event 999"):
        parent.fork(999)
    with pytest.raises(InvalidOption, match="NOWHERE"):
        parent.fork(tools=["tests.session_tools:NOWHERE"])
    assert JsonlStore(default_paths().sessions).list() == before


def test_a_fork_is_where_its_parent_is(sessions: Sessions, tmp_path: Path) -> None:
    parent = sessions.start(["1", "2"], root=str(tmp_path / "logs"))
    parent.send_message("a")
    attached = Session.attach(parent.session_id, supervisor=sessions.supervisor)
    for handle in (parent, attached):
        with handle.fork(provider="mock", mock=["1", "2"]) as branch:
            assert branch.send_message("b").text == "2"
            assert JsonlStore(tmp_path / "logs").forks(parent.session_id).count(branch.session_id) == 1
    assert not default_paths().sessions.exists()


def test_a_daemon_that_comes_back_starts_no_fork_for_what_its_parent_had_open(store: JsonlStore) -> None:
    log = store.open("a")
    log.append(encode(1, "session_start", {"format": 1, "session_id": "a"}))
    log.append(encode(2, "message_accepted", {"message_id": "m", "text": "x"}))
    log.append(encode(3, "turn_start", {"message_id": "m"}, "t1"))
    log.close()
    store.fork("a", "b", Cursor(3))
    assert has_work(store.tail("a", 10), is_whole=True) is True
    assert has_work(store.tail("b", 10), is_whole=True) is False
    for more, wanted in (
        (encode(5, "rewind", {"id": "x", "to": 1, "files": True}), True),
        (encode(6, "files_restored", {"rewind": 5, "files": []}), False),
        (encode(7, "rewind", {"id": "y", "to": 1, "files": False}), False),
    ):
        log = store.open("b")
        log.append(more)
        log.close()
        assert has_work(store.tail("b", 10), is_whole=True) is wanted


def test_an_in_memory_session_refuses_to_fork_by_name(sessions: Sessions) -> None:
    parent = sessions.start(["1"], store="in_memory")
    with pytest.raises(UnsupportedStore, match="cannot fork"):
        parent.fork()


def test_a_hibernated_session_wakes_to_fork(sessions: Sessions) -> None:
    parent = sessions.start(["1", "2"], hibernate_after=0.05)
    parent.send_message("a")
    wait_until(lambda: parent.status()["state"] == "hibernated", 20)
    with parent.fork() as branch:
        assert branch.send_message("b").text == "2"


def test_forks_of_one_point_at_once_are_all_whole(
    sessions: Sessions, background: Callable[[Callable[[], Any]], Future[Any]]
) -> None:
    parent = sessions.start(["1", "2"])
    parent.send_message("a")
    barrier = threading.Barrier(4)

    def branch() -> list[str]:
        barrier.wait()
        with parent.fork() as one:
            one.send_message("b")
            return [message.text for message in one.messages()]

    for future in [background(branch) for _ in range(4)]:
        assert result(future) == ["a", "1", "b", "2"]


def test_a_stored_session_is_forked_without_a_process(sessions: Sessions) -> None:
    parent = sessions.start(["1", "2"])
    answer = parent.send_message("a")
    parent.checkpoint("one")
    with pytest.raises(LogLocked):
        Session.fork_stored(parent.session_id)
    parent.stop()
    for at in ("one", answer.message_id, None):
        made = Session.fork_stored(parent.session_id, at)
        assert [m.text for m in Session.resume(made)] == ["a", "1"]
    assert Session.fork_stored(parent.session_id, 1, new_session_id="mine") == "mine"
    with pytest.raises(NotFound):
        Session.fork_stored("nobody")
    with sessions.start(mock=None, provider=None, session_id=made, hibernate_after="infinity") as again:
        assert again.send_message("b").text == "2"


async def test_a_fork_whose_answer_was_lost_is_the_same_one(tmp_path: Path) -> None:
    store = JsonlStore(tmp_path)
    make(store, "a")
    log = store.open("a")
    recorder = Recorder(log, fold(log.read()), durability="os", publish=lambda event: None)
    branches = Branches("a", recorder, store, Redactor({}))
    at = await branches.fork(None, "b")
    await recorder.record("session_resume", {"reason": "killed"})  # the life that made it died before it answered
    assert await branches.fork(None, "b") == at
    append(store, "b", 1)
    with pytest.raises(StoreError, match="has a log already"):
        await branches.fork(None, "b")
    recorder.close()


def test_a_session_whose_parent_is_gone_lives_and_says_so(sessions: Sessions) -> None:
    parent = sessions.start(["1", "2"])
    parent.send_message("a")
    made = parent.fork()
    made.stop()
    parent.stop()
    JsonlStore(default_paths().sessions).path(parent.session_id).unlink()
    again = sessions.start(["1", "2"], session_id=made.session_id)
    assert again.status()["damage"]["lost_parent"] == parent.session_id
    assert again.messages() == []
    assert again.send_message("b").text == "1"


async def test_the_async_twin(sessions: Sessions) -> None:
    async with await AsyncSession.start_link(**sessions.options(["1", "2"])) as parent:
        await parent.send_message("a")
        point = await parent.checkpoint("one")
        async with await parent.fork(at=point) as branch:
            assert (await branch.send_message("b")).text == "2"
        assert (await parent.rewind("one")).to == point.seq
        with pytest.raises(NotFound):
            await parent.fork("nowhere")
    made = await AsyncSession.fork_stored(parent.session_id, "one")
    assert [m.text for m in await asyncio.to_thread(Session.resume, made)] == ["a", "1"]


# --- the command line -------------------------------------------------------------------------------------------------


def test_the_commands_on_a_stored_session(home: Path) -> None:
    store = JsonlStore(default_paths().sessions)
    make(store, "a", 2)
    log = store.open("a")
    log.append(encode(4, "user_message", {"message": Message("user", "hello").to_map()}))
    log.close()
    made = athena("checkpoint", "a", "--label", "here", "--json").json
    assert (made["seq"], made["label"]) == (5, "here")
    new_id = athena("fork", "a", "--at", "here", "--json").json["session_id"]
    assert [m.text for m in Session.resume(new_id)] == ["hello"]
    assert athena("fork", "a", "--at", "3").code == 0
    assert_one_line(athena("fork", "a", "--at", "there"), 1, "here", "there")
    assert_one_line(athena("fork", "nobody"), 1, "nobody")
    assert_one_line(athena("rm", "a"), 1, "forks", new_id)
    report = athena("store", "verify", new_id, "--json").json
    assert (report["parent"], report["lost_parent"], report["damaged"]) == ("a", None, False)
    exported = athena("store", "export", new_id).lines
    assert [row["seq"] for row in exported] == [1, 2, 3, 4, 5, 6]
    assert athena("store", "materialise", new_id, "--json").json["materialised"] is True
    assert athena("store", "materialise", "a", "--json").json["materialised"] is False
    for name in store.forks("a"):
        assert athena("rm", name).code == 0
    assert athena("rm", "a").code == 0
    assert [m.text for m in Session.resume(new_id)] == ["hello"]


@pytest.mark.slow
def test_the_commands_on_a_live_session(daemon: Path, tmp_path: Path) -> None:
    parent = Session.start(provider="mock", mock=["1", "2"], cwd=str(tmp_path), name="main", supervisor="daemon")
    parent.send_message("a")
    assert athena("checkpoint", "main", "--label", "one", "--json").json["label"] == "one"
    parent.send_message("b")
    made = athena("fork", "main", "--at", "one", "--name", "other", "--json").json
    other = Session.attach("other", supervisor="daemon")
    assert made["session_id"] == other.session_id
    assert other.send_message("c").text == "2"
    assert athena("rewind", "main", "one", "--json").json["files"] == []
    assert [m.text for m in parent.messages()] == ["a", "1"]
    other.stop()
    parent.stop()

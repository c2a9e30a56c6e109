"""Looking after logs from the command line, and removing sessions: what is live or asleep is never touched."""

from __future__ import annotations

import json
import os
import stat
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest

from athena import AsyncSession, Session
from athena.errors import InvalidSessionId, LogLocked, NotFound, Running, StoreError, UnsupportedStore
from athena.events import encode
from athena.messages import Message
from athena.removal import collect
from athena.stores.jsonl import JsonlStore
from athena.stores.memory import MemoryStore
from athena.stores.upkeep import delete_log
from athena.supervisors import EmbeddedSupervisor
from athena.testing.store_contract import append_events
from tests.cli_fixtures import Ran, assert_one_line, athena, daemon
from tests.helpers import wait_until

__all__ = ["daemon"]

DAY_S = 86400


@pytest.fixture
def logs(home: Path) -> JsonlStore:
    return JsonlStore(home / "sessions")


def make(logs: JsonlStore, session_id: str, *, age_days: float = 0, damage: bytes = b"") -> Path:
    """A stored session with two messages, last written some days ago."""
    log = logs.open(session_id)
    log.append(encode(1, "session_start", {"format": 1, "session_id": session_id, "options": {"model": "m"}}))
    append_events(log, 2, message=Message("user", "hello").to_map())
    log.close()
    path = logs.path(session_id)
    with path.open("ab") as file:
        file.write(damage)
    at = time.time() - age_days * DAY_S
    os.utime(path, (at, at))
    return path


def bytes_of(root: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in root.iterdir()}


# --- verify and repair ------------------------------------------------------------------------------------------------


def test_verify_tells_what_is_damaged_and_changes_nothing(logs: JsonlStore) -> None:
    make(logs, "good")
    make(logs, "bad", damage=b"rubbish\n" + encode(6, "user_message", {"message": 5}).line + b'\n{"torn')
    before = bytes_of(logs.root)
    ran = athena("store", "verify", "--json")
    assert ran.code == 1
    bad, good = ran.lines
    assert (good["session_id"], good["damaged"], good["events"], good["bad_lines"]) == ("good", False, 3, 0)
    del bad["size_bytes"]
    assert bad == {
        "session_id": "bad", "damaged": True, "events": 4, "last_seq": 6, "bad_lines": 1, "missing_events": 2,
        "unfinished_bytes": 6, "gaps": [[4, 5]], "misfits": 1, "belongs_to": None, "writer": None,
        "missing_blobs": 0, "orphan_blobs": 0, "parent": None, "lost_parent": None,
    }  # fmt: skip
    shown = athena("store", "verify")
    assert shown.code == 1
    assert "2 (4-5)" in shown.out
    assert "good" not in shown.out
    assert "2 logs read, 1 damaged" in shown.err
    assert athena("store", "verify", "good", "--json").json["damaged"] is False
    assert bytes_of(logs.root) == before


def test_a_copied_log_is_told_by_verify(logs: JsonlStore) -> None:
    make(logs, "one")
    logs.path("two").write_bytes(logs.path("one").read_bytes())
    ran = athena("store", "verify", "two")
    assert ran.code == 1
    assert "copy of" in ran.out
    assert_one_line(athena("store", "repair", "two"), 1, "copy of session 'one'")


def test_repair_keeps_a_backup_and_the_events(logs: JsonlStore) -> None:
    path = make(logs, "bad", damage=b"rubbish\n")
    before = path.read_bytes()
    done = athena("store", "repair", "bad", "--json").json
    found = {"bad_lines": 1, "missing_events": 0, "unfinished_bytes": 0, "missing_blobs": 0}
    assert (done["repaired"], done["found"]) == (True, found)
    assert Path(done["backup"]).read_bytes() == before
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(Path(done["backup"]).stat().st_mode) == 0o600
    assert [e.event for e in logs.read("bad")] == ["session_start", "user_message", "user_message", "repaired"]
    again = athena("store", "repair", "bad")
    assert (again.code, again.out) == (0, "")
    assert "nothing is wrong" in again.err
    assert athena("store", "verify", "bad").code == 0


@pytest.mark.parametrize("command", ["verify", "repair", "export"])
def test_what_is_not_there_is_one_line(home: Path, command: str) -> None:
    assert_one_line(athena("store", command, "nobody"), 1, "'nobody'")
    assert_one_line(athena("store", command, "../up"), 2, "'../up'")
    assert not home.exists()


def test_another_directory_can_be_looked_after(tmp_path: Path, home: Path) -> None:
    logs = JsonlStore(tmp_path / "elsewhere")
    make(logs, "far", damage=b"rubbish\n")
    root = ("--root", str(logs.root))
    assert athena("store", "verify", *root, "--json").json["session_id"] == "far"
    assert athena("store", "repair", "far", *root).code == 0
    assert athena("store", "export", "far", *root).out.count("\n") == 4
    assert athena("rm", "far", *root).code == 0
    assert logs.list() == []
    assert not home.exists()


# --- export ----------------------------------------------------------------------------------------------------------


def talk(logs: JsonlStore) -> None:
    """A session in which a tool answered with what ends a code block."""
    log = logs.open("talk")
    call = {"id": "c1", "name": "read", "arguments": {"path": "a.md"}}
    result = {"tool_call_id": "c1", "content": "```\nnot the end\n```"}
    seed = [{"role": "user", "content": "earlier"}, {"role": "assistant", "content": "indeed"}]
    items: list[tuple[str, dict[str, Any]]] = [
        ("session_start", {"session_id": "talk", "options": {"model": "m"}, "messages": seed}),
        ("message_accepted", {"message_id": "m1", "text": "read it"}),
        ("turn_start", {"message_id": "m1"}),
        ("user_message", {"message": {"role": "user", "content": "read it"}}),
        ("assistant_message", {"message": {"role": "assistant", "content": "", "tool_calls": [call]}}),
        ("tool_call", {"id": "c1"}),
        ("tool_result", {"message": {"role": "tool", "content": None, "tool_results": [result]}}),
        ("assistant_message", {"message": {"role": "assistant", "content": "done", "reasoning": "hm"}}),
        ("turn_end", {"message_id": "m1", "finish_reason": "stop"}),
    ]
    for seq, (kind, data) in enumerate(items, 1):
        log.append(encode(seq, kind, data, "t1"))
    log.close()


def test_jsonl_is_the_events_and_nothing_damaged(logs: JsonlStore) -> None:
    talk(logs)
    whole = logs.path("talk").read_text()
    with logs.path("talk").open("ab") as file:
        file.write(b'rubbish\n{"torn')
    assert athena("store", "export", "talk").out == whole
    assert athena("store", "export", "talk", "--json").out == whole


def test_markdown_is_the_conversation(logs: JsonlStore) -> None:
    talk(logs)
    out = athena("store", "export", "talk", "--format", "markdown").out
    assert out.startswith("# Session talk\n")
    assert [line for line in out.splitlines() if line.startswith("## ")] == [
        "## User", "## Assistant", "## User", "## Assistant", "## Assistant",
    ]  # fmt: skip
    assert "````\n```\nnot the end\n```\n````" in out
    assert '"path": "a.md"' in out


def test_exathenas_lines_have_its_kinds_and_keys_and_read_back(logs: JsonlStore, tmp_path: Path) -> None:
    talk(logs)
    lines = athena("store", "export", "talk", "--format", "exathena").lines
    assert {frozenset(line) for line in lines} == {frozenset({"ts", "event", "uuid", "data"})}
    assert [line["event"] for line in lines] == [
        "session_start", "user_message", "assistant_message",
        "user_message", "assistant_message", "tool_result", "assistant_message",
    ]  # fmt: skip
    assert set(lines[0]["data"]) == {"ts", "resumed"}
    assert lines[3]["data"] == {"message": {"role": "user", "content": "read it"}}
    assert {len(line["data"]["message"]) for line in lines[4:]} == {5}
    assert lines[5]["data"]["message"]["tool_results"][0]["is_error"] is None
    theirs = JsonlStore(tmp_path)
    theirs.path("talk").write_text("".join(json.dumps(line) + "\n" for line in lines))
    there, here = (Session.resume("talk", root=root) for root in (tmp_path, logs.root))
    assert len(there) == 6
    assert [(m.role, m.text, m.tool_calls, m.tool_results) for m in there] == [
        (m.role, m.text, m.tool_calls, m.tool_results) for m in here
    ]


def test_an_export_to_a_file_is_private_and_overwrites_nothing(logs: JsonlStore, tmp_path: Path) -> None:
    talk(logs)
    target = tmp_path / "talk.jsonl"
    done = athena("store", "export", "talk", "--output", str(target), "--json").json
    assert done == {"session_id": "talk", "format": "jsonl", "path": str(target), "size_bytes": target.stat().st_size}
    assert target.read_bytes() == logs.path("talk").read_bytes()
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert_one_line(athena("store", "export", "talk", "-o", str(target)), 2, "is there already")
    assert_one_line(athena("store", "export", "talk", "--format", "pdf"), 2, "jsonl, markdown, exathena")
    ran = athena("store", "export", "talk", "--format", "markdown", "--json")
    assert (ran.code, json.loads(ran.err)["error"]) == (2, "UsageError")


# --- removing --------------------------------------------------------------------------------------------------------


def test_rm_takes_the_log_and_all_that_belongs_to_it(logs: JsonlStore, home: Path) -> None:
    make(logs, "gone", damage=b"bad\n{torn")
    logs.open("gone").close()
    logs.repair("gone")
    make(logs, "stays", damage=b"{torn")
    logs.open("stays").close()
    (home / "logs").mkdir()
    for name in ("gone.log", "gone.log.1", "stays.log"):
        (home / "logs" / name).touch()
    assert athena("rm", "gone", "--json").json == {"session_id": "gone", "removed": True}
    assert sorted(file.name for file in logs.root.iterdir()) == ["stays.jsonl", "stays.torn-1"]
    assert [file.name for file in (home / "logs").iterdir()] == ["stays.log"]
    assert_one_line(athena("rm", "gone"), 1, "'gone'")
    assert_one_line(athena("rm", "../up"), 2, "'../up'")
    assert athena("ls", "--json").json[0]["session_id"] == "stays"


def gc(*arguments: str) -> Ran:
    ran = athena("store", "gc", *arguments)
    assert ran.code == 0, ran.err
    return ran


def test_gc_removes_by_age_and_a_dry_run_nothing(logs: JsonlStore) -> None:
    make(logs, "old", age_days=40, damage=b"{torn")
    make(logs, "older", age_days=400)
    make(logs, "young", age_days=20)
    before = bytes_of(logs.root)
    dry = gc("--older-than", "30d", "--dry-run", "--json").json
    assert [(row["session_id"], row["removed"], row["kept"]) for row in dry["sessions"]] == [
        ("old", True, None),
        ("older", True, None),
    ]
    assert dry["freed_bytes"] == sum(len(before[f"{name}.jsonl"]) for name in ("old", "older"))
    assert bytes_of(logs.root) == before
    log = logs.open("older")  # as a program would that holds it without a supervisor
    assert "removed 1 sessions" in gc("--older-than", "5w").err
    assert logs.list() == ["older", "young"]
    log.close()
    assert gc("--older-than", "30d", "--json").json["sessions"][0]["session_id"] == "older"
    assert gc("--older-than", "30d", "--json").json == {"sessions": [], "freed_bytes": 0, "dry_run": False}
    assert logs.list() == ["young"]


@pytest.mark.parametrize("age", ["30", "d", "1y", "1.5d", ""])
def test_an_age_that_is_none_is_one_line(home: Path, age: str) -> None:
    assert_one_line(athena("store", "gc", "--older-than", age), 2, "30d")


def test_a_log_that_was_written_since_it_was_chosen_is_kept(logs: JsonlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(logs, "old", age_days=40)

    def delete_late(*given: Any, **how: Any) -> bool:
        os.utime(path)
        return delete_log(*given, **how)

    monkeypatch.setattr("athena.removal.delete_log", delete_late)
    (row,) = collect(30 * DAY_S)
    assert (row["removed"], row["kept"], logs.list()) == (False, "it was written just now", ["old"])


@pytest.mark.slow
def test_a_live_session_of_the_daemon_is_refused_by_name_and_id_until_it_is_stopped(daemon: Path) -> None:
    assert athena("chat", "bob", "--provider", "mock", "-o", 'mock=["hi"]').code == 0
    session_id = athena("status", "bob", "--json").json["session_id"]
    for target in ("bob", session_id):
        assert_one_line(athena("rm", target), 1, "stop it first")
    assert_one_line(athena("store", "repair", session_id), 1, "writes the log")
    os.utime(daemon / "sessions" / f"{session_id}.jsonl", (0, 0))
    (row,) = gc("--older-than", "1d", "--json").json["sessions"]
    assert (row["removed"], row["kept"]) == (False, "it is running")
    assert athena("store", "verify", session_id, "--json").json["writer"]
    assert athena("stop", "bob").code == 0
    assert athena("rm", session_id).code == 0
    assert list((daemon / "sessions").iterdir()) == []
    assert not list((daemon / "logs").glob(f"{session_id}*"))


def start(**options: Any) -> Session:
    return Session.start_link(provider="mock", **options)


@pytest.mark.slow
def test_a_session_is_deleted_only_when_no_supervisor_has_it(home: Path) -> None:
    session = start(mock=["hi", "again"], hibernate_after=0.05, session_id="sleeper")
    session.send_message("hello")
    wait_until(lambda: session.status()["state"] == "hibernated", 20)
    other = EmbeddedSupervisor()  # a sleeper holds no lock, so it is asked for everywhere
    other.ensure()
    try:
        with pytest.raises(Running, match="is hibernated"):
            Session.delete("sleeper", supervisor=other)
    finally:
        other.stop()
    os.utime(home / "sessions" / "sleeper.jsonl", (0, 0))
    (row,) = collect(DAY_S)
    assert (row["removed"], row["kept"]) == (False, "it is hibernated")
    assert session.send_message("are you there?").text == "again"
    session.stop()
    Session.delete("sleeper")
    assert Session.resume("sleeper") == []
    with pytest.raises(NotFound):
        Session.delete("sleeper")


@pytest.mark.slow
async def test_the_async_client_deletes_too(home: Path) -> None:
    async with await AsyncSession.start_link(provider="mock", mock=["hi"]) as session:
        with pytest.raises(Running, match="is running"):
            await AsyncSession.delete(session.session_id)
    await AsyncSession.delete(session.session_id)
    with pytest.raises(NotFound):
        await AsyncSession.delete(session.session_id)


def test_a_log_that_a_program_writes_by_itself_is_refused(logs: JsonlStore) -> None:
    make(logs, "a")
    log = logs.open("a")
    with pytest.raises(LogLocked):
        Session.delete("a")
    log.close()
    Session.delete("a")
    with pytest.raises(InvalidSessionId):
        Session.delete("../up")


class Keeps(MemoryStore):
    delete = None  # type: ignore[assignment]  # a store of somebody who thought of no removal


class Forgets(MemoryStore):
    forgotten: ClassVar[list[str]] = []

    def delete(self, session_id: str) -> bool:
        self.forgotten.append(session_id)
        return session_id == "known"


def test_a_custom_store_is_asked_and_one_that_cannot_says_so() -> None:
    Session.delete("known", f"{__name__}:Forgets")
    with pytest.raises(NotFound, match="unknown"):
        Session.delete("unknown", f"{__name__}:Forgets")
    assert Forgets.forgotten == ["known", "unknown"]
    with pytest.raises(UnsupportedStore, match="delete"):
        Session.delete("known", f"{__name__}:Keeps")


@pytest.mark.slow
def test_a_copied_log_starts_no_session(logs: JsonlStore) -> None:
    make(logs, "one")
    logs.path("two").write_bytes(logs.path("one").read_bytes())
    with pytest.raises(StoreError, match="copy of session 'one'") as caught:
        start(mock=["hi"], session_id="two")
    assert caught.value.belongs_to == "one"
    assert Session.whereis("two") is None
    with start(mock=["hi"], session_id="one") as session:
        assert session.send_message("hello").text == "hi"


# --- quota -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_session_at_its_quota_runs_no_tool_and_goes_on_with_a_larger_one(tmp_path: Path) -> None:
    effect = tmp_path / "effect"
    call = {"tool_calls": [{"name": "bash", "arguments": {"command": f"echo x >> {effect}"}}], "text": "y" * 40_000}
    options = {"mock": [call, "done"], "phase": "bypass_permissions", "session_id": "small", "cwd": str(tmp_path)}
    with start(store_options={"max_log_bytes": 65536}, **options) as session:
        turn = session.submit("go")
        wait_until(lambda: session.status()["state"] == "degraded(quota)", 20)
        assert not effect.exists()
        assert session.interrupt()
        assert turn.result().finish_reason == "interrupted"
    with start(store_options={"max_log_bytes": 10**6}, **options) as session:
        assert session.send_message("go on").text == "done"
    assert effect.read_text() == "x\n"


@pytest.mark.slow
def test_missing_events_are_in_the_status(logs: JsonlStore) -> None:
    path = make(logs, "gaps")
    path.write_bytes(b"".join(line for line in path.read_bytes().splitlines(keepends=True) if b'"seq":2' not in line))
    with start(mock=["hi"], session_id="gaps") as session:
        assert session.status()["damage"]["missing_events"] == 1

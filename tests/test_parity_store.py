"""Rows J1 to J12 of the parity table (docs/parity.md): what ExAthena's JSONL store does wrong, ours must not."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson
import pytest

from athena import Session
from athena.config import default_paths
from athena.environment import ROOT
from athena.errors import DiskError, InvalidSessionId, LogLocked
from athena.events import encode
from athena.stores.jsonl import JsonlStore
from athena.supervisors import EmbeddedSupervisor
from tests.engine import calls
from tests.helpers import TIME_UNIT, wait_until
from tests.session_fixtures import Files, Sessions, guard_pid, is_gone, kill_pid, log, supervisor_pid
from tests.session_fixtures import files as files
from tests.session_fixtures import own_sessions as own_sessions
from tests.session_fixtures import own_supervisor as own_supervisor
from tests.session_fixtures import sessions as sessions
from tests.session_fixtures import shared_supervisor as shared_supervisor


def path_of(session: Session) -> Path:
    return default_paths().sessions / f"{session.session_id}.jsonl"


@contextmanager
def full_disk(size_bytes: int) -> Iterator[None]:
    """No file of this process may grow beyond ``size_bytes`` (Python ignores SIGXFSZ, so writes fail with EFBIG)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_j1_what_was_accepted_is_in_the_file_when_the_call_returns(sessions: Sessions, files: Files) -> None:
    session = sessions.start([{"wait_for": files.path("never")}])
    for number in range(5):
        session.submit(f"text {number}")
        assert f'"text {number}"' in path_of(session).read_text()  # ExAthena: in up to 250 ms
    os.kill(int(session.pid or 0), signal.SIGKILL)
    accepted = [e.data["text"] for e in log(session.session_id) if e.event == "message_accepted"]
    assert accepted == [f"text {number}" for number in range(5)]


def test_j1_an_acknowledged_event_is_synced_and_not_only_written(tmp_path: Path) -> None:
    synced: list[int] = []
    opened = JsonlStore(tmp_path, sync=synced.append).open("a")
    opened.append(encode(1, "message_accepted", {}))
    assert synced == []
    opened.sync()
    assert len(synced) == 1
    opened.close()


def test_j2_an_ordered_end_of_everything_loses_nothing(
    own_sessions: Sessions, own_supervisor: EmbeddedSupervisor, files: Files
) -> None:
    script = [
        calls(("glob", {"pattern": "*"})),
        {"text": "x", "wait_for": files.path("never"), "touch": files.path("at")},
    ]
    session = own_sessions.start(script)
    session.submit("a")
    session.submit("b")
    files.wait_lines("at")
    own_supervisor.stop()
    kinds = [e.event for e in log(session.session_id)]
    assert kinds[-1] == "session_end"
    assert kinds.count("message_accepted") == 2
    assert kinds.count("tool_result") == 1


def test_j3_events_appended_during_a_sync_are_kept(tmp_path: Path) -> None:
    in_sync, go_on = threading.Event(), threading.Event()

    def slow_sync(fd: int) -> None:
        in_sync.set()
        assert go_on.wait(10 * TIME_UNIT)
        os.fdatasync(fd)

    store = JsonlStore(tmp_path, sync=slow_sync)
    opened = store.open("a")
    opened.append(encode(1, "user_message", {}))
    thread = threading.Thread(target=opened.sync)
    thread.start()
    assert in_sync.wait(10 * TIME_UNIT)
    for seq in range(2, 50):
        opened.append(encode(seq, "user_message", {}))
    go_on.set()
    thread.join(10 * TIME_UNIT)
    opened.sync()
    opened.close()
    assert [e.seq for e in store.read("a")] == list(range(1, 50))


def test_j4_a_full_disk_is_an_error_and_costs_neither_the_old_events_nor_the_new(tmp_path: Path) -> None:
    store = JsonlStore(tmp_path)
    opened = store.open("a")
    opened.append(encode(1, "user_message", {"n": 1}))
    before = store.path("a").read_bytes()
    with full_disk(len(before) + 20):
        for _ in range(3):
            with pytest.raises(DiskError) as caught:
                opened.append(encode(2, "user_message", {"n": 2}))
        assert str(store.path("a")) in caught.value.message
        assert store.path("a").read_bytes() == before
    opened.append(encode(2, "user_message", {"n": 2}))
    opened.close()
    assert [e.data for e in store.read("a")] == [{"n": 1}, {"n": 2}]


def test_j5_values_that_no_json_holds_end_neither_the_log_nor_the_session(sessions: Sessions, tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(b"caf\xe9\nsecond\nthird\n")
    odd = [
        calls(
            ("bash", {"command": "printf '\\377\\376\\000 done'"}),
            ("read", {"path": "raw", "offset": 2, "limit": 1}), ("read", {"path": "raw"}), "odd",
        ),
        {"text": "lone \udcff surrogate"},
    ]  # fmt: skip
    other = sessions.start(["undisturbed"])
    session = sessions.start(odd, phase="trusted", tools=["bash", "read", "tests.parity_parts:ODD"])
    pid = session.pid
    result = session.send_message("go \udcff")
    assert (result.finish_reason, session.pid) == ("stop", pid)
    assert [r["status"] for r in (e.data for e in log(session.session_id) if e.event == "tool_result")] == ["ok"] * 4
    assert "\ufffd" in (result.text or "")
    assert other.send_message("x").text == "undisturbed"
    assert [line for line in path_of(session).read_bytes().split(b"\n") if line and not orjson.loads(line)["seq"]] == []


def test_j6_a_log_needs_no_host_that_started_anything_and_outlives_them_all(
    own_sessions: Sessions, own_supervisor: EmbeddedSupervisor
) -> None:
    session = own_sessions.start(["kept"])
    session.send_message("x")
    child, above, top = int(session.pid or 0), supervisor_pid(own_supervisor), guard_pid(own_supervisor)
    for pid in (child, above):
        kill_pid(pid)
    wait_until(lambda: is_gone(top))
    assert [m.text for m in Session.resume(session.session_id)] == ["x", "kept"]


def test_j7_names_that_nobody_knows_are_kept(sessions: Sessions) -> None:
    arguments = {"jqlQuery": "status = Open", "größe_µ": [1, {"brand new": None}]}
    session = sessions.start([calls(("mcp__jira__search", arguments)), "done"])
    session.send_message("x")
    session.stop()
    line = b'{"event":"user_message","data":{"message":{"role":"user","content":"by hand","new_key":1}},"shard":4}\n'
    with path_of(session).open("ab") as file:
        file.write(b'{"event":"future_kind","data":{"whatever":[1]},"seq":0}\n' + line)
    call, result, answer, by_hand = Session.resume(session.session_id)[1:]
    assert call.tool_calls[0].arguments == arguments
    assert result.tool_results[0].tool_call_id == "c0"
    assert (answer.text, by_hand.text) == ("done", "by hand")


def test_j8_damage_is_counted_reported_and_kept_apart(sessions: Sessions) -> None:
    session = sessions.start(["one", "two"], session_id="hurt")
    session.send_message("a")
    session.stop()
    path = default_paths().sessions / "hurt.jsonl"
    whole = path.read_bytes()
    lines = whole.split(b"\n")
    misfit = b'{"event":"user_message","data":{"message":"no map"}}'
    path.write_bytes(b"\n".join([*lines[:2], b"\xff rot", *lines[2:-1], misfit, b'{"seq":99,"ev']))
    again = sessions.start(["one", "two"], session_id="hurt")
    damage = again.status()["damage"]
    assert (damage["bad_lines"], damage["torn_bytes"]) == (2, len(b'{"seq":99,"ev'))
    assert Path(damage["torn_file"]).read_bytes() == b'{"seq":99,"ev'
    assert [m.text for m in again.send_message("b").messages] == ["a", "one", "b", "two"]
    assert b"\xff rot\n" in path.read_bytes()  # reported and left where it is


@pytest.mark.parametrize("session_id", ["../../escape", "/etc/x", "..", "a/../../b", "a\0b"])
def test_j9_no_session_id_leaves_the_directory(session_id: str, sessions: Sessions, tmp_path: Path) -> None:
    store = JsonlStore(tmp_path / "logs")
    for touch in (store.open, store.path, lambda s: list(store.read(s)), lambda s: store.tail(s, 1), store.verify):
        with pytest.raises(InvalidSessionId):
            touch(session_id)
    with pytest.raises(InvalidSessionId):
        sessions.start(["x"], session_id=session_id)
    assert list(tmp_path.rglob("*.jsonl")) == []


def test_j10_two_stores_do_not_take_each_others_events(sessions: Sessions, tmp_path: Path) -> None:
    roots = [tmp_path / "one", tmp_path / "two"]
    started = [sessions.start(["hi"], root=root, session_id=f"s{n}") for n, root in enumerate(roots)]
    for number, session in enumerate(started):
        session.send_message(f"to {number}")
    for number, root in enumerate(roots):
        assert [p.name for p in root.iterdir()] == [f"s{number}.jsonl"]
        said = [m.text for m in Session.resume(f"s{number}", root=root)]
        assert said == [f"to {number}", "hi"]


def test_j12_a_second_process_cannot_append_to_a_log(tmp_path: Path) -> None:
    code = (
        "import sys; from athena.stores.jsonl import JsonlStore; JsonlStore(sys.argv[1]).open('a'); "
        "print('open', flush=True); sys.stdin.read()"
    )
    holder: subprocess.Popen[str]
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as holder:  # fmt: skip
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        with pytest.raises(LogLocked) as caught:
            JsonlStore(tmp_path).open("a")
        assert caught.value.pid in (None, holder.pid)
        holder.kill()  # the lock ends with its holder, and no file is left that could go stale
        holder.wait(10 * TIME_UNIT)
    JsonlStore(tmp_path).open("a").close()


def test_j12_writers_in_one_process_are_one_too(tmp_path: Path) -> None:
    first = JsonlStore(tmp_path).open("a")
    with pytest.raises(LogLocked):
        JsonlStore(tmp_path).open("a")
    first.close()

"""The roster of sessions: what its file says whatever happened to it, and what a log's end says is open."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from athena import proctree
from athena.errors import DiskError, StoreError
from athena.events import Event
from athena.loop.state import fold
from athena.proctree import Identity
from supervisor import roster as roster_module
from supervisor.process_roster import boot_id
from supervisor.respawn import has_work
from supervisor.roster import Owner, Roster, parse
from supervisor.session_request import SessionRequest

PRIVATE = b'{"options":{"phase":"trusted"},"env":{"KEY":"sk-canary"}}'


def request(session_id: str, **spec: Any) -> SessionRequest:
    """As a client asks for it."""
    given = {"session_id": session_id, "root": "/nowhere", **spec}
    return SessionRequest.from_map(given, b'{"options":{"provider":"mock"}}\n' + PRIVATE, Path("/sessions"))


def reopened(roster: Roster) -> Roster:
    """What the next daemon reads."""
    roster.close()
    return Roster(roster._path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "roster.jsonl"


# --- the file ---------------------------------------------------------------------------------------------------------


def test_what_was_started_and_not_stopped_is_there_again(path: Path) -> None:
    roster = Roster(path)
    for name in ("a", "b", "c"):
        roster.started(request(name, name=f"name of {name}", max_restarts=7), None)
    roster.stopped("b")
    again = reopened(roster)
    assert list(again.entries) == ["a", "c"]
    assert again.boot == boot_id()
    entry = again.entries["c"]
    made = SessionRequest.from_map(entry.spec, entry.init.encode(), Path("/sessions"))
    assert (made.name, made.spec.max_restarts, made.root) == ("name of c", 7, "/nowhere")
    again.close()


def test_no_grant_is_in_the_file_and_nobody_else_may_read_it(path: Path) -> None:
    roster = Roster(path)
    roster.started(request("a"), None)
    roster.close()
    text = path.read_text()
    assert "provider" in text
    assert not any(word in text for word in ("sk-canary", "trusted", "phase"))
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_failure_and_its_reason_are_kept_until_it_is_started_again(path: Path) -> None:
    roster = Roster(path)
    for name in ("a", "b"):
        roster.started(request(name), None)
        roster.failed(name, {"exit": 3})
    roster.restarted("b")
    again = reopened(reopened(roster))
    assert [(e.has_failed, e.reason) for e in again.entries.values()] == [(True, {"exit": 3}), (False, None)]
    again.started(request("a"), None)
    last = reopened(again)
    assert not last.entries["a"].has_failed
    last.close()


def test_what_is_told_of_a_session_that_is_not_in_it_is_not_noted(path: Path) -> None:
    roster = Roster(path)
    before = path.read_bytes()
    roster.stopped("temporary")
    roster.failed("temporary", "killed")
    roster.restarted("temporary")
    assert path.read_bytes() == before
    roster.close()


def test_it_is_written_anew_before_it_grows_without_end(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roster_module, "SPARE_LINES", 10)
    roster = Roster(path)
    roster.started(request("kept"), None)
    for n in range(200):
        roster.started(request(f"s{n}"), None)
        roster.stopped(f"s{n}")
    assert path.read_bytes().count(b"\n") < 20
    assert list(reopened(roster).entries) == ["kept"]


def test_a_tail_torn_at_any_byte_costs_only_its_own_line(path: Path) -> None:
    roster = Roster(path)
    roster.started(request("a"), None)
    whole = path.stat().st_size
    roster.started(request("b"), None)
    roster.close()
    data = path.read_bytes()
    for end in range(whole, len(data) + 1):
        path.write_bytes(data[:end])
        again = Roster(path)
        assert list(again.entries) == (["a", "b"] if end >= len(data) - 1 else ["a"])
        again.started(request("c"), None)
        last = reopened(again)
        assert "c" in last.entries
        last.close()


@given(st.lists(st.binary(max_size=60), max_size=10))
def test_nothing_in_a_file_makes_reading_it_fail(lines: list[bytes]) -> None:
    good = b'{"start":"a","spec":{},"init":"{}"}'
    found = parse(b"\n".join([*lines, good]))
    assert "a" in found.entries


def test_lines_of_another_form_count_for_nothing() -> None:
    bad = [b'{"start":1,"spec":{},"init":""}', b'{"start":"x","spec":[],"init":""}', b'{"stop":null}', b"[]", b"nul"]
    found = parse(b"\n".join(bad))
    assert not found.entries
    assert len(found.problems) == len(bad)


def test_a_start_that_cannot_be_noted_is_refused_and_the_next_one_is_whole(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roster = Roster(path)
    roster.started(request("a"), None)
    real = os.write

    def full(fd: int, data: bytes) -> int:
        if fd == roster._fd:
            real(fd, data[:5])
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(DiskError, match="disk full"):
            roster.started(request("b"), None)
        roster.stopped("a")
    roster.started(request("c"), None)
    again = reopened(roster)
    assert list(again.entries) == ["c"]
    again.close()


def test_one_that_cannot_be_opened_is_refused_with_what_to_do(tmp_path: Path) -> None:
    link = tmp_path / "roster.jsonl"
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="move it away"):
        Roster(link)
    assert not (tmp_path / "elsewhere").exists()


def test_starts_that_come_together_share_a_sync(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    syncs: list[int] = []
    monkeypatch.setattr(os, "fdatasync", syncs.append)

    async def run() -> None:
        roster = Roster(path)
        for n in range(50):
            roster.started(request(f"s{n}"), None)
        await asyncio.gather(*(roster.synced() for _ in range(50)))
        assert len(syncs) == 1
        await roster.synced()
        assert len(syncs) == 1
        roster.close()

    asyncio.run(run())


def test_an_owner_is_its_process_and_not_its_number(path: Path) -> None:
    me = Owner.of(os.getpid())
    assert me is not None
    roster = Roster(path)
    roster.started(request("a"), me)
    found = reopened(roster).entries["a"].owner
    assert found == me
    assert found.is_alive
    later = Identity(me.identity.pid, me.identity.starttime + 1)
    assert not Owner(later, me.boot).is_alive
    assert not Owner(me.identity, "another boot").is_alive
    assert proctree.identity(2**22 - 1) is None
    assert Owner.of(2**22 - 1) is None


# --- what is open -----------------------------------------------------------------------------------------------------


def events_of(steps: list[tuple[str, Any]]) -> list[Event]:
    """A log of these."""
    made = []
    for seq, (kind, data) in enumerate(steps, 1):
        made.append(Event(seq=seq, ts="2026-01-01T00:00:00.000000Z", event=kind, uuid=f"u{seq}", turn=None, data=data))
    return made


@st.composite
def histories(draw: st.DrawFn) -> list[Event]:
    """What a session can have recorded when its process ended, at any moment."""
    steps: list[tuple[str, Any]] = [("session_start", {"options": {}})]
    queue: list[str] = []
    running: str | None = None
    for number in range(draw(st.integers(0, 25))):
        can = ["accept", "other", *(["cancel"] if queue else [])]
        can += ["end"] if running else ["start"] if queue else []
        match draw(st.sampled_from(can)):
            case "accept":
                queue.append(f"m{number}")
                steps.append(("message_accepted", {"message_id": queue[-1], "text": "x"}))
            case "cancel":
                gone = queue.pop(draw(st.integers(0, len(queue) - 1)))
                steps.append(("message_cancelled", {"message_ids": [gone]}))
            case "start":
                running = queue.pop(0)
                steps.append(("turn_start", {"message_id": running}))
            case "end":
                steps.append(("turn_end", {"message_id": running, "finish_reason": "stop"}))
                running = None
            case _:
                steps.append((draw(st.sampled_from(["session_end", "session_resume", "assistant_message"])), {}))
    return events_of(steps)


@given(histories(), st.integers(1, 30))
def test_the_end_of_a_log_tells_what_is_open_or_that_it_does_not_tell(log: list[Event], count: int) -> None:
    state = fold(log)
    is_open = state.turn is not None or bool(state.queue)
    found = has_work(log[-count:], is_whole=count > len(log))
    assert found in (is_open, None)
    if count > len(log):
        assert found is is_open


def test_a_long_turn_is_open_without_its_beginning_only_if_somebody_looks_further() -> None:
    log = events_of([("session_start", {}), ("message_accepted", {"message_id": "m", "text": "x"}),
                     ("turn_start", {"message_id": "m"}), *[("assistant_message", {})] * 50])  # fmt: skip
    assert has_work(log[-10:], is_whole=False) is None
    assert has_work(log, is_whole=True) is True

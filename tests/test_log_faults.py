"""What a log survives, byte by byte: every complete record is kept, valid bytes stay, the damage is counted, and the
next append is clean. Then what repairs it, and its limits."""

from __future__ import annotations

import asyncio
import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from athena.errors import DiskError, InvalidOption, LogLocked, NotFound, RecordTooLarge, StoreError
from athena.events import MAX_RECORD_BYTES, Event, encode
from athena.loop.state import SessionState
from athena.recorder import Recorder
from athena.stores import open_store
from athena.stores.base import RESERVE_BYTES, Damage
from athena.stores.jsonl import MIN_QUOTA_BYTES, JsonlLog, JsonlStore
from athena.stores.lines import MAX_LINE_BYTES, is_event
from athena.testing.store_contract import append_events
from tests.engine import engine
from tests.helpers import wait_until_async

BREAKS = "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e\r\n"
"""What some reader of lines takes for the end of one."""

texts = st.text(st.sampled_from(BREAKS + 'aé漢😀"\\\0'), max_size=20)
rubbish = st.one_of(
    st.binary(max_size=40).filter(lambda b: b"\n" not in b and not is_event(b)),
    st.sampled_from([b"", b"\0" * 4096, b"[1,2]", b'{"seq":3}', b"\xff\xfe", b'{"event":5,"seq":1}']),
)


@pytest.fixture
def store(tmp_path: Path) -> JsonlStore:
    return JsonlStore(tmp_path)


@contextmanager
def fresh_store() -> Iterator[JsonlStore]:
    """For hypothesis, whose examples share a fixture."""
    with tempfile.TemporaryDirectory() as root:
        yield JsonlStore(root)


def lines_of(count: int, text: str = "x") -> list[bytes]:
    return [encode(n, "user_message", {"text": text}).line + b"\n" for n in range(1, count + 1)]


def write(store: JsonlStore, data: bytes) -> None:
    store.path("a").write_bytes(data)


def damage_of(store: JsonlStore) -> Damage:
    """What a session finds that opens the log and reads it, which must be what verify counts."""
    log = store.open("a")
    try:
        for _ in log.read():
            pass
        return log.damage
    finally:
        log.close()


def assert_goes_on(store: JsonlStore, kept: list[bytes], last_seq: int) -> None:
    """The log has the lines ``kept``, takes another event after ``last_seq``, and all that was valid is where it
    was."""
    before = store.path("a").read_bytes()
    log = store.open("a")
    assert [e.line for e in log.read()] == [line.rstrip(b"\n") for line in kept]
    assert log.last_seq == last_seq
    (event,) = append_events(log, 1)
    log.sync()
    log.close()
    after = store.path("a").read_bytes()
    assert after.endswith(b"\n" + event.line + b"\n") or after == event.line + b"\n"
    whole = before[: before.rfind(b"\n") + 1]
    assert after.startswith(whole)
    assert [e.line for e in store.read("a")] == [*(line.rstrip(b"\n") for line in kept), event.line]


# --- torn ends -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("text", ["", "é\u2028😀 漢", '"}\n{"event":"x"}'], ids=["empty", "wide", "nested"])
def test_torn_at_every_byte_of_the_last_three_records(tmp_path: Path, text: str) -> None:
    lines = lines_of(5, text)
    whole = b"".join(lines)
    starts = [sum(map(len, lines[:n])) for n in range(6)]
    for cut in range(starts[2], len(whole) + 1):
        store = JsonlStore(tmp_path / str(cut))
        store.root.mkdir()
        write(store, whole[:cut])
        complete = sum(end <= cut for end in starts[1:])
        rest = whole[starts[complete] : cut]
        report = store.inspect("a")
        assert (report.events, report.unfinished_bytes, report.is_damaged) == (complete, len(rest), bool(rest))
        if cut + 1 in starts:  # the newline alone is missing: the event is whole, and is completed
            complete, rest = complete + 1, b""
        log = store.open("a")
        assert log.damage == Damage(torn_bytes=len(rest), torn_file=str(store.root / "a.torn-1") if rest else None)
        log.close()
        assert [file.read_bytes() for file in store.root.glob("a.torn-*")] == ([rest] if rest else [])
        assert store.path("a").read_bytes() == b"".join(lines[:complete])
        assert_goes_on(store, lines[:complete], complete)
        assert not store.inspect("a").is_damaged


# --- the middle ------------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(bad=st.lists(st.tuples(st.integers(0, 6), rubbish), min_size=1, max_size=4), text=texts)
def test_bad_lines_anywhere_are_counted_and_cost_nothing_else(bad: list[tuple[int, bytes]], text: str) -> None:
    lines = lines_of(6, text)
    with fresh_store() as store:
        out = []
        for n in range(7):
            out += [line + b"\n" for at, line in bad if at == n] + lines[n : n + 1]
        write(store, b"".join(out))
        assert damage_of(store) == store.verify("a") == Damage(bad_lines=len(bad))
        assert store.path("a").read_bytes() == b"".join(out)
        assert_goes_on(store, lines, 6)


@settings(max_examples=60)
@given(gone=st.sets(st.integers(1, 9), max_size=8))
def test_lost_lines_are_counted_by_the_numbers_that_are_missing(gone: set[int]) -> None:
    kept = [line for n, line in enumerate(lines_of(10), 1) if n not in gone]
    with fresh_store() as store:
        write(store, b"".join(kept))
        assert damage_of(store) == store.verify("a") == Damage(missing_events=len(gone))
        gaps = store.inspect("a").gaps
        assert {n for first, last in gaps for n in range(first, last + 1)} == gone
        assert_goes_on(store, kept, 10)


@settings(max_examples=80)
@given(data=st.data(), text=texts)
def test_a_block_of_zeros_anywhere_costs_what_it_covers(data: st.DataObject, text: str) -> None:
    lines = lines_of(8, text)
    whole = b"".join(lines)
    start = data.draw(st.integers(0, len(whole) - 2))
    end = data.draw(st.integers(start + 1, len(whole) - 1))  # zeros at the very end are a torn end
    ends = [sum(map(len, lines[: n + 1])) for n in range(8)]
    # A record is complete if it, its newline and the newline before it are there.
    kept = [line for line, upto in zip(lines, ends, strict=True) if upto <= start or upto - len(line) - 1 >= end]
    with fresh_store() as store:
        write(store, whole[:start] + b"\0" * (end - start) + whole[end:])
        lost = 8 - len(kept)
        missing = lost if kept and kept[-1] == lines[-1] else 0
        found = damage_of(store)
        assert (found.bad_lines, found.torn_bytes) == (1, 0)
        assert found.missing_events == (missing if kept else 0)
        assert store.verify("a") == found
        last = lines.index(kept[-1]) + 1 if kept else 0
        assert_goes_on(store, kept, last)


@settings(max_examples=60)
@given(text=texts, key=texts)
def test_what_only_looks_like_an_end_of_line_is_text(text: str, key: str) -> None:
    with fresh_store() as store:
        log = store.open("a")
        events = [*append_events(log, 1, text=text), encode(2, "user_message", {key: [text]})]
        log.append(events[1])
        log.close()
        raw = '{"seq":3,"event":"user_message","data":{"text":"a\u2028b\u2029c\x85"}}\n'.encode()
        with store.path("a").open("ab") as file:
            file.write(raw)
        found = list(store.read("a"))
        assert found[:2] == events
        assert found[2].data == {"text": "a\u2028b\u2029c\x85"}
        assert store.verify("a") == Damage()
        assert_goes_on(store, [*(e.line for e in events), raw], 3)


@pytest.mark.parametrize(
    ("data", "lines", "damage"),
    [
        (b"", 0, Damage()),
        (b"\n", 0, Damage(bad_lines=1)),
        (b"\n\n\n", 0, Damage(bad_lines=3)),
        (b"\r\n", 0, Damage(bad_lines=1)),
        (b"\xef\xbb\xbf", 0, Damage(torn_bytes=3, torn_file="a.torn-1")),
    ],
    ids=["empty", "a newline", "newlines", "crlf", "a mark"],
)
def test_a_file_with_no_event_is_a_log_without_events(
    store: JsonlStore, data: bytes, lines: int, damage: Damage
) -> None:
    write(store, data)
    assert (list(store.read("a")), store.tail("a", 3)) == ([], [])
    found = damage_of(store)
    assert (found.bad_lines, found.torn_bytes) == (damage.bad_lines, damage.torn_bytes)
    assert_goes_on(store, [], 0)


def test_a_log_that_an_editor_has_saved_keeps_every_event(store: JsonlStore) -> None:
    """With a byte order mark, the line ends of another system, and blank lines at the end."""
    events = [encode(1, "session_start", {"format": 1, "session_id": "a"})]
    events += [encode(n, "user_message", {"text": "é\u2028"}) for n in range(2, 5)]
    write(store, b"\xef\xbb\xbf" + b"\r\n".join(e.line for e in events) + b"\r\n\r\n")
    before = store.path("a").read_bytes()
    assert [e.data for e in store.read("a")] == [e.data for e in events]
    assert [e.seq for e in store.read("a", 2)] == [3, 4]
    assert damage_of(store) == Damage(bad_lines=1)
    assert store.path("a").read_bytes() == before
    log = store.open("a")
    (last,) = append_events(log, 1)
    log.close()
    assert (last.seq, store.path("a").read_bytes()) == (5, before + last.line + b"\n")
    store.path("b").write_bytes(before)
    with pytest.raises(StoreError, match="copy of session 'a'"):
        store.open("b")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), "\ud800", "a\udcffb", {"\ud83d": 1}])
async def test_no_value_costs_a_log_its_form(store: JsonlStore, value: Any) -> None:
    recorder = Recorder(store.open("a"), SessionState(), durability="os", publish=lambda event: None)
    await recorder.record("tool_call", {"value": value})
    await recorder.record("tool_call", {"value": [value]})
    recorder.close()
    assert [e.seq for e in store.read("a")] == [1, 2]
    assert store.verify("a") == Damage()
    store.path("a").read_bytes().decode("utf-8")


def test_a_number_that_is_no_json_is_a_bad_line(store: JsonlStore) -> None:
    lines = lines_of(3)
    write(store, lines[0] + b'{"seq":2,"event":"user_message","data":{"x":NaN}}\n' + lines[2])
    assert damage_of(store) == Damage(bad_lines=1, missing_events=1)
    assert_goes_on(store, [lines[0], lines[2]], 3)


async def test_a_turn_whose_end_is_a_bad_line_has_ended_for_whoever_asks(store: JsonlStore) -> None:
    async with engine(["one", "two"], log=store.open("s1")) as e:
        await e.send("go", "m1")
        await e.send("go", "m2")
    lines = store.path("s1").read_bytes().split(b"\n")
    first_end = next(n for n, line in enumerate(lines) if b'"turn_end"' in line)
    lines[first_end] = b"\0" * len(lines[first_end])
    store.path("s1").write_bytes(b"\n".join(lines))
    async with engine(["x"] * 9, log=store.open("s1")) as e:
        found = await e.send("go", "m1")  # the same id again: it does not run twice, and it does not wait for ever
        assert (found.finish_reason, found.text) == ("error_during_execution", "one")
        assert "damaged" in (found.error or {})["message"]
        assert (await e.send("go", "m2")).text == "two"
        assert e.kinds() == ["session_resume"]


# --- in use ----------------------------------------------------------------------------------------------------------


def replace_it(path: Path) -> None:
    path.rename(path.with_suffix(".old"))
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("harm", "heal"),
    [
        (lambda path: path.rename(path.with_suffix(".old")), lambda path: path.with_suffix(".old").rename(path)),
        (replace_it, lambda path: path.with_suffix(".old").replace(path)),
        (
            lambda path: path.parent.rename(path.parent.with_name("b")),
            lambda path: path.parent.with_name("b").rename(path.parent),
        ),
    ],
    ids=["moved", "replaced", "directory moved"],
)
async def test_a_log_that_loses_its_name_takes_nothing_until_it_has_it_again(
    tmp_path: Path, harm: Any, heal: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("athena.recorder.RETRY_FIRST_S", 0.001)
    monkeypatch.setattr("athena.recorder.RETRY_MAX_S", 0.01)
    store = JsonlStore(tmp_path / "logs")
    said: list[str | None] = []
    recorder = Recorder(
        store.open("a"), SessionState(), durability="os", publish=lambda event: None, on_degraded=said.append
    )
    await recorder.record("user_message", {"text": "before"})
    before = store.path("a").read_bytes()
    harm(store.path("a"))
    with pytest.raises(DiskError, match=r"moved|place of the log") as caught:
        await recorder.record("user_message", {}, waits=False)
    assert caught.value.errno == errno.ENOENT
    waiting = asyncio.create_task(recorder.record("user_message", {"text": "after"}))
    await wait_until_async(lambda: said == ["disk"])
    heal(store.path("a"))
    event = await waiting
    assert said == ["disk", None]
    recorder.close()
    assert store.path("a").read_bytes() == before + event.line + b"\n"


def test_a_log_that_is_deleted_in_use_says_so_and_is_not_made_again_behind_its_writer(store: JsonlStore) -> None:
    log = store.open("a")
    append_events(log, 2)
    store.path("a").unlink()
    with pytest.raises(DiskError, match="deleted"):
        append_events(log, 1)
    assert store.list() == []
    log.close()


def test_a_log_that_is_made_read_only_in_use_goes_on_for_its_writer(store: JsonlStore) -> None:
    log = store.open("a")
    events = append_events(log, 2)
    store.path("a").chmod(0o400)
    events += append_events(log, 2)
    log.sync()
    log.close()
    assert list(store.read("a")) == events


# --- sizes -----------------------------------------------------------------------------------------------------------


def sized(seq: int, size_bytes: int) -> Event:
    empty = encode(seq, "user_message", {"text": ""})
    return encode(seq, "user_message", {"text": "x" * (size_bytes - len(empty.line))})


@pytest.mark.slow
def test_a_record_at_the_limit_is_kept_and_one_byte_more_is_refused(store: JsonlStore) -> None:
    log = store.open("a")
    (first,) = append_events(log, 1)
    largest = sized(2, MAX_RECORD_BYTES)
    assert len(largest.line) == MAX_RECORD_BYTES
    log.append(largest)
    before = store.path("a").read_bytes()
    with pytest.raises(RecordTooLarge) as caught:
        log.append(sized(3, MAX_RECORD_BYTES + 1))
    assert caught.value.size_bytes == MAX_RECORD_BYTES + 1
    assert store.path("a").read_bytes() == before
    (last,) = append_events(log, 1)
    log.sync()
    log.close()
    assert [e.line for e in store.read("a")] == [first.line, largest.line, last.line]
    assert store.tail("a", 2) == [largest, last]
    assert store.verify("a") == Damage()


@pytest.mark.slow
@pytest.mark.parametrize("more", [0, 1])
def test_a_line_of_another_hand_is_read_up_to_its_limit(store: JsonlStore, more: int) -> None:
    head, tail = b'{"seq":2,"event":"theirs","data":{"text":"', b'"}}\n'
    long = head + b"x" * (MAX_LINE_BYTES + 1 - len(head) - len(tail) + more) + tail
    lines = lines_of(3)
    write(store, lines[0] + long + lines[2])
    assert [e.seq for e in store.read("a")] == ([1, 2, 3] if more == 0 else [1, 3])
    assert store.verify("a") == Damage(bad_lines=more, missing_events=more)
    assert_goes_on(store, [lines[0], long, lines[2]] if more == 0 else [lines[0], lines[2]], 3)


# --- copies ----------------------------------------------------------------------------------------------------------


def begin(store: JsonlStore, session_id: str) -> bytes:
    log = store.open(session_id)
    log.append(encode(1, "session_start", {"format": 1, "session_id": session_id}))
    append_events(log, 2)
    log.close()
    return store.path(session_id).read_bytes()


def test_a_log_that_was_copied_under_another_id_is_not_gone_on_with(store: JsonlStore) -> None:
    data = begin(store, "original")
    store.path("copy").write_bytes(data + b'{"torn')
    with pytest.raises(StoreError, match="copy of session 'original'") as caught:
        store.open("copy")
    assert caught.value.belongs_to == "original"
    with pytest.raises(StoreError, match="copy of session 'original'"):
        store.repair("copy")
    assert store.path("copy").read_bytes() == data + b'{"torn'
    assert [e.seq for e in store.read("copy")] == [1, 2, 3]  # it can be looked at
    report = store.inspect("copy")
    assert (report.belongs_to, report.is_damaged) == ("original", True)
    assert store.inspect("original").belongs_to is None
    assert store.delete("copy")
    store.open("original").close()


# --- repair ----------------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(
    lines=st.permutations(range(1, 9)).flatmap(lambda order: st.just(sorted(order[:5]))),
    bad=st.lists(st.tuples(st.integers(0, 5), rubbish), max_size=3),
    torn=st.binary(max_size=20).filter(lambda b: b"\n" not in b and not is_event(b)),
)
def test_a_repair_keeps_every_event_and_the_log_as_it_was(
    lines: list[int], bad: list[tuple[int, bytes]], torn: bytes
) -> None:
    every = lines_of(8)
    kept = [every[n - 1] for n in lines]
    parts = []
    for n in range(6):
        parts += [line + b"\n" for at, line in bad if at == n] + kept[n : n + 1]
    data = b"".join(parts) + torn
    with fresh_store() as store:
        write(store, data)
        before = store.inspect("a")
        done = store.repair("a")
        assert done.found == before
        if not before.is_damaged:
            assert (done.backup, store.path("a").read_bytes()) == (None, data)
            return
        assert done.backup == store.root / "a.backup-1"
        assert done.backup.read_bytes() == data
        after = store.inspect("a")
        assert (after.is_damaged, after.damage, after.gaps) == (False, Damage(), ())
        found = list(store.read("a"))
        assert [e.line + b"\n" for e in found[: len(kept)]] == kept
        assert [e.event for e in found[len(kept) :]] == (["repaired"] if before.damage else [])
        if before.damage:
            assert found[-1].data["missing_events"] == before.damage.missing_events
            assert found[-1].data["gaps"] == [list(gap) for gap in before.gaps]
        assert damage_of(store) == Damage()
        assert store.repair("a").backup is None
        assert not list(store.root.glob("*.repairing"))


def test_damage_after_a_repair_counts_again(store: JsonlStore) -> None:
    write(store, b"".join(lines_of(4)[1:]))
    store.repair("a")
    log = store.open("a")
    append_events(log, 1)
    log.close()
    with store.path("a").open("ab") as file:
        file.write(b"bad\n" + encode(9, "user_message", {}).line + b"\n")
    assert store.verify("a") == Damage(bad_lines=1, missing_events=2)
    assert store.inspect("a").gaps == ((7, 8),)


def test_a_log_in_use_is_not_repaired(store: JsonlStore) -> None:
    write(store, b"bad\n")
    log = store.open("a")
    with pytest.raises(LogLocked):
        store.repair("a")
    assert store.path("a").read_bytes() == b"bad\n"
    assert store.inspect("a").writer == os.getpid()
    log.close()
    with pytest.raises(NotFound):
        store.repair("b")
    with pytest.raises(NotFound):
        store.inspect("b")
    assert store.list() == ["a"]


def fail(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "injected")


@pytest.mark.parametrize("step", ["os.fsync", "pathlib.Path.replace", "athena.stores.upkeep.encode"])
def test_a_repair_that_fails_leaves_the_log_as_it_was(
    store: JsonlStore, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = b"bad\n" + b"".join(lines_of(3))
    write(store, data)
    with monkeypatch.context() as patched:
        patched.setattr(step, fail)
        with pytest.raises(DiskError, match="repair the log"):
            store.repair("a")
    assert store.path("a").read_bytes() == data
    assert not list(store.root.glob("*.repairing"))
    assert store.repair("a").backup is not None
    assert not store.inspect("a").is_damaged


def test_a_deleted_log_takes_along_what_is_beside_it_and_nothing_else(store: JsonlStore) -> None:
    for session_id in ("a", "a-b", "aa"):
        store.path(session_id).write_bytes(b"bad\n" + b"torn")
        store.open(session_id).close()
        store.repair(session_id)
    strangers = [store.root / name for name in ("a.txt", "a.torn-x", "a.torn-1.gz", "a.backup")]
    for file in strangers:
        file.touch()
    assert store.delete("a")
    assert {file.name for file in store.root.glob("a*")} == {
        *(file.name for file in strangers),
        *(f"{one}.{end}" for one in ("a-b", "aa") for end in ("jsonl", "torn-1", "backup-1")),
    }


# --- quota -----------------------------------------------------------------------------------------------------------


def append_for_ever(log: JsonlLog, kind: str, text: str) -> None:
    while True:
        log.append(encode(log.last_seq + 1, kind, {"text": text}))


def fill(store: JsonlStore) -> JsonlLog:
    log = store.open("a")
    with pytest.raises(DiskError, match="quota") as caught:
        append_for_ever(log, "user_message", "x" * 1000)
    assert (caught.value.errno, caught.value.max_log_bytes) == (errno.EDQUOT, MIN_QUOTA_BYTES)
    return log


def test_a_log_ends_at_its_quota_and_can_still_be_closed(tmp_path: Path) -> None:
    store = open_store("jsonl", root=tmp_path, options={"max_log_bytes": MIN_QUOTA_BYTES})
    assert isinstance(store, JsonlStore)
    log = fill(store)
    size = store.path("a").stat().st_size
    assert MIN_QUOTA_BYTES - 2000 < size <= MIN_QUOTA_BYTES
    for kind in ("tool_result", "interrupted", "turn_end", "session_end"):
        log.append(encode(log.last_seq + 1, kind, {"text": "x" * 1000}))
    with pytest.raises(DiskError, match="quota"):
        append_for_ever(log, "tool_result", "x" * 10_000)
    assert store.path("a").stat().st_size <= MIN_QUOTA_BYTES + RESERVE_BYTES
    log.close()
    larger = JsonlStore(tmp_path, max_log_bytes=4 * MIN_QUOTA_BYTES + RESERVE_BYTES)
    log = larger.open("a")
    append_events(log, 1)
    log.close()
    assert larger.verify("a") == Damage()


@pytest.mark.parametrize("value", [0, -1, True, "1GB", 1.5, MIN_QUOTA_BYTES - 1])
def test_a_quota_that_is_none_is_refused(tmp_path: Path, value: Any) -> None:
    with pytest.raises(InvalidOption, match="max_log_bytes"):
        open_store("jsonl", root=tmp_path, options={"max_log_bytes": value})


async def test_a_recorder_waits_at_the_quota_and_says_so(tmp_path: Path) -> None:
    store = JsonlStore(tmp_path, max_log_bytes=MIN_QUOTA_BYTES)
    log = store.open("a")
    said: list[str | None] = []
    published: list[Event] = []
    recorder = Recorder(log, SessionState(), durability="os", publish=published.append, on_degraded=said.append)
    filling = asyncio.create_task(_record_until_full(recorder))
    await wait_until_async(lambda: said == ["quota"])
    count = len(published)
    await recorder.record("turn_end", {"message_id": "m"})
    assert said == ["quota", None]
    await wait_until_async(lambda: said == ["quota", None, "quota"])
    filling.cancel()
    assert len(published) == count + 1
    recorder.close()
    assert [e.line for e in store.read("a")] == [e.line for e in published]


async def _record_until_full(recorder: Recorder) -> None:
    while True:
        await recorder.record("assistant_message", {"text": "x" * 1000})

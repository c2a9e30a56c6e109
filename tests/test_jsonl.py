"""The JSONL store against real faults: torn ends, bad lines, failed syncs, wrong files, threads, and a random walk."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from athena.errors import DiskError, StoreError
from athena.events import Event, encode
from athena.stores.base import Damage
from athena.stores.jsonl import KEPT_BYTES, JsonlLog, JsonlStore
from athena.stores.lines import MAX_LINE_BYTES, SLICE_BYTES, is_event
from athena.testing.store_contract import append_events


@pytest.fixture
def store(tmp_path: Path) -> JsonlStore:
    return JsonlStore(tmp_path)


@pytest.fixture
def log(store: JsonlStore) -> Iterator[JsonlLog]:
    log = store.open("a")
    yield log
    log.close()


def seqs(store: JsonlStore, after: int = 0) -> list[int]:
    return [event.seq for event in store.read("a", after)]


def written(store: JsonlStore, count: int, **data: object) -> bytes:
    """The bytes of a log with ``count`` events."""
    log = store.open("a")
    append_events(log, count, **data)
    log.close()
    return store.path("a").read_bytes()


# --- ends ------------------------------------------------------------------------------------------------------------


def test_a_log_torn_at_any_byte_keeps_every_earlier_event_and_the_torn_bytes(tmp_path: Path) -> None:
    whole = written(JsonlStore(tmp_path / "whole"), 3, text="é\u2028😀")
    start = whole[:-1].rfind(b"\n") + 1
    for cut in range(start, len(whole)):
        store = JsonlStore(tmp_path / str(cut))
        store.root.mkdir()
        store.path("a").write_bytes(whole[:cut])
        assert seqs(store) == [1, 2]
        log = store.open("a")
        if cut == len(whole) - 1:  # the newline alone is missing
            assert (seqs(store), log.damage) == ([1, 2, 3], Damage())
        else:
            assert seqs(store) == [1, 2]
            assert store.path("a").read_bytes() == whole[:start]
            assert log.damage.torn_bytes == cut - start
            torn = [p.read_bytes() for p in store.root.glob("a.torn-*")]
            assert torn == ([whole[start:cut]] if cut > start else [])
        log.close()


def test_opening_a_mended_log_again_changes_nothing(store: JsonlStore) -> None:
    whole = written(store, 2)
    for number in (1, 2):
        with store.path("a").open("ab") as file:
            file.write(b'{"seq":3,"event"')
        log = store.open("a")
        assert log.damage == Damage(torn_bytes=16, torn_file=str(store.root / f"a.torn-{number}"))
        log.close()
        log = store.open("a")
        assert (log.damage, log.last_seq) == (Damage(), 2)
        log.close()
        assert store.path("a").read_bytes() == whole
    assert store.list() == ["a"]


@pytest.mark.parametrize("start", [b"", b'{"seq":3,"ev'], ids=["clean", "torn"])
@pytest.mark.parametrize("zeros", [1, 4096, 200_000, 2 * SLICE_BYTES + 1])
def test_zeros_at_the_end_after_a_power_cut_are_torn(store: JsonlStore, start: bytes, zeros: int) -> None:
    whole = written(store, 2)
    store.path("a").write_bytes(whole + start + b"\0" * zeros)
    log = store.open("a")
    assert log.damage.torn_bytes == len(start) + zeros
    assert Path(log.damage.torn_file or "").read_bytes() == start + b"\0" * zeros
    append_events(log, 1)
    log.close()
    assert seqs(store) == [1, 2, 3]


def test_a_log_that_is_one_torn_line_becomes_empty(store: JsonlStore) -> None:
    store.path("a").write_bytes(b"no newline at all")
    log = store.open("a")
    assert (log.last_seq, log.damage.torn_bytes) == (0, 17)
    assert append_events(log, 1) == list(log.read())
    log.close()


def test_an_unfinished_line_is_not_read_and_not_mended_by_a_reader(store: JsonlStore) -> None:
    whole = written(store, 2)
    store.path("a").write_bytes(whole + encode(3, "user_message", {}).line)
    assert seqs(store) == [1, 2]
    assert [e.seq for e in store.tail("a", 5)] == [1, 2]
    assert store.path("a").stat().st_size > len(whole)


# --- the middle ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad", [b"", b"rubbish", b'{"seq":3}', b"\0" * 5000, b"\xff\xfe", b'{"event":"x","seq":2,"data":{}}', b"[1,2]"]
)
def test_a_bad_line_is_counted_and_skipped_and_stays(store: JsonlStore, bad: bytes) -> None:
    lines = written(store, 4).splitlines(keepends=True)
    damaged = b"".join([*lines[:2], bad + b"\n", *lines[2:]])
    store.path("a").write_bytes(damaged)
    log = store.open("a")
    assert [e.seq for e in log.read()] == [1, 2, 3, 4]
    assert log.damage == Damage(bad_lines=1) == store.verify("a")
    assert store.path("a").read_bytes() == damaged
    assert (log.last_seq, seqs(store, 2)) == (4, [3, 4])
    log.close()


def test_an_event_that_became_unreadable_leaves_a_gap_and_nothing_more(store: JsonlStore) -> None:
    lines = written(store, 5).splitlines(keepends=True)
    store.path("a").write_bytes(b"".join([*lines[:2], b"x" * 50 + b"\n", *lines[3:]]))
    assert seqs(store) == [1, 2, 4, 5]
    assert [e.seq for e in store.tail("a", 3)] == [2, 4, 5]


@pytest.mark.parametrize("wrong", [b"999", b"1", b"2"])
def test_one_damaged_number_costs_its_own_line(store: JsonlStore, wrong: bytes) -> None:
    data = written(store, 2000, pad="x" * 300)
    store.path("a").write_bytes(data.replace(b'"seq":1000,', b'"seq":%s,' % wrong))
    expected = [n for n in range(1, 2001) if n != 1000]
    assert seqs(store) == expected
    for after in (0, 10, 900, 1000, 1500):
        assert seqs(store, after) == [n for n in expected if n > after]
    assert store.verify("a") == Damage(bad_lines=1, missing_events=1)


def test_a_search_by_seq_is_not_misled_by_damaged_numbers(store: JsonlStore) -> None:
    data = written(store, 3000, pad="x" * 300)
    for n in range(3, 3001, 3):
        data = data.replace(b'"seq":%d,' % n, b'"seq":2,', 1)
    store.path("a").write_bytes(data)
    expected = [n for n in range(1, 3001) if n % 3]
    for after in (0, 100, 500, 1234, 2000):
        assert seqs(store, after) == [n for n in expected if n > after]


def test_a_bad_last_line_does_not_stop_the_log_from_going_on(store: JsonlStore) -> None:
    written(store, 2)
    with store.path("a").open("ab") as file:
        file.write(b"rubbish\n")
    log = store.open("a")
    append_events(log, 2)
    assert [e.seq for e in log.read()] == [1, 2, 3, 4]
    assert log.damage == Damage(bad_lines=1)
    log.close()


def test_a_line_without_end_is_skipped_in_constant_memory(store: JsonlStore) -> None:
    lines = written(store, 2).splitlines(keepends=True)
    with store.path("a").open("wb") as file:
        file.write(lines[0])
        file.seek(MAX_LINE_BYTES + SLICE_BYTES, os.SEEK_CUR)  # a hole of zeros
        file.write(b"\n" + lines[1])
    assert seqs(store) == [1, 2]
    assert store.verify("a") == Damage(bad_lines=1)


def test_the_tail_of_a_long_log_is_found_from_its_end(store: JsonlStore) -> None:
    with store.path("a").open("wb") as file:
        file.truncate(200 << 30)  # sparse: reading this from the start would take minutes
        file.seek(0, os.SEEK_END)
        file.write(b"\n" + b"".join(encode(n, "user_message", {"n": n}).line + b"\n" for n in range(7, 1007)))
    assert [e.seq for e in store.tail("a", 3)] == [1004, 1005, 1006]
    log = store.open("a")
    assert log.last_seq == 1006
    log.close()


@pytest.mark.parametrize("back", [0, 1, 10])
def test_the_last_events_of_a_long_log_are_found_without_reading_it(
    store: JsonlStore, back: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Why there is no index: nothing has to be derived, and nothing can be stale."""
    count = 20_000
    store.path("a").write_bytes(
        b"".join(encode(n, "user_message", {"n": n, "pad": "x" * 900}).line + b"\n" for n in range(1, count + 1))
    )
    read_bytes = 0
    pread = os.pread

    def counted(fd: int, size: int, offset: int) -> bytes:
        nonlocal read_bytes
        data = pread(fd, size, offset)
        read_bytes += len(data)
        return data

    monkeypatch.setattr("athena.stores.lines.os.pread", counted)
    assert seqs(store, count - back) == list(range(count - back + 1, count + 1))
    assert read_bytes < store.path("a").stat().st_size / 10


# --- writing and syncing ---------------------------------------------------------------------------------------------


def test_an_append_is_one_line_in_the_file_when_it_returns(log: JsonlLog) -> None:
    (event,) = append_events(log, 1)
    assert log.path.read_bytes() == event.line + b"\n"


@pytest.mark.parametrize("line", [b"", b'{"event":"x"}\n{"event":"y"}'])
def test_an_event_whose_line_is_no_line_is_refused(log: JsonlLog, line: bytes) -> None:
    event = encode(1, "user_message", {})
    object.__setattr__(event, "line", line)
    with pytest.raises(StoreError, match="newline"):
        log.append(event)
    assert log.path.read_bytes() == b""


class LosingDisk:
    """A sync that fails on demand, as a disk that loses the last ``lost_bytes``, which the kernel then calls clean."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lost_bytes: list[int] = []
        self.calls = 0

    def __call__(self, fd: int) -> None:
        self.calls += 1
        if self.lost_bytes:
            lost = self.lost_bytes.pop(0)
            with self.path.open("r+b") as file:
                file.seek(-lost, os.SEEK_END)
                file.write(b"\0" * lost)
            raise OSError(errno.EIO, "lost page write")
        os.fdatasync(fd)


def test_what_a_failed_sync_lost_is_written_again_before_the_next(tmp_path: Path) -> None:
    disk = LosingDisk(tmp_path / "a.jsonl")
    store = JsonlStore(tmp_path, sync=disk)
    log = store.open("a")
    append_events(log, 3)
    log.sync()
    lost = append_events(log, 2, text="é")
    size = sum(len(e.line) + 1 for e in lost)
    disk.lost_bytes = [size, size]
    for _ in range(2):
        with pytest.raises(DiskError) as caught:
            log.sync()
        assert caught.value.errno == errno.EIO
        assert seqs(store) == [1, 2, 3]
    append_events(log, 1)
    log.sync()
    assert seqs(store) == [1, 2, 3, 4, 5, 6]
    append_events(log, 1)  # and appends are appends again
    assert seqs(store) == [1, 2, 3, 4, 5, 6, 7]
    log.close()


def test_an_event_appended_during_a_sync_still_waits_for_the_next(tmp_path: Path) -> None:
    disk = LosingDisk(tmp_path / "a.jsonl")
    late: list[Event] = []
    log: JsonlLog

    def sync(fd: int) -> None:
        if not late:
            late.extend(append_events(log, 1))
        disk(fd)

    log = JsonlStore(tmp_path, sync=sync).open("a")
    early = append_events(log, 2)
    log.sync()
    disk.lost_bytes = [len(late[0].line) + 1]
    with pytest.raises(DiskError):
        log.sync()
    log.sync()
    assert list(log.read()) == early + late
    log.close()


def test_what_does_not_fit_in_memory_is_read_back_from_the_file(tmp_path: Path) -> None:
    disk = LosingDisk(tmp_path / "a.jsonl")
    log = JsonlStore(tmp_path, sync=disk).open("a")
    events = append_events(log, 3, text="x" * KEPT_BYTES) + append_events(log, 4)
    disk.lost_bytes = [sum(len(e.line) + 1 for e in events[3:])]
    with pytest.raises(DiskError):
        log.sync()
    log.sync()
    assert list(log.read()) == events
    log.close()


def test_the_first_sync_covers_what_a_dead_predecessor_left(tmp_path: Path) -> None:
    written(JsonlStore(tmp_path), 2)
    disk = LosingDisk(tmp_path / "a.jsonl")
    log = JsonlStore(tmp_path, sync=disk).open("a")
    log.sync()
    log.sync()
    assert disk.calls == 1
    log.close()


def test_a_first_sync_covers_the_directories_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr("athena.stores.jsonl.sync_dir", synced.append)
    store = JsonlStore(tmp_path / "one" / "two")
    log = store.open("a")
    for _ in range(2):
        append_events(log, 1)
        log.sync()
    assert sorted(synced) == [tmp_path, tmp_path / "one", tmp_path / "one" / "two"]
    log.close()


def test_appends_go_on_during_a_sync_and_waiting_syncs_share_one(tmp_path: Path) -> None:
    entered, release, calls = threading.Event(), threading.Event(), []

    def slow(fd: int) -> None:
        calls.append(fd)
        entered.set()
        assert release.wait(10)

    log = JsonlStore(tmp_path, sync=slow).open("a")
    append_events(log, 1)
    first = threading.Thread(target=log.sync)
    first.start()
    assert entered.wait(10)
    append_events(log, 10)
    rest = [threading.Thread(target=log.sync) for _ in range(8)]
    for thread in rest:
        thread.start()
    release.set()
    for thread in [first, *rest]:
        thread.join(10)
    assert len(calls) == 2
    assert len(list(log.read())) == 11
    log.close()


def test_nothing_is_lost_by_threads_that_append_and_sync_at_once(store: JsonlStore, log: JsonlLog) -> None:
    done = threading.Event()

    def keep_syncing() -> None:
        while not done.is_set():
            log.sync()

    threads = [threading.Thread(target=keep_syncing) for _ in range(3)]
    for thread in threads:
        thread.start()
    append_events(log, 2000, text="x" * 100)
    done.set()
    for thread in threads:
        thread.join(10)
    assert seqs(store) == list(range(1, 2001))


def test_syncing_a_closed_log_is_refused(log: JsonlLog) -> None:
    append_events(log, 1)
    log.close()
    with pytest.raises(StoreError, match="closed"):
        log.sync()


# --- a random walk ---------------------------------------------------------------------------------------------------

torn_ends = st.binary(min_size=1, max_size=60).filter(lambda b: b"\n" not in b and not is_event(b))
texts = st.text(max_size=30)


class LogMachine(RuleBasedStateMachine):
    """A log is a list of events, whatever happens between its appends."""

    @initialize()
    def start(self) -> None:
        self.root = Path(tempfile.mkdtemp())
        self.fail_next_sync = False
        self.store = JsonlStore(self.root, sync=self.sync_file)
        self.log = self.store.open("a")
        self.lines: list[bytes] = []
        self.bad = 0

    def sync_file(self, fd: int) -> None:
        if self.fail_next_sync:
            self.fail_next_sync = False
            raise OSError(errno.EIO, "injected")

    @rule(text=texts, repeat=st.sampled_from([1, 1, 1, 400]))
    def append(self, text: str, repeat: int) -> None:
        event = encode(len(self.lines) + 1, "user_message", {"text": text * repeat})
        self.log.append(event)
        self.lines.append(event.line)

    @rule(fails=st.booleans())
    def sync(self, fails: bool) -> None:
        self.fail_next_sync = fails
        try:
            self.log.sync()
        except DiskError:
            assert fails
        self.fail_next_sync = False

    @rule()
    def reopen(self) -> None:
        self.log.close()
        self.log = self.store.open("a")
        assert self.log.damage == Damage()

    @rule(end=torn_ends)
    def crash(self, end: bytes) -> None:
        self.log.close()
        with self.store.path("a").open("ab") as file:
            file.write(end)
        self.log = self.store.open("a")
        assert Path(self.log.damage.torn_file or "").read_bytes() == end

    @rule()
    def lose_the_newline(self) -> None:
        self.log.close()
        if self.lines and not self.store.path("a").read_bytes().endswith(b"bad\n"):
            os.truncate(self.store.path("a"), self.store.path("a").stat().st_size - 1)
        self.log = self.store.open("a")

    @rule()
    def damage(self) -> None:
        self.log.close()
        with self.store.path("a").open("ab") as file:
            file.write(b"bad\n")
        self.bad += 1
        self.log = self.store.open("a")

    @invariant()
    def the_log_is_the_list(self) -> None:
        assert [e.line for e in self.log.read()] == self.lines
        assert self.log.last_seq == len(self.lines)
        assert self.log.damage.bad_lines == self.bad
        middle = len(self.lines) // 2
        assert [e.line for e in self.store.read("a", middle)] == self.lines[middle:]
        assert [e.line for e in self.store.tail("a", 3)] == self.lines[-3:]

    def teardown(self) -> None:
        if hasattr(self, "log"):
            self.log.close()
            shutil.rmtree(self.root)


TestLogMachine = LogMachine.TestCase
TestLogMachine.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)

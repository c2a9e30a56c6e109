"""Large payloads out of line: whole before a line names them, read back by whoever reads, counted, and looked after.
And values that no record holds, which end a turn and never a process."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from athena import Session, providers
from athena.cli.export import exathena
from athena.errors import DiskError, LogLocked, NotFound, RecordTooLarge, UnsupportedStore
from athena.events import MAX_RECORD_BYTES, Event, encode
from athena.loop import batch
from athena.loop.result import SHORT_CHARS
from athena.providers.base import Provider, ProviderSettings
from athena.recorder import FOLLOW_BYTES
from athena.removal import collect, collect_blobs
from athena.stored import resume
from athena.stores.blobs import OUT_OF_LINE_BYTES, Blobs, in_line, ref_of, refs_in, split_ref
from athena.stores.jsonl import MIN_QUOTA_BYTES, JsonlStore
from athena.tools.base import ToolContext, ToolOutput
from tests.cli_fixtures import athena
from tests.engine import AnyArguments, Engine, calls, engine, make_tool

SEED = [{"role": "user", "content": "hi"}]
LARGE = {"rows": ["é\u2028" * 10] * 4000}
MESSAGE: dict[str, Any] = {"role": "tool", "tool_results": [{"tool_call_id": "c0", "content": "done"}]}


@pytest.fixture
def store(tmp_path: Path) -> JsonlStore:
    return JsonlStore(tmp_path / "logs")


def shows(payload: Any) -> Any:
    """A tool whose result has ``payload`` for people."""

    async def show(args: AnyArguments, ctx: ToolContext) -> ToolOutput:
        return ToolOutput("done", ui_kind="table", ui_payload=payload)

    return make_tool("show", show)


async def turn(store: JsonlStore, payload: Any, **options: Any) -> Engine:
    """A session ``s1`` that has run one turn, with a call that shows ``payload``."""
    log = store.open("s1")
    async with engine([calls("show"), "done"] * 2, log=log, extra_tools=[shows(payload)], **options) as e:
        assert (await e.send()).text == "done"
    return e


def scripted(*script: str) -> Provider:
    """A provider whose script is not among the session's options, which are recorded."""
    return providers.create("mock", ProviderSettings(options={"mock": list(script)}))


def result_with(ref: str) -> dict[str, Any]:
    blob = {"ref": ref, "size_bytes": 1}
    return {"message": {"tool_results": [{"tool_call_id": "c0", "content": "", "ui_payload": {"blob": blob}}]}}


# --- out and in ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("durability", ["os", "turn", "event"])
async def test_a_large_payload_is_in_a_private_file_and_its_line_has_a_reference(
    store: JsonlStore, durability: str
) -> None:
    e = await turn(store, LARGE, durability=durability)
    (event,) = [event for event in store.read("s1") if event.event == "tool_result"]
    assert len(event.line) < 1000
    (ref,) = refs_in(event)
    session_id, name = split_ref(ref)
    path = store.root / "s1.blobs" / name
    assert (session_id, orjson.loads(store.read_blob(ref))) == ("s1", LARGE)
    assert [stat.S_IMODE(p.stat().st_mode) for p in (path.parent, path)] == [0o700, 0o600]
    ui = event.data["message"]["tool_results"][0]["ui_payload"]
    size_bytes = path.stat().st_size
    assert ui == {"kind": "table", "payload": None, "blob": {"ref": ref, "size_bytes": size_bytes}}
    assert [p.line for p in e.events if p.event == "tool_result"] == [event.line]  # published as it is written
    assert ref_of(e.state.messages[2].tool_results[0].ui_payload) == ref  # and not held in memory either
    assert not store.inspect("s1").is_damaged


async def test_whoever_reads_a_stored_session_gets_the_payload(store: JsonlStore) -> None:
    await turn(store, LARGE)
    found = resume("s1", root=store.root)
    assert isinstance(found, list)
    assert found[2].tool_results[0].ui_payload == {"kind": "table", "payload": LARGE}
    (ref,) = [ref for event in store.read("s1") for ref in refs_in(event)]
    assert orjson.loads(Session.blob(ref, root=store.root)) == LARGE
    exported = athena("store", "export", "s1", "--root", str(store.root)).out
    whole = exported.split("\n")[:-1]
    assert [orjson.loads(line)["seq"] for line in whole] == [e.seq for e in store.read("s1")]
    (line,) = [line for line in whole if '"tool_result"' in line]
    assert orjson.loads(line)["data"]["message"]["tool_results"][0]["ui_payload"]["payload"] == LARGE
    lines = list(exathena(in_line(event, store.read_blob) for event in store.read("s1")))
    assert any(orjson.dumps(LARGE).decode()[:2000] in line for line in lines)


async def test_what_is_small_and_what_json_cannot_hold_stays_in_its_line(store: JsonlStore) -> None:
    text = "x" * (OUT_OF_LINE_BYTES - len(orjson.dumps({"t": ""})))
    await turn(store, {"t": text})
    assert [ref for event in store.read("s1") for ref in refs_in(event)] == []
    assert not (store.root / "s1.blobs").exists()
    await turn(store, {"t": text + "x"})
    assert len([ref for event in store.read("s1") for ref in refs_in(event)]) == 1


async def test_the_same_bytes_are_kept_once(store: JsonlStore) -> None:
    await turn(store, LARGE)
    await turn(store, LARGE)
    assert len(list((store.root / "s1.blobs").iterdir())) == 1
    assert len([ref for event in store.read("s1") for ref in refs_in(event)]) == 2


async def test_a_store_without_blobs_keeps_the_payload_in_its_line() -> None:
    async with engine([calls("show"), "done"], extra_tools=[shows(LARGE)]) as e:
        await e.send()
        assert e.state.messages[2].tool_results[0].ui_payload == {"kind": "table", "payload": LARGE}
    with pytest.raises(UnsupportedStore, match="out of line"):
        Session.blob("s1/" + "0" * 64, "in_memory")


@pytest.mark.parametrize(
    "ref", ["", "s1", "s1/", "../x/" + "0" * 64, "s1/../../x", "s1/" + "0" * 63, "/" + "0" * 64, None]
)
def test_what_is_no_reference_reads_nothing(store: JsonlStore, ref: Any) -> None:
    with pytest.raises(NotFound, match="reference"):
        store.read_blob(ref)


# --- order -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("durable", "order"),
    [
        (False, ["open x.part", "write", "replace"]),
        (True, ["open x.part", "write", "fsync x.part", "replace", "fsync s1.blobs", "fsync logs"]),
    ],
)
def test_a_blob_is_whole_and_if_promised_synced_before_it_can_be_named(
    store: JsonlStore, monkeypatch: pytest.MonkeyPatch, durable: bool, order: list[str]
) -> None:
    log = store.open("s1")
    done: list[str] = []
    names: dict[int, str] = {}
    real_open, real_write, real_fsync, real_replace = os.open, os.write, os.fsync, Path.replace

    def spy_open(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        fd = real_open(path, flags, *args, **kwargs)
        names[fd] = "x.part" if str(path).endswith(".part") else Path(path).name
        if flags & os.O_CREAT:
            done.append(f"open {names[fd]}")
        return fd

    def spy(what: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(first: Any, *args: Any) -> Any:
            done.append(f"{what} {names[first]}" if what == "fsync" else what)
            return real(first, *args)

        return call

    monkeypatch.setattr(os, "open", spy_open)
    monkeypatch.setattr(os, "write", spy("write", real_write))
    monkeypatch.setattr(os, "fsync", spy("fsync", real_fsync))
    monkeypatch.setattr(Path, "replace", spy("replace", real_replace))
    log.put_blob(b"x" * 100_000, durable=durable)
    monkeypatch.undo()
    log.close()
    assert done == order


def test_a_blob_that_could_not_be_synced_is_written_again(store: JsonlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    log = store.open("s1")
    data = b"x" * 100_000
    log.put_blob(data, durable=False)
    written: list[int] = []
    real_fsync, real_write = os.fsync, os.write

    def fail_once(fd: int) -> None:
        monkeypatch.setattr(os, "fsync", real_fsync)
        raise OSError(errno.EIO, "lost")

    def count(fd: int, piece: Any) -> int:
        written.append(len(piece))
        return real_write(fd, piece)

    monkeypatch.setattr(os, "fsync", fail_once)
    monkeypatch.setattr(os, "write", count)
    with pytest.raises(DiskError) as caught:
        log.put_blob(data, durable=True)
    assert (caught.value.errno, written) == (errno.EIO, [])
    ref = log.put_blob(data, durable=True)  # what the kernel now calls clean may be lost
    assert (written, store.read_blob(ref)) == ([len(data)], data)
    log.close()


@pytest.mark.parametrize("spoiled", [b"", b"\0" * 100_000, b"y"])
def test_a_blob_that_a_power_cut_has_spoiled_is_not_taken_for_whole(store: JsonlStore, spoiled: bytes) -> None:
    log = store.open("s1")
    ref = log.put_blob(b"x" * 100_000, durable=False)
    path = store.root / "s1.blobs" / split_ref(ref)[1]
    path.write_bytes(spoiled)
    with pytest.raises(NotFound, match="damaged"):
        store.read_blob(ref)
    assert log.put_blob(b"x" * 100_000, durable=False) == ref
    assert store.read_blob(ref) == b"x" * 100_000
    log.close()


def test_what_fails_leaves_no_part_of_a_blob(store: JsonlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    log = store.open("s1")
    real_write = os.write

    def short(fd: int, piece: Any) -> int:
        if len(piece) < 50_000:
            raise OSError(errno.ENOSPC, "full")
        return real_write(fd, piece[:60_000])

    monkeypatch.setattr(os, "write", short)
    with pytest.raises(DiskError) as caught:
        log.put_blob(b"x" * 100_000, durable=True)
    monkeypatch.undo()
    assert caught.value.errno == errno.ENOSPC
    assert list((store.root / "s1.blobs").iterdir()) == []
    assert store.read_blob(log.put_blob(b"x" * 100_000, durable=True)) == b"x" * 100_000
    log.close()


# --- looking after them ----------------------------------------------------------------------------------------------


async def test_a_missing_or_damaged_blob_is_told_and_costs_the_payload_only(store: JsonlStore) -> None:
    await turn(store, LARGE)
    (ref,) = [ref for event in store.read("s1") for ref in refs_in(event)]
    blobs = Blobs(store.path("s1"))
    before = store.path("s1").read_bytes()
    spoils: list[Callable[[Path], object]] = [lambda p: p.write_bytes(b"other"), Path.unlink]
    for spoil in spoils:
        spoil(blobs.path / split_ref(ref)[1])
        report = store.inspect("s1")
        assert (report.missing_blobs, report.is_damaged, report.orphan_blobs) == ((ref,), True, ())
        with pytest.raises(NotFound):
            store.read_blob(ref)
        found = resume("s1", root=store.root)
        assert isinstance(found, list)
        assert (found[2].tool_results[0].content, ref_of(found[2].tool_results[0].ui_payload)) == ("done", ref)
    log = store.open("s1")  # and nothing keeps the session from going on
    log.close()
    assert athena("store", "verify", "s1", "--root", str(store.root)).code == 1
    done = store.repair("s1")
    assert done.backup is not None
    assert done.backup.read_bytes() == before
    assert store.path("s1").read_bytes().startswith(before)
    assert (store.inspect("s1").is_damaged, store.inspect("s1").missing_blobs) == (False, ())
    assert list(store.read("s1"))[-1].data["missing_blobs"] == [ref]


async def test_an_orphan_is_no_damage_and_gc_removes_it_when_it_is_old(store: JsonlStore) -> None:
    await turn(store, LARGE)
    log = store.open("s1")
    orphan = split_ref(log.put_blob(b"a crash comes before its line", durable=True))[1]
    part = store.root / "s1.blobs" / ("0" * 64 + ".part")
    part.write_bytes(b"cut off")
    report = store.inspect("s1")
    assert (report.orphan_blobs, report.is_damaged) == (tuple(sorted([orphan, part.name])), False)
    assert collect_blobs(-1, root=store.root) == 0  # its line may come any time: the log is in use
    log.close()
    assert collect_blobs(3600, root=store.root) == 0
    assert collect_blobs(-1, root=store.root) == 29 + 7
    assert store.inspect("s1").orphan_blobs == ()
    assert resume("s1", root=store.root)[2].tool_results[0].ui_payload == {"kind": "table", "payload": LARGE}  # type: ignore[index]


def test_blobs_of_a_log_with_bad_lines_are_kept(store: JsonlStore) -> None:
    log = store.open("s1")
    log.put_blob(b"x" * 10, durable=True)
    log.append(encode(1, "user_message", {}))
    log.close()
    with store.path("s1").open("ab") as file:
        file.write(b"a line that may have named it\n")
    assert collect_blobs(-1, root=store.root) == 0
    assert len(store.inspect("s1").orphan_blobs) == 1


def test_a_blob_of_another_session_is_found_there_and_is_not_ours_to_remove(store: JsonlStore) -> None:
    log = store.open("parent")
    ref = log.put_blob(b"x" * 10, durable=True)
    log.append(encode(1, "tool_result", result_with(ref)))
    log.close()
    log = store.open("child")
    log.append(encode(1, "tool_result", result_with(ref)))
    log.close()
    assert (store.inspect("child").missing_blobs, store.inspect("child").orphan_blobs) == ((), ())
    assert store.delete("child")
    assert store.read_blob(ref) == b"x" * 10
    assert not store.inspect("parent").is_damaged


async def test_deleting_a_session_takes_its_blobs_along_and_gc_counts_them(store: JsonlStore) -> None:
    await turn(store, LARGE)
    (row,) = collect(-1, root=store.root, dry_run=True)
    assert row["size_bytes"] > len(orjson.dumps(LARGE))
    log = store.open("s1")
    with pytest.raises(LogLocked):
        store.delete("s1")
    log.close()
    assert (store.root / "s1.blobs").is_dir()
    assert store.delete("s1")
    assert list(store.root.iterdir()) == []


# --- limits ----------------------------------------------------------------------------------------------------------


async def test_at_the_quota_a_payload_is_left_out_and_the_result_is_kept(tmp_path: Path) -> None:
    store = JsonlStore(tmp_path, max_log_bytes=MIN_QUOTA_BYTES)
    e = await turn(store, LARGE)
    size_bytes = len(orjson.dumps(LARGE))
    ui = e.state.messages[2].tool_results[0].ui_payload
    assert ui == {"kind": "table", "payload": {"left_out_bytes": size_bytes}}
    assert not (store.root / "s1.blobs").exists()


def test_blobs_count_for_the_quota_over_lives(tmp_path: Path) -> None:
    store = JsonlStore(tmp_path, max_log_bytes=MIN_QUOTA_BYTES)
    log = store.open("s1")
    log.put_blob(b"x" * (MIN_QUOTA_BYTES - 1000), durable=False)
    log.close()
    log = store.open("s1")
    with pytest.raises(DiskError, match="quota"):
        log.put_blob(b"y" * 1001, durable=False)
    with pytest.raises(DiskError, match="quota"):
        log.append(encode(1, "user_message", {"text": "x" * 1000}))
    log.append(encode(1, "tool_result", {"text": "x" * 1000}))
    log.close()


@pytest.mark.slow
@pytest.mark.parametrize("escaped", ["x", "\x01"], ids=["plain", "escaped"])
async def test_an_answer_that_no_record_holds_ends_its_turn_and_the_session_goes_on(
    store: JsonlStore, escaped: str
) -> None:
    each = len(orjson.dumps(escaped)) - 2
    huge = escaped * (MAX_RECORD_BYTES // each)
    log = store.open("s1")
    async with engine(log=log, provider=scripted(huge)) as e:
        first = await e.send()
        assert (first.finish_reason, first.category, first.text) == ("error_during_execution", "retryable", None)
        assert first.error is not None
        assert first.error["error"] == "RecordTooLarge"
        assert e.kinds("assistant_message") == []
        assert (await e.send()).finish_reason == "error_during_execution"  # the script is where it was, and so are we
    async with engine(log=store.open("s1"), provider=scripted("small")) as e:
        assert (await e.send()).text == "small"
    assert not store.inspect("s1").is_damaged


@pytest.mark.slow
async def test_the_largest_answer_that_fits_can_be_repeated_by_the_end_of_its_turn(store: JsonlStore) -> None:
    huge = "x" * (MAX_RECORD_BYTES - FOLLOW_BYTES - 1000)
    log = store.open("s1")
    async with engine(log=log, provider=scripted(huge)) as e:
        assert (await e.send()).text == huge
    assert [len(event.line) > len(huge) for event in store.read("s1")].count(True) == 2


@pytest.mark.slow
async def test_a_message_that_no_record_holds_is_refused_to_its_sender(store: JsonlStore) -> None:
    log = store.open("s1")
    async with engine(["one"], log=log) as e:
        with pytest.raises(RecordTooLarge) as caught:
            await e.submit("x" * (MAX_RECORD_BYTES - FOLLOW_BYTES))
        assert caught.value.size_bytes > MAX_RECORD_BYTES - FOLLOW_BYTES
        largest = "x" * (MAX_RECORD_BYTES - FOLLOW_BYTES - 1000)
        assert (await e.send(largest)).text == "one"
        assert e.state.messages[0].text == largest
        assert e.kinds().count("message_accepted") == 1


async def test_a_result_that_no_record_holds_says_that_its_call_ended(
    store: JsonlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("athena.events.MAX_RECORD_BYTES", 20_000)
    ran: list[int] = []

    async def much(args: AnyArguments, ctx: ToolContext) -> ToolOutput:
        ran.append(1)
        return ToolOutput("x" * 30_000)

    log = store.open("s1")
    async with engine([calls("much"), "done"], log=log, extra_tools=[make_tool("much", much)]) as e:
        assert (await e.send()).text == "done"
        ((_, text),) = e.results()
    assert text.startswith(batch.TOO_LARGE)
    assert ran == [1]


async def test_the_end_of_a_turn_is_shortened_where_it_would_not_fit(
    store: JsonlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log of an older release may hold an answer of the full size, whose turn had not ended."""
    text = "x" * 30_000
    events: list[tuple[str, dict[str, Any], str | None]] = [
        ("session_start", {"format": 1, "session_id": "s1", "options": {}}, None),
        ("message_accepted", {"message_id": "m1", "text": "go"}, None),
        ("turn_start", {"message_id": "m1"}, "t1"),
        ("user_message", {"message": {"role": "user", "content": "go"}}, "t1"),
        ("assistant_message", {"message": {"role": "assistant", "content": text}}, "t1"),
    ]
    log = store.open("s1")
    for seq, (kind, data, turn_id) in enumerate(events, 1):
        log.append(encode(seq, kind, data, turn_id))
    monkeypatch.setattr("athena.events.MAX_RECORD_BYTES", 20_000)
    async with engine([], log=log) as e:
        result = await e.result("m1")
        assert (result.finish_reason, result.text) == ("stop", text[:SHORT_CHARS])
        assert result.messages[-1].text == text


def test_an_event_without_references_is_the_same_in_line() -> None:
    event = encode(1, "tool_result", {"message": MESSAGE})
    assert in_line(event, lambda ref: b"") is event
    strange: list[dict[str, Any]] = [
        {"message": 5},
        {"message": {"tool_results": 5}},
        {"message": {"tool_results": [5, {"ui_payload": 5}]}},
        {},
    ]
    found: list[Event] = [encode(n, "tool_result", data) for n, data in enumerate(strange, 1)]
    assert [refs_in(one) for one in found] == [[]] * 4

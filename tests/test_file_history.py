"""What files were is kept before they change, and comes back: the right version, whole or not at all, of the right
file."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from athena import file_history
from athena.errors import DiskError
from athena.events import Event
from athena.file_history import FileHistory, look, put
from athena.loop.state import SessionState
from athena.messages import Message
from athena.points import CONFLICT, DELETED, FAILED, NOT_KEPT, RESTORED, UNCHANGED
from athena.recorder import Recorder
from athena.redact import Redactor
from athena.stores.base import Log
from athena.stores.jsonl import JsonlStore
from athena.stores.memory import MemoryStore
from athena.tools.base import ToolContext, ToolFailure
from athena.tools.edit import EditParameters
from athena.tools.edit import run as edit
from athena.tools.write import WriteParameters
from athena.tools.write import run as write

SECRET = "sk-of-this-session-0123456789"


class Desk:
    """A session's log and its tools that edit files, in this process."""

    def __init__(self, root: Path, cwd: Path, log: Log | None = None) -> None:
        self.store = JsonlStore(root)
        self.cwd = cwd
        self.events: list[Event] = []
        self.recorder = Recorder(
            log or self.store.open("s"), SessionState(), durability="turn", publish=self.events.append
        )
        self.history = FileHistory(self.recorder, Redactor({"KEY": SECRET}))
        self.context = ToolContext(cwd, "s", "c1", history=self.history)

    async def begin(self) -> None:
        await self.recorder.record("session_start", {"session_id": "s"})

    @property
    def seq(self) -> int:
        return self.recorder.state.cursor.seq

    async def write(self, name: str, content: str) -> None:
        await write(WriteParameters(path=name, content=content), self.context)
        await self.end_step()

    async def edit(self, name: str, old: str, new: str) -> None:
        await edit(EditParameters(path=name, old_string=old, new_string=new), self.context)
        await self.end_step()

    async def end_step(self) -> None:
        """What a call of the loop leaves behind it."""
        await self.recorder.record("system_message", {"message": Message("system", "done").to_map()})

    async def rewind(self, to: int) -> dict[str, str]:
        """Record a rewind and carry it out; the outcomes by name."""
        await self.recorder.record("rewind", {"id": str(self.seq), "to": to, "files": True})
        return await self.resume()

    async def resume(self) -> dict[str, str]:
        """Do what is left of a rewind."""
        restoring = self.recorder.state.restoring
        assert restoring is not None
        found = await self.history.restore(restoring, self.store.read_blob)
        data = {"rewind": restoring.seq, "files": [one.to_map() for one in found]}
        await self.recorder.record("files_restored", data)
        return {os.path.basename(one.path): one.outcome for one in found}

    def text(self, name: str) -> str | None:
        path = self.cwd / name
        return path.read_text() if path.exists() else None


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    cwd = tmp_path / "work"
    cwd.mkdir()
    made = Desk(tmp_path / "logs", cwd)
    await made.begin()
    yield made
    made.recorder.close()


def temporary(root: Path) -> list[str]:
    return [path.name for path in root.rglob("*.tmp")]


# --- before an edit ---------------------------------------------------------------------------------------------------


async def test_what_a_file_was_is_in_a_private_blob_before_it_changes(desk: Desk) -> None:
    path = desk.cwd / "a.sh"
    path.write_text("old")
    path.chmod(0o751)
    seen: list[str] = []
    desk.recorder._publish = lambda event: seen.append(f"{event.event} {path.read_text()}")
    await desk.edit("a.sh", "old", "new")
    assert seen == ["file_edit old", "system_message new"]
    (change,) = desk.recorder.state.edits
    assert change.path == str(path)
    assert change.before is not None
    assert change.before.mode == 0o751
    assert desk.store.read_blob(str(change.before.ref)) == b"old"
    blobs = desk.store.root / "s.blobs"
    assert [stat.S_IMODE(file.stat().st_mode) for file in blobs.iterdir()] == [0o600]


async def test_the_same_content_is_kept_once_and_an_absent_file_is_null(desk: Desk) -> None:
    for _ in range(3):
        await desk.write("a.txt", "one")
        await desk.write("b.txt", "one")
    first, second = desk.recorder.state.edits[:2]
    assert (first.before, second.before) == (None, None)
    assert len(list((desk.store.root / "s.blobs").iterdir())) == 1
    assert desk.store.inspect("s").orphan_blobs == ()
    assert desk.store.inspect("s").missing_blobs == ()


async def test_a_blob_of_a_file_that_is_gone_is_damage(desk: Desk) -> None:
    await desk.write("a.txt", "one")
    at = desk.seq
    await desk.write("a.txt", "two")
    for blob in (desk.store.root / "s.blobs").iterdir():
        blob.unlink()
    assert len(desk.store.inspect("s").missing_blobs) == 1
    assert await desk.rewind(at) == {"a.txt": FAILED}
    assert desk.text("a.txt") == "two"


async def test_an_edit_that_fails_leaves_the_file_and_a_rewind_over_it_changes_nothing(desk: Desk) -> None:
    (desk.cwd / "file").write_text("x")
    with pytest.raises(ToolFailure):
        await desk.write("file/below", "content")
    with pytest.raises(ToolFailure):
        await desk.write(".", "content")
    at = desk.seq
    assert at == 1, [event.event for event in desk.events]


async def test_what_cannot_be_kept_is_said_and_the_edit_goes_on(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_history, "KEEP_BYTES", 10)
    (desk.cwd / "large.txt").write_text("x" * 11)
    (desk.cwd / "secret.env").write_text(f"A={SECRET}"[:10])
    await desk.write("large.txt", "small")
    monkeypatch.undo()
    (desk.cwd / "secret.env").write_text(f"A={SECRET}")
    await desk.write("secret.env", "B=2")
    assert [e.before.not_kept for e in desk.recorder.state.edits if e.before] == ["too_large", "secret"]
    assert await desk.rewind(1) == {"large.txt": NOT_KEPT, "secret.env": NOT_KEPT}
    assert (desk.text("large.txt"), desk.text("secret.env")) == ("small", "B=2")
    for path in desk.store.root.rglob("*"):
        assert path.is_dir() or SECRET.encode() not in path.read_bytes()


async def test_a_store_without_blobs_keeps_none_and_a_quota_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")
    desk = Desk(tmp_path / "logs", tmp_path, MemoryStore().open("s"))
    await desk.write("a.txt", "new")
    assert [e.before.not_kept for e in desk.recorder.state.edits if e.before] == ["store"]
    (tmp_path / "big.txt").write_text("y" * 70_000)
    small = Desk(tmp_path / "logs", tmp_path, JsonlStore(tmp_path / "logs", max_log_bytes=64 * 1024).open("q"))
    await small.write("big.txt", "new")
    assert [e.before.not_kept for e in small.recorder.state.edits if e.before] == ["quota"]
    assert (desk.text("a.txt"), desk.text("big.txt")) == ("new", "new")
    small.recorder.close()


async def test_a_disk_that_refuses_the_copy_holds_the_edit_up(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    (desk.cwd / "a.txt").write_text("old")
    tries: list[str] = []

    def refuse(data: bytes, *, durable: bool) -> str:
        tries.append((desk.cwd / "a.txt").read_text())
        if len(tries) < 3:
            raise DiskError("full", errno=28)
        monkeypatch.undo()
        return str(desk.recorder.log.put_blob(data, durable=durable))  # type: ignore[attr-defined]

    monkeypatch.setattr(desk.recorder.log, "put_blob", refuse)
    await desk.write("a.txt", "new")
    assert tries == ["old"] * 3
    assert desk.text("a.txt") == "new"


# --- going back -------------------------------------------------------------------------------------------------------


async def test_each_point_has_its_own_version(desk: Desk) -> None:
    points: list[tuple[int, dict[str, str | None]]] = []

    def mark() -> None:
        points.append((desk.seq, {name: desk.text(name) for name in ("a", "b")}))

    mark()
    for name, content in [("a", "1"), ("a", "2"), ("b", "x"), ("a", "3"), ("b", "y")]:
        await desk.write(name, content)
        mark()
    for seq, wanted in [*reversed(points), *points]:  # each rewind is one more edit, and so is what undoes it
        await desk.rewind(seq)
        assert {name: desk.text(name) for name in ("a", "b")} == wanted, seq
    assert temporary(desk.cwd) == []


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.one_of(
            st.tuples(st.sampled_from("abc"), st.sampled_from("123")), st.tuples(st.just("back"), st.integers(0, 99))
        ),
        max_size=12,
    )
)
def test_a_rewind_to_any_event_gives_the_files_that_its_history_has(
    tmp_path_factory: pytest.TempPathFactory, actions: list[tuple[str, Any]]
) -> None:
    """A point inside an edit means before it, one inside a rewind behind it."""
    root = tmp_path_factory.mktemp("case")
    (root / "work").mkdir()

    async def run() -> None:
        desk = Desk(root / "logs", root / "work")
        await desk.begin()
        files: dict[int, dict[str, str]] = {}

        def now() -> dict[str, str]:
            return {path.name: path.read_text() for path in desk.cwd.iterdir()}

        for name, value in actions:
            first, before = desk.seq + 1, now()
            if name == "back":
                to = 1 + value % desk.seq
                await desk.rewind(to)
                assert now() == files.get(to, {})
                files |= dict.fromkeys(range(first, desk.seq + 1), now())
            else:
                await desk.write(name, value)
                files |= dict.fromkeys(range(first, desk.seq), before)
                files[desk.seq] = now()
        desk.recorder.close()

    asyncio.run(run())


async def test_a_file_that_cannot_be_read_is_said_to_be_lost(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied")

    (desk.cwd / "a").write_text("old")
    with monkeypatch.context() as patch:
        patch.setattr(file_history, "look", refuse)
        await desk.write("a", "new")
    assert await desk.rewind(1) == {"a": NOT_KEPT}
    assert desk.text("a") == "new"


async def test_a_restored_file_has_its_mode_and_a_removed_directory_comes_back(desk: Desk) -> None:
    path = desk.cwd / "deep" / "run.sh"
    path.parent.mkdir()
    path.write_bytes(b"\xff\x00old")
    path.chmod(0o705)
    at = desk.seq
    await desk.write("deep/run.sh", "new")
    path.chmod(0o600)
    path.unlink()
    path.parent.rmdir()
    assert await desk.rewind(at) == {"run.sh": CONFLICT}  # somebody else removed it
    assert path.read_bytes() == b"\xff\x00old"
    assert stat.S_IMODE(path.stat().st_mode) == 0o705


async def test_a_file_that_was_not_there_is_deleted_and_one_that_is_right_is_left(desk: Desk) -> None:
    (desk.cwd / "same").write_text("as ever")
    at = desk.seq
    await desk.write("new", "1")
    await desk.write("same", "other")
    await desk.write("same", "as ever")
    before = (desk.cwd / "same").stat().st_ino
    assert await desk.rewind(at) == {"new": DELETED, "same": UNCHANGED}
    assert desk.text("new") is None
    assert (desk.cwd / "same").stat().st_ino == before


async def test_what_somebody_else_has_changed_is_kept_before_it_is_replaced(desk: Desk) -> None:
    at = desk.seq
    await desk.write("a", "ours")
    (desk.cwd / "a").write_text("theirs")
    undo = desk.seq
    assert await desk.rewind(at) == {"a": CONFLICT}
    assert desk.text("a") is None
    assert await desk.rewind(undo) == {"a": RESTORED}
    assert desk.text("a") == "theirs"


async def test_what_somebody_else_has_changed_and_nobody_can_keep_is_left_alone(desk: Desk) -> None:
    at = desk.seq
    await desk.write("a", "ours")
    (desk.cwd / "a").write_text(f"key = {SECRET}")
    assert await desk.rewind(at) == {"a": CONFLICT}
    assert desk.text("a") == f"key = {SECRET}"


async def test_no_link_is_followed_out_of_its_place(desk: Desk, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "a").write_text("private")
    at = desk.seq
    await desk.write("dir/a", "ours")
    await desk.write("b", "ours")
    await desk.write("c", "ours")
    (desk.cwd / "dir" / "a").unlink()
    (desk.cwd / "dir").rmdir()
    (desk.cwd / "dir").symlink_to(outside)
    (desk.cwd / "b").unlink()
    (desk.cwd / "b").symlink_to(outside / "a")
    (desk.cwd / "c").unlink()
    (desk.cwd / "c").mkdir()
    assert await desk.rewind(at) == {"a": FAILED, "b": FAILED, "c": FAILED}
    assert (outside / "a").read_text() == "private"
    assert (desk.cwd / "b").is_symlink()


async def test_an_edit_through_a_link_is_one_of_the_file_behind_it(desk: Desk, tmp_path: Path) -> None:
    real = tmp_path / "real.txt"
    real.write_text("old")
    (desk.cwd / "link").symlink_to(real)
    at = desk.seq
    await desk.write("link", "new")
    assert await desk.rewind(at) == {"real.txt": RESTORED}
    assert (real.read_text(), (desk.cwd / "link").is_symlink()) == ("old", True)


@pytest.mark.parametrize("stop", range(8))
async def test_a_rewind_that_is_cut_anywhere_is_finished_by_the_next_life(desk: Desk, stop: int) -> None:
    """Each record is a place where the process may end, and what is behind it has not happened then."""
    for name in ("a", "b", "c"):
        (desk.cwd / name).write_text(f"old {name}")
    at = desk.seq
    for name in ("a", "b", "c", "d"):
        await desk.write(name, "new")
    (desk.cwd / "c").write_text("theirs")
    await desk.recorder.record("rewind", {"id": "x", "to": at, "files": True})
    records, record = [0], desk.recorder.record

    async def cut(kind: str, data: dict[str, Any], *rest: Any, **more: Any) -> Event:
        if stop % 2 == 0 and records[0] == stop // 2:
            raise KeyboardInterrupt
        event = await record(kind, data, *rest, **more)
        if records[0] == stop // 2:
            raise KeyboardInterrupt
        records[0] += 1
        return event

    desk.recorder.record = cut  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        await desk.resume()
    desk.recorder.record = record  # type: ignore[method-assign]
    assert await desk.resume() == {"a": RESTORED, "b": RESTORED, "c": CONFLICT, "d": DELETED}
    assert [desk.text(name) for name in "abcd"] == ["old a", "old b", "old c", None]
    assert desk.recorder.state.restoring is None
    assert await desk.rewind(desk.recorder.state.rewinds["x"].seq - 1)
    assert [desk.text(name) for name in "abcd"] == ["new", "new", "theirs", "new"]


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_look_finds_regular_files_only_and_never_waits(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert look(str(tmp_path / "absent")) is None
    assert look(str(tmp_path / "no" / "where")) is None
    for name in ("pipe", "."):
        with pytest.raises(OSError, match=r"regular|directory"):
            look(str(tmp_path / name))


def test_a_put_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_text("old")

    def fail(fd: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output"):
        put(str(path), b"new", 0o644)
    assert [file.name for file in tmp_path.iterdir()] == ["a"]
    assert path.read_text() == "old"


def test_a_directory_that_takes_no_new_file_is_written_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    path.write_text("old and long")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "rename", refuse)
    put(str(path), b"new", 0o644)
    assert path.read_text() == "new"
    assert temporary(tmp_path) == []

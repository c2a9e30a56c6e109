"""A disk that is full, or fails: nothing is lost, nothing runs on what is not recorded, a sender is told, and the
session goes on by itself when it can.

First in this process, with a fault at every write and sync of a turn; then sessions on a real small disk.
"""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from athena import Session, runner
from athena.errors import AthenaError, DiskError
from athena.events import Event
from athena.loop.state import SessionState
from athena.recorder import Recorder
from athena.stores.base import Damage
from athena.stores.jsonl import JsonlStore
from athena.stores.lines import end_of_lines
from athena.stores.memory import MemoryStore
from athena.tools.base import ToolContext, ToolOutput
from tests.engine import AnyArguments, calls, engine, make_tool
from tests.helpers import wait_until, wait_until_async
from tests.session_fixtures import (
    Files,
    Sessions,
    background,
    files,
    kill,
    result,
    sessions,
    shared_supervisor,
)
from tests.session_tools import ALL

__all__ = ["background", "files", "sessions", "shared_supervisor"]

Background = Callable[[Callable[[], Any]], Future[Any]]

REFUSALS = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO, "EDQUOT": errno.EDQUOT, "EFBIG": errno.EFBIG}
NEW_MOUNTS = ["unshare", "--user", "--map-root-user", "--mount"]
DISK_BYTES = 512 * 1024


# --- a fault at every place, in this process -------------------------------------------------------------------------


class FaultyLog:
    """A log whose ``fails_at``-th append or blob is refused ``times`` times, as by a disk that is full for a while."""

    def __init__(self, store: JsonlStore, fails_at: int, error: int, times: int = 2) -> None:
        self.log = store.open("s1")
        self.tries = 0
        self.refused = 0
        self.when_refused: Callable[[], None] = lambda: None
        self._at, self._errno, self._times = fails_at, error, times

    @property
    def damage(self) -> Damage:
        return self.log.damage

    @property
    def last_seq(self) -> int:
        return self.log.last_seq

    def append(self, event: Event) -> None:
        self._pass()
        self.log.append(event)

    def put_blob(self, data: bytes, *, durable: bool) -> str:
        self._pass()
        return self.log.put_blob(data, durable=durable)

    def sync(self) -> None:
        self.log.sync()

    def read(self, after: int = 0) -> Iterator[Event]:
        return self.log.read(after)

    def close(self) -> None:
        self.log.close()

    def _pass(self) -> None:
        if self.tries == self._at and self.refused < self._times:
            self.refused += 1
            self.when_refused()
            raise DiskError("refused", errno=self._errno)
        self.tries += 1


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("athena.recorder.RETRY_FIRST_S", 0.001)
    monkeypatch.setattr("athena.recorder.RETRY_MAX_S", 0.01)


TURN = ["message_accepted", "turn_start", "user_message", "assistant_message", "tool_call", "blob", "tool_result"]
TURN += ["tool_call", "blob", "tool_result", "assistant_message", "turn_end"]
"""What a turn of the test writes, in this order, after the session's start."""


@pytest.mark.parametrize("error", REFUSALS)
@pytest.mark.parametrize("at", range(len(TURN)), ids=[f"{n}-{kind}" for n, kind in enumerate(TURN)])
async def test_a_write_that_is_refused_at_any_place_of_a_turn_holds_it_up_and_changes_nothing(
    tmp_path: Path, at: int, error: str
) -> None:
    store = JsonlStore(tmp_path)
    effects: list[str] = []
    ran_before: list[list[str]] = []

    async def act(args: AnyArguments, ctx: ToolContext) -> ToolOutput:
        effects.append(str(args.get("n")))
        return ToolOutput("done", ui_kind="k", ui_payload={"large": "x" * 70_000})

    tool = make_tool("act", act)
    log = FaultyLog(store, 1 + at, REFUSALS[error])
    log.when_refused = lambda: ran_before.append(list(effects))
    async with engine([calls(("act", {"n": 1}), ("act", {"n": 2})), "ok"], log=log, extra_tools=[tool]) as e:
        if TURN[at] == "message_accepted":  # whoever sends it is told, at once, and may send it again
            for _ in range(2):
                with pytest.raises(DiskError) as caught:
                    await e.submit("go", "m1")
                assert caught.value.errno == REFUSALS[error]
                assert not e.state.queue
                assert not e.state.receipts
        assert (await e.send("go", "m1")).text == "ok"
    assert (log.refused, effects) == (2, ["1", "2"])
    assert ran_before[0] == ran_before[1]  # no tool runs in between
    assert [event.event for event in store.read("s1")][1:] == [kind for kind in TURN if kind != "blob"]
    assert [event.seq for event in store.read("s1")] == list(range(1, 12))
    assert not store.inspect("s1").is_damaged


async def test_a_turn_in_a_full_memory_store_can_be_ended(tmp_path: Path) -> None:
    async def much(args: AnyArguments, ctx: ToolContext) -> ToolOutput:
        return ToolOutput("x" * 30_000)

    log = MemoryStore(max_bytes=200_000).open("s1")
    async with engine([calls("much")] * 50, log=log, extra_tools=[make_tool("much", much)]) as e:
        message_id = await e.submit()
        await wait_until_async(lambda: e.runner.recorder.is_degraded)
        with pytest.raises(DiskError, match="full"):
            await e.submit("y" * 30_000)
        assert await e.runner.interrupt()
        assert (await e.result(message_id)).finish_reason == "interrupted"


class FailingSync:
    """A sync that fails until it is mended."""

    def __init__(self) -> None:
        self.is_broken = False
        self.calls = 0

    def __call__(self, fd: int) -> None:
        self.calls += 1
        if self.is_broken:
            raise OSError(errno.EIO, "injected")


async def test_while_no_sync_works_no_tool_runs_and_the_turn_ends_when_one_does(tmp_path: Path) -> None:
    sync, effects = FailingSync(), []

    async def act(args: AnyArguments, ctx: ToolContext) -> ToolOutput:
        effects.append(1)
        sync.is_broken = len(effects) < 3
        return ToolOutput("done")

    tools = [make_tool("act", act), make_tool("look", act, on_crash="safe", read_only=True)]
    store = JsonlStore(tmp_path, sync=sync)
    script = [calls("act", "look", "act"), "ok"]
    async with engine(script, log=store.open("s1"), extra_tools=tools, durability="turn") as e:
        message_id = await e.submit()
        await wait_until_async(lambda: e.runner.recorder.is_degraded)
        before = sync.calls
        await wait_until_async(lambda: sync.calls > before + 20)
        assert effects == [1, 1]  # what is safe to run again needs no sync; the next does
        sync.is_broken = False
        assert (await e.result(message_id)).text == "ok"
        assert (effects, e.runner.recorder.is_degraded) == ([1, 1, 1], False)


@pytest.mark.parametrize("durability", ["turn", "event"])
async def test_a_sender_is_told_in_time_when_its_message_is_recorded_and_cannot_be_synced(
    tmp_path: Path, durability: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "ACCEPT_LIMIT_S", 0.1)
    sync = FailingSync()
    store = JsonlStore(tmp_path, sync=sync)
    async with engine(["one"], log=store.open("s1"), durability=durability) as e:
        sync.is_broken = True
        for _ in range(2):  # a resend does not count twice
            with pytest.raises(DiskError, match="keeps its place") as caught:
                await e.submit("go", "m1")
            assert (caught.value.recorded, caught.value.message_id) == (True, "m1")
        sync.is_broken = False
        assert (await e.send("go", "m1")).text == "one"
        assert e.kinds("message_accepted", "turn_start", "turn_end") == ["message_accepted", "turn_start", "turn_end"]
        assert [event.seq for event in e.events] == list(range(1, 7))


async def test_an_opening_that_cannot_be_written_is_the_first_that_a_later_life_writes(tmp_path: Path) -> None:
    store = JsonlStore(tmp_path)
    async with engine(["one"], log=store.open("s1")) as e:
        await e.send()
    log = FaultyLog(store, 0, errno.ENOSPC, times=3)
    state = SessionState()
    for event in log.read():
        state.apply(event)
    said: list[str | None] = []
    recorder = Recorder(log, state, durability="os", publish=lambda event: None, on_degraded=said.append)
    life = runner.Runner("s1", e.runner.options, recorder, e.runner._provider, {}, e, env={})
    with pytest.raises(DiskError):
        await life.begin("killed")
    life._openings.clear()
    await life.begin("killed", is_later_life=True)
    running = asyncio.create_task(life.run())
    await wait_until_async(lambda: said == ["disk", None])
    running.cancel()
    await asyncio.wait([running])
    recorder.close()
    assert [event.event for event in store.read("s1")][-2:] == ["turn_end", "session_resume"]


# --- a real small disk -----------------------------------------------------------------------------------------------


class Disk:
    """A small disk of its own, for logs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.ballast = root / "ballast"

    def fill(self) -> None:
        """Leave not one page."""
        with self.ballast.open("ab", buffering=0) as file:
            for size in (65536, 4096, 1):
                with pytest.raises(OSError, match="No space left"):  # noqa: PT012 - the write that fails is the last
                    while True:
                        file.write(b"\0" * size)

    def free(self) -> None:
        """Make room again."""
        self.ballast.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    root = tmp_path / "disk"
    root.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "athena-test", str(root)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("a small disk cannot be mounted here")
    yield Disk(root)
    subprocess.run(["umount", "--lazy", str(root)], check=True)


def step(files: Files, number: int, **more: Any) -> dict[str, Any]:
    """Calls a tool that counts its effect in ``effects``, which is not on the small disk, and waits for its gate."""
    arguments = {"effects": files.path("effects"), "gate": files.path(f"gate{number}"), "text": "x" * 20_000, **more}
    return {"tool_calls": [{"name": "wait_once", "arguments": arguments}]}


def begin(sessions: Sessions, disk: Disk, mock: list[Any], **options: Any) -> Session:
    return sessions.start(mock, tools=ALL, root=str(disk.root), session_id="s1", **options)


def stored(disk: Disk) -> list[str]:
    return [event.event for event in JsonlStore(disk.root).read("s1")]


def state(session: Session) -> str:
    return str(session.status()["state"])


@pytest.mark.slow
@pytest.mark.parametrize("durability", ["os", "turn", "event"])
def test_a_disk_that_fills_in_the_middle_of_a_turn_and_is_freed_costs_nothing(
    disk: Disk, sessions: Sessions, files: Files, background: Background, durability: str
) -> None:
    session = begin(sessions, disk, [step(files, 1), step(files, 2), step(files, 3), "end"], durability=durability)
    answer = background(lambda: session.send_message("go"))
    for number in (1, 2, 3):
        files.wait_lines("effects", number)
        disk.fill()
        files.open(f"gate{number}")
        wait_until(lambda: state(session) == "degraded(disk)", 20)
        recorded = stored(disk)
        assert recorded.count("tool_result") == number - 1
        with pytest.raises(DiskError) as caught:
            session.submit("y" * 20_000)
        assert caught.value.errno == errno.ENOSPC
        assert (stored(disk), len(files.lines("effects"))) == (recorded, number)
        disk.free()
    ended = result(answer)
    assert (ended.text, ended.tool_calls_made) == ("end", 3)
    assert (len(files.lines("effects")), state(session)) == (3, "running")
    assert session.send_message("again").text
    assert [kind for kind in stored(disk) if kind in ("message_accepted", "turn_end")] == [
        "message_accepted", "turn_end", "message_accepted", "turn_end",
    ]  # fmt: skip
    assert not JsonlStore(disk.root).inspect("s1").is_damaged


@pytest.mark.slow
def test_a_session_that_is_killed_on_a_full_disk_comes_back_and_ends_its_turn_when_there_is_room(
    disk: Disk, sessions: Sessions, files: Files, background: Background
) -> None:
    session = begin(sessions, disk, [step(files, 1), step(files, 2), "end"])
    answer = background(lambda: session.send_message("go"))
    files.wait_lines("effects", 1)
    disk.fill()
    files.open("gate1")
    wait_until(lambda: state(session) == "degraded(disk)", 20)
    for _ in range(2):
        first = kill(session)
        wait_until(lambda: state(session) == "degraded(disk)" and session.pid not in (None, first), 20)  # noqa: B023
    files.open("gate2")
    assert len(files.lines("effects")) == 1
    disk.free()
    ended = result(answer)
    assert (ended.text, len(files.lines("effects"))) == ("end", 2)
    first_result = next(m for m in ended.messages if m.role == "tool").tool_results[0]
    assert "unknown" in first_result.content  # it ran, and what it said could not be kept
    assert not JsonlStore(disk.root).inspect("s1").is_damaged


@pytest.mark.slow
def test_a_torn_end_that_cannot_be_moved_keeps_a_session_waiting_and_not_failed(
    disk: Disk, sessions: Sessions, files: Files
) -> None:
    session = begin(sessions, disk, ["one", "two"])
    assert session.send_message("go").text == "one"
    path = disk.root / "s1.jsonl"
    whole = path.read_bytes()
    with path.open("ab") as file:
        file.write(b'{"seq":9,"event"' + b"x" * 9000)
    disk.fill()
    kill(session)
    wait_until(lambda: session.status()["incarnation"] >= 2, 20)
    until = time.monotonic() + 1
    while time.monotonic() < until:
        assert state(session) in ("starting", "restarting")
    assert list(disk.root.glob("*.torn-*")) == []
    disk.free()
    wait_until(lambda: state(session) == "running", 20)
    assert session.send_message("go on").text == "two"
    assert path.read_bytes().startswith(whole)
    (torn,) = disk.root.glob("s1.torn-*")
    assert torn.stat().st_size == 16 + 9000
    assert (session.status()["damage"] or {})["torn_bytes"] == 16 + 9000


@pytest.mark.slow
def test_starting_and_stopping_on_a_full_disk_is_told_and_takes_no_time(
    disk: Disk, sessions: Sessions, files: Files
) -> None:
    session = begin(sessions, disk, ["one"])
    assert session.send_message("go").text == "one"
    disk.fill()
    started_at = time.monotonic()
    with pytest.raises(AthenaError, match=r"No space left|disk full") as caught:
        sessions.start(["x"], root=str(disk.root), session_id="s2", system_prompt="x" * 20_000)
    assert isinstance(caught.value, DiskError)
    session.stop()
    with pytest.raises(DiskError):  # nor does one that was stored come back as if it could go on
        begin(sessions, disk, ["one", "two"], system_prompt="x" * 20_000)
    assert time.monotonic() - started_at < 10
    disk.free()
    again = begin(sessions, disk, ["one", "two"])
    assert again.send_message("go").text == "two"


@pytest.mark.slow
def test_a_log_that_is_full_of_a_short_write_is_whole_at_every_moment(disk: Disk) -> None:
    """Of a record of many pages, some fit: what was written of it is taken back before anybody could build on it."""
    store = JsonlStore(disk.root)
    log = store.open("s1")
    from athena.testing.store_contract import append_events

    events = append_events(log, 1)
    for size in (DISK_BYTES * 2, DISK_BYTES):
        with pytest.raises(DiskError) as caught:
            append_events(log, 1, text="x" * size)
        assert caught.value.errno == errno.ENOSPC
        fd = os.open(store.path("s1"), os.O_RDONLY)
        assert end_of_lines(fd, os.fstat(fd).st_size) == os.fstat(fd).st_size
        os.close(fd)
    events += append_events(log, 1)
    assert list(log.read()) == events
    log.close()


def _can_be_root_of_a_namespace() -> bool:
    try:
        probe = [*NEW_MOUNTS, "mount", "-t", "tmpfs", "none", "/mnt"]
        return os.geteuid() != 0 and subprocess.run(probe, capture_output=True, timeout=10).returncode == 0
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not _can_be_root_of_a_namespace(), reason="runs as root, or may not make a namespace")
def test_an_ordinary_user_runs_the_tests_with_a_small_disk_in_a_namespace() -> None:
    command = [*NEW_MOUNTS, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "disk", __file__]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stdout[-4000:]
    assert "skipped" not in ran.stdout.replace("1 skipped", "")

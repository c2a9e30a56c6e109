"""The power goes at any moment: each durability level loses what it says it may and nothing else, and no state that the
kernel may leave behind keeps a session from going on."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from athena.errors import DiskError, NotFound
from athena.events import Event, encode
from athena.stores.base import Damage
from athena.stores.blobs import refs_in
from athena.stores.jsonl import JsonlLog, JsonlStore
from athena.testing.store_contract import append_events
from athena.tools.base import Tool, ToolContext, ToolOutput
from tests.engine import AnyArguments, Engine, calls, engine, make_tool
from tests.power_cut import PowerCut

SCRIPT = [calls(("act", {"n": 1}), ("act", {"n": 2})), "one", calls(("act", {"n": 3})), "two", *["more"] * 9]
CHOICES = {"os": 1, "turn": 40, "event": 60}
"""How many states of a file are drawn besides the extremes: the less may be lost, the more of them are alike."""

PAYLOAD = {"large": "é" * 40_000}


@pytest.fixture
def scratch() -> Iterator[Path]:
    """Where states are built: in memory if possible, as each is synced when it is opened."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as path:
        yield Path(path)


def synced_by_us(fd: int) -> None:
    os.fdatasync(fd)  # looked up when it is called: it is recorded then


@dataclass
class Moment:
    """A moment in which the power may go, what was promised by then, and what had been done."""

    disk: PowerCut
    promised_seq: int
    lines: list[bytes]
    effects: list[int]


@dataclass
class Witness:
    """Runs turns on a disk that is recorded, and notes each moment."""

    root: Path
    level: str
    moments: list[Moment] = field(default_factory=list)
    effects: list[int] = field(default_factory=list)
    promised_seq: int = 0
    engine: Engine | None = None

    def tool(self) -> Tool:
        async def act(args: AnyArguments, ctx: ToolContext) -> ToolOutput:
            self.promise()
            self.effects.append(int(args.get("n")))
            return ToolOutput("done", ui_kind="k", ui_payload=PAYLOAD | {"n": args.get("n")})

        return make_tool("act", act)

    def promise(self) -> None:
        """What is recorded now must survive, if the level is worth it."""
        if self.level != "os":
            self.promised_seq = self.recorded[-1].seq

    @property
    def recorded(self) -> list[Event]:
        return self.engine.events if self.engine is not None else []

    def note(self, disk: PowerCut) -> None:
        promised = self.promised_seq
        if self.level == "event" and self.recorded:
            promised = self.recorded[-1].seq  # everything that was published
        lines = [event.line for event in self.recorded]
        self.moments.append(Moment(disk.snapshot(), promised, lines, list(self.effects)))

    async def run(self) -> list[bytes]:
        """Two turns; the log's lines."""
        disk = PowerCut(self.root)
        disk.on_step = lambda: self.note(disk)
        store = JsonlStore(self.root / "state" / "logs", sync=synced_by_us)
        with disk.recording():
            async with engine(
                SCRIPT, log=store.open("s1"), extra_tools=[self.tool()], durability=self.level
            ) as self.engine:
                for message_id in ("m1", "m2"):
                    await self.engine.submit("go", message_id)
                    accepted = [e.seq for e in self.recorded if e.data.get("message_id") == message_id]
                    self.promised_seq = max(self.promised_seq, accepted[0] if self.level != "os" else 0)
                    assert (await self.engine.result(message_id)).ok
                    self.promise()
            self.note(disk)
        return [event.line for event in store.read("s1")]


def check_state(place: Path, moment: Moment, lines: list[bytes], level: str) -> JsonlStore:
    """What is left of the log is whole, has all that was promised and nothing that was not, and goes on."""
    store = JsonlStore(place / "state" / "logs")
    found = list(store.read("s1"))
    assert [event.line for event in found if event.seq <= moment.promised_seq] == lines[: moment.promised_seq]
    assert {event.line for event in found} <= set(lines)
    for ref in (ref for event in found for ref in refs_in(event)):
        if level != "os":  # a blob is on the disk before a line can name it
            assert b"large" in store.read_blob(ref)
    log = store.open("s1")
    whole = [event.line for event in log.read()]
    assert whole[: len(found)] == [event.line for event in found]  # a last line may have lost its newline alone
    assert set(whole) <= set(lines)
    assert log.damage.missing_events == 0 or moment.promised_seq < log.last_seq
    log.close()
    return store


@pytest.mark.slow
@pytest.mark.parametrize("level", ["os", "turn", "event"])
async def test_each_level_keeps_what_it_promises_in_every_state_that_the_kernel_may_leave(
    tmp_path: Path, scratch: Path, level: str
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    witness = Witness(root, level)
    lines = await witness.run()
    assert len(lines) == len(witness.recorded)
    rng, states, lost_most = random.Random(level), 0, 0
    for number, moment in enumerate(witness.moments):
        for place in moment.disk.states(scratch / f"m{number}", rng, CHOICES[level]):
            states += 1
            store = check_state(place, moment, lines, level)
            lost_most = max(lost_most, len(moment.lines) - sum(1 for _ in store.read("s1")))
            if states % 7 == 0:
                await check_it_goes_on(store, moment, level)
            else:
                log = store.open("s1")
                append_events(log, 1)
                log.close()
            shutil.rmtree(place)
    assert states > 300
    assert lost_most >= {"os": len(lines) - 1, "turn": 1, "event": 0}[level]  # and it may lose what it says it may


async def check_it_goes_on(store: JsonlStore, moment: Moment, level: str) -> None:
    """A new life ends both turns, and repeats no effect whose level forbids it."""
    effects, is_holed = list(moment.effects), bool(store.verify("s1")) if store.list() else False

    async def act(args: AnyArguments, ctx: ToolContext) -> ToolOutput:
        effects.append(int(args.get("n")))
        return ToolOutput("done")

    async with engine(
        SCRIPT, log=store.open("s1"), extra_tools=[make_tool("act", act)], durability=level, counted=True
    ) as e:
        for message_id, text in (("m1", "one"), ("m2", "two")):
            ended = await e.send("go", message_id)
            if is_holed:  # of what was not synced any part may be gone, and with it how a turn has ended
                assert ended.finish_reason == "stop" or "damaged" in (ended.error or {})["message"]
            else:
                assert (ended.finish_reason, ended.text) == ("stop", text)
    if level != "os":
        assert max(Counter(effects).values()) == 1
        assert set(effects) <= {1, 2, 3}


# --- the store alone -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_what_a_sync_covered_is_there_whatever_failed_before_it(tmp_path: Path, scratch: Path, seed: int) -> None:
    root = tmp_path / "root"
    root.mkdir()
    disk, rng = PowerCut(root), random.Random(seed)
    with disk.recording():
        log = JsonlStore(root, sync=synced_by_us).open("a")
        events: list[Event] = []
        synced = 0
        for turn in range(25):
            events += append_events(log, rng.randrange(1, 4), text="é" * rng.choice([1, 100, 900]))
            if rng.random() < 0.6:
                disk.fail_syncs = rng.choice([0, 0, 1, 2])
                synced = max(synced, _sync(log, events))
                disk.fail_syncs = 0
            for place in disk.states(scratch / f"t{turn}", rng):
                found = list(JsonlStore(place).read("a"))
                assert [e for e in found if e.seq <= synced] == events[:synced]
                assert {e.line for e in found} <= {e.line for e in events}
        log.close()
    assert synced > 5


def _sync(log: JsonlLog, events: list[Event]) -> int:
    try:
        log.sync()
    except DiskError:
        return 0
    return len(events)


@pytest.mark.slow
def test_a_torn_end_is_in_the_log_or_in_its_file_whenever_the_power_goes(tmp_path: Path, scratch: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    whole = b"".join(encode(n, "user_message", {"text": "x" * 300}).line + b"\n" for n in range(1, 6))
    torn = b'{"seq":6,"event"' + b"y" * 700
    (root / "a.jsonl").write_bytes(whole + torn)
    disk = PowerCut(root)
    checked = [0]
    rng = random.Random(1)

    def check() -> None:
        for place in disk.states(scratch / f"s{checked[0]}", rng):
            checked[0] += 1
            data = (place / "a.jsonl").read_bytes()
            kept = [file.read_bytes() for file in place.glob("a.torn-*")]
            assert data == whole + torn or torn in kept
            store = JsonlStore(place)
            assert [e.seq for e in store.read("a")] == [1, 2, 3, 4, 5]
            log = store.open("a")
            assert log.last_seq == 5
            assert store.path("a").read_bytes() == whole
            log.close()

    disk.on_step = check
    with disk.recording():
        log = JsonlStore(root, sync=synced_by_us).open("a")
        append_events(log, 1)
        disk.on_step = lambda: None
        log.close()
    assert checked[0] > 5


@pytest.mark.slow
def test_a_repair_leaves_the_old_log_or_the_new_one_whenever_the_power_goes(tmp_path: Path, scratch: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    lines = [encode(n, "user_message", {"text": "x" * 300}).line + b"\n" for n in range(1, 6)]
    before = lines[0] + b"bad\n" + b"".join(lines[2:]) + b'{"torn'
    (root / "a.jsonl").write_bytes(before)
    disk = PowerCut(root)
    rng, checked = random.Random(2), [0]

    def check() -> None:
        for place in disk.states(scratch / f"s{checked[0]}", rng):
            checked[0] += 1
            store = JsonlStore(place)
            found = list(store.read("a"))
            assert [e.line + b"\n" for e in found if e.event != "repaired"] == [lines[0], *lines[2:]]
            backups = [file.read_bytes() for file in place.glob("a.backup-*")]
            assert store.path("a").read_bytes() == before or before in backups
            store.open("a").close()
            store.repair("a")
            assert store.verify("a") == Damage()

    disk.on_step = check
    with disk.recording():
        JsonlStore(root).repair("a")
        check()
    assert checked[0] > 10


def test_what_no_sync_covered_may_be_gone_and_is_then_no_event(tmp_path: Path, scratch: Path) -> None:
    """The model itself: without a sync, it loses everything; with one, nothing."""
    root = tmp_path / "root"
    root.mkdir()
    disk = PowerCut(root)
    with disk.recording():
        log = JsonlStore(root, sync=synced_by_us).open("a")
        append_events(log, 3)
        before = [len(list(JsonlStore(p).read("a"))) for p in disk.states(scratch / "before", random.Random(1))]
        log.sync()
        after = [len(list(JsonlStore(p).read("a"))) for p in disk.states(scratch / "after", random.Random(1))]
        log.close()
    assert (min(before), max(before), set(after)) == (0, 3, {3})
    with pytest.raises(NotFound):
        JsonlStore(scratch / "before" / "0").inspect("a")

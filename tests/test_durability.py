"""The durability levels: what waits for a sync, what does not, and whom a slow one holds up."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from athena.stores.jsonl import JsonlStore
from athena.tools.base import ToolContext, ToolOutput
from tests.engine import OK, AnyArguments, Spy, calls, engine, make_tool
from tests.helpers import TIME_UNIT, wait_until_async


class SlowSync:
    """A sync that takes until it is let through; it notes how long the file was when each began."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.began = 0
        self.closes_at = 0
        """Which sync closes the gate before itself; 0 for none."""
        self.covered: list[int] = []

    def __call__(self, fd: int) -> None:
        size_bytes = os.fstat(fd).st_size
        self.began += 1
        if self.began == self.closes_at:
            self.gate.clear()
        assert self.gate.wait(20 * TIME_UNIT)
        self.covered.append(size_bytes)


@pytest.fixture
def sync() -> SlowSync:
    return SlowSync()


@pytest.mark.parametrize("durability", ["os", "turn", "event"])
async def test_an_acknowledgement_waits_for_a_sync_that_covers_it_unless_none_is_promised(
    tmp_path: Path, sync: SlowSync, durability: str
) -> None:
    store = JsonlStore(tmp_path, sync=sync)
    async with engine(log=store.open("s1"), provider=Spy(), durability=durability) as e:
        sync.gate.clear()
        accepting = asyncio.create_task(e.submit("go", "m1"))
        if durability == "os":
            await accepting
            assert sync.began == 0
        else:
            await wait_until_async(lambda: sync.began > (durability == "event"))
            assert not accepting.done()
            size_bytes = store.path("s1").stat().st_size
            sync.gate.set()
            await accepting
            assert any(0 < covered <= size_bytes for covered in sync.covered)
            accepted = next(e.line for e in store.read("s1") if e.event == "message_accepted")
            end = store.path("s1").read_bytes().find(accepted) + len(accepted) + 1
            assert max(sync.covered) >= end
        sync.gate.set()
        assert (await e.result("m1")).text == "ok"


async def test_a_sync_overlaps_with_the_model_and_not_with_an_effect(tmp_path: Path, sync: SlowSync) -> None:
    effects: list[int] = []

    async def act(args: AnyArguments, ctx: ToolContext) -> ToolOutput:
        effects.append(1)
        return ToolOutput("done")

    store = JsonlStore(tmp_path, sync=sync)
    script = [calls("ok", "act"), "end"]
    tools = [OK, make_tool("act", act)]
    async with engine(script, log=store.open("s1"), extra_tools=tools, durability="turn") as e:
        sync.gate.clear()
        accepting = asyncio.create_task(e.submit("go", "m1"))
        # Before the message is acknowledged the model has answered, and what is safe to run again has run.
        await wait_until_async(lambda: e.kinds().count("tool_call") == 2)
        assert (e.kinds("tool_result"), effects, accepting.done()) == (["tool_result"], [], False)
        sync.gate.set()
        await accepting
        assert (await e.result("m1")).text == "end"
    assert effects == [1]


async def test_a_result_is_told_when_the_end_of_its_turn_is_synced(tmp_path: Path, sync: SlowSync) -> None:
    store = JsonlStore(tmp_path, sync=sync)
    async with engine(log=store.open("s1"), provider=Spy(), durability="turn") as e:
        accepting = asyncio.create_task(e.submit("go", "m1"))
        await accepting
        ended = asyncio.create_task(e.result("m1"))
        await ended
        size_bytes = store.path("s1").stat().st_size
        assert sync.covered[-1] == size_bytes


async def test_who_asks_for_a_result_is_told_no_sooner_than_who_waits_for_it(tmp_path: Path, sync: SlowSync) -> None:
    async with engine(log=JsonlStore(tmp_path, sync=sync).open("s1"), provider=Spy(), durability="turn") as e:
        sync.closes_at = 2  # the first is that of the acceptance
        await e.submit("go", "m1")
        await wait_until_async(lambda: sync.began == sync.closes_at)
        assert "m1" in e.state.ended
        asking = asyncio.create_task(e.result("m1"))
        await asyncio.wait([asking], timeout=0.05)
        assert not asking.done(), "its end is in the log, and not on the disk"
        sync.gate.set()
        assert (await asking).text == "ok"


async def test_a_slow_sync_of_one_session_delays_no_other(tmp_path: Path, sync: SlowSync) -> None:
    quick = JsonlStore(tmp_path / "quick")
    slow = JsonlStore(tmp_path / "slow", sync=sync)
    async with (
        engine(log=slow.open("s1"), provider=Spy(), durability="event") as held,
        engine(log=quick.open("s1"), provider=Spy(), durability="event") as free,
    ):
        sync.gate.clear()
        accepting = asyncio.create_task(held.submit("go", "m1"))
        await wait_until_async(lambda: sync.began > 1)
        for number in range(5):
            assert (await free.send("go", f"m{number}")).text == "ok"
        assert not accepting.done()
        sync.gate.set()
        await accepting
        assert (await held.result("m1")).text == "ok"


async def test_level_event_publishes_nothing_that_is_not_synced(tmp_path: Path, sync: SlowSync) -> None:
    store = JsonlStore(tmp_path, sync=sync)
    async with engine([calls("ok"), "end"], log=store.open("s1"), extra_tools=[OK], durability="event") as e:
        lengths: list[tuple[int, int]] = []
        publish = e.runner.recorder._publish

        def see(event: Any) -> None:
            data = store.path("s1").read_bytes()
            lengths.append((data.find(event.line) + len(event.line) + 1, max(sync.covered)))
            publish(event)

        e.runner.recorder._publish = see
        assert (await e.send()).text == "end"
    assert len(lengths) == 8
    assert all(end <= covered for end, covered in lengths)

"""The engine in this process: the queue, the options of one turn, and what waits for the disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from athena.errors import Busy, InvalidOption, MessageIdConflict, NotFound
from athena.events import Event
from athena.messages import Message
from athena.runner import QUEUE_LIMIT
from athena.stores.base import Log
from athena.stores.memory import MemoryStore
from athena.tools.base import Tool, ToolContext, ToolOutput
from tests.engine import BAD, OK, AnyArguments, Spy, calls, engine, make_tool
from tests.helpers import wait_until_async
from tests.process_fixtures import table as table

# --- the queue -------------------------------------------------------------------------------------------------------


async def test_messages_wait_in_order_and_the_queue_has_an_end(tmp_path: Path) -> None:
    go = tmp_path / "go"
    async with engine([{"wait_for": str(go), "echo": True}, *[{"echo": True}] * QUEUE_LIMIT]) as e:
        first = await e.submit("first")
        await wait_until_async(lambda: e.state.turn is not None)
        waiting = [await e.submit(str(n)) for n in range(QUEUE_LIMIT)]
        with pytest.raises(Busy, match="64") as caught:
            await e.submit("one too many")
        assert caught.value.limit == QUEUE_LIMIT
        go.touch()
        assert [(await e.result(m)).text for m in [first, *waiting]] == ["first", *map(str, range(QUEUE_LIMIT))]


async def test_a_message_id_used_twice_is_one_turn_and_another_text_is_refused() -> None:
    async with engine([{"echo": True}]) as e:
        first = await e.send("a", "m1")
        again = await e.send("a", "m1")
        assert again == first
        assert e.kinds().count("turn_start") == 1
        with pytest.raises(MessageIdConflict, match="m1"):
            await e.submit("b", "m1")


async def test_a_queued_message_can_be_taken_back_and_a_running_one_not(tmp_path: Path) -> None:
    go = tmp_path / "go"
    async with engine([{"wait_for": str(go)}, "x"]) as e:
        running = await e.submit("a")
        await wait_until_async(lambda: e.state.turn is not None)
        queued = await e.submit("b")
        assert await e.runner.cancel(queued)
        assert not await e.runner.cancel(running)
        assert not await e.runner.cancel("unknown")
        go.touch()
        await e.result(running)
        with pytest.raises(NotFound):
            e.runner.require("unknown")
        assert e.kinds().count("turn_start") == 1


# --- options of one turn ---------------------------------------------------------------------------------------------


async def test_options_of_one_message_hold_for_its_turn_only() -> None:
    spy = Spy()
    async with engine(provider=spy, system_prompt="base", model="m1", extra_tools=[OK], tools=["read"]) as e:
        await e.send("a", model="m2", system_prompt="other", temperature=0.5, tools=["glob"])
        await e.send("b")
    first, second = spy.requests
    assert (first.model, first.system_prompt, first.temperature) == ("m2", "other", 0.5)
    assert (second.model, second.system_prompt, second.temperature) == ("m1", "base", None)
    assert [t.name for t in first.tools] == ["glob"]
    assert [t.name for t in second.tools] == ["read", "ok"]


async def test_a_phase_for_one_message_is_a_grant_that_ends_with_its_turn(tmp_path: Path) -> None:
    write = calls(("write", {"path": "f", "content": "x"}))
    async with engine([write, "one", write, "two"], tools=["write"], cwd=tmp_path, phase="default") as e:
        await e.send(phase="trusted")
        await e.send()
        assert [d["status"] for d in e.data("tool_result")] == ["ok", "denied"]
        assert "trusted" not in str(e.data("message_accepted"))


@pytest.mark.parametrize(
    ("option", "value"),
    [("provider", "mock"), ("cwd", "."), ("timeout_ms", 5), ("durability", "os"), ("nope", 1), ("hooks", {}),
     ("max_iterations", 0), ("tools", ["nope"])],
)  # fmt: skip
async def test_an_option_that_one_message_cannot_have_is_refused_before_it_is_accepted(option: str, value: Any) -> None:
    async with engine(["x"]) as e:
        with pytest.raises(InvalidOption) as caught:
            await e.submit("a", **{option: value})
        assert caught.value.option == option
        assert e.kinds() == ["session_start"]


async def test_tools_that_are_denied_outright_are_not_offered() -> None:
    spy = Spy()
    async with engine(provider=spy, tools=["read", "write", "glob"], disallowed_tools=["write"]) as e:
        await e.send("a")
        await e.send("b", allowed_tools=["glob"])
    assert [[t.name for t in r.tools] for r in spy.requests] == [["read", "glob"], ["glob"]]


async def test_history_given_at_the_start_is_part_of_the_first_request() -> None:
    spy = Spy()
    history = [Message("user", "before").to_map(), Message("assistant", "yes").to_map()]
    async with engine(provider=spy, messages=history) as e:
        await e.send("now")
    assert [m.text for m in spy.requests[0].messages] == ["before", "yes", "now"]


def test_the_shipped_test_tools_are_tools() -> None:
    assert all(isinstance(tool, Tool) for tool in (OK, BAD))


# --- durability -------------------------------------------------------------------------------------------------------


class Order:
    """A log that notes the order of appends and syncs."""

    def __init__(self) -> None:
        self.log = MemoryStore().open("s1")
        self.seen: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.log, name)

    def append(self, event: Event) -> None:
        self.log.append(event)
        self.seen.append(event.event)

    def sync(self) -> None:
        self.seen.append("sync")

    def between(self, first: str, last: str) -> list[str]:
        """What happened after ``first`` and before ``last``."""
        return self.seen[self.seen.index(first) + 1 : self.seen.index(last)]


@pytest.mark.parametrize(("on_crash", "syncs"), [("unsafe", ["sync"]), ("keyed", ["sync"]), ("safe", [])])
async def test_an_intent_is_synced_before_an_effect_that_is_not_repeatable(on_crash: Any, syncs: list[str]) -> None:
    order = Order()

    async def run(args: AnyArguments, ctx: ToolContext) -> ToolOutput:
        order.seen.append("effect")
        return ToolOutput("ok")

    tool = make_tool("t", run, read_only=True, on_crash=on_crash)
    async with engine([calls("t"), "done"], log=cast(Log, order), extra_tools=[tool], durability="turn") as e:
        message_id = await e.submit()
        assert "sync" in order.seen[order.seen.index("message_accepted") :]  # accepted means on disk
        await e.result(message_id)
        assert order.seen[-2:] == ["turn_end", "sync"]
        assert order.between("tool_call", "effect") == syncs


async def test_with_durability_os_nothing_waits_for_the_disk() -> None:
    order = Order()
    async with engine([calls("ok"), "done"], log=cast(Log, order), extra_tools=[OK]) as e:
        await e.send()
        assert "sync" not in order.seen


async def test_with_durability_event_each_event_is_synced() -> None:
    order = Order()
    async with engine([calls("ok"), "done"], log=cast(Log, order), extra_tools=[OK], durability="event") as e:
        await e.send()
        events = [kind for kind in order.seen if kind != "sync"]
        assert len(order.seen) >= 2 * len(events)

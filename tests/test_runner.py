"""The engine in this process: batches, caps, interrupts, finish reasons, attempts, options of one turn, the queue."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from athena.errors import Cancelled
from athena.loop.result import FINISH_REASONS
from athena.providers.base import ModelResponse
from athena.tools.base import ToolContext, ToolOutput
from tests.engine import BAD, OK, AnyArguments, Spy, calls, engine, make_tool
from tests.helpers import TIME_UNIT, wait_until_async
from tests.process_fixtures import is_gone
from tests.process_fixtures import table as table

# --- one turn --------------------------------------------------------------------------------------------------------


async def test_a_plain_answer_is_one_step() -> None:
    async with engine(["hello"]) as e:
        result = await e.send("hi")
        assert (result.text, result.finish_reason, result.category, result.ok) == ("hello", "stop", "success", True)
        assert (result.iterations, result.tool_calls_made, result.turn) == (0, 0, "t1")
        assert e.kinds() == [
            "session_start", "message_accepted", "turn_start", "user_message", "assistant_message", "turn_end",
        ]  # fmt: skip


async def test_a_tool_turn_records_intent_before_effect_and_effect_before_the_next_question() -> None:
    async with engine([calls("ok"), "done"], extra_tools=[OK]) as e:
        result = await e.send()
        assert (result.text, result.iterations, result.tool_calls_made) == ("done", 1, 1)
        assert [m.role for m in result.messages] == ["user", "assistant", "tool", "assistant"]
        wanted = ("assistant_message", "tool_call", "tool_result")
        assert e.kinds(*wanted) == ["assistant_message", "tool_call", "tool_result", "assistant_message"]


async def test_the_second_turn_sees_the_first_and_each_result_holds_the_history_of_its_own_end() -> None:
    async with engine(["one", "two"]) as e:
        first = await e.send("a", "m1")
        second = await e.send("b", "m2")
        assert [m.text for m in second.messages] == ["a", "one", "b", "two"]
        again = await e.runner.result_of("m1")
        assert again is not None
        assert [m.text for m in again.messages] == [m.text for m in first.messages] == ["a", "one"]


async def test_blank_text_of_a_later_step_does_not_hide_the_text_before_it() -> None:
    async with engine([calls("ok", text="I look."), {"text": " "}], extra_tools=[OK]) as e:
        assert (await e.send()).text == "I look."


async def test_usage_and_cost_add_up_over_steps_and_turns() -> None:
    used = {"input_tokens": 10, "output_tokens": 2, "cost_usd": 0.25}
    async with engine([{**calls("ok"), "usage": used}, {"text": "x", "usage": used}, "free"], extra_tools=[OK]) as e:
        result = await e.send()
        assert (result.usage.input_tokens, result.usage.total_tokens, result.cost_usd) == (20, 24, 0.5)
        assert (await e.send()).cost_usd is None
        assert (e.state.usage.cost_usd, e.state.usage.input_tokens > 20) == (0.5, True)


# --- batches ---------------------------------------------------------------------------------------------------------


async def test_a_read_before_a_write_sees_the_old_file_and_one_after_it_the_new(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("old")
    steps = calls(("read", {"path": "f"}), ("write", {"path": "f", "content": "new"}), ("read", {"path": "f"}))
    async with engine([steps, "done"], tools=["read", "write"], cwd=tmp_path) as e:
        await e.send()
        (first, before), (second, _), (third, after) = e.results()
        assert (first, second, third) == ("c0", "c1", "c2")
        assert "old" in before
        assert "new" in after


async def test_calls_that_are_safe_beside_each_other_overlap_in_time() -> None:
    barrier = asyncio.Barrier(3)

    async def meet(args: AnyArguments, ctx: ToolContext) -> ToolOutput:
        await barrier.wait()  # opens only when all three run at once
        return ToolOutput("met")

    tool = make_tool("meet", meet, read_only=True, parallel_safe=True)
    async with engine([calls("meet", "meet", "meet"), "done"], extra_tools=[tool], tool_timeout_ms=10_000) as e:
        await e.send()
        assert [text for _, text in e.results()] == ["met"] * 3


async def test_no_more_calls_run_at_once_than_allowed() -> None:
    running, most = 0, 0

    async def count(args: AnyArguments, ctx: ToolContext) -> ToolOutput:
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(20):
            await asyncio.sleep(0)
        running -= 1
        return ToolOutput("ok")

    tool = make_tool("count", count, read_only=True, parallel_safe=True)
    async with engine([calls(*["count"] * 7), "done"], extra_tools=[tool], max_concurrency=2) as e:
        await e.send()
    assert most == 2


async def test_results_are_recorded_as_they_finish_and_read_in_the_order_of_the_calls() -> None:
    second_done = asyncio.Event()

    async def run(args: AnyArguments, ctx: ToolContext) -> ToolOutput:
        if args.get("last"):
            await second_done.wait()
        else:
            second_done.set()
        return ToolOutput("ok")

    tool = make_tool("t", run, read_only=True, parallel_safe=True)
    async with engine([calls(("t", {"last": True}), "t"), "done"], extra_tools=[tool]) as e:
        await e.send()
        recorded = [d["message"]["tool_results"][0]["tool_call_id"] for d in e.data("tool_result")]
        assert recorded == ["c1", "c0"]
        assert [call_id for call_id, _ in e.results()] == ["c0", "c1"]


async def test_calls_that_are_not_safe_beside_each_other_run_one_after_the_other() -> None:
    running = 0

    async def alone(args: AnyArguments, ctx: ToolContext) -> ToolOutput:
        nonlocal running
        running += 1
        for _ in range(20):
            await asyncio.sleep(0)
        assert running == 1
        running -= 1
        return ToolOutput("ok")

    async with engine([calls("alone", "alone", "alone"), "done"], extra_tools=[make_tool("alone", alone)]) as e:
        await e.send()
        assert [text for _, text in e.results()] == ["ok"] * 3


async def test_one_call_that_raises_or_hangs_costs_only_its_own_result() -> None:
    async def boom(args: AnyArguments, ctx: ToolContext) -> ToolOutput:
        raise RuntimeError("boom")

    async def hang(args: AnyArguments, ctx: ToolContext) -> ToolOutput:
        await asyncio.Event().wait()
        return ToolOutput("never")

    parallel = {"read_only": True, "parallel_safe": True}
    more = [OK, make_tool("boom", boom, **parallel), make_tool("hang", hang, **parallel)]
    async with engine([calls("boom", "hang", "ok"), "done"], extra_tools=more, tool_timeout_ms=50) as e:
        assert (await e.send()).ok
        assert [d["status"] for d in e.data("tool_result")].count("ok") == 1
        texts = dict(e.results())
        assert "boom" in texts["c0"]
        assert "timeout" in texts["c1"]
        assert texts["c2"] == "done"


async def test_a_denied_an_unknown_and_an_unreadable_call_each_get_a_result_and_the_turn_goes_on() -> None:
    broken = {"tool_calls": [{"id": "c0", "name": "ok", "arguments": "{no json"}]}
    script = [broken, calls("nope"), calls("write"), "done"]
    async with engine(script, extra_tools=[OK], tools=["write"], phase="default", max_consecutive_mistakes=9) as e:
        result = await e.send()
        assert (result.text, result.tool_calls_made) == ("done", 3)
        statuses = [d["status"] for d in e.data("tool_result")]
        assert statuses == ["error", "error", "denied"]
        assert "ok" in e.results()[1][1]  # the tools that there are
        assert e.data("tool_result")[2]["code"] == "no_approver"
        assert e.kinds("tool_call") == []  # nothing ran, so nothing was intended


async def test_what_a_tool_returns_can_always_be_recorded() -> None:
    huge = "x" * (33 * 1024 * 1024)

    async def odd(args: AnyArguments, ctx: ToolContext) -> ToolOutput:
        payloads: dict[str, Any] = {"tuple": {"t": (1, 2)}, "bytes": {"b": b"\xff"}, "huge": {"h": huge}}
        return ToolOutput("\udcff done", ui_kind="odd", ui_payload=payloads[str(args.get("what"))])

    steps = calls(("odd", {"what": "tuple"}), ("odd", {"what": "bytes"}), ("odd", {"what": "huge"}))
    async with engine([steps, "done"], extra_tools=[make_tool("odd", odd)]) as e:
        assert (await e.send()).ok
        assert [text for _, text in e.results()] == ["\ufffd done"] * 3


# --- caps ------------------------------------------------------------------------------------------------------------


async def test_the_iteration_cap_ends_the_turn_with_every_call_answered() -> None:
    async with engine([calls("ok")] * 9, extra_tools=[OK], max_iterations=3) as e:
        result = await e.send()
        assert (result.finish_reason, result.category) == ("error_max_turns", "capacity")
        assert (result.tool_calls_made, e.kinds().count("assistant_message")) == (3, 3)
        assert result.messages[-1].role == "tool"
        assert "max_iterations=3" in (result.halted_reason or "")


async def test_without_an_iteration_cap_a_turn_may_take_any_number_of_steps() -> None:
    async with engine([calls("ok")] * 70 + ["done"], extra_tools=[OK], max_iterations="infinity") as e:
        assert (await e.send()).iterations == 70


@pytest.mark.parametrize(
    ("script", "reason", "steps"),
    [
        ([calls("bad")] * 9, "error_consecutive_mistakes", 3),
        ([calls("bad"), calls("bad"), calls("ok"), calls("bad"), calls("bad"), "done"], "stop", 6),
        ([calls("bad", "bad", "bad"), "done"], "stop", 2),
        ([calls("bad", "ok")] * 4 + ["done"], "stop", 5),
        ([calls("nope"), calls("bad"), calls("nope"), "done"], "error_consecutive_mistakes", 3),
    ],
    ids=["in a row", "a success resets", "one step is one mistake", "a mixed step resets", "unknown tools count"],
)
async def test_mistakes_count_by_steps_in_a_row(script: list[Any], reason: str, steps: int) -> None:
    async with engine(script, extra_tools=[OK, BAD]) as e:
        assert (await e.send()).finish_reason == reason
        assert e.kinds().count("assistant_message") == steps


async def test_the_mistake_counter_starts_again_with_each_turn() -> None:
    script = [calls("bad"), calls("bad"), "one", calls("bad"), calls("bad"), "two"]
    async with engine(script, extra_tools=[BAD]) as e:
        assert [(await e.send()).text, (await e.send()).text] == ["one", "two"]


async def test_the_budget_ends_a_turn_when_its_cost_is_reached() -> None:
    dear = {**calls("ok"), "usage": {"cost_usd": 0.4}}
    async with engine([dear] * 9, extra_tools=[OK], max_budget_usd=0.8) as e:
        result = await e.send()
        assert (result.finish_reason, result.cost_usd, result.category) == ("error_max_budget_usd", 0.8, "capacity")


async def test_an_unknown_cost_never_trips_the_budget() -> None:
    async with engine([calls("ok"), calls("ok"), "done"], extra_tools=[OK], max_budget_usd=0.000001) as e:
        assert (await e.send()).ok


# --- failures of the model's side ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("unauthorized", "error_provider_auth"),
        ("context_length_exceeded", "error_prompt_too_long"),
        ("bad_request", "error_during_execution"),
        ("server_error", "error_during_execution"),
    ],
)
async def test_a_provider_failure_is_a_finish_reason_and_the_next_turn_works(kind: str, reason: str) -> None:
    async with engine([{"error": {"kind": kind, "message": "no"}}]) as e:
        result = await e.send("a")
        assert (result.finish_reason, result.text, result.ok) == (reason, None, False)
        assert result.category == FINISH_REASONS[reason]
        assert (result.error or {})["data"]["kind"] == kind
        assert [m.text for m in result.messages] == ["a"]
        assert (await e.send("b")).finish_reason == reason  # the script is at the same step: the session still answers


async def test_a_provider_that_breaks_its_contract_costs_the_turn_and_not_the_session() -> None:
    class Broken:
        name = "broken"
        default_model: str | None = "m"

        async def stream(self, request: Any) -> Any:
            if request.messages[-1].text == "break":
                raise KeyError("usage")
            yield ModelResponse("fine")

        async def aclose(self) -> None: ...

    async with engine(provider=Broken()) as e:
        result = await e.send("break")
        assert (result.finish_reason, result.category) == ("error_during_execution", "retryable")
        assert "KeyError" in (result.halted_reason or "")
        assert (await e.send("and now?")).text == "fine"


async def test_a_new_attempt_voids_the_text_of_the_one_before(tmp_path: Path) -> None:
    healed = tmp_path / "healed"
    step = {"chunks": ["Hel", "lo"], "error": {"kind": "transport"}, "error_until": str(healed)}
    async with engine([step]) as e:
        e.on_delta = lambda: healed.touch() if len(e.deltas) >= 4 else None
        result = await e.send()
        assert result.text == "Hello"
        assert [(a, o, p.text) for a, o, p in e.deltas] == [
            (1, 0, "Hel"), (1, 3, "lo"), (2, 0, "Hel"), (2, 3, "lo"),
        ]  # fmt: skip
        assert [d["attempt"] for d in e.data("assistant_message")] == [2]
        assert [m.text for m in result.messages] == ["go", "Hello"]


async def test_thinking_is_streamed_apart_and_recorded_with_the_answer() -> None:
    async with engine([{"thinking": "hm", "text": "yes"}]) as e:
        await e.send()
        assert [(p.type, o) for _, o, p in e.deltas] == [("thinking", 0), ("text", 0)]
        assert e.state.messages[-1].reasoning == "hm"


async def test_a_key_in_a_providers_failure_is_neither_recorded_nor_told() -> None:
    class Chatty(Spy):
        async def stream(self, request: Any) -> Any:
            if request.messages:
                raise RuntimeError("the key sk-canary-1234567 is wrong")
            yield ModelResponse("never")

    async with engine(provider=Chatty(), api_key="sk-canary-1234567") as e:
        result = await e.send()
        assert "[redacted:api_key]" in str(result.halted_reason)
        assert "sk-canary" not in repr(result) + repr(e.events) + str([x.line for x in e.events])


# --- interrupts ------------------------------------------------------------------------------------------------------


async def test_an_interrupt_during_a_model_call_ends_the_turn_and_keeps_the_queue(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    async with engine([{"wait_for": str(tmp_path / "never"), "touch": str(begun)}]) as e:
        first = await e.submit("a")
        second = await e.submit("b")
        await wait_until_async(begun.exists)
        assert await e.runner.interrupt()
        result = await e.result(first)
        assert (result.finish_reason, result.category) == ("interrupted", "interrupted")
        await wait_until_async(lambda: e.state.turn is not None and e.state.turn.message_id == second)
        assert await e.runner.interrupt()


@pytest.mark.usefixtures("table")
async def test_an_interrupt_ends_the_tools_processes_and_answers_every_call(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    command = f"setsid sleep 60 & echo $! > {pid_file}.new; mv {pid_file}.new {pid_file}; sleep 60"
    async with engine([calls(("bash", {"command": command}), "ok"), "next"], tools=["bash"], extra_tools=[OK]) as e:
        turn = await e.submit()
        await wait_until_async(pid_file.exists)
        async with asyncio.timeout(2 * TIME_UNIT):
            assert await e.runner.interrupt()
        result = await e.result(turn)
        assert result.finish_reason == "interrupted"
        assert [d["status"] for d in e.data("tool_result")] == ["interrupted", "interrupted"]
        assert "may have had part of its effect" in e.results()[0][1]
        assert "no effect" in e.results()[1][1]
        assert is_gone(int(pid_file.read_text()))
        assert (await e.send()).text == "next"


async def test_an_interrupt_of_nothing_and_of_another_turn_is_none() -> None:
    async with engine(["hi"]) as e:
        assert not await e.runner.interrupt()
        await e.send()
        assert not await e.runner.interrupt(turn="t1")


async def test_an_interrupt_can_clear_the_queue_and_tells_who_waits(tmp_path: Path) -> None:
    async with engine([{"wait_for": str(tmp_path / "never")}]) as e:
        await e.submit("a")
        waiting = await e.submit("b")
        future = e.runner.waiters.wait_for(waiting)
        await e.runner.interrupt(clear_queue=True)
        with pytest.raises(Cancelled):
            await future
        with pytest.raises(Cancelled):
            e.runner.require(waiting)

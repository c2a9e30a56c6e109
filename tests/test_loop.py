"""The fold and the decision: the design's recovery table row by row, and recovery from every prefix of real logs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from athena.events import Event, decode, encode
from athena.loop.batch import IN_DOUBT
from athena.loop.options import parse_options
from athena.loop.request import PLAN_NOTE, build_request
from athena.loop.state import SessionState, closed_messages, digest, duration_ms, fold
from athena.loop.step import CRASH_LIMIT, CallModel, CloseCalls, Finish, Limits, RunTools, Take, Wait, next_step
from athena.messages import Message, ToolCall, ToolResult
from athena.providers import openai_wire
from athena.stores.memory import MemoryStore
from athena.testing.openai_rules import check_request
from tests.engine import BAD, OK, Engine, calls, engine, make_tool, succeed

Row = tuple[str, dict[str, Any]]

# --- logs in short ---------------------------------------------------------------------------------------------------


def accepted(message_id: str = "m1", text: str = "go", **options: Any) -> Row:
    return "message_accepted", {"message_id": message_id, "text": text, **({"options": options} if options else {})}


def begun(message_id: str = "m1") -> Row:
    return "turn_start", {"message_id": message_id}


def said(text: str = "go") -> Row:
    return "user_message", {"message": {"role": "user", "content": text}}


def answered(text: str = "", *ids: str, **more: Any) -> Row:
    wanted = [{"id": i, "name": "t", "arguments": {}} for i in ids]
    return "assistant_message", {"message": {"role": "assistant", "content": text, "tool_calls": wanted}, **more}


def intended(call_id: str, **data: Any) -> Row:
    return "tool_call", {"id": call_id, "name": "t", **data}


def resulted(call_id: str, status: str = "ok") -> Row:
    result = {"tool_call_id": call_id, "content": status}
    return "tool_result", {"message": {"role": "tool", "tool_results": [result]}, "status": status}


STARTED: Row = ("session_start", {"format": 1})
ENDED: Row = ("turn_end", {"message_id": "m1", "finish_reason": "stop"})
STOPPED: Row = ("interrupted", {"by": "client"})
DIED: Row = ("turn_resumed", {"reason": "killed", "counted": True})
RESUMED: Row = ("turn_resumed", {"reason": "shutdown", "counted": False})
TURN = (STARTED, accepted(), begun(), said())


def events(*rows: Row) -> Iterator[Event]:
    """The rows as a new child reads them: through their lines."""
    turn = None
    for seq, (kind, data) in enumerate(rows, 1):
        if kind == "turn_start":
            turn = f"t{seq}"
        yield decode(encode(seq, kind, data, turn).line, 0)


def after(*rows: Row) -> SessionState:
    return fold(events(*rows))


def plan(*rows: Row, **limits: Any) -> Any:
    """What comes next after these rows; calls by id, with what is known of each."""
    step = next_step(after(*rows), Limits(**limits))
    if isinstance(step, RunTools | CloseCalls):
        return type(step), [(c.call.id, c.started, c.on_crash, c.key) for c in step.calls]
    return step


FRESH = (False, "unsafe", None)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        pytest.param((), Wait(), id="an empty log"),
        pytest.param((STARTED,), Wait(), id="no open turn and no message"),
        pytest.param((STARTED, accepted()), Take(), id="a queued message"),
        pytest.param((*TURN, answered("hi"), ENDED), Wait(), id="an ended turn"),
        pytest.param((*TURN, answered("hi"), ENDED, accepted("m2")), Take(), id="an ended turn and a queued message"),
        pytest.param((STARTED, accepted(), begun()), Take(), id="a turn whose message is not said yet"),
        pytest.param(TURN, CallModel(), id="a user message and no answer"),
        pytest.param((*TURN, RESUMED), CallModel(), id="the same after a resume"),
        pytest.param(
            (*TURN, answered("", "a", "b")), (RunTools, [("a", *FRESH), ("b", *FRESH)]), id="calls not started"
        ),
        pytest.param(
            (*TURN, answered("", "a", "b"), intended("a", on_crash="safe")),
            (RunTools, [("a", True, "safe", None), ("b", *FRESH)]),
            id="a safe call started",
        ),
        pytest.param(
            (*TURN, answered("", "a"), intended("a", on_crash="keyed", key="k1")),
            (RunTools, [("a", True, "keyed", "k1")]),
            id="a keyed call started",
        ),
        pytest.param(
            (*TURN, answered("", "a"), intended("a")), (RunTools, [("a", True, "unsafe", None)]), id="an unsafe one"
        ),
        pytest.param(
            (*TURN, answered("", "a", "b"), intended("b", on_crash="safe"), resulted("b")),
            (RunTools, [("a", *FRESH)]),
            id="one result of two",
        ),
        pytest.param((*TURN, answered("", "a"), intended("a"), resulted("a")), CallModel(), id="all results in"),
        pytest.param((*TURN, answered("", "a"), resulted("a", "denied")), CallModel(), id="a denied call"),
        pytest.param((*TURN, answered("done")), Finish("stop"), id="a final answer and no end"),
        pytest.param((*TURN, answered("done"), STOPPED), Finish("interrupted"), id="an interrupt after the answer"),
        pytest.param((*TURN, STOPPED), Finish("interrupted"), id="an interrupt during a model call"),
        pytest.param(
            (*TURN, answered("", "a", "b"), intended("a"), STOPPED),
            (CloseCalls, [("a", True, "unsafe", None), ("b", *FRESH)]),
            id="an interrupt with open calls",
        ),
        pytest.param(
            (*TURN, answered("", "a"), STOPPED, resulted("a", "interrupted")), Finish("interrupted"), id="closed calls"
        ),
        pytest.param(
            (STARTED, accepted(), begun(), STOPPED), Take(), id="an interrupt before the message was said: it is said"
        ),
        pytest.param((*TURN, *[RESUMED] * 9), CallModel(), id="any number of deaths that we caused"),
        pytest.param((*TURN, *[DIED] * (CRASH_LIMIT - 1)), CallModel(), id="deaths below the limit"),
        pytest.param(
            (*TURN, *[DIED] * CRASH_LIMIT),
            Finish("error_crashed", "the session's process died 3 times in this turn"),
            id="deaths at the limit",
        ),
        pytest.param(
            (*TURN, answered("", "a"), intended("a", on_crash="safe"), *[DIED] * CRASH_LIMIT),
            (CloseCalls, [("a", True, "safe", None)]),
            id="deaths at the limit with an open call",
        ),
        pytest.param((*TURN, answered("done"), *[DIED] * CRASH_LIMIT), Finish("stop"), id="an answer beats the deaths"),
    ],
)
def test_the_end_of_a_log_says_what_the_new_child_does(rows: tuple[Row, ...], expected: Any) -> None:
    assert plan(*rows) == expected


STEP = (answered("", "a", usage={"cost_usd": 0.5}), resulted("a"))
MISS = (answered("", "a"), resulted("a", "error"))


@pytest.mark.parametrize(
    ("rows", "limits", "reason"),
    [
        ((*TURN, *STEP), {"max_iterations": 1}, "error_max_turns"),
        ((*TURN, *STEP), {"max_iterations": 2}, None),
        ((*TURN, *STEP * 99), {"max_iterations": None}, None),
        ((*TURN, *MISS * 2), {"max_consecutive_mistakes": 2}, "error_consecutive_mistakes"),
        ((*TURN, *MISS, *STEP, *MISS), {"max_consecutive_mistakes": 2}, None),
        ((*TURN, *MISS * 9), {"max_consecutive_mistakes": None}, None),
        ((*TURN, answered("", "a"), resulted("a", "in_doubt"), *MISS), {"max_consecutive_mistakes": 2}, None),
        ((*TURN, *MISS, answered("", "a"), resulted("a", "in_doubt"), *MISS),
         {"max_consecutive_mistakes": 2}, "error_consecutive_mistakes"),
        ((*TURN, *STEP), {"max_budget_usd": 0.5}, "error_max_budget_usd"),
        ((*TURN, *STEP), {"max_budget_usd": 0.6}, None),
        ((*TURN, answered("", "a"), resulted("a")), {"max_budget_usd": 0.000001}, None),
        ((*TURN, *STEP, answered("done")), {"max_iterations": 1, "max_budget_usd": 0.1}, "stop"),
    ],
)  # fmt: skip
def test_caps_are_checked_before_a_model_call_and_never_against_an_answer(
    rows: tuple[Row, ...], limits: dict[str, Any], reason: str | None
) -> None:
    step = plan(*rows, **limits)
    assert (step.reason if isinstance(step, Finish) else None) == reason
    assert isinstance(step, Finish | CallModel)


def test_caps_count_on_over_a_death() -> None:
    assert plan(*TURN, *STEP, DIED, *STEP, max_iterations=2).reason == "error_max_turns"
    assert plan(*TURN, *MISS, DIED, *MISS, max_consecutive_mistakes=2).reason == "error_consecutive_mistakes"
    assert plan(*TURN, *STEP, DIED, *STEP, max_budget_usd=1.0).reason == "error_max_budget_usd"


# --- the fold --------------------------------------------------------------------------------------------------------


def test_results_are_put_in_the_order_of_the_calls() -> None:
    state = after(*TURN, answered("", "a", "b", "c"), resulted("c"), resulted("a"), resulted("b"))
    assert [m.tool_results[0].tool_call_id for m in state.messages[2:]] == ["a", "b", "c"]


def test_a_second_result_of_a_call_changes_nothing() -> None:
    state = after(*TURN, answered("", "a"), resulted("a"), resulted("a", "error"))
    assert [m.tool_results[0].content for m in state.messages[2:]] == ["ok"]
    assert state.turn is not None
    assert (state.turn.tool_calls_made, state.turn.mistakes) == (1, 0)


def test_unknown_kinds_and_keys_change_nothing_but_the_place() -> None:
    rows = list(events(*TURN, ("note_v9", {"message": {"role": "user", "content": "no"}}), ("more_v9", {})))
    known, more = fold(rows[:-2]), fold(rows)
    assert replace(more, cursor=known.cursor, events=known.events) == known
    assert (more.cursor.seq, more.misfits) == (6, 0)


@pytest.mark.parametrize(
    "row",
    [
        ("user_message", {}), ("assistant_message", {}), ("tool_result", {}), ("tool_call", {}), ("interrupted", {}),
        ("turn_end", {}), ("message_cancelled", {}), ("turn_resumed", {}), ("session_start", {}), ("session_end", {}),
        ("turn_start", {}), ("message_accepted", {}),
    ],
    ids=lambda row: row[0],
)  # fmt: skip
@pytest.mark.parametrize("before", [(), TURN, (*TURN, answered("", "a"))], ids=["at first", "in a turn", "in a step"])
def test_a_known_kind_without_its_data_is_skipped_and_not_fatal(before: tuple[Row, ...], row: Row) -> None:
    state = after(*before, row)
    assert state.cursor.seq == len(before) + 1
    next_step(state, Limits())


@pytest.mark.parametrize(
    "message",
    ["text", 5, None, [], {}, {"role": "robot"}, {"role": "assistant", "tool_calls": 7}, {"role": "user", "content": 5},
     {"role": "assistant", "tool_calls": ["c"]}, {"role": "tool", "tool_results": {"a": 1}}],
    ids=repr,
)  # fmt: skip
@pytest.mark.parametrize("kind", ["user_message", "assistant_message", "tool_result", "system_message"])
def test_a_message_of_another_shape_is_skipped_and_not_fatal(kind: str, message: Any) -> None:
    state = after(*TURN, (kind, {"message": message}), answered("fine"))
    assert [m.text for m in state.messages] == ["go", "fine"]
    assert state.misfits == 1


def test_a_message_id_is_known_for_ever_and_its_text_by_a_digest() -> None:
    state = after(*TURN, answered("hi"), ENDED)
    assert (state.receipts["m1"].seq, state.receipts["m1"].digest) == (2, digest("go"))
    assert digest("go") != digest("gone")


def test_a_clock_that_went_back_makes_no_negative_duration() -> None:
    assert duration_ms("2026-01-01T00:00:01.000000Z", "2026-01-01T00:00:00.000000Z") == 0
    assert duration_ms("2026-01-01T00:00:00.000000Z", "2026-01-01T00:00:01.500000Z") == 1500


# --- what is sent to a provider --------------------------------------------------------------------------------------

ids = st.sampled_from(["a", "b", "c"])
messages = st.one_of(
    st.builds(lambda t: Message("user", t), st.text(max_size=3)),
    st.builds(
        lambda t, found: Message("assistant", t, tuple(ToolCall(i, "t") for i in dict.fromkeys(found))),
        st.text(max_size=3), st.lists(ids, max_size=3),
    ),
    st.builds(lambda i: Message("tool", tool_results=(ToolResult(i, "r"),)), ids),
)  # fmt: skip


@given(st.lists(messages, max_size=12))
def test_whatever_a_log_holds_each_call_is_sent_with_exactly_one_result_right_behind_it(history: list[Message]) -> None:
    sent = closed_messages(history)
    place = 0
    while place < len(sent):
        message = sent[place]
        assert message.role != "tool", "a result without its call"
        wanted = [c.id for c in message.tool_calls]
        found = [r.tool_call_id for m in sent[place + 1 : place + 1 + len(wanted)] for r in m.tool_results]
        assert found == wanted
        place += 1 + len(wanted)
    kept = [m for m in sent if m.role != "tool"]
    assert kept == [m for m in history if m.role != "tool"]


def test_plan_mode_is_noted_for_the_model_and_not_in_the_history() -> None:
    state = after(*TURN)
    request = build_request(state, parse_options({"provider": "mock", "phase": "plan", "system_prompt": "s"}), [], "m")
    assert request.system_prompt == f"s\n\n{PLAN_NOTE}"
    assert [m.text for m in request.messages] == ["go"]


# --- recovery from every prefix --------------------------------------------------------------------------------------

KEYED = make_tool("keyed", succeed, read_only=True, on_crash="keyed")
UNSAFE = make_tool("unsafe", succeed)
STEPS = st.lists(st.sampled_from(["ok", "bad", "keyed"]), min_size=1, max_size=3).map(lambda names: calls(*names))
TURNS = st.lists(st.lists(STEPS, max_size=2), min_size=1, max_size=2)


def script_of(turns: list[list[Any]]) -> list[Any]:
    script = [step for number, steps in enumerate(turns) for step in [*steps, {"text": f"answer {number}"}]]
    for number, step in enumerate(script):
        for place, call in enumerate(step.get("tool_calls", ())):
            step["tool_calls"][place] = {**call, "id": f"c{number}-{place}"}
    return script


async def live(script: list[Any], texts: list[str], lines: list[bytes], tools: list[Any]) -> Engine:
    """One life over a log that begins with ``lines``, in which all messages are sent again, as their clients do."""
    store = MemoryStore()
    store.preload("s1", lines)
    async with engine(script, log=store.open("s1"), extra_tools=tools) as e:
        for number, text in enumerate(texts):
            await e.submit(text, f"m{number}")
        for number in range(len(texts)):
            await e.result(f"m{number}")
        e.events = list(store.read("s1"))
        return e


def facts(e: Engine) -> dict[str, Any]:
    """What must not depend on how often a session died."""
    state = e.state
    ended = [
        (message_id, end.turn, end.data["finish_reason"], end.data["text"], end.data["tool_calls_made"],
         end.data["iterations"], end.data["usage"])
        for message_id, end in sorted(state.ended.items())
    ]  # fmt: skip
    return {"messages": state.messages, "ended": ended, "usage": state.usage, "turns": state.turns,
            "queue": list(state.queue), "turn": state.turn}  # fmt: skip


@settings(max_examples=15)
@given(TURNS)
def test_any_prefix_of_a_log_continues_to_the_state_of_the_uninterrupted_session(turns: list[list[Any]]) -> None:
    async def check() -> None:
        script, texts, tools = script_of(turns), [f"q{n}" for n in range(len(turns))], [OK, BAD, KEYED]
        whole = await live(script, texts, [], tools)
        lines = [event.line for event in whole.events]
        for cut in range(len(lines)):
            again = await live(script, texts, lines[:cut], tools)
            assert facts(again) == facts(whole), [e.event for e in whole.events[:cut]]
            assert [e.line for e in again.events[:cut]] == lines[:cut]

    asyncio.run(check())


async def test_an_effect_that_is_not_repeatable_runs_once_or_is_in_doubt_at_every_prefix() -> None:
    script, texts = [calls("unsafe", "ok", "unsafe"), "done"], ["q"]
    whole = await live(script, texts, [], [OK, UNSAFE])
    lines = [event.line for event in whole.events]
    doubts = 0
    for cut in range(len(lines)):
        again = await live(script, texts, lines[:cut], [OK, UNSAFE])
        intents = [e.data["id"] for e in again.events if e.event == "tool_call"]
        assert len(intents) == len(set(intents)) == 3  # never intended, and so never run, a second time
        open_ids = {e.data["id"] for e in whole.events[:cut] if e.event == "tool_call" and e.data["name"] == "unsafe"}
        open_ids -= {
            e.data["message"]["tool_results"][0]["tool_call_id"] for e in whole.events[:cut] if e.event == "tool_result"
        }
        found = dict(again.results())
        assert {i for i, text in found.items() if text == IN_DOUBT} == open_ids
        assert list(found) == ["c0", "c1", "c2"]
        doubts += len(open_ids)
    assert doubts == 2


async def test_a_keyed_call_is_repeated_with_the_key_of_its_first_life() -> None:
    seen: list[str | None] = []

    async def run(args: Any, ctx: Any) -> Any:
        seen.append(ctx.key)
        return await succeed(args, ctx)

    tool = make_tool("keyed", run, on_crash="keyed")
    whole = await live([calls("keyed"), "done"], ["q"], [], [tool])
    upto = [e.event for e in whole.events].index("tool_call") + 1
    await live([calls("keyed"), "done"], ["q"], [e.line for e in whole.events[:upto]], [tool])
    assert len(seen) == 2
    assert seen[0] is not None
    assert seen[0] == seen[1]


async def test_what_is_sent_after_any_death_is_legal_for_a_strict_provider() -> None:
    whole = await live([calls("ok", "unsafe"), "done"], ["q"], [], [OK, UNSAFE])
    for cut in range(1, len(whole.events) + 1):
        state = fold(whole.events[:cut])
        state.messages.append(Message("user", "and then?"))
        request = build_request(state, parse_options({"provider": "mock"}), [OK, UNSAFE], "m")
        check_request(openai_wire.body(request))

"""Permission requests in the fold and in the decision: each is open or resolved, is resolved once, and ends with its
call."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from athena.approver import answer_of
from athena.events import Event, decode, encode
from athena.loop.permission import open_requests
from athena.loop.state import SessionState, fold
from athena.loop.step import Ask, CallModel, CloseCalls, Finish, Limits, RunTools, next_step
from athena.permissions import Allow, Deny, decide, rule_of
from athena.permissions import Ask as AskDecision

Row = tuple[str, dict[str, Any]]
CALLS = ("c1", "c2", "c3")


def requested(call_id: str, request_id: str = "") -> Row:
    return "permission_request", {"request_id": request_id or f"r-{call_id}", "call_id": call_id, "tool": "t"}


def resolved(call_id: str, decision: str = "allow", answer_id: str = "a") -> Row:
    by = {"pid": 7, "uid": 0}
    return "permission_resolved", {
        "request_id": f"r-{call_id}", "call_id": call_id, "decision": decision, "by": by, "answer_id": answer_id,
    }  # fmt: skip


def resulted(call_id: str) -> Row:
    result = {"tool_call_id": call_id, "content": "x"}
    return "tool_result", {"message": {"role": "tool", "tool_results": [result]}, "status": "ok"}


def beginning(*ids: str) -> list[Row]:
    wanted = [{"id": i, "name": "t", "arguments": {}} for i in ids]
    return [
        ("session_start", {"format": 1}),
        ("message_accepted", {"message_id": "m", "text": "go"}),
        ("turn_start", {"message_id": "m"}),
        ("user_message", {"message": {"role": "user", "content": "go"}}),
        ("assistant_message", {"message": {"role": "assistant", "content": "", "tool_calls": wanted}}),
    ]


STOPPED: Row = ("interrupted", {"by": "client"})
DIED: Row = ("turn_resumed", {"reason": "killed", "counted": True})
ENDED: Row = ("turn_end", {"message_id": "m", "finish_reason": "stop"})


def events(rows: list[Row]) -> Iterator[Event]:
    for seq, (kind, data) in enumerate(rows, 1):
        yield decode(encode(seq, kind, data, "t1" if seq > 2 else None).line, 0)


def after(*rows: Row, calls: tuple[str, ...] = ("c1", "c2")) -> SessionState:
    return fold(events([*beginning(*calls), *rows]))


def plan(*rows: Row) -> Any:
    step = next_step(after(*rows), Limits())
    return (
        (type(step), [c.call.id for c in step.calls]) if isinstance(step, Ask | RunTools | CloseCalls) else type(step)
    )


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([], (RunTools, ["c1", "c2"])),
        ([requested("c1")], (Ask, ["c1"])),
        ([requested("c1"), DIED], (Ask, ["c1"])),
        ([requested("c1"), DIED, requested("c1")], (Ask, ["c1"])),
        ([requested("c1"), requested("c2"), resolved("c1")], (Ask, ["c2"])),
        ([requested("c1"), resolved("c1")], (RunTools, ["c1", "c2"])),
        ([requested("c1"), resolved("c1", "deny")], (RunTools, ["c1", "c2"])),
        ([requested("c1"), resolved("c1"), DIED], (RunTools, ["c1", "c2"])),
        ([requested("c1"), STOPPED], (CloseCalls, ["c1", "c2"])),
        ([requested("c1"), DIED, DIED, DIED], (CloseCalls, ["c1", "c2"])),
        ([requested("c1"), resulted("c1")], (RunTools, ["c2"])),
        ([requested("c1"), resolved("c1"), resulted("c1"), resulted("c2")], CallModel),
        ([STOPPED, resulted("c1"), resulted("c2")], Finish),
    ],
)
def test_what_comes_next(rows: list[Row], expected: Any) -> None:
    assert plan(*rows) == expected


def test_the_first_resolution_counts() -> None:
    state = after(requested("c1"), resolved("c1", "deny", "first"), resolved("c1", "allow", "second"))
    found = state.resolutions["r-c1"]
    assert (found.decision, found.answer_id, found.by) == ("deny", "first", {"pid": 7, "uid": 0})
    assert open_requests(state) == []


def test_an_open_request_is_listed_with_its_turn() -> None:
    state = after(requested("c1"))
    (row,) = open_requests(state)
    assert {k: row[k] for k in ("request_id", "call_id", "tool", "turn")} == {
        "request_id": "r-c1", "call_id": "c1", "tool": "t", "turn": "t1",
    }  # fmt: skip


@pytest.mark.parametrize("last", [resulted("c1"), ENDED])
def test_a_request_ends_with_its_call_even_if_the_line_that_says_so_is_bad(last: Row) -> None:
    state = after(requested("c1"), last)
    assert open_requests(state) == []
    assert state.resolutions["r-c1"].decision == "closed"


def test_a_request_for_no_call_changes_nothing() -> None:
    state = after(requested("nobody"), requested("c1", "one"), requested("c1", "two"))
    assert [row["request_id"] for row in open_requests(state)] == ["one"]
    assert state.misfits == 0
    assert fold(events([requested("c1")])).misfits == 0


ROWS = st.one_of(
    st.sampled_from([requested(c) for c in CALLS]),
    st.builds(resolved, st.sampled_from(CALLS), st.sampled_from(["allow", "deny", "closed"]), st.text(max_size=3)),
    st.sampled_from([resulted(c) for c in CALLS]),
    st.sampled_from([STOPPED, DIED, ENDED]),
)


@given(st.lists(ROWS, max_size=25))
def test_every_request_is_resolved_at_most_once_and_is_never_open_without_its_call(rows: list[Row]) -> None:
    state = SessionState()
    known: dict[str, Any] = {}
    for event in events([*beginning(*CALLS), *rows]):
        state.apply(event)
        for request_id, found in state.resolutions.items():
            assert known.setdefault(request_id, found) == found  # what was resolved stays as it was
        still = {row["request_id"] for row in open_requests(state)}
        assert not still & state.resolutions.keys()
        calls = state.turn.calls.values() if state.turn else []
        assert still == {c.request.id for c in calls if c.request is not None and c.status is None and c.is_asked}
        for call in calls:
            if call.request is not None and call.status is not None:
                assert call.request.resolution is not None
        step = next_step(state, Limits())
        if isinstance(step, Ask):
            assert {c.request.id for c in step.calls if c.request} == still
        if isinstance(step, RunTools):
            assert not still
    assert state.misfits == 0


# --- the decision and the answer --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("phase", "remembered", "expected"),
    [
        ("default", {"write": "allow"}, Allow),
        ("default", {"write": "deny"}, Deny),
        ("default", {"edit": "allow"}, AskDecision),
        ("accept_edits", {"write": "deny"}, Allow),
        ("plan", {"write": "allow"}, Deny),
        ("trusted", {"write": "deny"}, Allow),
    ],
)
def test_what_is_remembered_takes_the_place_of_a_question_only(
    phase: str, remembered: dict[str, str], expected: type
) -> None:
    assert isinstance(decide("write", False, phase, has_approver=True, remembered=remembered), expected)


def test_a_remembered_answer_overrides_no_list() -> None:
    remembered = {"write": "allow"}
    assert isinstance(decide("write", False, "default", disallowed=["write"], remembered=remembered), Deny)
    assert isinstance(decide("write", False, "default", allowed=["read"], remembered=remembered), Deny)


def test_of_bash_the_very_command_is_remembered() -> None:
    rule = rule_of("bash", {"command": "git push"})
    assert rule == rule_of("bash", {"command": "git push", "timeout_ms": 5})
    assert rule != rule_of("bash", {"command": "git push --force"})
    assert "push" not in rule
    assert rule_of("write", {"path": "a"}) == "write"


@given(
    st.one_of(
        st.none(),
        st.integers(),
        st.floats(),
        st.text(),
        st.lists(st.booleans()),
        st.dictionaries(st.text(), st.none()),
        st.tuples(st.booleans(), st.integers()),
        st.tuples(st.text(), st.text(), st.text()),
        st.tuples(),
    )
)
def test_what_is_no_answer_denies(value: Any) -> None:
    verdict, _ = answer_of(value)
    assert verdict == ("allow" if value == "allow" and isinstance(value, str) else "deny")

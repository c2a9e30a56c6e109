"""The fold of rewinds, forks and compactions, against a model that reads the log again and again."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from athena.events import Event, encode
from athena.loop.state import SessionState, closed_messages, fold, kept_seqs
from athena.messages import Message, ToolCall, ToolResult

ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("turn"), st.integers(0, 3)),
        st.tuples(st.just("step"), st.integers(1, 3)),
        st.tuples(st.just("checkpoint"), st.sampled_from(["a", "b"])),
        st.tuples(st.just("rewind"), st.integers(0, 1000)),
        st.tuples(st.just("compact"), st.integers(0, 1000)),
        st.tuples(st.just("fork"), st.just(0)),
    ),
    max_size=14,
)


class Log:
    """Writes a log as a session does."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.add("session_start", session_id="s", messages=[Message("system", "be kind").to_map()])

    @property
    def seq(self) -> int:
        return len(self.events)

    def add(self, kind: str, turn: str | None = None, **data: Any) -> Event:
        self.events.append(encode(self.seq + 1, kind, data, turn))
        return self.events[-1]

    def say(self, kind: str, message: Message, turn: str, **data: Any) -> None:
        self.add(kind, turn, message=message.to_map(), **data)

    def turn(self, steps: int) -> None:
        number = f"m{self.seq}"
        self.add("message_accepted", message_id=number, text=number)
        self.add("turn_start", number, message_id=number)
        self.say("user_message", Message("user", number), number)
        for _ in range(steps):
            self.step(2, number)
        self.say("assistant_message", Message("assistant", f"answer {self.seq}"), number, usage={"input_tokens": 1})
        self.add("turn_end", number, message_id=number, finish_reason="stop", text="x")

    def step(self, calls: int, turn: str = "t") -> None:
        ids = [f"c{self.seq}-{n}" for n in range(calls)]
        made = tuple(ToolCall(one, "read", {}) for one in ids)
        self.say("assistant_message", Message("assistant", "", made), turn, usage={"input_tokens": 1})
        for one in reversed(ids):  # the last call ends first
            self.add("tool_call", turn, id=one, name="read", on_crash="safe")
            self.say("tool_result", Message("tool", tool_results=(ToolResult(one, f"of {one}"),)), turn, status="ok")


def written(actions: list[tuple[str, Any]]) -> Log:
    """The log of what a session did."""
    log = Log()
    for action, value in actions:
        match action:
            case "turn":
                log.turn(value)
            case "checkpoint":
                log.add("checkpoint", label=value)
            case "rewind":
                log.add("rewind", id=str(log.seq), to=1 + value % log.seq, files=False)
            case "compact":
                length = len(fold(log.events).messages)
                log.add("compaction", summary=f"summary {log.seq}", kept_from=value % (length + 1))
            case "fork":
                log.add("fork", session_id="f", parent="s", seq=log.seq, uuid="u", log="l")
            case _:
                number = f"m{log.seq}"
                log.add("message_accepted", message_id=number, text=number)
                log.add("turn_start", number, message_id=number)
                log.say("user_message", Message("user", number), number)
                log.step(value, number)
                log.add("turn_end", number, message_id=number, finish_reason="interrupted", text=None)
    return log


def at(events: list[Event], seq: int) -> list[Message]:
    """The history after the event ``seq``, read from the beginning. An open step is not in it."""
    messages: list[Message] = []
    for event in events[:seq]:
        if event.event == "session_start":
            messages = [Message.from_map(m) for m in event.data["messages"]]
        elif event.event == "rewind":
            messages = at(events, event.data["to"])
        elif event.event == "compaction":
            kept = whole(messages)[event.data["kept_from"] :]
            kept = kept[next((n for n, m in enumerate(kept) if m.role != "tool"), len(kept)) :]
            messages = [Message("assistant", event.data["summary"], name="compactor_summary"), *kept]
        elif event.event == "fork":
            messages = at(events, event.seq - 1)
        elif "message" in event.data:
            messages = [*messages, Message.from_map(event.data["message"])]
    return whole(messages)


def whole(messages: list[Message]) -> list[Message]:
    """Results in the order of their calls; without a last answer that lacks some."""
    done = {r.tool_call_id: m for m in messages for r in m.tool_results}
    found: list[Message] = []
    for message in messages:
        if message.role != "tool":
            if not all(call.id in done for call in message.tool_calls):
                return found
            found += [message, *(done[call.id] for call in message.tool_calls)]
    return found


@settings(max_examples=150, deadline=None)
@given(ACTIONS)
def test_the_history_at_every_point_is_what_reading_up_to_it_gives(actions: list[tuple[str, Any]]) -> None:
    log = written(actions)
    state = fold(log.events)
    assert state.misfits == 0
    assert whole(state.messages) == at(log.events, log.seq)
    for seq in range(1, log.seq + 1):
        assert state.timeline.at(seq) == at(log.events, seq), (seq, [e.event for e in log.events])


@settings(max_examples=100, deadline=None)
@given(ACTIONS, st.data())
def test_a_fork_anywhere_has_the_history_of_that_point_and_nothing_that_is_open(
    actions: list[tuple[str, Any]], data: st.DataObject
) -> None:
    log = written(actions)
    seq = data.draw(st.integers(1, log.seq))
    fork = encode(seq + 1, "fork", {"session_id": "f", "parent": "s", "seq": seq, "uuid": "u", "log": "l"})
    state = fold([*log.events[:seq], fork])
    assert state.messages == at(log.events, seq) == closed_messages(state.messages)
    assert (state.turn, list(state.queue), state.restoring) == (None, [], None)
    assert set(state.receipts) == set(state.ended)  # what was open is no message of the fork's
    assert state.usage.input_tokens == 0


@settings(max_examples=100, deadline=None)
@given(ACTIONS, st.data())
def test_a_rewind_undone_is_the_history_before_it_and_takes_no_answer_away(
    actions: list[tuple[str, Any]], data: st.DataObject
) -> None:
    log = written(actions)
    before = fold(log.events)
    ended = {k: (v.data, v.history) for k, v in before.ended.items()}
    log.add("rewind", id="x", to=data.draw(st.integers(1, log.seq)), files=False)
    log.add("rewind", id="y", to=log.seq - 1, files=False)
    after = fold(log.events)
    assert after.messages == before.messages
    assert {k: (v.data, v.history) for k, v in after.ended.items()} == ended
    assert (after.usage, after.receipts) == (before.usage, before.receipts)


@settings(max_examples=100, deadline=None)
@given(ACTIONS)
def test_the_kept_seqs_are_those_of_the_events_that_no_rewind_took_back(actions: list[tuple[str, Any]]) -> None:
    log = written([action for action in actions if action[0] != "compact"])
    kept = {seq for part in kept_seqs(log.events) for seq in part}
    said = [e for e in log.events if e.seq in kept and "message" in e.data]
    state = SessionState()
    for event in [log.events[0], *said]:
        state.apply(event)
    assert whole(state.messages) == at(log.events, log.seq)


def test_what_is_no_rewind_or_compaction_is_a_misfit_and_changes_nothing() -> None:
    log = Log()
    log.turn(1)
    good = fold(log.events)
    for data in ({}, {"to": 0}, {"to": 99}, {"to": "1"}, {"to": True}, {"to": None}):
        state = fold([*log.events, encode(log.seq + 1, "rewind", data)])
        assert (state.misfits, state.messages) == (1, good.messages), data
    bad: list[dict[str, Any]] = [
        {}, {"summary": "s"}, {"summary": "s", "kept_from": 99}, {"summary": 5, "kept_from": 0}, {"messages": 5},
        {"messages": [{"role": "nobody"}]},
    ]  # fmt: skip
    for wrong in bad:
        state = fold([*log.events, encode(log.seq + 1, "compaction", wrong)])
        assert (state.misfits, state.messages) == (1, good.messages), wrong


def test_a_compaction_has_the_messages_that_it_says() -> None:
    log = Log()
    log.turn(2)
    log.add("compaction", messages=[Message("user", "short").to_map()])
    log.turn(0)
    texts = [m.text for m in fold(log.events).messages]
    assert texts[0] == "short"
    assert len(texts) == 3


def test_of_two_checkpoints_with_one_label_the_later_has_it() -> None:
    log = Log()
    log.add("checkpoint", label="here")
    log.turn(0)
    last = log.add("checkpoint", label="here")
    log.add("checkpoint", label=None)
    assert fold(log.events).labels == {"here": last.cursor}

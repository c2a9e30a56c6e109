"""The fold: what a log says. Pure: events in, state out; no clock, no I/O.

A first run and a recovery use this same fold: the runner applies each event after it recorded it, a new child applies
the recorded ones. The state holds values only; what to do next is decided in :mod:`athena.loop.step`.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from athena.events import Cursor, Event
from athena.loop import history, permission
from athena.loop.history import FileEdit, Restoring, Rewind, Timeline
from athena.loop.permission import Request, Resolution
from athena.messages import Message, ToolCall, ToolResult, Usage

NEUTRAL = frozenset({"in_doubt", "interrupted"})
"""Result statuses that are no fault of the model: they neither count as a mistake nor as a success."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """A message that was acknowledged and waits for its turn."""

    message_id: str
    text: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Receipt:
    """That a message was accepted: the seq of that event, and what tells its text from another."""

    seq: int
    digest: str


@dataclass(slots=True)
class Call:
    """A call of the running step. ``started`` means its intent is in the log; ``status`` is set with its result."""

    call: ToolCall
    position: int
    started: bool = False
    on_crash: str = "unsafe"
    """As the intent recorded it, which is what held when the call began."""
    key: str | None = None
    status: str | None = None
    request: Request | None = None
    """Of permission, if it was asked for."""

    @property
    def is_asked(self) -> bool:
        """Whether it waits for an approver's answer."""
        return self.request is not None and self.request.resolution is None


@dataclass(slots=True)
class Turn:
    """The open turn."""

    id: str
    message_id: str
    started_at: str
    options: dict[str, Any] = field(default_factory=dict)
    unsaid: str | None = None
    """The message's text while only the turn's start is in the log and not yet the ``user_message``."""
    steps: int = 0
    """Model answers recorded so far."""
    usage: Usage = field(default_factory=Usage)
    mistakes: int = 0
    """Consecutive steps whose calls all failed."""
    tool_calls_made: int = 0
    deaths: int = 0
    """Deaths of the child in this turn that nobody asked for."""
    interrupted: dict[str, Any] | None = None
    text: str | None = None
    model: str | None = None
    calls: dict[str, Call] = field(default_factory=dict)
    """Calls of the last answer, in the model's order."""
    answered: bool = False
    """The last answer had no calls: nothing is left but to end the turn."""

    @property
    def open_calls(self) -> list[Call]:
        return [c for c in self.calls.values() if c.status is None]


@dataclass(frozen=True, slots=True)
class Ended:
    """A finished turn: its ``turn_end`` data and that event's seq, and the history then, which is the first
    ``message_count`` of ``messages`` whatever a rewind does later."""

    turn: str
    data: dict[str, Any]
    seq: int
    messages: list[Message]
    message_count: int
    at: str = ""

    @property
    def history(self) -> tuple[Message, ...]:
        """As it was at the turn's end."""
        return tuple(self.messages[: self.message_count])


@dataclass(slots=True)
class SessionState:
    """Everything a log says about its session."""

    messages: list[Message] = field(default_factory=list)
    queue: deque[Accepted] = field(default_factory=deque)
    turn: Turn | None = None
    ended: dict[str, Ended] = field(default_factory=dict)
    """By message id."""
    receipts: dict[str, Receipt] = field(default_factory=dict)
    """Of every message id that was ever accepted."""
    cancelled: set[str] = field(default_factory=set)
    usage: Usage = field(default_factory=Usage)
    options: dict[str, Any] = field(default_factory=dict)
    """What was recorded of the session's options: never a grant, never a key."""
    turns: int = 0
    timeline: Timeline = field(default_factory=Timeline)
    labels: dict[str, Cursor] = field(default_factory=dict)
    """Of checkpoints."""
    edits: list[FileEdit] = field(default_factory=list)
    """Of files, by tools and by rewinds."""
    rewinds: dict[str, Rewind] = field(default_factory=dict)
    """By the id that their caller gave them."""
    restoring: Restoring | None = None
    """What a rewind has still to do with files; nothing else is done before that."""
    resolutions: dict[str, Resolution] = field(default_factory=dict)
    """Of permission requests, by their ids."""
    cursor: Cursor = field(default_factory=lambda: Cursor(0))
    events: int = 0
    misfits: int = 0
    """Events of a known kind whose data is not of that kind: skipped, and counted with the bad lines."""

    def apply(self, event: Event) -> None:
        """Fold one more event in. Kinds this release doesn't know change nothing."""
        self.cursor = event.cursor
        self.events += 1
        handler = _FOLD.get(event.event)
        if handler is None:
            return
        try:
            handler(self, event)
        except (AttributeError, KeyError, TypeError, ValueError):
            # One line from another hand must not cost the session all others (design 5).
            self.misfits += 1
        if event.event in _MARKS and not (self.turn and self.turn.open_calls):
            self.timeline.mark(event.seq, self.messages)


def digest(text: str) -> str:
    """What tells a resent message from another one under the same id, without keeping every text in memory."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def fold(events: Any) -> SessionState:
    """The state after ``events`` (any iterable of :class:`Event`)."""
    state = SessionState()
    for event in events:
        state.apply(event)
    return state


def kept_seqs(events: Any) -> list[range]:
    """The seqs of those ``events`` that made the history at their end: what a rewind took back is in none of them."""
    state, turns_back = SessionState(), []
    for event in events:
        state.apply(event)
        turns_back.append(history.turn_back(event))
    return history.kept_ranges(state, filter(None, turns_back))


def duration_ms(started_at: str, ended_at: str) -> int:
    """Milliseconds between two event times; 0 if the clock went back."""
    start, end = datetime.fromisoformat(started_at), datetime.fromisoformat(ended_at)
    return max(0, round((end - start).total_seconds() * 1000))


# --- one function for each kind ------------------------------------------------------------------------------------


def _session(state: SessionState, event: Event) -> None:
    state.options.update(event.data.get("options") or {})
    state.messages += [Message.from_map(message) for message in event.data.get("messages") or ()]


def _accepted(state: SessionState, event: Event) -> None:
    data = event.data
    receipt = Receipt(event.seq, digest(data["text"]))
    state.queue.append(Accepted(data["message_id"], data["text"], data.get("options") or {}))
    state.receipts[data["message_id"]] = receipt


def _cancelled(state: SessionState, event: Event) -> None:
    gone = set(event.data.get("message_ids") or ())
    state.queue = deque(m for m in state.queue if m.message_id not in gone)
    state.cancelled |= gone


def _turn_start(state: SessionState, event: Event) -> None:
    message_id = event.data["message_id"]
    if state.turn is not None and state.turn.message_id != message_id:
        _end_unread(state, state.turn, event)
    options: dict[str, Any] = {}
    unsaid = None
    for accepted in state.queue:
        if accepted.message_id == message_id:
            options, unsaid = accepted.options, accepted.text
            state.queue.remove(accepted)
            break
    state.turns += 1
    turn_id = event.turn or f"t{state.turns}"
    state.turn = Turn(turn_id, message_id, started_at=event.ts, options=options, unsaid=unsaid)


def _message(state: SessionState, event: Event) -> None:
    if "message" in event.data:
        state.messages.append(Message.from_map(event.data["message"]))


def _user_message(state: SessionState, event: Event) -> None:
    _message(state, event)
    if state.turn is not None:
        state.turn.unsaid = None


def _assistant(state: SessionState, event: Event) -> None:
    if "message" not in event.data:
        return
    message = Message.from_map(event.data["message"])
    usage = Usage.from_map(event.data.get("usage"))
    state.messages.append(message)
    state.usage += usage
    turn = state.turn
    if turn is None:  # a log of ExAthena, or one that lost lines: the conversation still counts
        return
    turn.steps += 1
    turn.usage += usage
    turn.model = event.data.get("model") or turn.model
    turn.text = message.text if message.text.strip() else turn.text
    at = len(state.messages)
    turn.calls = {c.id: Call(c, at + i) for i, c in enumerate(message.tool_calls)}
    turn.answered = not message.tool_calls


def _tool_call(state: SessionState, event: Event) -> None:
    call = state.turn.calls.get(str(event.data.get("id"))) if state.turn else None
    if call is not None:
        call.started = True
        call.key = event.data.get("key")
        call.on_crash = event.data.get("on_crash") or "unsafe"


def _tool_result(state: SessionState, event: Event) -> None:
    if "message" not in event.data:
        return
    message = Message.from_map(event.data["message"])
    turn = state.turn
    call = turn.calls.get(message.tool_results[0].tool_call_id) if turn and message.tool_results else None
    if turn is None or call is None:
        state.messages.append(message)
        return
    if call.status is not None:  # each call has exactly one result; a second one changes nothing
        return
    call.status = event.data.get("status") or ("error" if message.tool_results[0].is_error else "ok")
    permission.close_with_call(state, call, event.ts)
    # Results are recorded as they finish and read back in the order of the calls: a provider wants them so.
    before = sum(
        1 for c in turn.calls.values() if c.status is not None and c is not call and c.position < call.position
    )
    base = next(iter(turn.calls.values())).position
    state.messages.insert(base + before, message)
    turn.tool_calls_made += 1
    if not turn.open_calls:
        _count_mistake(turn)


def _count_mistake(turn: Turn) -> None:
    statuses = [c.status for c in turn.calls.values() if c.status not in NEUTRAL]
    if "ok" in statuses:
        turn.mistakes = 0
    elif statuses:
        turn.mistakes += 1


def _turn_resumed(state: SessionState, event: Event) -> None:
    if state.turn is not None and event.data.get("counted"):
        state.turn.deaths += 1


def _interrupted(state: SessionState, event: Event) -> None:
    if state.turn is not None and (event.turn is None or event.turn == state.turn.id):
        state.turn.interrupted = event.data


def _turn_end(state: SessionState, event: Event) -> None:
    turn = state.turn
    for call in turn.open_calls if turn else ():
        permission.close_with_call(state, call, event.ts)
    message_id = event.data.get("message_id") or (turn.message_id if turn else "")
    state.queue = deque(m for m in state.queue if m.message_id != message_id)  # its turn_start may be a bad line
    messages = state.messages
    state.ended[message_id] = Ended(event.turn or "", event.data, event.seq, messages, len(messages), event.ts)
    state.turn = None


def _rewind(state: SessionState, event: Event) -> None:
    if state.turn is not None:  # there is no rewind while a turn runs, so the line of its end is bad
        _end_unread(state, state.turn, event)
        state.turn = None
    history.fold_rewind(state, event)


def _end_unread(state: SessionState, turn: Turn, event: Event) -> None:
    """Something has begun that waits for its end, so this turn had ended, and the line that says so is bad. Who asks
    for it must not wait for ever."""
    lost = "this turn has ended, and the line of the log that says how is damaged"
    data = {
        "message_id": turn.message_id,
        "finish_reason": "error_during_execution",
        "text": turn.text,
        "usage": turn.usage.to_map(),
        "started_at": turn.started_at,
        "error": {"error": "StoreError", "message": lost, "data": {}},
    }
    messages = state.messages
    state.ended[turn.message_id] = Ended(turn.id, data, event.seq, messages, len(messages), event.ts)


_FOLD: dict[str, Callable[[SessionState, Event], None]] = {
    "session_start": _session,
    "session_resume": _session,
    "message_accepted": _accepted,
    "message_cancelled": _cancelled,
    "turn_start": _turn_start,
    "user_message": _user_message,
    "system_message": _message,
    "assistant_message": _assistant,
    "tool_call": _tool_call,
    "tool_result": _tool_result,
    "permission_request": permission.fold_request,
    "permission_resolved": permission.fold_resolved,
    "turn_resumed": _turn_resumed,
    "interrupted": _interrupted,
    "turn_end": _turn_end,
    "checkpoint": history.fold_checkpoint,
    "rewind": _rewind,
    "file_edit": history.fold_file_edit,
    "files_restored": history.fold_files_restored,
    "fork": history.fold_fork,
    "compaction": history.fold_compaction,
}

_MARKS = frozenset(
    {
        "session_start", "session_resume", "user_message", "system_message", "assistant_message", "tool_result",
        "compaction", "rewind", "files_restored", "fork",
    }
)  # fmt: skip
"""After these the history, or what belongs to it, is another one."""


# --- views -----------------------------------------------------------------------------------------------------------

UNANSWERED = "No result was recorded for this call; its outcome is unknown."


def closed_messages(messages: list[Message]) -> list[Message]:
    """``messages`` in which every call has exactly one result right after its answer, and no result lacks a call.

    Our own logs are so already; a log of ExAthena (its halted turns) or one with bad lines may not be, and a strict
    provider refuses those.
    """
    out: list[Message] = []
    for index, message in enumerate(messages):
        if message.role == "tool":
            continue  # placed below its call
        out.append(message)
        if not message.tool_calls:
            continue
        found: dict[str, ToolResult] = {}
        for later in messages[index + 1 :]:
            if later.role == "assistant":
                break
            for result in later.tool_results:
                found.setdefault(result.tool_call_id, result)
        for call in message.tool_calls:
            result = found.get(call.id) or ToolResult(call.id, UNANSWERED, is_error=True)
            out.append(Message("tool", tool_results=(result,)))
    return out

"""What a subscriber sees, and how it stays gap-free over reconnects. Pure: frames in, items out.

The server replays the log after the cursor and then goes live; this side drops what it has seen, keeps the cursor for
the next connection, and turns partial text that is sent again into the part that was not seen yet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from athena import events
from athena.errors import InvalidOption, from_wire
from athena.events import Cursor, Event
from athena.wire import Frame


@dataclass(frozen=True, slots=True)
class StreamDelta:
    """A piece of an answer that is being made. It is not recorded: the ``assistant_message`` event brings the whole.

    ``attempt`` counts tries of this step's model call from 1; a new attempt voids the text before it, and so does a
    ``turn_resumed`` event: the next process asks the model anew. ``offset`` is where ``text`` begins, in characters of
    this ``type`` in this attempt.
    """

    type: Literal["text", "thinking"]
    text: str
    turn: str
    step: int
    attempt: int
    offset: int


Item = Event | StreamDelta


class Subscriber:
    """One subscription over any number of connections.

    ``after``: ``None`` for from now, 0 for everything, a seq, an :class:`Event` or a :class:`Cursor`. Raises
    :class:`~athena.errors.InvalidOption` for anything else. ``may_be_ahead``: the event of ``after`` may be on its way
    to the server still, because the child's answer that named it overtook it. ``approver``: whether the subscriber
    answers permission requests, ``True`` or for the turn of one message its id.
    """

    def __init__(
        self,
        after: int | Event | Cursor | None,
        *,
        deltas: bool = True,
        may_be_ahead: bool = False,
        approver: bool | str = False,
    ) -> None:
        self._approver = approver
        self._cursor = _cursor(after)
        self._may_be_ahead = may_be_ahead
        self._deltas = deltas
        self._key: tuple[str, int, int] | None = None
        self._seen: dict[str, int] = {}
        self.is_ended = False
        self.end_reason: Any = None
        self.state: str | None = None
        self.lags = 0
        """How often it was behind its byte bound and went back to the log."""

    @property
    def seq(self) -> int:
        """The seq of the last event that was seen; 0 before any."""
        return self._cursor.seq if self._cursor is not None else 0

    def request_body(self) -> dict[str, Any]:
        """The arguments of ``subscribe``, from where this side is now."""
        body: dict[str, Any] = {"deltas": self._deltas, "after": None, "approver": self._approver}
        if self._cursor is not None:
            body["after"] = self._cursor.seq
            body["uuid"] = self._cursor.uuid
        return body

    def subscribed(self, answer: dict[str, Any]) -> None:
        """The server's answer: where the stream begins. Raises :class:`~athena.errors.InvalidOption` if the log does
        not hold the event that it is to begin after: it is another log, or was cut."""
        self.state, begins = answer.get("state"), int(answer["after"])
        if self._cursor is None:
            self._cursor = Cursor(begins)
        elif answer.get("reset") or (begins < self._cursor.seq and not self._may_be_ahead):
            raise InvalidOption(
                f"the log does not hold the event {self._cursor.seq} after which to go on: it is another log, or was "
                "cut; read from the start with after=0, or from now with after=None",
                option="after",
                value=repr(self._cursor),
                expected="the seq or the cursor of an event in this log, 0, or None",
            )

    def feed(self, frame: Frame) -> list[Item]:
        """What ``frame`` brings that was not seen before. Raises what ended the stream before its time, once."""
        match frame.kind:
            case "event":
                return self._event(frame)
            case "delta":
                return self._delta(frame)
            case "state":
                self.state = str(frame.header.get("state"))
            case "ended":
                self.is_ended = True
                self.end_reason = frame.header.get("reason")
                if frame.header.get("error"):
                    raise from_wire(frame.json())
            case "live" if self._cursor is not None and self._cursor.seq < int(frame.header["seq"]):
                self._cursor = Cursor(int(frame.header["seq"]))  # it joined before anybody knew how long the log is
            case "lagged":
                self.lags += 1
        return []

    def _event(self, frame: Frame) -> list[Item]:
        seq = int(frame.header["seq"])
        if self._cursor is not None and seq <= self._cursor.seq:
            return []
        event = events.decode(frame.body, seq)
        self._cursor = event.cursor
        if event.event == "turn_resumed":
            self._key = None  # the step is tried again by another process, which counts its attempts from 1
        return [event]

    def _delta(self, frame: Frame) -> list[Item]:
        header = frame.header
        key = (header["turn"], header["step"], header["attempt"])
        if key != self._key:
            self._key, self._seen = key, {}
        kind, offset, text = header["type"], int(header["offset"]), frame.body.decode()
        seen = self._seen.get(kind, 0)
        fresh = text[max(0, seen - offset) :]
        if not fresh:
            return []
        at = max(seen, offset)
        self._seen[kind] = at + len(fresh)
        return [StreamDelta(kind, fresh, *key, at)]


def _cursor(after: int | Event | Cursor | None) -> Cursor | None:
    match after:
        case None | Cursor():
            return after
        case Event():
            return after.cursor
        case int() if not isinstance(after, bool) and after >= 0:
            return Cursor(after)
    expected = "None (from now), 0 (from the start), a seq, an event or its cursor"
    raise InvalidOption(
        f"option 'after' got {after!r}: expected {expected}", option="after", value=repr(after), expected=expected
    )


class TurnFilter:
    """Tells which items of a session's stream belong to one message's turn."""

    def __init__(self, message_id: str) -> None:
        self._message_id = message_id
        self._turn: str | None = None
        self.is_over = False

    def wants(self, item: Item) -> bool:
        """Whether ``item`` is of the turn; sees its start and end on the way."""
        if isinstance(item, StreamDelta):
            return self._turn is not None and item.turn == self._turn
        if item.event == "turn_start" and item.data.get("message_id") == self._message_id:
            self._turn = item.turn
        if item.event == "message_cancelled" and self._message_id in item.data.get("message_ids", ()):
            self.is_over = True
        if self._turn is None or item.turn != self._turn:
            return False
        self.is_over = self.is_over or item.event == "turn_end"
        return True

"""A recorded fact, and the one line it is on disk and on the wire (design: the event log).

The line that is written is the byte string that is published: :func:`encode` makes it once. Unknown kinds and unknown
keys are kept and skipped by readers, so an old reader survives a new writer.
"""

from __future__ import annotations

import base64
import os
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import orjson

from athena.errors import InvalidSessionId, RecordTooLarge

FORMAT = 1
"""Version of the line format, in every ``session_start``."""

MAX_RECORD_BYTES = 32 * 1024 * 1024
"""The largest encoded event."""

KINDS = frozenset(
    {
        "session_start",
        "session_resume",
        "message_accepted",
        "message_cancelled",
        "turn_start",
        "user_message",
        "assistant_message",
        "tool_call",
        "tool_result",
        "system_message",
        "permission_request",
        "permission_resolved",
        "compaction",
        "file_edit",
        "files_restored",
        "interrupted",
        "turn_resumed",
        "turn_end",
        "options_set",
        "checkpoint",
        "rewind",
        "fork",
        "repaired",
        "session_end",
    }
)

_SESSION_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")


@dataclass(frozen=True, slots=True)
class Event:
    """One line of a log. ``seq`` counts from 1 without gaps; ``line`` is its encoded form without the newline."""

    seq: int
    ts: str
    event: str
    uuid: str
    data: dict[str, Any] = field(default_factory=dict)
    turn: str | None = None
    line: bytes = field(default=b"", repr=False, compare=False)

    @property
    def cursor(self) -> Cursor:
        return Cursor(self.seq, self.uuid)


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place in a log: the last event seen. The uuid tells whether the log still holds that event."""

    seq: int
    uuid: str | None = None


def new_uuid() -> str:
    """8 random bytes as 11 URL-safe characters, as ExAthena's."""
    return base64.urlsafe_b64encode(os.urandom(8))[:11].decode()


def new_session_id() -> str:
    """16 random bytes as 22 URL-safe characters; never starts with ``-``, which a shell would take for an option."""
    while True:
        value = base64.urlsafe_b64encode(os.urandom(16))[:22].decode()
        if value[0] != "-":
            return value


def check_session_id(session_id: object) -> str:
    """``session_id`` if it is legal. Raises :class:`InvalidSessionId`; a path can never be one (reference J9)."""
    if isinstance(session_id, str) and _SESSION_ID.fullmatch(session_id):
        return session_id
    raise InvalidSessionId(
        f"session id {session_id!r} is not legal: 1 to 128 characters of A-Z a-z 0-9 _ -",
        option="session_id",
        value=repr(session_id),
        expected="[A-Za-z0-9_-]{1,128}",
    )


def now() -> str:
    """The wall clock in UTC, ISO 8601 with microseconds and ``Z``."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def encode(seq: int, kind: str, data: dict[str, Any], turn: str | None = None) -> Event:
    """A new event with its line. Raises :class:`RecordTooLarge`, and ``TypeError`` for what JSON cannot carry."""
    ts, uuid = now(), new_uuid()
    record: dict[str, Any] = {"seq": seq, "ts": ts, "event": kind, "uuid": uuid}
    if turn is not None:
        record["turn"] = turn
    record["data"] = data
    line = orjson.dumps(record)
    if len(line) > MAX_RECORD_BYTES:
        raise RecordTooLarge(
            f"a {kind} event of {len(line)} bytes is over the limit of {MAX_RECORD_BYTES} bytes", size_bytes=len(line)
        )
    return Event(seq, ts, kind, uuid, data, turn, line)


def decode(line: bytes, seq: int) -> Event:
    """The event in ``line``. ``seq`` is used when the line has none of its own (ExAthena's logs), that is no integer
    from 1 on. Raises ``ValueError`` if this is no event; keys and values of other types than ours are never a
    reason."""
    record = orjson.loads(line)
    if not isinstance(record, dict) or not isinstance(record.get("event"), str):
        raise ValueError("not an event: no 'event' key")
    data = record.get("data")
    own, turn = record.get("seq"), record.get("turn")
    return Event(
        seq=own if type(own) is int and own > 0 else seq,  # not isinstance: true is an int too
        ts=str(record.get("ts") or ""),
        event=record["event"],
        uuid=str(record.get("uuid") or ""),
        data=data if isinstance(data, dict) else {},
        turn=turn if isinstance(turn, str) else None,
        line=line,
    )

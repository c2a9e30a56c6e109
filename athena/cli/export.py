"""A session's events in other forms: for people, and for ExAthena. Text in pieces, so that a long log is never held."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from athena.cli.output import encode
from athena.errors import InvalidOption
from athena.events import Event, new_uuid
from athena.loop.state import closed_messages, fold
from athena.messages import Message

EXATHENA_KINDS = frozenset(
    {"session_start", "session_resume", "user_message", "assistant_message", "tool_result", "system_message"}
)
"""What ExAthena knows. It drops a line with a key that it has never seen, so its lines get exactly its keys."""


def markdown(session_id: str, events: Iterable[Event]) -> Iterator[str]:
    """The conversation, with each call and its result."""
    state = fold(events)
    yield f"# Session {session_id}\n"
    for name in ("provider", "model", "cwd"):
        if state.options.get(name):
            yield f"\n- {name}: {state.options[name]}"
    yield f"\n- tokens: {state.usage.input_tokens} in, {state.usage.output_tokens} out\n"
    for message in closed_messages(state.messages):
        yield from _section(message)


def exathena(events: Iterable[Event], kept: Sequence[range] | None = None) -> Iterator[str]:
    """Lines that ExAthena's JSONL store reads. What it has no kind for is left out, and what is not in the seqs
    ``kept``, as it has no rewinds either."""
    for event in events:
        is_kept = kept is None or any(event.seq in part for part in kept)
        if event.event not in EXATHENA_KINDS or not is_kept:
            continue
        if event.event in ("session_start", "session_resume"):
            is_resume = event.event == "session_resume"
            yield _line(event.event, event.ts, event.uuid, {"ts": event.ts, "resumed": is_resume})
            for seed in event.data.get("messages") or ():  # the history that the session began with
                kind = _KINDS[Message.from_map(seed).role]
                yield _line(kind, event.ts, new_uuid(), {"message": _exathena_message(seed)})
            continue
        try:
            yield _line(event.event, event.ts, event.uuid, {"message": _exathena_message(event.data.get("message"))})
        except InvalidOption:
            continue  # to a reader of ours it is no message either


def _section(message: Message) -> Iterator[str]:
    if message.role != "tool":
        yield f"\n## {message.role.capitalize()}\n"
        if message.text:
            yield f"\n{message.text.rstrip()}\n"
    for call in message.tool_calls:
        arguments = json.dumps(call.arguments, ensure_ascii=False, indent=2)
        yield f"\n**{call.name}**\n\n{_fenced(arguments, 'json')}"
    for result in message.tool_results:
        yield f"\n{'It failed:' if result.is_error else 'Result:'}\n\n{_fenced(result.content)}"


def _fenced(text: str, language: str = "") -> str:
    """A block that nothing in ``text`` can end."""
    longest = max((len(run) for run in re.findall(r"`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}\n"


_KINDS = {
    "user": "user_message",
    "assistant": "assistant_message",
    "tool": "tool_result",
    "system": "system_message",
}


def _line(kind: str, ts: str, uuid: str, data: dict[str, Any]) -> str:
    return encode({"ts": ts, "event": kind, "uuid": uuid, "data": data}) + "\n"


def _exathena_message(value: Any) -> dict[str, Any]:
    message = Message.from_map(value)
    plain = {"role": message.role, "content": message.content}
    if message.role == "user":
        return plain
    calls = [{"id": c.id, "name": c.name, "arguments": c.arguments} for c in message.tool_calls]
    results = [
        {
            "tool_call_id": r.tool_call_id,
            "content": r.content,
            "is_error": True if r.is_error else None,
            "ui_payload": r.ui_payload,
        }
        for r in message.tool_results
    ]
    rest = {"name": message.name, "tool_calls": calls or None, "tool_results": results or None}
    return {**plain, **rest}

"""The values a conversation is made of: messages, tool calls, tool results, usage.

Frozen dataclasses with a plain ``to_map``/``from_map`` pair, not pydantic models: replay of a long log builds one of
these per line and must not validate twice what we wrote ourselves. The JSON shapes are ExAthena's (reference 3.4, 3.5),
so its logs read here; what it lost on disk (``reasoning``, ``pin``, ``ui_payload`` on read) is kept.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

from athena.errors import InvalidOption

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[str, ...] = ("system", "user", "assistant", "tool")


def clean_text(text: str) -> str:
    """``text`` that UTF-8 can carry: surrogate pairs joined, lone surrogates replaced by U+FFFD.

    A lone surrogate is not text; it comes from undecodable file names or a provider's broken ``\\ud83d`` escape.
    Refusing it would let one bad byte in a tool's output end a turn, so it is replaced at the border, visibly.
    """
    if text.isascii():
        return text
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


MAX_DEPTH = 200
"""Levels of nesting :func:`clean_json` keeps. orjson writes 254 at most, and an event adds a few of its own."""

_INT_MIN, _INT_MAX = -(2**63), 2**64 - 1


def clean_json(value: Any) -> Any:
    """``value`` as JSON can carry it: :func:`clean_text` applied to every string, keys included, and what the encoder
    refuses for its size alone made text: an int beyond 64 bits by its digits, nesting below :data:`MAX_DEPTH` by a
    note.

    Values that are no JSON at all (bytes, sets, objects) stay as they are: the encoder refuses those, which is a bug of
    whoever made them and not of the data.
    """
    return _clean(value, MAX_DEPTH)


def _clean(value: Any, levels: int) -> Any:
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, int) and not _INT_MIN <= value <= _INT_MAX:
        return _digits(value)
    if isinstance(value, dict | list | tuple) and levels == 0:
        return f"[left out: nested deeper than {MAX_DEPTH} levels]"
    if isinstance(value, dict):
        return {clean_text(k if isinstance(k, str) else str(k)): _clean(v, levels - 1) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(v, levels - 1) for v in value]
    return value


def _digits(value: int) -> str:
    try:
        return str(value)
    except ValueError:  # Python refuses to make thousands of decimal digits (its guard against quadratic time)
        return hex(value)


def new_call_id() -> str:
    """An id for a tool call whose provider gave none: ``call_`` and 12 URL-safe characters (reference 9)."""
    return "call_" + secrets.token_urlsafe(9)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A model's request to run a tool. ``error`` says why ``arguments`` could not be read, if they could not."""

    id: str
    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    error: str | None = None

    def to_map(self) -> dict[str, Any]:
        out: dict[str, Any] = {"id": self.id, "name": self.name, "arguments": self.arguments}
        if self.error is not None:
            out["error"] = self.error
        return out

    @staticmethod
    def from_map(value: dict[str, Any]) -> ToolCall:
        return ToolCall(
            id=str(value.get("id") or new_call_id()),
            name=str(value.get("name", "")),
            arguments=value.get("arguments") or {},
            error=value.get("error"),
        )


@dataclass(frozen=True, slots=True)
class ToolResult:
    """The one answer to a :class:`ToolCall`. ``ui_payload`` is ``{"kind", "payload"}``, for people, not the model."""

    tool_call_id: str
    content: str
    is_error: bool = False
    ui_payload: dict[str, Any] | None = None

    def to_map(self) -> dict[str, Any]:
        out: dict[str, Any] = {"tool_call_id": self.tool_call_id, "content": self.content}
        if self.is_error:
            out["is_error"] = True
        if self.ui_payload is not None:
            out["ui_payload"] = self.ui_payload
        return out

    @staticmethod
    def from_map(value: dict[str, Any]) -> ToolResult:
        content = value.get("content")
        return ToolResult(
            tool_call_id=str(value.get("tool_call_id", "")),
            content=content if isinstance(content, str) else "" if content is None else str(content),
            is_error=bool(value.get("is_error")),
            ui_payload=value.get("ui_payload"),
        )


@dataclass(frozen=True, slots=True)
class Message:
    """One entry of a conversation. A tool-role message carries ``tool_results``, an assistant's ``tool_calls``."""

    role: Role
    content: str | list[dict[str, Any]] | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_results: tuple[ToolResult, ...] = ()
    name: str | None = None
    reasoning: str | None = None
    pin: bool = False

    @property
    def text(self) -> str:
        """The text of the content; parts that are not text are left out."""
        if isinstance(self.content, str):
            return self.content
        return "".join(p.get("text") or "" for p in self.content or () if p.get("type") == "text")

    def to_map(self) -> dict[str, Any]:
        out: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.tool_calls:
            out["tool_calls"] = [c.to_map() for c in self.tool_calls]
        if self.tool_results:
            out["tool_results"] = [r.to_map() for r in self.tool_results]
        if self.name is not None:
            out["name"] = self.name
        if self.reasoning is not None:
            out["reasoning"] = self.reasoning
        if self.pin:
            out["pin"] = True
        return out

    @staticmethod
    def from_map(value: Any) -> Message:
        """The message in ``value`` (string keys). Raises :class:`InvalidOption` if it is none: no map, no legal role,
        or content, calls or results of another shape."""
        role = value.get("role") if isinstance(value, dict) else None
        if role not in ROLES:
            raise InvalidOption(
                f"message role {role!r} is not one of {', '.join(ROLES)}",
                option="messages",
                value=repr(role),
                expected=" | ".join(ROLES),
            )
        content = value.get("content")
        return Message(
            role=cast(Role, role),
            content=content if content is None or isinstance(content, str) else _maps("content", content),
            tool_calls=tuple(ToolCall.from_map(c) for c in _maps("tool_calls", value.get("tool_calls"))),
            tool_results=tuple(ToolResult.from_map(r) for r in _maps("tool_results", value.get("tool_results"))),
            name=value.get("name"),
            reasoning=value.get("reasoning"),
            pin=bool(value.get("pin")),
        )


def _maps(name: str, value: Any) -> list[dict[str, Any]]:
    if value is None:
        return []
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        return value
    expected = "a text or a list of maps" if name == "content" else "a list of maps"
    raise InvalidOption(
        f"a message's {name} got {repr(value)[:80]}: expected {expected}",
        option="messages",
        value=repr(value)[:80],
        expected=expected,
    )


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one or more model calls. ``cost_usd`` is ``None`` while no provider named a price."""

    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0
    reasoning_tokens: int = 0
    cost_usd: float | None = None

    def __add__(self, other: Usage) -> Usage:
        costs = [c for c in (self.cost_usd, other.cost_usd) if c is not None]
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.total_tokens + other.total_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
            sum(costs) if costs else None,
        )

    def to_map(self) -> dict[str, Any]:
        return {
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "total_tokens": self.total_tokens,
            "reasoning_tokens": self.reasoning_tokens,
            "cost_usd": self.cost_usd,
        }

    @staticmethod
    def from_map(value: dict[str, Any] | None) -> Usage:
        value = value or {}
        return Usage(
            int(value.get("input_tokens") or 0),
            int(value.get("output_tokens") or 0),
            int(value.get("total_tokens") or 0),
            int(value.get("reasoning_tokens") or 0),
            value.get("cost_usd"),
        )


def cleaned(message: Message) -> Message:
    """``message`` with every string in it safe for UTF-8 (see :func:`clean_text`)."""
    return replace(
        message,
        content=clean_json(message.content),
        tool_calls=tuple(
            ToolCall(clean_text(c.id), clean_text(c.name), clean_json(c.arguments), clean_json(c.error))
            for c in message.tool_calls
        ),
        tool_results=tuple(
            ToolResult(clean_text(r.tool_call_id), clean_text(r.content), r.is_error, clean_json(r.ui_payload))
            for r in message.tool_results
        ),
        name=clean_json(message.name),
        reasoning=clean_json(message.reasoning),
    )

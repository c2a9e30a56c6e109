"""How a turn ends, and what its caller gets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from athena.messages import Message, Usage

Category = Literal["success", "capacity", "retryable", "fatal", "interrupted"]

FINISH_REASONS: dict[str, Category] = {
    # The category tells the caller what helps: nothing, a higher limit, another try, or a change (reference 5.2).
    "stop": "success",
    "error_max_turns": "capacity",
    "error_max_budget_usd": "capacity",
    "error_consecutive_mistakes": "capacity",
    "error_prompt_too_long": "capacity",
    "error_during_execution": "retryable",
    "error_provider_auth": "fatal",
    "error_crashed": "fatal",
    "interrupted": "interrupted",
}

SHORT_CHARS = 4000
"""What is left of a text in the end of a turn that would be too large for a record."""


@dataclass(frozen=True, slots=True)
class Result:
    """The outcome of one turn.

    ``text`` is the last assistant text of the turn that is not blank, or ``None``. ``messages`` is the whole history
    up to the end of the turn. ``iterations`` counts the steps that were followed by another, so a one-step answer has
    0 (reference 5.1). ``duration_ms`` is wall time from the turn's start, restarts included. ``error`` is the error's
    wire form when the turn ended with one.
    """

    text: str | None
    finish_reason: str
    messages: tuple[Message, ...] = field(repr=False)
    session_id: str
    message_id: str
    turn: str
    usage: Usage = field(default_factory=Usage)
    cost_usd: float | None = None
    iterations: int = 0
    tool_calls_made: int = 0
    duration_ms: int = 0
    model: str | None = None
    provider: str | None = None
    halted_reason: str | None = None
    error: dict[str, Any] | None = None

    @property
    def category(self) -> Category:
        """``success``, ``capacity``, ``retryable``, ``fatal`` or ``interrupted``."""
        return FINISH_REASONS.get(self.finish_reason, "fatal")

    @property
    def ok(self) -> bool:
        """Whether the turn ended as it should."""
        return self.category == "success"

    def to_map(self) -> dict[str, Any]:
        """JSON without the messages (they travel beside it)."""
        return {
            "text": self.text,
            "finish_reason": self.finish_reason,
            "category": self.category,
            "session_id": self.session_id,
            "message_id": self.message_id,
            "turn": self.turn,
            "usage": self.usage.to_map(),
            "cost_usd": self.cost_usd,
            "iterations": self.iterations,
            "tool_calls_made": self.tool_calls_made,
            "duration_ms": self.duration_ms,
            "model": self.model,
            "provider": self.provider,
            "halted_reason": self.halted_reason,
            "error": self.error,
        }

    @staticmethod
    def from_map(value: dict[str, Any]) -> Result:
        """The result in ``value``, whose ``messages`` is a list of message maps."""
        return Result(
            text=value.get("text"),
            finish_reason=value["finish_reason"],
            messages=tuple(Message.from_map(m) for m in value.get("messages", ())),
            session_id=value["session_id"],
            message_id=value["message_id"],
            turn=value["turn"],
            usage=Usage.from_map(value.get("usage")),
            cost_usd=value.get("cost_usd"),
            iterations=value.get("iterations", 0),
            tool_calls_made=value.get("tool_calls_made", 0),
            duration_ms=value.get("duration_ms", 0),
            model=value.get("model"),
            provider=value.get("provider"),
            halted_reason=value.get("halted_reason"),
            error=value.get("error"),
        )


def shortened(data: dict[str, Any]) -> dict[str, Any]:
    """The end of a turn with the start of each text that a record may be too small for."""
    short = {name: (data[name] or "")[:SHORT_CHARS] or None for name in ("text", "halted_reason")}
    error = data.get("error")
    if error is not None:
        short["error"] = {"error": error["error"], "message": error["message"][:SHORT_CHARS], "data": {}}
    return {**data, **short}

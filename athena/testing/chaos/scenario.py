"""The conversation that every trial has: what the model says, what the tools do, and what must come out. Pure.

Three messages. The first two are sent at once, so that one waits while the other runs; the third is sent when all is
over, to see that the session still goes on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["plain", "keyed", "safe", "drawn", "drawn_keyed", "lingering"]

KINDS: dict[str, Kind] = {
    "charge": "plain",
    "post": "keyed",
    "look": "safe",
    "draw": "drawn",
    "draw_keyed": "drawn_keyed",
    "linger": "lingering",
}
"""Each tool's kind of effect. A drawn one has arguments that the model makes up anew whenever it is asked."""

KEYED: frozenset[Kind] = frozenset({"keyed", "drawn_keyed"})

TOOLS = [f"athena.testing.chaos.tools:{name.upper()}" for name in KINDS]

DRAWN = "$draw"
"""Stands in a script for a number that the model draws at random."""


@dataclass(frozen=True, slots=True)
class Said:
    """A message, and the answer that its turn must have."""

    text: str
    answer: str


CONVERSATION = (
    Said("charge the first", "first done"),
    Said("charge the second", "second done"),
    Said("and now?", "third done"),
)


def _calls(*calls: tuple[str, int | str]) -> dict[str, Any]:
    return {"tool_calls": [{"name": name, "arguments": {"amount": amount}} for name, amount in calls]}


SCRIPT: list[Any] = [
    _calls(("charge", 1), ("post", 2), ("look", 3)),
    _calls(("draw", DRAWN), ("draw_keyed", DRAWN), ("linger", 4)),
    {"text": CONVERSATION[0].answer, "chunks": 3},
    _calls(("charge", 5), ("post", 6)),
    CONVERSATION[1].answer,
    CONVERSATION[2].answer,
]
"""What the model says, by how many answers the conversation has: never by a count of its own."""


def message_id(trial: str, number: int) -> str:
    """The id under which a trial sends a message, first or again."""
    return f"{trial}-{number + 1}"

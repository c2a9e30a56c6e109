"""Tool calls as models write them: JSON text with small faults, missing ids, ids used twice."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from athena.messages import ToolCall, new_call_id
from athena.providers.http import decode

UNNAMED = "unnamed_tool"
"""The name given to a call that came without one: providers refuse an empty name when the call is sent back."""

# Strings are matched first and kept, so a comma inside one is never touched.
_TRAILING_COMMA = re.compile(r'("(?:[^"\\]|\\.)*")|,(?=\s*[}\]])', re.DOTALL)


@dataclass(slots=True)
class RawCall:
    """A call as it came in; ``arguments`` is JSON text, or an object where the protocol has one."""

    id: str | None = None
    name: str = ""
    arguments: Any = ""


def read_arguments(raw: Any) -> tuple[dict[str, Any], str | None]:
    """The arguments in ``raw`` and, if they can't be read, why not. No arguments at all mean an empty object."""
    if isinstance(raw, dict):
        return raw, None
    if raw is None or (isinstance(raw, str) and not raw.strip()):
        return {}, None
    if not isinstance(raw, str):
        return {}, f"arguments must be a JSON object, got {type(raw).__name__}"
    try:
        value = decode(raw)
    except ValueError:
        try:
            value = decode(_TRAILING_COMMA.sub(lambda m: m[1] or "", raw))
        except ValueError as exc:
            return {}, f"arguments are not valid JSON ({exc}); got {raw[:200]!r}"
    if not isinstance(value, dict):
        return {}, f"arguments must be a JSON object, got {raw[:200]!r}"
    return value, None


def read_calls(raw_calls: Iterable[RawCall], taken: Iterable[str] = ()) -> tuple[ToolCall, ...]:
    """The calls with readable arguments or an ``error``, each with an id that is unique here and not in ``taken``.

    A call that repeats id, name and arguments of another is the same one sent twice, and is dropped.
    """
    seen: dict[str, ToolCall] = {}
    used = set(taken)
    for raw in raw_calls:
        arguments, error = read_arguments(raw.arguments)
        if not raw.name:
            error = "the call names no tool"
        call = ToolCall(raw.id or new_call_id(), raw.name or UNNAMED, arguments, error)
        if seen.get(call.id) == call:
            continue
        if call.id in used:
            call = ToolCall(new_call_id(), call.name, arguments, error)
        used.add(call.id)
        seen[call.id] = call
    return tuple(seen.values())

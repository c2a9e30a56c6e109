"""Run one tool call: the only place where a tool's failure becomes a result.

Whatever a tool does, the loop gets an :class:`Outcome`; only cancellation, which is the loop's own act, passes through.
"""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import orjson
from pydantic import ValidationError

from athena import failpoints
from athena.messages import ToolCall, ToolResult, clean_json, clean_text
from athena.tools.base import Parameters, Tool, ToolContext, ToolFailure, ToolOutput, ToolTimeout

Status = Literal["ok", "error", "timeout"]

DEFAULT_TIMEOUT_S = 120.0
MARGIN_S = 5.0
"""What a tool with a time limit of its own gets beyond it, to end by itself and to tell more than that it was late."""

NEAR_MATCH = 0.75
RESULT_CAP_CHARS = 1_000_000
"""A bound for tools that have none; above it one result could fill a log record or any model's context."""

UI_PAYLOAD_CAP_BYTES = 8 * 1024 * 1024
"""A bound for what is only for people: with it and the text's bound a result always fits one log record."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a call ended. ``status`` is ``error`` for every failure but a time limit."""

    result: ToolResult
    status: Status


async def run_tool(
    tool: Tool | None,
    call: ToolCall,
    ctx: ToolContext,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    *,
    available: Iterable[str] = (),
) -> Outcome:
    """Run ``call`` with ``tool`` (``None``: there is no tool of that name; ``available`` says which there are).

    A tool that keeps its own time limit may take that long and a margin, others ``timeout_s`` seconds. Raises nothing
    but :class:`asyncio.CancelledError`, and that only if the caller was cancelled.
    """
    if call.error is not None:
        return _outcome(call, "error", f"the arguments of {call.name!r} could not be read: {call.error}")
    if tool is None:
        return _outcome(call, "error", unknown_tool_text(call.name, available))
    try:
        parameters = tool.parameters.model_validate(call.arguments)
    except ValidationError as error:
        return _outcome(call, "error", invalid_arguments_text(tool, error))
    return await _run(tool, parameters, call, ctx, timeout_s)


async def _run(tool: Tool, parameters: Parameters, call: ToolCall, ctx: ToolContext, timeout_s: float) -> Outcome:
    own = tool.time_limit_s
    try:
        limit_s = timeout_s if own is None else own(parameters) + MARGIN_S
        async with asyncio.timeout(limit_s) as scope:
            if failpoints.hit is not None:
                failpoints.hit(f"effect:{tool.name}")
            returned: Any = await tool.run(parameters, ctx)
            if failpoints.hit is not None:
                failpoints.hit(f"effected:{tool.name}")
    except asyncio.CancelledError:
        current = asyncio.current_task()
        if current is not None and current.cancelling():
            raise
        # The tool awaited something of its own that was cancelled; nobody cancelled us.
        return _outcome(call, "error", f"{tool.name} failed: it was cancelled from inside")
    except ToolTimeout as failure:
        return _outcome(call, "timeout", str(failure), ui=failure.ui)
    except ToolFailure as failure:
        return _outcome(call, "error", str(failure), ui=failure.ui)
    except (Exception, SystemExit) as error:
        if isinstance(error, TimeoutError) and scope.expired():
            return _outcome(call, "timeout", f"timeout: {tool.name} ran longer than {limit_s:g} s and was ended")
        return _outcome(call, "error", f"{tool.name} failed: {type(error).__name__}: {error}")
    return _returned(tool, call, returned)


def unknown_tool_text(name: str, available: Iterable[str]) -> str:
    """What the model is told that asked for a tool that is not there: the tools there are, and a name close to it."""
    names = sorted(available)
    text = f"there is no tool {name!r}; the tools are: {', '.join(names) or 'none'}."
    near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=NEAR_MATCH)
    return f"{text} Did you mean {near[0]!r}?" if near else text


def invalid_arguments_text(tool: Tool, error: ValidationError) -> str:
    """Which argument is wrong, what was expected and what came, for each; and the arguments the tool takes."""
    problems = []
    for detail in error.errors(include_url=False):
        where = ".".join(str(part) for part in detail["loc"]) or "arguments"
        if detail["type"] == "missing":
            problems.append(f"{where}: required and missing")
        else:
            message = detail["msg"][:1].lower() + detail["msg"][1:]
            problems.append(f"{where}: {message}, got {clean_text(repr(detail['input']))[:100]}")
    return f"invalid arguments for {tool.name}: {'; '.join(problems)}. Expected: {_signature(tool)}"


def _signature(tool: Tool) -> str:
    fields = []
    schema = tool.spec().parameters
    for name, prop in schema.get("properties", {}).items():
        kind = prop.get("type") or "/".join(str(p["type"]) for p in prop.get("anyOf", ()) if "type" in p) or "value"
        fields.append(f"{name} ({kind}{', required' if name in schema.get('required', ()) else ''})")
    return ", ".join(fields) or "no arguments"


def _returned(tool: Tool, call: ToolCall, value: Any) -> Outcome:
    if isinstance(value, str):
        return _outcome(call, "ok", value)
    if not isinstance(value, ToolOutput) or not isinstance(value.text, str):
        return _outcome(call, "error", f"{tool.name} returned a {type(value).__name__}, not a ToolOutput or a text")
    ui = None if value.ui_kind is None else {"kind": value.ui_kind, "payload": value.ui_payload}
    return _outcome(call, "error" if value.is_error else "ok", value.text, ui=ui)


def _outcome(call: ToolCall, status: Status, text: str, *, ui: dict[str, Any] | None = None) -> Outcome:
    if len(text) > RESULT_CAP_CHARS:
        text = f"{text[:RESULT_CAP_CHARS]}\n... [cut: {len(text)} characters]"
    return Outcome(ToolResult(call.id, clean_text(text), status != "ok", _encodable(ui)), status)


def _encodable(ui: dict[str, Any] | None) -> dict[str, Any] | None:
    """``ui`` if the log can carry it. A payload that JSON or a record cannot hold costs people a view, not the session
    its log."""
    if ui is None:
        return None
    cleaned: dict[str, Any] = clean_json(ui)
    try:
        size_bytes = len(orjson.dumps(cleaned))
    except TypeError as error:
        return {"kind": str(ui.get("kind")), "payload": {"unencodable": clean_text(str(error))}}
    if size_bytes > UI_PAYLOAD_CAP_BYTES:
        return {"kind": str(ui.get("kind")), "payload": {"left_out_bytes": size_bytes}}
    return cleaned

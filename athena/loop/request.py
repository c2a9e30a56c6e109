"""From the state of a session to one request that any provider accepts, and what is made of its answer. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from athena.loop.options import Options
from athena.loop.state import SessionState, closed_messages
from athena.messages import ToolCall, new_call_id
from athena.providers.base import ModelRequest, ModelResponse
from athena.tools.base import Tool

PLAN_NOTE = (
    "You are in plan mode: only tools that change nothing will run. Read, search and think, then describe what you "
    "would do."
)


def build_request(state: SessionState, options: Options, tools: Iterable[Tool], model: str) -> ModelRequest:
    """The next model call: the whole history with every call answered, and the tools that are not denied outright."""
    denied = set(options.disallowed_tools)
    allowed = None if options.allowed_tools is None else set(options.allowed_tools)
    offered = tuple(t.spec() for t in tools if t.name not in denied and (allowed is None or t.name in allowed))
    system = options.system_prompt
    if options.phase == "plan":
        system = f"{system}\n\n{PLAN_NOTE}" if system else PLAN_NOTE
    return ModelRequest(
        model=model,
        messages=tuple(closed_messages(state.messages)),
        system_prompt=system,
        tools=offered,
        temperature=options.temperature,
        top_p=options.top_p,
        max_tokens=options.max_tokens,
        stop=tuple(options.stop),
        tool_choice=options.tool_choice,
        response_format=options.response_format,
        provider_opts=options.provider_opts,
    )


def unique_calls(response: ModelResponse) -> tuple[ToolCall, ...]:
    """The calls with ids made unique: the log and the fold know a call by its id."""
    seen: set[str] = set()
    calls = []
    for call in response.tool_calls:
        if not call.id or call.id in seen:
            call = replace(call, id=new_call_id())
        seen.add(call.id)
        calls.append(call)
    return tuple(calls)

"""Tool calls for models whose template knows no tools: an enforced answer schema instead of a protocol. Pure.

The functions are described in the messages, a few worked examples show the form, and the server's grammar allows
nothing but ``{"name": a tool, "arguments": ...}`` or ``{"name": "final_answer", "arguments": {"text": ...}}``. So the
answer of even a tiny model is always well-formed; whether it is wise is another matter. Everything is kept short: such
a model has a context of a few thousand tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from athena.messages import Message, ToolCall, new_call_id
from athena.providers.base import ModelRequest, ToolSpec
from athena.providers.calls import read_arguments

FINAL = "final_answer"

_DESCRIPTION_CHARS = 80
_MAX_EXAMPLES = 3
_INTRODUCTION = (
    "You answer with exactly one JSON object and nothing else: a function call"
    ' {"name": "<function>", "arguments": {...}}, or, when you can answer, '
    '{"name": "final_answer", "arguments": {"text": "<your answer>"}}.\nFunctions:'
)
# Tasks that show a function at work; those whose function is offered with these arguments are used.
_EXAMPLES: tuple[tuple[str, str, dict[str, Any], str, str], ...] = (
    ("Read notes.txt and tell me what is in it.", "read", {"path": "notes.txt"}, "buy milk", "It says: buy milk."),
    ("Which Python files are here?", "glob", {"pattern": "**/*.py"}, "main.py", "There is one: main.py."),
    ("Run the date command.", "bash", {"command": "date"}, "Mon May 4", "It is Monday, May 4."),
    ("Find the word TODO.", "grep", {"pattern": "TODO"}, "main.py:3: TODO", "It is in main.py, line 3."),
    ("List the directory src.", "ls", {"path": "src"}, "app.py", "It holds app.py."),
)
# What llama.cpp turns into a grammar without loss or risk; the rest of a schema is left out, not translated.
_KEPT_SCHEMA_KEYS = ("type", "enum", "const", "required")

_FENCE = re.compile(r"^```[a-zA-Z_]*\s*\n(.*?)\n?```\s*$", re.DOTALL)
_TAG = re.compile(r"<tool_call>\s*(.*?)\s*(?:</tool_call>|$)", re.DOTALL)


def offered(request: ModelRequest) -> tuple[ToolSpec, ...]:
    """The tools that may be called in answer to ``request``."""
    if request.tool_choice == "none":
        return ()
    named = _named_choice(request.tool_choice)
    return tuple(t for t in request.tools if named is None or t.name == named)


def _named_choice(choice: str | dict[str, Any] | None) -> str | None:
    if isinstance(choice, dict):
        name = (choice.get("function") or choice).get("name")
        return str(name) if name else None
    return choice if choice not in (None, "auto", "none", "required") else None


def answer_schema(request: ModelRequest, tools: Sequence[ToolSpec]) -> dict[str, Any]:
    """The schema of one answer: a call of one of ``tools``, or the final text unless a call is required."""
    branches = [_branch(t.name, plain_schema(t.parameters)) for t in tools]
    if request.tool_choice != "required" and _named_choice(request.tool_choice) is None:
        text = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
        branches.append(_branch(FINAL, {**text, "additionalProperties": False}))
    return {"anyOf": branches}


def _branch(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"name": {"const": name}, "arguments": arguments},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def plain_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """``schema`` reduced to what a grammar can be made of: types, fields, choices."""
    out = {k: schema[k] for k in _KEPT_SCHEMA_KEYS if k in schema}
    for key in ("anyOf", "oneOf"):
        if isinstance(schema.get(key), list):
            out["anyOf"] = [plain_schema(s) for s in schema[key]]
    if isinstance(schema.get("items"), dict):
        out["items"] = plain_schema(schema["items"])
    if isinstance(schema.get("properties"), dict):
        out["properties"] = {k: plain_schema(v) for k, v in schema["properties"].items()}
        if schema.get("additionalProperties") is not True:
            out["additionalProperties"] = False
    return out


def messages(request: ModelRequest, tools: Sequence[ToolSpec], *, result_chars: int) -> list[dict[str, Any]]:
    """The conversation as plain text messages: description, worked examples, then what was really said."""
    head = [request.system_prompt, _INTRODUCTION, *(describe(t) for t in tools)]
    out = [{"role": "system", "content": "\n".join(h for h in head if h)}, *_worked_examples(tools)]
    names = {c.id: c.name for m in request.messages for c in m.tool_calls}
    for item in request.messages:
        out += _rendered(item, names, result_chars)
    return out


def plain_messages(request: ModelRequest) -> list[dict[str, Any]]:
    """The conversation without tools on offer; calls and results of earlier turns are told as text."""
    out = [_said("system", request.system_prompt)] if request.system_prompt else []
    names = {c.id: c.name for m in request.messages for c in m.tool_calls}
    for item in request.messages:
        calls_or_results = item.tool_calls or item.role == "tool"
        out += _rendered(item, names, None) if calls_or_results else [_said(item.role, item.text)]
    return out


def describe(tool: ToolSpec) -> str:
    """A tool in one line: ``- read(path: string, limit?: integer) - Reads a file``."""
    properties = tool.parameters.get("properties") or {}
    required = tool.parameters.get("required") or ()
    parameters = [f"{k}{'' if k in required else '?'}: {v.get('type', 'any')}" for k, v in properties.items()]
    sentence = tool.description.strip().partition("\n")[0].partition(". ")[0][:_DESCRIPTION_CHARS]
    return f"- {tool.name}({', '.join(parameters)}) - {sentence}"


def _worked_examples(tools: Sequence[ToolSpec]) -> list[dict[str, Any]]:
    offered_tools = {t.name: t for t in tools}
    fitting = [e for e in _EXAMPLES if e[1] in offered_tools and _fits(offered_tools[e[1]], e[2])]
    out: list[dict[str, Any]] = [_said("user", "Hello!"), _said("assistant", _final("Hello! How can I help?"))]
    for task, name, arguments, result, answer in fitting[:_MAX_EXAMPLES]:
        out += [
            _said("user", task),
            _said("assistant", _as_call(name, arguments)),
            _said("user", _as_result(name, result)),
            _said("assistant", _final(answer)),
        ]
    if not fitting and tools:
        arguments = {k: _sample(v) for k, v in _required_fields(tools[0]).items()}
        out += [_said("user", f"Use {tools[0].name}."), _said("assistant", _as_call(tools[0].name, arguments))]
        out += [_said("user", _as_result(tools[0].name, "ok")), _said("assistant", _final("It is done."))]
    return out


def _fits(tool: ToolSpec, arguments: dict[str, Any]) -> bool:
    properties = tool.parameters.get("properties") or {}
    return set(arguments) <= set(properties) and set(tool.parameters.get("required") or ()) <= set(arguments)


def _required_fields(tool: ToolSpec) -> dict[str, Any]:
    properties = tool.parameters.get("properties") or {}
    return {k: properties.get(k) or {} for k in tool.parameters.get("required") or ()}


def _sample(schema: dict[str, Any]) -> Any:
    if schema.get("enum"):
        return schema["enum"][0]
    return {"integer": 1, "number": 1, "boolean": True, "array": [], "object": {}}.get(schema.get("type", ""), "x")


def _rendered(item: Message, names: dict[str, str], result_chars: int | None) -> list[dict[str, Any]]:
    if item.role == "tool":
        results = [
            _as_result(names.get(r.tool_call_id, "function"), r.content, result_chars) for r in item.tool_results
        ]
        return [_said("user", "\n".join(results))]
    if item.role == "assistant":
        calls = [_as_call(c.name, c.arguments) for c in item.tool_calls]
        return [_said("assistant", "\n".join(calls) or _final(item.text))]
    return [_said(item.role, item.text)]


def _said(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


def _as_call(name: str, arguments: dict[str, Any]) -> str:
    return json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)


def _final(text: str) -> str:
    return _as_call(FINAL, {"text": text})


def _as_result(name: str, content: str, max_chars: int | None = None) -> str:
    if max_chars is not None and len(content) > max_chars:
        left_out = len(content) - max_chars
        content = f"{content[:max_chars]}\n[{left_out} more characters left out for this small model]"
    return f"Result of {name}:\n{content}"


def read_answer(text: str, tools: Sequence[ToolSpec]) -> tuple[str, tuple[ToolCall, ...]]:
    """The text and the calls in an answer: bare JSON, JSON in a code fence, or ``<tool_call>``; else all is text."""
    stripped = text.strip()
    tagged = [m.strip() for m in _TAG.findall(stripped)]
    fenced = _FENCE.match(stripped)
    calls, final = [], []
    for candidate in tagged or [fenced[1] if fenced else stripped]:
        value, _ = read_arguments(candidate if candidate.startswith("{") else None)
        name = value.get("name")
        arguments, error = read_arguments(value.get("arguments", value.get("parameters")))
        if name == FINAL:
            final.append(str(arguments.get("text", "")))
        elif tool := next((t for t in tools if t.name == name), None):
            calls.append(ToolCall(new_call_id(), tool.name, arguments, error or _missing(tool, arguments)))
        else:
            return text, ()
    return "\n".join(final), tuple(calls)


def _missing(tool: ToolSpec, arguments: dict[str, Any]) -> str | None:
    missing = [k for k in tool.parameters.get("required") or () if k not in arguments]
    return f"missing arguments: {', '.join(missing)}" if missing else None


class FinalText:
    """Shows the final answer's text while its JSON still comes in. A call shows nothing."""

    _START = re.compile(r'\{\s*"name"\s*:\s*"final_answer"\s*,\s*"arguments"\s*:\s*\{\s*"text"\s*:\s*"')
    # A whole character or a whole escape; a surrogate pair only together, or half a character would be shown.
    _UNIT = re.compile(
        r'[^"\\]+|\\["\\/bfnrt]'
        r"|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[0-9a-fA-F]{4}|\\u(?![dD][89abAB])[0-9a-fA-F]{4}"
    )

    def __init__(self) -> None:
        self._raw = ""
        self._at: int | None = None
        self.shown = ""

    def feed(self, piece: str) -> str:
        """The text that ``piece`` makes known."""
        self._raw += piece
        if self._at is None:
            start = self._START.search(self._raw)
            if start is None:
                return ""
            self._at = start.end()
        begin = self._at
        while (unit := self._UNIT.match(self._raw, self._at)) is not None:
            self._at = unit.end()
        text = str(json.loads(f'"{self._raw[begin : self._at]}"', strict=False))
        self.shown += text
        return text

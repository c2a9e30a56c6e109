"""Chat completions as values: a request into a body, streamed chunks into deltas and one answer. No I/O.

The protocol: https://platform.openai.com/docs/api-reference/chat. Deviations handled here were seen in servers that
call themselves compatible, and each is named where it is handled.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from athena.messages import Message, ToolCall, Usage
from athena.providers.base import Delta, ModelRequest, ModelResponse, StopReason, ToolSpec
from athena.providers.calls import RawCall, read_calls
from athena.providers.http import encode

_STOP_REASONS: dict[str, StopReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
    "error": "error",
}
_FORMAT_TYPES = ("text", "json_object", "json_schema")
_LEGAL_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


def body(request: ModelRequest, *, max_tokens_field: str = "max_tokens") -> dict[str, Any]:
    """The streaming request body. ``provider_opts`` are added last and win; a value of ``None`` removes a field."""
    out: dict[str, Any] = {
        "model": request.model,
        "messages": messages(request),
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    optional: dict[str, Any] = {
        "temperature": request.temperature,
        "top_p": request.top_p,
        max_tokens_field: request.max_tokens,
        "stop": list(request.stop) or None,
        "response_format": response_format(request.response_format),
    }
    if request.tools:
        optional["tools"] = [tool(spec) for spec in request.tools]
        optional["tool_choice"] = tool_choice(request.tool_choice)
    out.update((k, v) for k, v in optional.items() if v is not None)
    out.update(request.provider_opts)
    return {k: v for k, v in out.items() if v is not None}


def messages(request: ModelRequest) -> list[dict[str, Any]]:
    """The conversation, system prompt first; each tool result is a message of its own."""
    out: list[dict[str, Any]] = []
    if request.system_prompt:
        out.append({"role": "system", "content": request.system_prompt})
    for item in request.messages:
        if item.role == "tool":
            out += [{"role": "tool", "tool_call_id": r.tool_call_id, "content": r.content} for r in item.tool_results]
        else:
            out.append(_message(item))
    return out


def _message(item: Message) -> dict[str, Any]:
    out: dict[str, Any] = {"role": item.role, "content": content(item.content)}
    if item.role != "user":
        out["content"] = item.text
    if item.name and _LEGAL_NAME.fullmatch(item.name):
        out["name"] = item.name
    if item.tool_calls:
        out["content"] = item.text or None
        out["tool_calls"] = [_call(c) for c in item.tool_calls]
    return out


def _call(call: ToolCall) -> dict[str, Any]:
    arguments = encode(call.arguments).decode()
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def content(value: str | list[dict[str, Any]] | None) -> str | list[dict[str, Any]]:
    """A user's content: text, or parts. Images given as data become data URLs; what has no form here becomes a text."""
    if not isinstance(value, list):
        return value or ""
    return [_part(p) for p in value]


def _part(part: dict[str, Any]) -> dict[str, Any]:
    kind = part.get("type")
    if kind == "text":
        return {"type": "text", "text": part.get("text") or ""}
    if kind == "image_url" and isinstance(part.get("image_url"), dict):
        return {"type": "image_url", "image_url": part["image_url"]}
    url = part.get("url") or data_url(part)
    if kind in ("image", "image_url") and url:
        return {"type": "image_url", "image_url": {"url": url}}
    return {"type": "text", "text": f"[{kind} {part.get('filename') or ''}: not supported by this provider]"}


def data_url(part: dict[str, Any]) -> str | None:
    """The ``data:`` URL of a part that carries its bytes (base64 text, or raw bytes), or ``None``."""
    data = part.get("data")
    if isinstance(data, bytes):
        data = base64.b64encode(data).decode()
    return f"data:{part.get('media_type') or 'image/png'};base64,{data}" if data else None


def tool(spec: ToolSpec) -> dict[str, Any]:
    """A tool as a function object."""
    function = {"name": spec.name, "description": spec.description, "parameters": spec.parameters}
    return {"type": "function", "function": function}


def tool_choice(value: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
    """``auto``, ``none``, ``required`` as they are; any other text names the one function to call."""
    if isinstance(value, str) and value not in ("auto", "none", "required"):
        return {"type": "function", "function": {"name": value}}
    return value


def response_format(value: str | dict[str, Any] | None) -> dict[str, Any] | None:
    """``"json"``, a format object, or a JSON schema, as a format object."""
    if value is None or value == "text":
        return None
    if isinstance(value, str):
        return {"type": "json_object"}
    if value.get("type") in _FORMAT_TYPES:
        return value
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": value}}


@dataclass(slots=True)
class Answer:
    """Collects the chunks of one streamed completion. ``complete`` is true once a finish reason was seen."""

    taken_ids: Iterable[str] = ()
    _text: list[str] = field(default_factory=list)
    _thinking: list[str] = field(default_factory=list)
    _calls: dict[tuple[int, int], RawCall] = field(default_factory=dict)
    _generation: dict[int, int] = field(default_factory=dict)
    _finish: str | None = None
    _usage: Usage = field(default_factory=Usage)
    _model: str | None = None

    @property
    def complete(self) -> bool:
        """Whether the server said why it stopped."""
        return self._finish is not None

    def feed(self, chunk: dict[str, Any]) -> list[Delta]:
        """Take one chunk; returns what of it is to be shown now."""
        self._model = chunk.get("model") or self._model
        if chunk.get("usage"):
            self._usage = usage(chunk["usage"])
        choices = chunk.get("choices")
        if not choices:
            return []  # the usage chunk, and heartbeats of some gateways
        choice = choices[0]
        self._finish = choice.get("finish_reason") or self._finish
        delta = choice.get("delta") or choice.get("message") or {}
        shown: list[Delta] = []
        if thinking := delta.get("reasoning_content") or delta.get("reasoning"):
            self._thinking.append(thinking)
            shown.append(Delta("thinking", thinking))
        if text := delta.get("content") or delta.get("refusal"):
            self._text.append(text)
            shown.append(Delta("text", text))
        for position, piece in enumerate(delta.get("tool_calls") or ()):
            self._feed_call(position, piece)
        return shown

    def _feed_call(self, position: int, piece: dict[str, Any]) -> None:
        index = piece.get("index")
        if not isinstance(index, int):
            index = position  # some servers leave it out and send whole calls
        raw = self._calls.get((index, self._generation.get(index, 0)))
        # Some servers give every parallel call index 0; a new id with a name begins a new call.
        function = piece.get("function") or {}
        if raw is not None and raw.id and function.get("name") and piece.get("id") not in (None, "", raw.id):
            self._generation[index] = self._generation.get(index, 0) + 1
            raw = None
        if raw is None:
            raw = self._calls[index, self._generation.get(index, 0)] = RawCall()
        raw.id = piece.get("id") or raw.id
        raw.name = raw.name or function.get("name") or ""
        arguments = function.get("arguments")
        if isinstance(arguments, str) and isinstance(raw.arguments, str):
            raw.arguments += arguments
        elif arguments is not None:
            raw.arguments = arguments  # an object where the protocol has text

    def response(self) -> ModelResponse:
        """The whole answer. Call it when the stream has ended and :attr:`complete` is true."""
        calls = read_calls(self._calls.values(), self.taken_ids)
        stop = _STOP_REASONS.get(self._finish or "", "stop")
        if calls and stop == "stop":
            stop = "tool_calls"  # several servers say "stop" after calls
        thinking = "".join(self._thinking) or None
        return ModelResponse("".join(self._text), calls, thinking, stop, self._usage, self._model)


def usage(value: dict[str, Any]) -> Usage:
    """Token counts; ``cost`` is taken where a gateway (OpenRouter) names one."""
    prompt = int(value.get("prompt_tokens") or 0)
    completion = int(value.get("completion_tokens") or 0)
    details = value.get("completion_tokens_details") or {}
    cost = value.get("cost")
    return Usage(
        prompt,
        completion,
        int(value.get("total_tokens") or prompt + completion),
        int(details.get("reasoning_tokens") or 0),
        float(cost) if isinstance(cost, int | float) and not isinstance(cost, bool) else None,
    )


def call_ids(request: ModelRequest) -> set[str]:
    """The ids of all calls in the conversation; a new call must not use one again."""
    return {c.id for m in request.messages for c in m.tool_calls}

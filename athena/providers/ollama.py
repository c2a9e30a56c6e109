"""Ollama's own protocol: ``POST /api/chat``, answered with one JSON object per line.

The protocol: https://docs.ollama.com/api. It is used instead of Ollama's OpenAI front because it says more (thinking,
context options, exact counts) and takes arguments as objects, so nothing is parsed twice.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import httpx

from athena.errors import ProviderError
from athena.messages import Message, Usage
from athena.providers.base import Delta, ModelRequest, ModelResponse, Provider, ProviderSettings, StopReason
from athena.providers.calls import RawCall, read_calls
from athena.providers.http import Endpoint
from athena.providers.openai import required
from athena.providers.openai_wire import call_ids, data_url, tool

DEFAULT_BASE_URL = "http://localhost:11434"
_DEFAULT_PORT = 11434
_TOP_LEVEL_OPTS = frozenset({"think", "keep_alive", "format", "truncate", "shift", "logprobs", "top_logprobs"})


def create(settings: ProviderSettings) -> Provider:
    """Ollama at ``base_url``, else at ``OLLAMA_HOST``, else on this machine. Raises :class:`InvalidOption`."""
    if not settings.model:
        raise required("model", "ollama", 'pass model=, for example model="llama3.1" (see `ollama list`)')
    base_url = settings.base_url or host_url(settings.env) or DEFAULT_BASE_URL
    # Addresses written for the OpenAI front of the same server keep working.
    base_url = base_url.strip().rstrip("/").removesuffix("/v1").removesuffix("/api")
    hints = {
        "not_found": f"fetch the model with `ollama pull {settings.model}`",
        "transport": "start it with `ollama serve`, or set base_url= or OLLAMA_HOST",
    }
    key = settings.api_key or settings.env.get("OLLAMA_API_KEY")
    return OllamaProvider(settings.model, Endpoint("ollama", base_url, settings, api_key=key, hints=hints))


def host_url(env: Mapping[str, str]) -> str | None:
    """The address in ``OLLAMA_HOST``, which Ollama reads as ``[scheme://]host[:port]`` with every part optional."""
    value = (env.get("OLLAMA_HOST") or "").strip().strip("\"'")
    if not value:
        return None
    scheme, sep, rest = value.partition("://")
    if not sep:
        scheme, rest = "http", value
    if rest.startswith(":"):
        rest = "127.0.0.1" + rest
    try:
        url = httpx.URL(f"{scheme}://{rest}")
    except httpx.InvalidURL:
        return value  # refused, with the value in the text, where base URLs are checked
    if url.host in ("0.0.0.0", "::"):
        url = url.copy_with(host="127.0.0.1")  # an address to listen on, not one to call
    if url.port is None and not sep:
        url = url.copy_with(port=_DEFAULT_PORT)
    return str(url)


class OllamaProvider:
    """Streams chats from one Ollama server. See :class:`athena.providers.base.Provider`."""

    name = "ollama"

    def __init__(self, model: str, endpoint: Endpoint) -> None:
        self.default_model: str | None = model
        self._endpoint = endpoint

    async def stream(self, request: ModelRequest) -> AsyncGenerator[Delta | ModelResponse, None]:
        """Deltas as they come, then the whole answer. Raises :class:`~athena.errors.ProviderError`."""
        answer = Answer(call_ids(request))
        try:
            async with aclosing(self._endpoint.stream("/api/chat", body(request), "ndjson")) as chunks:
                async for chunk in chunks:
                    for delta in self._feed(answer, chunk):
                        yield delta
        except ProviderError as exc:
            raise _as_capability(exc) from exc.__cause__
        if not answer.complete:
            raise self._endpoint.incomplete()
        yield answer.response()

    def _feed(self, answer: Answer, chunk: dict[str, Any]) -> list[Delta]:
        try:
            return answer.feed(chunk)
        except (AttributeError, TypeError, ValueError) as exc:
            raise self._endpoint.garbage(str(chunk)) from exc

    async def aclose(self) -> None:
        """Close connections. Safe to call twice."""
        await self._endpoint.aclose()


def _as_capability(error: ProviderError) -> ProviderError:
    """A model that can't do what was asked is told by text only; its kind decides whether another way is tried."""
    if error.kind == "bad_request" and "does not support" in error.message:
        return ProviderError(error.message, **{**error.data, "kind": "capability"})
    return error


def body(request: ModelRequest) -> dict[str, Any]:
    """The request body. Of ``provider_opts``, Ollama's top-level fields go there, all others into ``options``."""
    out: dict[str, Any] = {"model": request.model, "messages": messages(request), "stream": True}
    if request.tools and request.tool_choice != "none":
        out["tools"] = [tool(spec) for spec in request.tools]
    options: dict[str, Any] = {
        "temperature": request.temperature,
        "top_p": request.top_p,
        "num_predict": request.max_tokens,
        "stop": list(request.stop) or None,
    }
    if (wanted := _format(request.response_format)) is not None:
        out["format"] = wanted
    for key, value in request.provider_opts.items():
        if key == "options":
            options.update(value)
        elif key in _TOP_LEVEL_OPTS:
            out[key] = value
        else:
            options[key] = value
    if options := {k: v for k, v in options.items() if v is not None}:
        out["options"] = options
    return out


def _format(value: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
    if value is None or value == "text":
        return None
    if isinstance(value, str):
        return "json"
    match value.get("type"):
        case "text":
            return None
        case "json_object":
            return "json"
        case "json_schema":
            schema: dict[str, Any] = (value.get("json_schema") or {}).get("schema") or {}
            return schema
        case _:
            return value


def messages(request: ModelRequest) -> list[dict[str, Any]]:
    """The conversation, system prompt first. A result names its tool, because calls have no ids here."""
    out: list[dict[str, Any]] = []
    if request.system_prompt:
        out.append({"role": "system", "content": request.system_prompt})
    names: dict[str, str] = {}
    for item in request.messages:
        names.update((c.id, c.name) for c in item.tool_calls)
        if item.role == "tool":
            out += [
                {"role": "tool", "tool_name": names.get(r.tool_call_id, ""), "content": r.content}
                for r in item.tool_results
            ]
        else:
            out.append(_message(item))
    return out


def _message(item: Message) -> dict[str, Any]:
    out: dict[str, Any] = {"role": item.role, "content": item.text}
    if images := [i for i in map(_image, item.content if isinstance(item.content, list) else ()) if i]:
        out["images"] = images
    if item.tool_calls:
        out["tool_calls"] = [{"function": {"name": c.name, "arguments": c.arguments}} for c in item.tool_calls]
    return out


def _image(part: dict[str, Any]) -> str | None:
    """The base64 data of an image part; Ollama takes no image addresses."""
    if part.get("type") not in ("image", "image_url"):
        return None
    nested = part.get("image_url")
    url = nested.get("url") if isinstance(nested, dict) else part.get("url")
    url = url or data_url(part) or ""
    return url.partition(";base64,")[2] or None


@dataclass(slots=True)
class Answer:
    """Collects the lines of one chat. ``complete`` is true once the line with ``done`` was seen."""

    taken_ids: Iterable[str] = ()
    complete: bool = False
    _text: list[str] = field(default_factory=list)
    _thinking: list[str] = field(default_factory=list)
    _calls: list[RawCall] = field(default_factory=list)
    _last: dict[str, Any] = field(default_factory=dict)

    def feed(self, chunk: dict[str, Any]) -> list[Delta]:
        """Take one line; returns what of it is to be shown now."""
        message = chunk.get("message") or {}
        shown: list[Delta] = []
        if thinking := message.get("thinking"):
            self._thinking.append(thinking)
            shown.append(Delta("thinking", thinking))
        if text := message.get("content"):
            self._text.append(text)
            shown.append(Delta("text", text))
        for call in message.get("tool_calls") or ():
            function = call.get("function") or {}
            self._calls.append(RawCall(call.get("id"), function.get("name") or "", function.get("arguments")))
        if chunk.get("done") is True:
            self.complete, self._last = True, chunk
        return shown

    def response(self) -> ModelResponse:
        """The whole answer. Call it when the stream has ended and ``complete`` is true."""
        calls = read_calls(self._calls, self.taken_ids)
        stop: StopReason = "length" if self._last.get("done_reason") == "length" else "stop"
        if calls and stop == "stop":
            stop = "tool_calls"
        read, written = (int(self._last.get(k) or 0) for k in ("prompt_eval_count", "eval_count"))
        used = Usage(read, written, read + written)
        thinking = "".join(self._thinking) or None
        return ModelResponse("".join(self._text), calls, thinking, stop, used, self._last.get("model"))

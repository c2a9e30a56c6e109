"""A strict fake of an Ollama server: ``/api/chat``, ``/api/tags``, ``/api/show``, ``/api/version``."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson

from athena.testing.fake_http import FakeServer, Hangup, Recorded, Responder
from athena.testing.fake_script import (
    FakeStep,
    Refused,
    Script,
    begin,
    last_user_text,
    retry_headers,
    status_of,
    usage_of,
    wait_for,
)
from athena.testing.ollama_rules import check_request

VERSION = "0.12.0"
_CREATED_AT = "2026-01-01T00:00:00Z"
_GARBAGE = b"<html><body>502 Bad Gateway</body></html>\n"


class FakeOllama(FakeServer):
    """Answers chats from ``script`` (steps of :class:`FakeStep`; without one it echoes).

    ``models`` are those that were pulled; ``None`` means that every name is there. With ``api_key`` every request must
    carry it, as behind a gateway. ``tools=False`` refuses tools as a model without them does.
    """

    def __init__(
        self,
        script: Any = None,
        *,
        models: tuple[str, ...] | None = None,
        api_key: str | None = None,
        loop: bool = False,
        tools: bool = True,
    ) -> None:
        super().__init__()
        self._script = Script(script, loop=loop)
        self._models = models
        self._api_key = api_key
        self._tools = tools

    async def respond(self, request: Recorded, responder: Responder) -> None:
        """Answer one request, as the real server would."""
        if self._api_key is not None and request.headers.get("authorization") != f"Bearer {self._api_key}":
            return await responder.json(401, {"error": "unauthorized"})
        match request.method, request.path:
            case "GET", "/api/version":
                return await responder.json(200, {"version": VERSION})
            case "GET", "/api/tags":
                return await responder.json(200, {"models": [_tag(m) for m in self._models or ("fake:latest",)]})
            case "POST", "/api/show":
                return await self._show(request.json, responder)
            case "POST", "/api/chat":
                return await self._chat(request.json, responder)
            case _:
                return await responder.json(404, {"error": f"{request.path} not found"})

    async def _show(self, body: Any, responder: Responder) -> None:
        model = body.get("model") if isinstance(body, dict) else None
        if not model or not self._has(model):
            return await responder.json(404, {"error": f"model '{model}' not found"})
        capabilities = ["completion", "tools"] if self._tools else ["completion"]
        info = {"general.architecture": "fake", "fake.context_length": 8192}
        return await responder.json(
            200, {"details": _details(), "model_info": info, "capabilities": capabilities, "parameters": ""}
        )

    def _has(self, model: str) -> bool:
        return self._models is None or model in self._models or f"{model}:latest" in self._models

    async def _chat(self, body: Any, responder: Responder) -> None:
        try:
            check_request(body)
        except Refused as exc:
            return await responder.json(400, {"error": exc.message})
        if not self._has(body["model"]):
            return await responder.json(404, {"error": f"model '{body['model']}' not found"})
        if body.get("tools") and not self._tools:
            return await responder.json(400, {"error": f"{body['model']} does not support tools"})
        if not body["messages"]:  # asked for nothing but to load the model
            return await responder.json(200, {**_line(body["model"], {}), "done": True, "done_reason": "load"})
        step = self._script.next_step(body["messages"])
        await begin(step)
        if (status := status_of(step)) is not None:
            text = step.error.message if step.error else f"scripted status {status}"
            return await responder.json(status, {"error": text}, retry_headers(step))
        return await _answer(step, body, responder)


async def _answer(step: FakeStep, body: dict[str, Any], responder: Responder) -> None:
    text = step.full_text(last_user_text(body["messages"]))
    last = _last_line(step, body, text)
    if body.get("stream") is False:
        last["message"] = {"role": "assistant", "content": text, **_calls(step)}
        return await responder.json(200, last)
    await responder.start("application/x-ndjson")
    lines = _lines(step, text)
    for number, message in enumerate(lines):
        await _send(responder, _line(body["model"], message))
        if number == 0 and step.stall_s:
            await asyncio.sleep(step.stall_s)
        if step.cut and number >= len(lines) // 2:
            raise Hangup
        if step.chunk_delay_s:
            await asyncio.sleep(step.chunk_delay_s)
    if step.garbage:
        await responder.piece(_GARBAGE)
    if step.error is not None:
        await _send(responder, {"error": step.error.message})
        return await responder.end()
    await wait_for(step.wait_before_end)
    if not step.half_close:
        await _send(responder, last)
    return await responder.end()


def _lines(step: FakeStep, text: str) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    if step.thinking:
        lines.append({"content": "", "thinking": step.thinking})
    lines += [{"content": piece} for piece in step.pieces(text)]
    # The server sends each call whole, in a line of its own.
    lines += [{"content": "", "tool_calls": [call]} for call in _calls(step).get("tool_calls", ())]
    return lines


def _calls(step: FakeStep) -> dict[str, Any]:
    if not step.tool_calls:
        return {}
    calls = []
    for index, call in enumerate(step.tool_calls):
        function = {"index": index, "name": call.name, "arguments": call.arguments}
        calls.append({"function": function} if call.id is None else {"id": call.id, "function": function})
    return {"tool_calls": calls}


def _line(model: str, message: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": model,
        "created_at": _CREATED_AT,
        "message": {"role": "assistant", "content": "", **message},
        "done": False,
    }


def _last_line(step: FakeStep, body: dict[str, Any], text: str) -> dict[str, Any]:
    read, written = usage_of(step, body["messages"], text)
    return {
        **_line(body["model"], {}),
        "done": True,
        "done_reason": "length" if step.stop_reason == "length" else "stop",
        "total_duration": 1,
        "load_duration": 1,
        "prompt_eval_count": read,
        "prompt_eval_duration": 1,
        "eval_count": written,
        "eval_duration": 1,
    }


def _tag(model: str) -> dict[str, Any]:
    return {
        "name": model,
        "model": model,
        "modified_at": _CREATED_AT,
        "size": 1,
        "digest": "0" * 64,
        "details": _details(),
    }


def _details() -> dict[str, Any]:
    return {
        "format": "gguf",
        "family": "fake",
        "families": ["fake"],
        "parameter_size": "1B",
        "quantization_level": "Q4",
    }


async def _send(responder: Responder, value: dict[str, Any]) -> None:
    await responder.piece(orjson.dumps(value) + b"\n")

"""A strict fake of OpenAI's chat completions: ``/v1/chat/completions`` and ``/v1/models``."""

from __future__ import annotations

import asyncio
import secrets
from itertools import zip_longest
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
from athena.testing.openai_rules import check_request

_GARBAGE = b'data: {"choices": [{"delta": {"con\xff\n\n'
_ARGUMENT_PIECES = 3


class FakeOpenAI(FakeServer):
    """Answers chat completions from ``script`` (steps of :class:`FakeStep`; without one it echoes).

    With ``api_key`` every request must carry it; with ``models``, others are not found. ``base_url`` is that of the
    server; clients append ``/v1``, which ``api_url`` has.
    """

    def __init__(
        self,
        script: Any = None,
        *,
        api_key: str | None = None,
        loop: bool = False,
        models: tuple[str, ...] | None = None,
    ) -> None:
        super().__init__()
        self._script = Script(script, loop=loop)
        self._api_key = api_key
        self._models = models

    @property
    def api_url(self) -> str:
        """The base URL to give to clients."""
        return self.base_url + "/v1"

    async def respond(self, request: Recorded, responder: Responder) -> None:
        """Answer one request, as the real server would."""
        if (refusal := self._refused_key(request)) is not None:
            return await responder.json(401, _error(refusal, "invalid_request_error", code="invalid_api_key"))
        match request.method, request.path:
            case "GET", "/v1/models":
                rows = [
                    {"id": m, "object": "model", "created": 0, "owned_by": "fake"} for m in self._models or ("fake",)
                ]
                return await responder.json(200, {"object": "list", "data": rows})
            case "POST", "/v1/chat/completions":
                return await self._complete(request.json, responder)
            case _:
                text = f"Invalid URL ({request.method} {request.path})"
                return await responder.json(404, _error(text, "invalid_request_error"))

    def _refused_key(self, request: Recorded) -> str | None:
        if self._api_key is None:
            return None
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if given == self._api_key:
            return None
        if not given:
            return "You didn't provide an API key. Put it in the Authorization header, as a bearer token."
        # The real server shows the ends of the key it refuses; clients must not pass that on.
        return f"Incorrect API key provided: {given[:8]}{'*' * 12}{given[-4:]}. Find your key in your account settings."

    async def _complete(self, body: Any, responder: Responder) -> None:
        try:
            check_request(body)
        except Refused as exc:
            return await responder.json(400, _error(exc.message, "invalid_request_error", param=exc.param))
        if self._models is not None and body["model"] not in self._models:
            text = f"The model `{body['model']}` does not exist or you do not have access to it."
            return await responder.json(404, _error(text, "invalid_request_error", code="model_not_found"))
        step = self._script.next_step(body["messages"])
        await begin(step)
        if (status := status_of(step)) is not None:
            return await responder.json(status, _scripted_error(step), retry_headers(step))
        answer = _Answer(step, body)
        if body.get("stream"):
            return await answer.stream(responder)
        return await responder.json(200, answer.whole())


def _error(message: str, kind: str, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _scripted_error(step: FakeStep) -> dict[str, Any]:
    if step.error is None:
        return _error(f"scripted status {step.status}", "scripted")
    code = {"context_length_exceeded": "context_length_exceeded", "rate_limited": "rate_limit_exceeded"}
    return _error(step.error.message, step.error.kind, code=code.get(step.error.kind))


class _Answer:
    """One scripted completion, whole or as a stream of chunks."""

    def __init__(self, step: FakeStep, body: dict[str, Any]) -> None:
        self._step = step
        self._body = body
        self._id = "chatcmpl-" + secrets.token_hex(8)
        self._text = step.full_text(last_user_text(body["messages"]))
        self._calls = [
            {
                "id": c.id or "call_" + secrets.token_hex(6),
                "type": "function",
                "function": {
                    "name": c.name,
                    "arguments": c.arguments if isinstance(c.arguments, str) else orjson.dumps(c.arguments).decode(),
                },
            }
            for c in step.tool_calls
        ]

    def whole(self) -> dict[str, Any]:
        """The completion as one object."""
        message: dict[str, Any] = {"role": "assistant", "content": self._text or None, "refusal": None}
        if self._calls:
            message["tool_calls"] = self._calls
        choice = {"index": 0, "message": message, "finish_reason": self._finish_reason()}
        return {**self._frame("chat.completion"), "choices": [choice], "usage": self._usage()}

    async def stream(self, responder: Responder) -> None:
        """The completion as server-sent events, with the step's faults."""
        await responder.start("text/event-stream; charset=utf-8")
        deltas = self._deltas()
        for number, delta in enumerate(deltas):
            await self._send(responder, self._chunk(delta))
            if number == 1 and self._step.stall_s:
                await asyncio.sleep(self._step.stall_s)
            if self._step.cut and number >= len(deltas) // 2:
                raise Hangup
            if self._step.chunk_delay_s:
                await asyncio.sleep(self._step.chunk_delay_s)
        if self._step.garbage:
            await responder.piece(_GARBAGE)
        if self._step.error is not None:
            await self._send(responder, _scripted_error(self._step))
            return await responder.end()
        await wait_for(self._step.wait_before_end)
        if not self._step.half_close:
            await self._finish(responder)
        return await responder.end()

    async def _finish(self, responder: Responder) -> None:
        await self._send(responder, self._chunk({}, self._finish_reason()))
        if (self._body.get("stream_options") or {}).get("include_usage"):
            usage_chunk = {**self._frame("chat.completion.chunk"), "choices": [], "usage": self._usage()}
            await self._send(responder, usage_chunk)
        await responder.piece(b"data: [DONE]\n\n")

    def _deltas(self) -> list[dict[str, Any]]:
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
        if self._step.thinking:
            deltas.append({"reasoning_content": self._step.thinking})
        deltas += [{"content": piece} for piece in self._step.pieces(self._text)]
        heads, tails = [], []
        for index, call in enumerate(self._calls):
            function: dict[str, str] = call["function"]  # type: ignore[assignment]  # the one nested field
            heads.append({**call, "index": index, "function": {"name": function["name"], "arguments": ""}})
            tails.append([{"index": index, "function": {"arguments": a}} for a in _split(function["arguments"])])
        deltas += [{"tool_calls": [head]} for head in heads]
        # Pieces of parallel calls are interleaved: a client that appends to "the last call" mixes them up.
        deltas += [{"tool_calls": [piece]} for row in zip_longest(*tails) for piece in row if piece is not None]
        return deltas

    def _frame(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": 0, "model": self._body["model"]}

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        return {**self._frame("chat.completion.chunk"), "choices": [choice]}

    def _finish_reason(self) -> str:
        return self._step.stop_reason or ("tool_calls" if self._calls else "stop")

    def _usage(self) -> dict[str, Any]:
        read, written = usage_of(self._step, self._body["messages"], self._text)
        out: dict[str, Any] = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
        if self._step.usage is not None:
            out["completion_tokens_details"] = {"reasoning_tokens": self._step.usage.reasoning_tokens}
            if self._step.usage.cost_usd is not None:
                out["cost"] = self._step.usage.cost_usd
        return out

    @staticmethod
    async def _send(responder: Responder, value: dict[str, Any]) -> None:
        await responder.piece(b"data: " + orjson.dumps(value) + b"\n\n")


def _split(text: str) -> list[str]:
    size = -(-len(text) // _ARGUMENT_PIECES) or 1
    return [text[i : i + size] for i in range(0, len(text), size)]

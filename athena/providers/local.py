"""A real model without a key or a network: a GGUF file on llama.cpp's own server (see :mod:`.local_server`).

The server is a program that the sessions with one model share. Athena's supervisor runs it from :func:`service_spec`
when ``options["ask_service"]`` asks for it, before each call, so that a restarted server's new address is found. A
server that runs elsewhere is given in ``options["local_endpoint"]``; with neither, the provider runs one for itself and
ends it when it is closed.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from athena.errors import InvalidOption, ProviderError
from athena.providers import local_prompt, openai_wire
from athena.providers.base import Delta, ModelRequest, ModelResponse, Provider, ProviderSettings, ToolSpec
from athena.providers.http import Endpoint
from athena.providers.local_server import MODEL_ALIAS
from athena.providers.local_service import (
    CTX_TOKENS,
    SLOTS,
    GivenServer,
    OwnServer,
    SharedServer,
    model_path,
    service_spec,
)
from athena.providers.openai import read_chunk

__all__ = ["LocalProvider", "create", "model_path", "service_spec"]

_MAX_TOKENS = 512  # small models rarely stop by themselves; their slot is shared
_TEMPERATURE = 0.2


def create(settings: ProviderSettings) -> Provider:
    """The provider with the server that ``settings.options`` tell of. Raises :class:`InvalidOption`."""
    given = settings.options.get("local_endpoint")
    ask = settings.options.get("ask_service")
    if given is None and ask is not None:
        return LocalProvider(settings, SharedServer(service_spec(settings.model, settings.env), ask))
    if given is None:
        return LocalProvider(settings, OwnServer(service_spec(settings.model, settings.env)))
    if not isinstance(given, dict) or not isinstance(given.get("base_url"), str):
        expected = '{"base_url": ..., "api_key": ...}'
        raise InvalidOption(
            f"local_endpoint: expected {expected}",
            option="local_endpoint",
            value=type(given).__name__,
            expected=expected,
        )
    return LocalProvider(settings, GivenServer(given["base_url"], given.get("api_key")))


@dataclass(frozen=True, slots=True)
class _Connection:
    """An endpoint and what its server said about itself."""

    endpoint: Endpoint
    base_url: str
    knows_tools: bool
    slot_tokens: int


class LocalProvider:
    """Streams from a llama.cpp server, with tool calls for every model. See :class:`athena.providers.base.Provider`."""

    name = "local"

    def __init__(self, settings: ProviderSettings, server: GivenServer | OwnServer | SharedServer) -> None:
        self.default_model: str | None = settings.model or MODEL_ALIAS
        self._settings = settings
        self._server = server
        self._connection: _Connection | None = None

    async def stream(self, request: ModelRequest) -> AsyncGenerator[Delta | ModelResponse, None]:
        """Deltas as they come, then the whole answer. Raises :class:`ProviderError`."""
        connection = await self._connect()
        request = replace(
            request,
            model=MODEL_ALIAS,
            max_tokens=request.max_tokens or _MAX_TOKENS,
            temperature=_TEMPERATURE if request.temperature is None else request.temperature,
        )
        body, reader = _prepared(request, connection)
        endpoint = connection.endpoint
        async with aclosing(endpoint.stream("/v1/chat/completions", body, "sse")) as chunks:
            async for chunk in chunks:
                for delta in read_chunk(endpoint, reader.answer, chunk):
                    if (shown := reader.show(delta)) is not None:
                        yield shown
        if not reader.answer.complete:
            raise endpoint.incomplete()
        response = reader.response()
        if rest := response.text[len(reader.shown) :]:
            yield Delta("text", rest)
        yield response

    async def _connect(self) -> _Connection:
        base_url, key = await self._server.address()
        if self._connection is None or self._connection.base_url != base_url:
            endpoint = Endpoint("local", base_url, self._settings, api_key=key)
            try:
                props = await endpoint.get_json("/props")
            except ProviderError:
                await endpoint.aclose()
                raise
            old, self._connection = self._connection, _described(endpoint, base_url, props)
            if old is not None:
                await old.endpoint.aclose()
        return self._connection

    async def aclose(self) -> None:
        """Close connections, and the server if it is our own. Safe to call twice."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.endpoint.aclose()
        await self._server.aclose()


def _described(endpoint: Endpoint, base_url: str, props: Any) -> _Connection:
    said = props if isinstance(props, dict) else {}
    knows_tools = bool((said.get("chat_template_caps") or {}).get("supports_tools"))
    slot_tokens = (said.get("default_generation_settings") or {}).get("n_ctx") or CTX_TOKENS // SLOTS
    return _Connection(endpoint, base_url, knows_tools, int(slot_tokens))


def _prepared(request: ModelRequest, connection: _Connection) -> tuple[dict[str, Any], _Reader]:
    """The body to send, and who reads the answer to it."""
    tools = local_prompt.offered(request)
    # llama.cpp does not enforce "required" or a named choice (ggml-org/llama.cpp#27217); the schema does.
    forced = request.tool_choice not in (None, "auto", "none")
    taken_ids = openai_wire.call_ids(request)
    if tools and (forced or not connection.knows_tools):
        return _enforced_body(request, tools, connection.slot_tokens), _EnforcedReader(tools, taken_ids)
    body = openai_wire.body(replace(request, tools=tools))
    if not connection.knows_tools:
        body["messages"] = local_prompt.plain_messages(request)
    return body, _Reader(tools, taken_ids)


def _enforced_body(request: ModelRequest, tools: tuple[ToolSpec, ...], slot_tokens: int) -> dict[str, Any]:
    plain = replace(request, tools=(), messages=(), response_format=local_prompt.answer_schema(request, tools))
    body = openai_wire.body(plain)
    # As many characters as the slot has tokens: one result then takes a quarter of the context, or less.
    body["messages"] = local_prompt.messages(request, tools, result_chars=slot_tokens)
    return body


class _Reader:
    """Reads an answer of a model that knows tools, but may write a call into its text all the same."""

    def __init__(self, tools: tuple[ToolSpec, ...], taken_ids: set[str]) -> None:
        self.answer = openai_wire.Answer(taken_ids)
        self.shown = ""
        self._tools = tools
        self._held = ""

    def show(self, delta: Delta) -> Delta | None:
        """What of ``delta`` to show now: text that may become a call is held back."""
        if delta.type != "text":
            return delta
        self._held += delta.text
        if self._tools and self._held.lstrip()[:1] in ("", "{", "`", "<"):
            return None
        text, self._held = self._held, ""
        self.shown += text
        # From here on it is plain text, and nothing is held back any more.
        self._tools = ()
        return Delta("text", text)

    def response(self) -> ModelResponse:
        """The whole answer."""
        response = self.answer.response()
        if response.tool_calls or not self._tools or response.stop_reason == "length":
            return response
        text, calls = local_prompt.read_answer(response.text, self._tools)
        return replace(response, text=text, tool_calls=calls, stop_reason="tool_calls") if calls else response


class _EnforcedReader(_Reader):
    """Reads an answer that the schema forces into JSON."""

    def __init__(self, tools: tuple[ToolSpec, ...], taken_ids: set[str]) -> None:
        super().__init__(tools, taken_ids)
        self._final = local_prompt.FinalText()

    def show(self, delta: Delta) -> Delta | None:
        """The final answer's text as it becomes known; of a call, nothing."""
        if delta.type != "text":
            return delta
        text = self._final.feed(delta.text)
        self.shown += text
        return Delta("text", text) if text else None

    def response(self) -> ModelResponse:
        """The whole answer; one that was cut off is no call, and its text is what was shown of it."""
        response = self.answer.response()
        if response.stop_reason == "length":
            return replace(response, text=self.shown)
        text, calls = local_prompt.read_answer(response.text, self._tools)
        return replace(
            response, text=text, tool_calls=calls, stop_reason="tool_calls" if calls else response.stop_reason
        )

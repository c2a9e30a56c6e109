"""Any server that speaks OpenAI's chat completions: OpenAI itself, OpenRouter, vLLM, llama.cpp, LM Studio, more."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from athena.errors import InvalidOption
from athena.providers import openai_wire
from athena.providers.base import Delta, ModelRequest, ModelResponse, Provider, ProviderSettings
from athena.providers.http import Endpoint

OPENAI_BASE_URL = "https://api.openai.com/v1"


def create_openai(settings: ProviderSettings) -> Provider:
    """OpenAI itself, or ``base_url``. Raises :class:`InvalidOption` without a model or a key (``OPENAI_API_KEY``)."""
    base_url = settings.base_url or settings.env.get("OPENAI_BASE_URL") or OPENAI_BASE_URL
    key = settings.api_key or settings.env.get("OPENAI_API_KEY")
    if not key:
        raise required("api_key", "openai", "pass api_key= or set OPENAI_API_KEY")
    return _make("openai", base_url, key, settings)


def create(settings: ProviderSettings) -> Provider:
    """A compatible server at ``base_url`` (or ``OPENAI_BASE_URL``); a key is sent if there is one.

    Raises :class:`InvalidOption` without a base URL or a model.
    """
    base_url = settings.base_url or settings.env.get("OPENAI_BASE_URL")
    if not base_url:
        hint = "pass base_url= (for example http://localhost:8080/v1) or set OPENAI_BASE_URL"
        raise required("base_url", "openai_compatible", hint)
    return _make("openai_compatible", base_url, settings.api_key or settings.env.get("OPENAI_API_KEY"), settings)


def required(option: str, provider: str, what_to_do: str) -> InvalidOption:
    """The error for a required ``option`` that is missing."""
    return InvalidOption(
        f"provider {provider!r} needs {option}: {what_to_do}", option=option, value="None", expected=what_to_do
    )


def _make(name: str, base_url: str, key: str | None, settings: ProviderSettings) -> OpenAIProvider:
    if not settings.model:
        raise required("model", name, 'pass model=, for example model="gpt-4.1-mini"')
    hints = {"unauthorized": "check api_key= or OPENAI_API_KEY", "not_found": "check model= and base_url="}
    base_url = base_url.strip().rstrip("/").removesuffix("/chat/completions")
    return OpenAIProvider(name, settings.model, Endpoint(name, base_url, settings, api_key=key, hints=hints))


class OpenAIProvider:
    """Streams chat completions from one endpoint. See :class:`athena.providers.base.Provider`."""

    def __init__(self, name: str, model: str, endpoint: Endpoint) -> None:
        self.name = name
        self.default_model: str | None = model
        self._endpoint = endpoint
        # OpenAI's reasoning models refuse the old field; other servers mostly know only that one.
        own = endpoint.base_url.startswith("https://api.openai.com/")
        self._max_tokens_field = "max_completion_tokens" if own else "max_tokens"

    async def stream(self, request: ModelRequest) -> AsyncGenerator[Delta | ModelResponse, None]:
        """Deltas as they come, then the whole answer. Raises :class:`~athena.errors.ProviderError`."""
        body = openai_wire.body(request, max_tokens_field=self._max_tokens_field)
        answer = openai_wire.Answer(openai_wire.call_ids(request))
        async with aclosing(self._endpoint.stream("/chat/completions", body, "sse")) as chunks:
            async for chunk in chunks:
                for delta in read_chunk(self._endpoint, answer, chunk):
                    yield delta
        if not answer.complete:
            raise self._endpoint.incomplete()
        yield answer.response()

    async def aclose(self) -> None:
        """Close connections. Safe to call twice."""
        await self._endpoint.aclose()


def read_chunk(endpoint: Endpoint, answer: openai_wire.Answer, chunk: dict[str, object]) -> list[Delta]:
    """``answer.feed(chunk)``; a chunk of another shape than the protocol's is a transport error."""
    try:
        return answer.feed(chunk)
    except (AttributeError, TypeError, ValueError, KeyError, IndexError) as exc:
        raise endpoint.garbage(str(chunk)) from exc

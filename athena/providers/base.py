"""What a provider is: one streaming call, from our values to our values.

A provider is one file in this folder and one line in :mod:`athena.providers`. Its transport is apart from its mapping:
pure functions turn a :class:`ModelRequest` into a body and chunks into :class:`Delta` and :class:`ModelResponse`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from athena.messages import Message, ToolCall, Usage

StopReason = Literal["stop", "length", "tool_calls", "content_filter", "error"]


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool as a model sees it; ``parameters`` is a JSON schema of type object."""

    name: str
    description: str
    parameters: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Time limits of one model call, in seconds. ``gap_s`` is the longest silence between two received pieces."""

    connect_s: float = 10.0
    first_byte_s: float = 300.0
    gap_s: float = 120.0


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """One model call. ``messages`` is a valid conversation: every call answered, in order; no system prompt in it."""

    model: str
    messages: tuple[Message, ...]
    system_prompt: str | None = None
    tools: tuple[ToolSpec, ...] = ()
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    tool_choice: str | dict[str, Any] | None = None
    response_format: str | dict[str, Any] | None = None
    provider_opts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Delta:
    """A streamed piece, not recorded. ``type`` is ``text`` or ``thinking``."""

    type: Literal["text", "thinking"]
    text: str


@dataclass(frozen=True, slots=True)
class ModelResponse:
    """The whole answer. ``cost_usd`` inside ``usage`` is ``None`` if the provider names no price."""

    text: str
    tool_calls: tuple[ToolCall, ...] = ()
    thinking: str | None = None
    stop_reason: StopReason = "stop"
    usage: Usage = field(default_factory=Usage)
    model: str | None = None


class Provider(Protocol):
    """One configured endpoint. Made by its module's ``create(settings)``; closed once by the session that made it."""

    name: str
    default_model: str | None

    def stream(self, request: ModelRequest) -> AsyncGenerator[Delta | ModelResponse, None]:
        """Yield deltas as they arrive, then exactly one :class:`ModelResponse`, last.

        Raises :class:`athena.errors.ProviderError` and nothing else but cancellation. Closing the iterator or
        cancelling it closes the connection, so that the server stops its work. Makes one attempt:
        retries are the caller's.
        """
        ...

    async def aclose(self) -> None:
        """Close connections. Safe to call twice."""
        ...


@dataclass(frozen=True, slots=True)
class ProviderSettings:
    """What ``create`` gets. ``api_key`` is a secret: never in a log, an error text or a ``repr``."""

    base_url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    model: str | None = None
    timeouts: Timeouts = field(default_factory=Timeouts)
    extra_headers: dict[str, str] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict, repr=False)
    options: dict[str, Any] = field(default_factory=dict)
    """Options that belong to one provider only, e.g. ``mock`` (its script) or ``local`` (its model file)."""

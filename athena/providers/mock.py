"""A provider without a model: it answers from a script, in this process, without a network.

Ships for users' own tests: ``Session.start_link(provider="mock", mock=["hello", {"tool_calls": [...]}, "done"])``.
Without a script it echoes. See :class:`athena.providers.mock_script.Step` for what a step can do.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from pathlib import Path

from athena.errors import InvalidOption, ProviderError
from athena.messages import Usage
from athena.providers.base import Delta, ModelRequest, ModelResponse, Provider, ProviderSettings
from athena.providers.calls import RawCall, read_calls
from athena.providers.mock_script import ENDED, ErrorStep, Step, answers_in, parse_steps, step_at
from athena.providers.openai_wire import call_ids

_POLL_S = 0.005
_CHARS_PER_TOKEN = 4


def create(settings: ProviderSettings) -> Provider:
    """The provider for ``options["mock"]`` (a list of steps) and ``options["mock_loop"]``. Raises InvalidOption."""
    script = settings.options.get("mock")
    loop = settings.options.get("mock_loop", script is None)
    if not isinstance(loop, bool):
        raise InvalidOption(
            f"mock_loop={loop!r} is not a bool", option="mock_loop", value=repr(loop), expected="True or False"
        )
    return MockProvider(parse_steps(script, Step), loop=loop, model=settings.model or "mock")


class MockProvider:
    """Answers from ``steps``. See :class:`athena.providers.base.Provider`."""

    name = "mock"

    def __init__(self, steps: tuple[Step, ...], *, loop: bool = False, model: str = "mock") -> None:
        self.default_model: str | None = model
        self._steps = steps
        self._loop = loop

    async def stream(self, request: ModelRequest) -> AsyncGenerator[Delta | ModelResponse, None]:
        """The deltas and the response of the step that the conversation is at."""
        index = answers_in(request.messages)
        found = step_at(self._steps, index, loop=self._loop)
        step = Step(text=ENDED) if found == "ended" else found
        await _begin(step)
        text = step.full_text(_last_user_text(request))
        for number, delta in enumerate(_deltas(step, text)):
            if number and step.chunk_delay_s:
                await asyncio.sleep(step.chunk_delay_s)
            yield delta
        if step.error is not None and not (step.error_until and Path(step.error_until).exists()):
            raise _failure(step.error)
        await _wait_for(step.wait_before_end)
        yield _response(step, text, request, index)

    async def aclose(self) -> None:
        """Nothing is open."""


async def _begin(step: Step) -> None:
    if step.touch is not None:
        with open(step.touch, "a", encoding="utf-8") as file:  # one write of one line: other processes append too
            file.write(f"{os.getpid()}\n")
    await _wait_for(step.wait_for)
    await asyncio.sleep(step.delay_s)  # also with 0: a model call is never without a point to be cancelled at


async def _wait_for(path: str | None) -> None:
    """Wait until a file is at ``path``. Polls, because the one who makes it may be any process."""
    while path is not None and not os.path.exists(path):  # noqa: ASYNC110 - see above
        await asyncio.sleep(_POLL_S)


def _deltas(step: Step, text: str) -> list[Delta]:
    # Where the step fails, its text is what came before the failure; an error alone fails at once.
    thinking = [Delta("thinking", step.thinking)] if step.thinking else []
    return thinking + [Delta("text", piece) for piece in step.pieces(text)]


def _failure(error: ErrorStep) -> ProviderError:
    return ProviderError(
        f"mock: {error.message}",
        kind=error.kind,
        status=error.status,
        retry_after_s=error.retry_after_s,
        provider="mock",
    )


def _response(step: Step, text: str, request: ModelRequest, index: int) -> ModelResponse:
    # Made-up ids say where they come from, and are the same when the same step is asked again.
    raw = [RawCall(c.id or f"call_{index}_{n}", c.name, c.arguments) for n, c in enumerate(step.tool_calls)]
    calls = read_calls(raw, call_ids(request))
    stop = step.stop_reason or ("tool_calls" if calls else "stop")
    used = step.usage.to_usage() if step.usage else _rough_usage(request, text)
    return ModelResponse(text, calls, step.thinking, stop, used, request.model)


def _rough_usage(request: ModelRequest, text: str) -> Usage:
    read = sum(len(m.text) + sum(len(r.content) for r in m.tool_results) for m in request.messages)
    read_tokens, written_tokens = read // _CHARS_PER_TOKEN + 1, len(text) // _CHARS_PER_TOKEN + 1
    return Usage(read_tokens, written_tokens, read_tokens + written_tokens)


def _last_user_text(request: ModelRequest) -> str:
    return next((m.text for m in reversed(request.messages) if m.role == "user"), "")

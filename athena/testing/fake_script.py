"""What a fake server answers: the mock's steps, and the faults that only a server can have."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

from pydantic import Field

from athena.providers.mock_script import ENDED, Step, parse_steps, step_at

_POLL_S = 0.005


class FakeStep(Step):
    """A :class:`~athena.providers.mock_script.Step` of a server, with faults.

    ``times`` limits a fault to the first so many requests that reach the step; a server lives long enough to count.
    """

    status: int | None = Field(default=None, ge=400, le=599)
    """Answer with this HTTP status and the provider's error shape (``error`` refines its text)."""
    retry_after: str | None = None
    """The ``Retry-After`` header of that answer: seconds or an HTTP date."""
    half_close: bool = False
    """End the body in good order, but before the protocol's final marker."""
    cut: bool = False
    """Cut the connection after the first half of the deltas."""
    garbage: bool = False
    """Put bytes into the stream that are no protocol."""
    slow_first_byte_s: float = Field(default=0.0, ge=0)
    stall_s: float = Field(default=0.0, ge=0)
    """Silence between the first delta and the rest."""
    times: int | None = Field(default=None, ge=1)

    @property
    def faulty(self) -> bool:
        """Whether anything but a proper answer is wanted."""
        return bool(
            self.status
            or self.error
            or self.half_close
            or self.cut
            or self.garbage
            or self.slow_first_byte_s
            or self.stall_s
        )

    def healthy(self) -> FakeStep:
        """The same step without its faults."""
        clean: dict[str, Any] = {
            "status": None,
            "error": None,
            "half_close": False,
            "cut": False,
            "garbage": False,
            "slow_first_byte_s": 0.0,
            "stall_s": 0.0,
        }
        return self.model_copy(update=clean)


class Script:
    """The steps of one fake server. The step is chosen by the conversation, faults with ``times`` by a count."""

    def __init__(self, steps: Any, *, loop: bool) -> None:
        self._steps: Sequence[FakeStep] = parse_steps(steps, FakeStep, option="script")
        self._loop = loop or steps is None
        self._reached: Counter[int] = Counter()

    def next_step(self, messages: list[dict[str, Any]]) -> FakeStep:
        """The step for a conversation, its faults removed if they were shown often enough."""
        index = sum(1 for m in messages if m.get("role") == "assistant")
        found = step_at(self._steps, index, loop=self._loop)
        if found == "ended":
            return FakeStep(text=ENDED)
        self._reached[index] += 1
        if found.times is not None and self._reached[index] > found.times:
            return found.healthy()
        return found


async def begin(step: FakeStep) -> None:
    """What a step does before its first byte."""
    if step.touch is not None:
        with open(step.touch, "a", encoding="utf-8") as file:
            file.write(f"{os.getpid()}\n")
    await wait_for(step.wait_for)
    await asyncio.sleep(step.delay_s + step.slow_first_byte_s)


async def wait_for(path: str | None) -> None:
    """Wait until a file is at ``path``; the one who makes it may be any process."""
    while path is not None and not os.path.exists(path):  # noqa: ASYNC110 - no event reaches us from there
        await asyncio.sleep(_POLL_S)


def last_user_text(messages: list[dict[str, Any]]) -> str:
    """The text an echo answers with."""
    for message in reversed(messages):
        if message.get("role") == "user":
            content = message.get("content")
            if isinstance(content, str):
                return content
            return "".join(p.get("text", "") for p in content or () if isinstance(p, dict))
    return ""


class Refused(Exception):
    """A request breaks the published rules; ``param`` is the field."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


def demand(condition: object, message: str, param: str | None = None) -> None:
    """Raise :class:`Refused` unless ``condition`` holds."""
    if not condition:
        raise Refused(message, param)


def demand_fields(value: Any, allowed: frozenset[str], where: str) -> dict[str, Any]:
    """``value`` as an object that has no field outside ``allowed``."""
    demand(isinstance(value, dict), f"Invalid type for '{where}': expected an object.", where)
    unknown = sorted(set(value) - allowed)
    demand(not unknown, f"Unrecognized request argument supplied: {', '.join(unknown)} in {where}", where)
    fields: dict[str, Any] = value
    return fields


STATUS_OF_KIND = {
    "unauthorized": 401,
    "not_found": 404,
    "rate_limited": 429,
    "timeout": 408,
    "context_length_exceeded": 400,
    "bad_request": 400,
    "capability": 400,
}
"""The HTTP status a server uses for a scripted error that names none; all others are 500."""


def status_of(step: FakeStep) -> int | None:
    """The HTTP status to fail with before anything is streamed; ``None`` to answer (and maybe fail later)."""
    if step.status is not None:
        return step.status
    if step.error is None or step.text or step.thinking or not isinstance(step.chunks, int):
        return None
    return step.error.status or STATUS_OF_KIND.get(step.error.kind, 500)


def retry_headers(step: FakeStep) -> dict[str, str]:
    """The ``Retry-After`` header that a failing step asks for."""
    if step.retry_after is not None:
        return {"retry-after": step.retry_after}
    if step.error is not None and step.error.retry_after_s is not None:
        return {"retry-after": f"{step.error.retry_after_s:g}"}
    return {}


def usage_of(step: FakeStep, messages: list[dict[str, Any]], text: str) -> tuple[int, int]:
    """Input and output tokens: the script's, or a rough count of characters."""
    if step.usage is not None:
        return step.usage.input_tokens, step.usage.output_tokens
    return sum(len(str(m.get("content") or "")) for m in messages) // 4 + 1, len(text) // 4 + 1

"""The script of the mock provider and of the fakes: what to answer at which step, as JSON, validated once.

The step is chosen by the conversation and never by a counter: a session that died and came back must get the same
answer to the same question, or no test of a crash would mean anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from athena.errors import PROVIDER_ERROR_KINDS, InvalidOption
from athena.messages import Message, Usage
from athena.providers.base import StopReason

ENDED = "(mock script ended)"
"""The answer after the last step of a script that does not loop."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CallStep(_Strict):
    """A tool call; ``arguments`` as text is passed on as the model would write it, broken JSON included."""

    name: str
    arguments: dict[str, Any] | str = Field(default_factory=dict)
    id: str | None = None


class ErrorStep(_Strict):
    """A failure. ``kind`` is one of :data:`athena.errors.PROVIDER_ERROR_KINDS`."""

    kind: str = "server_error"
    status: int | None = None
    message: str = "scripted error"
    retry_after_s: float | None = None

    @model_validator(mode="after")
    def _known_kind(self) -> Self:
        if self.kind not in PROVIDER_ERROR_KINDS:
            raise ValueError(f"kind {self.kind!r} is not one of {', '.join(PROVIDER_ERROR_KINDS)}")
        return self


class UsageStep(_Strict):
    """Token counts to report; without them a rough count of characters is reported."""

    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int | None = None
    reasoning_tokens: int = 0
    cost_usd: float | None = None

    def to_usage(self) -> Usage:
        """The counts as the value that responses carry."""
        total = self.input_tokens + self.output_tokens if self.total_tokens is None else self.total_tokens
        return Usage(self.input_tokens, self.output_tokens, total, self.reasoning_tokens, self.cost_usd)


class Step(_Strict):
    """One answer. Paths let tests steer a call that runs in another process, without sleeping.

    Order within a call: ``touch``, ``wait_for``, ``delay_s``, thinking and text in ``chunks``, ``error`` (what was
    streamed before it is void), ``wait_before_end``, the response.
    """

    text: str = ""
    echo: bool = False
    """Answer with the last user message's text."""
    thinking: str | None = None
    tool_calls: tuple[CallStep, ...] = ()
    stop_reason: StopReason | None = None
    usage: UsageStep | None = None
    chunks: int | tuple[str, ...] = 1
    """Into how many deltas the text is split, or the deltas themselves."""
    delay_s: float = Field(default=0.0, ge=0)
    """Before the first delta."""
    chunk_delay_s: float = Field(default=0.0, ge=0)
    """Between two deltas."""
    error: ErrorStep | None = None
    error_until: str | None = None
    """A path: ``error`` is raised only while no file is there."""
    wait_for: str | None = None
    """A path: nothing is answered until a file is there."""
    wait_before_end: str | None = None
    """A path: all deltas are streamed, and the response is held back until a file is there."""
    touch: str | None = None
    """A path: one line with the pid is appended to it when the call begins."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if isinstance(self.chunks, int) and self.chunks < 1:
            raise ValueError("chunks must be at least 1")
        if self.error_until is not None and self.error is None:
            raise ValueError("error_until needs error, which says what to fail with")
        return self

    def pieces(self, text: str) -> list[str]:
        """``text`` as the deltas it is streamed in."""
        if not isinstance(self.chunks, int):
            return [c for c in self.chunks if c]
        size = -(-len(text) // self.chunks) or 1
        return [text[i : i + size] for i in range(0, len(text), size)]

    def full_text(self, last_user_text: str) -> str:
        """The whole text of the answer."""
        if self.echo:
            return last_user_text
        return self.text if isinstance(self.chunks, int) else "".join(self.chunks)


StepT = TypeVar("StepT", bound=Step)


def parse_steps(value: Any, step_type: type[StepT], *, option: str = "mock") -> tuple[StepT, ...]:
    """The steps in ``value``, a list of step objects and bare texts. ``None`` is a script of one looping echo.

    Raises :class:`InvalidOption` that names the step and the field.
    """
    if value is None:
        return (step_type(echo=True),)
    if isinstance(value, str | bytes | dict) or not isinstance(value, Sequence):
        raise _invalid(option, value, f"expected a list of steps, got {type(value).__name__}")
    return tuple(_parse_step(i, item, step_type, option) for i, item in enumerate(value))


def _parse_step(index: int, item: Any, step_type: type[StepT], option: str) -> StepT:
    if isinstance(item, step_type):
        return item
    if isinstance(item, str):
        return step_type(text=item)
    try:
        return step_type.model_validate(item)
    except ValidationError as exc:
        first = exc.errors()[0]
        where = ".".join(str(p) for p in first["loc"])
        extra = ": there is no counter; use error_until" if where == "error.times" else ""
        raise _invalid(
            option, item, f"step {index}, {where or 'step'}: {first['msg'].removeprefix('Value error, ')}{extra}"
        ) from exc


def _invalid(option: str, value: Any, why: str) -> InvalidOption:
    expected = f"a list of texts and of objects with the fields {', '.join(Step.model_fields)}"
    return InvalidOption(f"{option}: {why}", option=option, value=repr(value)[:200], expected=expected)


def step_at(steps: Sequence[StepT], index: int, *, loop: bool) -> StepT | Literal["ended"]:
    """The step that answers a conversation with ``index`` assistant messages in it."""
    if loop and steps:
        return steps[index % len(steps)]
    return steps[index] if index < len(steps) else "ended"


def answers_in(messages: Sequence[Message]) -> int:
    """How many answers the conversation already holds: the index of the step that is due."""
    return sum(1 for m in messages if m.role == "assistant")

"""What a tool is: a name, a parameter model, how it may be repeated, and one async function.

A tool is one file in this folder and one line in :mod:`athena.tools`. A tool never raises to the loop: a failure the
model should see is :class:`ToolFailure` (raised inside ``run`` and caught in one place) or an error output.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict

from athena.providers.base import ToolSpec

OnCrash = Literal["safe", "keyed", "unsafe"]
"""What a new child does with a started call: run it again, run it again with its recorded key, or report in doubt."""


class Parameters(BaseModel):
    """Base of the parameter models. Unknown arguments are ignored: models invent some, and the call is still clear."""

    model_config = ConfigDict(extra="ignore", strict=False)


class ToolFailure(Exception):
    """A failure that the model sees as an error result. The text says what was wrong and what to do.

    ``ui`` is what people see besides it: ``{"kind", "payload"}``.
    """

    def __init__(self, text: str, *, ui: dict[str, Any] | None = None) -> None:
        super().__init__(text)
        self.ui = ui


class ToolTimeout(ToolFailure):
    """The tool's own time limit ended the call; the text carries what there is so far."""


@dataclass(frozen=True, slots=True)
class ToolOutput:
    """What a tool returns: text for the model, and maybe a payload for people."""

    text: str
    ui_kind: str | None = None
    ui_payload: dict[str, Any] | None = None
    is_error: bool = False


class KeepsFiles(Protocol):
    """Keeps what files were, so that a rewind can bring it back."""

    async def keep(self, call_id: str, target: Path, content: bytes | None) -> None: ...


@dataclass(slots=True)
class ToolContext:
    """What a tool may know of its session. ``env`` is the environment for processes it starts: no secrets in it."""

    cwd: Path
    session_id: str
    call_id: str
    phase: str = "default"
    env: dict[str, str] = field(default_factory=dict)
    key: str | None = None
    """For ``keyed`` tools: the same over every repetition of this call."""
    history: KeepsFiles | None = None

    async def editing(self, target: Path, content: str | bytes | None) -> None:
        """Say that a file is about to become ``content`` (``None``: to be removed). A tool that changes files awaits
        this right before each change: what the file is now is on disk then, and a rewind can bring it back."""
        if self.history is not None:
            data = content.encode() if isinstance(content, str) else content
            await self.history.keep(self.call_id, target, data)


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool. ``read_only`` tools need no approval; ``parallel_safe`` ones may run beside each other."""

    name: str
    description: str
    parameters: type[Parameters]
    run: Callable[[Any, ToolContext], Coroutine[Any, Any, ToolOutput]]
    read_only: bool = False
    parallel_safe: bool = False
    on_crash: OnCrash = "unsafe"
    time_limit_s: Callable[[Any], float] | None = None
    """For tools that keep a time limit of their own: what it is for these parameters. ``None``: the loop's limit."""

    def spec(self) -> ToolSpec:
        """The tool as the model sees it."""
        return ToolSpec(self.name, self.description, _schema(self.parameters))


@functools.cache  # making one takes a millisecond, and every model call needs those of all tools
def _schema(parameters: type[Parameters]) -> dict[str, Any]:
    schema = parameters.model_json_schema()
    for ours in ("title", "description"):  # the class's name and docstring: not for the model
        schema.pop(ours, None)
    for prop in schema.get("properties", {}).values():
        prop.pop("title", None)
    return schema

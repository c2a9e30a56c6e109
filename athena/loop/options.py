"""The options of a session and of a turn: one pydantic model, one table of what is refused, one table of what is
secret.

Names and defaults are the reference's latest column. An option of the reference that Athena doesn't support yet is
refused by name; nothing is accepted and ignored.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from athena.errors import InvalidOption, UnsupportedOption
from athena.loop.step import Limits
from athena.messages import MAX_DEPTH, Message, clean_json
from athena.permissions import Phase
from athena.providers.base import Timeouts
from athena.redact import looks_secret

Durability = Literal["os", "turn", "event"]

GRANTS = frozenset({"phase", "allowed_tools", "readonly_tools", "api_key", "env", "env_allow", "extra_headers"})
"""What widens a session or is secret: held in memory by who gave it and who was told, never in a file (design: trust).
``extra_headers`` are here because they carry credentials in practice."""

PER_TURN = frozenset(
    {
        "model", "system_prompt", "temperature", "top_p", "max_tokens", "stop", "tool_choice",
        "response_format", "provider_opts", "tools", "phase", "allowed_tools", "disallowed_tools", "readonly_tools",
        "max_iterations", "max_consecutive_mistakes", "max_budget_usd", "tool_timeout_ms", "max_concurrency",
        "permission_timeout",
    }
)  # fmt: skip
"""What ``send_message`` may override for one turn."""

UNSUPPORTED: dict[str, str] = {
    **dict.fromkeys(
        ("images", "memory", "skills", "preload_skills", "compactor", "compact_at", "pinned_prefix_count",
         "live_suffix_count", "reactive_compact", "auto_pin", "compaction_pipeline", "mcp", "agent_id", "coordinator",
         "conclusions", "conclusion_summarizer", "subagent_prompt_suffix", "parent_session_id", "conversation_id",
         "hooks", "on_event", "assigns", "todo_writer", "ask_user", "confine", "allowed_roots",
         "allow_local_hosts", "max_unproductive_iterations", "capabilities", "queue", "queue_timeout", "resume",
         "permission_mode", "metadata", "python", "max_reflections",
         "per_tool_result_max_chars", "snip_age_iterations", "respect_denylist", "mock_events"),
        "not supported by this release",
    ),
    "can_use_tool": "not supported here (it runs in a client: start, start_link, send_message, submit, stream, run)",
}  # fmt: skip
"""Options of the reference or the design that later releases bring. Refused by name."""


class Options(BaseModel):
    """Everything ``Session.start_link`` and ``run`` accept beside the session's own fields. Times are in milliseconds
    where the name says so (the reference's names), else in seconds."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, arbitrary_types_allowed=True)

    provider: str = Field(description="Registered provider, or 'package.module:function' that makes one")
    model: str | None = Field(None, description="Model id; the provider's default when not given")
    base_url: str | None = Field(None, description="The provider's endpoint")
    api_key: str | None = Field(None, repr=False, description="Key; else the provider's environment variable")
    extra_headers: dict[str, str] = Field(default_factory=dict, repr=False, description="Extra HTTP headers")
    provider_opts: dict[str, Any] = Field(default_factory=dict, description="Merged last into the request's body")
    mock: list[Any] | None = Field(None, description="Script of the mock provider")
    mock_loop: bool = Field(False, description="Start the mock's script again at its end")

    system_prompt: str | None = Field(None, description="Sent with every model call")
    messages: list[dict[str, Any]] = Field(default_factory=list, description="Earlier history to start from")
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    max_tokens: int | None = Field(None, ge=1, description="Completion cap of one model call")
    stop: list[str] = Field(default_factory=list, description="Stop sequences")
    timeout_ms: int = Field(300_000, ge=1, description="Longest wait for a model's first byte and between two pieces")
    tool_choice: str | dict[str, Any] | None = None
    response_format: str | dict[str, Any] | None = None

    tools: Literal["all"] | list[str] | None = Field("all", description="'all', or names, or 'package.module:name'")
    cwd: str | None = Field(None, description="Root for tools; the caller's working directory when not given")
    phase: Phase = Field("default", description="plan | default | accept_edits | trusted | bypass_permissions")
    allowed_tools: list[str] | None = Field(None, description="When set, every other tool is denied")
    disallowed_tools: list[str] = Field(default_factory=list, description="Always denied")
    readonly_tools: list[str] = Field(default_factory=list, description="Extra names permitted in phase plan")
    permission_timeout: float | Literal["infinity"] = Field(
        "infinity", description="Seconds that a permission request waits for an answer before it is denied"
    )
    env: dict[str, str] | None = Field(None, repr=False, description="The session's environment; else the caller's")
    env_allow: list[str] = Field(default_factory=list, description="Secret-looking variables that tools may see")
    python_path: list[str] | None = Field(None, description="Where user code is imported from")

    mode: Literal["react"] = "react"
    max_iterations: int | Literal["infinity"] = Field(55, description="Model calls in one turn")
    max_consecutive_mistakes: int = Field(3, ge=1, description="Steps in a row whose calls all failed")
    max_budget_usd: float | None = Field(None, gt=0, description="Cost of one turn; unknown cost never trips it")
    tool_timeout_ms: int = Field(120_000, ge=1, description="Time limit of one call; bash has its own argument")
    max_concurrency: int = Field(4, ge=1, le=64, description="Parallel-safe calls at once")
    durability: Durability = "turn"

    @field_validator("max_iterations")
    @classmethod
    def _positive(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError("must be 1 or more, or 'infinity'")
        return value

    @field_validator("permission_timeout")
    @classmethod
    def _seconds(cls, value: float | str) -> float | str:
        if isinstance(value, float) and not 0 < value <= 1e9:
            raise ValueError("must be seconds above 0, or 'infinity'")
        return value

    @field_validator("temperature", "top_p", "max_budget_usd")
    @classmethod
    def _finite(cls, value: float | None) -> float | None:
        if value is not None and not math.isfinite(value):
            raise ValueError("must be a finite number")
        return value

    def limits(self) -> Limits:
        """The caps :func:`athena.loop.step.next_step` needs."""
        cap = None if self.max_iterations == "infinity" else int(self.max_iterations)
        return Limits(cap, self.max_consecutive_mistakes, self.max_budget_usd)

    def timeouts(self) -> Timeouts:
        """The time limits of one model call."""
        return Timeouts(first_byte_s=self.timeout_ms / 1000, gap_s=self.timeout_ms / 1000)

    def recorded(self) -> dict[str, Any]:
        """What the log may hold: everything that was set and is no grant, no secret and no history."""
        set_now = self.model_dump(mode="json", exclude_unset=True, exclude=set(GRANTS | {"messages"}))
        return set_now | restrictions({"phase": self.phase, "allowed_tools": self.allowed_tools})


def restrictions(options: Mapping[str, Any]) -> dict[str, Any]:
    """What grants there were also narrowed, without what they gave. Whoever goes on without them, after a supervisor's
    death for example, must not be less guarded: where a list said what alone may run, nothing may."""
    phase = {"phase": "plan"} if options.get("phase") == "plan" else {}
    return phase if options.get("allowed_tools") is None else {**phase, "allowed_tools": []}


def parse_options(values: dict[str, Any]) -> Options:
    """``values`` as :class:`Options`. Raises :class:`InvalidOption` (or :class:`UnsupportedOption`) for the first wrong
    one, naming it, its value and what is legal."""
    refuse_unknown(values)
    for name, value in values.items():
        check_portable(name, value)
    values = clean_json(values)
    try:
        options = Options.model_validate(values)
    except ValidationError as error:
        raise _invalid(error, values) from None
    for message in options.messages:
        Message.from_map(message)
    return options


def parse_turn_options(values: dict[str, Any]) -> dict[str, Any]:
    """Options of one ``send_message``, checked; they override the session's for that turn."""
    refuse_unknown(values)
    for name in values:
        if name not in PER_TURN:
            raise InvalidOption(
                f"option {name!r} cannot change for one message; legal here: {', '.join(sorted(PER_TURN))}",
                option=name,
                value=repr(values[name]),
                expected=", ".join(sorted(PER_TURN)),
            )
    parse_options({"provider": "mock", **values})
    cleaned: dict[str, Any] = clean_json(values)
    return cleaned


def refuse_unknown(values: dict[str, Any]) -> None:
    """Raise for a name that is no option, and for one that is not supported."""
    for name in values:
        if name in UNSUPPORTED:
            raise UnsupportedOption(
                f"option {name!r} is {UNSUPPORTED[name]}; leave it out",
                option=name,
                value=_shown(name, values[name]),
                expected="absent",
            )
        if name not in Options.model_fields:
            near = difflib.get_close_matches(name, Options.model_fields, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise InvalidOption(
                f"unknown option {name!r}{hint}",
                option=name,
                value=_shown(name, values[name]),
                expected=", ".join(sorted(Options.model_fields)),
            )


def check_portable(name: str, value: Any, levels: int = MAX_DEPTH) -> None:
    """Raise for what cannot cross to the session's process: a function, or a value that is no JSON, at any depth."""
    if levels == 0:
        return  # what is deeper is cut by clean_json
    if callable(value):
        raise InvalidOption(
            f"option {name!r} got a function ({_shown(name, value)}), which cannot cross to the session's process; "
            "give an importable one as 'package.module:name'",
            option=name,
            value=_shown(name, value),
            expected="'package.module:name'",
        )
    if isinstance(value, dict):
        for key, item in value.items():
            check_portable(name, key, levels - 1)
            check_portable(name, item, levels - 1)
    elif isinstance(value, list | tuple):
        for item in value:
            check_portable(name, item, levels - 1)
    elif not isinstance(value, str | int | float | None) or (isinstance(value, float) and not math.isfinite(value)):
        raise InvalidOption(
            f"option {name!r} got {_shown(name, value)}: expected texts, finite numbers, booleans, lists and dicts",
            option=name,
            value=_shown(name, value),
            expected="what JSON can hold",
        )


def _invalid(error: ValidationError, values: dict[str, Any]) -> InvalidOption:
    found = error.errors()
    first = found[0]
    name = str(first["loc"][0]) if first["loc"] else "options"
    alternatives = (e["msg"] for e in found if e["loc"][:1] == first["loc"][:1])
    expected = " or ".join(
        dict.fromkeys(m.removeprefix("Value error, ").removeprefix("Input should be ") for m in alternatives)
    )
    if first["type"] == "missing":
        return InvalidOption(f"option {name!r} is required", option=name, value="absent", expected="a value")
    if name == "mode":
        return UnsupportedOption(
            f"option 'mode' got {values['mode']!r}; this release has only 'react'",
            option="mode",
            value=_shown("mode", values["mode"]),
            expected="'react'",
        )
    value = _shown(name, values.get(name))
    return InvalidOption(f"option {name!r} got {value}: {expected}", option=name, value=value, expected=expected)


_SECRET_OPTIONS = frozenset({"api_key", "env", "extra_headers", "provider_opts", "store_options"})


def _shown(name: str, value: Any) -> str:
    """``value`` for an error text, unless it may be a key (under a misspelt name too)."""
    may_be_secret = name in _SECRET_OPTIONS or (name not in Options.model_fields and looks_secret(name, ""))
    if may_be_secret:
        return "a secret value"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."

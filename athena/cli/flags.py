"""The options of commands that start a session, declared once and given to each of them."""

from __future__ import annotations

import functools
import inspect
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, get_type_hints

import typer

from athena.cli.border import UsageError
from athena.errors import InvalidOption

DEFAULT_PROVIDER = "local"
"""A model that runs here: the first try of Athena needs neither a key nor a server."""


@dataclass(frozen=True, slots=True)
class StartFlags:
    """What was given on the command line, unchecked: the checks, and their texts, are the library's."""

    provider: Annotated[
        str | None, typer.Option(help=f"Provider. Default: ATHENA_PROVIDER, else {DEFAULT_PROVIDER!r}.")
    ] = None
    model: Annotated[str | None, typer.Option(help="Model id; the provider's default when not given.")] = None
    base_url: Annotated[str | None, typer.Option(help="The provider's endpoint.")] = None
    api_key_env: Annotated[
        str | None, typer.Option(metavar="NAME", help="Environment variable that holds the API key.")
    ] = None
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None
    cwd: Annotated[str | None, typer.Option(help="Directory the tools work in. Default: this one.")] = None
    tools: Annotated[str | None, typer.Option(help="'all', 'none', or names with commas between.")] = None
    phase: Annotated[str | None, typer.Option(help="plan, default, accept_edits, trusted or bypass_permissions.")] = (
        None
    )
    name: Annotated[str | None, typer.Option(help="Name to reach the session by.")] = None
    session_id: Annotated[str | None, typer.Option(help="Id of the session; an existing log is continued.")] = None
    max_iterations: Annotated[str | None, typer.Option(help="Model calls in one turn, or 'infinity'.")] = None
    durability: Annotated[str | None, typer.Option(help="os, turn or event: what is synced to the disk when.")] = None
    option: Annotated[
        list[str] | None,
        typer.Option("-o", "--option", metavar="KEY=JSON", help="Any other option; text that is no JSON is a string."),
    ] = None
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ), repr=False)

    def options(self) -> dict[str, Any]:
        """The options as the library takes them, without those that were not given. Raises :class:`UsageError` and
        :class:`InvalidOption`."""
        plain = ("provider", "model", "base_url", "cwd", "phase", "name", "session_id", "durability")
        given = {name: getattr(self, name) for name in plain}
        given["system_prompt"] = self.system
        given["api_key"] = self._api_key()
        given["tools"] = _tools(self.tools)
        given["max_iterations"] = _number(self.max_iterations)
        options = {name: value for name, value in given.items() if value is not None}
        for name, value in map(_key_value, self.option or ()):
            if name in options:
                raise UsageError(f"option {name!r} is given twice")
            options[name] = value
        return options

    def options_for_new(self) -> dict[str, Any]:
        """As :meth:`options`, with a provider in any case."""
        default = self.environment.get("ATHENA_PROVIDER") or DEFAULT_PROVIDER
        return {"provider": default, **self.options()}

    def _api_key(self) -> str | None:
        if self.api_key_env is None:
            return None
        value = self.environment.get(self.api_key_env)
        if not value:
            raise UsageError(f"--api-key-env names {self.api_key_env!r}, which is not set; export it, or name another")
        return value


def takes_start_flags(command: Callable[..., int]) -> Callable[..., int]:
    """``command`` with the options of :class:`StartFlags`, which it gets as the argument ``flags``.

    typer reads a command's signature, so that is what is extended.
    """
    hints = get_type_hints(StartFlags, include_extras=True)
    added = [f for f in fields(StartFlags) if f.name != "environment"]
    own_hints = get_type_hints(command, include_extras=True)
    own = [p for p in inspect.signature(command).parameters.values() if p.name != "flags"]

    @functools.wraps(command)
    def call(**given: Any) -> int:
        flags = StartFlags(**{f.name: given.pop(f.name) for f in added})
        return command(flags=flags, **given)

    parameters = [p.replace(annotation=own_hints[p.name], kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
    parameters += [
        inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=hints[f.name])
        for f in added
    ]
    del call.__wrapped__  # inspect would follow it to the signature without the flags
    call.__signature__ = inspect.Signature(parameters, return_annotation=int)  # type: ignore[attr-defined]  # PEP 362
    call.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": int}
    return call


def _tools(text: str | None) -> str | list[str] | None:
    if text is None or text == "all":
        return text
    return [] if text == "none" else [name.strip() for name in text.split(",") if name.strip()]


def _number(text: str | None) -> int | str | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() else text


def _key_value(text: str) -> tuple[str, Any]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise UsageError(f"-o {text!r} is not KEY=JSON")
    if name == "api_key":
        raise UsageError("a key on a command line can be read by every user of this machine; use --api-key-env NAME")
    if name == "supervisor":
        raise UsageError("the command line uses the daemon; set ATHENA_SOCKET or ATHENA_HOME to choose another")
    return name, _json_or_text(name, value)


def _json_or_text(name: str, value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError as error:
        if value[:1] in ("[", "{", '"'):
            raise InvalidOption(
                f"option {name!r} got {value[:80]!r}, which is no JSON: {error}",
                option=name,
                value=repr(value[:80]),
                expected="JSON",
            ) from None
        return value

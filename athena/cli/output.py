"""How commands write: answers to stdout, remarks to stderr, JSON one document a line."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, TextIO

import orjson

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

WIDE = 10_000
"""Columns of what is no terminal: a table for a file or a pipe is never cut."""

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_consoles: dict[str, Console] = {}


class ReaderLeft(Exception):
    """Nobody reads stdout any more. typer would take a ``BrokenPipeError`` for a failure and exit with 1."""


def encode(value: Any) -> str:
    """``value`` as JSON on one line."""
    return orjson.dumps(value).decode()


def emit(value: Any) -> None:
    """One JSON document on stdout."""
    write(encode(value) + "\n")


def write(text: str) -> None:
    """Text on stdout, at once. Raises :class:`ReaderLeft`."""
    try:
        sys.stdout.write(printable(text, sys.stdout))
        sys.stdout.flush()
    except BrokenPipeError:
        raise ReaderLeft from None


def note(text: str, *, style: str = "dim") -> None:
    """One line of remark on stderr."""
    from rich.text import Text

    shown = Text(one_line(printable(text, sys.stderr)), style=style)
    _console("stderr").print(shown, soft_wrap=True, highlight=False)


def styled(text: str, style: str) -> None:
    """A line on stdout in a style of rich's."""
    from rich.text import Text

    _console("stdout").print(Text(printable(text, sys.stdout), style=style), soft_wrap=True, highlight=False)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table on stdout, without lines, as wide as it needs to be."""
    from rich.table import Table
    from rich.text import Text

    grid = Table(*columns, box=None, pad_edge=False, header_style="bold", show_edge=False)
    for column in grid.columns:
        column.overflow = "fold"
    for row in rows:
        grid.add_row(*(Text(printable("" if cell is None else str(cell), sys.stdout)) for cell in row))
    _console("stdout").print(grid, highlight=False)


def show(renderable: RenderableType) -> None:
    """Something of rich's on stdout; its text must be :func:`printable`."""
    _console("stdout").print(renderable, highlight=False)


def facts(pairs: Iterable[tuple[str, object]]) -> None:
    """Names and values, one pair a line; what is unknown is left out."""
    rows = [(name, value) for name, value in pairs if value is not None]
    width = max((len(name) for name, _ in rows), default=0)
    write("".join(f"{name:<{width}}  {value}\n" for name, value in rows))


def printable(text: str, stream: TextIO) -> str:
    """``text`` without control characters where a terminal would obey them: models and tools write what they like."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text) if stream.isatty() else text


def indented(text: str | None) -> str | None:
    """Lines of text below the name of what they are; ``None`` for nothing."""
    return None if text is None else "".join(f"\n  {line}" for line in text.split("\n"))


def one_line(text: str, limit: int | None = None) -> str:
    """``text`` on one line, cut at ``limit`` characters."""
    line = " ".join(text.split())
    return line if limit is None or len(line) <= limit else line[: limit - 1] + "…"


def ago(when: str | float | None) -> str:
    """A time in the past, in words: ``when`` as an event's time or in seconds since the epoch."""
    if not when:
        return ""
    then = datetime.fromisoformat(when).timestamp() if isinstance(when, str) else when
    return f"{duration(max(0.0, time.time() - then))} ago"


def duration(seconds: float) -> str:
    """Seconds in the unit that a person would use."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    for unit_s, unit in ((60, "s"), (3600, "min"), (86400, "h")):
        if seconds < unit_s * 2:
            return f"{seconds / {'s': 1, 'min': 60, 'h': 3600}[unit]:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"


def mebibytes(size: int | None) -> str | None:
    """A size in bytes for people."""
    return None if size is None else f"{size / 2**20:.1f} MiB"


def _console(name: str) -> Console:
    from rich.console import Console

    found = _consoles.get(name)
    if found is None:
        stream: TextIO = getattr(sys, name)
        width = None if stream.isatty() else WIDE
        found = _consoles[name] = Console(file=stream, width=width, markup=False, highlight=False, emoji=False)
    return found

"""What the pages that are written from the code are made of."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence


def paragraph(text: str) -> Iterable[str]:
    """The text in lines of a page's width, and an empty one."""
    yield textwrap.fill(" ".join(text.split()), 120, break_on_hyphens=False, break_long_words=False)
    yield ""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterable[str]:
    """A table, and an empty line."""
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    yield from ("| " + " | ".join(row) + " |" for row in rows)
    yield ""


def check_same(what: str, described: Iterable[str] | Mapping[str, object], real: Iterable[str]) -> None:
    """Raise ``SystemExit`` unless just what the code has is described."""
    missing, gone = sorted(set(real) - set(described)), sorted(set(described) - set(real))
    if missing or gone:
        raise SystemExit(f"{what}: without words {missing}, not in the code {gone}")


def code(value: object) -> str:
    """A value as the pages show it: in the form that JSON has."""
    return f"`{json.dumps(value)}`" if not isinstance(value, str) else f"`{value}`"

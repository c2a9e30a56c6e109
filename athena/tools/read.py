"""The ``read`` tool: a text file with line numbers, in a bounded amount of text."""

from __future__ import annotations

import re
from typing import Any

from pydantic import Field

from athena.tools.base import Parameters, Tool, ToolContext, ToolFailure, ToolOutput
from athena.tools.paths import OUTPUT_CAP_BYTES, cut_bytes, read_regular, resolve

MIN_ANCHORS = 3
MAX_ANCHORS = 150
ANCHOR_CHARS = 90
PLAIN_CHARS = 12_000

_ANCHOR = re.compile(
    r"""^(?:
        \#{1,6}\s+\S                                                    # a Markdown heading
      | [ \t]*(?:(?:export|default|public|private|protected|internal|static|abstract|final|async|pub(?:\([^)]*\))?)\s+)*
        (?:def|defp|defmodule|defmacro|defmacrop|defprotocol|defimpl|class|interface|struct|enum|trait|impl|fn|func
          |function|module|namespace|type|record|object|protocol|extension|sub|procedure)\s+[\w.:<(\[*&'"?!]
    )""",
    re.VERBOSE,
)

DESCRIPTION = f"""Read a text file. Each line is shown as its number, a tab and its text.
A whole file above {OUTPUT_CAP_BYTES} bytes is shown as an outline of its definitions and headings instead; read the
part you need with offset and limit then."""


class ReadParameters(Parameters):
    """Arguments of ``read``."""

    path: str = Field(description="The file, absolute or relative to the working directory.")
    offset: int | None = Field(default=None, ge=1, description="First line to show, counted from 1.")
    limit: int | None = Field(default=None, ge=1, description="Number of lines to show.")


async def run(args: ReadParameters, ctx: ToolContext) -> ToolOutput:
    """Show the file or a part of it. Raises :class:`ToolFailure` if there is nothing to show."""
    data = read_regular(resolve(ctx.cwd, args.path), args.path)
    body = data.decode("utf-8", "replace")
    lines = split_lines(body)
    first = args.offset or 1
    if first > max(len(lines), 1):
        raise ToolFailure(f"offset {first} is past the end of {args.path!r}, which has {len(lines)} lines")
    last = len(lines) if args.limit is None else min(len(lines), first + args.limit - 1)
    whole = args.offset is None and args.limit is None
    text = _show(lines, first, last, whole=whole)
    if "\ufffd" in body and not _is_utf8(data):
        text += "\n[not valid UTF-8: undecodable bytes are shown as \ufffd]"
    shown = body if whole else "\n".join(lines[first - 1 : last])
    payload: dict[str, Any] = {"path": args.path, "content": shown, "line_range": None if whole else [first, last]}
    return ToolOutput(text, ui_kind="file", ui_payload=payload)


def split_lines(text: str) -> list[str]:
    """The lines of ``text``, split on LF; the CR of a CRLF is not shown. An empty text has no line."""
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def outline(lines: list[str]) -> list[str]:
    """The numbered lines that look like definitions or headings."""
    return [f"{number}\t{line[:ANCHOR_CHARS]}" for number, line in enumerate(lines, 1) if _ANCHOR.match(line[:500])]


def _show(lines: list[str], first: int, last: int, *, whole: bool) -> str:
    if not lines:
        return "(empty file)"
    numbered = [f"{number}\t{line}" for number, line in enumerate(lines[first - 1 : last], first)]
    text = "\n".join(numbered)
    if len(text.encode()) <= OUTPUT_CAP_BYTES:
        return text
    return _show_large(lines, text) if whole else _show_range(numbered, first, last)


def _show_large(lines: list[str], text: str) -> str:
    anchors = outline(lines)
    if len(anchors) < MIN_ANCHORS:
        head = cut_bytes(text[:PLAIN_CHARS], PLAIN_CHARS)
        return f"{head}\n... [cut: the file has {len(lines)} lines; read the rest with offset and limit]"
    more = f" (the first {MAX_ANCHORS} of {len(anchors)})" if len(anchors) > MAX_ANCHORS else ""
    title = f"[outline{more}: the file has {len(lines)} lines; read the part you need with offset and limit]"
    return cut_bytes("\n".join([title, *anchors[:MAX_ANCHORS]]), OUTPUT_CAP_BYTES)


def _show_range(numbered: list[str], first: int, last: int) -> str:
    room = OUTPUT_CAP_BYTES
    kept: list[str] = []
    for line in numbered:
        size_bytes = len(line.encode()) + 1
        if size_bytes > room:
            break
        kept.append(line)
        room -= size_bytes
    if not kept:
        return f"{cut_bytes(numbered[0], OUTPUT_CAP_BYTES)}\n... [line {first} is cut; go on with offset {first + 1}]"
    return "\n".join(kept) + f"\n... [cut before line {last}; go on with offset {first + len(kept)}]"


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


TOOL = Tool("read", DESCRIPTION, ReadParameters, run, read_only=True, parallel_safe=True, on_crash="safe")

"""The ``edit`` tool: replace an exact piece of a text file."""

from __future__ import annotations

from pydantic import Field

from athena.messages import clean_text
from athena.tools.base import Parameters, Tool, ToolContext, ToolFailure, ToolOutput
from athena.tools.paths import read_regular, replace_file, resolve

DESCRIPTION = """Replace old_string by new_string in a file. old_string must be in the file exactly as given, whitespace
included, and only once; with replace_all every occurrence is replaced. Read the file first."""


class EditParameters(Parameters):
    """Arguments of ``edit``."""

    path: str = Field(description="The file, absolute or relative to the working directory.")
    old_string: str = Field(description="The exact text to replace, without the line numbers that read shows.")
    new_string: str = Field(description="The text to put in its place.")
    replace_all: bool = Field(default=False, description="Replace every occurrence.")


async def run(args: EditParameters, ctx: ToolContext) -> ToolOutput:
    """Make the change. Raises :class:`ToolFailure`, with the file untouched, if it is not clear what to change."""
    target = resolve(ctx.cwd, args.path)
    try:
        before = read_regular(target, args.path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ToolFailure(
            f"{args.path!r} is not valid UTF-8 (byte {error.start}); edit would damage it, so change it with bash"
        ) from error
    old, new = clean_text(args.old_string), clean_text(args.new_string)
    after, count = replaced(before, old, new, every=args.replace_all)
    await ctx.editing(target, after)
    if read_regular(target, args.path).decode("utf-8", "replace") != before:  # that may have waited for a full disk
        raise ToolFailure(f"{args.path!r} was changed meanwhile; read it again")
    replace_file(target, after, args.path)
    payload = {"path": args.path, "before": before, "after": after, "replacements": count}
    times = "1 replacement" if count == 1 else f"{count} replacements"
    return ToolOutput(f"edited {args.path}: {times}", ui_kind="diff", ui_payload=payload)


def replaced(text: str, old: str, new: str, *, every: bool) -> tuple[str, int]:
    """``text`` with ``old`` replaced by ``new``, and how often. Line ends stay what they are in ``text``.

    Raises :class:`ToolFailure` if ``old`` is empty, the same as ``new``, not there, or there more than once while
    ``every`` is false.
    """
    if not old:
        raise ToolFailure("old_string is empty; give the text to replace, or use write for a whole file")
    if old == new:
        raise ToolFailure("old_string and new_string are the same; there is nothing to change")
    if _has_only_crlf(text):
        # Models write LF, and read shows none of the CRs.
        old, new = _to_crlf(old), _to_crlf(new)
    count = text.count(old)
    if count == 0:
        raise ToolFailure("old_string was not found; read the file again and copy the text exactly")
    if count > 1 and not every:
        raise ToolFailure(
            f"old_string is ambiguous: it is there {count} times; give more of the text around it, or set replace_all"
        )
    return text.replace(old, new), count


def _has_only_crlf(text: str) -> bool:
    line_ends = text.count("\n")
    return line_ends > 0 and line_ends == text.count("\r\n")


def _to_crlf(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\n", "\r\n")


TOOL = Tool("edit", DESCRIPTION, EditParameters, run)

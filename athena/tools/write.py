"""The ``write`` tool: a whole file, created or replaced in one step."""

from __future__ import annotations

from pydantic import Field

from athena.messages import clean_text
from athena.tools.base import Parameters, Tool, ToolContext, ToolFailure, ToolOutput
from athena.tools.paths import failed, read_regular, replace_file, resolve

DESCRIPTION = (
    "Write a whole file: it is created, with its directories, or replaced. To change a part of a file use edit."
)


class WriteParameters(Parameters):
    """Arguments of ``write``."""

    path: str = Field(description="The file, absolute or relative to the working directory.")
    content: str = Field(description="All of the file's text.")


async def run(args: WriteParameters, ctx: ToolContext) -> ToolOutput:
    """Write the file. Raises :class:`ToolFailure` if that is not possible; the old file is whole then."""
    target = resolve(ctx.cwd, args.path)
    before, content = _before(target.is_file(), args.path, ctx), clean_text(args.content)
    await ctx.editing(target, content)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise ToolFailure(f"cannot write {args.path!r}: a part of its path is a file, not a directory") from error
    except OSError as error:
        raise failed("create the directory of", args.path, error) from error
    size_bytes = replace_file(target, content, args.path)
    payload = {"path": args.path, "before": before, "after": args.content}
    return ToolOutput(f"wrote {size_bytes} bytes to {args.path}", ui_kind="diff", ui_payload=payload)


def _before(exists: bool, path: str, ctx: ToolContext) -> str | None:
    """The old text for the people's view; ``None`` for a new file or one that is too large or closed to us."""
    if not exists:
        return None
    try:
        return read_regular(resolve(ctx.cwd, path), path).decode("utf-8", "replace")
    except ToolFailure:
        return None


TOOL = Tool("write", DESCRIPTION, WriteParameters, run)

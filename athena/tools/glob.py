"""The ``glob`` tool: paths that match a pattern."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

from pydantic import Field

from athena.messages import clean_text
from athena.tools import scan
from athena.tools.base import Parameters, Tool, ToolContext, ToolFailure, ToolOutput
from athena.tools.paths import ARTIFACT_DIRS, resolve

DEFAULT_RESULTS = 200
MAX_RESULTS = 5000
WALK_LIMIT_S = 30.0

DESCRIPTION = f"""List files and directories (with a slash at the end) whose path matches a pattern, e.g. `**/*.py`.
`*` stays inside a name, `**` is any number of directories, `{{a,b}}` is one of several. Names with a leading dot need
one in the pattern. Build and dependency directories ({", ".join(ARTIFACT_DIRS)}) are left out."""


class GlobParameters(Parameters):
    """Arguments of ``glob``."""

    pattern: str = Field(description="The pattern, relative to the working directory or absolute.")
    max_results: int = Field(default=DEFAULT_RESULTS, ge=1, description=f"Most paths to return, at most {MAX_RESULTS}.")
    include_artifacts: bool = Field(default=False, description="Look into build and dependency directories too.")


async def run(args: GlobParameters, ctx: ToolContext) -> ToolOutput:
    """List the matches. Raises :class:`ToolFailure` for a pattern that leaves the working directory."""
    if not args.pattern.strip():
        raise ToolFailure("pattern is empty; give one such as **/*.py")
    resolve(ctx.cwd, args.pattern)  # the rules for paths hold for patterns too
    limit = min(args.max_results, MAX_RESULTS)
    stop = threading.Event()
    try:
        paths, complete = await asyncio.to_thread(_find, args, ctx.cwd, stop)
    finally:
        stop.set()
    if not paths:
        return ToolOutput("no files match" if complete else "no files match so far; the directory is too large")
    text = "\n".join(paths[:limit])
    if len(paths) > limit:
        text += f"\n... [{len(paths) - limit} more; narrow the pattern]"
    if not complete:
        text += f"\n... [stopped after {WALK_LIMIT_S:g} s; there may be more]"
    payload = {"pattern": args.pattern, "matches": paths[:limit], "total": len(paths)}
    return ToolOutput(text, ui_kind="matches", ui_payload=payload)


def _find(args: GlobParameters, cwd: Path, stop: threading.Event) -> tuple[list[str], bool]:
    """All matches, and whether the walk came to its end."""
    deadline = time.monotonic() + WALK_LIMIT_S
    prefix, pattern = _fixed_prefix(args.pattern)
    root = Path(prefix) if prefix.startswith("/") else cwd / prefix
    matches = scan.glob_matcher(pattern)
    hidden = [] if args.include_artifacts else list(ARTIFACT_DIRS)
    over = False

    def is_over() -> bool:
        nonlocal over
        over = stop.is_set() or time.monotonic() > deadline
        return over

    found = [
        clean_text(f"{prefix}{path}/" if is_directory else f"{prefix}{path}")
        for path, is_directory in scan.walk(str(root), hidden, is_over)
        if matches(path)
    ]
    return sorted(found), not over


def _fixed_prefix(pattern: str) -> tuple[str, str]:
    """The directories that the pattern names literally, and the rest: nothing else needs a look."""
    parts = clean_text(pattern).split("/")
    fixed = 0
    while fixed < len(parts) - 1 and not set(parts[fixed]) & set("*?[{"):
        fixed += 1
    prefix = "/".join(parts[:fixed])
    return (f"{prefix}/" if fixed else ""), "/".join(parts[fixed:])


TOOL = Tool("glob", DESCRIPTION, GlobParameters, run, read_only=True, parallel_safe=True, on_crash="safe")

"""The ``grep`` tool: lines that match a regular expression, by ripgrep or, without it, by :mod:`athena.tools.scan`."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import Field

from athena.messages import clean_text
from athena.tools import scan
from athena.tools.base import Parameters, Tool, ToolContext, ToolFailure, ToolOutput, ToolTimeout
from athena.tools.paths import ARTIFACT_DIRS, OUTPUT_CAP_BYTES, resolve
from athena.tools.process import run_process

DEFAULT_RESULTS = 200
MAX_RESULTS = 2000
LINE_CAP_BYTES = 500
LIMIT_S = 60.0
_CARRY_BYTES = 64 * 1024

DESCRIPTION = f"""Search files for lines that match a regular expression; the result is `path:line:text`.
path_glob selects files: `*.py` at any depth, `src/**/*.py`, or a directory. Build and dependency directories
({", ".join(ARTIFACT_DIRS)}) and binary files are left out. Lines are cut at {LINE_CAP_BYTES} bytes."""


class GrepParameters(Parameters):
    """Arguments of ``grep``."""

    pattern: str = Field(description="The regular expression.")
    path_glob: str | None = Field(
        default=None, description="Which files to search; all below the working directory if absent."
    )
    max_results: int = Field(default=DEFAULT_RESULTS, ge=1, description=f"Most lines to return, at most {MAX_RESULTS}.")
    include_artifacts: bool = Field(default=False, description="Search build and dependency directories too.")


@dataclass(slots=True)
class Lines:
    """Collects matching lines from a stream of ``path NUL number:text`` records, up to a limit."""

    limit: int
    prefix: str = ""
    found: list[str] = field(default_factory=list)
    noise: list[str] = field(default_factory=list)
    _carry: bytes = b""

    def add(self, chunk: bytes) -> bool:
        """Take the next piece. Returns whether more is wanted: one line beyond the limit tells that there are more."""
        *records, self._carry = (self._carry + chunk).split(b"\n")
        # The rest of a very long line is not needed: only its beginning is shown.
        self._carry = self._carry[:_CARRY_BYTES]
        for record in records:
            self._take(record)
        return len(self.found) <= self.limit

    def end(self) -> None:
        """Take the last record, if it had no line end."""
        if self._carry:
            self._take(self._carry)

    def _take(self, record: bytes) -> None:
        path, separator, rest = record.partition(b"\0")
        if separator:
            line = rest.rstrip(b"\r")[: LINE_CAP_BYTES + 12].decode("utf-8", "ignore")
            number, _, text = line.partition(":")
            shown = text.encode()[:LINE_CAP_BYTES].decode("utf-8", "ignore")
            path_text = clean_text(self.prefix + os.fsdecode(path.removeprefix(b"./")))
            self.found.append(f"{path_text}:{number}:{shown}")
        elif len(self.noise) < 20:
            self.noise.append(record.decode("utf-8", "replace"))


async def run(args: GrepParameters, ctx: ToolContext) -> ToolOutput:
    """Search. Raises :class:`ToolFailure` for an illegal expression and :class:`ToolTimeout` at the time limit."""
    if not args.pattern:
        raise ToolFailure("pattern is empty; give a regular expression")
    ripgrep = shutil.which("rg", path=ctx.env.get("PATH"))
    if ripgrep is None:
        return await search_python(args, ctx)
    return await search_ripgrep(args, ctx, ripgrep)


async def search_ripgrep(args: GrepParameters, ctx: ToolContext, ripgrep: str) -> ToolOutput:
    """The search by ripgrep; an expression that only Python understands (look-around) goes to the Python scan."""
    root, prefix, path_glob = _scope(args, ctx.cwd)
    limit = min(args.max_results, MAX_RESULTS)
    argv = [ripgrep, "--no-config", "--no-ignore", "--hidden", "--color=never", "--no-heading", "--with-filename"]
    argv += ["--line-number", "--null", "--crlf", "--no-messages", "--sort=path", f"--max-count={limit + 1}"]
    if path_glob:
        argv.append(f"--glob={path_glob}")
    if not args.include_artifacts:
        argv += [f"--glob=!**/{name}/**" for name in ARTIFACT_DIRS]
    argv += ["--regexp=" + clean_text(args.pattern), "--", "./"]
    lines = Lines(limit, prefix)
    status = await _search(argv, root, ctx.env, lines)
    if status == 2 and not lines.found and lines.noise:
        return await search_python(args, ctx)
    return _result(args, lines)


async def search_python(args: GrepParameters, ctx: ToolContext) -> ToolOutput:
    """The search by the standard library, in a process that can be stopped."""
    try:
        re.compile(args.pattern)
    except re.error as error:
        raise ToolFailure(f"pattern {args.pattern!r} is not a legal regular expression: {error}") from error
    root, prefix, path_glob = _scope(args, ctx.cwd)
    limit = min(args.max_results, MAX_RESULTS)
    request = {
        "pattern": clean_text(args.pattern),
        "root": ".",
        "path_glob": path_glob,
        "limit": limit + 1,
        "hidden": [] if args.include_artifacts else ARTIFACT_DIRS,
    }
    lines = Lines(limit, prefix)
    script = str(scan.__file__)
    status = await _search([sys.executable, "-I", "-S", script, json.dumps(request)], root, ctx.env, lines)
    if status not in (0, None) and lines.noise:
        raise ToolFailure(f"the search failed: {lines.noise[-1]}")
    return _result(args, lines)


async def _search(argv: list[str], root: Path, env: dict[str, str], lines: Lines) -> int | None:
    """Run the searching program. Returns its status, ``None`` if it was stopped because there was enough."""
    ended = await run_process(argv, cwd=root, env=env, limit_s=LIMIT_S, sink=lines.add)
    if ended.cause == "timeout":
        raise ToolTimeout(f"timeout: the search took longer than {LIMIT_S:g} s; narrow it with path_glob")
    if ended.cause == "sink":
        return None
    lines.end()
    return ended.status


def _scope(args: GrepParameters, cwd: Path) -> tuple[Path, str, str | None]:
    """Where to search, what to put before the paths found there, and the glob that selects files."""
    if args.path_glob is None or args.path_glob.strip() in ("", ".", "./"):
        return cwd, "", None
    target = resolve(cwd, args.path_glob)
    if target.is_dir():
        return target, args.path_glob.rstrip("/") + "/", None
    if args.path_glob.startswith("/"):
        fixed = next(parent for parent in target.parents if not set(str(parent)) & set("*?[{"))
        return fixed, f"{str(fixed).rstrip('/')}/", f"/{target.relative_to(fixed)}"
    # A leading slash anchors ripgrep's glob at the root of the search.
    inner = args.path_glob.removeprefix("./")
    return cwd, "", f"/{inner}" if "/" in inner else inner


def _result(args: GrepParameters, lines: Lines) -> ToolOutput:
    if not lines.found:
        return ToolOutput("no matches", ui_kind="matches", ui_payload={"pattern": args.pattern, "matches": []})
    kept = lines.found[: lines.limit]
    shown: list[str] = []
    room = OUTPUT_CAP_BYTES
    for line in kept:
        room -= len(line.encode()) + 1
        if room < 0:
            break
        shown.append(line)
    text = "\n".join(shown)
    if len(shown) < len(lines.found):
        text += "\n... [more lines match; narrow the search with path_glob or the pattern]"
    return ToolOutput(text, ui_kind="matches", ui_payload={"pattern": args.pattern, "matches": shown})


TOOL = Tool("grep", DESCRIPTION, GrepParameters, run, read_only=True, parallel_safe=True, on_crash="safe")

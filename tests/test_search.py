from __future__ import annotations

import os
import shutil
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from athena.tools import grep, scan
from athena.tools.base import ToolContext, ToolFailure, ToolOutput, ToolTimeout
from tests.helpers import TIME_UNIT
from tests.tool_calls import call, ctx, error, fill, text

__all__ = ["ctx"]

RIPGREP = shutil.which("rg")

# --- glob ------------------------------------------------------------------------------------------------------------

TREE: dict[str, str | bytes] = {
    "a.py": "import os\nneedle\n",
    "src/b.py": "needle = 'x'\n",
    "src/deep/c.txt": "no\r\nneedle here\r\n",
    "src/.hidden/d.py": "needle\n",
    "node_modules/e.py": "needle\n",
    "src/tmp/f.py": "needle\n",
    "priv/static/g.py": "needle\n",
    "priv/h.py": "needle\n",
    "static/i.py": "needle\n",
    "__pycache__/j.py": "needle\n",
    "bin": b"needle\0\n",
}
VISIBLE = ["a.py", "priv/h.py", "src/b.py", "static/i.py"]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("**/*.py", VISIBLE),
        ("*.py", ["a.py"]),
        ("src/*", ["src/b.py", "src/deep/"]),
        ("src/**", ["src/b.py", "src/deep/", "src/deep/c.txt"]),
        ("src/**/[cd].*", ["src/deep/c.txt"]),
        ("{a,src/b}.py", ["a.py", "src/b.py"]),
        ("**/.hidden/*", ["src/.hidden/d.py"]),
        ("./a.py", ["./a.py"]),
        ("node_modules/*", ["node_modules/e.py"]),
    ],
)
async def test_glob(ctx: ToolContext, pattern: str, found: list[str]) -> None:
    fill(ctx.cwd, TREE)
    assert (await text(ctx, "glob", pattern=pattern)).split("\n") == found


async def test_glob_artifacts_cap_absolute_and_none(ctx: ToolContext) -> None:
    fill(ctx.cwd, TREE)
    assert "node_modules/e.py" in await text(ctx, "glob", pattern="**/*.py", include_artifacts=True)
    outcome = await call(ctx, "glob", pattern="**/*.py", max_results=2)
    assert outcome.result.content == "a.py\npriv/h.py\n... [2 more; narrow the pattern]"
    assert outcome.result.ui_payload == {
        "kind": "matches",
        "payload": {"pattern": "**/*.py", "matches": ["a.py", "priv/h.py"], "total": 4},
    }
    assert await text(ctx, "glob", pattern=f"{ctx.cwd}/src/*.py") == f"{ctx.cwd}/src/b.py"
    assert await text(ctx, "glob", pattern="**/*.rs") == "no files match"
    assert "'..'" in await error(ctx, "glob", pattern="../*")
    assert "empty" in await error(ctx, "glob", pattern=" ")
    assert "pattern: required and missing" in await error(ctx, "glob")


async def test_glob_of_a_symlink_loop_and_undecodable_names_ends(ctx: ToolContext) -> None:
    fill(ctx.cwd, {"d/x.py": ""})
    (ctx.cwd / "d/loop").symlink_to("..")
    (Path(os.fsdecode(os.fsencode(ctx.cwd) + b"/caf\xe9.py"))).touch()
    outcome = await call(ctx, "glob", pattern="**/*.py")
    assert outcome.result.content == "caf\ufffd.py\nd/x.py"
    orjson.dumps(outcome.result.to_map())


def test_pathological_patterns_are_matched_in_bounded_time() -> None:
    started_at = time.monotonic()
    matches = scan.glob_matcher("/".join(["**"] * 12 + ["*a*a*a*a*a*a*b"]))
    assert not matches("/".join(["a" * 30] * 30))
    assert len(scan.expand_braces("{a,b}" * 30)) < 1000
    assert time.monotonic() - started_at < 1 * TIME_UNIT


# --- grep, with each of its two engines ------------------------------------------------------------------------------

Search = Callable[..., Awaitable[ToolOutput]]


@pytest.fixture(params=["python", "ripgrep"])
def search(request: pytest.FixtureRequest, ctx: ToolContext) -> Search:
    if request.param == "ripgrep" and RIPGREP is None:
        pytest.skip("ripgrep is not installed")

    async def find(pattern: str, **options: Any) -> ToolOutput:
        args = grep.GrepParameters(pattern=pattern, **options)
        if request.param == "python":
            return await grep.search_python(args, ctx)
        assert RIPGREP is not None
        return await grep.search_ripgrep(args, ctx, RIPGREP)

    return find


async def test_grep_finds_lines_and_hides_artifacts_and_binaries(search: Search, ctx: ToolContext) -> None:
    fill(ctx.cwd, TREE)
    found = (await search("^needle")).text.split("\n")
    assert sorted(found) == [
        "a.py:2:needle",
        "priv/h.py:1:needle",
        "src/.hidden/d.py:1:needle",
        "src/b.py:1:needle = 'x'",
        "src/deep/c.txt:2:needle here",
        "static/i.py:1:needle",
    ]
    everything = (await search("^needle", include_artifacts=True)).text
    assert "node_modules/e.py:1:needle" in everything
    assert "priv/static/g.py:1:needle" in everything


@pytest.mark.parametrize(
    ("path_glob", "files"),
    [
        ("*.txt", ["src/deep/c.txt"]),
        ("src/*.py", ["src/b.py"]),
        ("./src/*.py", ["src/b.py"]),
        ("src/**/*.py", ["src/.hidden/d.py", "src/b.py"]),
        ("src/deep", ["src/deep/c.txt"]),
        ("a.py", ["a.py"]),
        ("*.{txt,nope}", ["src/deep/c.txt"]),
        ("node_modules", ["node_modules/e.py"]),
        (".", ["a.py", "priv/h.py", "src/.hidden/d.py", "src/b.py", "src/deep/c.txt", "static/i.py"]),
    ],
)
async def test_grep_searches_the_files_of_the_glob(
    search: Search, ctx: ToolContext, path_glob: str, files: list[str]
) -> None:
    fill(ctx.cwd, TREE)
    found = (await search("needle", path_glob=path_glob)).text.split("\n")
    assert sorted({line.split(":")[0] for line in found}) == files


async def test_grep_of_an_absolute_glob(search: Search, ctx: ToolContext) -> None:
    fill(ctx.cwd, TREE)
    assert (await search("needle", path_glob=f"{ctx.cwd}/src/*.py")).text == f"{ctx.cwd}/src/b.py:1:needle = 'x'"
    assert (await search("needle", path_glob=f"{ctx.cwd}/src/b.py")).text == f"{ctx.cwd}/src/b.py:1:needle = 'x'"


@pytest.mark.parametrize("pattern", ["--files", "-e", "-v", "--pre=sh"])
async def test_grep_pattern_is_never_a_flag(search: Search, ctx: ToolContext, pattern: str) -> None:
    fill(ctx.cwd, {"a": f"x {pattern} y\nother\n"})
    assert (await search(pattern)).text == f"a:1:x {pattern} y"


async def test_grep_caps_results_and_lines(search: Search, ctx: ToolContext) -> None:
    fill(ctx.cwd, {"a": "hit\n" * 50, "b": "hit\n" * 50, "long": "é" * 1_000_000 + " HIT\n"})
    output = await search("hit", max_results=60)
    assert output.text.count(":hit") == 60
    assert output.text.endswith("... [more lines match; narrow the search with path_glob or the pattern]")
    assert output.ui_payload is not None
    assert len(output.ui_payload["matches"]) == 60
    assert (await search("HIT")).text == "long:1:" + "é" * 250
    assert (await search("nothing")).text == "no matches"


async def test_grep_of_look_around_and_illegal_expressions(search: Search, ctx: ToolContext) -> None:
    fill(ctx.cwd, {"a": "foobar\nfoobaz\n"})
    assert (await search("foo(?!bar)")).text == "a:2:foobaz"
    with pytest.raises(ToolFailure, match="not a legal regular expression"):
        await search("a(")


async def test_grep_that_backtracks_forever_is_ended(ctx: ToolContext, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(ctx.cwd, {"a": "a" * 60 + "b\n"})
    monkeypatch.setattr(grep, "LIMIT_S", 0.3)
    with pytest.raises(ToolTimeout, match="timeout"):
        await grep.search_python(grep.GrepParameters(pattern="^(a+)+$"), ctx)


async def test_grep_tool_uses_what_the_environment_has(ctx: ToolContext) -> None:
    fill(ctx.cwd, {"a": "x\n"})
    assert await text(ctx, "grep", pattern="x") == "a:1:x"
    ctx.env["PATH"] = "/nonexistent"
    assert await text(ctx, "grep", pattern="x") == "a:1:x"
    assert "empty" in await error(ctx, "grep", pattern="")
    assert "pattern: required and missing" in await error(ctx, "grep")
    assert "'..'" in await error(ctx, "grep", pattern="x", path_glob="../x")

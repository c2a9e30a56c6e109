from __future__ import annotations

import asyncio
import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from athena import tools
from athena.errors import InvalidOption, UnsupportedOption
from athena.messages import ToolCall
from athena.tools import edit, paths, read
from athena.tools.base import Parameters, Tool, ToolContext, ToolFailure, ToolOutput
from athena.tools.execute import Outcome, run_tool
from tests.tool_calls import call, ctx, error, fill, text

__all__ = ["ctx"]

# --- which tools there are -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("selection", ["all", None])
def test_all_means_every_builtin(selection: str | None) -> None:
    assert list(tools.resolve(selection)) == ["read", "glob", "grep", "write", "edit", "bash"]


def test_selection_by_name_by_import_string_and_extra() -> None:
    extra = Tool("mine", "", Parameters, read.run)
    assert list(tools.resolve(["read", "athena.tools.bash:TOOL"], [extra])) == ["read", "bash", "mine"]
    assert tools.resolve([]) == {}


@pytest.mark.parametrize(
    ("selection", "kind"),
    [
        ("read", InvalidOption),
        (["raed"], InvalidOption),
        ([3], InvalidOption),
        (["athena.tools.none:TOOL"], InvalidOption),
        (["athena.tools.read:NONE"], InvalidOption),
        (["athena.tools.read:run"], InvalidOption),
        ([":x"], InvalidOption),
        (["web_fetch"], UnsupportedOption),
        (["apply_patch"], UnsupportedOption),
    ],
)
def test_illegal_selection_names_the_option_and_what_is_legal(selection: Any, kind: type[InvalidOption]) -> None:
    with pytest.raises(kind) as caught:
        tools.resolve(selection)
    assert caught.value.option == "tools"
    assert "read, glob, grep" in caught.value.expected


@pytest.mark.parametrize("tool", tools.resolve("all").values(), ids=lambda tool: tool.name)
def test_builtin_has_a_plain_schema(tool: Tool) -> None:
    spec = tool.spec()
    json.dumps(spec.parameters)
    assert spec.parameters["type"] == "object"
    assert spec.description
    assert all(prop.get("description") or prop["type"] == "boolean" for prop in spec.parameters["properties"].values())
    assert tool.parallel_safe == tool.read_only == (tool.on_crash == "safe")


# --- paths -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["read", "write", "edit"])
@pytest.mark.parametrize(
    ("path", "part"), [("", "empty"), ("  ", "empty"), ("a\0b", "NUL"), ("../a", "'..'"), ("a/../../b", "'..'")]
)
async def test_illegal_paths_are_refused(ctx: ToolContext, name: str, path: str, part: str) -> None:
    assert part in await error(ctx, name, path=path, content="", old_string="a", new_string="b")


def test_absolute_paths_pass_untouched(tmp_path: Path) -> None:
    assert str(paths.resolve(tmp_path, "/a/../b")) == "/a/../b"
    assert paths.resolve(tmp_path, "a..b/c") == tmp_path / "a..b/c"


@given(st.text(max_size=50), st.integers(0, 60))
def test_cut_is_a_prefix_within_the_bytes(value: str, limit_bytes: int) -> None:
    cut = paths.cut_bytes(value, limit_bytes)
    assert value.startswith(cut)
    assert len(cut.encode()) <= limit_bytes


# --- read ------------------------------------------------------------------------------------------------------------


async def test_read_numbers_lines_and_keeps_their_numbers_with_offset(ctx: ToolContext) -> None:
    fill(ctx.cwd, {"a": "one\ntwo\r\nthree\nfour"})
    assert await text(ctx, "read", path="a") == "1\tone\n2\ttwo\n3\tthree\n4\tfour"
    outcome = await call(ctx, "read", path=str(ctx.cwd / "a"), offset=2, limit=2)
    assert outcome.result.content == "2\ttwo\n3\tthree"
    assert outcome.result.ui_payload == {
        "kind": "file",
        "payload": {"path": str(ctx.cwd / "a"), "content": "two\nthree", "line_range": [2, 3]},
    }


async def test_read_of_nothing(ctx: ToolContext) -> None:
    fill(ctx.cwd, {"empty": "", "a": "x\n"})
    assert await text(ctx, "read", path="empty") == "(empty file)"
    assert "past the end" in await error(ctx, "read", path="a", offset=2)
    assert "No such file" in await error(ctx, "read", path="none")
    assert "directory" in await error(ctx, "read", path=".")


async def test_read_of_special_and_large_files_is_refused_and_does_not_block(ctx: ToolContext) -> None:
    os.mkfifo(ctx.cwd / "pipe")
    assert "named pipe" in await error(ctx, "read", path="pipe")
    assert "device" in await error(ctx, "read", path="/dev/zero")
    fill(ctx.cwd, {"large": b"x" * 2_000_001})
    assert "too large: 2000001 bytes" in await error(ctx, "read", path="large")


async def test_read_of_a_large_file_with_definitions_is_an_outline(ctx: ToolContext) -> None:
    body = "".join(f"class C{n}:\n    async def f{n}(self):\n" + "        pass\n" * 100 for n in range(100))
    fill(ctx.cwd, {"a.py": body})
    shown = await text(ctx, "read", path="a.py")
    assert shown.startswith("[outline (the first 150 of 200): the file has 10200 lines")
    assert "\n1\tclass C0:\n2\t    async def f0(self):\n103\tclass C1:\n" in shown
    assert len(shown.splitlines()) == 151
    assert len(shown.encode()) <= paths.OUTPUT_CAP_BYTES


async def test_read_of_a_large_plain_file_is_its_beginning_and_a_marker(ctx: ToolContext) -> None:
    fill(ctx.cwd, {"a": "def one\ndef two\n" + "x\n" * 10_000})
    shown = await text(ctx, "read", path="a")
    assert shown.startswith("1\tdef one\n")
    assert shown.endswith("... [cut: the file has 10002 lines; read the rest with offset and limit]")
    assert len(shown) < 12_200


async def test_read_of_a_large_range_says_where_to_go_on(ctx: ToolContext) -> None:
    fill(ctx.cwd, {"a": "".join(f"{'y' * 100}{n}\n" for n in range(1, 1001)), "long": "z" * 50_000})
    collected: list[str] = []
    offset = 1
    while True:
        shown = await text(ctx, "read", path="a", offset=offset)
        assert len(shown.encode()) <= paths.OUTPUT_CAP_BYTES + 100
        body, marker, following = shown.partition("\n... [cut before line 1000; go on with offset ")
        collected += body.split("\n")
        if not marker:
            break
        offset = int(following.rstrip("]"))
    assert [int(line.partition("\t")[0]) for line in collected] == list(range(1, 1001))
    assert "[line 1 is cut" in await text(ctx, "read", path="long", offset=1)


async def test_read_shows_undecodable_bytes_and_says_so(ctx: ToolContext) -> None:
    fill(ctx.cwd, {"a": b"caf\xe9\n", "b": "a \ufffd b"})
    assert await text(ctx, "read", path="a") == "1\tcaf\ufffd\n[not valid UTF-8: undecodable bytes are shown as \ufffd]"
    assert await text(ctx, "read", path="b") == "1\ta \ufffd b"


@given(st.binary(max_size=200))
def test_read_result_of_any_bytes_can_be_recorded(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    root = tmp_path_factory.getbasetemp()
    (root / "any").write_bytes(data)
    outcome = asyncio.run(call(ToolContext(root, "s", "c"), "read", path="any"))
    orjson.dumps(outcome.result.to_map())


# --- write and edit --------------------------------------------------------------------------------------------------


async def test_write_creates_parents_and_replaces(ctx: ToolContext) -> None:
    outcome = await call(ctx, "write", path="a/b/c.txt", content="hé\n")
    assert outcome.result.content == "wrote 4 bytes to a/b/c.txt"
    assert outcome.result.ui_payload is not None
    assert outcome.result.ui_payload["payload"] == {"path": "a/b/c.txt", "before": None, "after": "hé\n"}
    outcome = await call(ctx, "write", path="a/b/c.txt", content="x")
    assert outcome.result.ui_payload is not None
    assert outcome.result.ui_payload["payload"]["before"] == "hé\n"
    assert (ctx.cwd / "a/b/c.txt").read_text() == "x"
    assert os.listdir(ctx.cwd / "a/b") == ["c.txt"]


async def test_write_keeps_mode_and_follows_symlinks(ctx: ToolContext) -> None:
    fill(ctx.cwd, {"real": "old"})
    (ctx.cwd / "real").chmod(0o751)
    (ctx.cwd / "link").symlink_to("real")
    await text(ctx, "write", path="link", content="new")
    assert (ctx.cwd / "link").is_symlink()
    assert (ctx.cwd / "real").read_text() == "new"
    assert stat.S_IMODE((ctx.cwd / "real").stat().st_mode) == 0o751
    mask = os.umask(0)
    os.umask(mask)
    await text(ctx, "write", path="fresh", content="")
    assert stat.S_IMODE((ctx.cwd / "fresh").stat().st_mode) == 0o666 & ~mask


async def test_write_refuses_what_is_no_file_and_leaves_no_temporary(ctx: ToolContext) -> None:
    os.mkfifo(ctx.cwd / "pipe")
    fill(ctx.cwd, {"dir/a": "x"})
    assert "named pipe" in await error(ctx, "write", path="pipe", content="")
    assert "directory" in await error(ctx, "write", path="dir", content="")
    assert "not a directory" in await error(ctx, "write", path="dir/a/b", content="")
    assert "too long" in await error(ctx, "write", path="n" * 300, content="")
    assert sorted(os.listdir(ctx.cwd)) == ["dir", "pipe"]


async def test_write_of_lone_surrogates_is_legal_utf8(ctx: ToolContext) -> None:
    await text(ctx, "write", path="a", content="x\ud800y")
    assert (ctx.cwd / "a").read_bytes() == "x\ufffdy".encode()


async def test_reader_never_sees_a_half_written_file(ctx: ToolContext) -> None:
    fill(ctx.cwd, {"a": "old" * 1000})
    with open(ctx.cwd / "a") as reader:
        await text(ctx, "write", path="a", content="new")
        assert reader.read() == "old" * 1000


async def test_edit_changes_the_one_place(ctx: ToolContext) -> None:
    fill(ctx.cwd, {"a": "one two three"})
    outcome = await call(ctx, "edit", path="a", old_string="two", new_string="2")
    assert outcome.result.content == "edited a: 1 replacement"
    assert outcome.result.ui_payload == {
        "kind": "diff",
        "payload": {"path": "a", "before": "one two three", "after": "one 2 three", "replacements": 1},
    }
    assert (ctx.cwd / "a").read_text() == "one 2 three"


async def test_edit_says_why_it_changes_nothing(ctx: ToolContext) -> None:
    fill(ctx.cwd, {"a": "x x x", "bin": b"\xff\xfe x"})
    assert "ambiguous: it is there 3 times" in await error(ctx, "edit", path="a", old_string="x", new_string="y")
    assert "not found" in await error(ctx, "edit", path="a", old_string="z", new_string="y")
    assert "old_string is empty" in await error(ctx, "edit", path="a", old_string="", new_string="y")
    assert "the same" in await error(ctx, "edit", path="a", old_string="x", new_string="x")
    assert "not valid UTF-8 (byte 0)" in await error(ctx, "edit", path="bin", old_string="x", new_string="y")
    assert "new_string: required and missing" in await error(ctx, "edit", path="a", old_string="x")
    assert (ctx.cwd / "a").read_text() == "x x x"
    assert await text(ctx, "edit", path="a", old_string="x", new_string="y", replace_all=True) == (
        "edited a: 3 replacements"
    )


async def test_edit_keeps_line_ends_and_byte_order_mark(ctx: ToolContext) -> None:
    fill(ctx.cwd, {"crlf": "\ufeffone\r\ntwo\r\nthree\r\n", "mixed": "one\r\ntwo\n"})
    await text(ctx, "edit", path="crlf", old_string="one\ntwo", new_string="1\n2\n2b")
    assert (ctx.cwd / "crlf").read_bytes() == "\ufeff1\r\n2\r\n2b\r\nthree\r\n".encode()
    await text(ctx, "edit", path="mixed", old_string="two\n", new_string="2\n")
    assert (ctx.cwd / "mixed").read_bytes() == b"one\r\n2\n"


FILE_TEXT = st.text(alphabet="ab\n\r é\u2028", max_size=30)


@given(FILE_TEXT, st.text("ab\né", min_size=1, max_size=6), FILE_TEXT, st.text("xy\n", min_size=1, max_size=6))
def test_edit_and_its_inverse_give_the_file_back(head: str, old: str, tail: str, new: str) -> None:
    source = head + old + tail
    assume(len(set(re.findall(r"\r\n|\r|\n", source))) < 2)  # in a mixed file the inverse has a choice
    marker = f"<{new}>"
    try:
        changed, count = edit.replaced(source, old, marker, every=False)
    except ToolFailure:
        return
    assert count == 1
    assume("\r\n" in changed or "\r\n" not in source)  # without its last line end nothing says what they were
    assert edit.replaced(changed, marker, old, every=False)[0] == source


@given(st.text("ab\n\r é\u2028\x0c", max_size=60))
def test_read_shows_every_line_that_edit_can_find(content: str) -> None:
    lines = read.split_lines(content)
    assert len(lines) == content.count("\n") + (content != "" and not content.endswith("\n"))
    for line in filter(None, lines):
        assert line in content


# --- running a call --------------------------------------------------------------------------------------------------


class Number(Parameters):
    n: int


def tool_of(run: Callable[[Any, ToolContext], Any], **options: Any) -> Tool:
    return Tool("custom", "", Number, run, **options)


async def run_custom(ctx: ToolContext, run: Callable[[Any, ToolContext], Any], timeout_s: float = 30) -> Outcome:
    return await run_tool(tool_of(run), ToolCall("c9", "custom", {"n": 1, "ignored": 2}), ctx, timeout_s)


@pytest.mark.parametrize(
    ("raised", "shown"),
    [
        (ToolFailure("do this"), "do this"),
        (ValueError("bad\ud800"), "custom failed: ValueError: bad\ufffd"),
        (TimeoutError("own"), "custom failed: TimeoutError: own"),
        (SystemExit(3), "custom failed: SystemExit: 3"),
        (asyncio.CancelledError(), "custom failed: it was cancelled from inside"),
    ],
)
async def test_whatever_a_tool_raises_is_an_error_result(ctx: ToolContext, raised: BaseException, shown: str) -> None:
    async def run(_: Number, __: ToolContext) -> ToolOutput:
        raise raised

    outcome = await run_custom(ctx, run)
    assert (outcome.status, outcome.result.content, outcome.result.is_error) == ("error", shown, True)
    assert outcome.result.tool_call_id == "c9"


async def test_cancellation_passes_through(ctx: ToolContext) -> None:
    entered = asyncio.Event()

    async def run(_: Number, __: ToolContext) -> ToolOutput:
        entered.set()
        await asyncio.Event().wait()
        raise AssertionError

    running = asyncio.create_task(run_custom(ctx, run))
    await entered.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_time_limit_of_the_loop(ctx: ToolContext) -> None:
    async def run(_: Number, __: ToolContext) -> ToolOutput:
        await asyncio.Event().wait()
        raise AssertionError

    outcome = await run_custom(ctx, run, timeout_s=0.01)
    assert (outcome.status, outcome.result.is_error) == ("timeout", True)
    assert "longer than 0.01 s" in outcome.result.content


async def test_values_that_a_tool_may_return(ctx: ToolContext) -> None:
    def returning(value: Any) -> Callable[[Number, ToolContext], Any]:
        async def run(_: Number, __: ToolContext) -> Any:
            return value

        return run

    assert (await run_custom(ctx, returning("plain"))).result.content == "plain"
    assert (await run_custom(ctx, returning(ToolOutput("no", is_error=True)))).status == "error"
    assert "returned a int" in (await run_custom(ctx, returning(3))).result.content
    assert len((await run_custom(ctx, returning("x" * 2_000_000))).result.content) < 1_000_100
    outcome = await run_custom(ctx, returning(ToolOutput("a\udcff", "k", {"t": (1, "\ud800"), "s": {2}})))
    assert outcome.result.content == "a\ufffd"
    orjson.dumps(outcome.result.to_map())
    outcome = await run_custom(ctx, returning(ToolOutput("a", "k", {"t": (1, "\ud800")})))
    assert outcome.result.ui_payload == {"kind": "k", "payload": {"t": [1, "\ufffd"]}}


async def test_arguments_that_do_not_fit_are_named(ctx: ToolContext) -> None:
    shown = await error(ctx, "read", path=3, offset=0)
    assert "path: input should be a valid string, got 3" in shown
    assert "offset: input should be greater than or equal to 1, got 0" in shown
    assert "Expected: path (string, required), offset (integer/null), limit (integer/null)" in shown


async def test_unreadable_arguments_and_unknown_tools(ctx: ToolContext) -> None:
    broken = ToolCall("c1", "read", {}, error="not JSON: line 1")
    outcome = await run_tool(read.TOOL, broken, ctx)
    assert (outcome.status, outcome.result.content) == (
        "error",
        "the arguments of 'read' could not be read: not JSON: line 1",
    )
    outcome = await run_tool(None, ToolCall("c1", "Reed"), ctx, available=["read", "write"])
    assert outcome.result.content == "there is no tool 'Reed'; the tools are: read, write. Did you mean 'read'?"
    outcome = await run_tool(None, ToolCall("c1", "deploy"), ctx)
    assert outcome.result.content == "there is no tool 'deploy'; the tools are: none."


def test_import_of_the_registry_loads_no_tool() -> None:
    code = "import sys, athena.tools; print([m for m in sys.modules if m.startswith('athena.tools.')])"
    root = Path(tools.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "['athena.tools.base']"

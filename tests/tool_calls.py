"""Running single tool calls in tests, and the files they work on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from athena import tools
from athena.messages import ToolCall
from athena.tools.base import ToolContext
from athena.tools.execute import Outcome, run_tool


@pytest.fixture
def ctx(tmp_path: Path) -> ToolContext:
    """The context of a call in an empty directory, with nothing but PATH in the environment."""
    return ToolContext(tmp_path, "s1", "c1", env={"PATH": os.environ["PATH"]})


async def call(ctx: ToolContext, name: str, **arguments: Any) -> Outcome:
    return await run_tool(tools.resolve("all")[name], ToolCall("c1", name, arguments), ctx)


async def text(ctx: ToolContext, name: str, **arguments: Any) -> str:
    outcome = await call(ctx, name, **arguments)
    assert outcome.status == "ok", outcome.result.content
    return outcome.result.content


async def error(ctx: ToolContext, name: str, **arguments: Any) -> str:
    outcome = await call(ctx, name, **arguments)
    assert (outcome.status, outcome.result.is_error) == ("error", True)
    return outcome.result.content


def fill(root: Path, files: dict[str, str | bytes]) -> None:
    for name, content in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())

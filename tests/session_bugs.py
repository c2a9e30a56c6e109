"""Tools with bugs that reach further than their call; imported by a session's child."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from athena.tools.base import Parameters, Tool, ToolContext, ToolOutput


class Once(Parameters):
    """Where a life of the session says that it had its chance."""

    done: str


class Bug(BaseException):
    """Nothing that a tool's call catches."""


async def _fail() -> None:
    raise ValueError("a task that nobody awaits")


async def _leave() -> None:
    raise SystemExit(0)


def _tool(name: str, harm: Callable[[], Awaitable[None]]) -> Tool:
    async def run(args: Once, ctx: ToolContext) -> ToolOutput:
        if not Path(args.done).exists():
            Path(args.done).touch()
            await harm()
        return ToolOutput("done")

    return Tool(name, "For tests.", Once, run, read_only=True, on_crash="safe")


async def _litter() -> None:
    asyncio.create_task(_fail())  # noqa: RUF006 - forgotten on purpose
    await asyncio.sleep(0.01)


async def _quit_in_a_task() -> None:
    await asyncio.create_task(_leave())


async def _escape() -> None:
    raise Bug("out of the engine")


LITTER = _tool("litter", _litter)
LEAVE = _tool("leave", _quit_in_a_task)
ESCAPE = _tool("escape", _escape)

ALL = [f"tests.session_bugs:{name}" for name in ("LITTER", "LEAVE", "ESCAPE")]
"""For ``tools=``."""

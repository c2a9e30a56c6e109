"""Tools that the session tests steer through files; imported by a session's child, so nothing heavy is imported here.

Each appends a line to ``effects`` when it begins, which is how a test counts what really happened, and ends when there
is a file at ``gate``.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time

from athena.tools.base import OnCrash, Parameters, Tool, ToolContext, ToolOutput

POLL_S = 0.005
BURN_S = 0.02


class Steered(Parameters):
    """Where to count, and what to wait for."""

    effects: str
    gate: str
    text: str = "done"


def _count(args: Steered, line: str) -> None:
    with open(args.effects, "a", encoding="utf-8") as file:
        file.write(line + "\n")


async def _wait(args: Steered, ctx: ToolContext) -> ToolOutput:
    """Wait as a good tool does: the loop goes on."""
    _count(args, ctx.key or str(os.getpid()))
    while not os.path.exists(args.gate):  # noqa: ASYNC110 - the one who makes the file may be any process
        await asyncio.sleep(POLL_S)
    return ToolOutput(args.text)


async def _block(args: Steered, ctx: ToolContext) -> ToolOutput:
    """Wait as a bad tool does: in one blocking call, with the loop standing still."""
    _count(args, str(os.getpid()))
    if not os.path.exists(args.gate):
        time.sleep(3600)  # noqa: ASYNC251 - the fault that is tested
    return ToolOutput(args.text)


async def _spin(args: Steered, ctx: ToolContext) -> ToolOutput:
    """Run on in C, and never let go of the interpreter's lock: no other thread of the process gets to run."""
    _count(args, str(os.getpid()))
    if not os.path.exists(args.gate):
        re.match("(a+)+$", "a" * 64 + "b")
    return ToolOutput(args.text)


async def _burn(args: Steered, ctx: ToolContext) -> ToolOutput:
    """Use all the cpu there is, and let the loop have a turn now and then."""
    _count(args, str(os.getpid()))
    while not os.path.exists(args.gate):
        until = time.thread_time() + BURN_S
        while time.thread_time() < until:
            pass
        await asyncio.sleep(0)
    return ToolOutput(args.text)


async def _crash(args: Steered, ctx: ToolContext) -> ToolOutput:
    """Take the process along."""
    _count(args, str(os.getpid()))
    if not os.path.exists(args.gate):
        os.kill(os.getpid(), signal.SIGKILL)
    return ToolOutput(args.text)


async def _quit(args: Steered, ctx: ToolContext) -> ToolOutput:
    """End the process with an exit status, past all cleaning up."""
    _count(args, str(os.getpid()))
    if not os.path.exists(args.gate):
        os._exit(3)
    return ToolOutput(args.text)


def _tool(name: str, run: object, on_crash: OnCrash) -> Tool:
    return Tool(name, "For tests.", Steered, run, read_only=True, on_crash=on_crash)  # type: ignore[arg-type]  # checked by use


WAIT = _tool("wait", _wait, "safe")
WAIT_KEYED = _tool("wait_keyed", _wait, "keyed")
WAIT_ONCE = _tool("wait_once", _wait, "unsafe")
BLOCK = _tool("block", _block, "safe")
BLOCK_ONCE = _tool("block_once", _block, "unsafe")
SPIN_ONCE = _tool("spin_once", _spin, "unsafe")
BURN = _tool("burn", _burn, "unsafe")
CRASH = _tool("crash", _crash, "safe")
CRASH_ONCE = _tool("crash_once", _crash, "unsafe")
QUIT = _tool("quit", _quit, "safe")

ALL = [f"tests.session_tools:{name}" for name in (
    "WAIT", "WAIT_KEYED", "WAIT_ONCE", "BLOCK", "BLOCK_ONCE", "SPIN_ONCE", "BURN", "CRASH", "CRASH_ONCE", "QUIT",
)]  # fmt: skip
"""For ``tools=``."""

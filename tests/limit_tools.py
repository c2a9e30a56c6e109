"""Tools that use too much; imported by a session's child, so nothing heavy is imported here."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from athena.tools.base import OnCrash, Parameters, Tool, ToolContext, ToolOutput

STEP_BYTES = 8 * 1024 * 1024

HOG = f"""
import os, sys, time
path, crossing, pause_s = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
held = []
while True:
    held.append(bytearray(b"x") * {STEP_BYTES})
    if crossing and len(held) * {STEP_BYTES} > crossing:
        crossing = 0
        with open(path, "a") as file:
            file.write(f"{{time.monotonic()}} {{os.getpid()}}\\n")
    time.sleep(pause_s)
"""
"""A program that allocates without end; it writes when it has taken more than so many bytes, and its pid."""


class Hogging(Parameters):
    """``effects`` counts the calls."""

    effects: str
    crossing: int = 0


class Opening(Parameters):
    """How many files to open at once."""

    count: int


async def _allocate(args: Hogging, ctx: ToolContext) -> ToolOutput:
    """In the session's own process, with the loop standing still."""
    with open(args.effects, "a", encoding="utf-8") as file:
        file.write("began\n")
    held = []
    while True:
        held.append(bytearray(b"x") * STEP_BYTES)
        time.sleep(0.01)  # noqa: ASYNC251 - the fault that is tested


async def _leave(args: Hogging, ctx: ToolContext) -> ToolOutput:
    """Leave a program behind that allocates without end."""
    argv = [sys.executable, "-c", HOG, args.effects, str(args.crossing), "0.01"]
    subprocess.Popen(argv, start_new_session=True)  # noqa: ASYNC220 - returns after the exec
    return ToolOutput("left it")


async def _open(args: Opening, ctx: ToolContext) -> ToolOutput:
    """Open many files at once, and say at which number that failed."""
    found: list[int] = []
    try:
        while len(found) < args.count:
            found.append(os.open("/dev/null", os.O_RDONLY))
    except OSError as error:
        return ToolOutput(f"{error.strerror} after {len(found)}")
    finally:
        for fd in found:
            os.close(fd)
    return ToolOutput(f"opened {len(found)}")


def _tool(name: str, run: object, parameters: type[Parameters], on_crash: OnCrash) -> Tool:
    return Tool(name, "For tests.", parameters, run, read_only=True, on_crash=on_crash)  # type: ignore[arg-type]  # checked by use


ALLOCATE = _tool("allocate", _allocate, Hogging, "safe")
ALLOCATE_ONCE = _tool("allocate_once", _allocate, Hogging, "unsafe")
LEAVE = _tool("leave", _leave, Hogging, "unsafe")
OPEN = _tool("open", _open, Opening, "unsafe")

ALL = [f"tests.limit_tools:{name}" for name in ("ALLOCATE", "ALLOCATE_ONCE", "LEAVE", "OPEN")]
"""For ``tools=``."""

"""The tools of the trials. Each has one effect: a line in the ledger of :mod:`athena.testing.chaos.world`.

They are imported by a session's process. Between the request to the ledger and its answer is the fail point
``inside:NAME``: a process that dies there does not know whether its effect was had.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess

from athena import failpoints
from athena.testing.chaos.scenario import KEYED, KINDS
from athena.tools.base import OnCrash, Parameters, Tool, ToolContext, ToolOutput

WORLD_VARIABLE = "ATHENA_CHAOS_WORLD"
"""The path of the ledger's socket."""

LINGER_S = 1000


class Amount(Parameters):
    """How much."""

    amount: int


async def _effect(name: str, args: Amount, ctx: ToolContext) -> ToolOutput:
    reader, writer = await asyncio.open_unix_connection(ctx.env[WORLD_VARIABLE])
    try:
        entry = {"session": ctx.session_id, "tool": name, "call": ctx.call_id, "key": ctx.key, "amount": args.amount}
        writer.write(json.dumps({"op": "effect", **entry}).encode() + b"\n")
        if failpoints.hit is not None:
            failpoints.hit(f"inside:{name}")
        receipt = json.loads(await reader.readline())
    finally:
        writer.close()
    return ToolOutput(f"receipt {receipt['number']}")


async def _linger(name: str, args: Amount, ctx: ToolContext) -> ToolOutput:
    """Leave a process behind that is in no group of ours and ignores what is polite."""
    subprocess.Popen(  # noqa: ASYNC220 - a few hundred microseconds, in a process of its own
        ["/bin/sh", "-c", f'trap "" TERM HUP INT; sleep {LINGER_S}'],
        start_new_session=True, cwd=os.getcwd(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return await _effect(name, args, ctx)


def _tool(name: str, on_crash: OnCrash) -> Tool:
    async def run(args: Amount, ctx: ToolContext) -> ToolOutput:
        return await (_linger if KINDS[name] == "lingering" else _effect)(name, args, ctx)

    return Tool(name, f"Has an effect that is {KINDS[name]}.", Amount, run, on_crash=on_crash)


def _repeat(name: str) -> OnCrash:
    if KINDS[name] in KEYED:
        return "keyed"
    return "safe" if KINDS[name] == "safe" else "unsafe"


CHARGE, POST, LOOK, DRAW, DRAW_KEYED, LINGER = (_tool(name, _repeat(name)) for name in KINDS)

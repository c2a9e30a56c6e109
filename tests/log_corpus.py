"""Makes the logs in ``data/logs``: what this release writes, frozen for the releases to come.

Run once for each format version, with a name that is not there yet::

    python -m tests.log_corpus format1

It never overwrites: a log of an old format cannot be made again. What the log folds to is kept beside it.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from athena.loop.state import SessionState, closed_messages, fold
from athena.stores.jsonl import JsonlStore
from athena.tools.base import ToolContext, ToolOutput
from tests.engine import BAD, OK, AnyArguments, calls, engine, make_tool
from tests.helpers import wait_until_async

DATA = Path(__file__).parent / "data" / "logs"

SESSION = "s1"

SCRIPT: list[Any] = [
    "unused: the answer that the session is seeded with",
    {"text": "I look.", "thinking": "hm \u2028", "tool_calls": calls("ok", "bad", "nope")["tool_calls"]},
    {**calls(("big", {"größe": [1, None, "😀"]})), "usage": {"input_tokens": 10, "output_tokens": 3, "cost_usd": 0.5}},
    "One is done: Ω",
    calls("hang"),
    "after an interrupt",
    calls("hang", "ok"),
    "after a crash",
]


async def _hang(args: AnyArguments, ctx: ToolContext) -> ToolOutput:
    await asyncio.Event().wait()
    return ToolOutput("never")


async def _big(args: AnyArguments, ctx: ToolContext) -> ToolOutput:
    return ToolOutput("shown", ui_kind="table", ui_payload={"rows": ["é\u2029"] * 8_500})


TOOLS = [OK, BAD, make_tool("hang", _hang), make_tool("big", _big, on_crash="keyed")]


async def make(store: JsonlStore) -> None:
    """A session with all that this release records, over three lives; its last turn is open."""
    seed = [{"role": "user", "content": "before"}, {"role": "assistant", "content": "the log"}]
    settings: dict[str, Any] = {"extra_tools": TOOLS, "durability": "turn"}
    async with engine(SCRIPT, log=store.open(SESSION), messages=seed, **settings) as e:
        await e.send("first \u2028 message", "m1")
        await e.submit("second", "m2")
        await e.submit("taken back", "m3", max_iterations=5)
        await e.runner.cancel("m3")
        await wait_until_async(lambda: e.kinds().count("tool_call") == 4)
        await e.runner.interrupt()
        await e.send("third", "m4")
        await e.submit("fourth", "m5")
        await wait_until_async(lambda: e.kinds().count("tool_call") == 5)
    async with engine(SCRIPT, log=store.open(SESSION), counted=True, **settings) as e:
        await e.result("m5")
        await e.runner.recorder.record("session_end", {"reason": "normal"})
    async with engine(["unused", *SCRIPT], log=store.open(SESSION), **settings) as e:
        await e.runner.recorder.record("message_accepted", {"message_id": "m6", "text": "waits still"})


def folded(state: SessionState) -> dict[str, Any]:
    """What a fold must come to, as JSON."""
    return {
        "messages": [m.to_map() for m in closed_messages(state.messages)],
        "ended": {one: ended.data["finish_reason"] for one, ended in state.ended.items()},
        "queue": [m.message_id for m in state.queue],
        "cancelled": sorted(state.cancelled),
        "usage": state.usage.to_map(),
        "turns": state.turns,
        "events": state.events,
        "misfits": state.misfits,
    }


def main(name: str) -> None:
    """Make the log ``name`` and what it folds to."""
    root = DATA / name
    if root.exists():
        raise SystemExit(f"{root} is there already, and stays as it is")
    store = JsonlStore(root)
    asyncio.run(make(store))
    text = json.dumps(folded(fold(store.read(SESSION))), indent=1)
    (root / "folds_to.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])

"""What the tests of hibernation run inside a session's child."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from athena.stores.jsonl import JsonlLog, JsonlStore
from athena.tools.base import Parameters, Tool, ToolContext, ToolOutput

POLL_S = 0.005


class SlowStore(JsonlStore):
    """A custom store whose logs close when there is a file ``gate`` in ``steer``, after a line in ``closing``."""

    def __init__(self, root: str, steer: str) -> None:
        super().__init__(root)
        self._steer = Path(steer)

    def open(self, session_id: str) -> JsonlLog:
        """As its base, but for the end."""
        log = super().open(session_id)
        close = log.close

        def close_slowly() -> None:
            with (self._steer / "closing").open("a") as file:
                file.write("x\n")
            while not (self._steer / "gate").exists():
                time.sleep(POLL_S)
            close()

        log.close = close_slowly  # type: ignore[method-assign]  # the slowness that is tested
        return log


class Nothing(Parameters):
    """No arguments."""


async def _leave_behind(args: Nothing, ctx: ToolContext) -> ToolOutput:
    """Start a program that outlives the call, as a tool does that keeps a server."""
    process = subprocess.Popen(["sleep", "1000"])  # noqa: ASYNC220 - returns at once
    return ToolOutput(str(process.pid))


LEAVE_BEHIND = Tool("leave_behind", "Start a program.", Nothing, _leave_behind, on_crash="safe", read_only=True)

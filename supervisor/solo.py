"""A server on its own: no supervisor of a tree has it, so nothing starts it again."""

from __future__ import annotations

import asyncio

from athena.errors import Reason
from athena.spec_checks import Shutdown
from supervisor.tree_function import Function


class Solo:
    """A server that a client has started, until it ends."""

    def __init__(self, leaf: Function, shutdown: Shutdown) -> None:
        self.leaf = leaf
        self.has_begun = asyncio.Event()
        """Its start has succeeded or failed."""
        self._shutdown = shutdown

    async def stop(self, reason: Reason = "shutdown") -> None:
        """End it as a supervisor would (otp.md 10), and return when nothing of it is left."""
        if not self.leaf.is_launched:
            self.leaf.kill()  # as soon as there is something to kill; then its start fails, and leaves nothing
            await self.has_begun.wait()
            return
        if self._shutdown == "brutal_kill":
            self.leaf.kill()
        else:
            self.leaf.shut_down(reason)
        limit = None if isinstance(self._shutdown, str) else self._shutdown
        try:
            async with asyncio.timeout(limit):
                await self.leaf.wait()
        except TimeoutError:
            self.leaf.kill()
            await self.leaf.wait()

"""A time limit for many short waits, at the price of one timer for all of them.

``asyncio.timeout`` makes and cancels a timer at every use. A model's answer has thousands of pieces, most of them
already here when asked for, so the limit is a number that each wait sets, and one timer looks at it when it may be
due.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

T = TypeVar("T")


class Watchdog:
    """Bounds waits of one task. Call :meth:`stop` at the end, or its timer keeps the loop's memory until it is due."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._deadline = 0.0
        self._waiting: asyncio.Task[Any] | None = None
        self._barked = False

    async def wait(self, awaitable: Awaitable[T], deadline: float) -> T:
        """The result of ``awaitable``. Raises ``TimeoutError`` if it is not there at ``deadline`` (loop time)."""
        task = asyncio.current_task()
        assert task is not None
        cancelling = task.cancelling()
        self._deadline, self._waiting = deadline, task
        if self._timer is None or self._timer.when() > deadline:
            self._arm(deadline)
        try:
            return await awaitable
        except asyncio.CancelledError as exc:
            # The protocol of asyncio.timeout: a cancellation from elsewhere that came as well goes first.
            if self._barked and task.uncancel() <= cancelling:
                raise TimeoutError from exc
            raise
        finally:
            self._waiting, self._barked = None, False

    def stop(self) -> None:
        """Drop the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self, when: float) -> None:
        self.stop()
        self._timer = self._loop.call_at(when, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._waiting is None:
            return  # the next wait arms it again
        if self._deadline > self._loop.time():
            self._arm(self._deadline)
            return
        self._barked = True
        self._waiting.cancel()
